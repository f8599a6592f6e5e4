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
"""Replies of cloud models, good, bad and hostile."""

import json

from hypothesis import given, strategies as st
import pytest

from spotvlm_ros.cloud.parse import parse_reply
from spotvlm_ros.method.facts import Query, Region

SCENE = Query('scene', 'What is on the road?', 'facts', {
    'light': ('none', 'red', 'green'), 'limit': ('none', '30')})
ACTION = Query('action', 'What now?', 'choice', {'action': ('stop', 'go')})
SIZE = (640, 480)
LIGHT = '{"label": "light", "bbox_2d": [100, 200, 300, 400], "value": "red"}'
LIMIT = '{"label": "limit", "value": 30}'


def values(text, query=SCENE, **kwargs):
    return {f.key: f.value for f in parse_reply(query, text, 7, SIZE, **kwargs).facts}


@pytest.mark.parametrize('text', [
    f'[{LIGHT}, {LIMIT}]',
    f'```json\n[{LIGHT}, {LIMIT}]\n```',
    f'Sure! Here you are: {LIGHT} and {LIMIT}. Bye {{',
    f'[{LIGHT}, {LIMIT}, {{"label": "li',
    f'{LIGHT}\n{LIMIT}',
    '{"light": "Red.", "limit": 30}',
    'light: red\nlimit: 30',
])
def test_forms(text):
    assert values(text) == {'light': 'red', 'limit': '30'}


def test_boxes():
    relative = parse_reply(SCENE, LIGHT, 7, SIZE).facts[0]
    assert relative.region == Region(64, 96, 128, 96) and relative.stamp_ns == 7
    pixels = parse_reply(SCENE, LIGHT, 7, SIZE, 0.5, 'pixels').facts[0]
    assert pixels.region == Region(200, 400, 400, 80)  # clipped to the frame


@pytest.mark.parametrize('box', [
    [1, 2, 3], 'no', [300, 200, 100, 400], [2000, 2000, 3000, 3000], ['a', 1, 2, 3],
    [1e400, 0, 1, 1], [float('nan'), 0, 10, 10], {'x': 1}, [[1, 2], [3, 4]], [0, 0, 1e-9, 1e-9]])
def test_malformed_box_keeps_the_value(box):
    text = json.dumps({'label': 'light', 'bbox_2d': box, 'value': 'red'})
    reply = parse_reply(SCENE, text, 7, SIZE)
    assert [(f.value, f.region) for f in reply.facts] == [('red', None)]
    assert reply.rejected == ['light: malformed box']


@pytest.mark.parametrize('text', [
    '{"label": "weather", "value": "sunny"}', '{"label": "light", "value": "purple"}',
    '{"label": "light"}', '{"label": 3, "value": "red"}',
    '{"label": "light", "value": ["red", "green"]}'])
def test_unknown_is_dropped_and_counted(text):
    reply = parse_reply(SCENE, text, 7, SIZE)
    assert not reply.facts and len(reply.rejected) == 1


def test_first_of_two_counts():
    other = '{"label": "light", "value": "green"}'
    reply = parse_reply(SCENE, f'[{LIGHT}, {other}]', 7, SIZE)
    assert reply.facts[0].value == 'red' and reply.rejected == ['light: answered twice']


def test_choice():
    assert values('Stop.', ACTION) == {'action': 'stop'}
    assert parse_reply(ACTION, 'perhaps', 7, SIZE).rejected


def test_text_is_neutralised():
    query = Query('describe', 'Describe.', 'text')
    assert parse_reply(query, '{<b>}\x00 hi', 7, SIZE).text == '((b)) hi'


@given(st.text(alphabet='{}[]":,labevuxbo_2d019.eE-+ntriu\\ ', max_size=400) | st.text())
def test_never_raises(text):
    for query in (SCENE, ACTION):
        for fact in parse_reply(query, text, 7, SIZE).facts:
            assert fact.value in query.choices[fact.key]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda x: st.lists(x) | st.dictionaries(
                        st.sampled_from(['label', 'bbox_2d', 'value', 'light', 'red']), x),
                    max_leaves=20))
def test_never_raises_on_json(tree):
    for fact in parse_reply(SCENE, json.dumps(tree), 7, SIZE).facts:
        assert fact.region is None or fact.region.clipped(*SIZE) == fact.region


@pytest.mark.parametrize('text', ['{' * 100_000, '{"a":' * 20_000, '[' * 100_000,
                                  '{"label": "light", "value": ' + '9' * 20_000 + '}'])
def test_hostile_size_is_quick(text):
    assert not parse_reply(SCENE, text, 7, SIZE).facts
