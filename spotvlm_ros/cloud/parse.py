# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
Reading what a cloud model replied. The reply is untrusted text.

Wanted is a JSON list of ``{"label", "bbox_2d", "value"}``. Objects are picked out one by one, so
code fences, prose around them, a single object and a list cut off by max_tokens all work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictStr, ValidationError

from ..method.facts import Fact, Query, Region
from ..method.prompt import match_choice, neutralise, parse_answer

BoxScale = Literal['relative', 'pixels']  # 0..1000 of the frame, or pixels of the frame sent
MAX_REPLY = 16_384  # characters looked at
MAX_ITEMS = 64      # objects looked at; also the bound of Answer.facts
MAX_FAILURES = 256  # places where an object began but could not be read
MIN_SIDE_PX = 1.0   # smaller boxes show nothing


class Item(BaseModel):
    """One object of the reply."""

    model_config = ConfigDict(extra='ignore')

    label: Annotated[StrictStr, Field(max_length=64)]
    value: StrictStr | bool | int | FiniteFloat
    bbox_2d: Any = None


class Box(BaseModel):
    """Corners in the scale the model was trained on."""

    corners: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


@dataclass(frozen=True)
class Reply:
    """A reply as facts; ``rejected`` says, entry by entry, what was dropped and why."""

    facts: tuple[Fact, ...] = ()
    text: str = ''
    rejected: list[str] = field(default_factory=list)


def parse_reply(query: Query, text: str, stamp_ns: int, size: tuple[int, int],
                sent_scale: float = 1.0, box_scale: BoxScale = 'relative') -> Reply:
    """
    Read the reply to ``query`` about the frame of ``stamp_ns``.

    ``size`` is the camera's (width, height), ``sent_scale`` the size of the frame sent over it.
    Never raises.
    """
    text = text[:MAX_REPLY]
    clean = neutralise(text)
    if query.format != 'facts':
        facts, rejected = parse_answer(query, text, stamp_ns)
        return Reply(facts, clean, rejected)
    rejected = []
    by_key: dict[str, Fact] = {}
    for raw in _objects(text):
        for item in _items(raw, query, rejected):
            fact = _fact(item, query, stamp_ns, size, sent_scale, box_scale, rejected)
            if fact is not None and fact.key in by_key:
                rejected.append(f'{fact.key}: answered twice')
            elif fact is not None:
                by_key[fact.key] = fact
    if not by_key and not rejected:  # no JSON at all: perhaps plain lines
        facts, rejected = parse_answer(query, text, stamp_ns)
        return Reply(facts, clean, rejected)
    return Reply(tuple(by_key[k] for k in query.keys if k in by_key), clean, rejected)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the complete JSON objects in the text, outermost first."""
    decoder = json.JSONDecoder()
    at, found, failed = 0, 0, 0
    while found < MAX_ITEMS and failed < MAX_FAILURES:
        at = text.find('{', at)
        if at < 0:
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            failed += 1
            at += 1
            continue
        found += 1
        yield value


def _items(raw: dict[str, Any], query: Query, rejected: list[str]) -> list[Item]:
    """Return the items of an object, which may also be a plain ``{key: value}`` mapping."""
    if 'label' not in raw and any(key in query.choices for key in raw):
        candidates = [{'label': k, 'value': v} for k, v in list(raw.items())[:MAX_ITEMS]]
    else:
        candidates = [raw]
    items = []
    for candidate in candidates:
        try:
            items.append(Item.model_validate(candidate))
        except ValidationError as error:
            where = '.'.join(str(p) for p in error.errors()[0]['loc'])
            rejected.append(f'{neutralise(str(candidate.get("label")), 40)}: malformed {where}')
    return items


def _fact(item: Item, query: Query, stamp_ns: int, size: tuple[int, int], sent_scale: float,
          box_scale: BoxScale, rejected: list[str]) -> Fact | None:
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
        region = _region(item.bbox_2d, size, sent_scale, box_scale)
        if region is None:
            rejected.append(f'{key}: malformed box')
    return Fact(key, value, stamp_ns, region=region)


def _region(raw: Any, size: tuple[int, int], sent_scale: float,
            box_scale: BoxScale) -> Region | None:
    """Return the box in camera pixels, None when malformed or outside the frame."""
    try:
        x0, y0, x1, y1 = Box(corners=raw).corners
    except ValidationError:
        return None
    sx, sy = ((size[0] / 1000, size[1] / 1000) if box_scale == 'relative'
              else (1 / sent_scale, 1 / sent_scale))
    region = Region(x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy).clipped(*size)
    if region is None or region.w < MIN_SIDE_PX or region.h < MIN_SIDE_PX:
        return None
    return region
