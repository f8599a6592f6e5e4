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
"""The embedded server: whose port it is, what it lets through, and that it is kept alive."""

import asyncio
import http.client
import json
import os
from pathlib import Path
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

from fakes import SCENE_REPLY, wait_for
import psutil
import pytest
from spotvlm_ros.cloud.budget import Budget
from spotvlm_ros.cloud.errors import KEY_ENV
from spotvlm_ros.cloud.pool import EndpointPool
from spotvlm_ros.cloud.server import EmbeddedServer, HOST, RESTARTS, ServerError
from spotvlm_ros.mini.shipped import checkpoint_path
from spotvlm_ros.serving.checkpoint import Prepared, Reply, Sampling
from spotvlm_ros.serving.keys import Keys, Robot
from spotvlm_ros.serving.service import App, Limits, Service
from spotvlm_ros.system.processes import PYTHON

MODEL = '/models/large'
GREY = ('data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAA'
        'ggCBd81ytgAAAABJRU5ErkJggg==')
# Serves one answer to who has the key, on an inherited socket.
STUB = """
import http.server, json, os, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        good = self.headers['Authorization'] == 'Bearer ' + os.environ['SPOTVLM_API_KEY']
        self.rfile.read(int(self.headers['Content-Length'] or 0))
        body = json.dumps({'choices': [{'finish_reason': 'stop', 'message': {
            'content': 'REPLY'}}]}).encode()
        self.send_response(200 if good else 401)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    log_message = print
class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        self.socket = socket.socket(fileno=int(sys.argv[2]))
    server_name = server_port = ''
    def server_activate(self):
        pass
Server(('', 0), Handler).serve_forever()
""".replace("'REPLY'", repr(SCENE_REPLY))


def stub(model, number):
    return [sys.executable, '-c', STUB, model, str(number)]


def chat(url=GREY, **changes):
    return {'model': MODEL, 'max_tokens': 4, 'messages': [{'role': 'user', 'content': [
        {'type': 'image_url', 'image_url': {'url': url}},
        {'type': 'text', 'text': 'ready?'}]}], **changes}


def through(method, path, body=b'', key='secret'):
    """Ask the app; return the status and what the model got."""
    behind, sent, events = [], [], [{'type': 'http.request', 'body': body, 'more_body': False}]

    class Model:
        def prepare(self, chat):
            behind.append(chat)
            return Prepared({}, '', Sampling(), 9)

        def answer(self, batch, gone):
            return [Reply('yes', 1, 1, True)]

    async def receive():
        return events.pop() if events else await asyncio.Event().wait()

    async def send(event):
        sent.append(event)
    headers = [(b'authorization', f'Bearer {key}'.encode())] if key else []
    service = Service(Model(), Keys([('secret', Robot('owner'))]), Limits((MODEL, 'large')))
    asyncio.run(App(service)(
        {'type': 'http', 'method': method, 'path': path, 'headers': headers}, receive, send))
    return sent[0]['status'], behind


@pytest.mark.parametrize('model', [MODEL, 'large'])
@pytest.mark.parametrize('changes', [
    {}, {'stream': True, 'stream_options': {'include_usage': True}, 'temperature': 0.0},
    {'response_format': {'type': 'json_schema'}}, {'temperature': 0, 'seed': 1, 'stop': ['x']},
    {'messages': [{'role': 'user', 'content': 'hello'}]}])
def test_a_question_about_a_picture_passes(model, changes):
    status, (got,) = through('POST', '/v1/chat/completions',
                             json.dumps(chat(**changes | {'model': model})).encode())
    assert status == 200 and got.model == model
    said = [message.model_dump(exclude_none=True) for message in got.messages]
    assert said == chat(**changes)['messages']


@pytest.mark.parametrize('key', ['', 'secre', 'secret2', 'Secret', '\xe9'])
@pytest.mark.parametrize('route', [
    ('POST', '/v1/chat/completions'), ('GET', '/health'), ('GET', '/v1/models'), ('GET', '/x')])
def test_nothing_is_answered_without_the_key(route, key):
    assert through(*route, json.dumps(chat()).encode(), key) == (401, [])


@pytest.mark.parametrize('method,path', [
    ('POST', '/load_model'), ('POST', '/reset'), ('POST', '/v1/completions'), ('GET', '/docs'),
    ('POST', '/v1/responses'), ('POST', '/v1/audio/transcriptions'), ('POST', '/v1/systemone'),
    ('GET', '/openapi.json'), ('POST', '/v1/models'), ('POST', '/v1//chat/completions'),
    ('PUT', '/v1/chat/completions'), ('POST', '/v1/chat/completions/'),
    ('POST', '//x/v1/chat/completions'), ('POST', '/x?/v1/chat/completions')])
