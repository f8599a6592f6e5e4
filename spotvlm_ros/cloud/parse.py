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

Wanted is a JSON list of ``{"label", "bbox_2d", "value"}``, alone or as ``{"facts": [...]}``. Where
the value is clear, its form does not matter: reasoning, code fences and prose around it, other
names of the fields, an object keyed by the facts, wrappers, trailing commas, Python literals, a
list cut off by max_tokens. What is not clear is dropped, and each drop is told in ``rejected``.

Facts can only be keys and values that the query names. Free text can say anything: it is one
line without template tokens or turns, and dropped where it has what descriptions need not, such as
addresses. What its words say is not judged, in no language. An empty list or object means that
nothing was said: no fact, and one entry in ``rejected``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import json
import re
from typing import NamedTuple
import unicodedata

import json_repair

from .boxes import box_field, corners_of, ImageGeometry
from .wording import FACTS
from ..config.nodes import BoxScale
from ..method.choices import match_choice, match_key
from ..method.facts import Fact, Query, Source, Turn
from ..method.final_answer import final_answer, without_grounding
from ..method.free_text import free_text
from ..method.prompt import answer_text, neutralise, one_voice, parse_answer

MAX_REPLY = 16_384  # characters looked at
MAX_ITEMS = 64      # objects looked at; also the bound of Answer.facts
MAX_FAILURES = 256  # places where an object began but could not be read
MAX_DEPTH = 16      # brackets within brackets; beyond it nothing is read
MAX_REJECTED = 64   # reasons kept
MAX_REPAIRS = 8     # objects that json_repair is given, each of at most
MAX_REPAIRED = 4096  # characters: its time can grow with the square of them

# What no description of a picture needs, and what carries instructions in any language: tokens of
# chat templates, addresses, operators of shells, characters that hide or reorder text.
_CARRIERS = re.compile(
    r'<\|[^<>]{0,40}\|>|</?(?:s|bos|eos|\w{1,20}_of_\w{1,20})>|\[/?(?:INST|SYS)\w{0,20}\]|'
    r'<</?SYS>>|'
    r'\b[a-z][a-z0-9+.-]{1,15}://|\bwww\.|\b[\w.+-]{1,64}@[\w-]{1,64}\.\w|\$\(|&&|\|\||'
    '[\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]', re.IGNORECASE)
# Characters without width: they hide words from a search, and order text on a screen.
_INVISIBLE = re.compile('[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff'
                        '\U000e0000-\U000e007f]')
_BRACKETS = re.compile(r'[\[\]{}]')
# Names of fields, in the order in which they are looked for; seen in replies of real models
# (roboflow/inference#2921, #2930).
_LABELS = ('label', 'key', 'name', 'fact', 'field', 'attribute', 'object', 'class', 'category')
_VALUES = ('value', 'answer', 'state', 'status', 'choice', 'class', 'prediction', 'result', 'text')
CARRIER = 'text: has template tokens, addresses, shell operators or hidden characters'
REASONING_ONLY = ('reply: nothing but reasoning; raise max_tokens, or turn reasoning off '
                  '(extra_body)')


class Item(NamedTuple):
    """One key and value as the model gave them, and the object that they stood in."""

    key: str
    value: object
    fields: Mapping[str, object]


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
    suspicious: bool = False    # its text has what carries instructions, and is left out
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
    answer = final_answer(text[:MAX_REPLY])
    suspicious, said = _is_suspicious(answer), ''
    facts: tuple[Fact, ...] = ()
    if not answer and text.strip():
        rejected = [REASONING_ONLY]
    elif query.format == 'text':
        said, why = ('', CARRIER) if suspicious else free_text(_INVISIBLE.sub('', answer))
        said = one_voice(neutralise(said))
        rejected = [why] if why else parse_answer(query, said, stamp_ns)[1]
    elif _too_deep(answer):
        rejected = ['reply: nested too deeply']
    else:
        geometry = ImageGeometry(size, sent_scale, box_scale)
        facts, rejected = _facts(query, answer, stamp_ns, geometry)
        said = answer_text(query, facts)
    return CloudAnswer(query.id, stamp_ns, facts, said, rejected[:MAX_REJECTED], suspicious)


