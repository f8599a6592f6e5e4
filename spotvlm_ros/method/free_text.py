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
What people and planners are shown of a model's free text: words, or why there are none.

A model with random or damaged weights, a tokenizer of another model or a text cut off in JSON give
tokens without meaning; none of that is an answer, and it is not shown as one.
"""

from __future__ import annotations

from collections.abc import Iterator
import json
import re
import unicodedata

from .final_answer import final_answer, without_grounding

MAX_FREE_TEXT = 4000   # longest free text; what is behind is left out [characters]
MAX_DEPTH = 4          # of JSON that is read for its words
MIN_WORDS = 24         # shortest repetition, and shortest text besides one [characters]
UNREADABLE = 'text: unreadable, {} of {} characters are damaged; check the model and its tokenizer'
REPEATS = 'text: says only {!r}, {} times; check the model and its weights'

# Tokens of templates and tokenizers, where a model writes them as text.
_TOKEN = re.compile(
    r'<\|[^<>|\n]{1,60}\|>|<0x[0-9A-F]{2}>|</?[a-z]{1,20}(?:[-_][a-z0-9]{1,20}){1,5}>|<unused\d+>'
    r'|</?(?:s|bos|eos|pad|unk|mask|image|video|audio|img)>|\[/?(?:UNK|PAD|CLS|SEP|MASK|INST)\]',
    re.IGNORECASE)
_REPEATED = re.compile(r'(.{1,60}?)\1{7,}', re.DOTALL)
_JSON = re.compile(r'\s*[\[{]\s*["\[{\]}]')
_JSON_MARKS = re.compile(r'[{}\[\]\\]|(?<![\w.])"|"(?!\w)|(?<=["}\]]),')


def free_text(text: str) -> tuple[str, str]:
    """
    Return the readable part of a model's free text, of any lines, and '' or why there is none.

    Reasoning, tokens, JSON around words and characters that are none are left out, what repeats
    itself is there once with its number. Time grows with the length of the text up to a bound.
    """
    answer = without_grounding(final_answer(text))[:MAX_FREE_TEXT].removesuffix('\ufffd')
    if ' ' not in answer:  # byte-level tokens that nothing has decoded
        answer = answer.replace('\u0120', ' ').replace('\u010a', '\n')
    plain = _without_json(_TOKEN.sub(' ', answer).replace('\u2581', ' '))
    shown = ''.join('' if _is_none(c) else c for c in plain)
    if 2 * (len(plain) - len(shown)) > len(plain):
        return '', UNREADABLE.format(len(plain) - len(shown), len(plain))
    shown = f'{shown} '  # so that the last time is as the others
    longest = max(_REPEATED.finditer(shown), key=lambda again: len(again[0]), default=None)
    if longest is not None and _is_long(longest):
        unit, whole = longest[1], longest[0]
        if len(unit) + len(shown) - len(whole) < MIN_WORDS:
            return '', REPEATS.format(unit.strip(), len(whole) // len(unit))
        shown = _REPEATED.sub(_once, shown)
    return '\n'.join(filter(None, (' '.join(line.split()) for line in shown.splitlines()))), ''


def _is_long(again: re.Match[str]) -> bool:
    """Return whether a repetition is more than a rule, a number or a laugh."""
    return len(again[0]) >= MIN_WORDS and not again[1].isspace()


def _once(again: re.Match[str]) -> str:
    """Return what repeats itself once, with its number."""
    unit, whole = again[1], again[0]
    return f'{unit} ({len(whole) // len(unit)} times) ' if _is_long(again) else whole


def _is_none(character: str) -> bool:
    """Return whether a character is not one: control, private, unassigned, half of one, U+FFFD."""
    return character == '\ufffd' or not character.isspace() and unicodedata.category(
        character) in ('Cc', 'Cn', 'Co', 'Cs')


def _without_json(text: str) -> str:
    """Return the words of a text that is JSON, whole or broken off; other text as it is."""
    if not _JSON.match(text):
        return text
    try:
        words = '\n'.join(_words(json.loads(text)))
    except (ValueError, RecursionError):
        words = ''
    return words or re.sub(r'\s+:', ':', _JSON_MARKS.sub(' ', text))


def _words(value: object, depth: int = 0) -> Iterator[str]:
    """Yield the texts in a JSON value, with their names where there are several."""
    if isinstance(value, dict) and depth < MAX_DEPTH:
        for name, inner in value.items():
            for words in _words(inner, depth + 1):
                yield words if len(value) == 1 else f'{name}: {words}'
    elif isinstance(value, list) and depth < MAX_DEPTH:
        for inner in value:
            yield from _words(inner, depth + 1)
    elif isinstance(value, (str, int, float)):
        yield str(value)
