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
What is believed of answers and contexts that came in messages, whoever sent them.

A fact is one of the query's keys with one of its choices, of a frame that is not ahead of now.
All else is left out, with the reason, before it can reach a history or a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
import math

from .facts import Context, Fact, NS, Query, Region, Source, Turn
from .prompt import MAX_TEXT, neutralise, one_voice

CLOCK_AHEAD_S = 1.0   # the sender's clock may be this far ahead of ours
MAX_SIDE = 65536      # of a frame; regions end there [pixels]
MIN_SIDE = 1 / 64     # of a region; a thinner one shows nothing [pixels]


def trusted_turn(turn: Turn, query: Query, source: Source,
                 now_ns: int) -> tuple[Turn | None, list[str]]:
    """
    Return what is believed of an answer to a query, None if nothing, and why not the rest.

    ``source`` is the one whose answers the topic carries; ``now_ns`` is 0 where the time is not
    known yet.
    """
    if turn.source is not source:
        return None, [f'{query.id}: an answer from {turn.source.name} on the topic of '
                      f'{source.name}']
    if turn.stamp_ns <= 0:
        return None, [f'{query.id}: an answer without the stamp of a frame']
    if _is_ahead(turn.stamp_ns, now_ns):
        return None, [f'{query.id}: an answer about a frame {(turn.stamp_ns - now_ns) / NS:.1f} s '
                      'ahead of now; synchronise the clocks']
    facts, rejected = trusted_facts(turn.facts, query, now_ns)
    if rejected and not facts:
        return None, rejected
    return replace(turn, facts=facts, text=turn.text[:4 * MAX_TEXT]), rejected


def trusted_context(context: Context, query: Query, now_ns: int) -> tuple[Context, list[str]]:
    """Return what is believed of a context for a query, and why not the rest."""
    facts, rejected = trusted_facts(context.facts, query, now_ns)
    focus = {}
    for key, region in context.focus.items():
        inside = _inside(region)
        if key in query.choices and inside is not None:
            focus[key] = inside
        else:
            rejected.append(f'{query.id}: focus of {neutralise(key, 40)!r}: no such key, or no '
                            'region')
    text, text_ns = context.text, context.text_stamp_ns
    if text and (query.format != 'text' or _is_ahead(text_ns, now_ns)):
        rejected.append(f'{query.id}: a text that was not asked for, or of a frame ahead of now')
        text, text_ns = '', 0
    dropped = {key: why for key, why in context.dropped.items() if key in query.choices}
    return replace(context, facts=facts, focus=focus, text=one_voice(neutralise(text))[:MAX_TEXT],
                   text_stamp_ns=text_ns, dropped=dropped), rejected


def trusted_facts(facts: Iterable[Fact], query: Query,
                  now_ns: int) -> tuple[tuple[Fact, ...], list[str]]:
    """Return the facts that answer a query, the first of each key, and why not the others."""
    trusted: dict[str, Fact] = {}
    rejected = []
    for fact in facts:
        why = _why_rejected(fact, query, now_ns)
        if why is None and fact.key in trusted:
            why = 'told twice'
        if why is not None:
            rejected.append(f'{query.id}: fact {neutralise(fact.key, 40)!r}: {why}')
            continue
        region = _inside(fact.region) if fact.region is not None else None
        trusted[fact.key] = replace(fact, confidence=min(1.0, max(0.0, fact.confidence)),
                                    region=region)
    return tuple(trusted.values()), rejected


def _why_rejected(fact: Fact, query: Query, now_ns: int) -> str | None:
    if fact.key not in query.choices:
        return 'no such key'
    if fact.value not in query.choices[fact.key]:
        return f'{neutralise(fact.value, 40)!r} is none of the choices'
    if not math.isfinite(fact.confidence):
        return f'confidence is {fact.confidence}'
    if _is_ahead(fact.stamp_ns, now_ns):
        return f'of a frame {(fact.stamp_ns - now_ns) / NS:.1f} s ahead of now'
    return None


def _is_ahead(stamp_ns: int, now_ns: int) -> bool:
    return 0 < now_ns < stamp_ns - int(CLOCK_AHEAD_S * NS)


def _inside(region: Region) -> Region | None:
    """Return the part of a region that can be in a frame, None if nothing of it can."""
    if not all(map(math.isfinite, (region.x, region.y, region.w, region.h))):
        return None
    if region.x >= 0 and region.y >= 0 and min(region.w, region.h) >= MIN_SIDE and \
            region.x + region.w <= MAX_SIDE and region.y + region.h <= MAX_SIDE:
        return region
    inside = region.clipped(MAX_SIDE, MAX_SIDE)
    return inside if inside is not None and min(inside.w, inside.h) >= MIN_SIDE else None
