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
"""Fleets in simulated time: no second is waited for, and the same fleet gives the same."""

import asyncio
from contextlib import nullcontext
from dataclasses import replace
import json
import threading
import time

import pytest
from spotvlm_ros.bench.fleet import gpu
from spotvlm_ros.bench.fleet.clock import SimulatedLoop
from spotvlm_ros.bench.fleet.curve import beside, Curve, read_curve
from spotvlm_ros.bench.fleet.main import main, Plan, recovery_s, robots_per_replica, simulate
from spotvlm_ros.bench.fleet.measured import measured_curve
from spotvlm_ros.bench.fleet.simulated import NETWORKS, Setting
from spotvlm_ros.cloud.client import cloud_server
from spotvlm_ros.config.nodes import ServerConfig
from spotvlm_ros.config.profiles import load_profile
from spotvlm_ros.method.facts import Query
from spotvlm_ros.serving.service import READERS

QUERY = Query('scene', 'What?', 'facts', {'light': ('none', 'red')}, cloud_period_s=1.0,
              ttl_s={'default': 6.0})
FLAT = Curve('flat', (1, 8), (0.4, 0.4))       # a batch costs as much as one
SLOW = Curve('slow', (1, 8), (0.4, 3.2))       # nothing is gained by a batch
PLAN = Plan(FLAT, Setting((QUERY,), NETWORKS['wired']), 4, seconds=15.0)


def test_a_simulated_hour_takes_no_time_and_timers_keep_their_order():
    loop, order = SimulatedLoop(), []

    async def note(after_s):
        await asyncio.sleep(after_s)
        order.append((after_s, round(loop.time(), 6)))
        return await loop.run_in_executor(None, lambda: after_s)

    async def all_of_them():
        return await asyncio.gather(*(note(s) for s in (3600.0, 0.5, 60.0)))
    began = time.monotonic()
    assert loop.run_until_complete(all_of_them()) == [3600.0, 0.5, 60.0]
    loop.close()
    assert order == [(0.5, 0.5), (60.0, 60.0), (3600.0, 3600.0)] and time.monotonic() - began < 2
    loop = SimulatedLoop()
    with pytest.raises(RuntimeError, match='nothing is left'):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_a_fleet_is_the_same_each_time_and_gets_what_it_wants_where_there_is_room():
    first = simulate(PLAN)
    assert simulate(PLAN) == first
    assert first.fresh > 0.99 and first.wanted > 0.9 and not first.refused and not first.errors
    assert 0.4 < first.age_p50_s < 2.0


def test_a_server_that_batches_carries_more_and_one_too_full_sheds_load_but_answers_as_much():
    assert robots_per_replica(replace(PLAN, seconds=10.0)) > 2 * robots_per_replica(
        replace(PLAN, seconds=10.0, curve=SLOW)) > 0
    full, over = (simulate(replace(PLAN, robots=n)) for n in (16, 64))
    assert over.refused > 0 and over.fresh < full.fresh
    assert over.wanted * 64 > 0.8 * full.wanted * 16


def test_what_requests_take_to_be_made_ready_is_computed_as_it_was_measured_on_a_gpu():
    """The curve of an H100 alone promised 63 robots; 31 were carried, and 47 got 67 %."""
    curve = Curve('mini', (1, 2, 4, 8, 16, 32), (0.159, 0.274, 0.274, 0.202, 0.216, 0.292),
                  prepare_s=0.02, slows_s=0.019)
    setting = Setting(load_profile('driving').queries('cloud'), NETWORKS['wired'])
    for robots, answers_per_s, *ages_s in ((15, 16.1, 1.2, 2.1), (47, 39.4, 3.2, 4.8)):
        outcome = simulate(Plan(curve, setting, robots, max_batch=32, seconds=10.0))
        assert outcome.answers_per_s == pytest.approx(answers_per_s, rel=0.15)
        assert [outcome.age_p50_s, outcome.age_p95_s] == pytest.approx(ages_s, abs=0.25)


