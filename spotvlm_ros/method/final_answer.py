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
What of a model's text is its answer: without its reasoning, wrappers, fences and special tokens.

Models that reason write it into the reply where a server has no parser for it, each in a spelling
of its own (vllm-project/vllm#17609, #48863). What stands in the reasoning is not the answer, even
where it names a value.
"""

from __future__ import annotations

import html
import json
import re

_WORD = r'(?:think(?:ing)?|thoughts?|reason(?:ing)?|analysis|reflection|scratch_?pad)'
# <think>, <seed:think>, <thinking budget="1">, <|START_THINKING|>, <|begin_of_thought|>, [THINK],
# and Kimi's triangles. A slash, or END or end_of, closes.
_TAG = re.compile(
    rf'<\|?\s*(?P<a>/|end_of_|end_)?\s*(?:begin_of_|start_|begin_)?(?:\w{{1,16}}:)?{_WORD}'
    r'(?:\s[^<>]{0,80})?\|?>'
    rf'|\[(?P<b>/)?{_WORD}\]|\u25c1(?P<c>/)?{_WORD}\u25b7', re.IGNORECASE)
# The channels of gpt-oss ("harmony") and Gemma: all but the final one are reasoning.
_CHANNEL = re.compile(r'<\|channel\|?>\s*(\w+)\s*(?:<\|message\|>)?', re.IGNORECASE)
_CHANNEL_END = re.compile(r'<\|(?:end|return|start)\|>|<channel\|>', re.IGNORECASE)
_ANSWER = re.compile(
    r'<(answer|final_answer|final|response|output)>(.*?)(?:</\1>|\Z)'
    r'|<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|\Z)|\\boxed\{(?:\\text\{)?([^{}]{0,400})\}',
    re.IGNORECASE | re.DOTALL)
# Left over where a server does not skip special tokens; within a text they stay, to be seen.
_SPECIAL = re.compile(r'(?:\s*(?:<\|[^<>|]{1,40}\|>|</s>|<(?:end_of_turn|eos|pad)>)){1,8}\s*\Z',
                      re.IGNORECASE)
# Where a server does not stop at the end of the turn, the model goes on with turns of others.
_END_OF_TURN = re.compile(r'<\|(?:im_end|eot_id|eom_id|endoftext|end_of_text|end)\|>'
                          r'|<(?:end_of_turn|end_of_utterance|eos)>|</s>', re.IGNORECASE)
# What models with grounding put around things in free text (Qwen2-VL, Kosmos-2, PaliGemma).
_GROUNDING = re.compile(
    r'<\|box_start\|>[^<>]{0,80}<\|box_end\|>|<box>[^<>]{0,80}</box>|<loc\d{1,4}>'
    r'|<\|(?:object_ref|box|quad|vision)_\w{1,16}\|>'
    r'|</?(?:ref|box|quad|point|object|phrase|grounding)(?:\s[^<>]{0,80})?>', re.IGNORECASE)
_FENCE = re.compile(r'^[ \t]*(?:```|~~~)[\w+.-]*[ \t]*$|```(?:json|text|plaintext)?', re.MULTILINE)
MAX_UNWRAPPED = 3  # times that a reply may be a JSON string of a reply


def final_answer(text: str) -> str:
    """
    Return the answer in a model's text; '' where it holds nothing but reasoning.

    Time grows with the length of the text only; the caller bounds that.
    """
    text = _without_reasoning(_final_channel(text))
    end = _END_OF_TURN.search(text)
    if end is not None and text[:end.start()].strip():
        text = text[:end.start()]
    wrapped = [part for match in _ANSWER.finditer(text)
               for part in match.groups()[1:] if part is not None and part.strip()]
    text = wrapped[-1] if wrapped else text
    text = _FENCE.sub('', _SPECIAL.sub('', text)).strip()
    for _ in range(MAX_UNWRAPPED):
        unwrapped = _unquoted(text)
        if unwrapped is None:
            break
        text = _FENCE.sub('', unwrapped).strip()
    if '{' in text and '"' not in text and '&quot;' in text:
        text = html.unescape(text)
    return text


def without_grounding(text: str) -> str:
    """Return free text without the tokens and boxes that models put around things."""
    return _GROUNDING.sub('', text)


def _final_channel(text: str) -> str:
    """Return the final channel of a reply in channels; replies without channels as they are."""
    marks = list(_CHANNEL.finditer(text))
    if not marks:
        return text
    kept = text[:marks[0].start()]
    for mark, after in zip(marks, [*marks[1:], None]):
        body = text[mark.end():after.start() if after is not None else len(text)]
        end = _CHANNEL_END.search(body)
        if mark[1].lower() == 'final':
            kept += body[:end.start()] if end is not None else body
        elif end is not None and end[0].lower() == '<channel|>':
            kept += body[end.end():]
    return kept


def _without_reasoning(text: str) -> str:
    """
    Return the text without blocks of reasoning.

    A closing tag without an opening one ends a block that the chat template began; an opening one
    that is never closed begins a block that max_tokens cut off.
    """
    kept: list[str] = []
    at, reasoning = 0, False
    for tag in _TAG.finditer(text):
        closes = any(tag.group(name) for name in 'abc')
        if not reasoning:
            kept.append(text[at:tag.start()])
            if closes:
                kept.clear()
        at, reasoning = tag.end(), not closes
    return ''.join(kept) + ('' if reasoning else text[at:])


def _unquoted(text: str) -> str | None:
    """Return what a JSON string holds, None where the text is not one."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return None
    try:
        value = json.loads(text, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
