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
"""A checkpoint that answers several at once: as alone, within a schema, not longer than asked."""

from dataclasses import replace
import json

import pytest
from spotvlm_ros.bench.fleet.measured import requests
from spotvlm_ros.cloud.wording import response_format
from spotvlm_ros.config.profiles import load_profile
from spotvlm_ros.edge.engine import Engine
from spotvlm_ros.mini.shipped import checkpoint_path
from spotvlm_ros.serving.alone import Habits
from spotvlm_ros.serving.chat import ChatRequest
from test_cloud_server import chat, GREY

NOBODY = (lambda i: False)


@pytest.fixture(scope='module')
def checkpoint():
    from spotvlm_ros.serving.checkpoint import Checkpoint
    return Checkpoint(checkpoint_path('spot-mini-cloud'))


@pytest.fixture(scope='module')
def asked(checkpoint):
    return requests(checkpoint, 'driving', 'spot-mini-cloud')


def question(text, **more):
    return ChatRequest.model_validate({'model': 'm', 'messages': [{'role': 'user', 'content': [
        {'type': 'image_url', 'image_url': {'url': GREY}}, {'type': 'text', 'text': text}]}],
        **more})


def test_a_batch_says_what_each_says_alone(checkpoint, asked):
    alone = [checkpoint.answer([p], NOBODY)[0] for p in asked[:4]]
    assert checkpoint.together(asked[:4], NOBODY) == alone
    assert len({reply.text for reply in alone}) > 1 and all(r.finished for r in alone)


@pytest.mark.parametrize('schema', [False, True])
def test_drafts_save_passes_and_change_no_reply(checkpoint, asked, monkeypatch, schema):
    if schema:
        pytest.importorskip('llguidance', reason='pip install llguidance')
        query = load_profile('driving').queries('cloud')[0]
        text = json.dumps(response_format(query)['json_schema']['schema'])
        asked = [replace(p, schema=text, max_tokens=60) for p in asked]
        checkpoint.prepare(question('x', response_format=response_format(query)))
    engine, counted = Engine.answer, []
    monkeypatch.setattr(Engine, 'answer', lambda *args: counted.append(engine(*args)) or
                        counted[-1])
    limits = (7, asked[0].max_tokens)
    limited = [replace(p, max_tokens=limit) for p, limit in zip(asked, limits)]
    assert [checkpoint.answer([p], NOBODY) for p in limited] == [
        checkpoint.together([p], NOBODY) for p in limited]
    checkpoint.answer(asked[2:5], NOBODY)
    assert sum(d.passes for d in counted[-3:]) < 0.7 * sum(len(d.tokens) for d in counted[-3:])


def test_habits_are_those_of_the_longest_context_and_of_late():
    habits = Habits()
    assert habits.draft([], 4) == habits.draft([1, 2], 4) == []
    habits.learn([1, 2, 3, 9])
    habits.learn([1, 5, 2, 4, 9])
    assert habits.draft([], 9) == [1, 5, 2, 4, 9]
    assert habits.draft([1, 2], 2) == [3, 9] and habits.draft([7, 2], 1) == [4]
    assert habits.draft([1], 0) == []


@pytest.mark.parametrize('case', ['warm', 'text', 'padding'])
def test_what_the_engine_does_not_take_is_answered_all_the_same(checkpoint, asked, case):
    if case == 'text':
        prepared = checkpoint.prepare(ChatRequest.model_validate({
            'model': 'm', 'max_tokens': 3, 'messages': [{'role': 'user', 'content': 'Hello?'}]}))
    elif case == 'warm':
        prepared = checkpoint.prepare(question('What?', temperature=1.0, max_tokens=3))
    else:
        mask = asked[0].inputs['pixel_attention_mask'].clone()
        mask[:, 1:] = 0
        prepared = replace(asked[0], max_tokens=3, inputs={
            **asked[0].inputs, 'pixel_attention_mask': mask})
    reply, = checkpoint.answer([prepared], NOBODY)
    assert 0 < reply.tokens <= 3


def test_prompts_of_other_lengths_and_limits_share_a_batch(checkpoint):
    prepared = [checkpoint.prepare(question(text, max_tokens=limit)) for text, limit in (
        ('What should the car do?', 4), ('What?', 9), ('Stop or go, or anything else?', 2))]
    assert len({p.kind for p in prepared}) == 1
    alone = [checkpoint.answer([p], NOBODY)[0] for p in prepared]
    together = checkpoint.answer(prepared, NOBODY)
    assert together == alone
    assert all(r.tokens <= p.max_tokens for p, r in zip(prepared, together))


def test_what_nobody_waits_for_is_not_gone_on_with(checkpoint, asked):
    long, gone = checkpoint.answer(asked[:2], lambda i: i == 1)
    assert long.finished and not gone.finished and len(gone.text) < len(long.text) / 4


def test_pictures_of_other_sizes_are_computed_apart(checkpoint, asked):
    assert checkpoint.prepare(question('What?')).kind != asked[0].kind == asked[1].kind


@pytest.mark.parametrize('url', ['data:image/png;base64,AAAA', 'data:image/png;base64,%%',
                                 'data:image/jpeg;base64,'])
def test_a_picture_that_is_none_is_refused(checkpoint, url):
    with pytest.raises(ValueError, match='picture'):
        checkpoint.prepare(ChatRequest.model_validate(chat(url)))


def test_replies_keep_to_the_schema_whatever_the_model_would_say(checkpoint):
    pytest.importorskip('llguidance', reason='pip install llguidance')
    for query in load_profile('driving').queries('cloud'):
        prepared = [checkpoint.prepare(question(
            text, response_format=response_format(query), max_tokens=400))
            for text in ('Say anything.', query.prompt)]
        free = checkpoint.prepare(question('Say anything.', max_tokens=400))
        *held, said = checkpoint.answer([*prepared, free], NOBODY)
        for reply in held:
            if not reply.finished:    # a list may go on, to max_tokens
                continue
            facts = json.loads(reply.text)
            assert set(facts) == ({'facts'} if query.format == 'facts' else {query.id})
        assert said.text == checkpoint.answer([free], NOBODY)[0].text
    with pytest.raises(ValueError, match='response_format'):
        checkpoint.prepare(question('x', response_format={
            'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'type': 'nothing'}}}))


def test_what_is_more_than_the_model_takes_is_refused_or_cut(checkpoint):
    """A billion tokens of a reply were made room for; sixty pictures were begun with."""
    prepared = checkpoint.prepare(question('What?', max_tokens=10**9))
    assert prepared.max_tokens + prepared.inputs['input_ids'].shape[1] <= 2048
    picture = {'type': 'image_url', 'image_url': {'url': GREY}}
    for content, said in (('word ' * 3000, 'messages: .* tokens.*send less'),
                          ([picture] * 17, 'messages: 17 pictures; send at most 16'),
                          ([picture] * 3, 'messages: .* tokens.*fewer or smaller pictures'),
                          ('<image> what?', 'messages: .*special tokens')):
        with pytest.raises(ValueError, match=said):
            checkpoint.prepare(ChatRequest.model_validate(
                {'model': 'm', 'messages': [{'role': 'user', 'content': content}]}))


def test_a_gpu_is_warm_before_robots_ask(checkpoint, monkeypatch):
    """What the first batch takes would be what the next ones are refused by."""
    sizes, answer = [], checkpoint.answer
    monkeypatch.setattr(checkpoint, 'answer', lambda batch, gone: sizes.append(len(batch)) or
                        answer(batch, gone))
    checkpoint._warm_up()
    assert sizes == [1, 2]
