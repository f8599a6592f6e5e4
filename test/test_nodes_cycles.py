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
"""Nodes that are configured and cleaned up again and again work each time and keep nothing."""

from __future__ import annotations

import os

from fakes import wait_for
import psutil
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from spotvlm_ros.bench.faults.rig import started  # noqa: E402
from spotvlm_ros.config.profiles import find_profile  # noqa: E402
from spotvlm_ros.nodes.composed import make_nodes  # noqa: E402

WARM, CYCLES = 2, int(os.environ.get('SPOTVLM_CYCLES', '3'))
GROWTH_MB = 10.0  # a model that is kept would be as much each time


def test_cycles_of_the_composed_graph_keep_no_memory():
    graph = started(make_nodes, {'/**': {'autostart': False},
                                 '/**/cloud': {'base_url': 'http://127.0.0.1:9/v1'}},
                    find_profile('driving'))
    edge, memory, threads = graph.nodes[0], [], []

    def take(step, nodes):
        for node in nodes:
            task = node.executor.create_task(getattr(node, f'trigger_{step}'))
            wait_for(task.done)
            assert task.result().name == 'SUCCESS', (step, node.last_failure)
    try:
        for _ in range(WARM + CYCLES):
            answered = edge.report()['answers']
            take('configure', graph.nodes)
            take('activate', graph.nodes)
            wait_for(lambda: edge.report()['answers'] > answered + 1)
            take('deactivate', reversed(graph.nodes))
            take('cleanup', reversed(graph.nodes))
            memory.append(psutil.Process().memory_info().rss / 1e6)
            threads.append(psutil.Process().num_threads())
    finally:
        assert graph.close()
    print('memory after each cycle [MB]:', *(round(mb) for mb in memory))
    assert memory[-1] - memory[WARM - 1] < GROWTH_MB, memory
    assert threads[-1] <= threads[0]
