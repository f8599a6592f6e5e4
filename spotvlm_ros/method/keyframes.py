# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Which frames go to the cloud."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .facts import NS, Query


def next_keyframe(queries: Iterable[Query], last_sent_ns: Mapping[str, int], now_ns: int,
                  in_flight: int, max_in_flight: int) -> str | None:
    """
    Return the id of the query to ask the cloud about the frame acquired at ``now_ns``, or None.

    The most overdue query goes first; none goes while ``max_in_flight`` requests are out.
    ``last_sent_ns`` holds the stamp of the last frame sent for each query.
    """
    if in_flight >= max_in_flight:
        return None
    best, best_overdue = None, 0.0
    for query in queries:
        if query.cloud_period_s <= 0:  # 0 = never ask the cloud
            continue
        period = query.cloud_period_s * NS
        sent = last_sent_ns.get(query.id)
        overdue = float('inf') if sent is None else (now_ns - sent) / period
        if overdue >= 1.0 and overdue > best_overdue:
            best, best_overdue = query.id, overdue
    return best
