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
Context Transfer put together: answers of both kinds and frames in, context for the next frame out.

The node and the benchmark run this same object. It is a plain state machine: the same calls in the
same order give the same contexts, which is what makes a recorded run replayable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .ego import Matrix
from .facts import cameras, Context, Fact, NS, Query, Region, Source, Turn
from .flow import FlowConfig, RegionTracker
from .gate import Drop, GateConfig
from .history import Evidence, History, HORIZON_S

T = TypeVar('T')
FactId = tuple[str, str]  # query and key
AHEAD_S = 1.0             # an answer may be this far ahead of the newest frame known here


@dataclass(frozen=True)
class TransferConfig:
    """The rules of the method; every one has a default that was measured."""

    evidence: Evidence = field(default_factory=Evidence)
    gate: GateConfig = field(default_factory=GateConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    carry: bool = True   # regions are carried to the present frame; False: they stay


@dataclass(frozen=True)
class TrackingUpdate:
    """Where the regions of facts are in one frame [pixels], and whether they look as they did."""

    stamp_ns: int = 0    # of the frame
    cut_ns: int = 0      # first frame of the present scene; 0: there was no cut
    regions: Mapping[FactId, Region] = field(default_factory=dict)
    similarities: Mapping[FactId, float] = field(default_factory=dict)
    fact_stamps: Mapping[FactId, int] = field(default_factory=dict)  # of the facts tracked


class Transfer:
    """
    One history per query, and the regions of their facts.

    `carry` touches the tracker only, and `apply` is all that changes what `context` reads of it.
    So `carry` may run in a thread of its own while others call `add` and `context`, if
    `facts_to_track`, `add`, `apply` and `context` are called under one lock, and `carry` and
    `clear` never at once. `frame` does all three steps of a frame.
    """

    def __init__(self, queries: Sequence[Query], config: TransferConfig | None = None) -> None:
        """Start empty."""
        self.queries = {q.id: q for q in queries}
        self.config = config or TransferConfig()
        self.dropped: Counter[Drop] = Counter()  # facts left out, each once per reason
        self._tracker: RegionTracker[FactId] = RegionTracker(
            self.config.flow, cut_below=self.config.gate.cut_below)
        self._newest_ns = dict.fromkeys(self.queries, 0)  # newest frame that the edge answered
        self._tracking = TrackingUpdate()                 # the last that was applied
        self._before_ns = 0                               # newest of both before the last clear
        self._histories: dict[str, History] = {}
        self._noted: dict[FactId, tuple[int, int]] = {}    # newest fact noted as dropped, and why
        self._tracked_stamps: dict[FactId, int] = {}       # as `carry` left them, with the tracker
        self.clear()

    def replace(self, queries: Sequence[Query]) -> None:
        """Take other queries from now on, not while `carry` runs; what is as it was goes on."""
        kept = {q.id for q in queries if q.asks_as(self.queries.get(q.id))}
        self.queries = {q.id: q for q in queries}
        for query in queries:
            if query.id in kept:
                self._histories[query.id].query = query
            else:
                self._histories[query.id] = History(query, self.config.evidence, self.config.gate)
        self._histories = {q.id: self._histories[q.id] for q in queries}
        self._newest_ns = {q.id: self._newest_ns.get(q.id, 0) for q in queries}

        def of_kept(values: Mapping[FactId, T]) -> dict[FactId, T]:
            return {name: value for name, value in values.items() if name[0] in kept}
        last = self._tracking
        self._tracking = TrackingUpdate(last.stamp_ns, last.cut_ns, of_kept(last.regions),
                                        of_kept(last.similarities), of_kept(last.fact_stamps))
        self._tracked_stamps, self._noted = of_kept(self._tracked_stamps), of_kept(self._noted)

    def clear(self) -> None:
        """Forget everything (clock jump, stream restart)."""
        self._histories = {q.id: History(q, self.config.evidence, self.config.gate)
                           for q in self.queries.values()}
        self._before_ns = max(self._before_ns, self._tracking.stamp_ns,
                              *self._newest_ns.values())
        self._newest_ns = dict.fromkeys(self.queries, 0)
        self._tracking = TrackingUpdate()
        self._noted, self._tracked_stamps = {}, {}
        self._tracker.clear()

    def add(self, turn: Turn) -> bool:
        """
        Take an answer; return whether the history is another now.

        An answer about a frame from before a restart is not taken, however late it comes: in the
        stream as it runs now, that frame is yet to come.
        """
        now_ns = max(self._tracking.stamp_ns, *self._newest_ns.values())
        from_before = now_ns + AHEAD_S * NS < turn.stamp_ns <= self._before_ns
        if turn.source is Source.EDGE:
            if from_before and now_ns:
                return False
            self._newest_ns[turn.query_id] = max(self.newest_ns(turn.query_id), turn.stamp_ns)
        elif from_before or 0 < now_ns < turn.stamp_ns - HORIZON_S * NS:
            return False
        return self._histories[turn.query_id].add(turn)

    def newest_ns(self, query_id: str) -> int:
        """Return the newest frame that the edge answered; 0 before the first."""
        return self._newest_ns[query_id]

    def turns(self, query_id: str) -> list[Turn]:
        """Return the history of a query, oldest first, edge turns replaced by the cloud's."""
        return self._histories[query_id].turns

    # Frames

    def frame(self, stamp_ns: int, image: npt.NDArray[np.uint8],
              turn: Matrix | None = None) -> None:
        """Carry all regions to a frame, height x width x 3, RGB, or grey."""
        self.apply(self.carry(stamp_ns, image, self.facts_to_track(stamp_ns), turn))

    def facts_to_track(self, stamp_ns: int) -> dict[FactId, Fact]:
        """Return the facts whose regions are of use for the frame acquired at ``stamp_ns``."""
        facts = {}
        for query in self.queries.values():
            for fact in self._histories[query.id].cloud_facts(stamp_ns).values():
                life = min(query.ttl_ns(fact.key), int(self.config.gate.age_limit_s * NS))
                if fact.region is not None and stamp_ns - fact.stamp_ns <= life:
                    facts[query.id, fact.key] = fact
        return facts

    def carry(self, stamp_ns: int, image: npt.NDArray[np.uint8],
              facts: Mapping[FactId, Fact], turn: Matrix | None = None) -> TrackingUpdate:
        """
        Carry the regions of facts to a frame newer than the last; for `apply`.

        ``turn``: how the camera's turn since the last one moves pixels, where that is known.
        """
        self._tracker.add(stamp_ns, image, turn)
        self._tracker.keep(facts.keys())
        new: dict[int, dict[FactId, Region]] = {}
        for name, fact in facts.items():
            if self._tracked_stamps.get(name) != fact.stamp_ns and fact.region is not None:
                new.setdefault(fact.stamp_ns, {})[name] = fact.region
        for fact_ns, regions in new.items():
            self._tracker.start(regions, fact_ns)
        self._tracked_stamps = {name: fact.stamp_ns for name, fact in facts.items()}
        return TrackingUpdate(stamp_ns, self._tracker.cut_ns, self._tracker.regions(),
                              self._tracker.similarities(), self._tracked_stamps)

    @property
    def carried_ns(self) -> int:
        """Return the stamp of the last frame that `carry` took; 0 before the first."""
        return self._tracker.newest_ns

    def apply(self, update: TrackingUpdate) -> None:
        """Make the contexts from now on those for the frame of an update."""
        self._tracking = update

    def report(self) -> dict[str, int]:
        """Return counts since start."""
        return {'regions_carried': len(self._tracking.regions),
                'regions_lost': self._tracker.lost, 'scene_cuts': self._tracker.cuts} | {
                    f'dropped_{why.name.lower()}': self.dropped[why] for why in Drop}

    # Context

    def context(self, query_id: str, now_ns: int = 0) -> Context:
        """Return the context for a frame, by default for the newest one that is known of."""
        history, tracking = self._histories[query_id], self._tracking
        if not now_ns:
            turns = history.turns
            now_ns = max(self._newest_ns[query_id], turns[-1].stamp_ns if turns else 0,
                         tracking.stamp_ns)
        focus: dict[str, Region] | None = None
        if self.config.carry:
            focus = {key: r for (query, key), r in tracking.regions.items() if query == query_id}
        # The appearance of a region says nothing about a newer fact than the one it belongs to.
        facts = history.cloud_facts(now_ns)
        similarities = {
            key: v for (query, key), v in tracking.similarities.items() if query == query_id
            and key in facts and facts[key].stamp_ns == tracking.fact_stamps.get((query, key))}
        context = history.context(now_ns, focus, similarities, tracking.cut_ns)
        for key, why in context.dropped.items():
            note = (facts[key].stamp_ns, why)
            if self._noted.get((query_id, key)) != note:
                self._noted[query_id, key] = note
                self.dropped[Drop(why)] += 1
        return context


class Transfers:
    """One `Transfer` per camera, each with the queries about it."""

    def __init__(self, queries: Sequence[Query], config: TransferConfig) -> None:
        """Start empty."""
        self._config = config
        self._all: dict[str, Transfer] = {}
        self._camera: dict[str, str] = {}
        self.replace(queries)

    def replace(self, queries: Sequence[Query]) -> None:
        """Take other queries from now on, not while a `Transfer` carries."""
        self._camera = {q.id: q.camera for q in queries}
        before, self._all = self._all, {}
        for name in cameras(queries):
            about = [q for q in queries if q.camera == name]
            transfer = self._all[name] = before.get(name) or Transfer(about, self._config)
            transfer.replace(about)

    @property
    def cameras(self) -> list[str]:
        """Return the names of the cameras."""
        return list(self._all)

    def of_camera(self, name: str) -> Transfer:
        """Return the method of a camera."""
        return self._all[name]

    def of_query(self, query_id: str) -> Transfer:
        """Return the method of the camera that a query is about."""
        return self._all[self._camera[query_id]]

    @property
    def dropped(self) -> int:
        """Return the number of facts left out of contexts, of all cameras."""
        return sum(sum(t.dropped.values()) for t in self._all.values())

    def report(self) -> dict[str, int]:
        """Return counts since start, of all cameras."""
        total: Counter[str] = Counter()
        for transfer in self._all.values():
            total.update(transfer.report())
        return dict(total)
