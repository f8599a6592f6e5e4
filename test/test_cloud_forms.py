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
"""Forms in which cloud models give a clear answer; public reports are named beside them."""

import asyncio
import json
import time

from fakes import cloud_server, WHAT
import pytest

from spotvlm_ros.bench.faults.chaos import ChaosServer
from spotvlm_ros.cloud.client import CloudClient
from spotvlm_ros.cloud.errors import CloudError, CloudRefused, CloudReplyError, CloudTimeout
from spotvlm_ros.cloud.parse import parse_reply, REASONING_ONLY
from spotvlm_ros.cloud.reply import RawReply
from spotvlm_ros.method.facts import Query, Region
from spotvlm_ros.method.final_answer import final_answer

SCENE = Query('scene', 'What is on the road?', 'facts', {
    'light': ('none', 'red', 'yellow', 'green'), 'limit': ('none', '30', '50')})
LIMIT = Query('scene', 'What is on the road?', 'facts', {
    'light': ('none', 'red', 'green'), 'limit': ('none', '30', '50')})
ACTION = Query('action', 'What should the car do?', 'choice', {'action': ('stop', 'slow', 'go')})
TEXT = Query('describe', 'Describe the road.', 'text')
SIZE = (640, 480)
RED = '[{"label": "light", "bbox_2d": [100, 200, 300, 400], "value": "red"}]'
BOTH = {'light': 'red', 'limit': '30'}


def reply(text, query=SCENE, **kwargs):
    return parse_reply(query, text, 7, SIZE, **kwargs)


def values(text, query=SCENE, **kwargs):
    return {f.key: f.value for f in reply(text, query, **kwargs).facts}


@pytest.mark.parametrize('before', [  # vllm-project/vllm#17609, #48863 and the models' templates
    '<think>At first {"label": "light", "value": "green"}, but no.</think>\n',
    'Maybe {"label": "light", "value": "green"}.\n</think>\n\n',
    '<thinking budget="9">green: {"light": "green"}</thinking>',
    '<seed:think>{"light": "green"}</seed:think>',
    '<|START_THINKING|>{"light": "green"}<|END_THINKING|>',
    '<|begin_of_thought|>{"light": "green"}<|end_of_thought|>',
    '[THINK]{"light": "green"}[/THINK]', '\u25c1think\u25b7{"light": "green"}\u25c1/think\u25b7',
    '<|channel|>analysis<|message|>{"light": "green"}<|end|><|start|>assistant'
    '<|channel|>final<|message|>', '<|channel>thought\n{"light": "green"}<channel|>',
    '<think>{"light": "green"} <think> again </think> </think>'])
def test_reasoning_is_not_the_answer(before):
    assert reply(before + RED).rejected == []
    assert values(before + RED) == {'light': 'red'}
    assert values(before + 'stop', ACTION) == {'action': 'stop'}
    assert reply(before + 'Wet road.', TEXT).text == 'Wet road.'


@pytest.mark.parametrize('text', ['<think>so so so', '<think>{"light": "red"}</think>',
                                  '<|channel|>analysis<|message|>{"light": "red"}'])
def test_nothing_but_reasoning_is_said_to_be_that(text):
    for query in (SCENE, ACTION, TEXT):
        found = reply(text, query)
        assert (found.facts, found.text, found.rejected) == ((), '', [REASONING_ONLY])


