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
Which tokens an answer may be made of, and which are drafted.

`FreeText` leaves the model its choice. `Template` is for answers whose form is known, `facts` and
`choice`: keys, colons and line ends are forced, so only values are decided, each among the
query's choices. Where the model, left free, would keep to the form and the choices, both give the
same tokens. Where it would not (another word, a key left out, a remark), the template gives the
likeliest answer that keeps to them, token by token; that is constrained decoding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
import itertools
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from ..method import prompt
from ..method.facts import Fact, Query

MAX_TEMPLATES = 64  # kept; queries may come and go


@dataclass(frozen=True)
class DraftTree:
    """Draft tokens, each after its parent: an index, -1 is the last token that is no draft."""

    tokens: Sequence[int] = ()
    parents: Sequence[int] = ()

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> DraftTree:
        """Return the draft in which these tokens follow one after the other."""
        return cls(tokens, range(-1, len(tokens) - 1))

    @property
    def is_chain(self) -> bool:
        """Whether the tokens follow one after the other."""
        return all(parent == i - 1 for i, parent in enumerate(self.parents))

    def next_row(self, row: int, token: int) -> int | None:
        """Return the row of logits after a token chosen from a row, None if it was no draft."""
        for i, (draft, parent) in enumerate(zip(self.tokens, self.parents)):
            if draft == token and parent == row - 1:
                return i + 1
        return None

    def depths(self) -> list[int]:
        """Return how many draft tokens come before each."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    def attention_mask(self) -> npt.NDArray[np.bool_]:
        """Return, tokens x tokens, whether the row's token comes after the column's, or is it."""
        mask = np.eye(len(self.tokens), dtype=np.bool_)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                mask[i] |= mask[parent]
        return mask


@dataclass(frozen=True)
class Logits:
    """The model's output after one token, and the best of it where that is already known."""

    values: torch.Tensor                     # one per token of the vocabulary
    top: tuple[int, float] | None = None     # the likeliest token and its probability

    def argmax(self) -> tuple[int, float]:
        """Return the likeliest token and its probability."""
        if self.top is not None:
            return self.top
        token = int(self.values.argmax())
        return token, float(torch.exp(self.values[token] - self.values.logsumexp(-1)))

    def argmax_among(self, tokens: Sequence[int]) -> tuple[int, float]:
        """Return the likeliest of some tokens and its probability among them."""
        if len(tokens) == 1:
            return tokens[0], 1.0
        shares = self.values[torch.tensor(tokens, device=self.values.device)].softmax(-1).tolist()
        best = max(range(len(tokens)), key=shares.__getitem__)
        return tokens[best], shares[best]


class Grammar(Protocol):
    """Follows an answer token by token."""

    done: bool
    unconstrained: bool    # always takes the likeliest token: the next pass can begin with it

    def choose(self, logits: Logits) -> tuple[int, float]:
        """Take the likeliest token that may come next; return it and its probability."""

    def draft(self) -> DraftTree:
        """Return tokens that are likely to follow."""

    def forced_tokens(self) -> list[int]:
        """Take and return all tokens that follow, if nothing is left to decide."""


class FreeText:
    """Any token may come; the draft is what is left of an expected text, as the last answer."""

    unconstrained = True

    def __init__(self, eos_ids: Collection[int], expected: Sequence[int] = ()) -> None:
        """Begin an answer that ends with one of ``eos_ids``."""
        self.done = False
        self._eos_ids, self._expected = frozenset(eos_ids), list(expected)
        self._length = 0
        self._drafted_at = 0     # length at the last draft, the first one aside

    def choose(self, logits: Logits) -> tuple[int, float]:
        """Take the likeliest token."""
        token, probability = logits.argmax()
        self._length += 1
        self.done = token in self._eos_ids
        return token, probability

    def draft(self) -> DraftTree:
        """
        Return the rest of the expected text; after a token that differs it may go on as before.

        A pass with a draft takes longer than one of a single token. The first is that of the
        prompt and costs next to nothing; once another gained nothing the text is given up.
        """
        if self._drafted_at and self._length == self._drafted_at + 1:
            self._expected = []
        self._drafted_at = self._length
        rest = self._expected[self._length:]
        return DraftTree.chain(rest[:-1] if rest and rest[-1] in self._eos_ids else rest)

    def forced_tokens(self) -> list[int]:
        """Return nothing: what follows is for the model to say."""
        return []


