# Copyright 2026 spotvlm maintainers
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

    def take(self, stamp_ns: int) -> Query | None:
        """Return the query that has been due longest for the frame of this stamp, or None."""
        query = min(self._queries, key=lambda q: self._due_ns.get(q.id, 0.0), default=None)
        if query is None:
            return None
        period = NS / query.rate_hz
        due = self._due_ns.get(query.id, float(stamp_ns))
        if stamp_ns < due - 0.01 * period:  # a hair early is due: stamps jitter
            return None
        self._due_ns[query.id] = max(due + period, stamp_ns)
        return query
