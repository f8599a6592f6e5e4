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
"""
What may be spent per hour: bytes, tokens, money.

A fifth of an hour's allowance may go at once, the rest flows in evenly, so that no hour, however
it is cut, sees more than the limit, and a spent budget means fewer keyframes rather than none for
the rest of the hour. Times are steady-clock seconds, given by the caller.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

HOUR_S = 3600.0
BURST = 0.2      # share of an hour's limit that may be spent at once
BUCKET_S = 60.0  # what was spent is remembered to this


@dataclass(frozen=True)
class Cost:
    """What requests cost; money is in the currency of the prices."""

    bytes: float = 0.0   # noqa: A003
    tokens: float = 0.0
    money: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Return the sum."""
        return Cost(*(getattr(self, n) + getattr(other, n) for n in NAMES))

    def __sub__(self, other: Cost) -> Cost:
        """Return the difference."""
        return Cost(*(getattr(self, n) - getattr(other, n) for n in NAMES))


NAMES = ('bytes', 'tokens', 'money')


class Budget:
    """Takes costs where the hourly limits allow them; a limit of 0 is none."""

    def __init__(self, per_hour: Cost = Cost(), now: float = 0.0) -> None:
        """Start with what may be spent at once."""
        self.per_hour = per_hour
        self.total = Cost()
        self._levels = {n: BURST * getattr(per_hour, n) for n in NAMES}
        self._at = now
        self._recent: deque[tuple[int, Cost]] = deque()

    def lacking(self, cost: Cost, now: float) -> str:
        """Return what there is too little of, '' when the cost can be taken."""
        self._flow(now)
        return next((n for n in NAMES if getattr(self.per_hour, n) and getattr(cost, n)
                     and self._levels[n] < getattr(cost, n)), '')

    def take(self, cost: Cost, now: float) -> None:
        """Note a cost; a negative one gives back what was taken too much."""
        self._flow(now)
        for name in NAMES:
            self._levels[name] -= getattr(cost, name)
        self.total += cost
        bucket = int(now // BUCKET_S)
        if self._recent and self._recent[-1][0] == bucket:
            cost += self._recent.pop()[1]
        self._recent.append((bucket, cost))

    def spent(self, now: float) -> Cost:
        """Return what the last hour cost."""
        self._forget(now)
        return sum((c for _, c in self._recent), Cost())

    def _flow(self, now: float) -> None:
        seconds, self._at = max(0.0, now - self._at), now
        for name in NAMES:
            limit = getattr(self.per_hour, name)
            self._levels[name] = min(BURST * limit, self._levels[name]
                                     + (1 - BURST) * limit * seconds / HOUR_S)
        self._forget(now)

    def _forget(self, now: float) -> None:
        oldest = int((now - HOUR_S) // BUCKET_S)
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()