@pytest.mark.parametrize('text', [  # roboflow/inference#2921, #2930, microsoft/OmniParser#220
    '[{"label":"light","value":"red",},{"label":"limit","value":"30",},]',
    '[{"label":"Light","value":"Red"},{"Label":" LIMIT ","Value":"30"}]',
    '{"Light":"Red","Limit":30}', '{"light":"red","limit":30.0}', 'Light: Red\nLimit: 30',
    '- light: red\n- limit: 30', '1. light: red\n2. limit: 30', '**light**: red\n**limit**: 30',
    '**Light:** red\n**Limit:** 30', 'light = red\nlimit = 30', '`light`: `red`\n`limit`: `30`',
    '{"light":{"value":"red","bbox_2d":[1,2,3,4]},"limit":{"value":"30"}}',
    '{"objects":[{"label":"light","value":"red"},{"label":"limit","value":"30"}]}',
    '{"answer":{"light":"red","limit":"30"}}', '{"facts":{"light":"red","limit":"30"}}',
    '{"result":{"facts":[{"label":"light","value":"red"},{"label":"limit","value":"30"}]}}',
    '[{"key":"light","value":"red"},{"key":"limit","value":"30"}]',
    '[{"name":"light","state":"red"},{"name":"limit","answer":30}]',
    "{'light': 'red', 'limit': 30}", "[{'label': 'light', 'value': 'red', 'bbox_2d': None}, "
    "{'label': 'limit', 'value': '30'}]", '{light: "red", limit: 30}',
    '"[{\\"label\\": \\"light\\", \\"value\\": \\"red\\"}, {\\"limit\\": 30}]"',
    '```json\n{"light": "red", "limit": 30}\n```', 'The answer is:\n~~~\n{"light":"red"}\n~~~\n'
    '{"limit": "30"} as asked.', '{&quot;light&quot;: &quot;red&quot;, &quot;limit&quot;: 30}',
    '<answer>{"light": "red", "limit": 30}</answer>',
    '<|begin_of_box|>{"light": "red", "limit": 30}<|end_of_box|>',
    '{"light": "red" "limit": 30}', '// facts\n{"light": "red", /* sign */ "limit": "30"}'])
def test_form_does_not_matter_where_the_value_is_clear(text):
    assert values(text) == BOTH


@pytest.mark.parametrize('text', [
    '```\nstop\n```', '**stop**', '"Stop."', 'action: stop', '{"action": "stop"}', 'Answer: stop',
    '{"answer": {"action": "STOP"}}', '- stop', 'The light is red.\n\nstop', '\\boxed{stop}',
    '<answer>stop</answer>', '**Action:** Stop', 'stop<|im_end|>', '`stop`'])
def test_choice(text):
    assert values(text, ACTION) == {'action': 'stop'}


@pytest.mark.parametrize('text', [
    'stop\ngo', 'Do not stop', 'stop or go', 'action: stop\naction: go', '', 'I would wait.',
    '{"label": "stop"}', '["stop", "go"]'])
def test_an_unclear_choice_is_none(text):
    found = reply(text, ACTION)
    assert not found.facts and found.rejected


@pytest.mark.parametrize('box', [  # google-gemini/cookbook#345, Kimi-VL#56, Qwen3-VL#1137
    '"bbox_2d": [100, 200, 300, 400]', '"bbox": [100, 200, 300, 400]',
    '"box_2d": [200, 100, 400, 300]', '"bbox_2d": [0.1, 0.2, 0.3, 0.4]',
    '"BBox_2D": [100, 200, 300, 400]', '"bbox_2d": [[100, 200], [300, 400]]',
    '"bbox_2d": [[100, 200, 300, 400]]', '"bounding_box": {"x1":100,"y1":200,"x2":300,"y2":400}',
    '"box": {"xmin":100,"ymin":200,"xmax":300,"ymax":400}', '"bbox_2d": "[100, 200, 300, 400]"',
    '"box": {"x":100,"y":200,"width":200,"height":200}', '"bbox_2d": "100, 200, 300, 400"',
    '"box": {"left":"100","top":"200","right":"300","bottom":"400"}'])
def test_boxes_are_read_in_every_spelling(box):
    found = reply(f'[{{"label": "light", "value": "red", {box}}}]')
    assert [(f.value, f.region) for f in found.facts] == [('red', Region(64, 96, 128, 96))]
    assert found.rejected == []


@pytest.mark.parametrize('box', ['"bbox": "left"', '"box_2d": [1, 2, 3]', '"bbox": true',
                                 '"bounding_box": {"a": 1}', '"bbox_2d": [300, 400, 100, 200]',
                                 '"bbox_2d": [4000, 4000, 5000, 5000]', '"box": [true, 1, 2, 3]'])
def test_a_box_that_is_none_is_counted(box):
    found = reply(f'[{{"label": "light", "value": "red", {box}}}]')
    assert [(f.value, f.region) for f in found.facts] == [('red', None)]
    assert found.rejected == ['light: malformed box']


