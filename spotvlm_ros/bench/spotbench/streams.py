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
"""What a benchmark runs over: frames at their times, a question, and exact labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from .seeds import Episode
from ...frames.pixels import Image
from ...labels.sequences import START_NS
from ...method.facts import Fact, NS, Query, Region
from ...mini.hri.hands import HandBank
from ...mini.worlds import make_world


@dataclass(frozen=True)
class Sampling:
    """What of a stream is looked at. Rates divide those of the worlds (20 a second)."""

    seconds: float = 16.0
    scored_from_s: float = 4.0   # before, the stream warms up
    edge_hz: float = 5.0
    flow_hz: float = 10.0
    label_hz: float = 10.0
    shift_s: float = 5.0         # of the labels, to check the check; 0: by half of them
    control_every: int = 3       # controls answer every so many-th frame of the edge

    def __post_init__(self) -> None:
        """Refuse rates that do not meet on the same frames."""
        if self.flow_hz % self.edge_hz:
            raise ValueError(f'flow_hz {self.flow_hz:g} and edge_hz {self.edge_hz:g}: make one a '
                             'multiple of the other')


class Stream(Protocol):
    """One recording; stamps are nanoseconds."""

    name: str
    query: Query
    seed: int
    frames: list[int]            # stamps of the frames that regions are carried over
    edge: list[int]              # those that the edge may answer, and that the cloud is offered
    labels: list[int]            # times at which answers are scored
    blocks: list[int]            # for each label, which unit of statistics it belongs to

    def image(self, stamp_ns: int) -> Image:
        """Return a frame."""

    def truth(self, stamp_ns: int) -> Mapping[str, str]:
        """Return what is true at any time."""

    def scored(self, stamp_ns: int) -> Collection[str]:
        """Return the keys that are scored at a label time."""

    def regions(self, stamp_ns: int) -> Mapping[str, Region]:
        """Return where it is, as far as known."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height [pixels]."""


class WorldStream:
    """An episode of a miniature world."""

    def __init__(self, episode: Episode, sampling: Sampling,
                 hands: HandBank | None = None) -> None:
        """Make the world; frames are drawn when asked for, and kept."""
        self.name, self.seed, self.episode = episode.set, episode.seed, episode
        self._world = make_world(episode.world, episode.seed, episode.condition, hands)
        self.query = self._world.queries[0]
        self.size = self._world.size
        self.frames = self._every(sampling.flow_hz, sampling.seconds)
        self.edge = self._every(sampling.edge_hz, sampling.seconds)
        self.labels = [s for s in self._every(sampling.label_hz, sampling.seconds)
                       if s >= START_NS + sampling.scored_from_s * NS]
        self.blocks = [0] * len(self.labels)
        self._images: dict[int, Image] = {}
        self._known: dict[int, tuple[Fact, ...]] = {}

    def image(self, stamp_ns: int) -> Image:
        """Return a frame, drawn once."""
        if stamp_ns not in self._images:
            self._images[stamp_ns] = self._world.frame(self._index(stamp_ns))
        return self._images[stamp_ns]

    def truth(self, stamp_ns: int) -> Mapping[str, str]:
        """Return the exact values."""
        return {f.key: f.value for f in self._facts(stamp_ns)}

    def scored(self, stamp_ns: int) -> Collection[str]:
        """Return all keys."""
        return self.query.keys

    def regions(self, stamp_ns: int) -> Mapping[str, Region]:
        """Return the exact regions."""
        return {f.key: f.region for f in self._facts(stamp_ns) if f.region is not None}

    def _every(self, rate_hz: float, seconds: float) -> list[int]:
        step = round(self._world.fps / rate_hz)
        return [START_NS + i * NS // int(self._world.fps)
                for i in range(0, round(seconds * self._world.fps), step)]

    def _index(self, stamp_ns: int) -> int:
        return self.episode.first + round((stamp_ns - START_NS) * self._world.fps / NS)

    def _facts(self, stamp_ns: int) -> tuple[Fact, ...]:
        if stamp_ns not in self._known:
            self._known[stamp_ns] = self._world.facts(self._index(stamp_ns), stamp_ns)
        return self._known[stamp_ns]
