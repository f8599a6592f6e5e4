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

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .copy_paste import PastedObjects, Told
from .delays import Delays
from .material import Clip, keyframe_before
from .pasting import Pasted, value_before
from .pasts import HAZARD_S, model_of, Past, past_of
from ..method.facts import Context, Fact, NS, Query, Region, Source, Turn
from ..method.history import History

OLDER_S = (0.8, 3.0)    # how much older the answer before the newest is


@dataclass(frozen=True)
class SimulatedCloud:
    """A cloud made of labels, late, and wrong or silent at times."""

    delays: Delays
    error_rate: float = 0.05    # share of facts that are wrong
    missing: float = 0.05       # share of facts that are left out
    absent: Mapping[str, str] | None = None   # by key: the value of what is not there

    def context(self, clip: Clip, stamp: int, changed: Pasted | PastedObjects | None,
                rng: np.random.Generator) -> Context:
        """Return the context that its answers would have left for a frame of a clip."""
        tracks, query = clip.tracks, clip.query
        history = History(query)
        if tracks is None:
            return self._of_still(clip, stamp, history, rng)
        age = self.delays.draw(rng, query.cloud_period_s)
        first = age if age is not None else float('inf')
        pasted = changed if isinstance(changed, Pasted) else None
        model = model_of(clip, pasted, rng) if pasted is not None else None
        pasts: dict[int, Past] = {}    # of what is pasted, by keyframe
        told: dict[int, Told] = {}     # of frames with objects
        for back in (first, first + float(rng.uniform(*OLDER_S))):
            past = keyframe_before(clip, stamp, back)
            if past is not None:
                if pasted is not None:
                    absent = (self.absent or {}).get(pasted.key)
                    pasts[past] = past_of(clip, pasted, model, (stamp - past) / NS, absent, rng)
                if isinstance(changed, PastedObjects):
                    told[past] = changed.past(clip, past, stamp, rng)
                    facts = self._said(clip.query, past, told[past].facts, told[past].regions, rng)
                else:
                    facts = self._facts(clip, past, pasted, pasts.get(past), rng)
                history.add(Turn(query.id, past, Source.CLOUD, facts))
        carried: dict[str, Region] = {}
        similar: dict[str, float] = {}
        for key, fact in history.cloud_facts(stamp).items():
            name = (fact.stamp_ns, key)
            region, like = tracks.regions[stamp].get(name), tracks.similarities[stamp].get(name)
            if pasted is not None and key == pasted.key:
                region, like = pasts[fact.stamp_ns].carried, pasts[fact.stamp_ns].similarity
            elif fact.stamp_ns in told:
                region = told[fact.stamp_ns].carried.get(key)
                like = told[fact.stamp_ns].similar.get(key)
            if region is not None:
                carried[key] = region
            if like is not None:
                similar[key] = like
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

    def _facts(self, clip: Clip, past: int, pasted: Pasted | None, seen: Past | None,
               rng: np.random.Generator) -> tuple[Fact, ...]:
        """Return what it says of a keyframe; of a pasted thing, as if it had been there, too."""
        assert clip.tracks is not None
        known = dict(clip.labels[past].facts)
        regions = {key: box for key in known
                   if (box := clip.tracks.boxes.get((past, key))) is not None}
        if pasted is not None and seen is not None:
            known[pasted.key] = seen.value
            regions.pop(pasted.key, None)
            if seen.region is not None:
                regions[pasted.key] = seen.region
        return self._said(clip.query, past, known, regions, rng)

    def _said(self, query: Query, past: int, known: Mapping[str, str],
              regions: Mapping[str, Region], rng: np.random.Generator) -> tuple[Fact, ...]:
        """Return what is known of a frame, wrong or silent at times."""
        facts = []
        for key, value in known.items():
            if rng.random() < self.missing:
                continue
            there = value != (self.absent or {}).get(key)
            fact = Fact(key, value, past, region=regions.get(key) if there else None)
            facts.append(self._wrong(query, fact, rng) if rng.random() < self.error_rate else fact)
        return tuple(facts)

    def _wrong(self, query: Query, fact: Fact, rng: np.random.Generator) -> Fact:
        value = str(rng.choice([v for v in query.choices[fact.key] if v != fact.value]))
        gone = value == (self.absent or {}).get(fact.key)
        return replace(fact, value=value, region=None if gone else fact.region)
