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

import json

import pytest
from spotvlm_ros.bench.fleet.measured import requests
from spotvlm_ros.cloud.wording import response_format
from spotvlm_ros.config.profiles import load_profile
from spotvlm_ros.mini.shipped import checkpoint_path
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
    assert checkpoint.answer(asked[:4], NOBODY) == alone
    assert len({reply.text for reply in alone}) > 1 and all(r.finished for r in alone)


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
