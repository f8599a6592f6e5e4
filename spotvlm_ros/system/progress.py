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
"""How far a long command is: a bar in a terminal, else a line now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import time

from rich.console import Console
from rich.progress import (BarColumn, MofNCompleteColumn, Progress, TextColumn,
                           TimeElapsedColumn, TimeRemainingColumn)

LINES_S = 10.0      # between lines where there is no terminal


@contextmanager
def progress(what: str, total: int, quiet: bool = False,
             every_s: float = LINES_S) -> Iterator[Callable[[], None]]:
    """Show it, in units of ``what``, with the time that is left; yield what counts one more."""
    console = Console()
    if console.is_terminal and not quiet:
        with Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
                      TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
        return
    began = last = 0.0   # the first one may take long: models are loaded
    done = 0

    def line() -> None:
        nonlocal began, done, last
        done, now = done + 1, time.monotonic()
        began, last = began or now, last or now
        if not quiet and now - last >= every_s:
            left_s = (now - began) * max(0, total - done) / (done - 1)
            print(f'{done} of {total} {what}, {left_s:.0f} s to go', flush=True)
            last = now
    yield line
