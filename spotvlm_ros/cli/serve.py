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
"""`spotvlm serve`: a checkpoint behind an OpenAI-compatible server on this machine."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
import secrets
import sys
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..system.signals import StopSignal

HELP = 'serve a checkpoint as an OpenAI-compatible server'
EXAMPLE = 'spotvlm serve --port 8000'
OWNER = 'spotvlm-owner'  # who starts a server, among the robots of a file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('--model', default='spot-mini-cloud', help='shipped name or folder')
    parser.add_argument('--port', type=int, default=0, help='TCP port; 0 = any free one')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads, of each replica')
    parser.add_argument('--max-batch', type=int, default=8, metavar='B', choices=range(1, 257),
                        help='requests computed at once, at most (default 8)')
    parser.add_argument('--keys', type=Path, metavar='FILE', help='robots that may ask, one a '
                        'line: name key [requests a second]; mode 600 (default: one key)')
    ray = parser.add_argument_group('Ray Serve (pip install "ray[serve]")')
    ray.add_argument('--ray', nargs='?', const='local', metavar='ADDRESS',
                     help='serve on Ray: started here, or the cluster at ADDRESS')
    ray.add_argument('--replicas', type=int, default=1, metavar='N', choices=range(1, 1025),
                     help='copies of the model, at most (default 1)')
    ray.add_argument('--least', type=int, default=0, metavar='N', choices=range(1025),
                     help='copies that always run; more as requests pile up (default: all)')
    ray.add_argument('--host', default='127.0.0.1', help='address to listen at; beyond this '
                     'machine keys need a proxy with TLS before it (docs/cloud.md)')
    ray.add_argument('--device', default='cpu', help='cpu or cuda, of each replica')


def execute(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; return 0, or 1 where the server cannot start."""
    from ..system.signals import StopSignal
    stop = StopSignal()  # before the slow imports
    from ..cloud.server import ServerError
    from ..mini.shipped import checkpoint_path, CHECKPOINTS
    path = checkpoint_path(arguments.model)
    if not path.is_dir():
        shipped = ' or '.join(sorted(p.name for p in CHECKPOINTS.iterdir()))
        print(f'error: --model {arguments.model} is neither a shipped checkpoint nor a folder; '
              f'give the folder of one, or {shipped}', file=sys.stderr)
        return 1
    with ExitStack() as stack:
        try:
            _check(arguments)
            serve = _on_ray if arguments.ray else _embedded
            serve(arguments, path, stack, stop)
        except (ServerError, ValueError) as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
    stop.ignore()
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise ValueError where something would be ignored, or the keys are none."""
    from ..serving.keys import read_keys
    for name, usual in (('replicas', 1), ('least', 0), ('host', '127.0.0.1')):
        if not arguments.ray and getattr(arguments, name) != usual:
            raise ValueError(f'--{name} needs --ray; give both or neither')
    if arguments.least > arguments.replicas:
        raise ValueError(f'--least {arguments.least} is more than --replicas '
                         f'{arguments.replicas}; give at most that')
    if arguments.keys:
        read_keys(arguments.keys)


def _embedded(arguments: argparse.Namespace, path: Path, stack: ExitStack,
              stop: StopSignal) -> None:
    """Serve in one process, started again when it ends; raise ServerError."""
    from ..cloud.client import read_api_key
    from ..cloud.server import EmbeddedServer, serve_command
    key = read_api_key()
    server = EmbeddedServer(
        str(path), port=arguments.port, threads=arguments.threads, key=key,
        command=serve_command(arguments.max_batch, arguments.keys, arguments.device))
    stack.callback(server.stop)
    print(f'serving {path} at {server.url}', flush=True)
    if not key:
        _hand_over(server.key, stack)
    server.start()
    if server.wait(stop):
        print('ready', flush=True)
    while not stop.wait(0.2):
        happened = server.tend()
        if happened:
            print(happened, file=sys.stderr, flush=True)


def _on_ray(arguments: argparse.Namespace, path: Path, stack: ExitStack,
            stop: StopSignal) -> None:
    """Serve on Ray; raise ServerError."""
    from ..cloud.client import read_api_key
    from ..cloud.server import ServerError
    key, local = read_api_key(), arguments.ray == 'local'
    if not local and not arguments.keys:
        raise ValueError('--ray ADDRESS needs --keys, a file that is on each machine of the '
                         'cluster')
    keys = arguments.keys
    if local:  # what replicas read has the one key, too
        owner = key or secrets.token_urlsafe(32)
        more = keys.read_text('utf-8') if keys else ''
        keys = _private('keys', f'{OWNER} {owner}\n{more}', stack)
        if not key:
            _hand_over(owner, stack)
    from ..serving.on_ray import run, Settings
    if find_spec('ray') is None:
        raise ServerError('--ray: Ray is not installed; pip install "ray[serve]"')
    settings = Settings(
        model=str(path.resolve()), keys=str(keys.resolve()), device=arguments.device,
        max_batch=arguments.max_batch, replicas=arguments.replicas, least=arguments.least,
        cpus=arguments.threads)
    with run(settings, arguments.ray, arguments.host, arguments.port) as url:
        stop.install()  # Ray has put its own in their place
        print(f'serving {path} at {url}\nready', flush=True)
        while not stop.wait(1.0):
            pass


def _hand_over(key: str, stack: ExitStack) -> None:
    """Say where the key is: in a private file."""
    print(f'api_key_file: {_private("key", key, stack)} (only you can read it; it is gone at the '
          'end)', flush=True)


def _private(name: str, text: str, stack: ExitStack) -> Path:
    """Return a file that only its owner can read, until the stack ends."""
    file = Path(stack.enter_context(TemporaryDirectory(prefix='spotvlm-'))) / name
    file.touch(0o600)
    file.write_text(text, encoding='utf-8')
    return file
