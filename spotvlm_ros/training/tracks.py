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
Where labelled regions are in later frames, by the flow that runs on the robot.

Worked out once per sequence: every region that the simulated cloud may name is carried through all
frames that it may be late for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
import multiprocessing as mp

import cv2
import numpy as np

from ..labels.sequences import LabelledSequence
from ..method.facts import NS, Region
from ..method.flow import RegionTracker
from ..method.gate import GateConfig
from ..system.processes import exit_with_parent

KEYFRAME_S = 0.35   # keyframes that regions start from are at least this far apart
BOX_SHIFT = 0.08    # of a box of the cloud, standard deviation, in its longer sides
BOX_GROWTH = (0.85, 1.2)

Name = tuple[int, str]  # stamp of the keyframe and key


@dataclass(frozen=True)
class Tracks:
    """Regions of earlier keyframes in each labelled frame, by the stamp of that."""

    keyframes: Sequence[int]                      # labelled frames that the cloud may have seen
    boxes: Mapping[Name, Region]                  # as the cloud gives them, in the keyframe
    regions: Mapping[int, Mapping[Name, Region]]
    similarities: Mapping[int, Mapping[Name, float]]
    cuts_ns: Mapping[int, int]                    # first frame of the scene then


def jittered(region: Region, rng: np.random.Generator) -> Region:
    """Return a box as a cloud that errs by some pixels gives it."""
    dx, dy = (float(v) for v in rng.normal(0, BOX_SHIFT * max(region.w, region.h), 2))
    grow = float(rng.uniform(*BOX_GROWTH))
    return Region(region.x + dx - region.w * (grow - 1) / 2,
                  region.y + dy - region.h * (grow - 1) / 2, region.w * grow, region.h * grow)


def track(sequence: LabelledSequence, horizon_s: float, seed: int) -> Tracks:
    """Carry the labelled regions of a sequence through the frames of ``horizon_s`` after each."""
    rng = np.random.default_rng(seed)
    tracker: RegionTracker[Name] = RegionTracker(cut_below=GateConfig().cut_below)
    labels = {sequence.stamp_of(label): label for label in sequence.labels}
    boxes: dict[Name, Region] = {}
    keyframes: list[int] = []
    regions, similarities, cuts = {}, {}, {}
    for stamp in sequence.jpegs:
        tracker.add(stamp, sequence.image(stamp))
        tracker.keep([n for n in tracker.tracks if stamp - n[0] <= horizon_s * NS])
        label = labels.get(stamp)
        if label is None:
            continue
        regions[stamp], similarities[stamp] = tracker.regions(), tracker.similarities()
        cuts[stamp] = tracker.cut_ns
        if not keyframes or stamp - keyframes[-1] >= KEYFRAME_S * NS:
            keyframes.append(stamp)
            start = {(stamp, key): jittered(box, rng) for key, box in label.regions.items()}
            boxes |= start
            tracker.start(start, stamp)
    return Tracks(keyframes, boxes, regions, similarities, cuts)


_sequences: list[LabelledSequence] = []  # of a worker: those it was forked with


def _start_worker(sequences: Sequence[LabelledSequence]) -> None:
    exit_with_parent()
    cv2.setNumThreads(1)
    _sequences[:] = sequences


def _track(place: int, horizon_s: float) -> Tracks:
    return track(_sequences[place], horizon_s, place)


def track_all(sequences: Sequence[LabelledSequence], horizon_s: float,
              workers: int) -> list[Tracks]:
    """Track in several processes; recordings are kept in files that forks share."""
    if not sequences:
        return []
    with ProcessPoolExecutor(max(1, min(workers, len(sequences))), mp.get_context('fork'),
                             _start_worker, (sequences,)) as pool:
        return list(pool.map(_track, range(len(sequences)), [horizon_s] * len(sequences)))
