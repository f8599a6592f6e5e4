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
Which key and which choice a model means, where that is clear and only the form is its own.

A choice may be followed by what explains it, as in ``red (100 m ahead)`` or ``30 km/h``. What
names two choices names none, and what speaks of one in a sentence is not read: "not red" would be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
import re
import unicodedata

from .facts import Query

MAX_LINE = 400  # characters of a line that are looked at
_AROUND = ' \t\r\n\'"`.,;:!*_#|()[]{}\u3002\u3001\u201c\u201d\u2018\u2019'
_TAG = re.compile(r'</?\w[\w-]{0,30}>')
_EXPLAINED = re.compile(r'\s*(?:[(\[,;]|\s[-\u2013\u2014]\s|<)')
_UNIT = re.compile(r'(\d+(?:\.\d+)?)\s?(?:[a-zA-Z%\u00b0]{1,4}(?:/[a-zA-Z]{1,2})?)')
_GAP = (r'(?:["\'`*_\])}]*\s*(?::|=>|->|=|\u2192|\||>)\s*'
        r'|["\']\s*,\s*(?=["\'\d]))')  # the last: a pair in brackets


def match_key(raw: str, query: Query) -> str | None:
    """Return the key of the query that raw text names, forgiving case and Markdown."""
    name = _bare(raw)
    return next((key for key in query.keys if key.casefold() == name), None)


def match_choice(raw: str, choices: Sequence[str]) -> str | None:
    """Return the choice that raw text names, forgiving case, Markdown, units, explanations."""
    value = _bare(raw)
    exact = _exact(value, choices)
    if exact is not None:
        return exact
    value = _bare(_TAG.sub(' ', value))
    unit = _UNIT.fullmatch(value)
    explained = _EXPLAINED.search(value)
    head, rest = (value[:explained.start()], value[explained.start():]) if explained else \
        (unit[1] if unit else value, '')
    choice = _exact(_bare(head), choices)
    words = set(re.findall(r'\w+', rest))
    others = {c.casefold() for c in choices if c != choice}
    return None if words & others or any(' ' in o and o in rest for o in others) else choice


def labelled(line: str, query: Query) -> Iterator[tuple[str, str]]:
    """
    Yield keys and raw values of a line: ``key: value``, several of them, a row of a table, a tag.

    Nothing where the line begins with anything else but signs and numbers: a sentence.
    """
    line = unicodedata.normalize('NFKC', line[:MAX_LINE])
    labels = list(_label_pattern(query.keys).finditer(line))
    if not labels or any(c.isalpha() for c in line[:labels[0].start()]):
        return
    for label, after in zip(labels, [*labels[1:], None]):
        key = match_key(label[1], query)
        if key is not None:
            yield key, line[label.end():after.start() if after is not None else len(line)]


@lru_cache(maxsize=64)
def _label_pattern(keys: tuple[str, ...]) -> re.Pattern[str]:
    names = '|'.join(re.escape(key) for key in sorted(keys, key=len, reverse=True))
    return re.compile(rf'(?<![\w/-])({names}){_GAP}', re.IGNORECASE)


def _exact(value: str, choices: Sequence[str]) -> str | None:
    return next((c for c in choices if c.casefold() == value), None)


def _bare(raw: str) -> str:
    return unicodedata.normalize('NFKC', raw[:MAX_LINE]).strip(_AROUND).casefold()
