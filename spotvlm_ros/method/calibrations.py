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
"""The calibration of each standing query."""

from __future__ import annotations

from collections.abc import Iterable

from .calibration import Calibration, FrameJudge, KeyState
from .facts import Query, Turn
from .guard import OFF


class Calibrations:
    """
    One `Calibration` for each query that has keys; none where the guard is off.

    Those that do not learn are for queries with weights, which stay as they are.

    As that one, a plain state machine, which is not thread-safe.
    """

    def __init__(self, queries: Iterable[Query], odds: float, learns: bool = True,
                 share: float = 0.0) -> None:
        """Begin as the guard with these odds; for the ``share`` see `Calibration`."""
        self._odds, self._learns, self._share = odds, learns, share * learns
        self._all: dict[str, Calibration] = {}
        self.replace(queries)

    def replace(self, queries: Iterable[Query]) -> None:
        """Have other queries from now on; what was learned of those that ask the same stays."""
        before, self._all = self._all, {}
        for query in queries:
            known = before.get(query.id)
            if known is not None and query.asks_as(known.query) and \
                    query.weights == known.query.weights:
                known.query = query
                self._all[query.id] = known
            elif query.keys and self._odds > OFF and (self._learns or query.weights):
                self._all[query.id] = Calibration(query, self._odds, self._share)

    def judge(self, query: Query, stamp_ns: int) -> FrameJudge | None:
        """Return what judges the answer to a query about a frame, None where nothing does."""
        known = self._all.get(query.id)
        return known.of_frame(stamp_ns) if known is not None and \
            query.asks_as(known.query) else None

    def truth(self, turn: Turn) -> int:
        """Take an answer of the cloud; return how many facts it judges."""
        known = self._all.get(turn.query_id)
        if known is None:
            return 0
        if self._learns:
            return known.truth(turn)
        known.hold(turn)
        return 0

    def hears(self, query_id: str) -> bool:
        """Return whether answers of the cloud to a query count."""
        return query_id in self._all

    def forget(self, camera: str | None = None) -> None:
        """Forget frames and answers of a camera whose stream starts over, or of all."""
        for known in self._all.values():
            if camera is None or known.query.camera == camera:
                known.forget()

    def state(self, query_id: str) -> dict[str, KeyState]:
        """Return what is known of a query, by key."""
        known = self._all.get(query_id)
        return known.state() if known is not None else {}