def confidence(query: Query, fact: Fact, tokens: Sequence[tuple[str, float]]) -> float:
    """
    Return the probability of the tokens that spell a fact's value, 1 where there are no tokens.

    Where it is not clear which these are, it is that of the whole reply.
    """
    text = ''.join(token for token, _ in tokens)
    key, value = (rf'(?<!\w){re.escape(s)}(?!\w)' for s in (fact.key, fact.value))
    # A line or field "key: value", or an object with a field for each of the two.
    forms = (rf'{key}[^\w\n]+({value})', rf'{key}[^{{}}]*?(?<!\w)value\W+({value})',
             rf'(?<!\w)value\W+({value})[^{{}}]*?{key}') if query.format == 'facts' else \
        (f'({value})',)
    found = next(filter(None, (re.search(form, text, re.IGNORECASE) for form in forms)), None)
    begin, end = found.span(1) if found else (0, len(text))
    product, at = 1.0, 0
    for token, probability in tokens:
        if at < end and at + len(token) > begin:
            product *= probability
        at += len(token)
    return product


def _facts(query: Query, answer: str, stamp_ns: int,
           geometry: ImageGeometry) -> tuple[tuple[Fact, ...], list[str]]:
    """Return the facts of a reply, in the query's order, and what was dropped."""
    rejected: list[str] = []
    by_key: dict[str, Fact] = {}
    objects = 0
    for value in _objects(answer):
        objects += 1
        for item in _items(value, query, rejected):
            fact = _fact(item, query, stamp_ns, geometry, rejected)
            if fact is not None and fact.key in by_key:
                rejected.append(f'{fact.key}: answered twice')
            elif fact is not None:
                by_key[fact.key] = fact
        if len(rejected) > MAX_REJECTED:
            break
    if by_key or rejected:
        return tuple(by_key[k] for k in query.keys if k in by_key), rejected
    if objects or answer in ('[]', '{}'):
        return (), ['reply: an empty list tells nothing']
    return parse_answer(query, answer, stamp_ns)  # no JSON at all: perhaps plain lines


def _is_suspicious(text: str) -> bool:
    """Return whether a text has what carries instructions, hidden or not."""
    normal = unicodedata.normalize('NFKC', without_grounding(text))
    return bool(_CARRIERS.search(normal) or _CARRIERS.search(_INVISIBLE.sub('', normal)))


def _too_deep(text: str) -> bool:
    """Return whether brackets nest deeper than any reply needs; those in strings count, too."""
    depth = 0
    for bracket in _BRACKETS.findall(text):
        depth = depth + 1 if bracket in '[{' else max(0, depth - 1)
        if depth > MAX_DEPTH:
            return True
    return False


def _objects(text: str) -> Iterator[dict[str, object]]:
    """Yield the complete JSON objects in the text, outermost first, mended where need be."""
    decoder = json.JSONDecoder()
    ends = _ends(text)
    at, count, failed, repairs = 0, 0, 0, 0
    while count < MAX_ITEMS and failed < MAX_FAILURES:
        at = text.find('{', at)
        if at < 0:
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = ends.get(at, at)
            value = None
            if repairs < MAX_REPAIRS and 0 < end - at < MAX_REPAIRED:
                repairs += 1
                value = _repaired(text[at:end + 1])
            if not value:
                failed += 1
                at += 1
                continue
            at = end + 1
        count += 1
        yield value


def _ends(text: str) -> dict[int, int]:
    """Return where each brace that opens is closed, by counting; strings are not looked at."""
    ends, opened = {}, []
    for brace in re.finditer('[{}]', text):
        if brace[0] == '{':
            opened.append(brace.start())
        elif opened:
            ends[opened.pop()] = brace.start()
    return ends


def _repaired(text: str) -> dict[str, object] | None:
    """Return an object that is nearly JSON: trailing commas, single quotes, Python literals."""
    try:
        value = json_repair.loads(text, skip_json_loads=True)
    except (ValueError, RecursionError, IndexError):
        return None
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else None


