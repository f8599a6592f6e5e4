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
Attention inside each of several sequences that follow each other, in one kernel of torch.

The windows of a picture (Qwen2.5-VL) are such sequences. It works on a GPU with 16-bit weights;
elsewhere `packed` changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import nn
from transformers import AttentionInterface, PretrainedConfig

NAME = 'spotvlm_packed_flash'   # transformers hands lengths to what has "flash" in its name


def packed_attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor,
                     value: torch.Tensor, attention_mask: torch.Tensor | None,
                     **options: object) -> tuple[torch.Tensor, None]:
    """
    Return attention inside each of several sequences that follow each other.

    ``query``, ``key``, ``value``: 1 x heads x tokens x dim, scaled by 1 / sqrt(dim). Among the
    options that transformers gives are ``cu_seq_lens_q``, where sequences begin and end, int32,
    and ``max_length_q``, the length of the longest.
    """
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    ends, longest = options['cu_seq_lens_q'], options['max_length_q']
    varlen_attn = _varlen_attn()
    assert varlen_attn is not None  # see `can_pack`
    return varlen_attn(query, key, value, ends, ends, longest, longest)[None], None


AttentionInterface.register(NAME, packed_attention)


def can_pack(like: torch.Tensor) -> bool:
    """Return whether packed attention works for such a tensor."""
    return (like.is_cuda and like.dtype in (torch.bfloat16, torch.float16)
            and _varlen_attn() is not None)


@lru_cache
def _varlen_attn() -> Callable[..., torch.Tensor] | None:
    """Return the kernel, None before torch 2.10; it comes with 70 MB that a CPU does without."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


@contextmanager
def packed(config: PretrainedConfig, like: torch.Tensor) -> Iterator[None]:
    """Have a vision tower use packed attention meanwhile, where that works."""
    if not can_pack(like):
        yield
        return
    usual, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = usual
