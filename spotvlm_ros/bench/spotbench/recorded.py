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
"""Labelled recordings as streams of the benchmark, and a cloud that is made of their labels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
import operator
import zlib

import numpy as np

from .streams import Sampling
from ...cloud.parse import CloudAnswer
from ...frames.pixels import Image
from ...labels.sequences import LabelledSequence, Pace, stamp, START_NS
from ...method.facts import Context, Fact, NS, Region

SIMULATED = 'simulated from labels'
LEAST_PX = 2.0      # side of a box that was moved about


class RecordedStream:
    """
    A labelled recording.

    Where frames come more slowly than the edge may answer, a label is scored half of the time to
    the next one later: at the very time of a frame no answer about it can be there.
    """

    def __init__(self, sequence: LabelledSequence, sampling: Sampling,
                 block_s: float = 0.0, seed: int = 0) -> None:
        """
        Pick the frames for each use.

        So many seconds are a unit of statistics, for near moments are not independent; 0: all.
        Delays are drawn by ``seed``.
        """
        self.name, self.query, self.seed = sequence.name, sequence.query, seed
        self.size, self._sequence, labels = sequence.size, sequence, sequence.labels
        self.frames = _paced(sequence.jpegs, sampling.flow_hz)
        self.edge = _paced(self.frames, self.query.rate_hz)
        gap_ns = int(np.median([b - a for a, b in pairwise(self.frames)] or [0]))
        self._after_ns = gap_ns // 2 if gap_ns > NS / sampling.edge_hz else 0
        self._at = [stamp(one.t) for one in labels]
        self.labels = [at + self._after_ns for at in self._at]
        self.blocks = [int(one.t // block_s) if block_s else 0 for one in labels]
        self._held = list(accumulate((one.facts for one in labels), operator.or_))

    @property
    def seconds(self) -> float:
        """From the first frame to the last."""
        return (self.frames[-1] - self.frames[0]) / NS

    def image(self, stamp_ns: int) -> Image:
        """Return a frame."""
        return self._sequence.image(stamp_ns)

    def truth(self, stamp_ns: int) -> Mapping[str, str]:
        """Return the last label of each key at or before a time."""
        place = bisect_right(self._at, stamp_ns)
        return self._held[place - 1] if place else {}

    def scored(self, stamp_ns: int) -> Collection[str]:
        """Return the keys that the label of this time names."""
        return self._sequence.labels[self.labels.index(stamp_ns)].facts

    def regions(self, stamp_ns: int) -> Mapping[str, Region]:
        """Return the labelled regions of this very time, none at others."""
        place = bisect_right(self._at, stamp_ns) - 1
        same = place >= 0 and stamp_ns - self._at[place] <= self._after_ns
        return self._sequence.labels[place].regions if same else {}


@dataclass
class LabelCloud:
    """
    What a cloud would say that knows the labels, but for a share of errors.

    An error is another value of the key, each as likely; its box stays. Boxes are moved and
    resized by a normal distribution. Both depend on sequence and frame only, so that all systems
    are told the same, in every run.
    """

    stream: RecordedStream
    errors: float = 0.0        # share of facts
    jitter_px: float = 0.0     # standard deviation of each edge of a box
    answers: dict[int, CloudAnswer | None] = field(default_factory=dict)

    def __call__(self, stamp_ns: int) -> CloudAnswer | None:
        """Return what the labels say about a frame, or the last before it."""
        if stamp_ns not in self.answers:
            rng = np.random.default_rng([zlib.crc32(self.stream.name.encode()),
                                         stamp_ns // 1_000_000])
            boxes, query = self.stream.regions(stamp_ns), self.stream.query
            facts = [Fact(key, self._value(value, query.choices[key], rng), stamp_ns,
                          region=self._moved(boxes.get(key), rng))
                     for key, value in sorted(self.stream.truth(stamp_ns).items())]
            self.answers[stamp_ns] = CloudAnswer(query.id, stamp_ns, tuple(facts))
        return self.answers[stamp_ns]

    def _value(self, value: str, choices: Sequence[str], rng: np.random.Generator) -> str:
        wrong, other = rng.random() < self.errors, int(rng.integers(len(choices) - 1))
        return [c for c in choices if c != value][other] if wrong else value

    def _moved(self, box: Region | None, rng: np.random.Generator) -> Region | None:
        left, top, right, bottom = rng.normal(0.0, self.jitter_px, 4)
        if box is None:
            return None
        return Region(box.x + left, box.y + top, max(LEAST_PX, box.w + right - left),
                      max(LEAST_PX, box.h + bottom - top)).clipped(*self.stream.size)


def in_place_of(contexts: Mapping[int, Context], stamps: Sequence[int]) -> dict[int, Context]:
    """Return contexts of another sequence for the frames of this one, their ages as they were."""
    theirs = [contexts[s] for s in sorted(contexts)]
    found = {}
    for i, at in enumerate(stamps if theirs else ()):
        context = theirs[i % len(theirs)]
        later = at - context.stamp_ns
        found[at] = replace(
            context, stamp_ns=at, text_stamp_ns=context.text_stamp_ns + later,
            facts=tuple(replace(f, stamp_ns=f.stamp_ns + later) for f in context.facts))
    return found


def _paced(stamps: Iterable[int], rate_hz: float) -> list[int]:
    pace = Pace(1 / rate_hz)
    return [one for one in stamps if pace.due((one - START_NS) / NS)]
