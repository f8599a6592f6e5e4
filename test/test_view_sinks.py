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
"""`spotvlm run --view` foxglove and rerun: what the page shows, nothing while nobody looks."""

import json
import struct
from types import SimpleNamespace

from fakes import wait_for
import numpy as np
import pytest
from spotvlm_ros.frames.pixels import encode_jpeg
from spotvlm_ros.method.facts import NS
from spotvlm_ros.view import foxglove_sink, rerun_sink
from spotvlm_ros.view.address import AddressError
from spotvlm_ros.view.foxglove_sink import FoxgloveSink, time
from spotvlm_ros.view.state import LiveState, Picture
from spotvlm_ros.view.stream import Stream
from spotvlm_ros.view.viewers import open_view
from test_view import fill


class Shown:
    """A sink that keeps what it is sent."""

    def __init__(self):
        self.url, self.looks, self.news, self.closed = 'x', False, [], False

    def wanted(self):
        return self.looks

    def send(self, news):
        self.news.append(news)

    def close(self):
        self.closed = True


def live():
    return LiveState('spotvlm test', lambda: 100 * NS)


def test_a_sink_is_sent_what_is_new_once_while_somebody_looks():
    state, sink, looked = live(), Shown(), []
    stream = Stream(state, sink, looked.append)
    fill(state)
    assert not stream.looking and sink.news == [] and looked == []
    sink.looks = True
    wait_for(lambda: looked == [True], 5.0)
    fill(state)
    scene = wait_for(lambda: next((n for n in sink.news if n.query == 'scene'), None), 5.0)
    assert set(scene.new) == {'edge', 'alone', 'cloud', 'context', 'truth'}
    assert scene.picture.width == 640 and scene.focus() == {'light': [120, 80, 60, 40]}
    ages = scene.ages()
    assert (ages['edge_age_s'], ages['cloud_age_s'], ages['edge_model_s']) == (0.1, 3.0, 0.06)
    sink.news.clear()
    state.frame('', Picture(100 * NS, encode_jpeg(np.zeros((48, 64, 3), np.uint8)), 640, 480))
    newer = wait_for(lambda: sink.news, 5.0)[0]
    assert newer.new == {} and newer.picture.stamp_ns == 100 * NS
    sink.looks = False
    wait_for(lambda: looked == [True, False], 5.0)
    stream.close()
    assert sink.closed


def subscribe(client, wanted):
    """Subscribe to topics of a Foxglove server; return the topics by the subscription's number."""
    topics = {}
    while set(topics.values()) < set(wanted):
        said = client.recv()
        if isinstance(said, str) and json.loads(said)['op'] == 'advertise':
            channels = [c for c in json.loads(said)['channels'] if c['topic'] in wanted]
            topics |= {c['id']: c['topic'] for c in channels}
            client.send(json.dumps({'op': 'subscribe', 'subscriptions': [
                {'id': c['id'], 'channelId': c['id']} for c in channels]}))
    return topics


def received(client, topics):
    """Return the first message of each topic."""
    got = {}
    while set(got) < set(topics.values()):
        data = client.recv()
        if isinstance(data, bytes) and data[0] == 1:   # opcode, subscription, log time, message
            number, stamp = struct.unpack('<IQ', data[1:13])
            got.setdefault(topics[number], (stamp, data[13:]))
    return got


def test_a_client_of_foxglove_gets_frames_regions_answers_and_ages():
    pytest.importorskip('foxglove', reason='pip install foxglove-sdk')
    websocket = pytest.importorskip('websocket', reason='pip install websocket-client')
    state, looked = live(), []
    stream = open_view('foxglove:127.0.0.1:0', state, None, looked.append)
    try:
        fill(state)
        client = websocket.create_connection(stream.url, timeout=10,
                                             subprotocols=['foxglove.sdk.v1'])
        assert looked == []    # it is connected, and has asked for nothing
        topics = subscribe(client, {'/image/compressed', '/focus/annotations', '/answers',
                                    '/cloud/answers', '/context', '/ages', '/log'})
        wait_for(lambda: looked == [True], 5.0)
        fill(state)
        got = received(client, topics)
        client.close()
        wait_for(lambda: looked == [True, False], 5.0)
    finally:
        stream.close()
    now = 100 * NS - NS // 10
    answer, ages = (json.loads(got[t][1]) for t in ('/answers', '/ages'))
    assert got['/answers'][0] == now and answer['query_id'] == 'scene'
    assert answer['header']['stamp'] == {'sec': 99, 'nsec': 900_000_000}
    assert answer['context_age'] == {'sec': 2, 'nsec': 900_000_000} == time(2.9)
    assert answer['inference'] == {'sec': 0, 'nsec': 60_000_000}
    assert [f['value'] for f in answer['facts']] == ['red', 'none']
    assert ages['cloud_age_s'] == 3.0 and ages['edge_age_s'] == 0.1
    assert state.view('scene')[1]['now'].jpeg in got['/image/compressed'][1]
    assert b'light' in got['/focus/annotations'][1] and b'light: red' in got['/log'][1]
    assert 'lead' in json.loads(got['/context'][1])['dropped']


def test_a_file_of_rerun_has_frames_regions_answers_and_ages(tmp_path):
    rerun = pytest.importorskip('rerun.chunk', reason='pip install rerun-sdk')
    path = tmp_path / 'new' / 'drive.rrd'
    state, looked = live(), []
    stream = open_view(f'rerun:{path}', state, None, looked.append)
    wait_for(lambda: looked == [True], 5.0)
    fill(state)
    wait_for(lambda: not stream._news.is_set(), 5.0)
    stream.close()
    said = {}
    for chunk in rerun.RrdReader(path).stream():
        batch = chunk.to_record_batch()
        for name, column in zip(batch.schema.names, batch.columns):
            values = column.cast('int64') if name == 'frame' else column
            if not str(values.type).startswith('timestamp'):
                said.setdefault(str(chunk.entity_path), {})[name] = values.to_pylist()
    now = 100 * NS - NS // 10
    assert said['/camera']['frame'] == said['/edge/scene']['frame'] == [now]
    assert said['/cloud/scene']['frame'] == [97 * NS]
    assert 'light: red, lead: none' in str(said['/edge/scene'])
    assert '[3.0]' in str(said['/ages/scene/cloud_age_s'])
    assert bytes(said['/camera']['EncodedImage:blob'][0][0]) == state.view('scene')[1]['now'].jpeg
    assert "'light'" in str(said['/camera/focus']) and '[75.0, 50.0]' in str(said['/camera/focus'])


@pytest.mark.parametrize('module, view, word', [
    (foxglove_sink, 'foxglove', 'pip install foxglove-sdk'),
    (rerun_sink, 'rerun:drive.rrd', 'pip install rerun-sdk')])
def test_without_its_library_a_view_says_what_to_install(module, view, word, monkeypatch):
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    with pytest.raises(AddressError, match=word):
        open_view(view, live(), None, bool)


def test_a_port_that_is_taken_is_named():
    pytest.importorskip('foxglove', reason='pip install foxglove-sdk')
    first = FoxgloveSink('t', SimpleNamespace(host='127.0.0.1', port=0))
    try:
        with pytest.raises(AddressError, match='another address or port'):
            open_view(f'foxglove:{first.url[5:]}', live(), None, bool)
    finally:
        first.close()
