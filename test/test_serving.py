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
"""The batching server: who is computed when, what is refused, and that replies are the same."""

import argparse
import asyncio
from collections import Counter
from dataclasses import dataclass
import json

import pytest
from spotvlm_ros.bench.fleet.clock import SimulatedLoop
from spotvlm_ros.cli import serve
from spotvlm_ros.cloud.server import ServerError
from spotvlm_ros.serving.batcher import Batcher
from spotvlm_ros.serving.chat import Refused
from spotvlm_ros.serving.keys import Keys, read_keys, Robot
from spotvlm_ros.serving.meters import Meters
from spotvlm_ros.system.compatible import timeout
from test_cloud_server import chat, MODEL


@dataclass(frozen=True)
class Question:
    text: str
    kind: str = 'small'


class Computer:
    """Takes a second for each batch, and notes what it was given."""

    def __init__(self):
        self.batches, self.gone, self.broken = [], [], ''

    async def __call__(self, batch, gone):
        self.batches.append([question.text for question in batch])
        await asyncio.sleep(1.0)
        self.gone += [question.text for i, question in enumerate(batch) if gone(i)]
        if any(question.text == self.broken for question in batch):
            raise RuntimeError('out of memory')
        return [question.text.upper() for question in batch]


@pytest.fixture
def computer():
    return Computer()


def simulated(main):
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def asked(batcher, text, robot='r', until=60.0, kind='small'):
    return asyncio.ensure_future(batcher.ask(Question(text, kind), robot, until))


def test_those_of_one_kind_are_computed_together(computer):
    async def main():
        batcher = Batcher(computer, 3, Meters())
        await asked(batcher, 'x')   # the first goes alone
        tasks = [asked(batcher, c, kind='large' if c == 'c' else 'small') for c in 'abcdef']
        return await asyncio.gather(*tasks)
    assert simulated(main) == list('ABCDEF')
    assert computer.batches == [['x'], ['a', 'b', 'd'], ['c'], ['e', 'f']]


def test_a_robot_that_asks_much_waits_for_itself_not_the_others_for_it(computer):
    async def main():
        batcher = Batcher(computer, 1, Meters())
        tasks = [asked(batcher, f'a{i}', 'a') for i in range(6)]
        await asyncio.sleep(0.5)
        tasks += [asked(batcher, f'b{i}', 'b') for i in range(2)]
        await asyncio.gather(*tasks)
    simulated(main)
    order = [text for batch in computer.batches for text in batch]
    assert order.index('b0') <= 2 and order.index('b1') <= 4
    assert [t for t in order if t[0] == 'a'] == [f'a{i}' for i in range(6)]


def test_what_would_come_too_late_is_refused_at_once_and_not_computed(computer):
    async def main():
        batcher, loop = Batcher(computer, 2, Meters()), asyncio.get_running_loop()
        await asked(batcher, 'first', until=0.1)      # an idle server takes any
        await asyncio.gather(asked(batcher, 'x'), asked(batcher, 'y'))
        tasks = [asked(batcher, c) for c in 'abcd']   # two batches: two seconds
        await asyncio.sleep(0.25)
        began = loop.time()
        with pytest.raises(Refused) as caught:
            await batcher.ask(Question('late'), 'r', began + 2.0)
        assert caught.value.status == 503 and caught.value.retry_after_s >= 1
        assert loop.time() == began
        tasks.append(asked(batcher, 'in time', until=began + 3.0))
        return await asyncio.gather(*tasks)
    assert simulated(main) == ['A', 'B', 'C', 'D', 'IN TIME']
    assert 'late' not in sum(computer.batches, [])


