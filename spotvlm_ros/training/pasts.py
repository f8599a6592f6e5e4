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
What past a pasted thing has: that of another thing of its sequence.

How often a thing has changed since the cloud saw it, and how often the robot's flow has brought
its region to the wrong place or lost it, differs from camera to camera, above all with the time
between frames. It is taken from a labelled frame of the same sequence, for answers that are as
late. Where no frame tells, it is made up, and at times elsewhere, too: there flow mostly does
well, so that things are seen often enough to learn what they look like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .material import Clip, keyframe_before
from .pasting import Pasted, value_before
from ..method.facts import Region
from ..mini.training.dataset import carried_by_flow

HAZARD_S = 8.0          # after which what has no past is another than it was, on average
MADE_UP = 0.4           # share of pasts that are made up
MOVED = 0.06            # of the frame's width: how far a pasted thing has come, standard deviation


@dataclass(frozen=True)
class Past:
    """A pasted thing as the cloud saw it, and what the robot has made of that."""

    value: str
    region: Region | None               # in the cloud's frame; None: it was not there
    carried: Region | None = None       # to the present frame; None: lost
    similarity: float | None = None     # of what is there now, as the gate measures it


def model_of(clip: Clip, pasted: Pasted, rng: np.random.Generator) -> int | None:
    """Return a frame whose thing has had a past like that of the pasted one."""
    assert clip.tracks is not None
    if pasted.region is None or rng.random() < MADE_UP:
        return None
    first = clip.tracks.keyframes[0]
    frames = [s for s in clip.frames if pasted.key in clip.labels[s].regions and s > first]
    return frames[int(rng.integers(len(frames)))] if frames else None


def past_of(clip: Clip, pasted: Pasted, model: int | None, age_s: float, absent: str | None,
            rng: np.random.Generator) -> Past:
    """Return the past of a pasted thing; ``absent``: the value of what is not there."""
    assert clip.tracks is not None
    seen = keyframe_before(clip, model, age_s) if model is not None else None
    if model is None or seen is None or pasted.key not in clip.labels[seen].facts:
        return _made_up(clip, pasted, age_s, absent, rng)
    before, now = clip.labels[seen], clip.labels[model]
    box = clip.tracks.boxes.get((seen, pasted.key))
    value = pasted.value
    if before.facts[pasted.key] != now.facts[pasted.key]:
        others = [v for v in pasted.values if v != value and (v == absent) == (box is None)]
        value = str(rng.choice(others)) if others else value
    if box is None:
        return Past(value, None)
    carried = clip.tracks.regions[model].get((seen, pasted.key))
    assert pasted.region is not None
    return Past(value, pasted.region,
                None if carried is None else beside(pasted.region, carried,
                                                    now.regions[pasted.key]),
                clip.tracks.similarities[model].get((seen, pasted.key)))


def beside(thing: Region, carried: Region, true: Region) -> Region:
    """Return a region that misses a thing as ``carried`` misses the ``true`` one."""
    w, h = thing.w * carried.w / true.w, thing.h * carried.h / true.h
    x = thing.x + thing.w / 2 + carried.x + carried.w / 2 - true.x - true.w / 2
    y = thing.y + thing.h / 2 + carried.y + carried.h / 2 - true.y - true.h / 2
    return Region(x - w / 2, y - h / 2, w, h)


def _made_up(clip: Clip, pasted: Pasted, age_s: float, absent: str | None,
             rng: np.random.Generator) -> Past:
    value = value_before(pasted.value, pasted.values, age_s / HAZARD_S, rng)
    if value == absent:
        return Past(value, None)
    dx, dy = (float(v) for v in rng.normal(0, MOVED * clip.sequence.size[0], 2))
    place = pasted.place
    moved = Region(place.x + dx, place.y + 0.3 * dy, place.w, place.h)
    return Past(value, place, carried_by_flow(moved, pasted.region, rng))
