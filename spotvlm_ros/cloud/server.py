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
"""The embedded cloud: `transformers serve` with a local checkpoint on the loopback device."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import shutil
import socket
import sys
import tempfile
import time
from types import TracebackType
import urllib.error
import urllib.request

import cv2
import numpy as np

from ..system.processes import Child

START_S = 120.0  # longest wait for the model to load on a slow machine
HOST = '127.0.0.1'


class ServerError(RuntimeError):
    """The server could not be started; the message names its log."""


def serve_command(model: str, port: int) -> list[str]:
    """Return the command that serves a checkpoint."""
    beside = Path(sys.executable).with_name('transformers')
    program = str(beside) if beside.exists() else shutil.which('transformers')
    if not program:
        raise ServerError("command transformers is missing; pip install 'transformers[serving]'")
    return [program, 'serve', model, '--device', 'cpu', '--dtype', 'float32', '--host', HOST,
            '--port', str(port)]


def serve_env(threads: int) -> dict[str, str]:
    """Return what the server needs in its environment."""
    # GET /v1/models answers 500 unless a Hugging Face cache folder exists.
    cache = Path(os.environ.get('HF_HUB_CACHE')
                 or Path(tempfile.gettempdir()) / f'spotvlm-hf-{os.getuid()}' / 'hub')
    cache.mkdir(parents=True, exist_ok=True)
    return {'HF_HUB_OFFLINE': '1', 'HF_HUB_CACHE': str(cache), 'OMP_NUM_THREADS': str(threads),
            'TOKENIZERS_PARALLELISM': 'false'}


def free_port() -> int:
    """Return a TCP port of the loopback device that nobody uses."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class EmbeddedServer:
    """
    Runs the server while in the ``with`` block.

    It shares the cores with the edge, which must not wait for it: it has what the edge leaves.
    """

    def __init__(self, model: str, *, port: int = 0, threads: int = 1, log: Path | None = None,
                 command: Sequence[str] | None = None) -> None:
        """Prepare; nothing is started yet."""
        self.model, self.port = model, port or free_port()
        self.url = f'http://{HOST}:{self.port}/v1'
        self.log = log or Path(tempfile.gettempdir()) / f'spotvlm-server-{self.port}.log'
        self._command = list(command or serve_command(model, self.port))
        self._threads = threads
        self._child: Child | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._child is not None and self._child.alive

    def start(self) -> None:
        """Start the process, do not wait for it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._child = Child(self._command, serve_env(self._threads), self.log, idle=True)

    def wait(self, stopped: Callable[[], bool] = lambda: False,
             timeout_s: float = START_S) -> bool:
        """
        Wait until a first image was answered; False when ``stopped`` came first.

        Raise ServerError when it ends or does not come up in time.
        """
        until = time.monotonic() + timeout_s
        while not stopped():
            if not self.alive:
                raise ServerError(f'the embedded server ended at once; see {self.log}')
            if self._healthy():
                self._warm_up(max(1.0, until - time.monotonic()))
                return True
            if time.monotonic() > until:
                raise ServerError(f'the embedded server was not ready within {timeout_s:g} s; '
                                  f'see {self.log}')
            time.sleep(0.1)
        return False

    def stop(self) -> None:
        """End the process and all it started."""
        if self._child is not None:
            self._child.stop()
            self._child = None

    def __enter__(self) -> EmbeddedServer:
        """Start and wait."""
        try:
            self.start()
            self.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Stop."""
        self.stop()

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f'http://{HOST}:{self.port}/health', timeout=2.0) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def _warm_up(self, timeout_s: float) -> None:
        """Ask about a grey image: the first request is slow, and should not be a keyframe."""
        grey = cv2.imencode('.png', np.full((64, 64, 3), 128, np.uint8))[1].tobytes()
        url = 'data:image/png;base64,' + base64.b64encode(grey).decode('ascii')
        content = [{'type': 'image_url', 'image_url': {'url': url}},
                   {'type': 'text', 'text': 'ready?'}]
        body = {'model': self.model, 'max_tokens': 1,
                'messages': [{'role': 'user', 'content': content}]}
        request = urllib.request.Request(f'{self.url}/chat/completions',
                                         json.dumps(body).encode('utf-8'),
                                         {'Content-Type': 'application/json'})
        try:
            urllib.request.urlopen(request, timeout=timeout_s).close()
        except (OSError, urllib.error.URLError):
            pass  # the first keyframe will tell
