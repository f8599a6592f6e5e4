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
"""What a late cloud would have said by now, made of labels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .delays import Delays
from .material import Clip
from .pasting import Pasted, value_before
from ..method.facts import Context, Fact, NS, Query, Region, Source, Turn
from ..method.history import History
from ..mini.training.dataset import carried_by_flow

OLDER_S = (0.8, 3.0)    # how much older the answer before the newest is
HAZARD_S = 8.0          # after which what has no past is another than it was, on average
MOVED = 0.06            # of the frame's width: how far a pasted thing has come, standard deviation


@dataclass(frozen=True)
class SimulatedCloud:
    """A cloud made of labels, late, and wrong or silent at times."""

    delays: Delays
    error_rate: float = 0.05    # share of facts that are wrong
    missing: float = 0.05       # share of facts that are left out
    absent: Mapping[str, str] | None = None   # by key: the value of what is not there

    def context(self, clip: Clip, stamp: int, pasted: Pasted | None,
                rng: np.random.Generator) -> Context:
        """Return the context that its answers would have left for a frame of a clip."""
        tracks, query = clip.tracks, clip.query
        history = History(query)
        if tracks is None:
            return self._of_still(clip, stamp, history, rng)
        age = self.delays.draw(rng, query.cloud_period_s)
        first = age if age is not None else float('inf')
        for back in (first, first + float(rng.uniform(*OLDER_S))):
            past = keyframe_before(clip, stamp, back)
            if past is not None:
                facts = self._facts(clip, past, (stamp - past) / NS, pasted, rng)
                history.add(Turn(query.id, past, Source.CLOUD, facts))
        carried: dict[str, Region] = {}
        similar: dict[str, float] = {}
        for key, fact in history.cloud_facts(stamp).items():
            name = (fact.stamp_ns, key)
            if pasted is not None and key == pasted.key:
                region = (carried_by_flow(_moved(pasted.place, clip, rng), pasted.region, rng)
                          if fact.region is not None else None)
            else:
                region = tracks.regions[stamp].get(name)
                if name in tracks.similarities[stamp]:
                    similar[key] = tracks.similarities[stamp][name]
            if region is not None:
                carried[key] = region
        return history.context(stamp, carried, similar, tracks.cuts_ns[stamp])

    def _of_still(self, clip: Clip, stamp: int, history: History,
                  rng: np.random.Generator) -> Context:
        """Return a context for a picture without a past: what it shows may have changed."""
        age = self.delays.draw(rng, clip.query.cloud_period_s)
        if age is not None:
            past, facts = stamp - int(age * NS), []
            for key, now in clip.labels[stamp].facts.items():
                value = value_before(now, clip.values[key], age / HAZARD_S, rng)
                if rng.random() >= self.missing:
                    fact = Fact(key, value, past)
                    wrong = rng.random() < self.error_rate
                    facts.append(self._wrong(clip.query, fact, rng) if wrong else fact)
            history.add(Turn(clip.query.id, past, Source.CLOUD, tuple(facts)))
        return history.context(stamp, {})

    def _facts(self, clip: Clip, past: int, age_s: float, pasted: Pasted | None,
               rng: np.random.Generator) -> tuple[Fact, ...]:
        """Return what it says of a keyframe; of a pasted thing, as if it had been there, too."""
        assert clip.tracks is not None
        facts = []
        known = dict(clip.labels[past].facts)
        if pasted is not None:
            known[pasted.key] = value_before(pasted.value, pasted.values, age_s / HAZARD_S, rng)
        for key, value in known.items():
            if rng.random() < self.missing:
                continue
            there = value != (self.absent or {}).get(key)
            region = clip.tracks.boxes.get((past, key)) if there else None
            if pasted is not None and key == pasted.key:
                region = pasted.place if there else None
            fact = Fact(key, value, past, region=region)
            facts.append(self._wrong(clip.query, fact, rng)
                         if rng.random() < self.error_rate else fact)
        return tuple(facts)

    def _wrong(self, query: Query, fact: Fact, rng: np.random.Generator) -> Fact:
        value = str(rng.choice([v for v in query.choices[fact.key] if v != fact.value]))
        gone = value == (self.absent or {}).get(fact.key)
        return replace(fact, value=value, region=None if gone else fact.region)


def keyframe_before(clip: Clip, stamp: int, back_s: float) -> int | None:
    """Return the keyframe nearest to ``back_s`` ago, None before the first."""
    if back_s == float('inf'):
        return None
    assert clip.tracks is not None
    stamps = clip.tracks.keyframes
    wanted = stamp - int(back_s * NS)
    if wanted < stamps[0] - NS // 2:
        return None
    after = bisect_right(stamps, wanted)
    near = min(stamps[max(0, after - 1):after + 1], key=lambda s: abs(s - wanted))
    return near if near < stamp else None


def _moved(place: Region, clip: Clip, rng: np.random.Generator) -> Region:
    """Return where a pasted thing was seen earlier."""
    dx, dy = (float(v) for v in rng.normal(0, MOVED * clip.sequence.size[0], 2))
    return Region(place.x + dx, place.y + 0.3 * dy, place.w, place.h)
