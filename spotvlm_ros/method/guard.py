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

A small model repeats what its context says, also when its frame shows otherwise.
So a frame is first answered without context. Where that leaves a doubt, it is answered again with
context, and what is surer counts. A value that repeats the context is held against that: it
counts only if its odds, p / (1 - p), are many times those of the edge's value without. One that
does not was seen in the frame, where the context made the edge look. Without any context there is
no second answer: then the first stands, token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from .facts import Context, Fact, Query

ODDS = 4.0   # times the odds of the value without context, of one that repeats the context
OFF = 0.0    # the answer given with context stands as it is, in one pass
SURE = 0.95  # probability from which on a fact leaves no doubt


class PassAnswer(Protocol):
    """What one pass of the edge model must tell the guard."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """Return the facts, each with its probability as confidence."""

    @property
    def partial(self) -> bool:
        """Whether the pass was stopped before the model was done."""


A = TypeVar('A', bound=PassAnswer)


class Judge(Protocol):
    """Says which facts of two passes count: `FixedOdds`, or a `calibration.FrameJudge`."""

    def guards(self, query: Query) -> bool:
        """Return whether answers to a query are guarded: a text has no facts to compare."""

    def leaves_no_doubt(self, facts: Sequence[Fact], context: Context | None) -> bool:
        """Return whether an answer without context needs no second pass."""

    def select(self, first: Sequence[Fact], second: Sequence[Fact] | None,
               context: Context | None) -> tuple[Fact, ...]:
        """Return the facts that count, of an answer in one pass or in two."""


@dataclass(frozen=True)
class FixedOdds:
    """The guard's own rule, with the same odds for every key."""

    query: Query
    odds: float = ODDS

    def guards(self, query: Query) -> bool:
        """Return whether answers to a query are guarded."""
        return self.odds > OFF and query.format != 'text'

    def leaves_no_doubt(self, facts: Sequence[Fact], context: Context | None) -> bool:
        """Return whether an answer without context is confident in every key."""
        return is_confident(self.query, facts)

    def select(self, first: Sequence[Fact], second: Sequence[Fact] | None,
               context: Context | None) -> tuple[Fact, ...]:
        """Return the facts that count."""
        if second is None or context is None:
            return tuple(first)
        return select_by_odds(self.query, first, second, context, self.odds)


def guarded_answer(query: Query, context: Context | None, judge: Judge,
                   pass_: Callable[[Context | None], A],
                   combine: Callable[[A, A | None, tuple[Fact, ...]], A],
                   on_error: Callable[[Exception], None] | None = None) -> A:
    """
    Return the answer to a query about a frame, in one pass of the model or in two.

    ``pass_`` answers once, with a context or without. ``combine`` is given the answers without
    and with context, None where there was no second pass, and the facts that count, where they
    are not those of the first; it returns the whole. A second pass that is stopped early is
    forgotten: the first one's answer stands. So does the answer without context where a pass with
    it raises, if there is ``on_error`` to tell.
    """
    def with_context() -> A | None:
        try:
            return pass_(context)
        except Exception as error:
            if on_error is None:
                raise
            on_error(error)
            return None
    if not judge.guards(query):
        only = with_context() if context is not None else None
        return only if only is not None else pass_(None)
    first = pass_(None)
    if first.partial:
        return first
    second = None
    if context is not None and context.helps and \
            not judge.leaves_no_doubt(first.facts, context):
        second = with_context()
        if second is not None and second.partial:
            second = None
    facts = judge.select(first.facts, None if second is None else second.facts, context)
    return first if second is None and facts == first.facts else combine(first, second, facts)


def is_confident(query: Query, facts: Sequence[Fact]) -> bool:
    """Return whether an answer without context leaves no doubt."""
    return {f.key for f in facts if f.confidence >= SURE} >= set(query.keys)


def select_by_odds(query: Query, first: Sequence[Fact], second: Sequence[Fact], context: Context,
                   odds: float) -> tuple[Fact, ...]:
    """
    Return, for each key, the ``first`` fact, without context, or the ``second``, with it.

    The second must be surer; if it repeats the context, its odds must be ``odds`` times as high.
    """
    without, with_context = ({f.key: f for f in facts} for facts in (first, second))
    repeatable = {(f.key, f.value) for f in context.facts}
    selected = []
    for key in query.keys:
        fact, other = without.get(key), with_context.get(key)
        if fact is None or (other is not None and other.value != fact.value and _is_surer(
                other.confidence, fact.confidence,
                odds if (key, other.value) in repeatable else 1.0)):
            fact = other
        if fact is not None:
            selected.append(fact)
    return tuple(selected)


def _is_surer(p: float, q: float, odds: float) -> bool:
    """Return whether p / (1 - p) > odds * q / (1 - q), of probabilities."""
    return p * (1.0 - q) > odds * q * (1.0 - p)
