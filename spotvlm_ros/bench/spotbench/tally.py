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
"""Counts of right facts: per unit of statistics, system, delay, slice and metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .score import age_name, Grid, latest, PublishedAnswer, right, size_name
from .streams import Stream
from ...method.facts import NS

# Three tasks; each key of the worlds and of config/real belongs to one.
TASKS = {'light': 'objects', 'limit': 'objects', 'lead': 'objects', 'object': 'objects',
         'gesture': 'gesture', 'digit': 'gesture', 'gaze': 'gesture', 'nearest': 'scene',
         'pointing': 'scene', 'people': 'scene', 'pedestrian': 'scene'}


class CountKey(NamedTuple):
    """What is counted."""

    system: str
    delay: str
    slice: str  # noqa: A003
    metric: str


class Tally:
    """Counts of hits and of tries, per block (unit of statistics)."""

    def __init__(self) -> None:
        """Start without counts."""
        self.hits: dict[int, Counter[CountKey]] = {}
        self.tries: dict[int, Counter[CountKey]] = {}

    def add(self, block: int, name: CountKey, hits: float, tries: float) -> None:
        """Add to the counts of a block; nothing is counted without tries."""
        if tries:
            self.hits.setdefault(block, Counter())[name] += hits  # type: ignore[assignment]
            self.tries.setdefault(block, Counter())[name] += tries  # type: ignore[assignment]


class StreamScorer:
    """Scores one stream at its label times."""

    def __init__(self, stream: Stream, tally: Tally) -> None:
        """Take the truth of each label time from the stream."""
        self.stream, self.tally = stream, tally
        self.keys = stream.query.keys
        self.truth = [stream.truth(t) for t in stream.labels]
        self.blocks = np.array(stream.blocks)
        self._fixed = self._fixed_slices()

    def grid(self, published: Sequence[PublishedAnswer],
             truth: Sequence[Mapping[str, str]] | None = None) -> Grid:
        """Return which facts are right when; ``truth`` may be that of another time."""
        return right(latest(published, self.stream.labels), truth or self.truth, self.keys)

    def shifted(self, seconds: float) -> list[Mapping[str, str]]:
        """Return the truth of so much later; of half the labels later, in a ring, for 0."""
        if seconds:
            return [self.stream.truth(t + int(seconds * NS)) for t in self.stream.labels]
        half = len(self.truth) // 2
        return [*self.truth[half:], *self.truth[:half]]

    def slices(self, arrived: Sequence[PublishedAnswer]) -> dict[str, Grid]:
        """Return which facts are in each slice, by the newest cloud frame that has arrived."""
        found = dict(self._fixed)
        empty = np.zeros((len(self.truth), len(self.keys)), bool)
        changed, unchanged = empty.copy(), empty.copy()
        for i, cloud in enumerate(latest(arrived, self.stream.labels)):
            if cloud is None:
                continue
            before = self.stream.truth(cloud.stamp_ns)
            changed[i] = [before.get(k) != self.truth[i].get(k) for k in self.keys]
            unchanged[i] = ~changed[i]
            age = age_name((self.stream.labels[i] - cloud.stamp_ns) / NS)
            found.setdefault(age, empty.copy())[i] = True
        found |= {'changed': changed, 'unchanged': unchanged}
        return {name: part & self._fixed['all'] for name, part in found.items()}

    def streaming(self, system: str, delay: str, grid: Grid, alone: Grid,
                  slices: Mapping[str, Grid]) -> None:
        """Count accuracy, and help and harm against the edge alone."""
        for name, part in slices.items():
            self.count(CountKey(system, delay, name, 'accuracy'), grid, part)
            if name in ('all', 'changed', 'unchanged'):
                self.count(CountKey(system, delay, name, 'help'), grid & ~alone, part)
                self.count(CountKey(system, delay, name, 'harm'), alone & ~grid, part)

    def answered(self, system: str, delay: str, published: Sequence[PublishedAnswer]) -> None:
        """Count label times with any answer, and how old the answered frame is."""
        for i, one in enumerate(latest(published, self.stream.labels)):
            block = int(self.blocks[i])
            self.tally.add(block, CountKey(system, delay, 'all', 'answered'), one is not None, 1)
            if one is not None:
                age = (self.stream.labels[i] - one.stamp_ns) / NS
                self.tally.add(block, CountKey(system, delay, 'all', 'age_s'), age, 1)

    def latency(self, system: str, delay: str, published: Sequence[PublishedAnswer]) -> None:
        """Count the time from each answered frame to its answer."""
        for one in published:
            if one.at_ns >= self.stream.labels[0]:
                self.tally.add(self.block_at(one.at_ns),
                               CountKey(system, delay, 'all', 'latency_s'),
                               (one.at_ns - one.stamp_ns) / NS, 1)

    def count(self, name: CountKey, grid: Grid, part: Grid) -> None:
        """Count one grid within a part of it."""
        for block in sorted(set(self.blocks.tolist())):
            rows = self.blocks == block
            self.tally.add(block, name, int((grid & part)[rows].sum()), int(part[rows].sum()))

    def block_at(self, stamp_ns: int) -> int:
        """Return the unit of statistics of a time."""
        place = int(np.searchsorted(self.stream.labels, stamp_ns))
        return int(self.blocks[min(place, len(self.blocks) - 1)])

    def _fixed_slices(self) -> dict[str, Grid]:
        shape = (len(self.truth), len(self.keys))
        empty = np.zeros(shape, bool)
        found = {'all': np.array([[k in self.stream.scored(t) for k in self.keys]
                                  for t in self.stream.labels], bool).reshape(shape)}
        for j, key in enumerate(self.keys):
            for name in (f'key {key}', f'task {TASKS[key]}' if key in TASKS else ''):
                if name:
                    found.setdefault(name, empty.copy())[:, j] = True
        for i, stamp in enumerate(self.stream.labels):
            regions = self.stream.regions(stamp)
            for j, key in enumerate(self.keys):
                region = regions.get(key)
                name = 'size absent' if region is None else size_name(max(region.w, region.h))
                found.setdefault(name, empty.copy())[i, j] = True
        return found
