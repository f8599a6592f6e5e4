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
Prefill and decode on transformers' own model classes, with a prefix cache from frame to frame.

`model.generate` computes each prompt from its first token, and then one token per forward pass.
The engine keeps the KV cache of each query: the part of a prompt that is as it was for the last
frame (system, question, history, and images if no pixel changed) is not computed again. It
verifies draft tokens together with the prompt, so that an answer that is as drafted costs one
forward pass. What is chosen depends only on the model's own output for the tokens before it, so
greedy answers are those of `generate`.

The engine plans and chooses; a `DecoderBackend` computes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from .families import BoolArray, ImageFeatures, ModelFamily, Tensors
from .grammar import DraftTree, Grammar, Logits

TokenIds = npt.NDArray[np.int64]
Bias = npt.NDArray[np.float32]
MAX_PREFIXES = 16  # whose KV cache is kept; the guard asks each query in two ways


@dataclass(frozen=True)
class Prompt:
    """A prompt and its images."""

    ids: tuple[int, ...]
    inputs: Tensors
    image_keys: tuple[Hashable, ...]    # per image, what is equal when its pixels are
    keep: BoolArray | None = None       # which image tokens are used; None: all
    bias: Bias | None = None            # added to the attention to each image token


@dataclass
class Decoded:
    """An answer in tokens, with the probability of each and what it took."""

    tokens: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    partial: bool = False       # stopped before the end
    passes: int = 0             # of the decoder
    accepted: int = 0           # draft tokens that were right
    computed_tokens: int = 0    # that went through the decoder


class PrefixState:
    """What is known of the tokens whose keys and values are cached, of one query."""

    def __init__(self) -> None:
        """Begin with nothing cached."""
        self.ids = np.zeros(0, np.int64)     # tokens, those of an answer included
        self.prompt_length = 0               # how many of them are the prompt
        self.image_key: object = None        # the images, and which of their tokens are used
        self.features: ImageFeatures | None = None
        self.bias: Bias | None = None        # added to the attention to each token of the prompt
        self.position_ids = torch.zeros((1, 0), dtype=torch.int64)  # of the prompt, axes x tokens
        self.layout: object = None           # what the positions belong to

    def positions_of(self, begin: int, n_known: int, draft: DraftTree) -> torch.Tensor:
        """Return the positions of tokens from slot ``begin`` and of a draft, axes x tokens."""
        prompt = self.position_ids[:, begin:begin + n_known]
        after = begin + n_known - self.prompt_length   # tokens of the answer before the draft
        steps = [*range(after - n_known + prompt.shape[1], after),
                 *(after + depth for depth in draft.depths())]
        answer = int(self.position_ids.max()) + 1 + torch.tensor(steps, dtype=torch.int64)
        return torch.cat([prompt, answer.expand(len(prompt), -1)], 1)


@dataclass(frozen=True)
class Step:
    """The tokens of one forward pass: some that are known, and a draft after them."""

    begin: int              # KV slot of the first; those before are cached
    ids: TokenIds           # draft included; 0 in place of image tokens
    draft: DraftTree
    image: BoolArray        # of all tokens up to the last: whether each is an image token
    image_slots: TokenIds   # where among ``ids`` image features go
    image_rows: TokenIds    # and which rows of `PrefixState.features`
    position_ids: torch.Tensor   # axes x tokens

    @property
    def n_known(self) -> int:
        """Return the number of tokens before the draft."""
        return len(self.ids) - len(self.draft.tokens)

    @property
    def end(self) -> int:
        """KV slot after the last token."""
        return len(self.image)


class DecoderBackend(Protocol):
    """Computes what the engine plans, with room for the keys and values of one prefix or more."""

    family: ModelFamily

    def encode_images(self, prompt: Prompt) -> ImageFeatures:
        """Return the features of a prompt's images."""

    def fit_draft(self, draft: DraftTree) -> DraftTree:
        """Return as much of a draft as one forward pass takes."""

    def reserve(self, state: PrefixState, tokens: int) -> bool:
        """
        Have forward passes go on with a prefix, with room for that many tokens in all.

        Return False if what was cached of it is lost. Raise ValueError where there is no room.
        """

    def forward(self, state: PrefixState, step: Step, lookahead: bool) -> list[Logits]:
        """
        Compute a step of the prefix reserved last.

        Return logits after its last known token and after each of its draft tokens.

        With ``lookahead`` the next step is that of the likeliest token and may begin at once.
        """

    def prepare(self) -> None:
        """Do what would delay an answer the first time; call it after some answers."""


