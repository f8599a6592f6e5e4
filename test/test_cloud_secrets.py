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
"""The API key: used, and nowhere else to be found. Masked parts of the image never leave."""

import asyncio
import base64
import json
import os
from pathlib import Path
import signal
import ssl
import subprocess

import cv2
from fakes import cloud_server, wait_for, WHAT
import numpy as np
import pytest

from spotvlm_ros.bench.faults.chaos import ChaosServer
from spotvlm_ros.cloud.client import CloudClient, read_api_key
from spotvlm_ros.cloud.errors import CloudUnreachable
from spotvlm_ros.system.processes import PYTHON

SECRET = 'sk-kEy4711-do-not-tell'


@pytest.mark.parametrize('key', ['sk bad', 'sk-bad\nX-Evil: 1', 'sk-\u00fcmlaut', 'sk-\x00'])
def test_a_key_that_is_no_header_is_refused_without_telling_it(tmp_path, key):
    file = tmp_path / 'key'
    file.write_text(key)
    file.chmod(0o600)
    with pytest.raises(ValueError, match='one line') as caught:
        read_api_key(str(file))
    assert key not in str(caught.value) and 'bad' not in str(caught.value)


@pytest.mark.parametrize('url', ['http://192.168.1.9/v1', 'http://example.org/v1'])
def test_a_key_does_not_go_unencrypted_by_accident(url):
    with pytest.raises(ValueError, match='https') as caught:
        cloud_server(url, 'm', api_key=SECRET)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(cloud_server(url, 'm', api_key=SECRET, allow_plain_key=True))
    cloud_server('http://127.0.0.1:8000/v1', 'm', api_key=SECRET)


@pytest.mark.parametrize('url', [f'https://me:{SECRET}@example.org/v1',
                                 f'https://example.org/v1?key={SECRET}'])
def test_credentials_in_the_address_are_refused(url):
    with pytest.raises(ValueError, match='api_key_file') as caught:
        cloud_server(url, 'm')
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize('vouched', [False, True])
def test_tls_is_verified(tmp_path, monkeypatch, vouched):
    """A server with a certificate that nobody vouches for gets no request."""
    certificate, key = tmp_path / 'cert.pem', tmp_path / 'key.pem'
    made = subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '1', '-subj',
         '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out',
         certificate], capture_output=True)
    if made.returncode:
        pytest.skip('openssl cannot make a certificate here')
    if vouched:
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    heard = []

    async def ask():
        async def serve(reader, writer):
            heard.append(await reader.read(1000))
            writer.close()
        server = await asyncio.start_server(serve, '127.0.0.1', 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        client = CloudClient(cloud_server(f'https://127.0.0.1:{port}/v1', 'm', api_key=SECRET))
        try:
            with pytest.raises(CloudUnreachable):
                await client.ask(b'\xff\xd8\xff\xd9', WHAT)
        finally:
            await client.close()
            server.close()
    asyncio.run(ask())
    assert any(b'Bearer ' + SECRET.encode() in data for data in heard) == vouched
    assert any(b'POST' in data for data in heard) == vouched


@pytest.mark.parametrize('key, told', [(SECRET, '(key)'), ('none', 'none')])
def test_a_key_that_comes_back_is_masked_but_no_word_of_answers(key, told):
    """Servers without keys are given placeholders; 'none' is a value of many facts."""
    async def ask():
        client = CloudClient(cloud_server(server.url, 'm', api_key=key))
        try:
            return (await client.ask(b'\xff\xd8\xff\xd9', WHAT)).text
        finally:
            await client.close()
    server = ChaosServer('echo_key')
    try:
        assert asyncio.run(ask()) == f'Your key is {told}.'
    finally:
        server.stop()


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    """Return a video whose upper half is a chessboard and whose lower half is another."""
    path = tmp_path_factory.mktemp('clip') / 'clip.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10.0, (320, 240))
    board = np.uint8(255 * (np.add.outer(np.arange(240) // 8, np.arange(320) // 8) % 2))
    for _ in range(60):
        writer.write(cv2.cvtColor(board, cv2.COLOR_GRAY2BGR))
    writer.release()
    return path


@pytest.mark.parametrize('fault', ['echo_key', 'http_401'])
def test_the_key_is_nowhere_in_what_a_run_writes(tmp_path, clip, fault):
    """
    A run with all logs on, a recorder on every topic and parameter, and a server that echoes.

    Everything that any process of it wrote is searched: output, logs, temporary files, the bag.
    """
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    server = ChaosServer(fault)
    folders = {name: tmp_path / name for name in ('home', 'tmp', 'ros', 'out', 'bag')}
    for folder in folders.values():
        folder.mkdir()
    env = {**os.environ, 'SPOTVLM_API_KEY': SECRET, 'TMPDIR': str(folders['tmp']),
           'ROS_HOME': str(folders['ros']), 'ROS_LOG_DIR': str(folders['ros']),
           'HOME': str(folders['home']), 'PYTHONUNBUFFERED': '1'}
    recorder = subprocess.Popen(
        [*PYTHON, str(Path(__file__).with_name('recorder.py')), str(folders['bag'])],
        stdout=subprocess.PIPE, stderr=(tmp_path / 'recorder.txt').open('w'),
        stdin=subprocess.PIPE, text=True,
        env={k: v for k, v in env.items() if k != 'SPOTVLM_API_KEY'})
    assert recorder.stdout.readline() == 'ready\n'
    run = subprocess.Popen(
        [*PYTHON, '-m', 'spotvlm_ros.cli', 'run', 'driving', '--video', str(clip),
         '--loop', '-p', f'cloud.base_url:={server.url}',
         '-p', 'cloud.privacy_masks:=["0 0 1 0.5"]',
         '--log-level', 'debug', '--out', str(folders['out'])],
        stdout=(tmp_path / 'run.txt').open('w'), stderr=subprocess.STDOUT, env=env)
    try:
        wait_for(lambda: server.count >= 3 or run.poll() is not None, 60.0)
        recorder.stdin.write('parameters\n')
        recorder.stdin.flush()
        seen = json.loads(recorder.stdout.readline())
    finally:
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 0, (tmp_path / 'run.txt').read_text()[-2000:]
        recorder.communicate('', timeout=20)
        server.stop()
    assert seen['parameters'] > 60 and seen['topics'] >= 6, seen
    assert {r['_authorization'] for r in server.requests} == {SECRET}, 'it was used'
    assert fault != 'echo_key' or (folders['bag'] / 'cloud-answers.cdr').stat().st_size
    hidden = (SECRET.encode(), base64.b64encode(SECRET.encode()), SECRET.encode('utf-16-le'))
    files = [p for p in tmp_path.rglob('*') if p.is_file()]
    assert sum(p.stat().st_size for p in files) > 100_000
    for file in files:
        assert not any(form in file.read_bytes() for form in hidden), file
    image = server.requests[0]['messages'][0]['content'][0]['image_url']['url']
    sent = cv2.imdecode(np.frombuffer(base64.b64decode(image.partition(',')[2]), np.uint8), 0)
    assert sent[10:100].std() < 10 < 100 < sent[140:230].std(), 'the mask holds on the wire'
