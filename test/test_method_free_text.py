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
"""Free text: what of it is shown, and what is not shown as an answer."""

from dataclasses import replace
import json
import time

from hypothesis import given, strategies as st
import numpy as np
import pytest

from spotvlm_ros.cloud.parse import parse_reply
from spotvlm_ros.method.facts import Query
from spotvlm_ros.method.free_text import free_text, MAX_FREE_TEXT
from spotvlm_ros.mini.driving.scene import ACTION, SCENE
import tiny

DESCRIBE = Query('describe', 'Describe.', 'text')
SAID = 'A red car waits at the light.'


@pytest.mark.parametrize('text', [
    SAID, f'  {SAID}\n', f'<think>A green one?</think>{SAID}', f'{SAID}<|im_end|>',
    f'<s>{SAID}</s>', f'<fake_token_around_image><global-img><image>{SAID}<end_of_utterance>',
    f'<row_1_col_2>{SAID}<unused7>', SAID.replace(' ', '\u0120'), SAID.replace(' ', '\u2581'),
    f'\ufffd{SAID}\ufffd', f'{SAID}\x00\x07\ue000', f'<start_of_image>{SAID}<0x0A>',
    f'```json\n{json.dumps({"description": SAID})}\n```', json.dumps([SAID]),
    json.dumps(json.dumps({'text': SAID})), json.dumps({'a': {'b': [SAID]}}),
    f'{SAID} [PAD][PAD]'])
def test_the_words_are_shown(text):
    assert free_text(text) == (SAID, '')


@pytest.mark.parametrize('text, shown', [
    ('{"description": "A red car wai', 'description: A red car wai'),
    ('{"a": "red", "b": ["x", 2]}', 'a: red\nb: x\nb: 2'),
    ('[{"a": "red"}, {"b": "blue"', 'a: red b: blue'),
    ('It says "stop" [1] {x}, 3 < 4 and <b>.', 'It says "stop" [1] {x}, 3 < 4 and <b>.'),
    ('Stra\u00dfe, \u8eca\u4e21, \u0645\u0631\u062d\u0628\u0627, e\u0301, \U0001f697',
     'Stra\u00dfe, \u8eca\u4e21, \u0645\u0631\u062d\u0628\u0627, e\u0301, \U0001f697'),
    ('Two lines,\n\n of text.', 'Two lines,\nof text.'),
    ('------ 1000000000 ha ha ha', '------ 1000000000 ha ha ha'),
    ('A red car is stopped here. ' * 12, 'A red car is stopped here. (12 times)'),
    ('The road is wet and empty. ' + 'no ' * 30, 'The road is wet and empty. no (30 times)')])
def test_what_is_shown(text, shown):
    assert free_text(text) == (shown, '')


@pytest.mark.parametrize('text, why', [
    ('the ' * 60, "'the', 60 times"), ('!' * 64, "'!', 64 times"),
    ('light: ' * 20 + 'li', "'light:', 20"),
    ('\ufffd\ufffda\ufffd\ufffd', 'unreadable'), ('\ue000\x01\x02 b', 'unreadable'),
    ('Sure: ' + '0' * 500, "'0'")])
def test_what_is_no_answer(text, why):
    shown, said = free_text(text)
    assert not shown and why in said and 'check the model' in said and len(said) < 160
    reply = parse_reply(DESCRIBE, text, 7, (640, 480))
    assert not reply.text and reply.rejected == [said]


@pytest.mark.parametrize('seed', range(3))
def test_a_model_with_random_weights(seed):
    frame = np.full((96, 128, 3), 200, np.uint8)
    for family in ('idefics3', 'gemma3'):
        model = tiny.edge_model(*tiny.checkpoint(family, seed))
        streamed = []
        answer = model.answer(frame, replace(DESCRIBE, max_new_tokens=60), None, 1,
                              on_text=lambda text, tokens: streamed.append(text))
        assert bool(answer.text) == (not answer.rejected)
        for text in (answer.text, *streamed):
            assert '\ufffd' not in text and all(c.isprintable() or c == '\n' for c in text)


@given(st.text(max_size=300) | st.text('ab{}[]":,\\ \ufffd<|>', max_size=300))
def test_any_text_gives_words_or_a_reason(text):
    shown, why = free_text(text)
    assert not (shown and why) and '\ufffd' not in shown and '\x1b' not in shown
    assert len(shown) <= MAX_FREE_TEXT + 40 * (1 + len(text) // 8)


@pytest.mark.parametrize('text', ['{' * 200_000, '["a",' * 40_000, 'ab' * 100_000, '<|' * 100_000,
                                  ''.join(chr(33 + i * i % 90) for i in range(200_000))])
def test_time_and_length_are_bounded(text):
    began = time.perf_counter()
    assert len(free_text(text)[0]) < 2 * MAX_FREE_TEXT
    assert time.perf_counter() - began < 2.0


@pytest.mark.parametrize('query, reply, text', [
    (SCENE, '```json\n[{"label": "light", "value": "red", "bbox_2d": [1, 2, 30, 40]}, '
     '{"label": "limit", "value": 30}, {"label": "cat", "value": 1}]```', 'light: red\nlimit: 30'),
    (SCENE, '{"limit": "50", "light": "green"}', 'light: green\nlimit: 50'),
    (SCENE, '<think>red</think>I cannot say {x', ''), (ACTION, '{"action": "slow"}', 'slow'),
    (ACTION, 'go or slow', '')])
def test_the_text_of_the_cloud_is_what_its_facts_say(query, reply, text):
    assert parse_reply(query, reply, 7, (640, 480)).text == text