class Engine:
    """Answers prompts, one at a time, in one thread."""

    def __init__(self, backend: DecoderBackend) -> None:
        """Keep no prefix yet."""
        self.backend, self.family = backend, backend.family
        self._states: OrderedDict[str, PrefixState] = OrderedDict()

    @torch.inference_mode()
    def answer(self, query: str, prompt: Prompt, grammar: Grammar, limit: int,
               stop: Callable[[], bool] = lambda: False,
               on_token: Callable[[list[int]], None] = lambda tokens: None) -> Decoded:
        """
        Return the greedy answer to a prompt, of at most ``limit`` tokens.

        ``query`` names the prefix to go on with. ``grammar`` says which tokens may come, and
        which are drafted. ``stop`` is asked before each forward pass; ``on_token`` is called with
        the tokens so far after each. Raise ValueError where prompt and answer are too long.
        """
        decoded = Decoded()
        tokens, probabilities = decoded.tokens, decoded.probabilities
        lookahead_end = len(prompt.ids) + limit if grammar.unconstrained else 0
        state = self._prefix_state(query)
        while not grammar.done and len(tokens) < limit:
            if stop():
                decoded.partial = True
                break
            draft = self.backend.fit_draft(grammar.draft())
            step = (self._decode_step(state, tokens, draft) if decoded.passes
                    else self._prefill_step(state, prompt, draft, limit))
            lookahead = not draft.tokens and step.end + 1 < lookahead_end
            try:
                logits = self.backend.forward(state, step, lookahead)
            except Exception:
                state.ids = state.ids[:0]  # not all of them are cached now
                raise
            decoded.passes += 1
            decoded.computed_tokens += len(step.ids)
            row: int | None = 0
            while row is not None and not grammar.done and len(tokens) < limit:
                token, probability = grammar.choose(logits[row])
                tokens.append(token)
                probabilities.append(probability)
                on_token(tokens)
                row = draft.next_row(row, token)
                decoded.accepted += row is not None
            for token in grammar.forced_tokens()[:limit - len(tokens)]:
                tokens.append(token)
                probabilities.append(1.0)
                on_token(tokens)
        return decoded

    def prepare(self) -> None:
        """Do what would delay an answer the first time; call it after some answers."""
        self.backend.prepare()

    def _prefix_state(self, query: str) -> PrefixState:
        state = self._states.pop(query, None) or PrefixState()
        self._states[query] = state
        if len(self._states) > MAX_PREFIXES:
            self._states.popitem(last=False)
        return state

    def _prefill_step(self, state: PrefixState, prompt: Prompt, draft: DraftTree,
                      limit: int) -> Step:
        """Return the step of a prompt's tokens after the prefix that it shares with the last."""
        ids = np.asarray(prompt.ids, np.int64)
        image = ids == self.family.image_token_id
        used = np.ones(len(ids), np.bool_)
        if prompt.keep is not None:
            used[image] = prompt.keep
        image_key = (prompt.image_keys, *(None if array is None else array.tobytes()
                                          for array in (prompt.keep, prompt.bias)))
        same_images = state.features is not None and state.image_key == image_key
        begin = _common_prefix(state.ids, ids[used],
                               len(ids) if same_images else _count_before(image[used]))
        if not self.backend.reserve(state, len(ids) + max(limit, len(draft.tokens))):
            begin = 0
        state.ids = state.ids[:begin]
        if not same_images:
            state.features, state.image_key = self.backend.encode_images(prompt), image_key
        state.prompt_length = int(used.sum())
        self._update_positions(state, prompt, used)
        state.bias = None
        if prompt.bias is not None:
            bias = np.zeros(len(ids), np.float32)
            bias[image] = prompt.bias
            state.bias = bias[used]
        return self._step(state, ids[used][begin:], draft, np.flatnonzero(used[image]))

    def _decode_step(self, state: PrefixState, tokens: list[int], draft: DraftTree) -> Step:
        """Return the step of the last of an answer's tokens."""
        state.ids = state.ids[:state.prompt_length + len(tokens) - 1]  # drop rejected drafts
        return self._step(state, np.asarray(tokens[-1:], np.int64), draft, np.zeros(0, np.int64))

    def _update_positions(self, state: PrefixState, prompt: Prompt, used: BoolArray) -> None:
        """Find the positions of the prompt's tokens, unless its layout is that of the last one."""
        grid = prompt.inputs.get('image_grid_thw')
        layout = (prompt.ids, None if grid is None else grid.tolist(), used.tobytes())
        if state.layout != layout:
            positions = self.family.position_ids(torch.tensor(prompt.ids), prompt.inputs)
            state.position_ids, state.layout = positions[:, torch.from_numpy(used)], layout

    def _step(self, state: PrefixState, known: TokenIds, draft: DraftTree,
              image_rows: TokenIds) -> Step:
        """
        Append tokens to a prefix and return the step that computes them.

        ``image_rows`` are the rows in `PrefixState.features` of the prompt's image tokens.
        """
        begin = len(state.ids)
        new = np.concatenate([known, np.asarray(draft.tokens, np.int64)])
        state.ids = np.concatenate([state.ids, new])
        # An answer may hold the token that stands for an image; only in the prompt does it.
        image = state.ids == self.family.image_token_id
        image[state.prompt_length:] = False
        slots = np.flatnonzero(image[begin:])
        return Step(begin, np.where(image[begin:], 0, new), draft, image, slots,
                    image_rows[len(image_rows) - len(slots):],
                    state.positions_of(begin, len(known), draft))


def batched_position_ids(positions: torch.Tensor) -> torch.Tensor:
    """Return positions, axes x tokens, with a batch of one: before the axis if there is one."""
    return positions if len(positions) == 1 else positions[:, None]


def _common_prefix(old: TokenIds, new: TokenIds, limit: int) -> int:
    """Return how many first tokens are the same; at least one of the new ones is left to feed."""
    n = min(len(old), len(new) - 1, limit)
    return n if n <= 0 else _count_before(old[:n] != new[:n])


def _count_before(flags: BoolArray) -> int:
    """Return the number of flags before the first that is set."""
    return int(flags.argmax()) if flags.any() else len(flags)