def test_what_has_become_too_late_while_it_waited_is_not_computed(computer):
    async def main():
        batcher = Batcher(computer, 1, Meters())
        first = asked(batcher, 'a')   # how long it takes is not known yet
        await asyncio.sleep(0)
        late, good = asked(batcher, 'b', until=1.5), asked(batcher, 'c')
        return await asyncio.gather(first, late, good, return_exceptions=True)
    a, b, c = simulated(main)
    assert (a, c) == ('A', 'C') and isinstance(b, Refused) and b.retry_after_s
    assert computer.batches == [['a'], ['c']]


def test_what_is_given_up_is_not_computed_or_not_to_its_end(computer):
    async def main():
        batcher = Batcher(computer, 2, Meters())
        await asked(batcher, 'x')
        running, other, waiting = (asked(batcher, c) for c in 'abc')
        await asyncio.sleep(0.5)
        running.cancel()
        waiting.cancel()
        assert await other == 'B'
        assert batcher.under_way == 0
    simulated(main)
    assert computer.batches == [['x'], ['a', 'b']] and computer.gone == ['a']


def test_one_that_breaks_the_model_takes_nobody_with_it(computer):
    computer.broken = 'b'

    async def main():
        batcher = Batcher(computer, 4, Meters())
        return await asyncio.gather(*(asked(batcher, c) for c in 'abc'), return_exceptions=True)
    a, b, c = simulated(main)
    assert (a, c) == ('A', 'C') and 'memory' in str(b)


class OneByOne(Computer):
    """A CPU: a batch takes as long as its requests take one by one."""

    async def __call__(self, batch, gone):
        self.batches.append([question.text for question in batch])
        await asyncio.sleep(1.0 * len(batch))
        return [question.text.upper() for question in batch]


def test_where_a_batch_gains_nothing_nobody_waits_for_the_others_and_overload_starves_nobody():
    """All of a batch of eight came too late, again and again: not one was answered."""
    computer = OneByOne()

    async def robot(batcher, name, outcomes):
        loop = asyncio.get_running_loop()
        while loop.time() < 120.0:
            try:
                async with timeout(6.0):
                    await batcher.ask(Question(name), name, loop.time() + 6.0)
                outcomes['answer'] += 1
            except Refused as refusal:
                outcomes['refused'] += 1
                await asyncio.sleep(refusal.retry_after_s)
            except TimeoutError:
                outcomes['late'] += 1

    async def main():
        batcher, outcomes = Batcher(computer, 8, Meters()), Counter()
        await asyncio.gather(*(robot(batcher, f'r{i}', outcomes) for i in range(12)))
        return outcomes
    outcomes = simulated(main)
    assert outcomes['answer'] > 0.6 * 120 and outcomes['late'] < 0.2 * outcomes['answer'], outcomes
    assert sum(len(batch) == 1 for batch in computer.batches[20:]) > 0.8 * len(
        computer.batches[20:])


def test_a_quota_is_held_and_says_when_to_come_again():
    robot = Robot('r', per_s=2.0)
    sent = sum(not robot.wait_s(now / 10) for now in range(100))  # ten seconds
    assert 20 <= sent <= 20 + 8
    wait_s = robot.wait_s(9.9)
    assert 0 < wait_s <= 0.5 and not robot.wait_s(9.9 + wait_s + 1e-6)
    assert not any(Robot('free').wait_s(0.0) for _ in range(1000))


@pytest.mark.parametrize('text, said', [
    ('', 'no robots'), ('r', ':1'), ('r k x', ':1'), ('# r\nr k -1', ':2'), ('r k nan', ':1'),
    ('r k 1 2', ':1'), ('r k\ns k', ':2 has the key of line 1'),
    ('# x\nr k\nr l', ':3 has the name of line 2'), (None, 'cannot be read')])
def test_a_file_of_keys_that_is_none_is_named(tmp_path, text, said):
    path = tmp_path / 'keys'
    if text is not None:
        path.touch(0o600)
        path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_keys(path)


