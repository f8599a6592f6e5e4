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
"""Action `ask`: about which frame, of which camera, and what an answer says of its own origin."""

from dataclasses import replace
import re

from fakes import FakeEdge, wait_for
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from rclpy.action import ActionServer  # noqa: E402, I100
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from spotvlm_msgs.action import Ask  # noqa: E402
from spotvlm_msgs.msg import Answer, Fact  # noqa: E402
from spotvlm_ros.method.facts import Fact as FactOfMethod, NS  # noqa: E402
from spotvlm_ros.nodes.base import RELIABLE  # noqa: E402
from spotvlm_ros.nodes.context import ContextNode  # noqa: E402
from spotvlm_ros.nodes.convert import duration_msg, fact_msg, header_msg, stamp_ns, \
    time_msg  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from test_nodes_graph import graph, keep_sending, overlay, send_to  # noqa: E402


def send_goal(probe, timeout_s=5.0, max_age_s=0.0, **goal):
    """Ask; return the future of the result."""
    wait_for(probe.ask.server_is_ready)
    sent = probe.ask.send_goal_async(Ask.Goal(
        timeout=duration_msg(timeout_s), max_frame_age=duration_msg(max_age_s), **goal))
    return wait_for(sent.done) and sent.result().get_result_async()


def ask(probe, **goal):
    """Ask and wait; return the result."""
    done = send_goal(probe, **goal)
    return wait_for(done.done) and done.result().result


def test_an_old_frame_is_not_answered_about_and_a_newer_one_is_awaited():
    with graph(lambda: [EdgeNode(load=FakeEdge().load)],
               'ask_max_frame_age_s:=0.2') as (probe, _):
        send = send_to(probe.image)
        last = keep_sending(probe, send, lambda: probe.answers)[-1]
        wait_for(lambda: probe.get_clock().now().nanoseconds - last > 0.3 * NS)
        for goal in ({'prompt': 'What?'}, {'query_id': 'action'}):
            old = ask(probe, timeout_s=0.2, **goal)
            assert old.error_code == Ask.Result.ERROR_NO_FRAME
            age, = re.findall(r'camera is (.*) s old, and max_frame_age is 0.2 s', old.error_msg)
            assert float(age) >= 0.3
            assert not old.answer.header.stamp.sec
        wait_for(lambda: probe.count('edge', 'asks_without_frame') == 2)
        assert ask(probe, prompt='What?', max_age_s=60.0).error_code == 0
        for goal in ({'timeout_s': -1.0}, {'max_age_s': -1.0}):
            assert 'below 0' in ask(probe, prompt='What?', **goal).error_msg
        waiting = send_goal(probe, prompt='What?', timeout_s=20.0)
        assert not waiting.done()
        began = probe.get_clock().now().nanoseconds
        keep_sending(probe, send, waiting.done)
        result = waiting.result().result
        assert result.error_code == 0 and stamp_ns(result.answer.header.stamp) >= began


def test_a_result_is_kept_for_a_moment_only():
    """Of 50 asks a second all results of ten seconds were kept, in Humble of 15 minutes."""
    nodes = []

    def make():
        nodes.append(EdgeNode(load=FakeEdge().load))
        return nodes
    with graph(make) as (probe, _):
        keep_sending(probe, send_to(probe.image), lambda: probe.answers)
        assert ask(probe, prompt='What?', max_age_s=60.0).error_code == 0
        server, = (w for w in nodes[0].waitables if isinstance(w, ActionServer))
        assert len(server._goal_handles) == 1
        wait_for(lambda: not server._goal_handles, 6.0)


