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
"""`spotvlm ask`: a question to a running graph."""

from __future__ import annotations

import argparse
import os

from .process import seconds
from ..system.middleware import report_middleware_problem

HELP = 'ask a running graph about what the robot sees now'
EXAMPLE = 'spotvlm ask "Describe the road." --namespace robot1'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('prompt', nargs='?', default='', help='the question')
    parser.add_argument('--query', default='', metavar='ID', help='answer this configured query')
    parser.add_argument('--namespace', default='', metavar='NS', help='robot to ask')
    parser.add_argument('--timeout', type=seconds, default=5.0, metavar='S',
                        help='give up after [s]')
    parser.add_argument('--camera', default='', metavar='NAME',
                        help='ask about frames of this camera')
    parser.add_argument('--max-age', type=seconds, default=0.0, metavar='S',
                        help="about no frame older than this [s]; 0 = the node's default")
    parser.add_argument('--max-tokens', type=int, default=0, metavar='N',
                        help="longest answer; 0 = the node's default")


def execute(arguments: argparse.Namespace) -> int:
    """Ask, print the answer as it comes, and return the exit code."""
    if report_middleware_problem(os.environ):
        return 1
    from ..nodes.ask import ask, Question
    question = Question(arguments.prompt, arguments.query, arguments.camera,
                        arguments.max_tokens, arguments.max_age)
    return ask(question, arguments.namespace, arguments.timeout)