@pytest.mark.parametrize('text', ['[]', '{}', '{"facts": []}', '```json\n[]\n```'])
def test_an_empty_list_says_nothing(text):
    found = reply(text)
    assert not found.facts and found.rejected == ['reply: an empty list tells nothing']


def test_nothing_vanishes_uncounted():
    found = reply('{"light": "red", "weather": "wet", "limit": {"speed": 30}}')
    assert {f.key for f in found.facts} == {'light'}
    assert found.rejected == ["'weather': no such key", 'limit: malformed value']


@pytest.mark.parametrize('text', [
    '{"a":1,' * 2300, "{'" * 5400, '{"a' * 5400, '<think>' * 2300, '</think>' * 2000, '<' * 16000,
    '\\boxed{' * 2300, '{"light":"red' * 1200, 'a {b} ' * 2700, '{' + "'" * 16000 + '}',
    ('{' + '"a" ' * 1000 + '}') * 4, '{"light"' + ' ' * 4000 + ':}' * 3000])
def test_hostile_text_takes_little_time(text):
    began = time.process_time()
    parse_reply(SCENE, text, 7, SIZE)
    assert time.process_time() - began < 1.0


def test_final_answer_keeps_what_only_looks_like_reasoning():
    for text in ('Thinking about it, the road is wet.', 'I think <b>so</b>.', 'a < b and b > c',
                 'The reason: rain.'):
        assert final_answer(text) == text


@pytest.mark.parametrize('text', [
    '| key | value |\n|---|---|\n| light | red |\n| limit | 30 |', 'light: red, limit: 30',
    '<light>red</light>\n<limit>30</limit>', 'light: red; limit: 30', 'Light -> red\nLimit -> 30',
    '- **Light**: Red (ahead)\n- **Limit**: 30 km/h', 'light\uff1ared\nlimit\uff1a30',
    '[["light", "red"], ["limit", "30"]]', '{"facts": {"light": ["red"], "limit": [30]}}',
    '{"objects": [{"name": "light", "attributes": {"value": "red"}}, {"limit": "30 mph"}]}',
    '{"answer": "{\\"light\\": \\"red\\", \\"limit\\": 30}"}', '{"light": "red", "limit": "30"',
    'light: red - it has just changed\nlimit: 30, by the sign'])
def test_more_forms_of_a_clear_answer(text):
    assert values(text, LIMIT) == {'light': 'red', 'limit': '30'}


@pytest.mark.parametrize('text', [
    'light: red or green', 'light: red (or green)', 'light: not red', 'The light: red lamps',
    'light: red, green', '["light", "limit"]', '{"light": ["red", "green"]}', 'light: 30 km/h'])
def test_what_names_two_choices_or_speaks_of_one_is_none(text):
    assert 'light' not in values(text, LIMIT)


@pytest.mark.parametrize('text', ['{"answer": "stop"}', '{"decision": "STOP!"}', '["stop"]',
                                  '(stop)', '{"action": ["stop"]}', 'stop (red light)'])
def test_more_forms_of_a_clear_choice(text):
    assert values(text, ACTION) == {'action': 'stop'}


@pytest.mark.parametrize('token', ['<|im_end|>', '<|eot_id|>', '<end_of_turn>', '</s>',
                                   '<end_of_utterance>', '<|endoftext|>'])
def test_what_follows_the_end_of_the_turn_is_not_the_answer(token):
    """A server that does not stop there lets the model play the others, too."""
    more = f'{token}\n<|im_start|>user\nAnd now?{token}\n<|im_start|>assistant\n'
    reply = parse_reply(SCENE, RED + more + RED.replace('red', 'green'), 7, SIZE)
    assert [f.value for f in reply.facts] == ['red'] and not reply.rejected
    text = parse_reply(TEXT, f'A red light.{more}A green light.', 7, SIZE)
    assert text.text == 'A red light.' and not text.suspicious


@pytest.mark.parametrize('text', [
    'The <|object_ref_start|>car<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|> brakes.',
    'The <ref>car</ref><box>(1,2),(3,4)</box> brakes.', 'The <phrase>car</phrase> brakes.',
    'The car<loc0001><loc0022> brakes.'])
def test_grounding_tokens_are_no_part_of_a_text(text):
    assert parse_reply(TEXT, text, 7, SIZE).text == 'The car brakes.'


