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
History of one query and its compression to a context (context replacement).

Turns are ordered by the stamp of their frame, never by arrival, so that any order of arrival and
any duplication of the same turns gives the same history. A cloud answer takes the place of the
edge's own turn for its frame; edge turns after it are evidence of change, weighed fact by fact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from .facts import Context, Fact, NS, Query, Region, Source, Turn
from .gate import Drop, GateConfig, why_dropped
from .prompt import history_text

HORIZON_S = 30.0   # turns older than this behind the newest are forgotten
MAX_TURNS = 1024   # bound on memory: 30 s at 30 answers a second


@dataclass(frozen=True)
class Evidence:
    """When newer answers of the edge outweigh the cloud's about an older frame."""

    near_s: float = 0.5        # an edge turn this close to the cloud's frame tells about it
    confirm: int = 5           # newest edge turns that must agree on the new value
    confidence: float = 0.999  # of each of them, where the edge never agreed with the cloud


class History:
    """Turns of one query, keyed by frame stamp; a cloud turn replaces the edge's own turn."""

    def __init__(self, query: Query, evidence: Evidence | None = None,
                 gate: GateConfig | None = None) -> None:
        """Start empty."""
        self.query = query
        self.evidence = evidence or Evidence()
        self.gate = gate or GateConfig()
        self._edge: dict[int, Turn] = {}   # what the edge saw is kept beside the replacement:
        self._cloud: dict[int, Turn] = {}  # whether both agreed on a frame is evidence

    def __len__(self) -> int:
        """Return the number of frames with a turn."""
        return len(self._edge.keys() | self._cloud.keys())

    @property
    def turns(self) -> list[Turn]:
        """Return the turns, oldest frame first, edge turns replaced where the cloud answered."""
        merged = self._edge | self._cloud
        return [merged[stamp] for stamp in sorted(merged)]

    def add(self, turn: Turn) -> bool:
        """
        Insert or replace the turn of its frame.

        Return False when that leaves the turns as they were: a duplicate, an edge turn for a
        frame that the cloud has answered, or one behind the horizon.
        """
        if turn.query_id != self.query.id:
            raise ValueError(f'turn of query {turn.query_id!r} added to history of '
                             f'{self.query.id!r}')
        turns = self._cloud if turn.source is Source.CLOUD else self._edge
        old = turns.get(turn.stamp_ns)
        if old is not None and _rank(old) >= _rank(turn):
            return False
        newest = max((*self._edge, *self._cloud), default=turn.stamp_ns)
        if turn.stamp_ns < newest - int(HORIZON_S * NS):
            return False
        turns[turn.stamp_ns] = turn
        self._forget(max(newest, turn.stamp_ns))
        return turns is self._cloud or turn.stamp_ns not in self._cloud

    def context(self, now_ns: int, focus: Mapping[str, Region] | None = None,
                similarity: Mapping[str, float] | None = None, cut_ns: int = 0) -> Context:
        """
        Return the compressed history for the frame acquired at `now_ns`.

        Newest cloud fact per key, older ones only fill what newer ones lack, and a newer value
        of the edge where it has seen the fact change. Facts of frames newer than now are left
        out, and what the gate does not let through: `similarity` tells, per key, how much the
        fact's region still looks as it did, `cut_ns` is the first frame of the present scene.
        `focus` are the regions carried to that frame; without it those of the facts stand where
        the cloud saw them.
        """
        passed, dropped, regions = [], {}, {}
        similarities = similarity or {}
        facts = self.cloud_facts(now_ns)
        for key in self.query.keys:
            fact = facts.get(key)
            if fact is None:
                continue
            newer = self._reconciled(fact, now_ns)
            why = why_dropped(fact, self.query, now_ns, self.gate, cut_ns, similarities.get(key))
            if newer is not fact and why is Drop.CHANGED:
                why = None  # the edge has seen the change, and to what
            if why is None:
                passed.append(newer)
            else:
                dropped[key] = int(why)
            if fact.region is not None and why in (None, Drop.CHANGED):
                regions[key] = fact.region
        text, text_stamp = self._text(now_ns, cut_ns)
        if focus is not None:
            regions = {k: r for k, r in focus.items() if k in regions}
        return Context(self.query.id, now_ns, tuple(passed), text, text_stamp, regions, dropped)

    def cloud_facts(self, now_ns: int) -> dict[str, Fact]:
        """Return the newest cloud fact per key of a frame not newer than `now_ns`."""
        facts: dict[str, Fact] = {}
        for stamp in sorted(self._cloud, reverse=True):
            if stamp <= now_ns:
                for fact in self._cloud[stamp].facts:
                    facts.setdefault(fact.key, fact)
        return facts

    def _text(self, now_ns: int, cut_ns: int) -> tuple[str, int]:
        if self.query.format == 'text':
            for stamp in sorted(self._cloud, reverse=True):
                fact = Fact('default', self._cloud[stamp].text, stamp)
                if stamp <= now_ns and fact.value and why_dropped(
                        fact, self.query, now_ns, self.gate, cut_ns) is None:
                    return self._cloud[stamp].text, stamp
        return '', 0

    def _reconciled(self, cloud_fact: Fact, now_ns: int) -> Fact:
        """
        Return the cloud's fact, or the edge's newer value where the edge saw the fact change.

        Disagreeing with the cloud about the same frame is no evidence: the value must be another
        than the edge's own at the cloud's frame, and either the two agreed there or the edge is
        sure of itself.
        """
        rule = self.evidence
        newest_first = sorted((s for s in self._edge if cloud_fact.stamp_ns < s <= now_ns),
                              reverse=True)
        newer = list(islice((fact for stamp in newest_first for fact in self._edge[stamp].facts
                             if fact.key == cloud_fact.key), rule.confirm))
        if len(newer) < rule.confirm or len({f.value for f in newer}) > 1:
            return cloud_fact
        value, then = newer[0].value, self._edge_value_at(cloud_fact)
        if value in (cloud_fact.value, then):
            return cloud_fact
        if then == cloud_fact.value or min(f.confidence for f in newer) >= rule.confidence:
            return replace(newer[0], region=None)
        return cloud_fact

    def _edge_value_at(self, cloud_fact: Fact) -> str | None:
        """Return what the edge saw in the cloud's frame or the nearest one, None if nothing."""
        near = [(abs(stamp - cloud_fact.stamp_ns), stamp) for stamp in self._edge
                if abs(stamp - cloud_fact.stamp_ns) <= self.evidence.near_s * NS]
        for _, stamp in sorted(near):
            for fact in self._edge[stamp].facts:
                if fact.key == cloud_fact.key:
                    return fact.value
        return None

    def _forget(self, newest_ns: int) -> None:
        floor = newest_ns - int(HORIZON_S * NS)
        for turns in (self._edge, self._cloud):
            for stamp in sorted(turns):
                if stamp >= floor and len(turns) <= MAX_TURNS:
                    break
                del turns[stamp]


