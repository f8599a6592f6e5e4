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
"""Rows of results.json are alike, whatever was measured."""

import json

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from spotvlm_ros.bench.perf import bridge, cameras, edge_cpu, main  # noqa: E402, I100
from spotvlm_ros.bench.perf.bridge import Soak  # noqa: E402
from spotvlm_ros.bench.perf.edge_cpu import speedup  # noqa: E402
from spotvlm_ros.bench.perf.result import PerfResult  # noqa: E402

TYPES = {'name': str, 'value': float, 'unit': str, 'baseline': str, 'ratio': (float, type(None)),
         'machine': str}
SPENT = {'p50': 4, 'p95': 5}


@pytest.fixture
def measured(monkeypatch):
    """Let every measure report without measuring: what it reports is not looked at."""
    monkeypatch.setattr(bridge, '_wire_of_node', lambda keyframes: ([0.004], [0.001]))
    monkeypatch.setattr(bridge, '_wire_of_openai', lambda keyframes: ([0.005], [0.002]))
    monkeypatch.setattr(bridge, 'soak', lambda minutes, warm_up_s: Soak(
        1.0, 0.7, 300, 30, 200, 100, 0, 7.0, [600.0], 20, 3, 2, 0, 0))
    monkeypatch.setattr(cameras, '_load', lambda pictures, rate_hz: cameras.CameraLoad(1, 1, 1))
    monkeypatch.setattr(edge_cpu, 'cpu_rows', lambda threads: [
        speedup('edge_cpu_speedup_unchanged', [1.0], [3.0], 'generate', 'here')])
    monkeypatch.setattr('spotvlm_ros.nodes.runner.run', lambda config, stop: (0, {
        'overhead_ms': SPENT, 'stamp_to_answer_ms': SPENT, 'frame_age_at_start_ms': SPENT}))


class _Robot:
    """A graph whose edge answers at a steady rate."""

    def __init__(self, url):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def wait(self, condition, timeout_s):
        pass

    def watch(self, seconds):
        return 7.0


def test_rows_of_all_measures_have_the_same_keys_and_types(measured, monkeypatch, tmp_path):
    """They had two schemas: a baseline was a figure in some rows and words in others."""
    monkeypatch.setattr(bridge, 'RobotGraph', _Robot)
    monkeypatch.setattr(bridge, 'SETTLE_S', 0.0)
    names = [n for n in main.MEASURES if n != 'focus']  # it takes its time
    assert main.main(['--only', *names, '--out', str(tmp_path)]) == 0
    rows = json.loads((tmp_path / 'results.json').read_text())['results']
    assert {r['name'] for r in rows} >= {
        'overhead_composed_p95_ms', 'edge_cpu_speedup_unchanged', 'cameras_4_over_1',
        'keyframe_to_wire_p95_ms', 'edge_rate_under_outage_ratio', 'soak_growth_mb'}
    for row in rows:
        assert row.keys() == TYPES.keys(), row
        assert all(isinstance(row[key], kind) for key, kind in TYPES.items()), row


def test_a_result_is_rounded_and_its_whole_numbers_are_floats():
    result = PerfResult('edge_cpu_answers_that_differ', 0, 'of 8', '', 2 / 3, 'here')
    assert type(result.value) is float and result.ratio == 0.6667
