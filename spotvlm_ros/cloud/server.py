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
"""The embedded cloud: a local checkpoint behind `serving`, on the loopback device."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
import http.client
import json
import os
from pathlib import Path
import secrets
import socket
import tempfile
import threading
import time
from types import TracebackType

import cv2
import numpy as np

from .client import cloud_server, CloudServer
from .errors import KEY_ENV
from ..config.nodes import EmulatedDelayConfig, ServerConfig
from ..system.processes import Child, PYTHON

START_S = 120.0   # longest wait for the model to load on a slow machine
RESTARTS = 5      # of a server that ends by itself, at most, in
RESTARTS_S = 600.0
LINE = 200        # characters of what its process said last
HOST = '127.0.0.1'


class ServerError(RuntimeError):
    """The server could not be started; the message has what it said last."""


def serve_command(max_batch: int = 8, keys: Path | None = None, device: str = 'cpu'
                  ) -> Callable[[str, int], Sequence[str]]:
    """Return what serves a checkpoint on an inherited socket; ``keys``: a file with robots'."""
    more = ['--max-batch', str(max_batch), '--device', device,
            *(['--keys', str(keys)] if keys else [])]
    return lambda model, socket_number: [
        *PYTHON, '-m', 'spotvlm_ros.serving.main', model, str(socket_number), *more]


class EmbeddedServer:
    """
    Runs the server while in the ``with`` block.

    It shares the cores with the edge, which must not wait for it: it has what the edge leaves.

    The socket is ours from the beginning to the end, also while the process is started again:
    nobody else can get its port, and what is sent meanwhile waits there (see `up`). What the
    process says goes to a file without a name, which nobody else can read and which is gone with
    it.
    """

    def __init__(self, model: str, *, port: int = 0, threads: int = 1, key: str = '',
                 command: Callable[[str, int], Sequence[str]] = serve_command()) -> None:
        """Take a port, any free one for 0; nothing is started yet. Raise ServerError."""
        self.model, self.key = model, key or secrets.token_urlsafe(32)
        try:
            self._socket = socket.create_server((HOST, port))
        except OSError as error:
            raise ServerError(f'port {port}: {error.strerror}; name another') from error
        self.port = int(self._socket.getsockname()[1])
        self.url = f'http://{HOST}:{self.port}/v1'
        self._log = tempfile.TemporaryFile()
        self._command = list(command(model, self._socket.fileno()))
        self._env = {'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false',
                     'TQDM_DISABLE': '1', 'OMP_NUM_THREADS': str(threads), KEY_ENV: self.key}
        self._child: Child | None = None
        self._answers = threading.Event()
        self._restarts: deque[float] = deque(maxlen=RESTARTS)  # steady clock [s]
        self.trouble = ''  # why it is not started again for now

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._child is not None and self._child.alive

    @property
    def up(self) -> bool:
        """Whether it answers; what it is sent before would wait for it and grow old."""
        return self._answers.is_set() and self.alive

    def start(self) -> None:
        """Start the process unless it runs, do not wait for it."""
        if self.alive:
            return
        if self._child is not None:
            self._child.stop()  # what it may have left behind
        self._log.close()
        self._log = tempfile.TemporaryFile()
        self._answers.clear()
        self._child = Child(self._command, self._env, self._log, idle=True,
                            inherited=[self._socket.fileno()])
        threading.Thread(target=self._greet, args=(self._child,), name='greeting',
                         daemon=True).start()

    def wait(self, stopped: Callable[[], bool] = lambda: False,
             timeout_s: float = START_S) -> bool:
        """
        Wait until a first image was answered; False when ``stopped`` came first.

        Raise ServerError when it ends or does not come up in time.
        """
        until = time.monotonic() + timeout_s
        while not stopped():
            if not self.alive:
                raise ServerError(f'the embedded server ended at once: {self.last_words()}')
            if self._answers.wait(0.1):
                self._warm_up(max(1.0, until - time.monotonic()))
                return True
            if time.monotonic() > until:
                raise ServerError(f'the embedded server was not ready within {timeout_s:g} s: '
                                  f'{self.last_words()}')
        return False

    def tend(self) -> str:
        """Start the process again where it has ended; return what happened, '' for nothing."""
        if self._child is None or self.alive:
            return ''
        now = time.monotonic()
        why = f'the embedded server has ended (exit code {self._child.process.returncode}, last ' \
            f'words: {self.last_words()})'
        if len(self._restarts) == RESTARTS and now - self._restarts[0] < RESTARTS_S:
            left_s = RESTARTS_S - (now - self._restarts[0])
            self.trouble = f'{why}, the {RESTARTS + 1}th time in {RESTARTS_S / 60:g} min; it is ' \
                f'started again in {left_s:.0f} s; is memory free? see spotvlm doctor, or set ' \
                'base_url'
            return ''
        self.trouble = ''
        self._restarts.append(now)
        self.start()
        return f'{why}; it is started again'

    def to_ask(self, config: ServerConfig = ServerConfig(),
               delay: EmulatedDelayConfig = EmulatedDelayConfig()) -> CloudServer:
        """Return it as a server to ask; the other parameters are as given."""
        config = replace(config, base_url=self.url, model=self.model)
        return replace(cloud_server(config, delay=delay), api_key=self.key, up=lambda: self.up)

    def last_words(self) -> str:
        """Return the last line that the process wrote, printable and not too long."""
        number = self._log.fileno()  # whose place the process shares: it must not be moved
        data = os.pread(number, 4096, max(0, os.fstat(number).st_size - 4096))
        lines = [line for line in data.decode(errors='replace').splitlines() if line.strip()]
        text = lines[-1] if lines else 'it said nothing'
        return ''.join(c if c.isprintable() else ' ' for c in text)[:LINE]

    def stop(self) -> None:
        """End the process and all it started, give up the port."""
        if self._child is not None:
            self._child.stop()
            self._child = None
        self._socket.close()
        self._log.close()

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

    def _greet(self, child: Child) -> None:
        """Wait for the answer to a first request; it lies in the socket until it is read."""
        while child.alive:
            if self._ask('GET', '/health', None, START_S) and self._child is child:
                self._answers.set()
                return
            time.sleep(0.1)

    def _ask(self, method: str, path: str, body: str | None, timeout_s: float) -> bool:
        """Ask the server, through no proxy; return whether the answer is good."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, {'Authorization': f'Bearer {self.key}',
                                                    'Content-Type': 'application/json'})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _warm_up(self, timeout_s: float) -> None:
        """Ask about a grey image: the first of its size is slow, and should not be a keyframe."""
        grey = cv2.imencode('.png', np.full((480, 640, 3), 128, np.uint8))[1].tobytes()
        url = 'data:image/png;base64,' + base64.b64encode(grey).decode('ascii')
        content = [{'type': 'image_url', 'image_url': {'url': url}},
                   {'type': 'text', 'text': 'ready?'}]
        body = {'model': self.model, 'max_tokens': 1,
                'messages': [{'role': 'user', 'content': content}]}
        self._ask('POST', '/v1/chat/completions', json.dumps(body), timeout_s)