def test_keys_are_private_and_each_robots_own(tmp_path):
    path = tmp_path / 'keys'
    path.write_text('# fleet\none k1 2.5\ntwo k2\n')
    path.chmod(0o644)
    with pytest.raises(ValueError, match='chmod 600'):
        read_keys(path)
    path.chmod(0o600)
    keys = Keys(read_keys(path))
    assert keys.robot('Bearer k1').per_s == 2.5 and keys.robot('Bearer k2').name == 'two'
    assert not any(keys.robot(h) for h in ('', 'k1', 'Bearer ', 'Bearer k', 'Basic k1'))
    with pytest.raises(ValueError, match='one key'):
        Keys([('k', Robot('a')), ('k', Robot('b'))])


@pytest.fixture
def no_signals(monkeypatch):
    monkeypatch.setattr('spotvlm_ros.system.signals.StopSignal', lambda: None)


@pytest.mark.parametrize('arguments, said', [
    (['--host', '0.0.0.0'], '--host needs --ray'), (['--replicas', '2'], '--replicas needs --ray'),
    (['--ray', '--least', '3', '--replicas', '2'], '--least 3 is more than --replicas 2'),
    (['--keys', '/none'], '/none cannot be read'), (['--ray', '--keys', '/none'], '/none cannot')])
def test_serve_says_what_it_would_have_ignored(arguments, said, capsys, no_signals):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    assert serve.execute(parser.parse_args(arguments)) == 1 and said in capsys.readouterr().err


def test_serve_hands_device_and_keys_to_the_process_that_serves(monkeypatch, no_signals):
    """`--device cuda` without Ray served on the CPU."""
    commands = []

    class Stopped(ServerError):
        pass

    def embedded(model, *, command, **options):
        commands.append(command(model, 7))
        raise Stopped('seen')
    monkeypatch.setattr('spotvlm_ros.cloud.server.EmbeddedServer', embedded)
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    assert serve.execute(parser.parse_args(['--device', 'cuda:1', '--max-batch', '5'])) == 1
    words = commands[0]
    assert words[words.index('--device') + 1] == 'cuda:1'
    assert words[words.index('--max-batch') + 1] == '5'


class Echo:
    """A model that repeats the last text; it takes as long as the event says."""

    def __init__(self):
        self.answered = 0

    def prepare(self, chat):
        from spotvlm_ros.serving.checkpoint import Prepared, Sampling
        content = chat.messages[-1].content
        text = content if isinstance(content, str) else content[-1].text
        if text == 'broken':
            raise ValueError('no image')
        return Prepared({'text': text}, '', Sampling(), 8)

    def answer(self, batch, gone):
        from spotvlm_ros.serving.checkpoint import Reply
        self.answered += len(batch)
        return [Reply(p.inputs['text'], 7, 3, True) for p in batch]


def service(model=None, robots=(('secret', Robot('owner')),)):
    from spotvlm_ros.serving.service import Limits, Service
    return Service(model or Echo(), Keys(robots), Limits((MODEL, 'large')))


async def through(app, method, path, body=b'', key='secret', headers=(), gone=None):
    """Ask an ASGI app; return status, headers and body."""
    sent, events = [], [{'type': 'http.request', 'body': body, 'more_body': False}]

    async def receive():
        if events:
            return events.pop()
        await (gone or asyncio.Event()).wait()
        return {'type': 'http.disconnect'}

    async def send(event):
        sent.append(event)
    given = [(b'authorization', f'Bearer {key}'.encode()), *headers]
    await app({'type': 'http', 'method': method, 'path': path, 'headers': given,
               'query_string': b'', 'server': ('x', 80), 'scheme': 'http'}, receive, send)
    if not sent:
        return 0, {}, b''
    return (sent[0]['status'], {k.decode(): v.decode() for k, v in sent[0]['headers']},
            b''.join(e.get('body', b'') for e in sent[1:]))