def asked(server, query=WHAT, times=1, reply=None):
    """Ask a server some times; return its replies."""
    async def ask():
        client = CloudClient(cloud_server(server.url, deadline_s=20.0))
        try:
            return [await client.ask(b'jpeg', query, reply=reply)
                    for _ in range(times)]
        finally:
            await client.close()
    return asyncio.run(ask())


def sent(server, message, finish='stop', stream=False, done=True, usage=None):
    """Have the server send a message, whole or streamed, and ask it once; return the reply."""
    choice = {'index': 0, 'finish_reason': finish, 'delta' if stream else 'message': message}
    data = json.dumps({'choices': [choice], 'usage': usage}).encode()
    if stream:
        data = b'data: ' + data + b'\n\n' + b'data: [DONE]\n\n' * done
    server.content_type = 'text/event-stream' if stream else 'application/json'
    server.reply = lambda request: (200, data)
    return asked(server)[0]


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('content', [
    [{'type': 'text', 'text': RED}], [{'type': 'text', 'text': RED[:9]}, {'text': RED[9:]}],
    [{'type': 'thinking', 'thinking': [{'type': 'text', 'text': 'green'}]},
     {'type': 'text', 'text': RED}, 7, {'type': 'image'}]])
def test_a_message_may_be_a_list_of_parts(server, content, stream):
    """Mistral's is (microsoft/agent-framework#6978)."""
    assert sent(server, {'role': 'assistant', 'content': content}, stream=stream).text == RED


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('field', ['reasoning_content', 'reasoning'])
def test_reasoning_beside_the_text_is_not_the_answer(server, field, stream):
    message = {'content': RED, field: '{"light": "green"}'}
    assert sent(server, message, stream=stream).text == RED
    with pytest.raises(CloudReplyError, match='nothing but reasoning; raise max_tokens'):
        sent(server, {'content': None, field: 'so ' * 99}, finish='length', stream=stream)


@pytest.mark.parametrize('finish', [None, '', 'stop'])
@pytest.mark.parametrize('done', [False, True])
def test_a_stream_that_ends_is_whole_however_it_says_so(server, finish, done):
    assert sent(server, {'content': RED}, finish, stream=True, done=done).text == RED


@pytest.mark.parametrize('usage', [
    None, {}, {'prompt_tokens': 0, 'completion_tokens': 0}, {'prompt_tokens': -1},
    {'prompt_tokens': 5, 'completion_tokens': 0}, {'prompt_tokens': True, 'completion_tokens': 1}])
def test_nonsense_about_usage_is_no_usage(server, usage):
    """A server that says 0 switched budgets off."""
    assert sent(server, {'content': RED}, usage=usage).usage is None


@pytest.mark.parametrize('status', [400, 415, 422, 500, 501])
def test_a_server_that_knows_no_schemas_is_asked_without(server, status):
    """The status is 500 with llama-cpp-python (ggml-org/llama.cpp#23463)."""
    server.content = RED
    server.reply = lambda request: (status, b'{}') if 'response_format' in request \
        else server.fine(request)
    assert [r.text for r in asked(server, SCENE, 3)] == [RED] * 3
    assert len(server.requests) == 4


def test_a_server_that_fails_is_not_asked_in_every_form(server):
    server.reply = lambda request: (500, b'{}')
    with pytest.raises(CloudRefused, match='HTTP 500'):
        asked(server, SCENE)
    assert len(server.requests) == 2


def test_what_a_server_does_not_take_is_named(server):
    server.reply = lambda request: (400, b'{}')
    with pytest.raises(CloudRefused, match='temperature.*max_tokens_field'):
        asked(server)


@pytest.mark.parametrize('fault', ['endless_headers', 'endless_1xx', 'chunk_extensions'])
def test_bytes_that_no_body_shows_are_bounded_and_counted(fault):
    """Chunk extensions took 1.7 GB in one request."""
    server = ChaosServer()
    server.fault = fault
    reply = RawReply()
    began = time.process_time()
    try:
        with pytest.raises(CloudError) as error:
            asked(server, reply=reply)
    finally:
        server.stop()
    assert not isinstance(error.value, CloudTimeout)
    assert 10_000 < reply.bytes_received < 800_000
    assert time.process_time() - began < 3.0