def test_the_age_of_a_frame_is_that_of_ros_time():
    """A simulation that is ten times slower, stands still and jumps back."""
    with graph(lambda: [EdgeNode(load=FakeEdge().load)], 'use_sim_time:=true',
               'ask_max_frame_age_s:=1.0') as (probe, running):
        clock, node = probe.create_publisher(Clock, '/clock', 1), running.nodes[-1]
        wait_for(clock.get_subscription_count)

        def tick(ns):
            clock.publish(Clock(clock=time_msg(ns)))
            return node.now_ns() == ns
        wait_for(lambda: tick(100 * NS))
        keep_sending(probe, lambda _: send_to(probe.image)(100 * NS), lambda: probe.answers)
        assert ask(probe, prompt='What?').error_code == 0
        wait_for(lambda: tick(102 * NS))
        assert '2.0 s old' in ask(probe, prompt='What?', timeout_s=0.1).error_msg
        wait_for(lambda: tick(50 * NS))  # frames of before are of another time
        assert 'no frame' in ask(probe, prompt='What?', timeout_s=0.1).error_msg


def test_ask_is_about_the_camera_that_it_names(tmp_path):
    one = {'prompt': 'What is on the road?', 'format': 'facts', 'keys': ['light'],
           'choices': {'light': ['none', 'red', 'green']}}
    over = overlay(tmp_path, edge={
        'queries': ['ahead', 'behind'], 'cameras': ['side'],
        'ahead': {**one, 'camera': 'front'}, 'behind': {**one, 'camera': 'rear'}})
    with graph(lambda: [EdgeNode(load=FakeEdge().load)], files=('driving', over)) as (probe, _):
        topics = {name: probe.create_publisher(Image, f'{name}/image', 1)
                  for name in ('front', 'rear', 'side')}

        def asked(**goal):
            done = send_goal(probe, timeout_s=20.0, **goal)
            keep_sending(probe, lambda s: [send_to(t, n)(s) for n, t in topics.items()],
                         done.done)
            return done.result().result
        for goal, frame_id in (({'prompt': 'What?'}, 'front'),
                               ({'prompt': 'What?', 'camera': 'side'}, 'side'),
                               ({'query_id': 'behind'}, 'rear'),
                               ({'query_id': 'behind', 'camera': 'front'}, 'front')):
            result = asked(**goal)
            assert (result.error_code, result.answer.header.frame_id) == (0, frame_id), goal
        unknown = ask(probe, prompt='What?', camera='top')
        assert unknown.error_code == Ask.Result.ERROR_UNKNOWN_QUERY
        assert "'top'" in unknown.error_msg and 'front, rear, side' in unknown.error_msg
        del topics['side']
        waiting = ask(probe, prompt='What?', camera='side', timeout_s=0.1, max_age_s=0.01)
        assert "camera 'side'" in waiting.error_msg


def test_an_answer_says_where_its_facts_come_from_and_which_context_was_told():
    edge = FakeEdge()
    answer = edge.answer

    def told(rgb, query, context, *args, **kwargs):
        result = answer(rgb, query, context, *args, **kwargs)
        return replace(result, told_keys=frozenset({'lead'} if result.used_context else ()))
    edge.answer = told
    with graph(lambda: [ContextNode(), EdgeNode(load=edge.load)]) as (probe, _):
        cloud = probe.create_publisher(Answer, 'cloud/answers', RELIABLE)

        def send(stamp):
            send_to(probe.image)(stamp)
            cloud.publish(Answer(
                header=header_msg(stamp, 'eye'), query_id='scene', source=Answer.SOURCE_CLOUD,
                facts=[fact_msg(FactOfMethod('lead', 'none', stamp), stamp)]))
        keep_sending(probe, send, lambda: any(a.context_sequence > 3 for a in probe.answers))
    numbers = [c.sequence for c in probe.contexts if c.query_id == 'scene']
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
    for a in probe.answers:
        origins = {f.key: f.origin for f in a.facts}
        assert bool(a.context_sequence) == a.used_context
        if a.used_context:
            assert a.query_id == 'scene' and a.context_sequence in numbers
        if a.query_id == 'scene':
            assert origins.pop('lead') == (
                Fact.ORIGIN_CONTEXT if a.used_context else Fact.ORIGIN_OWN)
        assert set(origins.values()) == {Fact.ORIGIN_OWN}
