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
"""`spotvlm label`: what is asked, kept, told and written."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
import signal

import cv2
from fakes import cloud_server, FakeServer, SCENE_REPLY
import numpy as np
import pytest

from spotvlm_ros.cli.label import add_arguments
from spotvlm_ros.cli.main import main
from spotvlm_ros.config.nodes import CloudNodeConfig
from spotvlm_ros.labels.keyframes import choose, Recording
from spotvlm_ros.labels.labelling import label, LabelConfig
from spotvlm_ros.labels.schema import read_label_file
from spotvlm_ros.method.facts import Region
from spotvlm_ros.mini.driving.scene import SCENE

FRAMES, SIZE = 20, (64, 48)
CLOUD = CloudNodeConfig(retries=0, max_in_flight=1)
NEVER = type('Never', (), {'__call__': lambda self: False})()


@pytest.fixture
def server():
    """Return a server that answers."""
    one = FakeServer()
    yield one
    one.stop()


@pytest.fixture
def signals():
    """Put back the handlers that a command has taken."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path):
    """Return a folder of images at 10 Hz, which get brighter."""
    place = tmp_path / 'drive'
    place.mkdir()
    for i in range(FRAMES):
        picture = np.full((SIZE[1], SIZE[0], 3), 40 + 5 * i, np.uint8)
        picture[:, :i] = 255
        cv2.imwrite(str(place / f'{i}.jpg'), picture)
    return place


def config(server, folder, **changes):
    """Return what to label: every second image."""
    return LabelConfig(**{
        'recording': Recording('images', folder), 'out': folder.parent / 'labels.jsonl',
        'query': SCENE, 'models': {'large': cloud_server(server.url, 'large')},
        'rate_hz': 5.0} | changes)


def said(text, probability=None):
    """Return a reply."""
    tokens = {} if probability is None else {'logprobs': {'content': [
        {'token': text, 'logprob': math.log(probability)}]}}
    return 200, json.dumps({'choices': [{'finish_reason': 'stop', 'message': {
        'content': text}, **tokens}]}).encode()


def test_labels_have_regions_confidences_and_a_header(server, folder, capsys):
    server.reply = lambda request: said(SCENE_REPLY, 0.75)
    assert label(config(server, folder), CLOUD, NEVER) == 0
    header, labels = read_label_file(folder.parent / 'labels.jsonl', SCENE)
    assert (header.recording, header.kind, header.query, header.labelled_by) == (
        'drive', 'images', 'scene', 'large')
    assert [one.t for one in labels] == [0, .2, .4, .6, .8, 1.0, 1.2, 1.4, 1.6, 1.8]
    assert labels[3].image == '6.jpg' and labels[3].facts == {'light': 'red', 'lead': 'none'}
    assert labels[3].regions == {'light': Region(6.4, 4.8, 6.4, 4.8)}
    assert labels[3].confidences == {'light': 0.75, 'lead': 0.75}
    before, after = capsys.readouterr().out.split('10 requests to large')
    assert '10 keyframes' in before and 'no price' in after and 'light          red' in after
    n = len(server.requests)
    assert label(config(server, folder), CLOUD, NEVER) == 0 and len(server.requests) == n


def test_a_server_without_probabilities_is_asked_without(server, folder):
    server.reply = lambda request: (422, b'{}') if 'logprobs' in request else said(SCENE_REPLY)
    assert label(config(server, folder), CLOUD, NEVER) == 0
    _, labels = read_label_file(folder.parent / 'labels.jsonl', SCENE)
    assert len(labels) == 10 and not labels[0].confidences
    assert sum('logprobs' in request for request in server.requests) == 3   # each dialect, once


