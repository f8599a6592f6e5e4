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
Prefill and decode on transformers' own model classes, with what stays between frames kept.

`model.generate` computes each prompt from its first token, and then one token per forward pass.
The engine keeps the key-value cache of each query: the part of a prompt that is as it was for the
last frame (system, question, history, and images if no pixel changed) is not computed again. It
feeds tokens that are likely to follow (`guess`) together with the prompt, so that an answer that
is as guessed costs one forward pass. What is chosen depends only on the model's own output for
the tokens before it, so greedy answers are those of `generate`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import Cache

from .cpu import Eye
from .families import Allowed, Family, Tensors, Visual
from .grammar import Grammar, Guess, Row

Tokens = npt.NDArray[np.int64]
Bias = npt.NDArray[np.float32]
QUERIES_KEPT = 16  # questions whose key-value cache is kept; the guard asks each in two ways
VIEWS_KEPT = 8     # images whose features are kept; passes about one frame share most of them
STEP = 256         # key-value buffers are made in multiples of this [tokens]


@dataclass(frozen=True)
class Prompt:
    """A prompt and its images; ``seen`` holds for each image what is equal when its pixels are."""

    ids: tuple[int, ...]
    inputs: Tensors
    seen: tuple[Hashable, ...]
    keep: Allowed | None = None     # which image tokens are used; None: all
    bias: Bias | None = None        # added to the attention to each image token


@dataclass(frozen=True)
class Decoded:
    """An answer in tokens, with the probability of each and what it took."""

    tokens: list[int]
    probabilities: list[float]
    partial: bool       # stopped before the end
    passes: int         # of the decoder
    guessed: int        # tokens that were guessed right
    computed: int       # tokens that went through the decoder


