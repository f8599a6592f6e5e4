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
"""Servers that simulated robots ask, each in processes of its own on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
import http.client
from pathlib import Path
import secrets
import socket
import tempfile
import time

import psutil

from ...cloud.client import cloud_server, CloudServer
from ...cloud.errors import KEY_ENV
from ...cloud.server import HOST, serve_command, START_S
from ...config.nodes import ServerConfig
from ...system.processes import Child, PYTHON

SERVERS = ('transformers', 'batching', 'ray')
ENVIRONMENT = {'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false', 'TQDM_DISABLE': '1',
               'RAY_USAGE_STATS_ENABLED': '0', 'RAY_DEDUP_LOGS': '0'}


@dataclass(frozen=True)
class Options:
    """How servers are started."""

    model: Path
    threads: int = 1
    max_batch: int = 8
    replicas: int = 1


def command_of(name: str, options: Options, port: int, socket_number: int) -> list[str]:
    """Return the command that starts a server, on a port or a socket that it inherits."""
    if name == 'transformers':
        return [*PYTHON, '-c', 'from transformers.cli.transformers import main; main()', 'serve',
                str(options.model), '--host', HOST, '--port', str(port), '--device', 'cpu',
                '--log-level', 'error']
    if name == 'batching':
        return [*serve_command(options.max_batch)(str(options.model), socket_number)]
    return [*PYTHON, '-m', 'spotvlm_ros.cli', 'serve', '--ray', '--replicas',
            str(options.replicas), '--model', str(options.model), '--port', str(port), '--threads',
            str(options.threads), '--max-batch', str(options.max_batch)]


class Server:
    """Runs a server while in the ``with`` block."""

    def __init__(self, name: str, options: Options) -> None:
        """Take a port; nothing is started yet."""
        self._socket = socket.create_server((HOST, 0))
        self.port = int(self._socket.getsockname()[1])
        self.url = f'http://{HOST}:{self.port}/v1'
        self.name, self.key = name, secrets.token_urlsafe(32)
        self._command = command_of(name, options, self.port, self._socket.fileno())
        self._env = ENVIRONMENT | {KEY_ENV: self.key, 'OMP_NUM_THREADS': str(options.threads)}
        self._model = str(options.model)
        self._log = tempfile.TemporaryFile()
        self.start_s = 0.0   # from the command to the first answer

    def __enter__(self) -> Server:
        """Start, and wait until it answers."""
        began, number = time.monotonic(), self._socket.fileno()
        if self.name != 'batching':
            self._socket.close()  # the others take the port themselves
        self.child = Child(self._command, self._env, self._log,
                           inherited=[number] * (self.name == 'batching'))
        try:
            while not self.answers():
                if not self.child.alive or time.monotonic() - began > START_S:
                    self._log.seek(0)
                    raise RuntimeError(f'{self.name} did not start: '
                                       f'{self._log.read()[-2000:].decode(errors="replace")}')
                time.sleep(0.05)
        except BaseException:
            self.child.stop()
            raise
        self.start_s = time.monotonic() - began
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self.child.stop(20.0)
        self._socket.close()
        self._log.close()

    def answers(self) -> bool:
        """Return whether it says that it is well."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5.0)
        try:
            connection.request('GET', '/health', headers={'Authorization': f'Bearer {self.key}'})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def to_ask(self) -> CloudServer:
        """Return it as robots know it."""
        server = cloud_server(ServerConfig(base_url=self.url, model=self._model))
        return replace(server, api_key=self.key)

    @property
    def memory_mb(self) -> float:
        """Return what its processes hold, each page once where they share it [MB]."""
        process = psutil.Process(self.child.process.pid)
        total = 0
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_full_info().pss
            except psutil.Error:
                continue
        return total / 1e6


def start(names: Sequence[str], options: Options, stack: ExitStack) -> Mapping[str, Server]:
    """Start servers, one after the other, to run until the stack ends."""
    return {name: stack.enter_context(Server(name, options)) for name in names}
