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
"""The whole graph under faults: short forms of the commands in spotvlm_ros.bench."""

from fakes import cloud_server, FakeEdge
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from spotvlm_ros.bench.faults.chaos import ChaosServer  # noqa: E402, I100
from spotvlm_ros.bench.faults.robots import carry, Fleet  # noqa: E402
from spotvlm_ros.bench.perf.bridge import soak, wire  # noqa: E402
from spotvlm_ros.method.facts import Query  # noqa: E402


def test_soak_leaves_nothing_behind():
    """Half a minute; the command soaks for ten minutes, with the shipped model."""
    done = soak(0.4, 8.0, FakeEdge().load)
    assert done.faults >= 15 and done.answers >= 20 and done.errors >= 15, done
    assert done.threads_left <= 0 and done.sockets_left <= 0 and done.most_jobs <= 4, done
    assert done.internal_errors == 0
    assert done.growth_mb < 30.0, 'MB: more than a step of the allocator'


@pytest.mark.alone
def test_cost_of_the_bridge():
    rows = {row.name: row for row in wire(40)}
    assert set(rows) == {'keyframe_to_wire_p95_ms', 'reply_to_answer_p95_ms'}
    # Ten and five on a machine that is not busy with other tests.
    assert rows['keyframe_to_wire_p95_ms'].value < 60.0
    assert rows['reply_to_answer_p95_ms'].value < 30.0


@pytest.mark.alone
def test_simulated_robots_share_a_server():
    queries = (Query('scene', 'What?', 'facts', {'light': ('none', 'red')}, cloud_period_s=0.5),)
    server = ChaosServer(pause_s=0.05)
    try:
        service = carry(3, Fleet(cloud_server(server.url), queries), 2.0, warm_up_s=0.5)
    finally:
        server.stop()
    assert 1.0 < service.answers_per_s_per_robot < 2.6 and service.errors == 0
    assert 0.05 < service.round_trip_p50_s < 0.5
    assert service.round_trip_p50_s < service.context_age_p95_s < 2.0