def _items(value: object, query: Query, rejected: list[str], depth: int = 0) -> Iterator[Item]:
    """Yield the keys and values in an object: its own, those it is keyed by, or those within."""
    if isinstance(value, list):
        for element in value[:MAX_ITEMS]:
            yield from _items(element, query, rejected, depth + 1)
        return
    if not isinstance(value, dict):
        if depth:
            rejected.append(f'{neutralise(str(value)[:40], 40)}: malformed object')
        return
    fields = _lower(value)
    label = next((n for n in _LABELS if isinstance(fields.get(n), str)
                  and match_key(str(fields[n]), query) is not None), None)
    if label is not None:
        key = match_key(str(fields[label]), query) or ''
        parts = [fields, *(_lower(v) for v in fields.values() if isinstance(v, dict))]
        valued = next(((part[n], part) for part in parts for n in _VALUES
                       if n in part and (part is not fields or n != label)), None)
        if valued is None:
            rejected.append(f'{key}: malformed value')
        else:
            yield Item(key, valued[0], {**valued[1], **fields})
        return
    named = {n: k for n in fields if (k := match_key(n, query)) is not None}
    if named:
        yield from _keyed(fields, named, rejected)
        return
    if query.format == 'choice':
        chosen = [v for n, v in fields.items() if n not in _LABELS
                  and _choice(v, query.choices[query.id]) is not None]
        if len(chosen) == 1:
            yield Item(query.id, chosen[0], fields)
            return
    inner = [v for v in fields.values() if isinstance(v, (dict, list)) and v]
    inner += [o for v in fields.values() if isinstance(v, str) for o in _objects(v)]
    if 'label' in fields or not inner or depth > 4:
        if fields and not (set(fields) == {FACTS} and not fields[FACTS]):
            rejected.append(_no_such_key(fields))
        return
    for element in inner:
        yield from _items(element, query, rejected, depth + 1)


def _keyed(fields: Mapping[str, object], named: Mapping[str, str],
           rejected: list[str]) -> Iterator[Item]:
    """Yield the items of an object whose fields are named like the facts."""
    for name, value in fields.items():
        if name not in named:
            if name not in _LABELS + _VALUES:
                rejected.append(f'{neutralise(name, 40)!r}: no such key')
            continue
        if isinstance(value, dict):
            inner = _lower(value)
            field_name = next((n for n in _VALUES if n in inner), None)
            if field_name is None:
                rejected.append(f'{named[name]}: malformed value')
            else:
                yield Item(named[name], inner[field_name], inner)
        else:
            yield Item(named[name], value, {})


def _lower(value: Mapping[str, object]) -> dict[str, object]:
    """Return an object with its names in lower case."""
    return {str(k)[:64].strip().casefold(): v for k, v in list(value.items())[:MAX_ITEMS]}


def _no_such_key(fields: Mapping[str, object]) -> str:
    label = next((fields[n] for n in _LABELS if n in fields), None)
    if isinstance(label, str):
        return f'{neutralise(label, 40)!r}: no such key'
    return 'object: malformed label' if 'label' in fields else 'object: names no key'


def _fact(item: Item, query: Query, stamp_ns: int, geometry: ImageGeometry,
          rejected: list[str]) -> Fact | None:
    value = _choice(item.value, query.choices[item.key])
    if value is None:
        rejected.append(f'{item.key}: {neutralise(str(item.value)[:64], 40)!r} is none of the '
                        'choices')
        return None
    region = None
    name = box_field(item.fields)
    if name is not None:
        corners = corners_of(name, item.fields[name])
        region = geometry.region(corners) if corners is not None else None
        if region is None:
            rejected.append(f'{item.key}: malformed box')
    return Fact(item.key, value, stamp_ns, region=region)


def _choice(value: object, choices: tuple[str, ...]) -> str | None:
    """Return the choice that a JSON value names, None where it names none or is no scalar."""
    if isinstance(value, bool):
        words = ('true', 'yes') if value else ('false', 'no')
        return next((c for word in words if (c := match_choice(word, choices))), None)
    if isinstance(value, list) and len(value) == 1:
        return _choice(value[0], choices)
    if value is None:
        return match_choice('none', choices)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return match_choice(str(value)[:64], choices) if isinstance(value, (str, int, float)) else None
