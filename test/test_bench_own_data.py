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
"""`spotvlm bench --video`: a recording of one's own, and a server asked as the node asks it."""

import json

import cv2
from fakes import FakeServer
import pytest
from spotvlm_ros.bench.spotbench.cloud_said import cloud_said
from spotvlm_ros.bench.spotbench.main import main
from spotvlm_ros.cloud.parse import parse_reply
from spotvlm_ros.method.facts import NS
from spotvlm_ros.mini.driving.scene import SCENE
from spotvlm_ros.mini.worlds import make_world

SECONDS, FPS = 3, 10


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    """Return a short video of the miniature world, and the file of its labels."""
    folder = tmp_path_factory.mktemp('own')
    world = make_world('driving', 3)
    out = cv2.VideoWriter(str(folder / 'drive.mp4'), cv2.VideoWriter.fourcc(*'mp4v'), FPS,
                          world.size)
    lines = []
    for i in range(SECONDS * FPS):
        out.write(cv2.cvtColor(world.frame(2 * i), cv2.COLOR_RGB2BGR))
        facts, _ = world.answers(2 * i, 0)['scene']
        lines.append(json.dumps({'t': i / FPS, 'facts': {
            f.key: f.value for f in facts if f.key in ('light', 'lead')}}))
    out.release()
    (folder / 'labels.jsonl').write_text('\n'.join(lines))
    return folder


@pytest.fixture
def server():
    fake = FakeServer()
    yield fake
    fake.stop()


def bench(recording, server, profile, out):
    """Run the command on the recording with a profile whose cloud section is given."""
    (out / 'mine.yaml').write_text(profile)
    return main(['--video', str(recording / 'drive.mp4'), '--labels',
                 str(recording / 'labels.jsonl'), '--profile', str(out / 'mine.yaml'),
                 '--cloud-url', server.url, '--cloud-model', 'm', '--out', str(out)])


PROFILE = """
/**:
  ros__parameters:
    queries: [scene]
    scene:
      prompt: What is on the road?
      keys: [light, lead]
      choices:
        light: [none, red, yellow, green]
        lead: [none, cruising, braking]
/**/cloud:
  ros__parameters:
    {cloud}
"""


def test_the_server_is_asked_as_the_node_asks_it(recording, server, tmp_path, capsys):
    profile = PROFILE.replace('{cloud}', '{max_tokens: 99, extra_body: \'{"seed": 7}\', '
                              'system_prompt: You drive., box_scale: pixels, max_side: 64}')
    server.content = ('{"facts": [{"label": "light", "bbox_2d": [1, 2, 30, 40], "value": "red"}, '
                      '{"label": "lead", "bbox_2d": null, "value": "purple"}]}')
    assert bench(recording, server, profile, tmp_path) == 0
    body = server.requests[0]
    assert (body['max_tokens'], body['seed']) == (99, 7)
    assert body['messages'][0]['content'] == 'You drive.'
    assert body['response_format']['type'] == 'json_schema' and 'in pixels' in json.dumps(body)
    printed = capsys.readouterr().out
    said = json.loads((tmp_path / 'results.json').read_text())['meta']['cloud_said']
    assert said['requests'] == len(server.requests) and said['unusable'] == 0
    assert said['rejected'] == {"lead: 'purple' is none of the choices": said['requests']}
    assert 'rejected, ' in printed and 'What the cloud said' in printed
    assert 'with the delays of fixed 9 s no cloud answer' in printed
    assert 'What the cloud said' in (tmp_path / 'report.html').read_text()


def test_replies_of_no_use_are_an_error_with_reasons(recording, server, tmp_path, capsys):
    server.content = 'I see a road.'
    assert bench(recording, server, PROFILE.replace('{cloud}', '{retries: 0}'), tmp_path) == 1
    printed = capsys.readouterr().out
    assert 'of them could be used' in printed and 'I see a road' in printed
    assert 'error: no reply of the cloud could be used' in printed
    assert not (tmp_path / 'results.json').exists()


def test_said_is_counted_against_what_is_true():
    class Stream:
        query = SCENE

        def truth(self, stamp_ns):
            return {'light': 'red' if stamp_ns < 3 * NS else 'green'}
    answers = {i * NS: parse_reply(SCENE, f'light: {value}', i * NS, (9, 9)) for i, value in
               enumerate(('red', 'red', 'green', 'green', 'red', 'purple'))}
    said = cloud_said([(Stream(), answers), (Stream(), {9 * NS: None})])
    assert (said['requests'], said['without_reply'], said['unusable']) == (7, 1, 1)
    assert said['said_of_true'] == [['light', 'red', '3', '2', '0', 'green 1'],
                                    ['light', 'green', '3', '1', '1', 'red 1']]
