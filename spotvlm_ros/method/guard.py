# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
The guard: what context makes of an answer counts only where it makes the edge surer.

A small model that is told something is inclined to say it, also when its frame shows otherwise.
So a frame is first answered without context. Where that leaves a doubt, it is answered again with
context, and of each fact the surer value stands. With nothing told there is no second answer:
then the edge's own stands, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence

from .facts import Fact, Query

MARGIN = 0.1   # probability by which the value given with context must be surer
OFF = -1.0     # the answer given with context stands as it is, in one pass


def settled(query: Query, own: Sequence[Fact], margin: float) -> bool:
    """Return whether no answer can be surer than the edge's own by the margin."""
    sure = {f.key for f in own if f.confidence + margin >= 1.0}
    return sure >= set(query.keys)


def surer(query: Query, own: Sequence[Fact], told: Sequence[Fact], margin: float,
          ) -> tuple[Fact, ...]:
    """Return, for each key, the value given with context if surer by the margin, else its own."""
    first, second = ({f.key: f for f in facts} for facts in (own, told))
    found = []
    for key in query.keys:
        mine, other = first.get(key), second.get(key)
        if mine is None or (other is not None and other.value != mine.value
                            and other.confidence > mine.confidence + margin):
            mine = other
        if mine is not None:
            found.append(mine)
    return tuple(found)
