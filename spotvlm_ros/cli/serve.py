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
import sys

HELP = 'serve a checkpoint as an OpenAI-compatible server'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('--model', default='spot-mini-cloud', help='shipped name or folder')
    parser.add_argument('--port', type=int, default=0, help='TCP port; 0 = any free one')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads')


def execute(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes or the server ends; return its exit code."""
    from ..system.signals import StopSignal
    stop = StopSignal()  # before the slow imports
    from ..cloud.server import free_port, serve_command, serve_env
    from ..mini.shipped import checkpoint_path
    from ..system.processes import Child
    path = checkpoint_path(arguments.model)
    if not path.is_dir():
        print(f'error: --model {arguments.model} is neither a shipped checkpoint nor a folder',
              file=sys.stderr)
        return 1
    port = arguments.port or free_port()
    print(f'serving {path} at http://127.0.0.1:{port}/v1', flush=True)
    server = Child(serve_command(str(path), port), serve_env(arguments.threads))
    while server.alive and not stop.wait(0.2):
        pass
    code = 0 if server.alive else server.process.returncode
    server.stop()
    stop.ignore()
    return code
