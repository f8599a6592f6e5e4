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
What a pass computes before its layers and after them.

In a pass of one token that is some forty kernels of next to nothing, each of which waits for the
one before it: compiled they are a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, ExitStack
from typing import TypeVar

import torch
from torch import nn

from .layers import compile_options, CompiledLayers, MAX_SHAPES

MAX_PART = 1536   # tokens of a vocabulary that are looked through at once
Function = TypeVar('Function', bound=Callable[..., object])


def attention_mask(slot_range: torch.Tensor, slots: torch.Tensor,
                   bias: torch.Tensor) -> torch.Tensor:
    """
    Return what is added to the attention, prefixes x 1 x new x tokens.

    ``slots``: those of the new tokens, prefixes x new, of the ``slot_range``; ``bias``: prefixes x
    tokens.
    """
    masked = torch.finfo(bias.dtype).min
    return torch.where(slot_range <= slots[..., None], bias[:, None], masked)[:, None]


def with_top(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return logits, ... x vocabulary, and each row's likeliest token and its probability.

    It is sought in parts of the vocabulary, else a GPU has too little to do at once.
    """
    logits = logits.float()
    size = _part_size(logits.shape[-1])
    parts = logits.unflatten(-1, (-1, size))
    bests, tokens = parts.max(-1)
    sums = (parts - bests[..., None]).exp().sum(-1)
    best, part = bests.max(-1)
    token = part * size + tokens.gather(-1, part[..., None])[..., 0]
    probability = 1 / (sums * (bests - best[..., None]).exp()).sum(-1)
    return logits, torch.stack([token.double(), probability.double()], -1)


def _part_size(vocabulary: int) -> int:
    """Return how many tokens a part has: the most below MAX_PART that divide the vocabulary."""
    most = next(n for n in range(MAX_PART, 0, -1) if vocabulary % n == 0)
    return most if most >= MAX_PART // 8 else vocabulary


def go_on(data: torch.Tensor, top: torch.Tensor, ids: int, slots: int, positions: int,
          last: int) -> None:
    """
    Have a pass of one token go on with the likeliest one when it is run again.

    ``data`` is what it reads: rows of ids, slots and, from ``positions`` on, positions.
    """
    data[ids].copy_(top[..., 0])
    data[slots].copy_((data[slots] + 1).clamp(max=last))
    data[positions:].add_(1)


class Ends:
    """The functions of this module, as they are or compiled."""

    def __init__(self, decoder: nn.Module, compiled: bool) -> None:
        """Compile nothing yet: what needs it does."""
        self.attention_mask = _wrapped(attention_mask, compiled)
        self.with_top, self.go_on = _wrapped(with_top, compiled), _wrapped(go_on, compiled)
        self._modules = [CompiledLayers([module]) for name in ('rotary_emb', 'norm') if compiled
                         and (module := getattr(decoder, name, None)) is not None]

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Have the decoder's own parts run compiled code meanwhile."""
        with ExitStack() as stack:
            stack.enter_context(torch._dynamo.config.patch(recompile_limit=MAX_SHAPES))
            for module in self._modules:
                stack.enter_context(module.compiled())
            yield


def _wrapped(function: Function, compiled: bool) -> Function:
    if not compiled:
        return function
    wrapped: Function = torch.compile(function, dynamic=False, options=compile_options())
    return wrapped
