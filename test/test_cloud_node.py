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
"""Node cloud: its parameters, and what it tells on /diagnostics and cloud/status."""

from datetime import datetime
import time

import cv2
from fakes import wait_for
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402, I100
from spotvlm_ros.bench.faults.chaos import ChaosServer  # noqa: E402
from spotvlm_ros.bench.faults.chaos_faults import FAULTS  # noqa: E402
from spotvlm_ros.config.profiles import check_file  # noqa: E402
from spotvlm_ros.config.spec import ParameterError  # noqa: E402
from spotvlm_ros.frames.frame import Frame  # noqa: E402
from spotvlm_ros.nodes.cloud import CloudNode  # noqa: E402
from spotvlm_ros.nodes.convert import image_msg  # noqa: E402
from test_nodes_graph import CONFIG, graph, keep_sending, overlay  # noqa: E402

PIXELS = cv2.resize(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8),
                    (320, 240))


def sender(probe):
    return lambda stamp: probe.image.publish(image_msg(Frame(stamp, 'eye', pixels=PIXELS)))


def test_falls_back_counts_and_tells(tmp_path, monkeypatch):
    monkeypatch.setenv('SPOTVLM_API_KEY_VENDOR', 'sk-of-vendor')
    first, second = ChaosServer('http_500'), ChaosServer()
    over = overlay(tmp_path, cloud={
        'base_url': first.url, 'fallbacks': ['vendor'], 'budget_tokens_per_hour': 20_000,
        'fallback.vendor.base_url': second.url, 'fallback.vendor.model': 'large-1',
        'fallback.vendor.price_output': 15.0, 'fallback.vendor.concurrency': 1,
        'fallback.vendor.max_tokens_field': 'max_completion_tokens',
        'fallback.vendor.temperature': -1.0,
        'fallback.vendor.extra_body': '{"reasoning_effort": "low"}'})
    try:
        with graph(lambda: [CloudNode()], files=('driving', over)) as (probe, _):
            keep_sending(probe, sender(probe),
                         lambda: probe.count('cloud', 'skipped.budget_tokens') >= 1)
            told = dict(probe.diagnostics['cloud'])
            answer = probe.cloud[-1]
            status = wait_for(lambda: [
                s for s in probe.status if s.answers and s.skipped])[-1]
    finally:
        first.stop()
        second.stop()
    assert answer.model == 'large-1' and answer.facts
    assert status.endpoint == second.url and status.model == 'large-1'
    assert status.skipped >= 1 and status.breaker == status.BREAKER_CLOSED
    assert told['endpoint'] == 'vendor' and told['vendor.breaker'] == 'closed'
    assert int(told['errors.http_500']) >= 1 and int(told['failovers']) >= 1
    assert 0 < int(told['spent_hour_tokens']) <= 20_000 and float(told['spent_hour_money']) > 0
    request = second.requests[0]
    assert request['_authorization'] == 'sk-of-vendor' and 'temperature' not in request
    assert request['max_completion_tokens'] == 256 and request['reasoning_effort'] == 'low'
    assert first.requests[0]['_authorization'] == ''


@pytest.mark.parametrize('retry_after, date', [
    ('7200', ''), ('99999999999', ''), ('9' * 400, ''), ('Fri, 31 Dec 9999 23:59:59 GMT', ''),
    ('Fri, 31 Dec 9999 23:59:59 GMT', 'Thu, 01 Jan 1970 00:00:00 GMT')])
def test_a_pause_that_the_server_asks_for_is_told_with_its_end(
        tmp_path, monkeypatch, retry_after, date):
    """One of years looked like a server that is well; an answer under way must not end it."""
    async def limited(x):
        await x.send(x.head(0, 429, Retry_After=retry_after, **({'Date': date} if date else {})))
        return False
    monkeypatch.setitem(FAULTS, 'http_429', limited)
    server = ChaosServer('http_429')
    try:
        with graph(lambda: [CloudNode()], files=(
                'driving', overlay(tmp_path, cloud={'base_url': server.url}))) as (probe, running):
            keep_sending(probe, sender(probe), lambda: probe.count('cloud', 'errors.http_429'))
            endpoint = running.nodes[-1]._bridge._pool.endpoints[0]
            left_s = endpoint.paused_until - time.monotonic()
            endpoint.succeeded(0.1, time.monotonic())
            endpoint.breaker.failure(time.monotonic())
            wait_for(lambda: probe.health['cloud'][0] == DiagnosticStatus.WARN
                     and 'Retry-After' in probe.health['cloud'][1])
            told = probe.health['cloud'][1]
            status = wait_for(lambda: [s for s in probe.status if s.errors])[-1]
            values = probe.diagnostics['cloud']
            keep_sending(probe, sender(probe), lambda: probe.count('cloud', 'skipped.breaker'))
    finally:
        server.stop()
    assert 290 < left_s < 331 and server.count <= 2  # as many may have been under way
    end = values['primary.paused_until']
    assert datetime.strptime(end, '%Y-%m-%d %H:%M:%S UTC') and values['primary.breaker'] == 'open'
    assert server.url in told and end[:-7] in told and end[:-7] in status.last_error
    assert status.breaker == status.BREAKER_OPEN


@pytest.mark.parametrize('values,word', [
    ({'base_url': ''}, 'base_url is empty'),
    ({'base_url': 'ftp://x/v1'}, 'http or https'),
    ({'base_url': 'http://x/v1', 'extra_body': '[1]'}, 'no JSON object'),
    ({'base_url': 'http://x/v1', 'extra_body': '{"messages": []}'}, 'holds messages'),
    ({'base_url': 'http://x/v1', 'privacy_masks': ['0 0 7 7']}, 'privacy mask'),
    ({'base_url': 'http://x/v1', 'api_key_file': '/no/such/file'}, 'No such file'),
    ({'base_url': 'http://x/v1', 'fallbacks': ['b']}, 'base_url of b'),
    ({'base_url': 'http://x/v1', 'fallbacks': ['b'], 'fallback.b.base_url': 'http://y/v1',
      'fallback.b.api_key_file': '/no/such/file'}, 'No such file')])
def test_bad_parameters_fail_configure_with_a_remedy(tmp_path, values, word):
    over = overlay(tmp_path, cloud=values)
    with graph(lambda: [CloudNode()], files=('driving', over)) as (_, running):
        assert running.failed == ['cloud'] and word in running.nodes[-1].last_failure


def test_params_files_know_fallbacks(tmp_path):
    good = {'fallbacks': ['b'], 'fallback.b.base_url': 'http://y/v1'}
    base = check_file(CONFIG / 'driving.yaml')
    assert check_file(overlay(tmp_path, cloud=good), base)['cloud'].items() >= good.items()
    with pytest.raises(ParameterError, match='did you mean fallback.b.base_url'):
        check_file(overlay(tmp_path, cloud={**good, 'fallback.b.base_ur': 'x'}), base)
    with pytest.raises(ParameterError, match='unknown parameter'):
        check_file(overlay(tmp_path, cloud={'fallback.c.base_url': 'http://y/v1'}), base)
