# Copyright 2026 spotvlm maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
#
# SPDX-License-Identifier: Apache-2.0
"""Robot and cloud on two hosts, whose network fails; and the relay that makes it slow."""

import asyncio
from collections import namedtuple
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from spotvlm_ros.bench.faults.relay import Link, Relay


@pytest.mark.parametrize('link,least,most', [
    (Link(), 0.0, 0.1), (Link(delay_s=0.1), 0.2, 0.4),
    (Link(bytes_per_s=1e6), 0.2, 0.5), (Link(delay_s=0.05, jitter_s=0.02), 0.1, 1.0)])
def test_relay_is_as_slow_as_told_and_keeps_every_byte(link, least, most):
    data = bytes(range(256)) * 800

    async def echo(reader, writer):
        writer.write(await reader.readexactly(len(data)))
        writer.close()

    async def main():
        far = await asyncio.start_server(echo, '127.0.0.1', 0)
        relay = Relay(('127.0.0.1', 0), far.sockets[0].getsockname(), link)
        await relay.start()
        began = time.monotonic()
        reader, writer = await asyncio.open_connection('127.0.0.1', relay.port)
        writer.write(data)
        got = await reader.read(-1)
        took = time.monotonic() - began
        writer.close()
        relay._server.close()
        far.close()
        return got, took
    got, took = asyncio.run(main())
    assert got == data and least <= took <= most


def test_relay_to_nobody_breaks_the_connection():
    async def main():
        relay = Relay(('127.0.0.1', 0), ('127.0.0.1', 9), Link())
        await relay.start()
        reader, writer = await asyncio.open_connection('127.0.0.1', relay.port)
        writer.write(b'hello?')
        try:
            return await asyncio.wait_for(reader.read(), 2.0)
        except ConnectionResetError:
            return b''
        finally:
            writer.close()
            relay._server.close()
    assert asyncio.run(main()) == b''


def test_what_the_host_takes_counts_as_taken(monkeypatch):
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    from spotvlm_ros.bench.faults import scene
    kind = namedtuple('Times', 'user nice system idle iowait irq softirq steal guest guest_nice')
    moments = iter([(0.0, kind(5, 0, 5, 90, 0, 0, 0, 1, 0, 0)),
                    (10.0, kind(9, 0, 7, 95, 1, 0, 0, 9, 2, 0))])
    ours = iter([(1.0, 1.0), (4.0, 2.0)])

    def now():
        at, cpu = next(moments)
        monkeypatch.setattr(scene.psutil, 'cpu_times', lambda: cpu)
        monkeypatch.setattr(scene.time, 'monotonic', lambda: at)
        return real()

    def process():
        user, system = next(ours)
        return SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=user, system=system),
                               children=lambda recursive: [])
    real = scene.OtherLoad._now
    monkeypatch.setattr(scene.psutil, 'Process', process)
    monkeypatch.setattr(scene.OtherLoad, '_now', staticmethod(now))
    load = scene.OtherLoad()
    load.look()
    # in 10 s 6 s of user, guests among it, and system, and 8 s of steal; 4 s were ours
    assert load.most == pytest.approx(1.0)


def test_two_hosts_whose_server_dies_and_whose_link_goes_down(tmp_path):
    """
    The whole graph with the shipped edge model; 40 ms each way, 20 Mbit/s.

    Rates are compared coarsely: other load on the machine is none of the bridge's. The command
    without these options measures them, through 30 s.
    """
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    from spotvlm_ros.bench.faults.network import why_not
    if why_not():
        pytest.skip(why_not())
    out = tmp_path / 'figures.json'
    done = subprocess.run(
        [sys.executable, '-P', '-m', 'spotvlm_ros.bench.perf.faults', '--network', '--outage',
         '10', '--seconds', '6', '--clean', '2', '--tolerance', '0.3', '--out', str(out)],
        capture_output=True, text=True, timeout=150, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row['name']: row['value'] for row in json.loads(out.read_text())}
    for name in ('server_killed', 'link_down'):
        assert rows[f'faults_network_{name}_context_back'] < 12.0
    assert 'unreachable' in done.stdout and 'Traceback' not in done.stderr