class Buffers(Cache):
    """Key-value buffers of fixed size: what is written is seen up to there, and no further."""

    def __init__(self) -> None:
        """Start empty; the first layer to write decides on dtype and device."""
        super().__init__(layers=[])
        self.room = 0
        self._begin = self._end = 0   # where the present forward pass writes
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def make_room(self, tokens: int) -> bool:
        """Make the buffers hold that many tokens; return False if that loses what they held."""
        if tokens <= self.room:
            return True
        self.room = -(-tokens // STEP) * STEP
        self._pairs = []
        return False

    def span(self, begin: int, end: int) -> None:
        """Set where the next forward pass writes."""
        self._begin, self._end = begin, end

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int,
               *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of one layer; return all up to them."""
        if layer_idx == len(self._pairs):
            self._pairs.append((self._empty(key_states), self._empty(value_states)))
        keys, values = self._pairs[layer_idx]
        keys[:, :, self._begin:self._end] = key_states
        values[:, :, self._begin:self._end] = value_states
        return keys[:, :, :self._end], values[:, :, :self._end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens before the present forward pass."""
        return self._begin

    def _empty(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_zeros((*states.shape[:2], self.room, states.shape[-1]))


class Kept:
    """What stays of a query between frames, and between the passes of one answer."""

    def __init__(self) -> None:
        self.cache = Buffers()
        self.ids = np.zeros(0, np.int64)     # tokens whose keys and values are in the cache
        self.prompt = 0                      # how many of them are the prompt
        self.fed = 0                         # how many the last forward pass computed
        self.seen: object = None             # the images, and which of their tokens are used
        self.visual: Visual | None = None
        self.bias: Bias | None = None        # added to the attention to each token of the prompt
        self.positions = torch.zeros((1, 0), dtype=torch.int64)  # of the prompt's tokens
        self.laid_out: object = None         # what the positions belong to


class Engine:
    """Answers prompts, one at a time, in one thread."""

    def __init__(self, family: Family) -> None:
        """Wrap the parts of a model."""
        self.family = family
        self._all_kept: OrderedDict[str, Kept] = OrderedDict()
        self._views: OrderedDict[Hashable, Visual] = OrderedDict()
        weight = family.embedding.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._visual = Eye(family) if weight.device.type == 'cpu' else family.visual
        self._never = torch.finfo(self._dtype).min

    def prepare(self) -> None:
        """Do what would delay an answer the first time; call it after some answers."""

    def forget(self) -> None:
        """Drop what is kept between frames."""
        self._all_kept.clear()
        self._views.clear()

    @torch.inference_mode()
    def answer(self, query: str, prompt: Prompt, grammar: Grammar, limit: int,
               stop: Callable[[], bool] = lambda: False,
               on_token: Callable[[list[int]], None] = lambda tokens: None) -> Decoded:
        """
        Return the greedy answer to a prompt, of at most ``limit`` tokens.

        ``grammar`` says which tokens may come, and which are likely to. ``stop`` is asked before
        each forward pass.
        """
        tokens: list[int] = []
        probabilities: list[float] = []
        passes = guessed = computed = 0
        kept = self._recall(query)
        while not grammar.done and len(tokens) < limit:
            if stop():
                return Decoded(tokens, probabilities, True, passes, guessed, computed)
            guess = self._fit(grammar.guess())
            if passes:
                kept.ids = kept.ids[:kept.prompt + len(tokens) - 1]  # drop what was guessed wrong
                rows = self._extend(kept, tokens[-1], guess)
            else:
                rows = self._prefill(kept, prompt, guess, limit)
            passes += 1
            computed += kept.fed
            row: int | None = 0
            while row is not None and not grammar.done and len(tokens) < limit:
                token, probability = grammar.choose(rows[row])
                tokens.append(token)
                probabilities.append(probability)
                on_token(tokens)
                row = guess.after(row, token)
                guessed += row is not None
            for token in grammar.rest()[:limit - len(tokens)]:
                tokens.append(token)
                probabilities.append(1.0)
                on_token(tokens)
        return Decoded(tokens, probabilities, False, passes, guessed, computed)

    def _fit(self, guess: Guess) -> Guess:
        """Return as much of a guess as one forward pass takes."""
        return guess

    def _recall(self, query: str) -> Kept:
        kept = self._all_kept.pop(query, None) or Kept()
        self._all_kept[query] = kept
        if len(self._all_kept) > QUERIES_KEPT:
            self._all_kept.popitem(last=False)
        return kept

    def _prefill(self, kept: Kept, prompt: Prompt, guess: Guess, limit: int) -> list[Row]:
        """Feed a prompt and a guess; return logits after the prompt and after each guess."""
        family, ids = self.family, np.asarray(prompt.ids, np.int64)
        image = ids == family.image_token
        used = np.ones(len(ids), np.bool_)
        if prompt.keep is not None:
            used[image] = prompt.keep
        seen = (prompt.seen, *(None if treated is None else treated.tobytes()
                               for treated in (prompt.keep, prompt.bias)))
        same = kept.visual is not None and kept.seen == seen
        begin = _shared(kept.ids, ids[used], len(ids) if same else _first(image[used]))
        if not self._make_room(kept, len(ids) + max(limit, len(guess.tokens))):
            begin = 0
        kept.ids = kept.ids[:begin]
        if not same:
            kept.visual, kept.seen = self._look(prompt), seen
        kept.prompt = int(used.sum())
        self._lay_out(kept, prompt, used)
        kept.bias = None
        if prompt.bias is not None:
            spread = np.zeros(len(ids), np.float32)
            spread[image] = prompt.bias
            kept.bias = spread[used]
        return self._forward(kept, ids[used][begin:], guess, np.flatnonzero(used[image]))

    def _make_room(self, kept: Kept, tokens: int) -> bool:
        """Make the cache hold that many tokens; return False if that loses what it held."""
        return kept.cache.make_room(tokens)

    def _look(self, prompt: Prompt) -> Visual:
        """Return the features of a prompt's images; the vision tower sees the new ones."""
        new = [i for i, image in enumerate(prompt.seen) if image not in self._views]
        if new:
            seen = self._visual(self.family.images(prompt.inputs, new))
            self._views.update(zip([prompt.seen[i] for i in new], seen.split(len(new))))
        for image in prompt.seen:
            self._views.move_to_end(image)
        found = Visual.joined([self._views[image] for image in prompt.seen])
        while len(self._views) > VIEWS_KEPT:
            self._views.popitem(last=False)
        return found

    def _extend(self, kept: Kept, token: int, guess: Guess) -> list[Row]:
        """Feed a token and a guess; return logits after each."""
        return self._forward(kept, np.asarray([token], np.int64), guess, np.zeros(0, np.int64))

    def _lay_out(self, kept: Kept, prompt: Prompt, used: Allowed) -> None:
        """Find the positions of the prompt's tokens, unless it is laid out as the last one."""
        grid = prompt.inputs.get('image_grid_thw')
        layout = (prompt.ids, None if grid is None else grid.tolist(), used.tobytes())
        if kept.laid_out != layout:
            found = self.family.positions(torch.tensor(prompt.ids), prompt.inputs)
            kept.positions, kept.laid_out = found[:, torch.from_numpy(used)], layout

    def _forward(self, kept: Kept, fed: Tokens, guess: Guess, numbers: Tokens) -> list[Row]:
        """
        Run the decoder on tokens that follow the cache; return logits after them and each guess.

        ``numbers`` are the numbers of the image tokens of the whole prompt in `kept.visual`.
        """
        family, begin, n_guess = self.family, len(kept.ids), len(guess.tokens)
        new = np.concatenate([fed, np.asarray(guess.tokens, np.int64)])
        kept.ids = np.concatenate([kept.ids, new])
        kept.cache.span(begin, len(kept.ids))
        kept.fed = len(new)

        # An answer may hold the token that stands for an image; only in the prompt does it.
        image = kept.ids == family.image_token
        image[kept.prompt:] = False
        allowed = family.allowed(image, len(new))
        allowed[len(fed):, begin + len(fed):] = guess.ancestors()
        places = np.flatnonzero(image[begin:])
        where = visual = None
        embeds = family.embedding(torch.from_numpy(
            np.where(image[begin:], 0, new)).to(self._device))[None]
        if len(places) and kept.visual is not None:
            where = torch.from_numpy(places).to(self._device)
            visual = kept.visual.part(torch.from_numpy(numbers[-len(places):]).to(self._device))
            embeds[0, where] = visual.rows.to(embeds.dtype)
        positions = self._positions(kept, begin, len(fed), guess)
        hidden = family.decode(
            visual, where, inputs_embeds=embeds, use_cache=True, past_key_values=kept.cache,
            position_ids=as_decoder_takes(positions.to(self._device)),
            attention_mask=family.attention(lambda a: self._mask(a, kept.bias), allowed))
        return [Row(logits) for logits in family.head(hidden[0, -1 - n_guess:]).float()]

    def _positions(self, kept: Kept, begin: int, n_fed: int, guess: Guess) -> torch.Tensor:
        """Return the positions of the tokens to be fed, axes x tokens."""
        known = kept.positions[:, begin:begin + n_fed]
        after = begin + n_fed - kept.prompt   # tokens of the answer before the guess
        steps = [*range(after - n_fed + known.shape[1], after),
                 *(after + depth for depth in guess.depths())]
        answer = int(kept.positions.max()) + 1 + torch.tensor(steps, dtype=torch.int64)
        return torch.cat([known, answer.expand(len(known), -1)], 1)

    def _mask(self, allowed: Allowed, bias: Bias | None) -> torch.Tensor:
        """Return what is added to the attention, 1 x 1 x queries x keys."""
        added = np.where(allowed, np.float32(0), np.float32(self._never))
        if bias is not None:
            added[:, :len(bias)] += bias
        return torch.from_numpy(added)[None, None].to(self._device, self._dtype)


def as_decoder_takes(positions: torch.Tensor) -> torch.Tensor:
    """Return positions, axes x tokens, with a batch of one: before the axis if there is one."""
    return positions if len(positions) == 1 else positions[:, None]


def _shared(old: Tokens, new: Tokens, limit: int) -> int:
    """Return how many first tokens are the same; at least one of the new ones is left to feed."""
    n = min(len(old), len(new) - 1, limit)
    return n if n <= 0 else _first(old[:n] != new[:n])


def _first(flags: npt.NDArray[np.bool_]) -> int:
    """Return the number of flags before the first that is set."""
    return int(flags.argmax()) if flags.any() else len(flags)
