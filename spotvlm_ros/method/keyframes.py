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
Which frames go to the cloud, and how many may be with it at once.

A query is due when its last keyframe is older than its period. What the robot notices brings that
forward: a scene that has changed, an edge model that is unsure. Nothing brings it forward beyond
`URGENT_SHARE`, so trouble cannot become a flood; budgets in bytes and money are the bridge's.
Robot and benchmark run the same `KeyframePolicy`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
import math
import statistics
from typing import Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from .appearance import Appearance, similarity_of, thumbnail
from .facts import Fact, NS, Query

SCENE_PERIOD_S = 0.2  # a frame is compared with one at least this much earlier
URGENT_SHARE = 0.4    # an urgent query is due after this share of its period
RECENT = 8            # round trips that the number in flight is fitted to


def next_keyframe(queries: Iterable[Query], last_sent_ns: Mapping[str, int], now_ns: int,
                  urgent: Collection[str] = ()) -> Query | None:
    """
    Return the query to ask the cloud about the frame acquired at ``now_ns``, None if none is due.

    The most overdue query goes first. ``last_sent_ns`` holds the stamp of the last frame sent for
    each query, ``urgent`` the queries whose scene has changed or whose edge answers are unsure.
    """
    best, best_overdue = None, 0.0
    for query in queries:
        if query.cloud_period_s <= 0:  # 0 = never ask the cloud
            continue
        period = query.cloud_period_s * NS * (URGENT_SHARE if query.id in urgent else 1.0)
        sent = last_sent_ns.get(query.id)
        overdue = float('inf') if sent is None else (now_ns - sent) / period
        if overdue >= 1.0 and overdue > best_overdue:
            best, best_overdue = query, overdue
    return best


def target_in_flight(queries: Iterable[Query], round_trips_s: Sequence[float],
                     most: int) -> int:
    """
    Return how many requests to have out at once, 1 to ``most``.

    As many as it takes for one reply per period to come in at the measured round trips: more
    would only queue at the server and make every reply older.
    """
    recent = list(round_trips_s)[-RECENT:]
    rate = sum(1.0 / q.cloud_period_s for q in queries if q.cloud_period_s > 0)
    if not recent or not rate:
        return most
    return max(1, min(most, math.ceil(statistics.median(recent) * rate)))


def is_unsure(confidences: Iterable[float], below: float) -> bool:
    """Return whether an answer of the edge has a fact whose confidence, 0 to 1, is that low."""
    return any(confidence < below for confidence in confidences)


@dataclass
class SceneCutDetector:
    """Tells when the scene before a camera is another, from frames SCENE_PERIOD_S apart."""

    _stamp_ns: int = 0
    _last: Appearance | None = None

    def is_due(self, stamp_ns: int) -> bool:
        """Return whether a frame is one to compare; the others need not be decoded for this."""
        return stamp_ns - self._stamp_ns >= SCENE_PERIOD_S * NS

    def update(self, stamp_ns: int, image: npt.NDArray[np.uint8], cut_below: float) -> bool:
        """Return whether a frame, height x width x 3 in RGB, is the first of another scene."""
        last, self._last = self._last, thumbnail(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        self._stamp_ns = stamp_ns
        return last is not None and similarity_of(last, self._last) < cut_below


@dataclass(eq=False)
class KeyframeRequest:
    """A query about one frame, under way to the cloud and back."""

    query: Query
    stamp_ns: int


R = TypeVar('R', bound=KeyframeRequest)


class KeyframePolicy(Generic[R]):
    """
    Which frames are sent for which query, and which requests are not waited for.

    It knows no clock and no network: the bridge runs it on a robot, SpotBench over a simulated
    network. Not thread-safe.
    """

    def __init__(self, queries: Iterable[Query], max_in_flight: int) -> None:
        """Start with nothing sent; ``max_in_flight`` requests are under way at most."""
        self.max_in_flight = max_in_flight
        self.requests: list[R] = []      # under way
        self.urged = 0                   # times that a query was brought forward
        self._queries = {q.id: q for q in queries}
        self._last_sent_ns: dict[str, int] = {}
        self._urgent: set[str] = set()
        self._round_trips_s: deque[float] = deque(maxlen=RECENT)

    @property
    def target_in_flight(self) -> int:
        """Return how many requests to have under way, by the round trips so far."""
        return target_in_flight(self._queries.values(), self._round_trips_s, self.max_in_flight)

    @property
    def has_room(self) -> bool:
        """Return whether one more request may be under way."""
        return len(self.requests) < self.target_in_flight

    def due(self, stamp_ns: int, camera: str = '') -> Query | None:
        """Return the query that a camera's frame is to be sent for, room or not."""
        return next_keyframe([q for q in self._queries.values() if q.camera == camera],
                             self._last_sent_ns, stamp_ns, self._urgent)

    def urge(self, query_id: str) -> None:
        """Bring a query forward: its scene has changed, or the edge is unsure."""
        if query_id in self._queries and query_id not in self._urgent:
            self._urgent.add(query_id)
            self.urged += 1

    def begin(self, request: R) -> None:
        """Take a request as sent: its query waits for the next period."""
        self.requests.append(request)
        self._last_sent_ns[request.query.id] = request.stamp_ns
        self._urgent.discard(request.query.id)

    def renew(self, request: R, stamp_ns: int) -> bool:
        """Ask about a newer frame instead, if the request is the newest of its query."""
        newest = self._last_sent_ns.get(request.query.id) == request.stamp_ns < stamp_ns
        if newest:
            request.stamp_ns = self._last_sent_ns[request.query.id] = stamp_ns
        return newest

    def answered(self, request: R, round_trip_s: float, complete: bool) -> list[R]:
        """Take an answer; return the requests that it supersedes: they could add nothing."""
        self._round_trips_s.append(round_trip_s)
        return [r for r in self.requests if complete and r.query is request.query
                and r.stamp_ns < request.stamp_ns]

    def end(self, request: R, again: bool) -> None:
        """Take a request as over; with ``again`` its query is due at once, if it is the newest."""
        self.requests.remove(request)
        if again and self._last_sent_ns.get(request.query.id) == request.stamp_ns:
            del self._last_sent_ns[request.query.id]

    def replace(self, queries: Iterable[Query]) -> list[R]:
        """Take other queries from now on; return what is under way about none of them."""
        known, self._queries = self._queries, {q.id: q for q in queries}
        for query_id, query in known.items():
            if not query.asks_as(self._queries.get(query_id)):
                self._last_sent_ns.pop(query_id, None)
                self._urgent.discard(query_id)
        return [r for r in self.requests if not r.query.asks_as(self._queries.get(r.query.id))]

    def reset(self, camera: str = '') -> list[R]:
        """Forget when a camera's frames were sent; return what is under way about them."""
        for query in self._queries.values():
            if query.camera == camera:
                self._last_sent_ns.pop(query.id, None)
        return [r for r in self.requests if r.query.camera == camera]


def is_complete(query: Query, facts: Iterable[Fact], rejected: Collection[str]) -> bool:
    """Return whether an answer has every fact of its query: an older one could add nothing."""
    return not rejected and {f.key for f in facts} == set(query.keys)
