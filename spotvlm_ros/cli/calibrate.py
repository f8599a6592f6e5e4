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
"""`spotvlm calibrate`: parameters learned from what was recorded on the robot."""

from __future__ import annotations

import argparse
from pathlib import Path
import sys

HELP = 'learn from a recording whom to believe, and how long; write a params file'
EXAMPLE = 'spotvlm calibrate out/rec --out calibration.yaml'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('source', type=Path, metavar='DIR',
                        help='folder written by spotvlm run --record, or the --out of spotvlm '
                        'process, which makes one of any bag with images')
    parser.add_argument('--out', type=Path, default=Path('calibration.yaml'), metavar='FILE',
                        help='params file to write (default: calibration.yaml)')
    parser.add_argument('--force', action='store_true', help='write over a file that exists')
    parser.add_argument('--every', type=_number, default=1, metavar='N',
                        help='take one answer in N of each query (default 1: all)')
    parser.add_argument('--period', action='store_true',
                        help='write cloud_period_s, too; asking more costs more')
    parser.add_argument('--json', action='store_true', help='print the report as JSON')


def execute(arguments: argparse.Namespace) -> int:
    """Learn, report and write; return the exit code."""
    source: Path = arguments.source
    try:
        from ..recording.calibrate import calibrate, CalibrateConfig, learn_from_recording
        learn = learn_from_recording
        if (source / 'journal.jsonl').is_file():
            from ..nodes.calibrate import learn_from_process as learn
    except ImportError as error:
        print(f'error: {error}; run make setup, and see spotvlm doctor', file=sys.stderr)
        return 1
    if learn is learn_from_recording and not (source / 'edge.jsonl').is_file():
        print(f'error: {source} is neither a folder of spotvlm run --record nor one of spotvlm '
              f'process; make one of a bag by spotvlm process PROFILE --bag {source} --out '
              'answers, and give answers', file=sys.stderr)
        return 1
    return calibrate(CalibrateConfig(
        source, arguments.out, arguments.force, arguments.period, arguments.every,
        arguments.json), learn)


def _number(text: str) -> int:
    """Read a number of answers."""
    if not text.isdecimal() or not 0 < int(text) < 10 ** 6:
        raise argparse.ArgumentTypeError(f'{text!r} is no number; give 1, 2, 3 ...')
    return int(text)
