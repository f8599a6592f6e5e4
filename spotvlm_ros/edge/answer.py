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
"""What nodes, recording and benchmark know of an edge model; importing it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from ..method import guard, prompt
from ..method.facts import Context, Fact, Query
from ..method.focus import Image

OnText = Callable[[str, int], None]   # is given the answer so far and its number of tokens


@dataclass(frozen=True)
class EdgeAnswer:
    """What the model said about one frame, and what it took. Durations in seconds."""

    text: str
    facts: tuple[Fact, ...]
    rejected: tuple[str, ...]    # what could not be read as an answer, and why
    used_context: bool
    used_focus: bool
    context_tokens: int
    preprocess_s: float
    inference_s: float
    partial: bool                # stopped before the model was done
    passes: int = 0              # forward passes of the decoder
    computed_tokens: int = 0     # that went through it; the others were cached
    told_keys: frozenset[str] = frozenset()  # of facts said when the context was told
    held_keys: frozenset[str] = frozenset()  # of facts that are the cloud's, about another frame
    context_error: str = ''      # why a pass with context failed; the answer is the one without


class EdgeVLM(Protocol):
    """A small vision-language model that answers about one frame at a time, in one thread."""

    @property
    def name(self) -> str:
        """Name of the checkpoint, as in messages and reports."""

    def warm_up(self, queries: Iterable[Query]) -> None:
        """Answer each query about made-up frames, so that the first real one is not slower."""

    def answer(self, frame: Image, query: Query, context: Context | None, stamp_ns: int,
               on_text: OnText | None = None,
               should_stop: Callable[[], bool] | None = None,
               judge: guard.Judge | None = None) -> EdgeAnswer:
        """
        Answer a query about a frame.

        `frame` is height x width x 3, RGB, acquired at `stamp_ns`. `on_text` is called with the
        answer so far and its number of tokens; `should_stop` is asked before each forward pass,
        and where it says so the answer is partial. `judge` takes the place of the guard's rule.
        """


def guarded_answer(query: Query, context: Context | None, judge: guard.Judge,
                   pass_: Callable[[Context | None, OnText | None], EdgeAnswer],
                   on_text: OnText | None = None) -> EdgeAnswer:
    """
    Return an answer in as many passes as the guard wants; ``pass_`` makes one.

    What is streamed must stand: of a guarded answer no pass alone does. An answer without context
    that is complete stands when there is no time for more, and any does when a pass with context
    raises.
    """
    told = context is not None and context.helps
    streamed = None if judge.guards(query) and told else on_text
    errors: list[Exception] = []
    answer = guard.guarded_answer(query, context, judge, lambda given: pass_(given, streamed),
                                  partial(_combined, query), errors.append)
    return answer if not errors else replace(
        answer, context_error=f'{type(errors[0]).__name__}: {errors[0]}')


def _combined(query: Query, first: EdgeAnswer, second: EdgeAnswer | None,
              facts: tuple[Fact, ...]) -> EdgeAnswer:
    """Return the answer of the guard's passes, where the facts are not those of the first."""
    said = (*first.facts, *(second.facts if second is not None else ()))
    held = {f.key for f in facts if all((f.key, f.value) != (s.key, s.value) for s in said)}
    own = {(f.key, f.value) for f in first.facts}
    whole = replace(
        first if second is None else second, facts=facts, held_keys=frozenset(held),
        told_keys=frozenset(f.key for f in facts if (f.key, f.value) not in own) - held,
        text=prompt.answer_text(query, facts) if facts else (second or first).text)
    return whole if second is None else replace(
        whole, preprocess_s=first.preprocess_s + second.preprocess_s,
        inference_s=first.inference_s + second.inference_s, passes=first.passes + second.passes,
        computed_tokens=first.computed_tokens + second.computed_tokens)
