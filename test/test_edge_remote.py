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
"""The edge model on another host: what is asked, what counts, and what failures cost."""

import json
import re
import threading
import time

from fakes import wait_for
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402, I100
from spotvlm_msgs.msg import Answer  # noqa: E402
from spotvlm_ros.cloud.parse import confidence  # noqa: E402
from spotvlm_ros.cloud.reply import RawReply  # noqa: E402
from spotvlm_ros.config.nodes import EdgeConfig  # noqa: E402
from spotvlm_ros.config.spec import ParameterError  # noqa: E402
from spotvlm_ros.method.facts import Context, Fact, NS, Query, Region  # noqa: E402
from spotvlm_ros.nodes import process  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from spotvlm_ros.nodes.remote_edge import RemoteEdge, RemoteEdgeError  # noqa: E402
from test_nodes_ask import ask, send_goal  # noqa: E402
from test_nodes_graph import graph, GREY, keep_sending, overlay, send_to  # noqa: E402

SCENE = Query('scene', 'What is ahead?', 'facts', {
    'light': ('none', 'red', 'green'), 'lead': ('none', 'braking')})
ACTION = Query('action', 'What now?', 'choice', {'action': ('stop', 'go')})
WHAT = Query('', 'What?', 'text')
CONTEXT = Context('scene', 5 * NS, (Fact('light', 'red', 3 * NS),),
                  focus={'light': Region(10, 10, 20, 20)})
SECRET = 'sk-kEy4711-do-not-tell'


def said(text, probability=None):
    """Return what a server replies, with the probability of each token if it tells any."""
    choice = {'index': 0, 'finish_reason': 'stop',
              'message': {'role': 'assistant', 'content': text}}
    if probability is not None:
        choice['logprobs'] = {'content': [{'token': t, 'logprob': float(np.log(probability))}
                                          for t in re.findall(r'\w+|\W', text)]}
    return 200, json.dumps({'choices': [choice]}).encode()


def remote(server, **config):
    """Return the model behind a server."""
    return RemoteEdge(EdgeConfig(model='m', remote_url=server.url, **config))


def test_the_server_is_asked_what_a_model_of_ours_is_asked(server):
    server.reply = lambda request: said('{"light": "green", "lead": "none"}')
    edge = remote(server, guard_odds=0.0, remote_view_side=64)
    answer = edge.answer(GREY, SCENE, CONTEXT, 5 * NS)
    request = server.requests[-1]
    first, told, now = request['messages']
    assert [m['role'] for m in request['messages']] == ['user', 'assistant', 'user']
    assert told['content'] == 'light: red (2.0 s ago)'
    assert 'light: none|red|green' in first['content'][0]['text']
    assert [p['type'] for p in now['content']] == ['image_url', 'image_url', 'text']
    assert now['content'][-1]['text'] == 'Now: What is ahead?'
    schema = request['response_format']['json_schema']['schema']
    assert schema['properties']['light']['enum'] == ['none', 'red', 'green']
    assert request['logprobs'] is True and request['model'] == 'm'
    assert [(f.key, f.value) for f in answer.facts] == [('light', 'green'), ('lead', 'none')]
    assert answer.used_context and answer.used_focus and answer.told_keys == {'light', 'lead'}
    edge.close()


@pytest.mark.parametrize('query,text,facts,rejected', [
    (SCENE, 'light: red\nlead: none', {'light': 'red', 'lead': 'none'}, 0),
    (SCENE, 'light: purple\nlead: none', {'lead': 'none'}, 1),
    (SCENE, '{"light": "purple", "speed": "9", "lead": "braking"}', {'lead': 'braking'}, 2),
    (ACTION, 'stop', {'action': 'stop'}, 0),
    (ACTION, '{"action": "go"}', {'action': 'go'}, 0),
    (ACTION, 'stop or go', {}, 1),
    (SCENE, '[' * 5000, {}, 1),
    (WHAT, 'see https://example.org', {}, 1)])
