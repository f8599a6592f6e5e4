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
Which tokens an answer may be made of, and which are likely to come.

`Free` leaves the model its choice. `Template` is for answers whose form is known, `facts` and
`choice`: keys, colons and line ends are forced, so only values are decided, each among the
query's choices. Where the model, left free, would keep to the form and the choices, both give the
same tokens. Where it would not (another word, a key left out, a remark), the template gives the
likeliest answer that keeps to them, token by token; that is constrained decoding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
import itertools
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..method import prompt
from ..method.facts import Fact, Query


@dataclass(frozen=True)
class Guess:
    """Tokens that may follow, each after its parent (an index, -1 is the last known token)."""

    tokens: Sequence[int] = ()
    parents: Sequence[int] = ()

    @classmethod
    def line(cls, tokens: Sequence[int]) -> Guess:
        """Return the guess that these tokens follow one after the other."""
        return cls(tokens, range(-1, len(tokens) - 1))

    @property
    def is_line(self) -> bool:
        """Whether the tokens follow one after the other."""
        return all(parent == i - 1 for i, parent in enumerate(self.parents))

    def after(self, row: int, token: int) -> int | None:
        """Return the row of logits after a token chosen from a row, None if not guessed."""
        for i, (guessed, parent) in enumerate(zip(self.tokens, self.parents)):
            if guessed == token and parent == row - 1:
                return i + 1
        return None

    def depths(self) -> list[int]:
        """Return how many guessed tokens come before each."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    def ancestors(self) -> npt.NDArray[np.bool_]:
        """Return whether the row's token comes after the column's, or is it."""
        seen = np.eye(len(self.tokens), dtype=np.bool_)
        for i, parent in enumerate(self.parents):
            if parent >= 0:
                seen[i] |= seen[parent]
        return seen


@dataclass(frozen=True)
class Row:
    """The model's output after one token: logits, and the best of them where already known."""

    logits: torch.Tensor
    known: tuple[int, float] | None = None

    def best(self) -> tuple[int, float]:
        """Return the likeliest token and its probability."""
        if self.known is not None:
            return self.known
        token = int(self.logits.argmax())
        return token, float(torch.exp(self.logits[token] - self.logits.logsumexp(-1)))

    def among(self, tokens: Sequence[int]) -> tuple[int, float]:
        """Return the likeliest of some tokens and its probability among them."""
        if len(tokens) == 1:
            return tokens[0], 1.0
        some = self.logits[torch.tensor(tokens, device=self.logits.device)].softmax(-1).tolist()
        best = max(range(len(tokens)), key=some.__getitem__)
        return tokens[best], some[best]


class Grammar(Protocol):
    """Follows an answer token by token."""

    done: bool

    def choose(self, row: Row) -> tuple[int, float]:
        """Take the likeliest token that may come next; return it and its probability."""

    def guess(self) -> Guess:
        """Return tokens that are likely to follow."""

    def rest(self) -> list[int]:
        """Take and return all tokens that follow, if nothing is left to decide."""


class Free:
    """Any token may come; a draft, such as the last answer, is the guess."""

    def __init__(self, ends: Collection[int], draft: Sequence[int] = ()) -> None:
        """Begin an answer that ends with one of ``ends``."""
        self.done = False
        self._ends, self._draft = frozenset(ends), list(draft)
        self._n = 0
        self._guessed_at = 0     # tokens there were at the last guess, the first one aside

    def choose(self, row: Row) -> tuple[int, float]:
        """Take the likeliest token."""
        token, probability = row.best()
        self._n += 1
        self.done = token in self._ends
        return token, probability

    def guess(self) -> Guess:
        """
        Return the rest of the draft; after a token that differs it may go on as before.

        A pass with a guess takes longer than one of a single token. The first is that of the
        prompt and costs next to nothing; once another gained nothing the draft is given up.
        """
        if self._guessed_at and self._n == self._guessed_at + 1:
            self._draft = []
        self._guessed_at = self._n
        rest = self._draft[self._n:]
        return Guess.line(rest[:-1] if rest and rest[-1] in self._ends else rest)

    def rest(self) -> list[int]:
        """Return nothing: what follows is for the model to say."""
        return []


@dataclass(frozen=True)
class Slot:
    """One key: the tokens of each value, those before it that are forced included."""

    key: str
    values: Mapping[str, tuple[int, ...]]


Place = tuple[int, tuple[int, ...]]  # slot, and the tokens of it so far


