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
"""The bridge to the cloud, against a real HTTP server."""

import os
import time

from fakes import cloud_server, wait_for
import pytest

from spotvlm_ros.cloud.breaker import Breaker, State
from spotvlm_ros.cloud.bridge import CloudBridge
from spotvlm_ros.cloud.client import CloudClient, read_api_key
from spotvlm_ros.cloud.errors import KEY_ENV
from spotvlm_ros.cloud.keyframe_encoder import EncodedKeyframe
from spotvlm_ros.config.nodes import EmulatedDelayConfig, RequestConfig
from spotvlm_ros.method.facts import NS, Query

SCENE = Query('scene', 'What?', 'facts', {'light': ('none', 'red'), 'lead': ('none', 'braking')},
              cloud_period_s=1.0)


def keyframe():
    return EncodedKeyframe(b'\xff\xd8jpeg\xff\xd9', 640, 480)


@pytest.fixture
def bridges():
    made = []

    def make(url, **kwargs):
        answers = []
        requests = RequestConfig(**{k: kwargs.pop(k) for k in ('max_in_flight', 'retries')
                                    if k in kwargs})
        on_error = kwargs.pop('on_error', lambda text: None)
        bridge = CloudBridge([cloud_server(url, 'fake', **kwargs)], [SCENE], answers.append,
                             requests, on_error=on_error)
        made.append(bridge)
        return bridge, answers
    yield make
    assert all(b.stop() for b in made)


def test_answer_about_its_frame(server, bridges):
    bridge, answers = bridges(server.url)
    assert bridge.offer(5 * NS, keyframe) == 'scene'
    assert bridge.offer(5 * NS + 1, keyframe) is None  # not due
    wait_for(lambda: answers)
    assert answers[0].stamp_ns == 5 * NS
    assert {f.key: f.value for f in answers[0].facts} == {'light': 'red', 'lead': 'none'}
    assert server.requests[0]['messages'][0]['content'][0]['image_url']['url'].startswith(
        'data:image/jpeg;base64,')
    assert wait_for(lambda: bridge.in_flight == 0) and bridge.stats.answers == 1


@pytest.mark.alone
def test_offer_never_waits(server, bridges):
    server.reply = lambda request: (time.sleep(0.5), server.fine(request))[1]
    bridge, _ = bridges(server.url, max_in_flight=1)
    started = time.monotonic()
    for i in range(100):
        bridge.offer(i * NS, keyframe)
    assert time.monotonic() - started < 0.3
    assert bridge.stats.skipped == 1 and bridge.in_flight == 1


@pytest.mark.parametrize('reply', [
    (500, b'oops'), (401, b'{}'), (200, b'not json'), (200, b'{}'), (200, b'[]'), (200, b'null'),
    (200, b'{"choices": []}'), (200, b'{"choices": [{}]}'), (200, b'{"choices": 7}'),
    (200, b'{"choices": [{"message": {"content": null}}]}')])
def test_bad_replies_are_errors_with_a_remedy(server, bridges, reply):
    server.reply = lambda request: reply
    errors = []
    bridge, answers = bridges(server.url, on_error=errors.append, retries=0)
    bridge.offer(NS, keyframe)
    wait_for(lambda: errors and bridge.in_flight == 0)
    assert server.url in errors[0] and not answers


def test_deadline(server, bridges):
    server.reply = lambda request: (time.sleep(1.0), server.fine(request))[1]
    errors = []
    bridge, _ = bridges(server.url, deadline_s=0.1, on_error=errors.append)
    bridge.offer(NS, keyframe)
    assert 'within 0.1 s' in wait_for(lambda: errors)[0]


def test_emulated_delay_is_counted_apart_and_repeatable(server, bridges):
    seen = []
    for _ in range(2):
        bridge, answers = bridges(server.url, delay=EmulatedDelayConfig(
            emulated_delay_median_s=0.05, emulated_delay_seed=3))
        bridge.offer(NS, keyframe)
        answer = wait_for(lambda: answers)[0]
        assert answer.round_trip_s > answer.emulated_s > 0
        seen.append(answer.emulated_s)
    assert seen[0] == seen[1]


def test_server_comes_back(server, bridges):
    bridge, answers = bridges(server.url)
    server.stop()
    stamps = iter(range(NS, 10**15, NS // 20))
    wait_for(lambda: (bridge.offer(next(stamps), keyframe), bridge.breaker_state == State.OPEN)[1])
    server.start()
    wait_for(lambda: (bridge.offer(next(stamps), keyframe), answers)[1], 5.0)
    assert bridge.breaker_state == State.CLOSED and not bridge.stats.last_error


def test_unreadable_frame_is_not_the_servers_fault(server, bridges):
    def broken():
        raise ValueError('truncated JPEG')
    errors = []
    bridge, _ = bridges(server.url, on_error=errors.append)
    for i in range(5):
        wait_for(lambda: bridge.in_flight == 0)
        bridge.offer(i * NS, broken)
    wait_for(lambda: len(errors) == 5)
    assert bridge.breaker_state == State.CLOSED and not server.requests


def test_an_address_that_is_none_is_told_at_once():
    with pytest.raises(ValueError, match='check base_url'):
        CloudClient(cloud_server('http://127.0.0.1:abc/v1', 'm'))


def test_breaker():
    breaker = Breaker(threshold=2, first_s=1.0, longest_s=2.0, seed=0)
    for now in (0.0, 0.1):
        assert breaker.allow(now)
        breaker.failure(now)
    assert breaker.state == State.OPEN and not breaker.allow(0.2)
    assert 0.7 <= breaker.retry_at - 0.1 <= 1.0
    assert breaker.allow(5.0) and not breaker.allow(5.0)  # one trial
    for now in range(5, 50):
        breaker.failure(float(now))
        assert breaker.retry_at - now <= 2.0
    breaker.success()
    assert breaker.allow(0.0)


def test_api_key(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_ENV, 'from-env')
    assert read_api_key() == 'from-env'
    file = tmp_path / 'key'
    file.write_text('from-file\n')
    os.chmod(file, 0o644)
    with pytest.raises(ValueError, match='chmod 600'):
        read_api_key(str(file))
    os.chmod(file, 0o600)
    assert read_api_key(str(file)) == 'from-file'
    with pytest.raises(ValueError, match='No such file'):
        read_api_key(str(tmp_path / 'none'))
    assert 'secret' not in repr(cloud_server('https://x/v1', 'm', api_key='secret'))
