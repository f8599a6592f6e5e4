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
"""The node behind the live page: silent while nobody looks, and what it changes in the graph."""

import http.client
import json

from fakes import JudgedEdge, wait_for
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from spotvlm_ros.nodes.cloud import CloudNode  # noqa: E402, I100
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from spotvlm_ros.nodes.view import ViewNode  # noqa: E402
from spotvlm_ros.view import server as serving  # noqa: E402
from test_nodes_graph import graph, keep_sending, overlay, send_to  # noqa: E402


class Reader:
    """Reads the page as a browser would."""

    def __init__(self, node):
        self.port = int(node.viewer.url.split(':')[2].split('/')[0])

    def ask(self, method, path, body=None):
        """Return the body of a reply."""
        link = http.client.HTTPConnection('127.0.0.1', self.port, timeout=15)
        try:
            link.request(method, path, body, {'Content-Type': 'application/json'})
            return link.getresponse().read()
        finally:
            link.close()

    def newest(self, query='scene'):
        """Return what the page shows."""
        body = self.ask('GET', f'/next?query={query}')
        return json.loads(body[4:4 + int.from_bytes(body[:4], 'big')])

    def change(self, **values):
        """Return what came of a change."""
        return json.loads(self.ask('POST', '/change', json.dumps(values)))


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_the_page_of_a_graph(server, tmp_path, monkeypatch, transport):
    monkeypatch.setattr(serving, 'AWAY_S', 1.0)
    monkeypatch.setattr(serving, 'PERIOD_S', 0.01)
    edge = JudgedEdge()
    over = overlay(tmp_path, cloud={'base_url': server.url})

    def nodes():
        return [EdgeNode(load=edge.load), CloudNode(),
                ViewNode('t', '', {'': transport}, 0.0)]
    with graph(nodes, files=('driving', over)) as (probe, running):
        view = running.nodes[-1]
        reader, send = Reader(view), send_to(probe.image)
        topic = probe.image.topic_name + '/compressed' * (transport == 'compressed')
        keep_sending(probe, send, lambda: len(probe.answers) >= 3)
        assert view._ends == [] and view.state._changes == 1
        assert probe.count_subscribers('answers/alone') == 0

        def shown(condition):
            seen = []
            keep_sending(probe, send, lambda: seen.append(reader.newest()) or condition(seen[-1]))
            return seen[-1]
        seen = shown(lambda s: s['edge'] and s['alone'] and s['cloud'] and s['status'].get('model')
                     and (s['frames'] or transport == 'compressed'))
        assert probe.count_subscribers(topic) >= 1
        assert seen['queries'] == ['scene', 'action'] and seen['rate_hz'] >= 0
        assert [f['value'] for f in seen['alone']['facts']][:1] == ['none']
        # The question.
        said = reader.change(query='scene', definition='keys: [light]\n'
                             'choices: {light: [green, red]}')
        assert said == {'done': 'scene is changed'}
        seen = shown(lambda s: s['edge'] and len(s['edge']['facts']) == 1)
        assert seen['edge']['facts'][0]['value'] == 'green'
        assert 'rate' in reader.change(query='scene', definition='rates_hz: 1')['error']
        # The cloud.
        assert 'done' in reader.change(paused=True)
        seen = shown(lambda s: 'paused' in s['status'].get('last_error', ''))
        asked = len(server.requests)
        assert seen['status']['paused'] is True
        stop_after = len(probe.answers) + 10
        keep_sending(probe, send, lambda: len(probe.answers) > stop_after)
        assert len(server.requests) <= asked + 2  # what was under way
        assert 'done' in reader.change(paused=False)
        assert 'done' in reader.change(delay_s=0.2)
        before = len(server.requests)
        shown(lambda s: len(server.requests) > before
              and (s['cloud'] or {'stages_s': {}})['stages_s'].get('emulated'))
        assert '600' in reader.change(delay_s=-1)['error']
        wait_for(lambda: not view._ends, 5.0)
