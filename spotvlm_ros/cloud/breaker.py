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
"""Circuit breaker: stop asking a server that fails, try again soon."""

from __future__ import annotations

from enum import IntEnum
import random


class State(IntEnum):
    """The numbers are those of spotvlm_msgs/CloudStatus."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


class Breaker:
    """
    Opens after ``threshold`` failures in a row, then lets one trial through per backoff.

    The backoff doubles from ``first_s`` to ``longest_s``, which is short so that context comes
    back soon after the server does. Times are steady-clock seconds, given by the caller.
    """

    def __init__(self, threshold: int = 3, first_s: float = 0.25, longest_s: float = 2.0,
                 seed: int | None = None) -> None:
        """Start closed."""
        self.threshold, self.first_s, self.longest_s = threshold, first_s, longest_s
        self.state = State.CLOSED
        self.retry_at = 0.0
        self._failures = 0
        self._random = random.Random(seed)

    def ready(self, now: float) -> bool:
        """Return whether ``allow`` would let a request go."""
        return self.state is State.CLOSED or self.state is State.OPEN and now >= self.retry_at

    def allow(self, now: float) -> bool:
        """Return whether a request may go; when open and due, it becomes the trial."""
        if self.state is State.OPEN and now >= self.retry_at:
            self.state = State.HALF_OPEN
            return True
        return self.state is State.CLOSED

    def success(self) -> None:
        """Note a reply."""
        self.state, self.retry_at = State.CLOSED, 0.0
        self._failures = 0

    def failure(self, now: float) -> None:
        """Note a request without a reply."""
        self._failures += 1
        if self.state is State.CLOSED and self._failures < self.threshold:
            return
        self.state = State.OPEN
        doublings = min(16, self._failures - self.threshold)
        backoff = min(self.longest_s, self.first_s * 2.0 ** max(0, doublings))
        # A pause that the server has asked for is not cut short by requests that were under way.
        self.retry_at = max(self.retry_at, now + backoff * self._random.uniform(0.7, 1.0))

    def open_for(self, now: float, seconds: float) -> None:
        """Note that the server wants to be left alone; a little longer, so that not all come."""
        self._failures += 1
        self.state = State.OPEN
        self.retry_at = max(self.retry_at, now + seconds * self._random.uniform(1.0, 1.1))

    def abandon(self, now: float) -> None:
        """Note that a request was given up for reasons of ours: a trial may be made again."""
        if self.state is State.HALF_OPEN:
            self.state, self.retry_at = State.OPEN, now