@pytest.mark.parametrize('shared', [True, False])
def test_a_curve_says_by_how_much_requests_made_ready_hold_batches_up(monkeypatch, shared):
    monkeypatch.setattr('spotvlm_ros.bench.fleet.curve.BESIDE_S', 0.3)
    one_core, ended, ready = threading.Lock(), threading.Event(), []

    def answer(batch, gone):
        for _ in range(8):
            with one_core if shared else nullcontext():
                time.sleep(0.005)

    def read():
        while not ended.is_set():
            with one_core:
                time.sleep(0.004)
                ready.append(1)
            time.sleep(0.0001)  # a lock is not fair by itself
    reader = threading.Thread(target=read)
    reader.start()
    try:
        curve = beside(Curve('c', (8,), (0.04,)), answer, [None], lambda: len(ready))
    finally:
        ended.set()
        reader.join()
    assert 0.003 < curve.prepare_s < 0.2
    assert (curve.slows_s > 0.002) == shared  # each takes 0.004 s of the one core
    with pytest.raises(ValueError, match='no request was made ready'):
        beside(curve, answer, [None], lambda: 0)


def test_a_curve_is_measured_with_requests_that_come_by_http(monkeypatch):
    from spotvlm_ros.serving.checkpoint import Prepared, Reply, Sampling

    class Model:
        def prepare(self, chat):
            assert chat.messages[0].content[0].image_url.url.startswith('data:image/jpeg')
            time.sleep(0.01)
            return Prepared({}, '', Sampling(), 1)

        def answer(self, batch, gone):
            time.sleep(0.02)
            return [Reply('', 1, 1, True) for _ in batch]
    monkeypatch.setattr('spotvlm_ros.bench.fleet.curve.BESIDE_S', 0.5)
    curve = measured_curve(Model(), 'm', 'driving', (1, 2), 1)
    # Sleeps take no less; on a machine that is busy they take longer.
    assert all(0.02 <= seconds < 0.3 for seconds in curve.seconds)
    assert 0.01 / READERS < curve.prepare_s < 0.3


def test_robots_of_a_region_that_is_down_ask_the_other():
    plan = replace(PLAN, robots=8, regions=2, outage_s=(5.0, 15.0), seconds=25.0)
    outcome = simulate(plan)
    assert outcome.errors > 0 and recovery_s(outcome, 6.0) < 6.0
    assert min(outcome.fresh_by_s[20:]) == 1.0


def test_the_command_reads_a_curve_and_writes_what_it_has_computed(tmp_path, capsys):
    curve, out = tmp_path / 'curve.json', tmp_path / 'out' / 'fleet.json'
    assert main(['--curve', str(curve)]) == 2 and str(curve) in capsys.readouterr().err
    curve.write_text(json.dumps({'name': 'm', 'sizes': [1, 4], 'seconds': [0.9, 1.2]}))
    assert read_curve(curve).batch_s(2) == pytest.approx(1.0)
    assert main(['--curve', str(curve), '--seconds', '8', '--robots', '2', '5', '--out',
                 str(out)]) == 0
    written = json.loads(out.read_text())
    assert [f['robots'] for f in written['fleets']] == [2, 5] and written['scale']
    assert 'computed' in capsys.readouterr().out
    for wrong in ({'sizes': [4, 1]}, {'prepare_s': -1.0}, {'slows_s': 'long'}):
        curve.write_text(json.dumps({'name': 'm', 'sizes': [1, 4], 'seconds': [0.9, 1.2]} | wrong))
        assert main(['--curve', str(curve)]) == 2 and str(curve) in capsys.readouterr().err


@pytest.mark.parametrize('name', ['spot-mini-cloud', 'Qwen2.5-VL-7B'])
def test_the_server_of_a_gpu_knows_its_model_by_the_name_that_robots_use(monkeypatch, name):
    limits = []
    monkeypatch.setattr(gpu, 'Service', lambda model, keys, given: limits.append(given))
    gpu.service_of(None, name)
    asked = cloud_server(ServerConfig(base_url='http://127.0.0.1:1/v1', model=name))
    assert asked.config.model in limits[0].names


@pytest.mark.parametrize('robots', [1, 4, 12])
def test_a_model_as_slow_as_its_answers_live_gives_late_answers_not_none(robots):
    """All were refused and sent away for longer than the queue lasted: 12 %, 2 % and 0 answers."""
    curve = Curve('7b', (1, 4, 8, 16, 32), (3.2, 4.7, 5.6, 6.2, 6.9))
    setting = Setting(load_profile('driving').queries('cloud'), NETWORKS['wired'], 6)
    outcome = simulate(Plan(curve, setting, robots, max_batch=32, seconds=30.0))
    assert outcome.answers_per_s > 0.9 / 3.2 and outcome.busy > 0.9
