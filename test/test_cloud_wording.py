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
"""What goes over the wire: one request that asks for one thing, in words and as a schema."""

import asyncio
import json
from pathlib import Path
import re

from fakes import cloud_server, FakeServer
import pytest
from spotvlm_ros.cloud.client import CloudClient
from spotvlm_ros.cloud.parse import parse_reply
from spotvlm_ros.cloud.wording import ask_text, response_format
from spotvlm_ros.config.nodes import ServerConfig
from spotvlm_ros.config.profiles import load_profile
from spotvlm_ros.method.facts import Query
from spotvlm_ros.method.prompt import question
from spotvlm_ros.mini.shipped import checkpoint_path, REPLY_FORM, trained_reply_form
from spotvlm_ros.mini.training.dataset import CLOUD_REPLY_FORM

SCENE = Query('scene', 'What is on the road?', 'facts', {
    'light': ('none', 'red', 'green'), 'lane': ('left', 'right')})
ACTION = Query('action', 'What should the car do?', 'choice', {'action': ('stop', 'go')})
TEXT = Query('t', 'Describe.', 'text')


@pytest.fixture
def server():
    fake = FakeServer()
    yield fake
    fake.stop()


def wire(server, query, **config):
    """Ask a server once; return the bodies that it got."""
    async def ask():
        client = CloudClient(cloud_server(server.url, **config))
        try:
            await client.ask(b'jpeg', query)
        finally:
            await client.close()
    asyncio.run(ask())
    return server.requests


def said(body):
    """Return the text of a request."""
    return body['messages'][-1]['content'][-1]['text']


def example(text, values):
    """Return the reply that the words of a request show, with values in the places of names."""
    shown = re.search(r'[{\[].*[}\]]', text.splitlines()[-3] if 'bbox_2d:' in text
                      else text.splitlines()[-1])[0].replace(', ...', '')
    for name, value in values.items():
        shown = re.sub(rf'\b{name}\b(?!"|\d)', json.dumps(value), shown)
    return json.loads(shown)


def check(schema, value):
    """Assert that a value follows the schema, as far as ours go."""
    if 'anyOf' in schema:
        for option in schema['anyOf']:
            try:
                return check(option, value)
            except AssertionError:
                continue
        raise AssertionError(value)
    assert schema['type'] == {dict: 'object', list: 'array', str: 'string', int: 'number',
                              type(None): 'null'}[type(value)]
    assert value in schema.get('enum', [value])
    if isinstance(value, dict):
        assert set(value) == set(schema['required']) == set(schema['properties'])
        for name, part in schema['properties'].items():
            check(part, value[name])
    elif isinstance(value, list):
        for element in value:
            check(schema['items'], element)


NAMES = {'key': 'light', 'value': 'red', 'x1': 100, 'y1': 200, 'x2': 300, 'y2': 400}


@pytest.mark.parametrize('scale, size', [('relative', (1000, 1000)), ('pixels', (640, 480))])
def test_the_reply_that_the_words_show_follows_the_schema_sent_beside_them(server, scale, size):
    body, = wire(server, SCENE, box_scale=scale)
    shown = example(said(body), NAMES)
    check(body['response_format']['json_schema']['schema'], shown)
    answer = parse_reply(SCENE, json.dumps(shown), 7, size, 1.0, scale)
    assert not answer.rejected
    assert (answer.facts[0].value, answer.facts[0].region.x) == ('red', 100)
    assert ('0 to 1000' in said(body)) == (scale == 'relative')
    assert ('in pixels' in said(body)) == (scale == 'pixels')
    assert '"none"' in said(body) and 'null where' in said(body)


def test_a_choice_is_asked_for_in_the_form_of_its_schema(server):
    body, = wire(server, ACTION)
    shown = example(said(body), {'the one that holds': 'go'})
    check(body['response_format']['json_schema']['schema'], shown)
    assert parse_reply(ACTION, json.dumps(shown), 7, (9, 9)).facts[0].value == 'go'


@pytest.mark.parametrize('query', [SCENE, ACTION])
def test_without_a_schema_the_words_ask_for_the_free_form(server, query):
    """So, too, where the server refused the schema."""
    server.reply = lambda request: (422, b'{}') if 'response_format' in request \
        else server.fine(request)
    refused, free = wire(server, query)
    assert said(refused) != said(free) and 'response_format' not in free
    plain, = wire(server, query, structured_output=False)[2:]
    assert said(plain) == said(free)
    if query is SCENE:
        shown = example(said(free), NAMES)
        assert isinstance(shown, list)
        assert not parse_reply(SCENE, json.dumps(shown), 7, (640, 480)).rejected
        assert 'left out where' in said(free)


def test_free_text_has_no_form(server):
    body, = wire(server, TEXT)
    assert said(body) == 'Describe.' and 'response_format' not in body


def test_a_system_text_goes_before_the_question(server):
    body, = wire(server, TEXT, system_prompt='You drive.')
    assert body['messages'][0] == {'role': 'system', 'content': 'You drive.'}


def test_a_form_of_the_owners_is_not_contradicted_by_a_schema(server):
    body, = wire(server, SCENE, reply_form='As YAML.')
    assert said(body) == question(SCENE) + '\nAs YAML.'
    assert 'response_format' not in body


def test_the_shipped_cloud_model_is_asked_as_it_was_trained():
    from spotvlm_ros.cloud.client import cloud_server as configured
    shipped = checkpoint_path('spot-mini-cloud')
    assert (shipped / REPLY_FORM).read_text().strip() == CLOUD_REPLY_FORM
    url = 'http://127.0.0.1:9/v1'
    for model, form in (('spot-mini-cloud', CLOUD_REPLY_FORM), (str(shipped), CLOUD_REPLY_FORM),
                        ('Qwen/Qwen3-VL-8B-Instruct', '')):
        server = configured(ServerConfig(base_url=url, model=model))
        assert server.config.reply_form == form
    own = ServerConfig(base_url=url, model='spot-mini-cloud', reply_form='As YAML.')
    assert configured(own).config.reply_form == 'As YAML.'


def test_a_form_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / REPLY_FORM).write_bytes('caf\xe9'.encode('latin-1'))
    with pytest.raises(ValueError, match=f'{REPLY_FORM} byte 3 is not UTF-8'):
        trained_reply_form(str(tmp_path))


def test_the_words_for_the_cloud_are_parameters(tmp_path: Path):
    file = tmp_path / 'mine.yaml'
    file.write_text("""
/**:
  ros__parameters:
    scene:
      cloud_prompt: What do you see ahead?
      cloud_examples: ['light: red']
      meanings:
        light: ['red: we must stop: now', 'green: we may go']
    action:
      meanings:
        action: ['go: the way is free']
""")
    scene, action = load_profile('driving', [file]).queries('cloud')
    text = ask_text(scene, ServerConfig(), True)
    assert text.startswith('What do you see ahead?')
    assert 'light: red means we must stop: now' in text and text.endswith('Examples:\nlight: red')
    assert 'action: go means the way is free' in ask_text(action, ServerConfig(), False)
    for bad, why in (("['red']", 'meanings.light holds'), ("['blue: x']", 'meanings of'),
                     ('[red: stop]', 'list of strings')):
        file.write_text('/**:\n  ros__parameters:\n    scene:\n      meanings:\n'
                        f'        light: {bad}\n')
        with pytest.raises(ValueError, match=why):
            load_profile('driving', [file])


def test_schemas_are_what_the_strictest_servers_take():
    assert response_format(TEXT) is None
    schema = response_format(SCENE)['json_schema']['schema']
    assert schema['type'] == 'object' and schema['additionalProperties'] is False
