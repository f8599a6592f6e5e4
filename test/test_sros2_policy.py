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
"""The access policy for SROS 2 names what the nodes use, and nothing else."""

from pathlib import Path
import xml.etree.ElementTree

import pytest
from spotvlm_ros.nodes import composed
from spotvlm_ros.nodes.camera import CameraNode
from spotvlm_ros.nodes.cloud import CloudNode
from spotvlm_ros.nodes.context import ContextNode
from spotvlm_ros.nodes.edge import EdgeNode
from spotvlm_ros.system.memory import settle
from test_nodes_graph import graph, overlay, wait_for

POLICY = Path(__file__).resolve().parents[1] / 'config' / 'sros2_policy.xml'
NODES = ('camera', 'edge', 'cloud', 'context')
# Of vision_msgs and of simulated time, which this machine need not have.
ELSEWHERE = {'/focus/detections', '/clock'}


def resolved(node, name):
    """Return the full name of a topic or service in the policy."""
    return f'/{node}/{name[1:]}' if name[0] == '~' else f'/{name.lstrip("/")}'


def allowed(node, kind, right):
    """Return the full names that a node has a right to."""
    profile = xml.etree.ElementTree.parse(POLICY).getroot().find(f'.//profile[@node="{node}"]')
    return {resolved(node, entry.text) for group in profile.findall(f'{kind}s')
            if group.get(right) == 'ALLOW' for entry in group.findall(kind)}


def used(probe, node):
    """Return what a node publishes, listens to and serves; the parts of actions left out."""
    def names(method):
        return {name for name, _ in method(node, '/') if '/_action/' not in name}
    return (names(probe.get_publisher_names_and_types_by_node),
            names(probe.get_subscriber_names_and_types_by_node),
            names(probe.get_service_names_and_types_by_node))


def separate():
    """Return the nodes as in processes of their own: frames go over topics."""
    return [EdgeNode(), ContextNode(), CloudNode(), CameraNode()]


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    """Return what each node uses, composed or not."""
    found = {node: (set(), set(), set()) for node in NODES}
    file = overlay(tmp_path_factory.mktemp('policy'), edge={'audit_truth': True},
                   cloud={'base_url': 'http://127.0.0.1:9/v1'})
    for make in (composed.make_nodes, separate):
        with graph(make, files=('driving', str(file))) as (probe, running):
            wait_for(lambda: probe.answers and probe.status and probe.contexts, 60.0)
            for node in NODES:
                for kept, more in zip(found[node], used(probe, node)):
                    kept.update(more)
        # Nodes live until they are collected, and those that come after have the same names.
        running.nodes.clear()
        settle()
    return found


@pytest.mark.parametrize('node', NODES)
def test_the_policy_is_what_a_node_uses(seen, node):
    published, subscribed, served = seen[node]
    for names, kind, right in ((published, 'topic', 'publish'), (subscribed, 'topic', 'subscribe'),
                               (served, 'service', 'reply')):
        rights = allowed(node, kind, right)
        assert names <= rights, f'{node} may not {right} {names - rights}'
        beyond = rights - names - ELSEWHERE - {'/parameter_events', '/rosout',
                                               '/image/compressed'}
        assert not beyond, f'{node} may {right} {beyond}, which it does not use'


def test_a_planner_may_listen_and_ask_and_nothing_else():
    assert allowed('planner', 'topic', 'publish') == {'/parameter_events', '/rosout'}
    assert allowed('planner', 'action', 'call') == {'/ask'} == allowed('edge', 'action', 'execute')