def test_only_choices_count_and_all_else_is_counted(server, query, text, facts, rejected):
    server.reply = lambda request: said(text)
    edge = remote(server)
    answer = edge.answer(GREY, query, None, NS)
    assert {f.key: f.value for f in answer.facts} == facts
    assert len(answer.rejected) == edge.report()['remote.rejected'] == rejected
    edge.close()


@pytest.mark.parametrize('status,body', [
    (500, b''), (404, b'{}'), (200, b'no JSON'), (200, b'[]'), (200, b'{"error": {"a": 1}}'),
    (200, b'{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}'),
    (200, b'{"choices": [{"message": {"content": "' + 20_000 * b'x' + b'"}}]}')])
def test_what_is_no_reply_is_an_error_with_the_address_and_our_remedy(server, status, body):
    server.reply = lambda request: (status, body)
    edge = remote(server)
    with pytest.raises(RemoteEdgeError, match=server.url) as caught:
        edge.answer(GREY, SCENE, None, NS)
    assert not re.search('base_url|deadline_s|max_tokens|cloud', str(caught.value))
    server.reply = lambda request: said('light: red\nlead: none')
    assert edge.answer(GREY, SCENE, None, NS).facts
    edge.close()


def test_the_guard_compares_probabilities_where_the_server_tells_them(server):
    own, told = said('light: green\nlead: none', 0.6), said('light: red\nlead: none', 0.7)
    server.reply = lambda request: told if len(request['messages']) > 1 else own
    edge = remote(server)
    values = {f.key: f.value for f in edge.answer(GREY, SCENE, CONTEXT, 5 * NS).facts}
    assert values['light'] == 'green'  # 'red' repeats the context, and is little surer
    assert len(server.requests) == 2
    told = said('light: red\nlead: none', 0.99)
    answer = edge.answer(GREY, SCENE, CONTEXT, 5 * NS)
    assert answer.facts[0].value == 'red' and answer.told_keys == {'light'}
    own = said('light: green\nlead: none', 0.99)
    server.requests.clear()
    assert edge.answer(GREY, SCENE, CONTEXT, 5 * NS).facts[0].value == 'green'
    assert len(server.requests) == 1
    edge.close()


def test_without_probabilities_there_is_one_pass_and_the_context_counts(server):
    """The server refuses to be asked for them, too: that is learnt once."""
    def reply(request):
        if 'logprobs' in request:
            return 422, b'{}'
        return said(f'light: {"red" if len(request["messages"]) > 1 else "green"}\nlead: none')
    server.reply = reply
    edge = remote(server)
    edge.warm_up([SCENE])
    server.requests.clear()
    answer = edge.answer(GREY, SCENE, CONTEXT, 5 * NS)
    assert [(f.value, f.confidence) for f in answer.facts] == [('red', 1.0), ('none', 1.0)]
    assert len(server.requests) == 1 and 'response_format' in server.requests[0]
    assert edge.report()['remote.probabilities'].startswith('no')
    edge.close()


def test_a_schema_that_is_refused_is_left_out(server):
    server.reply = lambda request: (400, b'{}') if 'response_format' in request else \
        said('light: red\nlead: none', 0.9)
    edge = remote(server)
    for wanted in (2, 1):
        server.requests.clear()
        assert edge.answer(GREY, SCENE, None, NS).facts[0].confidence == pytest.approx(0.9)
        assert len(server.requests) == wanted
    edge.close()


@pytest.mark.parametrize('tokens,wanted', [
    ([('{"light"', .1), (': "', .1), ('re', .8), ('d', .5), ('", "lead": "none"}', .1)], .4),
    ([('light', .1), (':', .1), (' red', .7), ('\n', .1), ('lead: none', .2)], .7),
    ([('headlight: red\n', .5), ('light:', 1.0), (' red', .3)], .3),
    ([('[{"label": "light", "bbox', .1), ('_2d": [1, 2, 3, 4], "value": "', .1), ('red', .6),
      ('"}]', .1)], .6),
    ([('{"value": "', .1), ('red', .6), ('", "label": "light"}', .1)], .6),
    ([('\ufffd', .5), ('\ufffd', .5)], .25),     # pieces of characters: not clear
    ([], 1.0)])
