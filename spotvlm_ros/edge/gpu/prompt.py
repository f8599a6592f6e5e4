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
A part of a decoder layer for passes of many tokens, as one kernel for NVIDIA GPUs.

To turn queries and keys and to store keys and values the compiler makes five kernels, which copy
and took a tenth of a prompt. The plain version runs on a CPU.
"""

from __future__ import annotations

import torch

from .products import triton

if triton is not None:
    from .products import tl


@torch.library.custom_op('spotvlm::turn_and_store', mutates_args=('keys', 'values'))
def turn_and_store(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, keys: torch.Tensor,
                   values: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """
    Return the rotated queries, rows x heads x new x dim; write keys and values to the cache.

    ``qkv``: queries, keys and values, rows x new x (heads + 2 kv_heads) dim; ``cos``, ``sin``:
    rows x new x dim; ``keys``, ``values``: rows x kv_heads x tokens x dim; ``slots``: rows x new.
    """
    (rows, new, _), (_, kv_heads, tokens, dim) = qkv.shape, keys.shape
    heads = qkv.shape[2] // dim - 2 * kv_heads
    if qkv.is_cuda and triton is not None:
        query = qkv.new_empty((rows, heads, new, dim))
        _turn_and_store_kernel[(new, rows)](
            qkv.contiguous(), cos.contiguous(), sin.contiguous(), keys, values, slots, query,
            heads, kv_heads, tokens, dim, triton.next_power_of_2(dim // 2),
            triton.next_power_of_2(heads + 2 * kv_heads))
        return query
    each = qkv.unflatten(2, (-1, dim))
    first, second = each[:, :, :-kv_heads].chunk(2, -1)
    turned = (each[:, :, :-kv_heads] * cos[:, :, None]
              + torch.cat([-second, first], -1) * sin[:, :, None])
    here = torch.arange(rows, device=qkv.device)[:, None]
    keys[here, :, slots] = turned[:, :, heads:]
    values[here, :, slots] = each[:, :, -kv_heads:]
    return turned[:, :, :heads].transpose(1, 2).contiguous()


@turn_and_store.register_fake
def _(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, keys: torch.Tensor,
      values: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    dim = keys.shape[3]
    heads = qkv.shape[2] // dim - 2 * keys.shape[1]
    return qkv.new_empty((len(qkv), heads, qkv.shape[1], dim))


if triton is not None:
    @triton.jit
    def _turn_and_store_kernel(  # type: ignore[no-untyped-def]
            qkv, cos, sin, keys, values, slots, query, heads, kv_heads, tokens, D: tl.constexpr,
            HALF: tl.constexpr, HEADS: tl.constexpr):
        """Do it for one token: two numbers, half a head apart, turn together."""
        new, row = tl.num_programs(0), tl.program_id(1)
        token = (row * new + tl.program_id(0)).to(tl.int64)
        slot = tl.load(slots + token)
        head, i = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
        inside = i < D // 2
        there, turns = inside & (head < heads + 2 * kv_heads), inside & (head < heads + kv_heads)
        at = qkv + (token * (heads + 2 * kv_heads) + head) * D + i
        a = tl.load(at, mask=there, other=0.0).to(tl.float32)
        b = tl.load(at + D // 2, mask=there, other=0.0).to(tl.float32)
        at = token * D + i
        cos_a = tl.load(cos + at, mask=inside, other=1.0).to(tl.float32)
        cos_b = tl.load(cos + at + D // 2, mask=inside, other=1.0).to(tl.float32)
        sin_a = tl.load(sin + at, mask=inside, other=0.0).to(tl.float32)
        sin_b = tl.load(sin + at + D // 2, mask=inside, other=0.0).to(tl.float32)
        first = tl.where(turns, a * cos_a - b * sin_a, a).to(query.dtype.element_ty)
        second = tl.where(turns, b * cos_b + a * sin_b, b).to(query.dtype.element_ty)
        to = ((row * heads + head) * new + tl.program_id(0)).to(tl.int64) * D + i
        mine = inside & (head < heads)
        tl.store(query + to, first, mask=mine)
        tl.store(query + to + D // 2, second, mask=mine)
        to = ((row * kv_heads + head - heads) * tokens + slot) * D + i
        mine = turns & (head >= heads)
        tl.store(keys + to, first, mask=mine)
        tl.store(keys + to + D // 2, second, mask=mine)
        to -= kv_heads * tokens * D
        mine = there & (head >= heads + kv_heads)
        tl.store(values + to, first, mask=mine)
        tl.store(values + to + D // 2, second, mask=mine)
