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
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
import math
import statistics

import cv2
import numpy as np
import numpy.typing as npt

from .appearance import Appearance, similarity_of, thumbnail
from .facts import NS, Query

SCENE_PERIOD_S = 0.2  # a frame is compared with one at least this much earlier
URGENT_SHARE = 0.4    # an urgent query is due after this share of its period
RECENT = 8            # round trips that the number in flight is fitted to


def next_keyframe(queries: Iterable[Query], last_sent_ns: Mapping[str, int], now_ns: int,
                  in_flight: int, max_in_flight: int,
                  urgent: Collection[str] = ()) -> str | None:
    """
    Return the id of the query to ask the cloud about the frame acquired at ``now_ns``, or None.

    The most overdue query goes first; none goes while ``max_in_flight`` requests are out.
    ``last_sent_ns`` holds the stamp of the last frame sent for each query, ``urgent`` the queries
    whose scene has changed or whose edge answers are unsure.
    """
    if in_flight >= max_in_flight:
        return None
    best, best_overdue = None, 0.0
    for query in queries:
        if query.cloud_period_s <= 0:  # 0 = never ask the cloud
            continue
        period = query.cloud_period_s * NS * (URGENT_SHARE if query.id in urgent else 1.0)
        sent = last_sent_ns.get(query.id)
        overdue = float('inf') if sent is None else (now_ns - sent) / period
        if overdue >= 1.0 and overdue > best_overdue:
            best, best_overdue = query.id, overdue
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
