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
"""`spotvlm params`: all parameters of the nodes, and whether files of them are right."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys

HELP = 'list all parameters, or check params files'
EXAMPLE = 'spotvlm params --profile driving robot.yaml'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('files', nargs='*', type=Path, help='params files to check')
    parser.add_argument('--profile', default='', metavar='NAME',
                        help='check each file as it is laid over this profile, as driving '
                        '(default: by itself where it names queries, else over the profiles '
                        'there are)')
    parser.add_argument('--schema', action='store_true', help='print them as a JSON schema, by '
                        'which editors complete and check params files')
    parser.add_argument('--update', metavar='FILE', type=Path,
                        help='renew the tables in this Markdown file')


def execute(arguments: argparse.Namespace) -> int:
    """List, check or renew; return 1 at the first file that is wrong."""
    from ..config.profiles import check_overlay
    from ..config.schema import params_schema
    from ..config.tables import markdown, MARKS
    from ..method.prompt import printable
    from ..system.markdown import replace_between
    try:
        if arguments.update is not None:
            replace_between(arguments.update, markdown(), MARKS)
        elif arguments.schema:
            print(json.dumps(params_schema(), indent=1))
        elif not arguments.files:
            print(markdown())
        for path in arguments.files:
            over = check_overlay(path, arguments.profile)
            print(f'{path}: fine' + (f', laid over {", ".join(over)}' if over else ''))
    except (OSError, ValueError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 1
    return 0