def answers(*requests, **options):
    """Ask one service several times; return status and JSON of each, and its meters."""
    from spotvlm_ros.serving.service import App
    served = service(**options)

    async def main():
        return [await through(App(served), *request[:2], *(
            [json.dumps(request[2]).encode() if isinstance(request[2], dict) else request[2]]
            if len(request) > 2 else []), **(request[3] if len(request) > 3 else {}))
            for request in requests]
    return simulated(main), served.meters


CHAT = '/v1/chat/completions'


def test_the_service_answers_whole_and_streamed_and_counts():
    got, meters = answers(
        ('POST', CHAT, chat()), ('POST', CHAT, chat(
            stream=True, stream_options={'include_usage': True})), ('GET', '/v1/models'),
        ('GET', '/health'), ('GET', '/ready'), ('GET', '/metrics'))
    assert [status for status, *_ in got] == [200] * 6
    whole = json.loads(got[0][2])
    assert whole['choices'][0]['message']['content'] == 'ready?'
    assert whole['usage'] == {'prompt_tokens': 7, 'completion_tokens': 3, 'total_tokens': 10}
    assert got[1][1]['content-type'].startswith('text/event-stream')
    assert got[1][2].endswith(b'data: [DONE]\n\n') and b'"completion_tokens": 3' in got[1][2]
    assert json.loads(got[2][2])['data'][0]['id'] == MODEL
    assert b'spotvlm_requests_total{status="200"} 2\n' in got[5][2]
    assert meters.value('tokens_total', 'prompt') == 14
    assert got[0][1]['x-queue-wait-ms'].isdigit()


@pytest.mark.parametrize('request_, status', [
    (('GET', '/health', b'', {'key': 'guess'}), 401), (('POST', CHAT, chat(), {'key': ''}), 401),
    (('GET', '/metrics', b'', {'key': 'guess'}), 401), (('POST', '/load_model', {}), 404),
    (('PUT', CHAT, chat()), 404), (('POST', CHAT, chat('file:///etc/passwd')), 422),
    (('POST', CHAT, chat('http://x/y.png')), 422), (('POST', CHAT, chat(tools=[])), 422),
    (('POST', CHAT, chat(model='gpt2')), 400), (('POST', CHAT, b'{'), 422),
    (('POST', CHAT, b'[' * 10**5), 422), (('POST', CHAT, b' ' * (2**26 + 1)), 413),
    (('POST', CHAT, {'model': MODEL, 'messages': [{'role': 'user', 'content': 'broken'}]}), 400),
    (('POST', CHAT, chat(), {'headers': [(b'x-request-timeout-ms', b'soon')]}), 400)],
    ids=lambda value: str(value)[:40])
def test_the_service_refuses_what_is_not_for_it(request_, status):
    model = Echo()
    (got,), _ = answers(request_, model=model)
    assert got[0] == status and json.loads(got[2])['error']['message'] and not model.answered


def parts(*content):
    return {'model': MODEL, 'messages': [{'role': 'user', 'content': list(content)}]}


def seen(url):
    return parts({'type': 'image_url', 'image_url': {'url': url}})


@pytest.mark.parametrize('body, status, said', [
    (parts(), 0, ''), (chat(n=1, user='robot', presence_penalty=0), 0, ''),
    ({k: v for k, v in chat().items() if k != 'model'}, 422, 'model is missing; give it'),
    (chat(model=''), 400, f'model: there is one here; give {MODEL}'),
    (chat(n=2), 422, 'n should be less than or equal to 1'),
    (chat(max_tokens=-1), 422, 'max_tokens should be greater than or equal to 1'),
    (chat(logprobs=True), 422, 'logprobs is not known; leave it out'),
    (chat(stream='yes'), 422, 'stream should be a valid boolean'),
    (seen('data:image/gif;base64,R0lG'), 422, 'messages.0.content.0.image_url.url is no picture'),
    (seen('data:application/pdf;base64,AA'), 422, 'send data:image/jpeg;base64'),
    (parts({'type': 'input_audio'}), 422, 'messages.0.content.0 is neither text nor image_url'),
    (parts({'type': 'text'}), 422, 'messages.0.content.0.text is missing'),
    ({'model': MODEL, 'messages': 'hello'}, 422, 'messages should be'),
    (chat(**{'x' * 10**5: 1}), 422, 'x is not known; leave it out'),
    ([1], 422, 'the body should be an object'), (b'{', 422, 'the body is no JSON'),
    (b'', 422, 'the body is no JSON; send an object'), (b'\xff', 422, 'the body is no JSON')],
    ids=lambda value: str(value)[:30])