@dataclass(frozen=True)
class Slot:
    """One key: the tokens of each value, those before it that are forced included."""

    key: str
    values: Mapping[str, tuple[int, ...]]


Position = tuple[int, tuple[int, ...]]  # slot, and its tokens so far


class Template:
    """An answer of slots in fixed order; the draft is made of expected values of the slots."""

    unconstrained = False

    def __init__(self, slots: Sequence[Slot], eos_id: int, expected: Mapping[str, str]) -> None:
        """Begin an answer; ``expected`` holds values by key."""
        self.done = False
        self._slots, self._eos_id, self._expected = slots, eos_id, expected
        self._position: Position = (0, ())

    def choose(self, logits: Logits) -> tuple[int, float]:
        """
        Take the likeliest of the tokens that may come.

        Its probability is that among them: the product over a value's tokens is the probability
        of the value, given that one of the choices is answered. Forced tokens have 1.
        """
        transitions = self._transitions(self._position)
        token, probability = logits.argmax_among(list(transitions))
        self._advance(transitions[token])
        return token, probability

    def draft(self) -> DraftTree:
        """
        Return forced tokens and expected values up to the last decision.

        An answer of one slot is short: all it may be is returned, so that one pass decides.
        """
        if len(self._slots) == 1:
            return self._every_answer()
        position, tokens, needed = self._position, list[int](), 0
        while position[0] < len(self._slots):
            transitions = self._transitions(position)
            token = next(iter(transitions))
            if len(transitions) > 1:
                needed = len(tokens)
                expected = self._expected_token(position)
                if expected is None:
                    break
                token = expected
            position = transitions[token]
            tokens.append(token)
        return DraftTree.chain(tokens[:needed])

    def forced_tokens(self) -> list[int]:
        """Take and return all tokens that follow, if nothing is left to decide."""
        position, tokens = self._position, list[int]()
        while position[0] < len(self._slots):
            transitions = self._transitions(position)
            if len(transitions) > 1:
                return []
            (token, position), = transitions.items()
            tokens.append(token)
        self._advance(position)
        return tokens

    def _advance(self, position: Position) -> None:
        self._position = position
        self.done = position[0] == len(self._slots)

    def _transitions(self, position: Position) -> dict[int, Position]:
        """Return where each token that may come leads."""
        index, taken = position
        n = len(taken)
        values = self._slots[index].values.values()
        transitions = {v[n]: (index, v[:n + 1]) for v in values if len(v) > n and v[:n] == taken}
        if taken in values:  # complete: the next slot begins, or the answer ends
            after = (self._transitions((index + 1, ())) if index + 1 < len(self._slots)
                     else {self._eos_id: (index + 1, ())})
            transitions = after | transitions
        return transitions

    def _expected_token(self, position: Position) -> int | None:
        """Return the token with which the expected answer goes on, None where it has no value."""
        index, taken = position
        value = self._expected_tokens(index)
        if not value or value[:len(taken)] != taken:
            return None
        rest = value[len(taken):] or (
            self._expected_tokens(index + 1) if index + 1 < len(self._slots) else (self._eos_id,))
        return rest[0] if rest else None

    def _expected_tokens(self, index: int) -> tuple[int, ...]:
        """Return the tokens of a slot's expected value, none without."""
        slot = self._slots[index]
        return slot.values.get(self._expected.get(slot.key, ''), ())

    def _every_answer(self) -> DraftTree:
        """Return every token after which something is left to decide."""
        tokens, parents = list[int](), list[int]()

        def expand(position: Position, parent: int) -> bool:
            """Add what follows; return whether there is a decision at or after the position."""
            transitions = self._transitions(position)
            decision = len(transitions) > 1
            for token, after in transitions.items():
                if after[0] == len(self._slots):
                    continue
                mark = len(tokens)
                tokens.append(token)
                parents.append(parent)
                if expand(after, mark):
                    decision = True
                else:
                    del tokens[mark:], parents[mark:]
            return decision
        expand(self._position, -1)
        return DraftTree(tokens, parents)


