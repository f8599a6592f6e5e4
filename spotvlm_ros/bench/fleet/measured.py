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
"""The batch curve of a checkpoint, on keyframes and questions as robots send them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
import json
from pathlib import Path
import socket
import subprocess
import sys
from tempfile import TemporaryDirectory
import threading
import time

import numpy as np

from .curve import beside, Curve, measure, ROUNDS, SIZES
from ...cloud.client import cloud_server
from ...cloud.keyframe_encoder import KeyframeEncoder
from ...cloud.wording import ask_text
from ...config.profiles import load_profile
from ...mini.worlds import make_world, TUNE_SEEDS
from ...serving.chat import ChatRequest
from ...serving.checkpoint import Checkpoint, Prepared, Reply
from ...serving.keys import Keys, Robot
from ...serving.service import App, Limits, Service

FRAMES = 8
KEY = 'robots'
ASKERS = 16   # that ask at once, so that there is always one to make ready
ASK = """
import http.client, sys, threading
port, path, askers, key = sys.argv[1:]
body = open(path, 'rb').read()
head = {'Authorization': 'Bearer ' + key, 'Content-Type': 'application/json'}
def ask():
    to = http.client.HTTPConnection('127.0.0.1', int(port))
    while True:
        to.request('POST', '/v1/chat/completions', body, head)
        to.getresponse().read()
for _ in range(int(askers)):
    threading.Thread(target=ask).start()
"""


def bodies(profile: str, model: str) -> list[bytes]:
    """Return what robots of a profile ask first, each about a frame of its own."""
    loaded = load_profile(profile)
    query, encoder = loaded.queries('cloud')[0], KeyframeEncoder()
    config = cloud_server(replace(loaded.cloud, base_url='http://127.0.0.1', model=model)).config
    asked = []
    for number in range(FRAMES):
        frame = make_world(loaded.camera.world, TUNE_SEEDS.start + number).frame(100)
        jpeg = encoder.encode(None, partial(np.asarray, frame)).jpeg
        url = 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode('ascii')
        asked.append(json.dumps({
            'model': model, 'max_tokens': config.max_tokens, 'messages': [{
                'role': 'user', 'content': [
                    {'type': 'image_url', 'image_url': {'url': url}},
                    {'type': 'text', 'text': ask_text(query, config, False)}]}]}).encode())
    return asked


def requests(checkpoint: Checkpoint, profile: str, model: str) -> list[Prepared]:
    """Return the same in tensors."""
    return [_prepared(checkpoint, body) for body in bodies(profile, model)]


def measured_curve(checkpoint: Checkpoint, name: str, profile: str,
                   sizes: Sequence[int] = SIZES, rounds: int = ROUNDS) -> Curve:
    """Measure how long batches take, and requests until they are ready, beside batches."""
    asked = requests(checkpoint, profile, name)
    curve = measure(name, checkpoint.answer, asked, sizes, rounds)
    service = Service(_Reader(checkpoint), Keys([(KEY, Robot('robots'))]), Limits((name,), ASKERS))
    with serving(service) as port, TemporaryDirectory() as folder:
        Path(folder, 'body').write_bytes(bodies(profile, name)[0])
        asking = subprocess.Popen([sys.executable, '-c', ASK, str(port), f'{folder}/body',
                                   str(ASKERS), KEY])
        try:
            until = time.monotonic() + 30.0
            while not _ready(service) and time.monotonic() < until:
                time.sleep(0.05)
            return beside(curve, checkpoint.answer, asked, partial(_ready, service))
        finally:
            asking.kill()
            asking.wait()


@contextmanager
def serving(service: Service, port: int = 0) -> Iterator[int]:
    """Serve by the app, from this process, meanwhile; yield the port."""
    import uvicorn
    server = uvicorn.Server(uvicorn.Config(App(service), lifespan='off', log_level='warning',
                                           access_log=False))
    listener = socket.create_server(('127.0.0.1', port))
    thread = threading.Thread(target=server.run, args=([listener],), name='server', daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = server.force_exit = True
        thread.join(5.0)


class _Reader:
    """Makes requests ready, and answers at once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.prepare = checkpoint.prepare

    def answer(self, batch: Sequence[Prepared], gone: Callable[[int], bool]) -> list[Reply]:
        return [Reply('', 1, 1, True) for _ in batch]


def _ready(service: Service) -> int:
    return int(service.meters.value('requests_total', '200'))


def _prepared(checkpoint: Checkpoint, body: bytes) -> Prepared:
    return checkpoint.prepare(ChatRequest.model_validate_json(body))
