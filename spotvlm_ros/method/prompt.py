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
What the models are asked, how history is put before the question, how answers are read.

One place for edge, cloud and training, so that all three always see the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import re
from typing import Literal, TypedDict
import unicodedata

from .choices import labelled, match_choice
from .facts import Context, Fact, NS, Query

AGE_STEP_S = 0.5  # ages are rounded to this: the prompt's prefix must not change each frame
MAX_TEXT = 400    # longest untrusted text that may reach a prompt [characters]
# Every chat template in use marks its special tokens with one of these.
_BRACKETS = str.maketrans({'<': '(', '>': ')', '[': '(', ']': ')', '{': '(', '}': ')', '|': '/'})
_BULLET = re.compile(r'^\s*(?:[-*+\u2022]|\d{1,3}[.)])\s+')
# Some mark turns with a plain word and a colon; so does whoever forges one, in any language. Times
# and ratios keep theirs. Beside ':' what looks like it and is not made one by NFKC.
_COLONS = '[:\u02d0\u02f8\u0589\u05c3\u205a\u2236\ua789]+'
_COLON = re.compile(rf'(?<!\d)\s*{_COLONS}\s*|{_COLONS}(?!\d)\s*')


class MessageImage(TypedDict):
    """The place of an image in a message."""

    type: Literal['image', 'text']  # noqa: A003


class MessagePart(MessageImage, total=False):
    """A piece of a message: a text, or the place of an image."""

    text: str


class Message(TypedDict):
    """One message of a chat, as processors take it."""

    role: Literal['user', 'assistant']
    content: list[MessagePart]


def neutralise(text: str, limit: int = MAX_TEXT) -> str:
    """Return untrusted text as one printable line without template tokens."""
    text = unicodedata.normalize('NFKC', text[:4 * limit])
    text = ''.join(c if c.isprintable() else ' ' for c in text)
    return ' '.join(text.translate(_BRACKETS).split())[:limit]


def template_marks(text: str) -> str:
    """Return the first character that `neutralise` would take from lines of text, '' for none."""
    return next((c for c in text if ord(c) in _BRACKETS or not (c.isprintable() or c == '\n')),
                '')


def one_voice(text: str) -> str:
    """Return a line that no chat template can take for the turns of several speakers."""
    return _COLON.sub(' - ', text).strip()


def printable(text: str) -> str:
    """Return text for a terminal: control characters are shown as escapes, not obeyed."""
    return ''.join(c if c.isprintable() or c == '\n' else c.encode('unicode_escape').decode()
                   for c in text)


def question(query: Query, keys_are: str = 'One line per key:') -> str:
    """Return the question for the edge model; ``keys_are`` says what the lines of a key are."""
    if query.format == 'facts':
        lines = [f'{key}: {"|".join(query.choices[key])}' for key in query.keys]
        return '\n'.join([query.prompt, keys_are, *lines])
    if query.format == 'choice':
        return f'{query.prompt}\nOne of: {"|".join(query.choices[query.id])}'
    return query.prompt


def cloud_question(query: Query, reply_form: str, keys_are: str = 'One line per key:') -> str:
    """
    Return the question for the cloud model: choices, what they mean, how to reply, examples.

    ``reply_form`` says how; see ``cloud.wording``, which has the words for any model.
    """
    wording = query.cloud
    lines = [question(replace(query, prompt=wording.prompt or query.prompt), keys_are)]
    lines += [f'{key}: {value} means {meaning}' for key, meanings in wording.meanings.items()
              for value, meaning in meanings.items()]
    if wording.language and query.format == 'text':
        lines.append(f'Answer in {wording.language}.')
    lines += [reply_form] if reply_form else []
    lines += ['Examples:', *wording.examples] if wording.examples else []
    return '\n'.join(lines)


def age_s(now_ns: int, stamp_ns: int) -> float:
    """Age in seconds, rounded to AGE_STEP_S, never negative."""
    return max(0.0, round((now_ns - stamp_ns) / NS / AGE_STEP_S) * AGE_STEP_S)


