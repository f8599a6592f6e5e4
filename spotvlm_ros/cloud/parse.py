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
Reading what a cloud model replied. The reply is untrusted text.

Wanted is a JSON list of ``{"label", "bbox_2d", "value"}``, alone or as ``{"facts": [...]}``.
Objects are picked out one by one, so code fences, prose around them, a single object and a list
cut off by max_tokens all work.

Facts can only be keys and values that the query names. Free text can say anything: it is one
line without template tokens, and text that reads like instructions is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
import json
import re
from typing import Annotated
import unicodedata

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictStr, ValidationError

from .schema import FACTS
from ..config.nodes import BoxScale
from ..method.facts import Fact, Query, Region, Source, Turn
from ..method.prompt import match_choice, neutralise, parse_answer

MAX_REPLY = 16_384  # characters looked at
MAX_ITEMS = 64      # objects looked at; also the bound of Answer.facts
MAX_FAILURES = 256  # places where an object began but could not be read
MAX_DEPTH = 16      # brackets within brackets; beyond it nothing is read
MAX_REJECTED = 64   # reasons kept
MIN_SIDE_PX = 1.0   # smaller boxes show nothing

_INSTRUCTIONS = re.compile(
    r'\b(ignore|disregard|forget|override|bypass)\b.{0,40}\b(instruction|prompt|rule|message|'
    r'context|above|previous|prior|earlier)|\b(system|developer) (prompt|message)|'
    r'\byou (are now|must now|will now|have to obey)\b|\bnew instructions?\b|'
    r'\b(respond|reply|answer|say) only\b|\bpretend (to|that|you)\b|'
    r'https?:|\bwww\.|\b(sudo|rm -|curl|wget|eval|exec|import os)\b|api[ _-]?key',
    re.IGNORECASE)
# Characters without width: they hide words from a search, and order text on a screen.
_INVISIBLE = re.compile('[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff'
                        '\U000e0000-\U000e007f]')
_BRACKETS = re.compile(r'[\[\]{}]')


class Item(BaseModel):
    """One object of the reply."""

    model_config = ConfigDict(extra='ignore')

    label: Annotated[StrictStr, Field(max_length=64)]
    value: StrictStr | bool | int | FiniteFloat
    bbox_2d: object = None


class Box(BaseModel):
    """Corners in the scale the model was trained on."""

    corners: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


@dataclass(frozen=True)
class CloudAnswer:
    """
    What a reply says about the frame of ``stamp_ns``.

    ``rejected`` says, entry by entry, what was dropped and why. The bridge fills in where the
    reply is from and what it took [s].
    """

    query_id: str
    stamp_ns: int
    facts: tuple[Fact, ...] = ()
    text: str = ''
    rejected: list[str] = field(default_factory=list)
    suspicious: bool = False    # its text reads like instructions, and is left out
    wait_s: float = 0.0         # offer to the request on the wire: reading, encoding the frame
    round_trip_s: float = 0.0   # request to reply, emulated part included
    emulated_s: float = 0.0
    received: float = 0.0       # the reply's last byte came (steady clock)
    endpoint: str = ''          # name of the server
    model: str = ''

    @property
    def turn(self) -> Turn:
        """Return what enters the history."""
        return Turn(self.query_id, self.stamp_ns, Source.CLOUD, self.facts, self.text)


def parse_reply(query: Query, text: str, stamp_ns: int, size: tuple[int, int],
                sent_scale: float = 1.0, box_scale: BoxScale = 'relative') -> CloudAnswer:
    """
    Read the reply to ``query`` about the frame of ``stamp_ns``.

    ``size`` is the camera's (width, height) [pixels], ``sent_scale`` the size of the image sent
    over it. Never raises.
    """
    text = text[:MAX_REPLY]
    clean, suspicious = _screened(text)
    facts: tuple[Fact, ...] = ()
    if query.format == 'text':
        rejected = ['text: reads like instructions'] if suspicious else \
            parse_answer(query, clean, stamp_ns)[1]
    elif _too_deep(text):
        clean, rejected = '', ['reply: nested too deeply']
    else:
        rejected = []
        facts = _facts(query, text, stamp_ns, _BoxReader(size, sent_scale, box_scale), rejected)
        if not facts and not rejected:  # no JSON at all: perhaps plain lines
            facts, rejected = parse_answer(query, text, stamp_ns)
    return CloudAnswer(query.id, stamp_ns, facts, clean, rejected[:MAX_REJECTED], suspicious)


