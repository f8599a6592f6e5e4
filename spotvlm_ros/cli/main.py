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
"""The command `spotvlm`. Nothing slow is imported before a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import importlib
import os
import sys
from typing import Protocol

from . import ask, calibrate, completion, label, params, process, query, report, run, serve


class Command(Protocol):
    """A module of this package that is one subcommand."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def execute(self, arguments: argparse.Namespace) -> int:
        """Run the command and return its exit code."""


COMMANDS: dict[str, Command] = {'run': run, 'process': process, 'label': label,
                                'calibrate': calibrate, 'serve': serve, 'ask': ask,
                                'query': query, 'params': params, 'report': report,
                                'completion': completion}

# Subcommands that live elsewhere and parse their own arguments: module:function, called with argv;
# command_parser of the module returns what parses them.
ELSEWHERE = {
    'demo': ('spotvlm_ros.bench.demo:main',
             'the whole graph for half a minute on the shipped models'),
    'bench': ('spotvlm_ros.bench.spotbench.main:main',
              'SpotBench: accuracy over delay, help and harm'),
    'perf': ('spotvlm_ros.bench.perf.main:main', 'overhead, latency and speed against baselines'),
    'replay': ('spotvlm_ros.recording.replay:main',
               'run a recording again, without ROS, and compare'),
    'train': ('spotvlm_ros.training.main:main',
              'teach an edge model labelled frames, or train the miniature models'),
    'check': ('spotvlm_ros.bench.check:main',
              "whether an edge model answers a profile's questions in time on this machine"),
    'doctor': ('spotvlm_ros.system.doctor:run', 'what is installed, what is missing, what to do'),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    if '_ARGCOMPLETE' in os.environ:  # set by the shell, which wants completions and no more
        completion.complete(command_parser)
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ['node']:  # for run --multi-process; everything after it is for ROS
        from ..nodes.main import run_node
        return run_node(argv[1], argv[2:], exit_on_failure=True)
    if argv and argv[0] in ELSEWHERE:
        module, _, function = ELSEWHERE[argv[0]][0].partition(':')
        return int(getattr(importlib.import_module(module), function)(argv[1:]) or 0)
    if not argv:
        command_parser().print_help()
        return 2
    arguments = command_parser().parse_args(argv)
    return COMMANDS[arguments.command].execute(arguments)


def command_parser(whole: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return the parser; ``whole`` names those of ELSEWHERE whose arguments it has to know."""
    parser = argparse.ArgumentParser(
        'spotvlm', description=__doc__, epilog='example: spotvlm demo; each COMMAND has a --help '
        'with an example of its own')
    commands = parser.add_subparsers(required=True, metavar='COMMAND', dest='command')
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(
            name, help=command.HELP, epilog=f'example: {command.EXAMPLE}'))
    for name, (_, text) in ELSEWHERE.items():
        known = [parser_of(name)] if name in whole else []
        commands.add_parser(name, help=text, add_help=False, parents=known)
    return parser


def parser_of(name: str) -> argparse.ArgumentParser:
    """Return the parser of a subcommand that lives elsewhere; imports what that imports."""
    module = importlib.import_module(ELSEWHERE[name][0].partition(':')[0])
    parser: argparse.ArgumentParser = module.command_parser()
    return parser


if __name__ == '__main__':
    sys.exit(main())
