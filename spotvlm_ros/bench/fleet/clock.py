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
"""An event loop whose clock jumps to the next event: an hour of a fleet takes a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
import selectors
from typing import TypeVar

T = TypeVar('T')


class SimulatedLoop(asyncio.SelectorEventLoop):
    """
    Runs coroutines as always, and never waits.

    Where asyncio would wait for the next timer, its clock jumps there. Executors have no threads:
    what they are given runs at once, in no time.
    """

    def __init__(self) -> None:
        """Begin at 0 s."""
        self._seconds = 0.0
        super().__init__(_Jumps(self._advance))

    def time(self) -> float:
        """Return the simulated time [s]."""
        return self._seconds

    def run_in_executor(self, executor: Executor | None,  # type: ignore[override]
                        func: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Call a function now."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _advance(self, seconds: float) -> None:
        self._seconds += seconds


class _Jumps(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Waits for nothing, and says for how long it would have waited."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None
               ) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError('nothing is left that could happen')
        if timeout > 0:
            self._advance(timeout)
            return []
        return super().select(0)  # type: ignore[no-any-return]
