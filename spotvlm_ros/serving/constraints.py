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
Replies that always parse: only tokens are chosen with which the JSON of a schema goes on.

By llguidance, the library that vLLM, SGLang and llama.cpp take, too; what the edge's own grammar
knows are lines of keys and values, not JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

NEEDS = 'llguidance'


class Constraints:
    """The tokens of one model, as what schemas allow."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, end: int) -> None:
        """
        Look at the tokens when a first schema comes.

        ``size``: logits of the model; ``end``: the token that ends a reply.
        """
        self._tokenizer, self._size, self.end = tokenizer, size, end
        self._tokens: LLTokenizer | None = None
        self._grammar = lru_cache(256)(self._compiled)

    def check(self, schema: str) -> None:
        """Raise ValueError where a schema cannot be kept to."""
        if find_spec(NEEDS) is None:
            raise ValueError(f'response_format: this server has no {NEEDS} (pip install {NEEDS})')
        fault = self._grammar(schema)[1]
        if fault:
            raise ValueError(f'response_format: {fault}; change the schema')

    def held(self, schema: str) -> Held | None:
        """Return what follows a reply token by token, None for free text."""
        from llguidance import LLMatcher
        if not schema:
            return None
        grammar, _ = self._grammar(schema)
        assert self._tokens is not None
        return Held(LLMatcher(self._tokens, grammar), self.end)

    def _compiled(self, schema: str) -> tuple[str, str]:
        """Return a schema as the library wants it, and what is wrong with it."""
        from llguidance import LLMatcher
        from llguidance.hf import from_tokenizer
        if self._tokens is None:
            self._tokens = from_tokenizer(self._tokenizer, n_vocab=self._size,
                                          eos_token=self.end)
        try:
            grammar = LLMatcher.grammar_from_json_schema(
                schema, overrides={'whitespace_flexible': False, 'item_separator': ', ',
                                   'key_separator': ': '})
            return grammar, LLMatcher.validate_grammar(grammar, self._tokens)
        except ValueError as error:
            return '', str(error)


class Held:
    """Follows a reply that keeps to a schema."""

    def __init__(self, matcher: LLMatcher, end: int) -> None:
        """Begin; ``end``: what ends a reply."""
        self._matcher, self._end = matcher, end

    def take(self, token: int) -> None:
        """Go on with a token."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)

    def forced(self) -> list[int]:
        """Return the tokens that have to follow, as text is usually cut into tokens."""
        return [] if self._matcher.is_stopped() else list(self._matcher.compute_ff_tokens())

    def allowed(self, size: int) -> torch.Tensor:
        """Return, for each of ``size`` tokens, whether it may come next."""
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
        allowed = np.zeros(size, np.uint8)
        if self._matcher.is_stopped():  # nothing can follow
            allowed[self._end] = 1
        else:
            mask = allocate_token_bitmask(1, size)
            fill_next_token_bitmask(self._matcher, mask)
            allowed = np.unpackbits(mask.view(np.uint8), bitorder='little')[:size]
        return torch.from_numpy(allowed != 0)


class Constrained(LogitsProcessor):
    """Leaves the rows of a batch the tokens that their schemas allow."""

    def __init__(self, held: Sequence[Held | None], start: int) -> None:
        """Begin replies; ``start``: tokens of the prompt."""
        self._held, self._start = held, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take the last tokens, and leave those that may come next."""
        for row, held in enumerate(self._held):
            if held is None:
                continue
            if input_ids.shape[1] > self._start:
                held.take(int(input_ids[row, -1]))
            scores[row].masked_fill_(~held.allowed(scores.shape[1]).to(scores.device), -torch.inf)
        return scores
