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
When cloud answers arrive: the traces of `cloud.traces` in the place of the network.

Draws depend on the episode's seed and the keyframe's number only, so that every system meets the
same network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math

from ...cloud.parse import CloudAnswer
from ...cloud.timeline import CloudTimeline, TimedRequest
from ...cloud.traces import HEADLINE, NEVER, NEVER_S, Trace, TRACES
from ...config.nodes import RequestConfig
from ...method.facts import NS, Query, Turn

__all__ = ('HEADLINE', 'MAX_IN_FLIGHT', 'NEVER', 'NEVER_S', 'QUICK', 'DeliveredReply',
           'SimulatedCloud', 'Trace', 'TRACES')

MAX_IN_FLIGHT = RequestConfig().max_in_flight
QUICK = (HEADLINE, 'fixed 0.5 s', 'fixed 9 s', NEVER)


@dataclass(frozen=True)
class DeliveredReply:
    """An answer of the cloud, and when it arrives."""

    turn: Turn
    at_ns: int

    @property
    def stamp_ns(self) -> int:
        """Stamp of the keyframe."""
        return self.turn.stamp_ns


@dataclass(eq=False)
class _Request(TimedRequest):
    """A request that is answered, or fails, at ``until_ns``."""

    fails: bool


@dataclass(frozen=True)
class SimulatedCloud:
    """The policy of the cloud node over one stream, with traces in the place of the network."""

    query: Query
    frames: Sequence[int]                          # stamps of those offered, in order
    answer: Callable[[int], CloudAnswer | None]    # about the frame of a stamp
    seed: int = 0
    urgent_ns: Sequence[int] = ()                  # when the query is brought forward, in order
    end_ns: int = 0                                # of the stream

    def replies(self, trace: Trace, max_in_flight: int = MAX_IN_FLIGHT) -> list[DeliveredReply]:
        """Return the replies that arrive within the stream, by arrival."""
        timeline: CloudTimeline[_Request] = CloudTimeline(
            [self.query], max_in_flight, lambda r: None if r.fails else self.answer(r.stamp_ns))
        policy, urgent, delivered = timeline.policy, deque(self.urgent_ns), []
        for number, stamp in enumerate(self.frames):
            delivered += _delivered(timeline, stamp)
            while urgent and urgent[0] <= stamp:
                urgent.popleft()
                policy.urge(self.query.id)
            if policy.due(stamp) is not None and policy.has_room:
                policy.begin(self._request(trace, number, stamp))
        return delivered + _delivered(timeline, self.end_ns)

    def _request(self, trace: Trace, number: int, stamp: int) -> _Request:
        """Send a frame; one whose answer is lost fails after the median delay."""
        delay = trace.delay_s(self.seed, number)
        lost = math.isinf(delay)
        until = stamp + int((trace.median_s if lost else delay) * NS)
        span = self.end_ns - self.frames[0]
        out = trace.outage[0] * span <= until - self.frames[0] < trace.outage[1] * span
        return _Request(self.query, stamp, until, lost or out)


def _delivered(timeline: CloudTimeline[_Request], now_ns: int) -> list[DeliveredReply]:
    return [DeliveredReply(over.answer.turn, over.request.until_ns)
            for over in timeline.settle(now_ns) if over.answer is not None]
