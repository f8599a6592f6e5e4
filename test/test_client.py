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
"""The client for planners: what is fresh, what is steady, and how it is waited for."""

import asyncio
from contextlib import contextmanager
import threading

from fakes import wait_for
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from rclpy.executors import SingleThreadedExecutor  # noqa: E402, I100
from rclpy.parameter import Parameter  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from spotvlm_msgs.msg import Answer, Fact  # noqa: E402
from spotvlm_ros.client import AnswerClient, Hysteresis, OFF, Rules  # noqa: E402
from spotvlm_ros.client.belief import Belief  # noqa: E402
from spotvlm_ros.method.facts import NS  # noqa: E402
from spotvlm_ros.nodes.base import RELIABLE, SENSOR  # noqa: E402
from spotvlm_ros.nodes.convert import duration_msg, header_msg, time_msg  # noqa: E402

STILL = 10**12  # where the clock of the tests begins [ns]


class Planner:
    """A user's node under a simulated clock, and who answers it."""

    def __init__(self, qos=RELIABLE, topic='answers'):
        self.node = rclpy.create_node(
            'planner', namespace='robot1',
            parameter_overrides=[Parameter('use_sim_time', value=True)])
        self.other = rclpy.create_node('edge', namespace='robot1')
        self.clock = self.other.create_publisher(Clock, '/clock', 1)
        self.answers = self.other.create_publisher(Answer, topic, qos)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.changes = []

    def client(self, rules=Rules(hysteresis=OFF), **options):
        """Return a client, connected, at the beginning of time."""
        client = AnswerClient(self.node, 'scene', rules, **options, on_change=lambda c:
                              self.changes.append({k: f.value for k, f in c.facts().items()}))
        self.spin(self.answers.get_subscription_count)
        self.spin(self.clock.get_subscription_count)
        self.at(0.0)
        return client

    def spin(self, condition):
        """Spin until a condition holds."""
        def step():
            self.executor.spin_once(timeout_sec=0.005)
            return condition()
        return wait_for(step, 10.0)

    def at(self, seconds):
        """Let it be that late."""
        ns = STILL + round(seconds * NS)

        def there():
            self.clock.publish(Clock(clock=time_msg(ns)))
            return self.node.get_clock().now().nanoseconds == ns
        self.spin(there)

    def say(self, client, seconds, code=0, context_s=None, held_s=0.0, **facts):
        """Answer about the frame of a time; return when the client has it."""
        stamp = STILL + round(seconds * NS)
        before = client.counts.total()
        origin = Fact.ORIGIN_HELD if held_s else Fact.ORIGIN_OWN if context_s is None else \
            Fact.ORIGIN_CONTEXT
        seen = time_msg(stamp - round(held_s * NS))
        self.answers.publish(Answer(
            header=header_msg(stamp, 'eye'), query_id='scene', source=Answer.SOURCE_EDGE,
            error_code=code, error_msg='why' if code else '', used_context=context_s is not None,
            context_age=duration_msg(context_s or 0.0),
            facts=[Fact(key=k, value=v, confidence=0.5, stamp=seen, origin=origin)
                   for k, v in facts.items()]))
        self.spin(lambda: client.counts.total() > before)


@contextmanager
def planner(*args):
    """Yield a planner."""
    rclpy.init(args=[])
    it = Planner(*args)
    try:
        yield it
    finally:
        it.executor.shutdown()
        it.node.destroy_node()
        it.other.destroy_node()
        rclpy.try_shutdown()


@pytest.mark.parametrize('qos', [RELIABLE, SENSOR])
def test_a_fact_is_known_while_it_is_fresh_by_the_clock_of_the_node(qos):
    with planner(qos) as p:
        client = p.client(Rules(hysteresis=OFF, max_age_s=1.0, max_age_of={'lead': 0.5}))
        assert client.facts() == {} and client.age_s == float('inf')
        assert '/robot1/answers' in client.why_unknown('light')
        p.at(10.0)
        p.say(client, 9.8, context_s=2.0, light='red', lead='none')
        light = client.fact('light')
        assert (light.value, round(light.age_s, 3), round(light.context_age_s, 3)) == (
            'red', 0.2, 2.2)
        assert light.origin == Fact.ORIGIN_CONTEXT and round(client.age_s, 3) == 0.2
        assert client.why_unknown('light') == '' and 'no fact' in client.why_unknown('limit')
        p.at(10.4)
        assert client.value('light') == 'red' and client.value('lead', '?') == '?'
        p.spin(lambda: p.changes[-1:] == [{'light': 'red'}])  # silence is a change, too
        p.at(10.9)
        p.spin(lambda: p.changes[-1:] == [{}])
        assert '1.1 s old' in client.why_unknown('light')
        assert p.changes == [{'light': 'red', 'lead': 'none'}, {'light': 'red'}, {}]


