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
forward pass. Answers that are wanted together share their forward passes. What is chosen depends
only on the model's own output for the tokens before it, so greedy answers are those of `generate`.

The engine plans and chooses; a `DecoderBackend` computes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
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


@dataclass(frozen=True)
class Ask:
    """
    An answer to give: the name of the prefix to go on with, the prompt, and what may be said.

    ``grammar`` says which tokens may come, and which are drafted; ``limit``: tokens at most.
    ``on_token`` is called with the tokens so far after each.
    """

    query: str
    prompt: Prompt
    grammar: Grammar
    limit: int
    on_token: Callable[[list[int]], None] = lambda tokens: None


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
    joins: bool     # whether `forward_all` takes several steps in one pass

    def encode_images(self, prompt: Prompt) -> ImageFeatures:
        """Return the features of a prompt's images."""

    def see(self, prompts: Sequence[Prompt]) -> None:
        """Encode the images of some prompts, where that takes less than one after the other."""

    def fit_draft(self, draft: DraftTree) -> DraftTree:
        """Return as much of a draft as one forward pass takes."""

    def reserve(self, state: PrefixState, tokens: int) -> bool:
        """
        Make room for that many tokens of a prefix in all; what is not joined goes on with it.

        Return False if what was cached of it is lost. Raise ValueError where there is no room.
        """

    def forward(self, state: PrefixState, step: Step, lookahead: bool) -> list[Logits]:
        """
        Compute a step of the prefix reserved last.

        Return logits after its last known token and after each of its draft tokens.

        With ``lookahead`` the next step is that of the likeliest token and may begin at once.
        """

    def forward_all(self, turns: Sequence[tuple[PrefixState, Step]],
                    lookahead: bool = False) -> list[list[Logits]]:
        """Compute a step of each of some prefixes in one pass; return what `forward` does."""

    def prepare(self) -> None:
        """Do what would delay an answer the first time; call it after some answers."""


class _Answering:
    """An answer that is under way."""

    def __init__(self, ask: Ask, state: PrefixState) -> None:
        """Begin with no tokens."""
        self.ask, self.state, self.decoded = ask, state, Decoded()
        self._draft = DraftTree()

    @property
    def done(self) -> bool:
        """Whether nothing is left to say."""
        return self.ask.grammar.done or len(self.decoded.tokens) >= self.ask.limit

    def next_step(self, engine: Engine) -> Step:
        """Return the step of the next forward pass."""
        self._draft = engine.backend.fit_draft(self.ask.grammar.draft())
        if self.decoded.passes:
            return engine.decode_step(self.state, self.decoded.tokens, self._draft)
        return engine.prefill_step(self.state, self.ask.prompt, self._draft, self.ask.limit)

    def looks_ahead(self, step: Step) -> bool:
        """Return whether the step after one will be that of the likeliest token."""
        end = len(self.ask.prompt.ids) + self.ask.limit
        return self.ask.grammar.unconstrained and not self._draft.tokens and step.end + 1 < end

    def take(self, step: Step, logits: list[Logits]) -> None:
        """Take all tokens that a step's output decides."""
        self.decoded.passes += 1
        self.decoded.computed_tokens += len(step.ids)
        grammar, row = self.ask.grammar, 0
        while not self.done:
            token, probability = grammar.choose(logits[row])
            self._add(token, probability)
            following = self._draft.next_row(row, token)
            if following is None:
                break
            row = following
            self.decoded.accepted += 1
        for token in grammar.forced_tokens()[:self.ask.limit - len(self.decoded.tokens)]:
            self._add(token, 1.0)

    def _add(self, token: int, probability: float) -> None:
        self.decoded.tokens.append(token)
        self.decoded.probabilities.append(probability)
        self.ask.on_token(self.decoded.tokens)


class Engine:
    """Answers prompts, one at a time or some together, in one thread."""

    def __init__(self, backend: DecoderBackend) -> None:
        """Keep no prefix yet."""
        self.backend, self.family = backend, backend.family
        self._states: OrderedDict[str, PrefixState] = OrderedDict()

    @property
    def joins(self) -> bool:
        """Whether answers that are wanted together take less than one after the other."""
        return self.backend.joins

    def answer(self, query: str, prompt: Prompt, grammar: Grammar, limit: int,
               stop: Callable[[], bool] = lambda: False) -> Decoded:
        """Return the answer to one `Ask`; see `answer_all`."""
        return self.answer_all([Ask(query, prompt, grammar, limit)], stop)[0]

    @torch.inference_mode()
    def answer_all(self, asks: Sequence[Ask],
                   stop: Callable[[], bool] = lambda: False) -> list[Decoded]:
        """
        Return the greedy answers to some prompts, which go on with different prefixes.

        ``stop`` is asked before each forward pass. Raise ValueError where prompt and answer are
        too long.
        """
        if len(asks) > 1 and not self.joins:
            return [self.answer_all([ask], stop)[0] for ask in asks]
        answers = [_Answering(ask, self._prefix_state(ask.query)) for ask in asks]
        while left := [answer for answer in answers if not answer.done]:
            if stop():
                for answer in left:
                    answer.decoded.partial = True
                break
            try:
                if len(asks) > 1 and not answers[0].decoded.passes:
                    self.backend.see([ask.prompt for ask in asks])
                steps = [answer.next_step(self) for answer in left]
                ahead = all(answer.looks_ahead(step) for answer, step in zip(left, steps))
                found = (self.backend.forward_all(
                    [(answer.state, step) for answer, step in zip(left, steps)], ahead)
                    if len(left) > 1 else [self.backend.forward(left[0].state, steps[0], ahead)])
            except Exception:
                for answer in left:  # not all of them are cached now
                    answer.state.ids = answer.state.ids[:0]
                raise
            for answer, step, logits in zip(left, steps, found):
                answer.take(step, logits)
        return [answer.decoded for answer in answers]

    def prepare(self) -> None:
        """Do what would delay an answer the first time; call it after some answers."""
        self.backend.prepare()

    def _prefix_state(self, query: str) -> PrefixState:
        state = self._states.pop(query, None) or PrefixState()
        self._states[query] = state
        if len(self._states) > MAX_PREFIXES:
            self._states.popitem(last=False)
        return state

    def prefill_step(self, state: PrefixState, prompt: Prompt, draft: DraftTree,
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

    def decode_step(self, state: PrefixState, tokens: list[int], draft: DraftTree) -> Step:
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
