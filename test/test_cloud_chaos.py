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
"""The bridge against a server that fails in every way, over real HTTP on loopback."""

import asyncio
from collections import Counter
import gc
import itertools
import json
import os
import threading
import time

import cv2
from fakes import cloud_server, wait_for, WHAT
import numpy as np
import pytest

from spotvlm_ros.bench.faults.chaos import ChaosServer
from spotvlm_ros.bench.faults.chaos_faults import FATAL, FAULTS, PAUSING
from spotvlm_ros.cloud.breaker import State
from spotvlm_ros.cloud.bridge import CloudBridge
from spotvlm_ros.cloud.budget import Budget, Cost
from spotvlm_ros.cloud.client import CloudClient, Dialect
from spotvlm_ros.cloud.errors import CloudRefused, CloudReplyTooLarge
from spotvlm_ros.cloud.keyframe_encoder import EncodedKeyframe
from spotvlm_ros.config.nodes import RequestConfig
from spotvlm_ros.method.facts import NS, Query

SCENE = Query('scene', 'What?', 'facts', {'light': ('none', 'red'), 'lead': ('none', 'braking')},
              cloud_period_s=1.0, ttl_s={'default': 2.0})
ACTION = Query('action', 'What now?', 'choice', {'action': ('stop', 'go')}, cloud_period_s=2.0,
               ttl_s={'default': 2.0})
JPEG = cv2.imencode('.jpg', cv2.resize(np.random.default_rng(0).integers(
    0, 255, (96, 128, 3), dtype=np.uint8), (640, 480)))[1].tobytes()


def keyframe():
    return EncodedKeyframe(JPEG, 640, 480)


