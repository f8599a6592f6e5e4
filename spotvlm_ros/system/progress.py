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

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
import sys
import threading
import time
from typing import TextIO, TypeVar

T = TypeVar('T')
LINES_S = 10.0      # between lines where there is no terminal
SILENT_S = 30.0     # and at most, also where nothing has come of it meanwhile


@contextmanager
def progress(what: str, total: int, quiet: bool = False, every_s: float = LINES_S,
             out: TextIO | None = None) -> Iterator[Callable[[], None]]:
    """
    Show it, in units of ``what``, with the time that is left; yield what counts one more.

    To ``out``, by default the standard output.
    """
    if (out or sys.stdout).isatty() and not quiet:
        from rich.console import Console
        from rich.progress import (BarColumn, MofNCompleteColumn, Progress, TextColumn,
                                   TimeElapsedColumn, TimeRemainingColumn)
        console = Console(file=out)
        with Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
                      TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
        return
    started = time.monotonic()
    began = last = 0.0   # the first one may take long: models are loaded
    done = 0

    def tell(left: str) -> None:
        nonlocal last
        last = time.monotonic()
        print(f'{done} of {total} {what}, {left}', file=out or sys.stdout, flush=True)

    def line() -> None:
        nonlocal began, done, last
        done, now = done + 1, time.monotonic()
        began, last = began or now, last or now
        if not quiet and done > 1 and now - last >= every_s:
            tell(f'{(now - began) * max(0, total - done) / (done - 1):.0f} s to go')

    def silent() -> None:
        if time.monotonic() - (last or started) >= SILENT_S / 2.0:
            tell(f'{time.monotonic() - started:.0f} s so far')
    with repeated((lambda: None) if quiet else silent):
        yield line


def tracked(items: Iterable[T], what: str, total: int, out: TextIO | None = None) -> Iterator[T]:
    """Yield the items, and show the progress."""
    with progress(what, total, out=out) as done:
        for item in items:
            yield item
            done()


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say what is being done: on a terminal while it is, elsewhere in a line now and then."""
    started = time.monotonic()
    if sys.stdout.isatty():
        from rich.console import Console
        with Console().status(f'{what} ...'):
            yield
        return
    print(f'{what} ...', flush=True)
    with repeated(lambda: print(f'{what}, {time.monotonic() - started:.0f} s so far',
                                flush=True)):
        yield


@contextmanager
def repeated(do: Callable[[], None]) -> Iterator[None]:
    """Do something every `SILENT_S`, in a thread, until the end of the block."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(SILENT_S):
            do()
    thread = threading.Thread(target=run, name='progress', daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
