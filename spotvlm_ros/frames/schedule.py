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
"""Which standing query the next frame answers."""

from __future__ import annotations

from collections.abc import Sequence

from ..method.facts import NS, Query


class Schedule:
    """
    Gives each query its own rate on average, by frame stamps.

    A due time advances by one period per answer, so that rates that do not divide the camera's
    are kept too; a query that fell behind is due again at once, but owes nothing for the time
    before.
    """

    def __init__(self, queries: Sequence[Query]) -> None:
        """Make all queries due."""
        self._queries = queries
        self._due_ns: dict[str, float] = {}

    def replace(self, queries: Sequence[Query]) -> None:
        """Take other queries from now on; those that stay are due when they were, and first."""
        last = max(self._due_ns.values(), default=0.0)
        self._due_ns = {q.id: self._due_ns.get(q.id, last) for q in queries}
        self._queries = queries

    def clear(self, camera: str | None = None) -> None:
        """Make the queries about a camera due, or all of them."""
        for query in self._queries:
            if camera is None or query.camera == camera:
                self._due_ns.pop(query.id, None)

    def take(self, stamp_ns: int, camera: str = '') -> Query | None:
        """Take the query that has been due longest for a camera's frame of this stamp."""
        query = self.due(stamp_ns, camera)
        if query is not None:
            due_ns = self._due(query, stamp_ns) or stamp_ns
            self._due_ns[query.id] = max(due_ns + NS / query.rate_hz, stamp_ns)
        return query

    def due(self, stamp_ns: int, camera: str = '') -> Query | None:
        """Return the query that `take` would take."""
        due = {q.id: self._due(q, stamp_ns) for q in self._queries if q.camera == camera}
        query = min((q for q in self._queries if q.id in due), key=lambda q: due[q.id],
                    default=None)
        if query is None:
            return None
        period = NS / query.rate_hz
        if stamp_ns < due[query.id] - 0.01 * period:  # a hair early is due: stamps jitter
            return None
        return query

    def _due(self, query: Query, stamp_ns: int) -> float:
        due = self._due_ns.get(query.id, 0.0)
        # Further ahead than any answer puts it: the stream has started over since.
        return due if due - stamp_ns <= 2 * NS / query.rate_hz else 0.0