def test_what_is_no_answer_about_now_changes_nothing():
    """Errors, answers in the wrong order or of other clocks, old contexts; the clock may jump."""
    with planner() as p:
        client = p.client(Rules(hysteresis=OFF, max_context_age_s=5.0,
                                accept=(Answer.ERROR_TIMEOUT,)))
        p.at(10.0)
        p.say(client, 15.0, light='red')
        assert 'ahead of' in client.why_unknown('light') and client.value('light') == ''
        p.say(client, 10.0, light='green')
        p.say(client, 9.9, light='red')
        p.say(client, 15.0, light='red')
        p.say(client, 10.01, Answer.ERROR_PARSE, light='red')
        assert (client.newest.error_code, client.value('light')) == (Answer.ERROR_PARSE, 'green')
        p.say(client, 10.02, context_s=6.0, light='red')
        assert client.value('light') == 'green'
        assert client.counts == {'taken': 2, 'out_of_order': 1, 'ahead_of_clock': 2,
                                 f'error_{Answer.ERROR_PARSE}': 1, 'facts_of_old_context': 1}
        p.say(client, 10.03, Answer.ERROR_TIMEOUT, light='red')
        assert client.value('light') == 'red'
        p.say(client, 10.035, held_s=6.0, light='green')
        assert client.value('light') == 'red' and client.counts['facts_of_old_context'] == 2
        p.say(client, 10.038, held_s=0.5, lead='none')
        held = client.fact('lead')
        assert (held.value, round(held.age_s, 2), round(held.context_age_s, 2)) == (
            'none', 0.46, 0.46)
        assert client.at(time_msg(STILL + 10 * NS + 4 * 10**6)).facts[0].value == 'green'
        assert client.at(time_msg(STILL + 11 * NS)) is None
        p.at(11.5)
        p.say(client, 11.4, Answer.ERROR_MODEL)
        assert f'error {Answer.ERROR_MODEL}: why' in client.why_unknown('light')
        p.at(5.0)
        assert client.newest is None and not client.at(time_msg(STILL + 10 * NS))
        p.say(client, 4.9, light='red')
        assert client.value('light') == 'red'


def test_answers_can_be_awaited_and_destroy_lets_go():
    with planner() as p:
        client = p.client()
        future, texts = client.next_answer(), []

        async def of_rclpy():
            texts.append((await client.next_answer()).text)
        p.executor.create_task(of_rclpy)
        threading.Thread(target=p.executor.spin, daemon=True).start()

        async def two():
            with pytest.raises(TimeoutError):
                await client.wait(0.01)
            assert not client._waiting, 'nobody waits any more'
            waiting = asyncio.ensure_future(client.wait(10.0))
            await asyncio.sleep(0)
            p.answers.publish(Answer(header=header_msg(STILL, ''), query_id='action'))
            p.answers.publish(Answer(header=header_msg(STILL, ''), query_id='scene', text='hm'))
            answer, waiting = await waiting, asyncio.ensure_future(client.wait())
            await asyncio.sleep(0)
            client.destroy()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return answer
        assert asyncio.run(two()).text == 'hm'
        wait_for(future.done)
        assert future.result().text == 'hm'
        assert wait_for(lambda: texts) == ['hm']


def believed(rule, said, max_age_s=1.0):
    """Return the values believed after each of what is said, every 0.1 s; '-' is silence."""
    belief, values = Belief(rule, max_age_s), ''
    for tick, value in enumerate(said):
        if value != '-':
            belief.see(value, 0.9 if value.isupper() else 0.5, (tick + 1) * NS // 10)
        fresh = belief.is_fresh((tick + 1) * NS // 10)
        values += belief.value if fresh else '.'
    return values


@pytest.mark.parametrize('rule, said, values', [
    (OFF, 'gr-g', 'grrg'),
    (Hysteresis(3, 0.0), 'gggrgrrgrrrr', '..ggggggggrr'),
    (Hysteresis(2, 0.4), 'rrrrrgggggg', '....rrrrrgg'),
    (Hysteresis(3, 0.0, sure=0.8), 'gggR', '..gR'),
    (Hysteresis(3, 0.0, quick={'r': 1}), 'gggrggg', '..grrrg'),
    (Hysteresis(1, 0.0, hold_s={'r': 0.5}), 'rgggrgggggg', 'rrrrrrrrrgg'),
    # Unknown: nobody says it any more, though what is said in its place is not steady.
    (Hysteresis(2, 0.0), 'gg' + 'rb' * 7, '.g' + 'g' * 10 + '....'),
    # After a silence one answer is no more than at the start.
    (Hysteresis(2, 0.0), 'gg' + '-' * 12 + 'gg', '.g' + 'g' * 10 + '...g'),
    (Hysteresis(2, 0.0), 'g' + '-' * 12 + 'gg', '.' * 14 + 'g')])
def test_a_value_changes_when_it_is_said_often_enough(rule, said, values):
    assert believed(rule, said) == values