def _screened(text: str) -> tuple[str, bool]:
    """Return text that is harmless in a prompt or a log, and whether it had to be dropped."""
    plain = _INVISIBLE.sub('', unicodedata.normalize('NFKC', text))
    if _INSTRUCTIONS.search(' '.join(plain.split())):
        return '', True
    return neutralise(plain), False


def _too_deep(text: str) -> bool:
    """Return whether brackets nest deeper than any reply needs; those in strings count, too."""
    depth = 0
    for bracket in _BRACKETS.findall(text):
        depth = depth + 1 if bracket in '[{' else max(0, depth - 1)
        if depth > MAX_DEPTH:
            return True
    return False


def _objects(text: str) -> Iterator[dict[str, object]]:
    """Yield the complete JSON objects in the text, outermost first."""
    decoder = json.JSONDecoder()
    at, count, failed = 0, 0, 0
    while count < MAX_ITEMS and failed < MAX_FAILURES:
        at = text.find('{', at)
        if at < 0:
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            failed += 1
            at += 1
            continue
        count += 1
        yield value


def _items(raw: dict[str, object], query: Query, rejected: list[str]) -> list[Item]:
    """Return the items of an object: itself, a list of them, or ``{key: value}`` pairs."""
    candidates: list[object] = [raw]
    listed = raw.get(FACTS)
    if isinstance(listed, list):
        candidates = listed[:MAX_ITEMS]
    elif 'label' not in raw and any(key in query.choices for key in raw):
        candidates = [{'label': k, 'value': v} for k, v in list(raw.items())[:MAX_ITEMS]]
    items = []
    for candidate in candidates:
        try:
            items.append(Item.model_validate(candidate))
        except ValidationError as error:
            where = '.'.join(str(p) for p in error.errors()[0]['loc'])
            label = candidate.get('label') if isinstance(candidate, dict) else None
            label = label if isinstance(label, str) else 'object'
            rejected.append(f'{neutralise(label, 40)}: malformed {where or "object"}')
    return items


def _facts(query: Query, text: str, stamp_ns: int, boxes: _BoxReader,
           rejected: list[str]) -> tuple[Fact, ...]:
    """Return the facts in a reply, in the order of the query's keys."""
    by_key: dict[str, Fact] = {}
    for raw in _objects(text):
        for item in _items(raw, query, rejected):
            fact = _fact(item, query, stamp_ns, boxes, rejected)
            if fact is not None and fact.key in by_key:
                rejected.append(f'{fact.key}: answered twice')
            elif fact is not None:
                by_key[fact.key] = fact
        if len(rejected) > MAX_REJECTED:
            break
    return tuple(by_key[k] for k in query.keys if k in by_key)


def _fact(item: Item, query: Query, stamp_ns: int, boxes: _BoxReader,
          rejected: list[str]) -> Fact | None:
    key = item.label.strip()
    if key not in query.choices:
        rejected.append(f'{neutralise(key, 40)!r}: no such key')
        return None
    value = match_choice(str(item.value)[:64], query.choices[key])
    if value is None:
        rejected.append(f'{key}: {neutralise(str(item.value)[:64], 40)!r} is none of the choices')
        return None
    region = None
    if item.bbox_2d:
        region = boxes.region(item.bbox_2d)
        if region is None:
            rejected.append(f'{key}: malformed box')
    return Fact(key, value, stamp_ns, region=region)


@dataclass(frozen=True)
class _BoxReader:
    """Turns a model's boxes into regions of the camera's frame; see `parse_reply`."""

    size: tuple[int, int]
    sent_scale: float
    box_scale: BoxScale

    def region(self, raw: object) -> Region | None:
        """Return the box in camera pixels, None when malformed or outside the frame."""
        try:
            x0, y0, x1, y1 = Box.model_validate({'corners': raw}).corners
        except ValidationError:
            return None
        sx, sy = ((self.size[0] / 1000, self.size[1] / 1000) if self.box_scale == 'relative'
                  else (1 / self.sent_scale, 1 / self.sent_scale))
        region = Region(x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy).clipped(*self.size)
        if region is None or region.w < MIN_SIDE_PX or region.h < MIN_SIDE_PX:
            return None
        return region
