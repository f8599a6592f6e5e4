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
"""`spotvlm query`: the standing questions of a running graph."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
import sys

from .process import seconds
from ..system.middleware import report_middleware_problem

HELP = 'list, add, change or remove the standing questions of a running graph'
EXAMPLE = "spotvlm query set door 'choices: [open, closed]' 'prompt: Is the door open?'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(required=True, metavar='ACTION', dest='action')
    listing = actions.add_parser('list', help='list them',
                                 epilog='example: spotvlm query list --namespace robot1')
    change = actions.add_parser('set', help='add one, or change fields of one',
                                epilog=f'example: {EXAMPLE}')
    change.add_argument('id', metavar='ID', help='of the question')
    change.add_argument('fields', nargs='*', metavar='FIELD',
                        help="as in a params file: 'rate_hz: 2.0' 'choices: [open, closed]'")
    change.add_argument('--file', type=Path, metavar='YAML', help='more fields')
    removal = actions.add_parser('remove', help='remove one',
                                 epilog='example: spotvlm query remove door')
    removal.add_argument('id', metavar='ID', help='of the question')
    for action in (listing, change, removal):
        action.add_argument('--namespace', default='', metavar='NS', help='of the robot')
        action.add_argument('--timeout', type=seconds, default=10.0, metavar='S',
                            help='give up after [s]')
    for action in (change, removal):
        action.add_argument('--persist', action='store_true',
                            help='keep that in the queries_file of node edge')


def execute(arguments: argparse.Namespace) -> int:
    """Do it, print what came of it, and return the exit code."""
    if report_middleware_problem(os.environ):
        return 1
    from ..config.query_changes import MAX_DEFINITION
    from ..nodes.query import list_queries, remove_query, set_query
    from ..system.text_file import read_text_file
    namespace, timeout_s = arguments.namespace, arguments.timeout
    if arguments.action == 'list':
        return list_queries(namespace, timeout_s)
    if arguments.action == 'remove':
        return remove_query(arguments.id, arguments.persist, namespace, timeout_s)
    fields = list(arguments.fields)
    if arguments.file is not None:
        try:
            fields.append(read_text_file(arguments.file, MAX_DEFINITION))
        except ValueError as error:
            print(f'error: {arguments.file} {error}', file=sys.stderr)
            return 1
    return set_query(arguments.id, '\n'.join(fields), arguments.persist, namespace, timeout_s)