def test_confidence_is_that_of_the_tokens_of_the_value(tokens, wanted):
    assert confidence(SCENE, Fact('light', 'red', 0), tokens) == pytest.approx(wanted)


@pytest.mark.parametrize('content', [
    'x', [1, None, []], [{'token': 'red', 'logprob': 'high'}], [{'token': 7, 'logprob': -1}],
    [{'token': 'red', 'logprob': -10**400}], [{'token': 'red', 'logprob': float('nan')}],
    [{'token': 'red', 'logprob': 9e9}], [{'logprob': None}] * 500])
def test_probabilities_of_any_kind_are_0_to_1(server, content):
    status, body = said('light: red\nlead: none')
    reply = json.loads(body)
    reply['choices'][0]['logprobs'] = {'content': content}
    server.reply = lambda request: (200, json.dumps(reply).encode())
    edge = remote(server)
    assert all(0.0 <= f.confidence <= 1.0 for f in edge.answer(GREY, SCENE, None, NS).facts)
    edge.close()


def test_a_key_goes_to_its_server_only_and_is_never_shown(server, monkeypatch):
    monkeypatch.setenv('SPOTVLM_API_KEY_EDGE', SECRET)
    with pytest.raises(ValueError, match='remote_plain_key') as caught:
        RemoteEdge(EdgeConfig(remote_url='http://192.168.1.9/v1'))
    assert SECRET not in str(caught.value)
    server.content_type = 'text/event-stream'
    pieces = [f'A dog {SECRET[:n]}' for n in (1, 9)] + [f'A dog {SECRET}, it says.']
    server.reply = lambda request: (200, b''.join(
        b'data: ' + said(piece)[1].replace(b'"message"', b'"delta"') + b'\n\n'
        for piece in pieces))
    edge, shown = remote(server), []
    answer = edge.answer(GREY, WHAT, None, NS, on_text=lambda text, n: shown.append(text))
    assert not re.search(SECRET, answer.text) and '(key)' in answer.text
    assert not any(SECRET in text for text in shown)
    for piece in pieces:
        assert SECRET[:4] not in edge._so_far(WHAT, RawReply(text=piece))
    edge.close()


@pytest.mark.parametrize('values,word', [
    ({'remote_url': 'ftp://x/v1'}, 'remote_url of edge'),
    ({'remote_url': 'http://me:pw@x/v1'}, 'SPOTVLM_API_KEY_EDGE or remote_key_file'),
    ({'remote_key_file': '/no/such/file'}, 'remote_key_file /no/such/file'),
    ({'remote_extra_body': '[1]'}, 'remote_extra_body of edge'),
    ({'focus_backend': 'tokens'}, 'use crop')])
def test_bad_parameters_fail_configure_with_their_names(tmp_path, values, word):
    over = overlay(tmp_path, edge={'remote_url': 'http://x/v1', **values})
    with graph(lambda: [EdgeNode()], files=('driving', over)) as (_, running):
        assert running.failed == ['edge'] and word in running.nodes[-1].last_failure


def codes(probe, since=0):
    """Return the error codes of answers."""
    return {a.error_code for a in probe.answers[since:]}