def _rank(turn: Turn) -> tuple[int, str]:
    """Order two turns of one source about one frame, whichever came first."""
    return len(turn.facts), repr(turn)


def compress(context: Context, query: Query, now_ns: int, budget: int,
             count: Callable[[str], int]) -> Context:
    """
    Return the context within a budget of tokens, the oldest facts dropped first.

    `count` tells the tokens of a text; ties are dropped from the query's last key on.
    """
    place = {key: i for i, key in enumerate(query.keys)}
    facts = sorted(context.facts, key=lambda f: (-f.stamp_ns, place.get(f.key, 0)))
    while True:
        keys = {f.key for f in facts}
        small = replace(context, facts=tuple(f for f in context.facts if f.key in keys),
                        focus=_focus_with(context, keys))
        if count(history_text(query, small, now_ns)) <= budget:
            return small
        if facts:
            facts.pop()
        else:  # a text, or a budget that holds nothing
            return replace(small, text='', text_stamp_ns=0)


def unexpired(context: Context, query: Query, now_ns: int) -> Context:
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
                   focus=_focus_with(context, keys))


def _focus_with(context: Context, keys: Collection[str]) -> dict[str, Region]:
    """Return the focus regions less those of facts whose keys are not among these."""
    gone = {f.key for f in context.facts} - set(keys)
    return {k: r for k, r in context.focus.items() if k not in gone}