def test_other_routes_are_closed(method, path):
    assert through(method, path, json.dumps(chat()).encode()) == (404, [])


@pytest.mark.parametrize('body', [
    *(json.dumps(chat(url)).encode() for url in (
        'http://127.0.0.1:9/x.png', 'HTTPS://127.0.0.1/x.png', 'file:///etc/passwd',
        '/etc/passwd', 'x.png', '', ' data:image/png;base64,AA', 'data:text/html;base64,AA',
        'ftp://x/y', 'data:image/svg+xml;base64,AA', 'x\ndata:image/png;base64,AA')),
    *(json.dumps(chat(**changes)).encode() for changes in (
        {'model': 'gpt'}, {'model': MODEL + '/../other'}, {'model': None}, {'tools': []},
        {'chat_template_kwargs': {'chat_template': '{% for i in range(9**9) %}'}},
        {'generation_config': '{}'}, {'messages': [{'role': 'user', 'content': [
            {'type': 'video_url', 'video_url': {'url': 'http://x'}}]}]},
        {'messages': [{'role': 'user', 'content': [
            {'type': 'image_url', 'image_url': GREY, 'url': 'http://x'}]}]},
        {'messages': [{'role': 'user', 'content': [
            {'type': 'text', 'text': 'x', 'image_url': {'url': 'http://x'}}]}]},
        {'messages': 'x'}, {'messages': None})),
    b'', b'{', b'[]', b'null', b'\xff', b'[' * 10**5, b' ' * (2**26 + 1)],
    ids=lambda body: body[:0].decode())
def test_other_models_and_addresses_of_pictures_are_refused(body):
    status, behind = through('POST', '/v1/chat/completions', body)
    assert status in (400, 413, 422) and not behind


def ask(server, key, body, path='/v1/chat/completions', method='POST'):
    connection = http.client.HTTPConnection(HOST, server.port, timeout=100.0)
    try:
        connection.request(method, path, json.dumps(body),
                           {'Authorization': f'Bearer {key}', 'Content-Type': 'application/json'})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    finally:
        connection.close()


def test_the_real_server_is_shut_and_keeps_its_port_when_it_is_killed():
    path = str(checkpoint_path('spot-mini-cloud'))
    fetched = []
    listener = socket.create_server((HOST, 0))
    threading.Thread(target=lambda: fetched.append(listener.accept()), daemon=True).start()
    with EmbeddedServer(path) as server:
        question = chat(model=path)
        assert ask(server, 'guess', question)[0] == 401
        assert ask(server, server.key, {'model': 'x'}, '/load_model')[0] == 404
        url = f'http://{HOST}:{listener.getsockname()[1]}/x.png'
        assert ask(server, server.key, chat(url, model=path))[0] == 422 and not fetched
        assert ask(server, server.key, chat(model='gpt2'))[0] == 400
        status, reply = ask(server, server.key, question)
        assert status == 200 and reply['choices'][0]['message']['content']
        process = psutil.Process(server._child.process.pid)
        for other in psutil.process_iter(['cmdline']):
            words = other.info['cmdline'] or []
            assert not any(server.key in word or GREY in word for word in words)
        assert Path(f'/proc/{process.pid}/fd/1').readlink().name.endswith('(deleted)')

        process.kill()
        wait_for(lambda: not server.alive)
        with pytest.raises(OSError), socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.bind((HOST, server.port))
            thief.listen()
        assert 'ended' in server.tend() and server.tend() == ''
        assert ask(server, server.key, question)[0] == 200  # it has waited
    with pytest.raises(OSError):
        ask(server, server.key, question)


def test_each_has_a_port_and_a_key_of_its_own():
    servers = [EmbeddedServer('m', command=stub) for _ in range(3)]
    assert len({s.port for s in servers}) == len({s.key for s in servers}) == 3
    with pytest.raises(ServerError, match='in use'):
        EmbeddedServer('m', port=servers[0].port)
    for server in servers:
        server.stop()