class Rig:
    """A bridge, what it said, and the stamps offered to it."""

    def __init__(self, *urls, queries=(SCENE,), config=None, **kwargs):
        self.answers, self.errors = [], []
        servers = [cloud_server(url, 'chaos', name=f'server{i}', **(config or {}))
                   for i, url in enumerate(urls)]
        budget = kwargs.pop('budget', None)
        self.bridge = CloudBridge(servers, queries, self.answers.append, RequestConfig(**kwargs),
                                  budget=budget, on_error=self.errors.append)
        self.stamps = itertools.count(NS, NS // 20)

    def offer(self):
        return self.bridge.offer(next(self.stamps), keyframe)

    def until(self, condition, timeout_s=10.0):
        """Offer frames, twenty to the second of their stamps, until the condition holds."""
        return wait_for(lambda: (self.offer(), condition())[1], timeout_s)


@pytest.fixture
def rigs():
    made = []

    def make(*args, **kwargs):
        made.append(Rig(*args, **kwargs))
        return made[-1]
    yield make
    assert all(rig.bridge.stop() for rig in made)


@pytest.fixture
def chaos():
    made = []

    def make(*args, **kwargs):
        made.append(ChaosServer(*args, **kwargs))
        return made[-1]
    yield make
    for server in made:
        server.stop()


def test_streamed_structured_and_accounted(chaos, rigs):
    server = chaos()
    rig = rigs(server.url, config={'price_input': 2.0, 'price_output': 10.0})
    rig.offer()
    answer = wait_for(lambda: rig.answers)[0]
    assert {f.key for f in answer.facts} == {'light', 'lead'} and not answer.rejected
    request = server.requests[0]
    assert request['stream'] and request['stream_options'] == {'include_usage': True}
    schema = request['response_format']['json_schema']
    assert schema['strict'] and schema['schema']['additionalProperties'] is False
    spent = rig.bridge.budget.total
    assert spent.tokens == 960 and spent.money == pytest.approx(900 * 2e-6 + 60 * 10e-6)
    assert spent.bytes > len(server.bodies[0])
    assert answer.endpoint == 'server0' and answer.model == 'chaos'


@pytest.mark.parametrize('refused', ['response_format', 'stream_options'])
def test_what_a_server_refuses_is_left_out_and_remembered(chaos, rigs, refused, monkeypatch):
    server = chaos()
    fine = FAULTS['none']

    async def picky(x):
        return await (FAULTS['http_400'] if refused in x.request else fine)(x)
    monkeypatch.setitem(FAULTS, 'none', picky)
    rig = rigs(server.url)
    rig.until(lambda: len(rig.answers) >= 2)
    level = Dialect.STREAM if refused == 'response_format' else Dialect.PLAIN
    assert rig.bridge._pool.endpoints[0].client.dialect is level
    assert server.served['none'] == len(rig.answers) + level and not rig.errors


def test_a_server_that_once_took_a_schema_is_not_asked_for_less(chaos, rigs):
    server = chaos()
    rig = rigs(server.url, retries=0)
    rig.until(lambda: rig.answers)
    server.fault = 'http_400'
    rig.until(lambda: rig.errors)
    assert rig.bridge._pool.endpoints[0].client.dialect is Dialect.SCHEMA


@pytest.mark.parametrize('fault', sorted(FATAL - PAUSING))
def test_fault_is_survived_counted_and_over_at_once(chaos, rigs, fault):
    server = chaos(fault)
    rig = rigs(server.url, config={'deadline_s': 0.5})
    rig.until(lambda: len(rig.errors) >= 2)
    assert not rig.answers and all(server.url in e or 'URL' in e for e in rig.errors)
    by_kind = rig.bridge.stats.errors_by
    assert sum(by_kind.values()) == rig.bridge.stats.errors and 'internal' not in by_kind
    assert by_kind, fault
    server.fault = 'none'
    rig.until(lambda: rig.answers, 13.0 if fault in ('http_400', 'http_401', 'redirect') else 8.0)
    assert rig.bridge.breaker_state is State.CLOSED and not rig.bridge.stats.last_error


@pytest.mark.parametrize('fault', sorted(set(FAULTS) - FATAL - {'none'}))
def test_odd_replies_are_no_errors(chaos, rigs, fault):
    server = chaos(fault)
    rig = rigs(server.url, config={'deadline_s': 5.0, 'api_key': 'sk-very-secret'})
    rig.until(lambda: len(rig.answers) >= 3)
    for answer in rig.answers:
        assert all(f.value in SCENE.choices[f.key] for f in answer.facts)
        assert all(f.region is None or f.region.clipped(640, 480) == f.region
                   for f in answer.facts)
        assert 'sk-very-secret' not in repr(answer)
        assert not any(c in answer.text for c in '<>[]|')
    if fault == 'injection':
        assert rig.bridge.stats.injections >= 3 and not any(a.text for a in rig.answers)


def test_late_answers_carry_the_stamp_of_their_frame(chaos, rigs):
    server = chaos('reordered')
    asked = {}
    every = Query('scene', 'What?', 'facts', SCENE.choices, cloud_period_s=0.05)
    rig = rigs(server.url, queries=(every,), max_in_flight=8)

    def load(stamp):
        def call():
            asked[stamp] = EncodedKeyframe(JPEG[:-2] + str(stamp).encode() + b'\xff\xd9', 640, 480)
            return asked[stamp]
        return call
    stamps = itertools.count(NS, NS // 10)

    def send():
        stamp = next(stamps)
        rig.bridge.offer(stamp, load(stamp))
    wait_for(lambda: (send(), len(rig.answers) >= 12)[1])
    assert {a.stamp_ns for a in rig.answers} <= set(asked)
    assert len({a.stamp_ns for a in rig.answers}) == len(rig.answers)


def test_a_newer_answer_ends_the_wait_for_older_ones(chaos, rigs):
    server = chaos('hang')
    rig = rigs(server.url, max_in_flight=2)
    first = next(rig.stamps)
    rig.bridge.offer(first, keyframe)
    wait_for(lambda: server.count == 1)
    server.fault = 'none'
    assert rig.bridge.offer(first + 2 * NS, keyframe) == 'scene'
    answer = wait_for(lambda: rig.answers)[0]
    wait_for(lambda: rig.bridge.in_flight == 0, 1.0)
    assert answer.stamp_ns == first + 2 * NS and rig.bridge.stats.superseded == 1
    wait_for(lambda: server.connections <= 1)  # the server is told, and can stop generating
    assert not rig.errors


def test_a_restarted_stream_gives_up_what_was_asked(chaos, rigs):
    server = chaos('hang')
    rig = rigs(server.url)
    rig.offer()
    wait_for(lambda: server.count == 1)
    for _ in range(50):
        rig.bridge.reset()
        rig.offer()
    rig.bridge.reset()
    wait_for(lambda: rig.bridge.in_flight == 0)


def test_a_reply_is_not_awaited_longer_than_its_facts_live(chaos, rigs):
    server = chaos('hang')
    brief = Query('scene', 'What?', 'facts', SCENE.choices, ttl_s={'default': 0.4})
    rig = rigs(server.url, queries=(brief,))
    began = time.monotonic()
    rig.offer()
    wait_for(lambda: rig.errors)
    assert 0.3 < time.monotonic() - began < 1.5 and 'time to live' in rig.errors[0]


def test_retry_asks_about_the_newest_frame(chaos, rigs):
    server = chaos('http_500')
    rig = rigs(server.url)
    first = next(rig.stamps)
    rig.bridge.offer(first, keyframe)
    wait_for(lambda: rig.errors)
    server.fault = 'none'
    assert rig.bridge.offer(first + NS // 100, keyframe) is None  # not due, but newer
    answer = wait_for(lambda: rig.answers)[0]
    assert answer.stamp_ns == first + NS // 100 and rig.bridge.stats.retries == 1


@pytest.mark.parametrize('fault', ['http_429', 'clock_skew'])
def test_retry_after_is_honoured_even_of_a_server_in_another_year(chaos, rigs, fault):
    server = chaos(fault)
    if fault == 'clock_skew':
        server.count = 2  # the next is the third
    rig = rigs(server.url)
    rig.until(lambda: rig.errors)
    refused, count = time.monotonic(), server.count
    server.fault = 'none'
    rig.until(lambda: rig.answers)
    assert server.count == count + 1 and 0.95 < server.arrived[-1] - refused < 2.0


def test_photo_that_was_too_large_is_sent_smaller(chaos, rigs):
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    jpeg = cv2.imencode('.jpg', noise)[1].tobytes()
    server = chaos('http_413')
    rig = rigs(server.url)
    assert rig.bridge.offer(NS, lambda: EncodedKeyframe(jpeg, 640, 480))
    wait_for(lambda: rig.errors)
    server.fault = 'none'
    stamps = itertools.count(2 * NS, NS // 20)
    wait_for(lambda: (rig.bridge.offer(next(stamps), lambda: EncodedKeyframe(jpeg, 640, 480)),
                      rig.answers)[1])
    assert len(server.bodies[-1]) < 0.65 * len(server.bodies[0])
    assert all(f.region.x == 256 for f in rig.answers[0].facts)  # in pixels of the camera


def test_fails_over_and_comes_back(chaos, rigs):
    first, second = chaos(), chaos()
    rig = rigs(first.url, second.url)
    rig.until(lambda: rig.answers)
    assert rig.answers[0].endpoint == 'server0'
    first.stop()
    rig.until(lambda: rig.answers[-1].endpoint == 'server1', 3.0)
    mark = len(rig.answers)
    rig.until(lambda: len(rig.answers) > mark + 5)
    assert rig.bridge.server.name == 'server1' and rig.bridge.breaker_state is State.CLOSED
    first.start()
    rig.until(lambda: rig.answers[-1].endpoint == 'server0', 20.0)
    report = rig.bridge.report()
    assert report['failovers'] >= 5 and report['server0.errors'] >= 1
    assert report['server1.answers'] == report['failovers']


def test_a_server_that_hangs_does_not_keep_the_next_one_waiting(chaos, rigs):
    first, second = chaos(), chaos()
    rig = rigs(first.url, second.url)
    rig.until(lambda: len(rig.answers) >= 3)
    first.fault = 'hang'
    began = time.monotonic()
    rig.until(lambda: rig.answers[-1].endpoint == 'server1', 3.0)
    assert time.monotonic() - began < 2.0, 'within the time to live of the facts'


def test_keys_go_to_their_own_server_only(chaos, monkeypatch):
    for name in ('API_KEY', 'ADMIN_KEY', 'ORG_ID', 'PROJECT_ID'):
        monkeypatch.setenv(f'OPENAI_{name}', 'of-another-server')
    monkeypatch.setenv('OPENAI_CUSTOM_HEADERS', 'Authorization: Bearer of-another-server')
    first, second = chaos('http_500'), chaos()
    answers = []
    bridge = CloudBridge([cloud_server(first.url, 'm', 'a', api_key='key-a'),
                          cloud_server(second.url, 'm', 'b')], [SCENE], answers.append)
    bridge.offer(NS, keyframe)
    wait_for(lambda: answers)
    assert bridge.stop()
    assert first.requests[0]['_authorization'] == 'key-a'
    assert second.requests[0]['_authorization'] == ''
    assert not any('of-another-server' in head for s in (first, second) for head in s.heads)


async def ask_once(url):
    """Ask without a bridge; return the reply's text and how often other tasks had their turn."""
    client, turns = CloudClient(cloud_server(url, 'm', deadline_s=5.0)), 0

    async def count():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1
    counting = asyncio.create_task(count())
    try:
        return (await client.ask(JPEG, WHAT)).text, turns
    finally:
        counting.cancel()
        await client.close()


def test_the_body_of_an_error_is_not_awaited(chaos, monkeypatch):
    async def endless(x):
        await x.send(x.head(10**9, 503, Retry_After='7'), b'{"error": ')
        return await x.hang()
    monkeypatch.setitem(FAULTS, 'none', endless)
    began = time.monotonic()
    with pytest.raises(CloudRefused, match='HTTP 503') as caught:
        asyncio.run(ask_once(chaos().url))
    assert caught.value.retry_after_s == 7.0 and time.monotonic() - began < 4.0


def test_a_whole_reply_is_bounded_too(chaos, monkeypatch):
    async def huge(x):
        x.streamed = False
        await x.send(x.head(10**9), b' ' * 600_000)
        return await x.hang()
    monkeypatch.setitem(FAULTS, 'none', huge)
    with pytest.raises(CloudReplyTooLarge):
        asyncio.run(ask_once(chaos().url))


def test_many_events_at_once_do_not_hold_up_the_loop(chaos, monkeypatch):
    """Or else deadlines would come late."""
    async def flood(x):
        return await x.reply(b'data: {}\n\n' * 3000 + x.body('fine'))
    monkeypatch.setitem(FAULTS, 'none', flood)
    text, turns = asyncio.run(ask_once(chaos().url))
    assert text == 'fine' and turns > 3000


@pytest.mark.parametrize('streamed', [True, False])
def test_a_response_sent_twice_does_not_answer_the_next_request(chaos, monkeypatch, streamed):
    """It did: the third frame got the answer about the second."""
    async def twice(x):
        x.streamed = streamed
        body = x.body(f'frame {x.number}, HTTP/1.1 {"or not " * 20}')
        return await x.send(2 * (x.head(len(body)) + body))
    monkeypatch.setitem(FAULTS, 'none', twice)
    server = chaos()

    async def ask():
        client = CloudClient(cloud_server(server.url, deadline_s=5.0))
        try:
            return [(await client.ask(JPEG, WHAT)).text for _ in range(3)]
        finally:
            await client.close()
    assert [text.partition(',')[0] for text in asyncio.run(ask())] == [
        'frame 1', 'frame 2', 'frame 3']


def test_a_connection_is_used_again(chaos, monkeypatch):
    ports = []

    async def note(x):
        ports.append(x.writer.get_extra_info('peername')[1])
        return await x.reply()
    monkeypatch.setitem(FAULTS, 'none', note)
    server = chaos()

    async def ask():
        client = CloudClient(cloud_server(server.url, deadline_s=5.0))
        for _ in range(3):
            await client.ask(JPEG, WHAT)
        await client.close()
    asyncio.run(ask())
    assert len(ports) == 3 and len(set(ports)) == 1


def test_a_stream_without_an_end_is_complete_with_its_end_mark(chaos, monkeypatch):
    async def no_end(x):
        body = x.body('fine')
        await x.send(x.head(len(body) + 1), body)
        return await x.hang()
    monkeypatch.setitem(FAULTS, 'none', no_end)
    began = time.monotonic()
    assert asyncio.run(ask_once(chaos().url))[0] == 'fine' and time.monotonic() - began < 3.0


def test_redirects_are_not_followed(chaos, rigs):
    server = chaos('redirect')
    rig = rigs(server.url, config={'api_key': 'sk-secret'})
    rig.offer()
    wait_for(lambda: rig.errors)
    assert server.count == 1 and 'HTTP 307' in rig.errors[0]


def test_concurrency_per_server(chaos, rigs):
    first, second = chaos('hang'), chaos('hang')
    rig = rigs(first.url, second.url, queries=(SCENE, ACTION), max_in_flight=5,
               config={'concurrency': 1})
    rig.until(lambda: first.count and second.count)
    for _ in range(20):
        rig.offer()
    assert first.connections == 1 and second.connections == 1
    assert rig.bridge.stats.skipped_by['busy'] >= 1


@pytest.mark.parametrize('limit,reason', [
    (Cost(bytes=2e6), 'budget_bytes'), (Cost(tokens=20_000), 'budget_tokens'),
    (Cost(money=0.02), 'budget_money')])
def test_budgets_are_kept_and_told(chaos, rigs, limit, reason):
    server = chaos()
    rig = rigs(server.url, config={'price_input': 1.0, 'price_output': 1.0},
               budget=Budget(limit, time.monotonic()))
    rig.until(lambda: rig.bridge.stats.skipped_by[reason] >= 1)
    count = server.count
    for _ in range(200):
        rig.offer()
    wait_for(lambda: rig.bridge.in_flight == 0)
    assert 1 <= count <= server.count <= count + 2
    spent = rig.bridge.budget.spent(time.monotonic())
    name = reason.partition('_')[2]
    assert getattr(spent, name) <= 0.25 * getattr(limit, name)
    report = rig.bridge.report()
    assert report[f'skipped.{reason}'] >= 1 and report['spent_hour_tokens'] == spent.tokens


@pytest.mark.parametrize('usage', [
    {'prompt_tokens': 9_999_999, 'completion_tokens': 1}, {'prompt_tokens': -5}, 'all', None,
    {'prompt_tokens': True, 'completion_tokens': 1.5}])
def test_nonsense_about_the_cost_spends_no_budget(chaos, rigs, usage, monkeypatch):
    async def lie(x):
        x.streamed = False
        body = json.loads(x.body()) | {'usage': usage}
        return await x.reply(json.dumps(body).encode())
    monkeypatch.setitem(FAULTS, 'none', lie)
    rig = rigs(chaos().url, budget=Budget(Cost(tokens=100_000), time.monotonic()))
    rig.until(lambda: len(rig.answers) >= 5)
    report = rig.bridge.report()
    assert report['server0.usage_missing'] >= 5
    assert 5_000 < report['spent_hour_tokens'] < 20_000, 'the estimate'


def test_unpriced_server_serves_when_the_money_is_spent(chaos):
    paid, free = chaos(), chaos()
    answers = []
    bridge = CloudBridge([cloud_server(paid.url, 'm', 'paid', price_request=1.0),
                          cloud_server(free.url, 'm', 'free')], [SCENE], answers.append,
                         budget=Budget(Cost(money=10.0), time.monotonic()))
    stamps = itertools.count(NS, NS // 10)
    wait_for(lambda: (bridge.offer(next(stamps), keyframe), len(answers) >= 6)[1])
    assert bridge.stop()
    assert Counter(a.endpoint for a in answers)['paid'] == 2  # a fifth of ten
    assert answers[-1].endpoint == 'free'


def threads():
    return {t.name for t in threading.enumerate() if t.name.startswith(('cloud', 'asyncio'))}


def sockets():
    found = []
    for entry in os.listdir('/proc/self/fd'):
        try:
            found.append(os.readlink(f'/proc/self/fd/{entry}'))
        except OSError:
            pass
    return sum(name.startswith('socket') for name in found)


def test_nothing_is_leaked_after_every_fault(chaos):
    server = chaos()
    gc.collect()
    before = sockets()
    rig = Rig(server.url, queries=(SCENE, ACTION), config={'deadline_s': 0.3}, max_in_flight=4)
    for fault in sorted(FAULTS.keys() - PAUSING):
        rig.bridge._pool.endpoints[0].breaker.success()  # no time for pauses here
        server.fault, count = fault, server.count
        rig.until(lambda: server.count > count, 3.0)
    wait_for(lambda: rig.bridge.in_flight == 0)
    assert not rig.bridge.policy.requests and not rig.bridge._newest
    assert rig.bridge.stop()
    wait_for(lambda: not threads())  # that of the loop ends just after it
    wait_for(lambda: server.connections == 0)
    wait_for(lambda: (gc.collect(), sockets() <= before)[1])
    assert 'internal' not in rig.bridge.stats.errors_by


def test_figures_are_told_flat_and_small(chaos, rigs):
    rig = rigs(chaos('http_500').url)
    rig.until(lambda: rig.errors)
    report = rig.bridge.report()
    assert report['errors.http_500'] >= 1 and report['server0.breaker'] in ('closed', 'open')
    json.dumps(report)
