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
"""What was said about standing queries at run time, laid over a node's parameters."""

import pytest
from spotvlm_ros.config.profiles import find_profile, load_profile
from spotvlm_ros.config.query_changes import MAX_QUERIES, QueryChanges, read_definition
from spotvlm_ros.config.spec import ParameterError

OWN = load_profile(str(find_profile('driving'))).sections['edge']
DOOR = "prompt: Is the door open?\nformat: choice\nchoices: ['yes', 'no']"


def after(*steps, own=OWN):
    """Return the changes after steps, each an id and a definition, or an id that is removed."""
    changes = QueryChanges()
    for step in steps:
        if isinstance(step, str):
            changes = changes.without(step, own)
        else:
            changes = changes.with_query(step[0], read_definition(*step), own)
        changes.checked(own, 'edge')
    return changes


def queries(changes, own=OWN):
    """Return the queries by id, after a way through text."""
    assert QueryChanges.parse(changes.text()) == changes
    return {q.id: q for q in QueryChanges.parse(changes.text()).checked(own, 'edge')[1]}


def test_what_is_left_out_stays_as_it_is_or_is_the_default():
    now = queries(after(('scene', 'rate_hz: 2'), ('door', DOOR), ('door', 'ttl_s: {door: 3.0}'),
                        ('scene', 'ttl_s: {light: 4.0}'), 'action'))
    assert list(now) == ['scene', 'door']
    assert now['scene'].rate_hz == 2.0 and now['scene'].prompt == 'What is on the road?'
    assert dict(now['scene'].ttl_s) == {**dict.fromkeys(now['scene'].keys, 9.0), 'light': 4.0,
                                        'default': 9.0}
    assert now['door'].choices['door'] == ('yes', 'no') and now['door'].rate_hz == 5.0
    assert now['door'].ttl_s['door'] == 3.0
    assert queries(QueryChanges()) == queries(after(('door', DOOR), 'door'))


def test_a_query_added_again_has_nothing_of_what_it_was():
    with pytest.raises(ParameterError, match='scene.prompt is empty'):
        after('scene', ('scene', 'keys: [light]\nchoices: {light: [red, green]}'))
    again = queries(after('scene', ('scene', DOOR.replace('door', 'gate'))))['scene']
    assert again.format == 'choice' and again.rate_hz == 5.0 and again.cloud_period_s == 1.0


def test_other_keys_take_what_belonged_to_the_old_ones_with_them():
    first = 'prompt: What?\nkeys: [a, b]\nchoices: {a: [x, y], b: [x, y]}\nttl_s: {a: 2.0}'
    now = queries(after(('q', first), ('q', 'keys: [c]\nchoices: {c: [x, y]}')))['q']
    assert now.keys == ('c',) and set(now.ttl_s) == {'c', 'default'}


def test_each_node_keeps_what_only_its_own_parameters_say():
    cloud = {**OWN, 'scene.cloud_prompt': 'Describe the road.', 'scene.rate_hz': 6.0}
    changes = after(('scene', 'rate_hz: 2.0'))
    assert queries(changes, cloud)['scene'].cloud.prompt == 'Describe the road.'
    alone = {k: v for k, v in OWN.items() if not k.startswith('scene.')} | {'queries': ['action']}
    assert list(queries(changes, alone)) == ['action']  # this node was never told of scene


@pytest.mark.parametrize('query_id, text, named', [
    ('1st', DOOR, "query_id is '1st'"), ('fallback', DOOR, "query_id is 'fallback'"),
    ('a' * 41, DOOR, 'query_id'), ('door', '', 'has no fields'), ('door', '[1]', 'no fields'),
    ('door', f'{DOOR}\nrate: 2.0', 'unknown parameter door.rate; did you mean door.rate_hz'),
    ('door', f'{DOOR}\nrate_hz: 1000', 'door.rate_hz is 1000.0; use 0.01 to 100'),
    ('door', f'{DOOR}\nrate_hz: fast', 'door.rate_hz must be a number'),
    ('door', f'{DOOR}\nrate_hz: .nan', 'door.rate_hz is nan'),
    ('door', 'prompt: Is it?\nformat: choice\nchoices: [yes, no]', 'door.choices must be a list'),
    ('door', 'format: text', 'door.prompt is empty'),
    ('door', 'prompt: "Hi<|im_end|>"\nformat: text', "door.prompt holds '<'"),
    ('door', 'prompt: "Hi\\x1b"\nformat: text', 'door.prompt holds'),
    ('door', 'prompt: "\uff1cimage\uff1e"\nformat: text', "door.prompt holds '<'"),
    ('door', 'prompt: a\nprompt: b', 'prompt stands twice'),
    ('door', 'prompt: a\nchoices: &a [*a]', 'nest too deeply'),
    ('door', 'prompt: ' + 'a' * 9000, 'has 9008 characters; use at most 8192'),
    ('door', f'prompt: a\nformat: choice\nchoices: {[f"v{i}" for i in range(65)]}',
     'door has 65 choices; use at most 64'),
    ('scene', 'keys: [light, sign]', 'sign'),
    ('scene', 'meanings: {light: ["blue: cold"]}', 'blue'),
])
def test_a_refusal_names_the_field(query_id, text, named):
    with pytest.raises(ParameterError) as caught:
        after((query_id, text))
    assert named in str(caught.value)


def test_there_is_one_query_at_least_and_not_too_many():
    with pytest.raises(ParameterError, match='queries is empty'):
        after('scene', 'action')
    with pytest.raises(ParameterError, match="no query 'door'; there are scene, action"):
        after('door')
    with pytest.raises(ParameterError, match='17 queries are too many; remove one'):
        after(*((f'door{i}', DOOR) for i in range(MAX_QUERIES)))


@pytest.mark.parametrize('text', ['[1]', 'more: {}', 'removed: scene', 'added: [a]',
                                  'added: {a: b}', 'changed: {1: {}}', 'a' * 300_000, '{', '\0'])
def test_what_holds_no_changes_is_refused(text):
    with pytest.raises(ParameterError):
        QueryChanges.parse(text)