def test_one_that_ends_at_once_is_not_started_for_ever():
    server = EmbeddedServer('m', command=lambda model, number: [
        sys.executable, '-c', 'raise SystemExit("no memory\x1b[2J")'])
    with pytest.raises(ServerError, match=r'ended at once: no memory \[2J'):
        server.__enter__()
    server = EmbeddedServer('m', command=lambda model, number: ['false'])
    server.start()
    for _ in range(RESTARTS):
        wait_for(lambda: not server.alive)
        assert 'exit code 1' in server.tend() and not server.trouble
    wait_for(lambda: not server.alive)
    assert server.tend() == '' and 'base_url' in server.trouble and not server.alive
    server._restarts[0] -= 700.0
    assert server.tend() and not server.trouble
    server.stop()


def test_serve_hands_its_key_over_in_a_private_file(tmp_path):
    command = [*PYTHON, '-m', 'spotvlm_ros.cli', 'serve', '--port']
    environment = {**os.environ, 'TMPDIR': str(tmp_path), KEY_ENV: ''}
    process = subprocess.Popen([*command, '0'], stdout=subprocess.PIPE, text=True,
                               env=environment)
    try:
        port = re.search(r':(\d+)/v1', process.stdout.readline())[1]
        file = Path(process.stdout.readline().split()[1])
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700 and len(file.read_text()) > 30
        second = subprocess.run([*command, port], capture_output=True, text=True, timeout=60,
                                env=environment | {KEY_ENV: 'sk-known-to-all'})
        assert second.returncode == 1 and f'port {port}' in second.stderr
        assert 'sk-known' not in second.stdout + second.stderr
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20.0) == 0
    assert not list(tmp_path.iterdir())


def test_a_server_that_did_not_come_up_is_started_anew_by_activate(tmp_path, monkeypatch):
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    from spotvlm_ros.nodes import cloud
    from test_nodes_graph import graph
    free = tmp_path / 'free'
    monkeypatch.setattr(cloud, 'EmbeddedServer', lambda *arguments, **options: EmbeddedServer(
        *arguments, **options, command=lambda *given: [
            'sh', '-c', f'test -e {free} || {{ echo no memory; exit 3; }}; exec "$@"', 'sh',
            *stub(*given)]))
    with graph(lambda: [cloud.CloudNode()], files=('driving', 'embedded_cloud')) as (_, running):
        node = running.nodes[-1]
        assert running.failed == ['cloud'] and 'activate: ' in node.last_failure
        assert 'no memory' in node.last_failure and not node.active
        free.touch()
        assert node.trigger_activate().name == 'SUCCESS' and node._embedded.alive


def test_nothing_is_sent_to_a_server_that_does_not_answer_yet(tmp_path):
    """It lay in the socket, grew old there, and kept the server from what is new."""
    gate = tmp_path / 'gate'
    gate.touch()
    with EmbeddedServer('/m', command=lambda *given: [
            'sh', '-c', f'until test -e {gate}; do sleep 0.05; done; exec "$@"', 'sh',
            *stub(*given)]) as server:
        pool = EndpointPool([server.to_ask()], Budget())
        assert pool.pick(time.monotonic()) is pool.endpoints[0]
        gate.unlink()
        os.kill(server._child.process.pid, signal.SIGKILL)
        wait_for(lambda: not server.alive)
        assert pool.pick(time.monotonic()) == 'breaker'  # at once
        assert 'started again' in server.tend() and server.alive
        assert pool.pick(time.monotonic()) == 'breaker'
        gate.touch()
        wait_for(lambda: pool.pick(time.monotonic()) is pool.endpoints[0])


def test_the_node_starts_a_killed_server_again_and_says_so(tmp_path, monkeypatch):
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    from functools import partial

    from diagnostic_msgs.msg import DiagnosticStatus
    from spotvlm_ros.nodes import cloud
    from test_cloud_node import sender
    from test_nodes_graph import graph, keep_sending
    monkeypatch.setenv(KEY_ENV, 'sk-of-a-vendor')
    monkeypatch.setattr(cloud, 'EmbeddedServer', partial(EmbeddedServer, command=stub))
    with graph(lambda: [cloud.CloudNode()],
               files=('driving', 'embedded_cloud')) as (probe, running):
        node = running.nodes[-1]
        keep_sending(probe, sender(probe), lambda: probe.cloud)
        port, answered = node._embedded.port, len(probe.cloud)
        os.kill(node._embedded._child.process.pid, signal.SIGKILL)
        keep_sending(probe, sender(probe), lambda: probe.count('cloud', 'server_restarts'))
        wait_for(lambda: probe.health['cloud'][0] == DiagnosticStatus.WARN)
        keep_sending(probe, sender(probe), lambda: len(probe.cloud) > answered + 1)
        assert node._embedded.port == port and node._servers[0].api_key == node._embedded.key
    assert node._embedded is None
