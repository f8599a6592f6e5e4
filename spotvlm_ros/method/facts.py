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
"""The plain data that flows through Context Transfer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Literal

Format = Literal['choice', 'facts', 'text']
NS = 1_000_000_000


class Source(IntEnum):
    """Who answered; the numbers are those of spotvlm_msgs/Answer."""

    UNKNOWN = 0
    EDGE = 1
    CLOUD = 2
    TRUTH = 3

    @classmethod
    def _missing_(cls, value: object) -> Source:
        """Take numbers of nobody, which any message may have, for UNKNOWN."""
        return cls.UNKNOWN


@dataclass(frozen=True)
class Region:
    """Axis-aligned box [pixels of one frame, origin top left]."""

    x: float
    y: float
    w: float
    h: float

    def clipped(self, width: int, height: int) -> Region | None:
        """Return the part inside a width x height frame, None when nothing is left."""
        x0, y0 = max(0.0, self.x), max(0.0, self.y)
        x1, y1 = min(float(width), self.x + self.w), min(float(height), self.y + self.h)
        return Region(x0, y0, x1 - x0, y1 - y0) if x1 > x0 and y1 > y0 else None

    def iou(self, other: Region) -> float:
        """Intersection over union, 0..1."""
        iw = min(self.x + self.w, other.x + other.w) - max(self.x, other.x)
        ih = min(self.y + self.h, other.y + other.h) - max(self.y, other.y)
        if iw <= 0 or ih <= 0:
            return 0.0
        return iw * ih / (self.w * self.h + other.w * other.h - iw * ih)


@dataclass(frozen=True)
class Fact:
    """One key and value, seen in the frame acquired at ``stamp_ns`` (ROS time)."""

    key: str
    value: str
    stamp_ns: int
    confidence: float = 1.0
    region: Region | None = None


@dataclass(frozen=True)
class CloudWording:
    """
    What only the cloud model is told; the edge keeps the short question.

    ``prompt`` stands for that of the query where it is not empty; ``meanings`` says, by key and
    value, what a value means; ``examples`` are lines added as they are; ``language`` is that of
    free text.
    """

    prompt: str = ''
    meanings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    language: str = ''


@dataclass(frozen=True)
class Query:
    """
    A standing question.

    ``choices`` maps each key to its allowed values; a choice query has one key, its own id;
    a text query has none. Durations are seconds. ``context_tokens`` bounds the history in the
    prompt. ``camera`` names the camera that the question is about; '' where there is one only.
    ``harm_at_most`` bounds the share of facts, 0 to 1, that are right without context and wrong
    in the answer; 1: no bound; ``cautious``: the edge alone is believed more from the beginning,
    until the cloud's answers have shown that there is no such harm. ``weights`` are those of
    `stacking`, by key and name, that an earlier calibration has found.
    """

    id: str  # noqa: A003
    prompt: str
    format: Format  # noqa: A003
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rate_hz: float = 10.0
    deadline_s: float = 0.5
    cloud_period_s: float = 1.0
    ttl_s: Mapping[str, float] = field(default_factory=dict)
    max_new_tokens: int = 64
    context_tokens: int = 256
    camera: str = ''
    cloud: CloudWording = CloudWording()
    harm_at_most: float = 1.0
    cautious: bool = False
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Reject what no model could answer."""
        if self.format not in ('choice', 'facts', 'text'):
            raise ValueError(f'query {self.id!r}: format is {self.format!r}; '
                             'use choice, facts or text')
        if self.format == 'choice' and set(self.choices) != {self.id}:
            raise ValueError(f'query {self.id!r}: a choice query needs choices under its own id, '
                             f'got {sorted(self.choices)}')
        if self.format == 'facts' and not self.choices:
            raise ValueError(f'query {self.id!r}: a facts query needs at least one key')
        if self.format == 'text' and self.choices:
            raise ValueError(f'query {self.id!r}: a text query takes no choices')
        if not 0.0 <= self.harm_at_most <= 1.0:
            raise ValueError(f'query {self.id!r}: harm_at_most = {self.harm_at_most}; give a '
                             'share of facts, 0 to 1, as 0.02; 1 is no bound')
        for key, values in self.choices.items():
            if len(values) < 2 or len(set(values)) != len(values):
                raise ValueError(f'query {self.id!r}: key {key!r} needs two or more different '
                                 f'choices, got {list(values)}')
        for key, ttl in self.ttl_s.items():
            if key not in (*self.choices, 'default') or not ttl > 0:
                raise ValueError(f'query {self.id!r}: ttl_s.{key} = {ttl}; name a key of the '
                                 "query or 'default', and a positive time in seconds")
        for key, meanings in self.cloud.meanings.items():
            unknown = sorted(set(meanings) - set(self.choices.get(key, ())))
            if unknown:
                raise ValueError(f'query {self.id!r}: meanings of {key!r} explain {unknown}; the '
                                 f'choices are {list(self.choices.get(key, ()))}')
        object.__setattr__(self, 'choices', MappingProxyType(dict(self.choices)))
        object.__setattr__(self, 'ttl_s', MappingProxyType(dict(self.ttl_s)))

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys in the order in which they are asked and answered."""
        return tuple(self.choices)

    def asks_as(self, other: Query | None) -> bool:
        """Whether answers to another query are answers to this one, too."""
        return other is not None and (self.id, self.prompt, self.choices, self.camera) == (
            other.id, other.prompt, other.choices, other.camera) and self.format == other.format

    def ttl_ns(self, key: str) -> int:
        """Time to live of a fact of this key."""
        return int(self.ttl_s.get(key, self.ttl_s.get('default', 5.0)) * NS)


def cameras(queries: Iterable[Query]) -> list[str]:
    """Return the names of the cameras that questions are about, each once."""
    return list(dict.fromkeys(q.camera for q in queries))


@dataclass(frozen=True)
class Turn:
    """One query answered about one frame."""

    query_id: str
    stamp_ns: int
    source: Source
    facts: tuple[Fact, ...] = ()
    text: str = ''


@dataclass(frozen=True)
class Context:
    """
    What the edge model is given for the next frame of one query.

    ``facts`` are newest per key; ``focus`` holds, per key, the region carried to the frame
    acquired at ``stamp_ns``, also where the fact itself was dropped; ``dropped`` says why it is
    not (numbers of ``gate.Drop``). Empty facts and text mean: no context.
    """

    query_id: str
    stamp_ns: int
    facts: tuple[Fact, ...] = ()
    text: str = ''
    text_stamp_ns: int = 0
    focus: Mapping[str, Region] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell the model."""
        return not self.facts and not self.text

    @property
    def helps(self) -> bool:
        """Whether there is something to tell the model, or to show it."""
        return not self.empty or bool(self.focus)

    @property
    def newest_ns(self) -> int:
        """Stamp of the newest thing known; 0 when empty."""
        stamps = [f.stamp_ns for f in self.facts]
        if self.text:
            stamps.append(self.text_stamp_ns)
        return max(stamps, default=0)