def test_a_bad_request_is_told_which_field_and_what_to_send_and_is_counted(body, status, said):
    (got,), meters = answers(('POST', CHAT, body if isinstance(body, bytes) else
                              json.dumps(body).encode()), model=Last())
    if not status:
        assert got[0] == 200 and not meters.value('refused_total')
        return
    message = json.loads(got[2])['error']['message']
    assert got[0] == status and said in message and ';' in message and len(message) < 400
    assert meters.value('refused_total', 'request') == 1
    assert meters.value('requests_total', str(status)) == 1


class Last(Echo):
    """Takes messages without parts, too."""

    def prepare(self, chat):
        return super().prepare(chat.model_copy(update={'messages': [
            chat.messages[-1].model_copy(update={'content': 'ready?'})]}))


def test_strangers_wrong_routes_and_types_are_counted_and_a_broken_model_is_said():
    class Broken(Echo):
        def answer(self, batch, gone):
            raise RuntimeError('out of memory')
    got, meters = answers(
        ('GET', '/health', b'', {'key': 'guess'}), ('GET', '/load'),
        ('POST', CHAT, chat(), {'headers': [(b'content-type', b'text/plain')]}),
        ('POST', CHAT, chat(), {'headers': [(b'content-type', b'application/json; charset=x')]}),
        model=Broken())
    texts = [json.loads(g[2])['error']['message'] for g in got]
    assert [g[0] for g in got] == [401, 404, 415, 500]
    for text, said in zip(texts, ('send Bearer', 'GET /v1/models', 'send application/json',
                                  'out of memory; see the log')):
        assert said in text
    assert [meters.value('refused_total', r) for r in ('key', 'route', 'request', 'failed')] == [
        1, 1, 1, 1]


def test_who_is_over_the_quota_is_told_when_to_come_again():
    (*good, over), meters = answers(*[('POST', CHAT, chat())] * 5,
                                    robots=[('secret', Robot('r', 1.0))])
    assert [g[0] for g in good] == [200] * 4 and over[0] == 429 and over[1]['retry-after'] == '1'
    assert meters.value('refused_total', 'quota') == 1


def test_the_timeout_of_a_request_is_its_deadline_and_who_hangs_up_is_given_up():
    from spotvlm_ros.serving.service import App
    from spotvlm_ros.serving.checkpoint import Reply
    served, names = service(), Counter()

    async def compute(batch, gone):
        await asyncio.sleep(1.0)
        return [Reply('x', 1, 1, True) for _ in batch]
    served._batcher._compute = compute

    async def main():
        app, gone = App(served), asyncio.Event()
        first = asyncio.ensure_future(through(app, 'POST', CHAT, json.dumps(chat()).encode()))
        await first
        slow = [asyncio.ensure_future(through(
            app, 'POST', CHAT, json.dumps(chat()).encode(), gone=gone)) for _ in range(2)]
        await asyncio.sleep(0.2)
        late = await through(app, 'POST', CHAT, json.dumps(chat()).encode(),
                             headers=[(b'x-request-timeout-ms', b'900')])
        names[late[0]] += 1
        gone.set()
        await asyncio.gather(*slow)
        await asyncio.sleep(2.0)
    simulated(main)
    assert names == {503: 1}
    assert served.meters.value('hung_up_total') == 2 and served._batcher.under_way == 0
