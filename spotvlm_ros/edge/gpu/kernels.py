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
The parts of a decoder layer for one token, as kernels for NVIDIA GPUs.

A second token, of another answer, may be computed with it: each is a row. Such a pass reads every
weight once and computes next to nothing, so it should take what reading takes. Compiled layers
take a third longer than these: products read at two thirds of the memory's speed, and between them
small kernels wait for each other. Here a layer is five kernels, with norm, bias, rotation and sum
inside of them, and each reads its first weights while the one before it still runs.

Weights may have 8 or 4 bits (`edge.quantised`). Sums are in fp32. Each part has a plain version,
which runs on a CPU and is what the kernel is tested against. Triton comes with torch's CUDA
builds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from .products import MAX_ROWS, triton
from ..quantised import Weight

if triton is not None:
    from .products import (dot_products, launch_options, tile_shape, tl, WARPS,
                           wait_for_previous, weight_parts)

TOKENS = 64              # of the KV cache that a program of attention covers


class RMSNorm(NamedTuple):
    """Divides by the root mean square, and multiplies."""

    weight: torch.Tensor    # n_in
    eps: float


class LayerKV(NamedTuple):
    """The KV cache of one layer, and the slots of the present tokens."""

    keys: torch.Tensor      # rows x kv_heads x tokens x dim
    values: torch.Tensor    # rows x kv_heads x tokens x dim
    slots: torch.Tensor     # rows, int64


class AttentionScratch(NamedTuple):
    """Partial results of attention, of which each program has TOKENS tokens (split KV)."""

    sums: torch.Tensor      # (rows heads) x parts x dim, fp32: values, weighted
    stats: torch.Tensor     # 2 x (rows heads) x parts, fp32: greatest score, sum of exponentials
    done: torch.Tensor      # rows heads, int32: programs that have finished; zero between calls


