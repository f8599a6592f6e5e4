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
"""
Two hosts on one machine: the robot and the cloud in network namespaces, joined by a veth pair.

The link is made slow by ``tc netem`` where the kernel has it and by a relay in the cloud's
namespace elsewhere, and fails by being taken down, as a lost Wi-Fi does: packets vanish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
import shutil
import subprocess
import time
from types import TracebackType

from .relay import Link
from .rig import ChaosProcess
from ...system.processes import PYTHON

ROBOT, CLOUD = '10.77.0.1', '10.77.0.2'
SERVER_PORT, RELAY_PORT = 8000, 8001
ISOLATED = ('unshare', '--user', '--map-root-user', '--net', '--kill-child')


def why_not() -> str:
    """Return why namespaces cannot be had here, '' where they can."""
    for program in ('unshare', 'nsenter', 'ip'):
        if not shutil.which(program):
            return f'no program {program}; install util-linux and iproute2'
    tried = subprocess.run([*ISOLATED, 'ip', 'link', 'add', 'probe0', 'type', 'veth', 'peer',
                            'name', 'probe1'], capture_output=True, text=True)
    return '' if tried.returncode == 0 else \
        f'network namespaces are not allowed here: {tried.stderr.strip() or tried.returncode}'


def isolated(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command in a network namespace of its own, the robot's; return its exit code."""
    return subprocess.run([*ISOLATED, *command], env=env).returncode


class TwoHosts:
    """The cloud's namespace and its link; the process that makes it is in the robot's."""

    def __init__(self, link: Link) -> None:
        """Prepare; this process must have been started by ``isolated``."""
        self.link = link
        self.netem = False
        self.url = ''
        self.server: ChaosProcess | None = None
        self._holder: subprocess.Popen[bytes] | None = None
        self._relay: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TwoHosts:
        """Make the hosts, the link and the server."""
        _run('ip', 'link', 'set', 'lo', 'up')
        # Holds the namespace until its standard input is closed.
        self._holder = subprocess.Popen(['unshare', '--net', 'cat'], stdin=subprocess.PIPE)
        here = os.readlink('/proc/self/ns/net')
        until = time.monotonic() + 5.0
        while os.readlink(f'/proc/{self._holder.pid}/ns/net') == here:
            if time.monotonic() > until:
                raise RuntimeError('the second namespace was not made within 5 s')
            time.sleep(0.01)
        _run('ip', 'link', 'add', 'robot0', 'type', 'veth', 'peer', 'name', 'cloud0')
        _run('ip', 'link', 'set', 'cloud0', 'netns', str(self._holder.pid))
        _run('ip', 'address', 'add', f'{ROBOT}/24', 'dev', 'robot0')
        _run('ip', 'link', 'set', 'robot0', 'up')
        self._in_cloud('ip', 'link', 'set', 'lo', 'up')
        self._in_cloud('ip', 'address', 'add', f'{CLOUD}/24', 'dev', 'cloud0')
        self._in_cloud('ip', 'link', 'set', 'cloud0', 'up')
        self.netem = self._shape()
        self.start_server()
        port = SERVER_PORT
        if not self.netem:
            port = RELAY_PORT
            self._relay = subprocess.Popen([
                *self._enter(), *PYTHON, '-m', 'spotvlm_ros.bench.faults.relay',
                f'{CLOUD}:{RELAY_PORT}', f'{CLOUD}:{SERVER_PORT}', '--delay',
                str(self.link.delay_s), '--jitter', str(self.link.jitter_s), '--mbit',
                str(self.link.bytes_per_s / 125_000)], stdin=subprocess.DEVNULL)
        self.url = f'http://{CLOUD}:{port}/v1'
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """End all processes; the namespaces go with them."""
        if self.server is not None:
            self.server.close()
        for process in (self._relay, self._holder):
            if process is not None:
                process.kill()
                process.wait()

    def start_server(self) -> None:
        """Start the server in the cloud's namespace."""
        self.server = ChaosProcess(port=SERVER_PORT, host=CLOUD, pause_s=0.3,
                                   prefix=self._enter())

    def kill_server(self) -> None:
        """Kill the server; its host stays up and refuses connections."""
        if self.server is not None:
            self.server.kill()

    def connect(self, connected: bool) -> None:
        """Take the link down or up again."""
        self._in_cloud('ip', 'link', 'set', 'cloud0', 'up' if connected else 'down')

    def _shape(self) -> bool:
        """Slow both directions down in the kernel; return whether it can do that."""
        link = self.link
        netem = ['root', 'netem', 'delay', f'{1e3 * link.delay_s:g}ms',
                 f'{1e3 * link.jitter_s:g}ms']
        if link.bytes_per_s:
            netem += ['rate', f'{8 * link.bytes_per_s:.0f}bit']
        here = subprocess.run(['tc', 'qdisc', 'add', 'dev', 'robot0', *netem],
                              capture_output=True) if shutil.which('tc') else None
        if here is None or here.returncode:
            return False
        self._in_cloud('tc', 'qdisc', 'add', 'dev', 'cloud0', *netem)
        return True

    def _enter(self) -> list[str]:
        assert self._holder is not None
        return ['nsenter', f'--net=/proc/{self._holder.pid}/ns/net']

    def _in_cloud(self, *command: str) -> None:
        _run(*self._enter(), *command)


def _run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f'{" ".join(command)}: {ended.stderr.strip()}')
