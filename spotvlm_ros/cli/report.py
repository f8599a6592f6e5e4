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
"""`spotvlm report`: one page of a recorded run, or of a bag with answers."""

from __future__ import annotations

import argparse
from pathlib import Path
import sys

HELP = 'make one page of a recorded run'
EXAMPLE = 'spotvlm report out/rec --out report.html'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('run', type=Path, metavar='RUN',
                        help='folder of spotvlm run --record, or bag of spotvlm process')
    parser.add_argument('--out', type=Path, metavar='FILE',
                        help='page to write (default: report.html in that folder)')


def execute(arguments: argparse.Namespace) -> int:
    """Write the page and return the exit code."""
    from ..method.prompt import printable
    from ..view.recorded import read_run, RunError
    from ..view.report import write_report
    folder = arguments.run
    path = arguments.out or (folder if folder.is_dir() else folder.parent) / 'report.html'
    try:
        run = read_run(folder)
        write_report(run, path)
    except (RunError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 1
    print(f'{len(run.steps)} answers are shown in {path}')
    return 0
