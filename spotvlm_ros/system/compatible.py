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
"""What Python 3.10 lacks, which is that of ROS 2 Humble; from 3.11 on it is Python's own."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from asyncio import Runner, timeout
else:
    import asyncio
    from collections.abc import AsyncIterator, Coroutine
    from contextlib import asynccontextmanager
    from typing import TypeVar

    from anyio import fail_after

    T = TypeVar('T')

    class Runner:
        """Runs coroutines one after the other in one event loop."""

        def __init__(self) -> None:
            self._loop = asyncio.new_event_loop()

        def run(self, main: Coroutine[object, object, T]) -> T:
            """Run a coroutine to its end."""
            return self._loop.run_until_complete(main)

        def close(self) -> None:
            """Close the loop."""
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    @asynccontextmanager
    async def timeout(delay: float | None) -> AsyncIterator[None]:
        """Cancel what is within after a time [s], and raise TimeoutError."""
        with fail_after(delay):
            yield

__all__ = ['Runner', 'timeout']
