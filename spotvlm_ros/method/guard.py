# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
The guard: what context makes of an answer counts only where it makes the edge much surer.

A small model that is told something is inclined to say it, also when its frame shows otherwise.
So a frame is first answered without context. Where that leaves a doubt, it is answered again with
context, and a value given then counts if its odds, p / (1 - p), are several times those of the
edge's own. With nothing told there is no second answer: then the edge's own stands, token by
token.
"""

from __future__ import annotations

from collections.abc import Sequence

from .facts import Fact, Query

ODDS = 4.0   # times the odds of the edge's own value that one given with context must have
OFF = 0.0    # the answer given with context stands as it is, in one pass
SURE = 0.95  # probability from which on a fact leaves no doubt


def settled(query: Query, own: Sequence[Fact]) -> bool:
    """Return whether an answer without context leaves no doubt."""
    return {f.key for f in own if f.confidence >= SURE} >= set(query.keys)


def surer(query: Query, own: Sequence[Fact], told: Sequence[Fact], odds: float,
          ) -> tuple[Fact, ...]:
    """Return, for each key, the value given with context if much surer, else the edge's own."""
    first, second = ({f.key: f for f in facts} for facts in (own, told))
    found = []
    for key in query.keys:
        mine, other = first.get(key), second.get(key)
        if mine is None or (other is not None and other.value != mine.value
                            and _above(other.confidence, mine.confidence, odds)):
            mine = other
        if mine is not None:
            found.append(mine)
    return tuple(found)


def _above(p: float, q: float, odds: float) -> bool:
    """Return whether p / (1 - p) > odds * q / (1 - q), of probabilities."""
    return p * (1.0 - q) > odds * q * (1.0 - p)
