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
"""The layout for Foxglove names topics and fields that a graph has, and `--view foxglove`."""

from importlib import import_module
import json
from pathlib import Path
import re

from fakes import JudgedEdge, wait_for
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from spotvlm_ros.frames.hub import FrameHub  # noqa: E402, I100
from spotvlm_ros.nodes.camera import CameraNode  # noqa: E402
from spotvlm_ros.nodes.cloud import CloudNode  # noqa: E402
from spotvlm_ros.nodes.context import ContextNode  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from spotvlm_ros.view.foxglove_sink import message  # noqa: E402
from spotvlm_ros.view.state import LiveState  # noqa: E402
from spotvlm_ros.view.stream import News  # noqa: E402
from test_nodes_graph import graph, overlay  # noqa: E402
from test_view import fill, NS  # noqa: E402

LAYOUT = Path(__file__).resolve().parents[1] / 'config' / 'foxglove.json'
# Of vision_msgs, where that is installed, and of --view foxglove alone.
OPTIONAL = {'/focus/detections', '/focus/annotations'}


def strings(value):
    """Yield every text in a layout."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ([key] if key.startswith('/') else [])
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


PATHS = sorted({text for text in strings(json.loads(LAYOUT.read_text())) if text[:1] == '/'})


def parts(path):
    """Return the topic of a message path, and the fields that it names one after another."""
    topic, rest = re.fullmatch(r'(/[\w/]+)(.*)', path).groups()
    filters = re.findall(r'{(\w+)==', rest)
    return topic, filters, re.findall(r'\.(\w+)', re.sub(r'{[^}]*}', '', rest))


def message_class(kind):
    """Return the class of a type as topics have it."""
    package, _, name = kind.split('/')
    return getattr(import_module(f'{package}.msg'), name)


def test_every_panel_is_placed_once():
    layout = json.loads(LAYOUT.read_text())

    def placed(node):
        return [node] if isinstance(node, str) else [*placed(node['first']),
                                                     *placed(node['second'])]
    assert sorted(placed(layout['layout'])) == sorted(layout['configById'])


def test_every_path_is_a_topic_of_a_graph_with_that_field(server, tmp_path):
    hub = FrameHub()
    over = overlay(tmp_path, cloud={'base_url': server.url}, camera={'source': 'mini'},
                   edge={'debug_image': True})

    def nodes():
        return [ContextNode(), CloudNode(hub), EdgeNode(hub, load=JudgedEdge().load),
                CameraNode(hub)]
    with graph(nodes, files=('driving', over)) as (probe, _):
        wanted = {parts(path)[0] for path in PATHS} - OPTIONAL
        wait_for(lambda: wanted <= {name for name, _ in probe.get_topic_names_and_types()
                                    if probe.count_publishers(name)})
        kinds = dict(probe.get_topic_names_and_types())
    for path in PATHS:
        topic, filters, fields = parts(path)
        if topic in OPTIONAL:
            continue
        known = message_class(kinds[topic][0]).get_fields_and_field_types()
        assert set(filters) <= set(known), path
        for field in fields:
            assert field in known, path
            kind = known[field].partition('[')[0].replace('sequence<', '').rstrip('>')
            if '/' in kind:
                known = message_class(kind.replace('/', '/msg/', 1)).get_fields_and_field_types()


def test_the_view_for_foxglove_has_the_same_fields():
    state = LiveState('t', lambda: 100 * NS)
    fill(state)
    seen, _ = state.view('scene')
    new = {name: seen[name] for name in ('edge', 'cloud', 'context')}
    news = News('scene', '', seen, new, None)
    sources = {'/answers': 'edge', '/cloud/answers': 'cloud', '/context': 'context'}
    found = [p for p in PATHS if parts(p)[0] in sources]
    assert len(found) > 6
    for path in found:
        topic, filters, fields = parts(path)
        assert {*filters, *fields[:1]} <= set(message(news, sources[topic])), path