@pytest.mark.alone
def test_slow_dead_and_mended_servers_never_hold_a_frame_up(server, tmp_path):
    fine = said('{"light": "red", "limit": "none", "lead": "none", "pedestrian": "none"}', 0.99)
    go = threading.Event()

    def reply(request):
        go.wait(20.0)
        return fine
    server.reply = reply
    over = overlay(tmp_path, edge={'remote_url': server.url, 'model': 'm', 'queries': ['scene'],
                                   'scene.deadline_s': 0.3, 'scene.rate_hz': 5.0})

    def is_told(*words):
        level, text = probe.health.get('edge', (None, ''))
        return level != DiagnosticStatus.OK and all(word in text for word in words)
    go.set()
    with graph(lambda: [EdgeNode()], files=('driving', over)) as (probe, _):
        send = send_to(probe.image)
        keep_sending(probe, send, lambda: probe.health.get('edge') == (DiagnosticStatus.OK, 'ok'))
        assert codes(probe) == {Answer.ERROR_NONE}
        assert probe.answers[-1].model == 'm' and probe.answers[-1].facts[0].value == 'red'
        go.clear()
        n, began = len(probe.answers), time.monotonic()
        keep_sending(probe, send, lambda: Answer.ERROR_TIMEOUT in codes(probe, n))
        assert time.monotonic() - began < 5.0
        late = next(a for a in probe.answers[n:] if a.error_code)
        took_s = late.inference.sec + late.inference.nanosec / NS
        assert took_s < 0.45 and not late.facts
        keep_sending(probe, send, lambda: is_told(server.url, 'scene.deadline_s, or'))
        go.set()
        keep_sending(probe, send, lambda: (
            probe.diagnostics['edge']['remote.breaker'] == 'closed'
            and not probe.answers[-1].error_code))
        server.stop()
        n = len(probe.answers)
        keep_sending(probe, send, lambda: Answer.ERROR_MODEL in codes(probe, n)
                     and is_told(server.url, 'is the server running', 'now and then')
                     and probe.diagnostics['edge']['remote.breaker'] != 'closed')
        server.start()
        n = len(probe.answers)
        keep_sending(probe, send, lambda: probe.answers[n:]
                     and probe.answers[-1].error_code == Answer.ERROR_NONE)
        keep_sending(probe, send, lambda: len(probe.answers) > n + 3)
        gaps = np.diff([a.header.stamp.sec + a.header.stamp.nanosec / NS
                        for a in probe.answers])
        assert gaps.max() < 1.5, gaps  # deadline, and the time to the next frame that is due


def test_a_server_that_is_dead_at_the_start_is_asked_later(server, tmp_path):
    server.reply = lambda request: said('stop', 0.9)
    server.stop()
    over = overlay(tmp_path, edge={'remote_url': server.url, 'model': 'm', 'queries': ['action'],
                                   'action.rate_hz': 5.0})
    with graph(lambda: [EdgeNode()], files=('driving', over)) as (probe, _):
        send = send_to(probe.image)
        keep_sending(probe, send, lambda: probe.answers)
        assert server.url in probe.answers[0].error_msg
        server.start()
        keep_sending(probe, send, lambda: not probe.answers[-1].error_code)


def test_ask_is_answered_by_the_server_within_its_timeout(server, tmp_path):
    server.reply = lambda request: said('A dog.')
    over = overlay(tmp_path, edge={'remote_url': server.url, 'model': 'm', 'queries': ['action'],
                                   'action.rate_hz': 0.1})
    with graph(lambda: [EdgeNode()], files=('driving', over)) as (probe, _):
        send = send_to(probe.image)
        keep_sending(probe, send, lambda: probe.answers)
        result = ask(probe, prompt='What?', max_age_s=60.0)
        assert result.error_code == 0 and result.answer.text == 'A dog.'
        gone = threading.Event()
        server.reply = lambda request: gone.wait(20.0) and said('A cat.')
        n = len(server.requests)
        waiting = send_goal(probe, prompt='What?', max_age_s=60.0, timeout_s=1.0)
        wait_for(lambda: len(server.requests) > n)
        wait_for(waiting.done)
        assert waiting.result().result.error_code == result.ERROR_TIMEOUT
        gone.set()


def test_process_wants_the_model_itself():
    with pytest.raises(ParameterError, match='leave it empty'):
        process.load_edge(EdgeConfig(remote_url='http://x/v1'))
