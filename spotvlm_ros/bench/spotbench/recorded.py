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
"""Labelled recordings as streams of the benchmark."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
import operator

from .streams import Sampling
from ...frames.pixels import Image
from ...labels.sequences import LabelledSequence, stamp
from ...method.facts import NS, Region

BLOCK_S = 15.0     # of a recording are one unit of statistics: near moments are not independent


class RecordedStream:
    """A labelled recording."""

    def __init__(self, sequence: LabelledSequence, sampling: Sampling) -> None:
        """Pick the frames for each use."""
        self.name, self.query, self.seed = sequence.name, sequence.query, 0
        self.size, self._sequence, labels = sequence.size, sequence, sequence.labels
        self.frames = _spaced(list(sequence.jpegs), 1 / sampling.flow_hz)
        self.edge = _spaced(self.frames, 1 / self.query.rate_hz)
        self.labels = [stamp(one.t) for one in labels]
        self.blocks = [int(one.t // BLOCK_S) for one in labels]
        self._held = list(accumulate((one.facts for one in labels), operator.or_))

    def image(self, stamp_ns: int) -> Image:
        """Return a frame."""
        return self._sequence.image(stamp_ns)

    def truth(self, stamp_ns: int) -> Mapping[str, str]:
        """Return the last label of each key at or before a time."""
        place = bisect_right(self.labels, stamp_ns)
        return self._held[place - 1] if place else {}

    def scored(self, stamp_ns: int) -> Collection[str]:
        """Return the keys that the label of this time names."""
        return self._sequence.labels[self.labels.index(stamp_ns)].facts

    def regions(self, stamp_ns: int) -> Mapping[str, Region]:
        """Return the labelled regions of this very time, none at others."""
        place = bisect_right(self.labels, stamp_ns) - 1
        same = place >= 0 and self.labels[place] == stamp_ns
        return self._sequence.labels[place].regions if same else {}


def _spaced(stamps: Sequence[int], seconds: float) -> list[int]:
    """Return stamps that are so far apart, with a tolerance for a camera's jitter."""
    taken: list[int] = []
    for one in stamps:
        if not taken or one - taken[-1] >= 0.95 * seconds * NS:
            taken.append(one)
    return taken