class Template:
    """An answer of slots in fixed order; a draft of their values is the guess."""

    def __init__(self, slots: Sequence[Slot], end: int, draft: Mapping[str, str]) -> None:
        """Begin an answer."""
        self.done = False
        self._slots, self._end, self._draft = slots, end, draft
        self._place: Place = (0, ())

    def choose(self, row: Row) -> tuple[int, float]:
        """
        Take the likeliest of the tokens that may come.

        Its probability is that among them: the product over a value's tokens is the probability
        of the value, given that one of the choices is answered. Forced tokens have 1.
        """
        moves = self._moves(self._place)
        token, probability = row.among(list(moves))
        self._go(moves[token])
        return token, probability

    def guess(self) -> Guess:
        """
        Return forced tokens and drafted values up to the last decision.

        An answer of one slot is short: all it may be is returned, so that one pass decides.
        """
        if len(self._slots) == 1:
            return self._tree()
        place, tokens, needed = self._place, list[int](), 0
        while place[0] < len(self._slots):
            moves = self._moves(place)
            token = next(iter(moves))
            if len(moves) > 1:
                needed = len(tokens)
                drafted = self._drafted(place)
                if drafted is None:
                    break
                token = drafted
            place = moves[token]
            tokens.append(token)
        return Guess.line(tokens[:needed])

    def rest(self) -> list[int]:
        """Take and return all tokens that follow, if nothing is left to decide."""
        place, tokens = self._place, list[int]()
        while place[0] < len(self._slots):
            moves = self._moves(place)
            if len(moves) > 1:
                return []
            (token, place), = moves.items()
            tokens.append(token)
        self._go(place)
        return tokens

    def _go(self, place: Place) -> None:
        self._place = place
        self.done = place[0] == len(self._slots)

    def _moves(self, place: Place) -> dict[int, Place]:
        """Return where each token that may come leads."""
        at, taken = place
        n = len(taken)
        values = self._slots[at].values.values()
        moves = {v[n]: (at, v[:n + 1]) for v in values if len(v) > n and v[:n] == taken}
        if taken in values:  # complete: the next slot begins, or the answer ends
            after = (self._moves((at + 1, ())) if at + 1 < len(self._slots)
                     else {self._end: (at + 1, ())})
            moves = after | moves
        return moves

    def _drafted(self, place: Place) -> int | None:
        """Return the token with which the draft goes on, None where it has no value."""
        at, taken = place
        value = self._wanted(at)
        if not value or value[:len(taken)] != taken:
            return None
        rest = value[len(taken):] or (self._wanted(at + 1) if at + 1 < len(self._slots)
                                      else (self._end,))
        return rest[0] if rest else None

    def _wanted(self, at: int) -> tuple[int, ...]:
        """Return the tokens of a slot's drafted value, none without."""
        slot = self._slots[at]
        return slot.values.get(self._draft.get(slot.key, ''), ())

    def _tree(self) -> Guess:
        """Return every token after which something is left to decide."""
        tokens, parents = list[int](), list[int]()

        def grow(place: Place, parent: int) -> bool:
            """Add what follows; return whether there is a decision at or after the place."""
            moves = self._moves(place)
            decision = len(moves) > 1
            for token, to in moves.items():
                if to[0] == len(self._slots):
                    continue
                mark = len(tokens)
                tokens.append(token)
                parents.append(parent)
                if grow(to, mark):
                    decision = True
                else:
                    del tokens[mark:], parents[mark:]
            return decision
        grow(self._place, -1)
        return Guess(tokens, parents)


class Templates:
    """Writes the templates of queries in the tokens of one model."""

    def __init__(self, tokenizer: Any, chat_template: str | None, ends: Collection[int]) -> None:
        """Find out how the model begins and ends its turn."""
        self._tokenizer, self._ends = tokenizer, frozenset(ends)
        self._known: dict[object, list[Slot]] = {}
        self._head, self._lead, self._end = self._turn(chat_template)

    def start(self, query: Query, draft: Mapping[str, str]) -> Template | None:
        """Return the beginning of an answer, None where the tokens do not allow a template."""
        key = (query.format, tuple((k, tuple(v)) for k, v in query.choices.items()))
        if key not in self._known:
            self._known[key] = self._write(query)
        slots = self._known[key]
        return Template(slots, self._end, draft) if slots else None

    def _turn(self, chat_template: str | None) -> tuple[str, str, int]:
        """Return the text before the model's turn, what it begins with, and the token after."""
        asked = [{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]}]
        said = [*asked, {'role': 'assistant', 'content': [{'type': 'text', 'text': 'yes'}]}]
        options = {'chat_template': chat_template, 'tokenize': False}
        head = self._tokenizer.apply_chat_template(asked, add_generation_prompt=True, **options)
        whole = self._tokenizer.apply_chat_template(said, **options)
        lead, _, tail = whole[len(head):].partition('yes') if whole.startswith(head) else ('',) * 3
        after = self._ids(tail)[:1]
        end = after[0] if after and after[0] in self._ends else min(self._ends)
        return head, lead if lead.isspace() else '', end

    def _write(self, query: Query) -> list[Slot]:
        """Return a query's slots; nothing where tokens do not come apart at line ends."""
        if query.format == 'text' or not self._ends:
            return []
        before = self._head + self._lead
        slots, first = [], prompt.answer_text(query, [Fact(k, v[0], 0) for k, v in
                                                      query.choices.items()]).splitlines()
        for i, (key, choices) in enumerate(query.choices.items()):
            known = '\n'.join([*first[:i], ''])
            values = {}
            for value in choices:
                line = prompt.answer_text(query, [Fact(key, value, 0)])
                tokens = self._more(self._head if not i else before + known[:-1],
                                    (self._lead if not i else '\n') + line)
                if not tokens:
                    return []
                values[value] = tuple(tokens)
            if len(set(values.values())) < len(values):
                return []
            slots.append(Slot(key, values))
        return slots if self._holds(query, slots) else []

    def _holds(self, query: Query, slots: Sequence[Slot]) -> bool:
        """Check on some whole answers that their tokens are those of their parts."""
        most = max(len(slot.values) for slot in slots)
        for i in range(most):
            facts = [Fact(s.key, list(s.values)[i % len(s.values)], 0) for s in slots]
            whole = self._more(self._head, self._lead + prompt.answer_text(query, facts))
            if whole != list(itertools.chain(*(s.values[f.value] for s, f in zip(slots, facts)))):
                return False
        return True

    def _more(self, before: str, text: str) -> list[int]:
        """Return the tokens that a text adds to what is before it; none if it changes those."""
        first, both = self._ids(before), self._ids(before + text)
        return both[len(first):] if both[:len(first)] == first else []

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)['input_ids'])
