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
"""Requests to the cloud by a simulated clock: each is over at a moment that is known before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .parse import CloudAnswer
from ..method.facts import NS, Query
from ..method.keyframes import is_complete, KeyframePolicy, KeyframeRequest


@dataclass(eq=False)
class TimedRequest(KeyframeRequest):
    """A request that is over at ``until_ns``, by the clock of the stamps."""

    until_ns: int


R = TypeVar('R', bound=TimedRequest)


@dataclass(frozen=True)
class Settled(Generic[R]):
    """A request that is over, and those that its answer makes pointless."""

    request: R
    answer: CloudAnswer | None    # None: lost
    superseded: Sequence[R] = field(default=())


class CloudTimeline(Generic[R]):
    """The policy of the cloud node, with a simulated clock in the place of the network."""

    def __init__(self, queries: Sequence[Query], max_in_flight: int,
                 answer: Callable[[R], CloudAnswer | None]) -> None:
        """Start with nothing sent; ``answer`` is asked for when it arrives."""
        self.policy: KeyframePolicy[R] = KeyframePolicy(queries, max_in_flight)
        self._answer = answer

    def settle(self, now_ns: int) -> Iterator[Settled[R]]:
        """Yield what is over by now, in the order of time."""
        policy = self.policy
        while over := [r for r in policy.requests if r.until_ns <= now_ns]:
            request = min(over, key=lambda r: (r.until_ns, r.stamp_ns))
            answer = self._answer(request)
            policy.end(request, again=answer is None)
            superseded: Sequence[R] = ()
            if answer is not None:
                superseded = policy.answered(
                    request, (request.until_ns - request.stamp_ns) / NS,
                    is_complete(request.query, answer.facts, answer.rejected))
                for older in superseded:
                    policy.end(older, again=False)
            yield Settled(request, answer, superseded)
