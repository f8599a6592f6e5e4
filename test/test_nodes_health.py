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
"""`/diagnostics` is at OK only while the node does its job, and else says what to do."""

from fakes import FakeEdge, wait_for
import pytest

pytest.importorskip('rclpy')
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402, I100
from spotvlm_msgs.msg import Answer  # noqa: E402
from spotvlm_ros.cloud.budget import Cost  # noqa: E402
from spotvlm_ros.nodes.camera import CameraNode  # noqa: E402
from spotvlm_ros.nodes.cloud import CloudNode  # noqa: E402
from spotvlm_ros.nodes.context import ContextNode  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from test_nodes_graph import graph, keep_sending, overlay, send_to  # noqa: E402

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class DeafEdge(FakeEdge):
    """Its one pass cannot be interrupted, and its answer is complete."""

    def answer(self, rgb, query, context, stamp_ns, on_text=None, should_stop=None, judge=None):
        return super().answer(rgb, query, context, stamp_ns)


def test_an_answer_after_its_deadline_says_so_in_every_format(tmp_path):
    """One of 1.24 s had error_code 0 at a deadline of 0.3 s."""
    edge = DeafEdge(0.1)
    late = {'rate_hz': 5.0, 'deadline_s': 0.05}
    over = overlay(tmp_path, edge={'scene': late, 'action': late, 'queries': ['scene', 'action']})
    with graph(lambda: [EdgeNode(load=edge.load)], files=('driving', over)) as (probe, _):
        keep_sending(probe, send_to(probe.image),
                     lambda: {m.query_id for m in probe.answers} == {'scene', 'action'}
                     and probe.count('edge', 'late_answers'))
        for message in probe.answers:
            assert message.error_code == Answer.ERROR_TIMEOUT and message.facts
            assert 'later than 0.05 s' in message.error_msg and 'raise' in message.error_msg
        wait_for(lambda: probe.health['edge'][0] == WARN)
        assert '.deadline_s' in probe.health['edge'][1]


def is_at(probe, node, level, *words):
    """Return whether a node's newest diagnostics have a level and words."""
    at, text = probe.health.get(node, (None, ''))
    return at == level and all(word in text for word in words)


def broken(config):
    """Take the place of a loader whose model is not there."""
    raise FileNotFoundError('no model here; give the path of a checkpoint')


@pytest.mark.parametrize('make,name,parameters,word', [
    (lambda: EdgeNode(load=broken), 'edge', {}, 'give the path'),
    (EdgeNode, 'edge', {'queries': []}, 'queries'),
    (EdgeNode, 'edge', {'threads': 0}, 'threads'),
    (CameraNode, 'camera', {'source': 'bag', 'path': '/no/bag'}, '/no/bag'),
    (CloudNode, 'cloud', {'base_url': ''}, 'base_url')])
def test_a_failed_transition_is_an_error_until_one_succeeds(
        make, name, parameters, word, tmp_path):
    over = overlay(tmp_path, **{name: parameters})
    with graph(lambda: [make()], files=('driving', over)) as (probe, _):
        wait_for(lambda: is_at(probe, name, ERROR, word))


@pytest.mark.parametrize('name,wrong,right', [
    ('threads', 0, 2), ('device', 3, 'cpu'), ('scene.rate_hz', -1.0, 4.0),
    ('scene.keys', [1, 2], ['light'])])
def test_a_wrong_parameter_is_an_error_until_it_is_mended(name, wrong, right, tmp_path):
    from rclpy.parameter import Parameter
    over = overlay(tmp_path, edge={'queries': ['scene'], **nested(name, wrong)})
    with graph(lambda: [EdgeNode(load=FakeEdge().load)],
               files=('driving', over)) as (probe, running):
        node = running.nodes[-1]
        wait_for(lambda: is_at(probe, 'edge', ERROR, f'ros2 param set /edge {name} '))
        for value, mended in (wrong, False), (right, True):
            [result] = node.set_parameters([Parameter(name, value=value)])
            assert result.successful == mended
        wait_for(lambda: is_at(probe, 'edge', WARN, 'unconfigured', 'lifecycle set /edge conf'))
        assert node.trigger_configure().name == 'SUCCESS' and not node.last_failure
        if '.' not in name:
            assert getattr(node.config, name) == right
        else:
            assert list(node._queries) == ['scene']


