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
import time
import xml.etree.ElementTree

import pytest
from spotvlm_ros.nodes import composed
from spotvlm_ros.nodes.camera import CameraNode
from spotvlm_ros.nodes.cloud import CloudNode
from spotvlm_ros.nodes.context import ContextNode
from spotvlm_ros.nodes.edge import EdgeNode
from test_nodes_graph import graph, overlay, wait_for

POLICY = Path(__file__).resolve().parents[1] / 'config' / 'sros2_policy.xml'
NODES = ('camera', 'edge', 'cloud', 'context')
RIGHTS = (('topic', 'publish'), ('topic', 'subscribe'), ('service', 'reply'))
# Of vision_msgs, simulated time, another image_transport, ego-motion; what every node has.
ELSEWHERE = {'/camera_info', '/odom', '/focus/detections', '/clock', '/image/compressed',
             '/parameter_events', '/rosout'}


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
    space = probe.get_namespace()

    def names(method):
        return {name.removeprefix(space) for name, _ in method(node, space)
                if '/_action/' not in name}
    return (names(probe.get_publisher_names_and_types_by_node),
            names(probe.get_subscriber_names_and_types_by_node),
            names(probe.get_service_names_and_types_by_node))


def beyond(node, seen):
    """Return the rights that a node was not seen to use."""
    return {(kind, name) for (kind, right), names in zip(RIGHTS, seen)
            for name in allowed(node, kind, right) - names - ELSEWHERE}


def separate():
    """Return the nodes as in processes of their own: frames go over topics."""
    return [EdgeNode(), ContextNode(), CloudNode(), CameraNode()]


@pytest.fixture(scope='module')
def seen(tmp_path_factory):
    """Return what each node uses, composed or not."""
    found = {node: (set(), set(), set()) for node in NODES}
    file = overlay(tmp_path_factory.mktemp('policy'), edge={'audit_truth': True},
                   cloud={'base_url': 'http://127.0.0.1:9/v1'})

    def all_used(probe):
        for node in NODES:
            for kept, more in zip(found[node], used(probe, node)):
                kept.update(more)
        return not any(beyond(node, found[node]) for node in NODES)

    # In namespaces, for nodes of another test live until they are collected, under these names.
    with graph(composed.make_nodes, files=('driving', str(file)),
               namespace='composed') as (probe, _):
        wait_for(lambda: probe.answers and probe.status and probe.contexts, 60.0)
        all_used(probe)
    with graph(separate, files=('driving', str(file)), namespace='separate') as (probe, _):
        wait_for(lambda: probe.answers and probe.status and probe.contexts, 60.0)
        # What the graph tells of itself comes with a delay; what never comes fails below.
        until = time.monotonic() + 20.0
        while not all_used(probe) and time.monotonic() < until:
            time.sleep(0.1)
    return found


@pytest.mark.parametrize('node', NODES)
def test_the_policy_is_what_a_node_uses(seen, node):
    for (kind, right), names in zip(RIGHTS, seen[node]):
        rights = allowed(node, kind, right)
        assert names <= rights, f'{node} may not {right} {names - rights}'
    assert not beyond(node, seen[node]), f'{node} does not use all that it may'


def test_a_planner_may_listen_and_ask_and_nothing_else():
    assert allowed('planner', 'topic', 'publish') == {'/parameter_events', '/rosout'}
    assert allowed('planner', 'action', 'call') == {'/ask'} == allowed('edge', 'action', 'execute')