def answer_text(query: Query, facts: Sequence[Fact], now_ns: int | None = None) -> str:
    """Return facts as the model would write them; with ``now_ns``, each with its age."""
    by_key = {f.key: f for f in facts}
    lines = []
    for key in query.keys:
        fact = by_key.get(key)
        if fact is None:
            continue
        old = '' if now_ns is None else f' ({age_s(now_ns, fact.stamp_ns):.1f} s ago)'
        lines.append(f'{fact.value}{old}' if query.format == 'choice'
                     else f'{key}: {fact.value}{old}')
    return '\n'.join(lines)


def history_text(query: Query, context: Context, now_ns: int) -> str:
    """Return the replaced answer as the assistant's own earlier turn; '' without context."""
    if query.format == 'text':
        if not context.text:
            return ''
        text = one_voice(neutralise(context.text))
        return f'{text} ({age_s(now_ns, context.text_stamp_ns):.1f} s ago)'
    return answer_text(query, context.facts, now_ns)


def messages(query: Query, context: Context | None, now_ns: int, n_images: int) -> list[Message]:
    """
    Return the chat for the edge model: history first, the present images and question last.

    Images are placeholders; the processor is given the pixels.
    """
    images: list[MessagePart] = [{'type': 'image'}] * n_images
    history = history_text(query, context, now_ns) if context is not None else ''
    asked: MessagePart = {'type': 'text', 'text': question(query)}
    if not history:
        return [{'role': 'user', 'content': [*images, asked]}]
    return [
        {'role': 'user', 'content': [asked]},
        {'role': 'assistant', 'content': [{'type': 'text', 'text': history}]},
        {'role': 'user', 'content': [*images, {'type': 'text', 'text': f'Now: {query.prompt}'}]},
    ]


def parse_answer(query: Query, text: str, stamp_ns: int) -> tuple[tuple[Fact, ...], list[str]]:
    """
    Read a model's plain-text answer: a line per key, bullets and emphasis of Markdown forgiven.

    Return the facts and a list of what was rejected, each entry naming the key or line and why.
    A text query has no facts and rejects nothing but emptiness.
    """
    if query.format == 'text':
        return (), [] if text.strip() else ['empty answer']
    lines = [_BULLET.sub('', line, count=1) for line in text.splitlines()
             if any(c.isalnum() for c in line)]
    if query.format == 'choice':
        return _parse_choice(query, lines, stamp_ns)
    rejected: list[str] = []
    facts: dict[str, Fact] = {}
    for line in lines:
        pairs = list(labelled(line, query))
        if not pairs:
            rejected.append(f'{neutralise(line, 40)!r}: no such key')
        for key, raw in pairs:
            value = match_choice(raw, query.choices[key])
            if key in facts:
                rejected.append(f'{key}: answered twice')
            elif value is None:
                rejected.append(f'{key}: {neutralise(raw, 40)!r} is none of the choices')
            else:
                facts[key] = Fact(key, value, stamp_ns)
    rejected += [f'{key}: missing' for key in query.keys
                 if key not in facts and not any(r.startswith(f'{key}:') for r in rejected)]
    return tuple(facts[k] for k in query.keys if k in facts), rejected


def _parse_choice(query: Query, lines: Sequence[str], stamp_ns: int,
                  ) -> tuple[tuple[Fact, ...], list[str]]:
    """Read a choice: alone on a line, or behind its key; prose around it may not name another."""
    choices = query.choices[query.id]
    named = [value for line in lines for raw in (line, _split(line)[1])
             if raw is not None and (value := match_choice(raw, choices)) is not None]
    if len(set(named)) == 1:
        return (Fact(query.id, named[0], stamp_ns),), []
    text = neutralise(' '.join(lines), 40)
    why = f'names {", ".join(dict.fromkeys(named))}' if named else 'is none of the choices'
    return (), [f'{query.id}: {text!r} {why}']


def _split(line: str) -> tuple[str, str | None]:
    """Return key and value of a line such as ``key: value``, or the whole line and None."""
    match = re.match(r'(.*?)\s*(?::|=)\s*(.*)$', line[:400])
    return (match[1], match[2]) if match else (line, None)