@pytest.mark.parametrize('concurrency', [1, 3])
def test_a_server_that_dies_costs_nothing_that_was_paid_for(server, folder, concurrency, capsys):
    answered = []

    def dying(request):
        if len(answered) >= 6:
            raise ConnectionError
        answered.append(request)
        return said(SCENE_REPLY, 0.9)
    server.reply = dying
    server.http.handle_error = lambda request, address: None
    what = config(server, folder, concurrency=concurrency)
    assert label(what, CLOUD, NEVER) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and server.url in error and 'the same command goes on' in error
    kept = folder.parent / 'labels.replies'
    assert len(kept.read_text().splitlines()) == 1 + 6
    with kept.open('a') as file:
        file.write('{"number": 14, "t": 1.')    # and then the disk was full
    server.reply = lambda request: (answered.append(request), said(SCENE_REPLY, 0.9))[1]
    assert label(what, CLOUD, NEVER) == 0 and len(answered) == 10
    assert len(read_label_file(what.out, SCENE)[1]) == 10


def test_ctrl_c_waits_for_what_is_under_way_and_the_run_goes_on(server, folder, capsys):
    answered = []
    server.reply = lambda request: (answered.append(request), said(SCENE_REPLY, 0.9))[1]
    what = config(server, folder)
    assert label(what, CLOUD, lambda: len(answered) >= 4) == 130
    assert 'the same command goes on' in capsys.readouterr().out and not what.out.exists()
    assert label(what, CLOUD, NEVER) == 0 and len(answered) == 10


def test_ctrl_c_ends_the_look_through_a_long_recording(server, folder):
    assert label(config(server, folder), CLOUD, lambda: True) == 130 and not server.requests


def test_what_is_there_is_not_written_over(server, folder, capsys):
    what = config(server, folder)
    what.out.write_text('by hand')
    assert label(what, CLOUD, NEVER) == 1 and not what.out.with_suffix('.replies').exists()
    what.out.unlink()
    assert label(what, CLOUD, NEVER) == 0
    n = len(server.requests)
    capsys.readouterr()
    assert label(config(server, folder, rate_hz=2.0), CLOUD, NEVER) == 1
    assert 'keyframes differ' in capsys.readouterr().err
    mended = what.out.read_text().replace('"red"', '"green"', 1)
    what.out.write_text(mended)
    assert label(what, CLOUD, NEVER) == 1
    assert 'move it away' in capsys.readouterr().err and what.out.read_text() == mended
    what.out.unlink()
    assert label(what, CLOUD, NEVER) == 0 and len(server.requests) == n


def test_replies_of_no_use_end_it_early_and_say_why(server, folder, capsys):
    server.content = '[{"label": "light", "value": "blue"}]'
    assert label(config(server, folder, rate_hz=10.0), CLOUD, NEVER) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and "'blue' is none of the choices" in error
    assert len(server.requests) == 10 and not (folder.parent / 'labels.jsonl').exists()
    assert label(config(server, folder, rate_hz=10.0), CLOUD, NEVER) == 1
    assert len(server.requests) == 10


def test_a_server_that_gets_lost_in_thought_is_left_and_the_run_goes_on(server, folder, capsys):
    fine = iter([True] * 3)
    server.reply = lambda request: said(SCENE_REPLY if next(fine, False) else ' ', 0.9)
    assert label(config(server, folder, rate_hz=10.0), CLOUD, NEVER) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'without text' in error and len(server.requests) == 13
    server.reply = lambda request: said(SCENE_REPLY, 0.9)
    assert label(config(server, folder, rate_hz=10.0), CLOUD, NEVER) == 0
    assert len(server.requests) == FRAMES and 'unusable replies: 10 of 20' in \
        capsys.readouterr().out


def test_a_second_model_marks_disagreement(server, folder, capsys):
    server.reply = lambda request: said(
        SCENE_REPLY if request['model'] == 'large' else SCENE_REPLY.replace(
            '"red"', '"green"').replace('100, 100, 200, 200', '600, 600, 800, 800'), 0.9)
    assert label(config(server, folder), CLOUD, NEVER) == 0
    both = config(server, folder, models={n: cloud_server(server.url, n)
                                          for n in ('large', 'other')})
    asked = len(server.requests)
    assert label(both, CLOUD, NEVER) == 0 and len(server.requests) == asked + 10
    header, labels = read_label_file(both.out, SCENE)
    assert header.second == 'other' and labels[0].second == {'light': 'green'}
    table = capsys.readouterr().out.partition('agreement')[2].splitlines()
    assert table[2].split() == ['light', '10', '0%', '0', 'of', '0']
    assert [line.split()[:3] for line in table if line.startswith('lead')] == [
        ['lead', '10', '100%']]


