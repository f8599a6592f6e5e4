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
One request at a time, by the engine of the edge: on CPUs a batch takes as long as its parts.

The engine checks several drafted tokens in one pass. Drafted is what a schema forces, and what
came after the same tokens in replies before: most of a reply is its form. A draft changes no
reply; each token is the likeliest, as without.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from .constraints import Held
from .pictures import Pictures
from ..edge.cpu import replace_gelu_tanh
from ..edge.engine import Engine, PrefixState, Prompt, Step
from ..edge.families import (
    DecoderMask, ImageFeatures, model_family, Tensors, use_maskable_attention)
from ..edge.grammar import DraftTree, Logits
from ..edge.precision import cast_vision, multiplies
from ..edge.torch_backend import TorchBackend

DRAFT = 8        # tokens at once; each takes a thirtieth of a pass
CONTEXT = 6      # tokens that are looked at, to say what follows
MOST = 20_000    # contexts that are kept


class Habits:
    """What came after which tokens lately."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._next: OrderedDict[tuple[int, ...], int] = OrderedDict()

    def learn(self, tokens: Sequence[int]) -> None:
        """Look at a reply."""
        for i, token in enumerate(tokens):
            for begin in range(max(0, i - CONTEXT), max(1, i)):
                self._next[tuple(tokens[begin:i])] = token
                self._next.move_to_end(tuple(tokens[begin:i]))
        while len(self._next) > MOST:
            self._next.popitem(last=False)

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return what may follow, as after the longest context that was seen."""
        recent, draft = list(tokens[-CONTEXT:]), list[int]()
        while len(draft) < most:
            token = next((self._next[tuple(recent[begin:])] for begin in range(
                max(0, len(recent) - CONTEXT), max(1, len(recent)))
                if tuple(recent[begin:]) in self._next), None)
            if token is None:
                break
            draft.append(token)
            recent.append(token)
        return draft


class Alone:
    """Answers one prompt after the other."""

    def __init__(self, engine: Engine, ends: Collection[int]) -> None:
        """Begin; ``ends``: the tokens that end a reply."""
        self._engine, self._ends, self._habits = engine, frozenset(ends), Habits()
        self._pictures = Pictures()

    @classmethod
    def of(cls, model: PreTrainedModel, ends: Collection[int]) -> Alone | None:
        """Return what answers by a model; None on a GPU, and where the engine does not fit."""
        family = model_family(model.requires_grad_(False))
        if family is None or model.device.type != 'cpu':
            return None
        if model.dtype == torch.float32 and multiplies(torch.bfloat16):
            cast_vision(model, torch.bfloat16)
        replace_gelu_tanh(model)
        use_maskable_attention(model)
        return cls(Engine(_Backend(family)), ends)

    @property
    def vision_dtype(self) -> torch.dtype:
        """Return the dtype of the pixels that the model takes."""
        return self._engine.family.vision_dtype

    def takes(self, inputs: Tensors) -> bool:
        """Whether a prompt can be computed like this."""
        return self._pictures.usual(inputs)

    def answer(self, prompts: Sequence[Tensors], limits: Sequence[int],
               held: Sequence[Held | None], gone: Callable[[int], bool]) -> list[list[int]]:
        """Return the likeliest tokens of each reply, within its schema; fewer where ``gone``."""
        return [self._one(*asked, partial(gone, i))
                for i, asked in enumerate(zip(prompts, limits, held))]

    def _one(self, inputs: Tensors, limit: int, held: Held | None,
             gone: Callable[[], bool]) -> list[int]:
        inputs = {name: value.to(self.vision_dtype) if value.is_floating_point() else value
                  for name, value in inputs.items()}
        # No two pictures are the same: none is looked for among those before.
        prompt = Prompt(tuple(inputs['input_ids'][0].tolist()), inputs, (object(),))
        tokens = self._engine.answer('', prompt, _Reply(self, limit, held), limit, gone).tokens
        self._habits.learn(tokens)
        return tokens

    def draft(self, tokens: Sequence[int], forced: Sequence[int], most: int) -> list[int]:
        """Return what may follow some tokens; what is ``forced`` comes first."""
        draft = list(forced[:most])
        draft += self._habits.draft([*tokens, *draft], most - len(draft))
        return draft

    def is_end(self, token: int) -> bool:
        """Whether a token ends a reply."""
        return token in self._ends


class _Reply:
    """A `Grammar`: the likeliest token, among those that a schema allows."""

    unconstrained = False

    def __init__(self, alone: Alone, limit: int, held: Held | None) -> None:
        self.done = False
        self._alone, self._limit, self._held = alone, limit, held
        self._tokens: list[int] = []

    def choose(self, logits: Logits) -> tuple[int, float]:
        """Take the likeliest token."""
        values = logits.values
        if self._held is not None:
            values = values.masked_fill(~self._held.allowed(len(values)), -torch.inf)
        token = int(values.argmax())
        if self._held is not None:
            self._held.take(token)
        self._tokens.append(token)
        self.done = self._alone.is_end(token)
        return token, 1.0

    def draft(self) -> DraftTree:
        """Return what is forced, and what is usual after it."""
        forced = self._held.forced() if self._held is not None else []
        return DraftTree.chain(self._alone.draft(
            self._tokens, forced, min(DRAFT, self._limit - len(self._tokens) - 1)))

    def forced_tokens(self) -> list[int]:
        """Return nothing: what is forced is drafted."""
        return []


class _Backend(TorchBackend):
    """Keeps nothing from one prompt to the next: each has pictures of its own, first of all."""

    def encode_images(self, prompt: Prompt) -> ImageFeatures:
        """Return the features of a prompt's images."""
        return self._encode(prompt.inputs)

    def reserve(self, state: PrefixState, tokens: int) -> bool:
        """Make room; what was there is of no use."""
        super().reserve(state, tokens)
        return False

    def _mask(self, state: PrefixState, step: Step) -> DecoderMask | None:
        """Return what tokens attend to; None lets torch take its kernel for whole prompts."""
        plain = step.begin == 0 and step.draft.is_chain and self.family.causal
        return None if plain else super()._mask(state, step)