class TemplateCompiler:
    """Writes the templates of queries in the tokens of one model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None,
                 eos_ids: Collection[int]) -> None:
        """Find out how the model begins and ends its turn."""
        self._tokenizer, self._eos_ids = tokenizer, frozenset(eos_ids)
        self._slots: dict[object, list[Slot]] = {}
        self._before, self._lead, self._eos_id = self._turn_markers(chat_template)

    def template(self, query: Query, expected: Mapping[str, str]) -> Template | None:
        """Return the beginning of an answer, None where the tokens do not allow a template."""
        key = (query.format, tuple((k, tuple(v)) for k, v in query.choices.items()))
        if key not in self._slots:
            if len(self._slots) >= MAX_TEMPLATES:
                del self._slots[next(iter(self._slots))]
            self._slots[key] = self._compile(query)
        slots = self._slots[key]
        return Template(slots, self._eos_id, expected) if slots else None

    def _turn_markers(self, chat_template: str | None) -> tuple[str, str, int]:
        """Return the text before the model's turn, what it begins with, and the token after."""
        question = [{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]}]
        chat = [*question, {'role': 'assistant', 'content': [{'type': 'text', 'text': 'yes'}]}]
        options = {'chat_template': chat_template, 'tokenize': False}
        before = self._tokenizer.apply_chat_template(question, add_generation_prompt=True,
                                                     **options)
        whole = self._tokenizer.apply_chat_template(chat, **options)
        lead, _, tail = (whole[len(before):].partition('yes') if whole.startswith(before)
                         else ('',) * 3)
        after = self._encode(tail)[:1]
        eos_id = (after[0] if after and after[0] in self._eos_ids
                  else min(self._eos_ids, default=-1))
        return before, lead if lead.isspace() else '', eos_id

    def _compile(self, query: Query) -> list[Slot]:
        """Return a query's slots; nothing where tokens do not come apart at line ends."""
        if query.format == 'text' or not self._eos_ids:
            return []
        slots, first = [], prompt.answer_text(query, [Fact(k, v[0], 0) for k, v in
                                                      query.choices.items()]).splitlines()
        for i, (key, choices) in enumerate(query.choices.items()):
            before = self._before + (self._lead + '\n'.join(first[:i]) if i else '')
            values = {}
            for value in choices:
                line = prompt.answer_text(query, [Fact(key, value, 0)])
                tokens = self._added_tokens(before, ('\n' if i else self._lead) + line)
                if not tokens:
                    return []
                values[value] = tuple(tokens)
            if len(set(values.values())) < len(values):
                return []
            slots.append(Slot(key, values))
        return slots if self._are_separable(query, slots) else []

    def _are_separable(self, query: Query, slots: Sequence[Slot]) -> bool:
        """Check on some whole answers that their tokens are those of their parts."""
        for i in range(max(len(slot.values) for slot in slots)):
            facts = [Fact(s.key, list(s.values)[i % len(s.values)], 0) for s in slots]
            whole = self._added_tokens(self._before,
                                       self._lead + prompt.answer_text(query, facts))
            if whole != list(itertools.chain(*(s.values[f.value] for s, f in zip(slots, facts)))):
                return False
        return True

    def _added_tokens(self, before: str, text: str) -> list[int]:
        """Return the tokens that a text adds to what is before it; none if it changes those."""
        first, both = self._encode(before), self._encode(before + text)
        return both[len(first):] if both[:len(first)] == first else []

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)['input_ids'])
