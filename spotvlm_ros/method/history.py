# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
History of one query and its compression to a context (context replacement).

Turns are ordered by the stamp of their frame, never by arrival, so that any order of arrival and
any duplication of the same turns gives the same history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .facts import Context, Fact, NS, Query, Region, Source, Turn

HORIZON_S = 60.0   # turns older than this behind the newest are forgotten
MAX_TURNS = 1024   # bound on memory: 60 s at 15 answers a second


class History:
    """Turns of one query, keyed by frame stamp; a cloud turn replaces the edge's own turn."""

    def __init__(self, query: Query) -> None:
        """Start empty."""
        self.query = query
        self._turns: dict[int, Turn] = {}

    def __len__(self) -> int:
        """Return the number of turns kept."""
        return len(self._turns)

    @property
    def turns(self) -> list[Turn]:
        """Turns by frame stamp, oldest first."""
        return [self._turns[stamp] for stamp in sorted(self._turns)]

    def add(self, turn: Turn) -> bool:
        """
        Insert or replace the turn of its frame.

        Return False when it changes nothing: a duplicate, an edge turn for a frame that the cloud
        has answered, or one behind the horizon.
        """
        if turn.query_id != self.query.id:
            raise ValueError(f'turn of query {turn.query_id!r} added to history of '
                             f'{self.query.id!r}')
        old = self._turns.get(turn.stamp_ns)
        if old is not None and old.source >= turn.source:
            return False
        newest = max(self._turns, default=turn.stamp_ns)
        if turn.stamp_ns < newest - int(HORIZON_S * NS):
            return False
        self._turns[turn.stamp_ns] = turn
        self._forget(max(newest, turn.stamp_ns))
        return True

    def clear(self) -> None:
        """Forget everything (clock jump, stream restart)."""
        self._turns.clear()

    def context(self, now_ns: int, focus: Mapping[str, Region] | None = None) -> Context:
        """
        Return the compressed history for the frame acquired at ``now_ns``.

        Newest cloud fact per key, older ones only fill what newer ones lack; facts past their
        time to live and facts of frames newer than now are left out. ``focus`` are the regions
        carried to that frame; without it those of the facts stand where the cloud saw them.
        """
        facts: dict[str, Fact] = {}
        text, text_stamp = '', 0
        for turn in reversed(self.turns):
            if turn.source is not Source.CLOUD or turn.stamp_ns > now_ns:
                continue
            for fact in turn.facts:
                if now_ns - fact.stamp_ns <= self.query.ttl_ns(fact.key):
                    facts.setdefault(fact.key, fact)
            if turn.text and not text and now_ns - turn.stamp_ns <= self.query.ttl_ns('default'):
                text, text_stamp = turn.text, turn.stamp_ns
        kept = tuple(facts[k] for k in self.query.keys if k in facts)
        if self.query.format != 'text':
            text, text_stamp = '', 0
        if focus is None:
            focus = {f.key: f.region for f in kept if f.region is not None}
        return Context(self.query.id, now_ns, kept, text, text_stamp, focus)

    def _forget(self, newest_ns: int) -> None:
        floor = newest_ns - int(HORIZON_S * NS)
        for stamp in sorted(self._turns):
            if stamp >= floor and len(self._turns) <= MAX_TURNS:
                break
            del self._turns[stamp]


def fresh(context: Context, query: Query, now_ns: int) -> Context:
    """
    Return the part of a context that may be used for the frame acquired at ``now_ns``.

    A context computed for an earlier frame may hold facts that have outlived their time since,
    and after a restarted stream facts of frames yet to come.
    """
    facts = tuple(f for f in context.facts
                  if f.stamp_ns <= now_ns and now_ns - f.stamp_ns <= query.ttl_ns(f.key))
    if len(facts) == len(context.facts) and not context.text:
        return context
    keys = {f.key for f in facts}
    keep = context.text and 0 <= now_ns - context.text_stamp_ns <= query.ttl_ns('default')
    return replace(context, facts=facts, text=context.text if keep else '',
                   text_stamp_ns=context.text_stamp_ns if keep else 0,
                   focus={k: r for k, r in context.focus.items() if k in keys})