def test_a_budget_is_taken_evenly_and_bad_frames_are_told(server, folder, capsys):
    (folder / '0.jpg').write_bytes(b'\xff\xd8 no picture')
    (folder / '18.jpg').write_bytes((folder / '18.jpg').read_bytes()[:300])
    assert label(config(server, folder, requests=4), CLOUD, NEVER) == 0
    _, labels = read_label_file(folder.parent / 'labels.jsonl', SCENE)
    assert [one.image for one in labels] == ['6.jpg', '12.jpg']
    out = capsys.readouterr().out
    assert 'the budget does for 4 of them' in out and 'frames that cannot be sent: 2' in out


def test_where_the_scene_changes_a_keyframe_comes_early(folder):
    for i in range(FRAMES):
        picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        picture[slice(0, 24) if i < 9 else slice(24, 48)] = 255
        cv2.imwrite(str(folder / f'{i}.jpg'), picture)
    for cut_below, wanted, cuts in ((-1.0, [0, 16], 0), (0.4, [0, 10], 1)):
        found = choose(Recording('images', folder), SCENE, 0.6, cut_below)
        assert ([k.number for k in found.keyframes], found.cuts) == (wanted, cuts)


@pytest.mark.parametrize('argv, words', [
    (['--images', '/nowhere', '--cloud-url', 'http://127.0.0.1:9/v1', '--cloud-model', 'm'],
     ('/nowhere', 'folder with images')),
    (['--video', '/nowhere.mp4', '--cloud-url', 'http://127.0.0.1:9/v1', '--cloud-model', 'm'],
     ('/nowhere.mp4', 'no video')),
    (['--bag', '/nowhere', '--topic', '/a', '--cloud-url', 'http://127.0.0.1:9/v1',
      '--cloud-model', 'm'], ('/nowhere', 'metadata.yaml')),
    (['--images', 'DRIVE', '--cloud-url', 'http://127.0.0.1:9/v1'], ('--cloud-model',)),
    (['--images', 'DRIVE'], ('--cloud-url', 'spotvlm serve')),
    (['--images', 'DRIVE', '--query', 'what'], ('no query what', 'scene')),
    (['--images', 'DRIVE', '--cloud-url', 'http://127.0.0.1:9/v1', '--cloud-model', 'm',
      '-p', 'cloud.retries:=0'], ('127.0.0.1:9', 'is the server running', 'goes on')),
    (['--images', 'DRIVE', '--cloud-url', 'http://127.0.0.1:9/v1', '--cloud-model', 'm',
      '--budget', '5money'], ('--budget', 'price_input')),
    (['--from', 'mini', 'fog:1:2'], ('day, rain, night, shifted',)),
])
def test_an_error_is_one_line_with_a_remedy(folder, tmp_path, capsys, signals, argv, words):
    argv = [str(folder) if a == 'DRIVE' else a for a in argv]
    assert main(['label', 'driving', *argv, '--out', str(tmp_path / 'l.jsonl'), '--yes']) in (1, 2)
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and error.startswith('error: ')
    for word in words:
        assert word in error
    assert not (tmp_path / 'l.jsonl').exists()


def test_exact_labels_of_the_shifted_world_are_a_folder(tmp_path, signals):
    out = tmp_path / 'shifted'
    assert main(['label', 'driving', '--from', 'mini', 'shifted:5:0.4', '--out', str(out)]) == 0
    header, labels = read_label_file(out / 'labels.jsonl', SCENE)
    assert (header.recording, header.labelled_by) == ('.', 'the miniature world')
    assert [one.image for one in labels] == [f'{i:05d}.jpg' for i in range(4)]
    assert all((out / one.image).is_file() for one in labels) and set(
        labels[0].facts) == set(SCENE.keys)


def test_the_commands_of_the_document_are_understood():
    text = (Path(__file__).parents[1] / 'docs' / 'real.md').read_text().replace('\\\n', ' ')
    commands = [line.split()[2:] for line in text.splitlines()
                if line.startswith('spotvlm label ')]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert len(commands) >= 4 and all(parser.parse_args(c).out for c in commands)
