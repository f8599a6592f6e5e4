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
"""What edge, cloud, context and truth say, as pages show it; made of messages or of recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from ..method.facts import Fact, NS, Region
from ..method.gate import Drop
from ..method.prompt import printable

MAX_SHOWN = 2000    # characters of a text
ORIGINS = {1: 'own', 2: 'with context', 3: 'held from the cloud'}
GATES = ('open', 'empty', 'age limit', 'scene cut', 'clock jump', 'restart')
WHY = {Drop.LIFETIME: 'older than its time to live', Drop.AGE: 'older than the age limit',
       Drop.SCENE_CUT: 'from before a scene cut', Drop.CHANGED: 'its pixels have changed'}
Json = dict[str, JsonValue]


class Stamp(Protocol):
    """A time, or a duration, of a message."""

    sec: int
    nanosec: int


class Box(Protocol):
    """A region of a message."""

    x_offset: int
    y_offset: int
    width: int
    height: int


class Header(Protocol):
    """The header of a message."""

    stamp: Stamp


class FactMessage(Protocol):
    """A fact of a message."""

    key: str
    value: str
    confidence: float
    stamp: Stamp
    has_region: bool
    region: Box
    origin: int


class AnswerMessage(Protocol):
    """An answer, as rclpy or rosbags have it."""

    header: Header
    query_id: str
    text: str
    facts: Sequence[FactMessage]
    used_context: bool
    used_focus: bool
    context_tokens: int
    context_sequence: int
    wait: Stamp
    preprocess: Stamp
    inference: Stamp
    emulated_delay: Stamp
    model: str
    error_msg: str


class ContextMessage(Protocol):
    """A context, as rclpy or rosbags have it."""

    header: Header
    query_id: str
    facts: Sequence[FactMessage]
    text: str
    focus: Sequence[Box]
    focus_keys: Sequence[str]
    tokens: int
    gate: int
    dropped_keys: Sequence[str]
    dropped_reasons: Sequence[int]
    sequence: int


@dataclass(frozen=True)
class Said:
    """An answer about a frame. ``origins`` says where values come from, by key."""

    stamp_ns: int
    facts: tuple[Fact, ...]
    text: str = ''
    error: str = ''
    model: str = ''
    origins: Mapping[str, str] = field(default_factory=dict)
    used: tuple[str, ...] = ()       # 'context', 'focus'
    tokens: int = 0
    sequence: int = 0                # of the context that was told
    stages_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, str]:
        """Return the values by key."""
        return {f.key: f.value for f in self.facts}

    def plain(self, now_ns: int) -> Json:
        """Return it for JSON, with ages at ``now_ns``."""
        return {'stamp': str(self.stamp_ns), 'age_s': age_s(now_ns, self.stamp_ns),
                'text': shown(self.text), 'error': shown(self.error),
                'model': shown(self.model), 'used': [*self.used],
                'tokens': self.tokens, 'sequence': self.sequence, 'stages_s': {
                    name: round(seconds, 4) for name, seconds in self.stages_s.items()},
                'facts': [plain_fact(f, now_ns) | {'origin': self.origins.get(f.key, '')}
                          for f in self.facts]}


@dataclass(frozen=True)
class Told:
    """A context, for the frame of its stamp; ``dropped`` says why, by key."""

    stamp_ns: int
    facts: tuple[Fact, ...]
    focus: Mapping[str, Region] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    text: str = ''
    gate: int = 0
    tokens: int = 0
    sequence: int = 0

    def plain(self, now_ns: int) -> Json:
        """Return it for JSON, with ages at ``now_ns``."""
        return {'stamp': str(self.stamp_ns), 'age_s': age_s(now_ns, self.stamp_ns),
                'text': shown(self.text),
                'gate': GATES[self.gate] if self.gate < len(GATES) else str(self.gate),
                'tokens': self.tokens, 'sequence': self.sequence,
                'facts': [plain_fact(f, now_ns) for f in self.facts],
                'focus': {shown(k): box(r) for k, r in self.focus.items()},
                'dropped': {shown(k): reason(why) for k, why in self.dropped.items()}}


def plain(what: Said | Told | None, now_ns: int) -> JsonValue:
    """Return it for JSON, with ages at ``now_ns``; None where there is nothing."""
    return None if what is None else what.plain(now_ns)


def said(message: AnswerMessage) -> Said:
    """Return an answer."""
    stages = {'wait': message.wait, 'preprocess': message.preprocess,
              'model': message.inference, 'emulated': message.emulated_delay}
    return Said(
        stamp_ns(message.header.stamp), _facts(message.facts), message.text, message.error_msg,
        message.model, {f.key: ORIGINS[f.origin] for f in message.facts if f.origin in ORIGINS},
        tuple(['context'] * message.used_context + ['focus'] * message.used_focus),
        int(message.context_tokens), int(message.context_sequence),
        {name: _seconds(stage) for name, stage in stages.items()})


def told(message: ContextMessage) -> Told:
    """Return a context."""
    return Told(
        stamp_ns(message.header.stamp), _facts(message.facts),
        {key: _region(found) for key, found in zip(message.focus_keys, message.focus)},
        {key: int(why) for key, why in zip(message.dropped_keys, message.dropped_reasons)},
        message.text, int(message.gate), int(message.tokens), int(message.sequence))


def stamp_ns(stamp: Stamp) -> int:
    """Return a stamp in nanoseconds."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


def age_s(now_ns: int, then_ns: int) -> float:
    """Return how long ago something was [s]."""
    return round((now_ns - then_ns) / NS, 3)


def reason(why: int) -> str:
    """Return why a fact is not told."""
    return WHY[Drop(why)] if why in set(Drop) else f'reason {why}'


def shown(text: str) -> str:
    """Return untrusted text with what no screen should be sent made harmless."""
    return printable(text[:MAX_SHOWN])


def box(region: Region | None) -> JsonValue:
    """Return a region as x, y, width, height."""
    return None if region is None else [round(v, 1) for v in (
        region.x, region.y, region.w, region.h)]


def plain_fact(fact: Fact, now_ns: int) -> Json:
    """Return a fact for JSON."""
    return {'key': shown(fact.key), 'value': shown(fact.value),
            'confidence': round(float(fact.confidence), 3), 'age_s': age_s(now_ns, fact.stamp_ns),
            'box': box(fact.region)}


def _facts(messages: Sequence[FactMessage]) -> tuple[Fact, ...]:
    return tuple(Fact(m.key, m.value, stamp_ns(m.stamp), float(m.confidence),
                      _region(m.region) if m.has_region else None) for m in messages)


def _region(message: Box) -> Region:
    return Region(message.x_offset, message.y_offset, message.width, message.height)


def _seconds(duration: Stamp) -> float:
    return float(duration.sec) + duration.nanosec / NS