def attention_scratch(heads: int, tokens: int, dim: int,
                      device: torch.device) -> AttentionScratch:
    """Return room for attention of MAX_ROWS tokens to up to so many."""
    parts, heads = -(-tokens // TOKENS), heads * MAX_ROWS
    return AttentionScratch(torch.zeros((heads, parts, dim), device=device),
                            torch.zeros((2, heads, parts), device=device),
                            torch.zeros(heads, dtype=torch.int32, device=device))


def can_run(like: torch.Tensor) -> bool:
    """Return whether there is a way to compute with such a tensor."""
    return not like.is_cuda or triton is not None


def fused_norm_qkv_rope(x: torch.Tensor, norm: RMSNorm, weight: Weight,
                        bias: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor,
                        cache: LayerKV) -> torch.Tensor:
    """
    Return the rotated queries, rows x heads x dim; write keys and values to the cache.

    ``x``: rows x n_in; ``weight``: that of queries, keys and values, (heads + 2 kv_heads) dim x
    n_in; ``cos``, ``sin``: rows x dim.
    """
    launch = _launch_norm_qkv_rope if x.is_cuda else plain_norm_qkv_rope
    return launch(x, norm, weight, bias, cos, sin, cache)


def plain_norm_qkv_rope(x: torch.Tensor, norm: RMSNorm, weight: Weight,
                        bias: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor,
                        cache: LayerKV) -> torch.Tensor:
    """Do what `fused_norm_qkv_rope` does, by torch."""
    (rows, kv_heads, _, dim) = cache.keys.shape
    qkv = functional.linear(_rms_norm(x, norm), weight.plain(), bias).view(rows, -1, dim)
    rotated, values = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
    first, second = rotated.chunk(2, 2)
    rotated = rotated * cos[:, None] + torch.cat([-second, first], 2) * sin[:, None]
    here = torch.arange(rows, device=x.device)
    cache.keys[here, :, cache.slots] = rotated[:, -kv_heads:]
    cache.values[here, :, cache.slots] = values
    return rotated[:, :-kv_heads]


def decode_attention(query: torch.Tensor, cache: LayerKV, mask: torch.Tensor, scaling: float,
                     scratch: AttentionScratch) -> torch.Tensor:
    """
    Return the attention of tokens to all slots of their rows up to their own, rows x heads x dim.

    ``query``: rows x heads x dim; ``mask``: rows x tokens, which is added to the scaled scores.
    """
    if query.is_cuda:
        return _launch_decode_attention(query, cache, mask, scaling, scratch)
    scores = query.unflatten(1, (cache.keys.shape[1], -1)) @ cache.keys.transpose(2, 3)
    weights = (scores * scaling + mask[:, None, None]).float().softmax(-1).to(query.dtype)
    return (weights @ cache.values).flatten(1, 2)


def fused_norm_swiglu(x: torch.Tensor, norm: RMSNorm, gate: Weight, up: Weight) -> torch.Tensor:
    """Return silu(gate @ normed x) * (up @ normed x), rows x n_out; weights: n_out x n_in."""
    return (_launch_norm_swiglu if x.is_cuda else plain_norm_swiglu)(x, norm, gate, up)


def plain_norm_swiglu(x: torch.Tensor, norm: RMSNorm, gate: Weight, up: Weight) -> torch.Tensor:
    """Return what `fused_norm_swiglu` does, by torch."""
    x = _rms_norm(x, norm)
    gated = functional.silu(functional.linear(x, gate.plain()))
    return gated * functional.linear(x, up.plain())


def linear_residual(x: torch.Tensor, weight: Weight, residual: torch.Tensor) -> torch.Tensor:
    """Return residual + weight @ x, rows x n_out; ``weight`` is n_out x n_in."""
    return (_launch_linear_residual if x.is_cuda else plain_residual)(x, weight, residual)


def plain_residual(x: torch.Tensor, weight: Weight, residual: torch.Tensor) -> torch.Tensor:
    """Return what `linear_residual` does, by torch."""
    return residual + functional.linear(x, weight.plain())


def _rms_norm(x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
    return functional.rms_norm(x.float(), x.shape[-1:], norm.weight.float(), norm.eps).to(x.dtype)


if triton is not None:
    @triton.jit
    def _norm_qkv_rope_kernel(  # type: ignore[no-untyped-def]
            x, norm, eps, weight, scales, bias, cos, sin, keys, values, slots, query, heads,
            kv_heads, tokens, n_in: tl.constexpr, D: tl.constexpr, BIAS: tl.constexpr,
            ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, BITS: tl.constexpr,
            STAGES: tl.constexpr, OVERLAP: tl.constexpr):
        """Compute two numbers, half a head apart, of each of OUT places: they turn together."""
        HALF: tl.constexpr = D // 2
        number = tl.program_id(0) * OUT + tl.arange(0, OUT)
        head, i = number // HALF, number % HALF
        row, within = head * D + i, head < heads + 2 * kv_heads
        a, b, c, d = dot_products(
            x, norm, eps, weight, scales, weight, scales, row, row + HALF, within, n_in,
            IN, BITS, True, True, STAGES, OVERLAP, ROWS)
        if BIAS:
            added = tl.load(bias + row, mask=within, other=0.0).to(tl.float32)
            more = tl.load(bias + row + HALF, mask=within, other=0.0).to(tl.float32)
            a, b, c, d = a + added, b + more, c + added, d + more
        _turn_and_store(a, b, cos, sin, keys, values, tl.load(slots), query, heads, kv_heads,
                        tokens, head, i, D)
        if ROWS == 2:
            more = kv_heads * tokens * D
            _turn_and_store(c, d, cos + D, sin + D, keys + more, values + more,
                            tl.load(slots + 1), query + heads * D, heads, kv_heads, tokens, head,
                            i, D)

    @triton.jit
    def _turn_and_store(a, b, cos, sin, keys, values, at, query,  # type: ignore[no-untyped-def]
                        heads, kv_heads, tokens, head, i, D: tl.constexpr):
        """Rotate numbers that are half a head apart, and store them where they belong."""
        HALF: tl.constexpr = D // 2
        row, within, turns = head * D + i, head < heads + 2 * kv_heads, head < heads + kv_heads
        cos_a = tl.load(cos + i, mask=turns, other=1.0).to(tl.float32)
        sin_a = tl.load(sin + i, mask=turns, other=0.0).to(tl.float32)
        cos_b = tl.load(cos + i + HALF, mask=turns, other=1.0).to(tl.float32)
        sin_b = tl.load(sin + i + HALF, mask=turns, other=0.0).to(tl.float32)
        first = (a * cos_a - b * sin_a).to(query.dtype.element_ty)
        second = (b * cos_b + a * sin_b).to(query.dtype.element_ty)
        mine = head < heads
        tl.store(query + row, first, mask=mine)
        tl.store(query + row + HALF, second, mask=mine)
        to = ((head - heads) * tokens + at) * D + i
        mine = (head >= heads) & turns
        tl.store(keys + to, first, mask=mine)
        tl.store(keys + to + HALF, second, mask=mine)
        to -= kv_heads * tokens * D
        mine = within & (head >= heads + kv_heads)
        tl.store(values + to, first, mask=mine)
        tl.store(values + to + HALF, second, mask=mine)

    @triton.jit
    def _decode_attention_kernel(  # type: ignore[no-untyped-def]
            query, keys, values, mask, slots, sums, stats, done, out, scaling, tokens, group,
            kv_heads, D: tl.constexpr, DIM: tl.constexpr, TOKENS: tl.constexpr,
            PARTS: tl.constexpr, OVERLAP: tl.constexpr):
        """Attend with one head to some of the tokens; the program that is last joins the parts."""
        part, head = tl.program_id(0), tl.program_id(1)
        n_parts, n_heads = tl.num_programs(0), tl.num_programs(1)
        row = head // (group * kv_heads)   # the heads of one after those of another
        last = tl.load(slots + row)
        if part * TOKENS > last:
            return
        at, dims = part * TOKENS + tl.arange(0, TOKENS), tl.arange(0, DIM)
        here = (head // group).to(tl.int64) * tokens * D + dims
        inside = dims < D
        old = (at < last)[:, None] & inside[None, :]
        k = tl.load(keys + here[None, :] + at[:, None] * D, mask=old, other=0.0)
        v = tl.load(values + here[None, :] + at[:, None] * D, mask=old, other=0.0)
        added = tl.load(mask + row * tokens + at, mask=at <= last,
                        other=float('-inf')).to(tl.float32)
        wait_for_previous(OVERLAP)
        q = tl.load(query + head * D + dims, mask=inside, other=0.0).to(tl.float32) * scaling
        now = (at == last)[:, None]  # what the kernel before this one wrote
        k = tl.where(now, tl.load(keys + here + last * D, mask=inside, other=0.0)[None, :], k)
        v = tl.where(now, tl.load(values + here + last * D, mask=inside, other=0.0)[None, :], v)
        scores = tl.sum(k.to(tl.float32) * q[None, :], 1) + added
        top = tl.max(scores)
        weights = tl.exp(scores - top)
        tl.store(sums + (head * n_parts + part) * D + dims,
                 tl.sum(weights[:, None] * v.to(tl.float32), 0), mask=inside)
        tl.store(stats + head * n_parts + part, top)
        tl.store(stats + (n_heads + head) * n_parts + part, tl.sum(weights))
        tl.debug_barrier()
        if tl.atomic_add(done + head, 1) == last // TOKENS:
            tl.debug_barrier()
            parts = tl.arange(0, PARTS)
            there = parts <= last // TOKENS
            highest = tl.load(stats + head * n_parts + parts, mask=there, other=float('-inf'),
                              cache_modifier='.cg')
            totals = tl.load(stats + (n_heads + head) * n_parts + parts, mask=there, other=0.0,
                             cache_modifier='.cg')
            partial = tl.load(sums + (head * n_parts + parts)[:, None] * D + dims[None, :],
                              mask=there[:, None] & inside[None, :], other=0.0,
                              cache_modifier='.cg')
            shares = tl.exp(highest - tl.max(highest))
            result = tl.sum(shares[:, None] * partial, 0) / tl.sum(shares * totals)
            tl.store(out + head * D + dims, result.to(out.dtype.element_ty), mask=inside)
            tl.store(done + head, 0)

    @triton.jit
    def _norm_swiglu_kernel(  # type: ignore[no-untyped-def]
            x, norm, eps, gate, gate_scales, up, up_scales, out, n_out,
            n_in: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
            BITS: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr):
        rows = tl.program_id(0) * OUT + tl.arange(0, OUT)
        within = rows < n_out
        a, b, c, d = dot_products(
            x, norm, eps, gate, gate_scales, up, up_scales, rows, rows, within, n_in,
            IN, BITS, True, True, STAGES, OVERLAP, ROWS)
        tl.store(out + rows, (a * tl.sigmoid(a) * b).to(out.dtype.element_ty), mask=within)
        if ROWS == 2:
            tl.store(out + n_out + rows, (c * tl.sigmoid(c) * d).to(out.dtype.element_ty),
                     mask=within)

    @triton.jit
    def _linear_residual_kernel(  # type: ignore[no-untyped-def]
            x, weight, scales, residual, out, n_out, n_in: tl.constexpr,
            ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, BITS: tl.constexpr,
            STAGES: tl.constexpr, OVERLAP: tl.constexpr):
        rows = tl.program_id(0) * OUT + tl.arange(0, OUT)
        within = rows < n_out
        a, _, b, _ = dot_products(
            x, x, 0.0, weight, scales, weight, scales, rows, rows, within, n_in, IN,
            BITS, False, False, STAGES, OVERLAP, ROWS)
        a += tl.load(residual + rows, mask=within, other=0.0).to(tl.float32)
        tl.store(out + rows, a.to(out.dtype.element_ty), mask=within)
        if ROWS == 2:
            b += tl.load(residual + n_out + rows, mask=within, other=0.0).to(tl.float32)
            tl.store(out + n_out + rows, b.to(out.dtype.element_ty), mask=within)

    def _launch_norm_qkv_rope(x: torch.Tensor, norm: RMSNorm, weight: Weight,
                              bias: torch.Tensor | None, cos: torch.Tensor, sin: torch.Tensor,
                              cache: LayerKV) -> torch.Tensor:
        (rows, kv_heads, tokens, dim), n_out = cache.keys.shape, len(weight.values)
        query = x.new_empty((rows, n_out // dim - 2 * kv_heads, dim))
        tile = tile_shape(n_out // 2, weight, False, rows)   # few programs: all run at once
        _norm_qkv_rope_kernel[(triton.cdiv(n_out // 2, tile['OUT']),)](
            x, *norm, *weight_parts(weight), x if bias is None else bias, cos, sin, *cache, query,
            query.shape[1], kv_heads, tokens, weight.n_in, dim, bias is not None, rows,
            **tile, **launch_options(x))
        return query

    def _launch_decode_attention(query: torch.Tensor, cache: LayerKV, mask: torch.Tensor,
                                 scaling: float, scratch: AttentionScratch) -> torch.Tensor:
        (rows, heads, dim), (_, kv_heads, tokens, _) = query.shape, cache.keys.shape
        parts, out = scratch.sums.shape[1], torch.empty_like(query)
        _decode_attention_kernel[(parts, rows * heads)](
            query, cache.keys, cache.values, mask, cache.slots, *scratch, out, scaling, tokens,
            heads // kv_heads, kv_heads, dim, triton.next_power_of_2(dim), TOKENS,
            triton.next_power_of_2(parts), num_warps=WARPS, **launch_options(query))
        return out

    def _launch_norm_swiglu(x: torch.Tensor, norm: RMSNorm, gate: Weight,
                            up: Weight) -> torch.Tensor:
        n_out = len(gate.values)
        tile, out = tile_shape(n_out, gate, True, len(x)), x.new_empty((len(x), n_out))
        _norm_swiglu_kernel[(triton.cdiv(n_out, tile['OUT']),)](
            x, *norm, *weight_parts(gate), *weight_parts(up), out, n_out, gate.n_in,
            len(x), **tile, **launch_options(x))
        return out

    def _launch_linear_residual(x: torch.Tensor, weight: Weight,
                                residual: torch.Tensor) -> torch.Tensor:
        n_out = len(weight.values)
        tile, out = tile_shape(n_out, weight, False, len(x)), torch.empty_like(residual)
        _linear_residual_kernel[(triton.cdiv(n_out, tile['OUT']),)](
            x, *weight_parts(weight), residual, out, n_out, weight.n_in, len(x),
            **tile, **launch_options(x))
        return out
