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
"""`spotvlm process`: every due frame of a bag answered by the bag's own time."""

from __future__ import annotations

import argparse
from pathlib import Path
import sys

HELP = 'answer a whole bag by its own time, into another bag'
EXAMPLE = 'spotvlm process driving --bag drive --out drive-answers'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('profile', help='driving, hri, or the path of a params file')
    parser.add_argument('--bag', type=Path, required=True, metavar='DIR',
                        help='rosbag2 (mcap or sqlite3) or ROS 1 bag')
    parser.add_argument('--out', type=Path, metavar='DIR',
                        help='folder for the bag of answers, summary.json and journal.jsonl '
                        '(default: NAME-answers, here); a run that was interrupted goes on there')
    parser.add_argument('--topic', default='', help='image topic (default: the only one)')
    parser.add_argument('--from', dest='from_s', type=seconds, default=0.0, metavar='S',
                        help='begin at this time after the first image [s]')
    parser.add_argument('--to', dest='to_s', type=seconds, default=0.0, metavar='S',
                        help='end there [s]; 0 = at the end')
    parser.add_argument('--params-file', action='append', type=Path, default=[], metavar='FILE',
                        help='laid over the profile; may be repeated')
    parser.add_argument('-p', '--param', action='append', default=[], metavar='NODE.NAME:=VALUE',
                        help='one parameter, as in spotvlm run')
    parser.add_argument('--edge-latency', type=seconds, default=0.0, metavar='S',
                        help='an answer of the edge is published this long after its frame '
                        '(default 0)')
    late = parser.add_mutually_exclusive_group()
    late.add_argument('--delay', type=seconds, metavar='S',
                      help='every answer of the cloud comes this long after its frame (default: '
                      'as measured with base_url; emulated, 1 s or as in the profile, with the '
                      'embedded server)')
    late.add_argument('--delays', type=Path, metavar='FILE',
                      help='journal.jsonl of an earlier run: its replies and delays again')
    parser.add_argument('--quiet', action='store_true', help='no progress')


def execute(arguments: argparse.Namespace) -> int:
    """Process the bag and return the exit code."""
    from ..system.signals import StopSignal
    stop = StopSignal()  # before the slow imports
    from ..config.profiles import load_profile
    from ..config.spec import ParameterError
    try:
        profile = load_profile(arguments.profile, arguments.params_file).with_values(
            arguments.param)
        from ..nodes.process import process, ProcessConfig
    except ParameterError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except ImportError as error:
        print(f'error: {error}; run make setup, and see spotvlm doctor', file=sys.stderr)
        return 1
    bag = arguments.bag
    code = process(ProcessConfig(
        bag, arguments.out or Path(f'{bag.resolve().stem}-answers'), arguments.topic,
        arguments.from_s, arguments.to_s, arguments.edge_latency, arguments.delay,
        arguments.delays, arguments.quiet), profile, stop)
    stop.ignore()
    return code


def seconds(text: str) -> float:
    """Read a time."""
    value = float(text)
    if not 0.0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f'{text} is no time; give seconds, 0 or more')
    return value