def nested(name, value):
    """Return what a params file says of a parameter whose name has points."""
    head, _, rest = name.partition('.')
    return {head: nested(rest, value) if rest else value}


def test_a_node_that_is_not_active_says_how_to_make_it(tmp_path):
    with graph(lambda: [ContextNode()], 'autostart:=false', namespace='calm') as (probe, running):
        wait_for(lambda: is_at(probe, 'calm/context', WARN, 'unconfigured',
                               'ros2 lifecycle set /calm/context configure'))
        running.nodes[-1].trigger_configure()
        wait_for(lambda: is_at(probe, 'calm/context', WARN, 'inactive', 'context activate'))
        running.nodes[-1].trigger_activate()
        wait_for(lambda: is_at(probe, 'calm/context', WARN, 'yet'))


def test_edge_and_context_are_ok_while_answers_come_and_only_then(tmp_path):
    edge = FakeEdge()
    over = overlay(tmp_path, **{node: {'scene.cloud_period_s': 0.0, 'action.cloud_period_s': 0.0}
                                for node in ('edge', 'context')})
    with graph(lambda: [EdgeNode(load=edge.load), ContextNode()],
               files=('driving', over)) as (probe, _):
        wait_for(lambda: is_at(probe, 'edge', WARN, 'no usable frame from /image yet'))
        keep_sending(probe, send_to(probe.image),
                     lambda: is_at(probe, 'edge', OK) and is_at(probe, 'context', OK))
        wait_for(lambda: is_at(probe, 'edge', ERROR, 'from /image for', '1 publish it: /probe'))
        wait_for(lambda: is_at(probe, 'context', ERROR, 'from /image for'))
        edge.answer = broken_answer
        keep_sending(probe, send_to(probe.image),
                     lambda: is_at(probe, 'edge', ERROR, 'no good answer', 'out of memory'))


def broken_answer(*args, **kwargs):
    raise RuntimeError('out of memory')


def test_answers_and_frames_below_the_wanted_rate_are_said_with_the_figures(tmp_path):
    edge = FakeEdge(0.2)
    over = overlay(tmp_path, edge={'scene.rate_hz': 20.0, 'scene.deadline_s': 5.0})
    with graph(lambda: [EdgeNode(load=edge.load)], files=('driving', over)) as (probe, _):
        keep_sending(probe, send_to(probe.image), lambda: is_at(
            probe, 'edge', WARN, '20 are wanted', 'scene.rate_hz', 'takes the model 0.2'))
    edge = FakeEdge()
    with graph(lambda: [EdgeNode(load=edge.load)], files=('driving', over)) as (probe, _):
        send = send_to(probe.image)
        keep_sending(probe, lambda stamp: stamp // 20_000_000 % 10 or send(stamp),
                     lambda: is_at(probe, 'edge', WARN, '21 Hz are wanted',
                                   'set image_transport to compressed'))


def test_a_dead_server_and_a_spent_budget_are_said_with_the_address(server, tmp_path):
    values = {'base_url': server.url, 'budget_tokens_per_hour': 40_000,
              'scene.cloud_period_s': 0.2, 'cut_below': -1.0}
    with graph(lambda: [CloudNode()], files=('driving', overlay(tmp_path, cloud=values))) \
            as (probe, running):
        wait_for(lambda: is_at(probe, 'cloud', WARN, 'no usable frame'))
        keep_sending(probe, send_to(probe.image), lambda: is_at(probe, 'cloud', OK))
        keep_sending(probe, send_to(probe.image), lambda: is_at(
            probe, 'cloud', WARN, 'budget_tokens_per_hour is spent'))
        running.nodes[-1]._bridge.budget.per_hour = Cost()
        server.stop()
        keep_sending(probe, send_to(probe.image), lambda: is_at(
            probe, 'cloud', WARN, server.url, 'base_url of cloud'))
        running.nodes[-1]._bridge._due_at -= 60.0
        keep_sending(probe, send_to(probe.image), lambda: is_at(
            probe, 'cloud', ERROR, f'no answer from {server.url}', 'fallbacks'))
        server.start()
        keep_sending(probe, send_to(probe.image), lambda: is_at(probe, 'cloud', OK))
