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
The guard: what context makes of an answer counts only where it makes the edge much surer.

A small model that is told something is inclined to say it, also when its frame shows otherwise.
So a frame is first answered without context. Where that leaves a doubt, it is answered again with
context, and what is surer counts. A value that repeats what was told is held against that: it
counts only if its odds, p / (1 - p), are many times those of the edge's own. One that does not was
seen in the frame, where the context made the edge look. With nothing told there is no second
answer: then the edge's own stands, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence

from .facts import Context, Fact, Query

ODDS = 4.0   # times the odds of the edge's own value that one which repeats the context must have
OFF = 0.0    # the answer given with context stands as it is, in one pass
SURE = 0.95  # probability from which on a fact leaves no doubt


def is_confident(query: Query, own: Sequence[Fact]) -> bool:
    """Return whether an answer without context leaves no doubt."""
    return {f.key for f in own if f.confidence >= SURE} >= set(query.keys)


def select_by_odds(query: Query, own: Sequence[Fact], other: Sequence[Fact], context: Context,
                   odds: float) -> tuple[Fact, ...]:
    """
    Return, for each key, the edge's ``own`` value, or the ``other``, given with context.

    The other must be surer; if it is what the context told, ``odds`` times so.
    """
    first, second = ({f.key: f for f in facts} for facts in (own, other))
    told = {(f.key, f.value) for f in context.facts}
    found = []
    for key in query.keys:
        mine, new = first.get(key), second.get(key)
        if mine is None or (new is not None and new.value != mine.value and _above(
                new.confidence, mine.confidence, odds if (key, new.value) in told else 1.0)):
            mine = new
        if mine is not None:
            found.append(mine)
    return tuple(found)


def _above(p: float, q: float, odds: float) -> bool:
    """Return whether p / (1 - p) > odds * q / (1 - q), of probabilities."""
    return p * (1.0 - q) > odds * q * (1.0 - p)
