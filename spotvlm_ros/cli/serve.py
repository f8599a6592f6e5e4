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
from pathlib import Path
import sys
from tempfile import TemporaryDirectory

HELP = 'serve a checkpoint as an OpenAI-compatible server'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('--model', default='spot-mini-cloud', help='shipped name or folder')
    parser.add_argument('--port', type=int, default=0, help='TCP port; 0 = any free one')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads')


def execute(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; return 0, or 1 where the server cannot start."""
    from ..system.signals import StopSignal
    stop = StopSignal()  # before the slow imports
    from ..cloud.client import read_api_key
    from ..cloud.server import EmbeddedServer, ServerError
    from ..mini.shipped import checkpoint_path
    path = checkpoint_path(arguments.model)
    if not path.is_dir():
        print(f'error: --model {arguments.model} is neither a shipped checkpoint nor a folder',
              file=sys.stderr)
        return 1
    with ExitStack() as stack:
        try:
            key = read_api_key()
            server = EmbeddedServer(str(path), port=arguments.port, threads=arguments.threads,
                                    key=key)
            stack.callback(server.stop)
            print(f'serving {path} at {server.url}', flush=True)
            if not key:
                folder = stack.enter_context(TemporaryDirectory(prefix='spotvlm-'))
                file = Path(folder) / 'key'
                file.touch(0o600)
                file.write_text(server.key, encoding='ascii')
                print(f'api_key_file: {file} (only you can read it; it is gone at the end)',
                      flush=True)
            server.start()
            if server.wait(stop):
                print('ready', flush=True)
            while not stop.wait(0.2):
                happened = server.tend()
                if happened:
                    print(happened, file=sys.stderr, flush=True)
        except (ServerError, ValueError) as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
    stop.ignore()
    return 0
