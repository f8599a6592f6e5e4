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

Such a pass reads every weight once and computes next to nothing, so it should take what reading
takes. Compiled layers take a third longer than these: products read at two thirds of the
memory's speed, and between them small kernels wait for each other. Here a layer is five kernels,
with norm, bias, rotation and sum inside of them, and each reads its first weights while the one
before it still runs.

Sums are in fp32. Each part has a plain version, which runs on a CPU and is what the kernel is
tested against. Triton comes with torch's CUDA builds.
"""

from __future__ import annotations

from subprocess import SubprocessError
from typing import Any, NamedTuple

import torch
from torch.nn import functional

# What is raised where there is no C compiler, or a GPU is too small.
FAILURES: tuple[type[Exception], ...] = (RuntimeError, OSError, SubprocessError)
try:
    import triton
    from triton import language as tl
    FAILURES += triton.TritonError,
except ImportError:      # no CUDA build: the plain versions are all there is
    triton = None

LANES = 8192             # numbers of a weight that a program holds at once
WIDE = 2048              # most of them of one row
PROGRAMS = 264           # at least so many programs of a product, two for each multiprocessor
TOKENS = 64              # of the cache that a program of attention looks at
WARPS = 4


class Norm(NamedTuple):
    """Divides by the root mean square, and multiplies."""

    weight: torch.Tensor    # in
    eps: float


class Keys(NamedTuple):
    """What was seen so far, in one layer."""

    keys: torch.Tensor      # 1 x pairs x tokens x dim
    values: torch.Tensor    # 1 x pairs x tokens x dim
    where: torch.Tensor     # 1: the place of the present token


class Room(NamedTuple):
    """Where programs of attention leave what they found; ``done`` counts them, from nought."""

    sums: torch.Tensor      # heads x parts x dim, fp32
    tops: torch.Tensor      # 2 x heads x parts, fp32: greatest score, and sum of exponentials
    done: torch.Tensor      # heads, int32


def room(heads: int, tokens: int, dim: int, device: torch.device) -> Room:
    """Return room for attention to up to so many tokens."""
    parts = -(-tokens // TOKENS)
    return Room(torch.zeros((heads, parts, dim), device=device),
                torch.zeros((2, heads, parts), device=device),
                torch.zeros(heads, dtype=torch.int32, device=device))


def can_run(like: torch.Tensor) -> bool:
    """Return whether there is a way to compute with such a tensor."""
    return not like.is_cuda or triton is not None


def look_up(x: torch.Tensor, norm: Norm, weight: torch.Tensor, bias: torch.Tensor | None,
            cos: torch.Tensor, sin: torch.Tensor, seen: Keys) -> torch.Tensor:
    """
    Return the rotated query of one token, heads x dim; write its key and value to their place.

    ``x``: in; ``weight``: that of queries, keys and values, (heads + 2 pairs) dim x in;
    ``cos``, ``sin``: dim.
    """
    if x.is_cuda:
        return _run_look_up(x, norm, weight, bias, cos, sin, seen)
    (_, pairs, _, dim) = seen.keys.shape
    found = functional.linear(_plain_norm(x, norm), weight, bias).view(-1, dim)
    turned, values = found[:-pairs], found[-pairs:]
    first, second = turned.chunk(2, 1)
    turned = turned * cos + torch.cat([-second, first], 1) * sin
    seen.keys[0].index_copy_(1, seen.where, turned[-pairs:, None])
    seen.values[0].index_copy_(1, seen.where, values[:, None])
    return turned[:-pairs]


def attend(query: torch.Tensor, seen: Keys, mask: torch.Tensor, scaling: float,
           space: Room) -> torch.Tensor:
    """
    Return what one token sees up to itself, heads x dim.

    ``query``: heads x dim; ``mask``: tokens, which is added.
    """
    if query.is_cuda:
        return _run_attend(query, seen, mask, scaling, space)
    (heads, dim), pairs = query.shape, seen.keys.shape[1]
    scores = query.reshape(pairs, heads // pairs, dim) @ seen.keys[0].transpose(1, 2)
    weights = (scores * scaling + mask).float().softmax(-1).to(query.dtype)
    return (weights @ seen.values[0]).reshape(heads, dim)


def gated(x: torch.Tensor, norm: Norm, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(normed x gate) * (normed x up) for one token, in, and weights, out x in."""
    if x.is_cuda:
        return _run_gated(x, norm, gate, up)
    x = _plain_norm(x, norm)
    return functional.silu(functional.linear(x, gate)) * functional.linear(x, up)


def added(x: torch.Tensor, weight: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """Return one token, in, times a weight, out x in, plus what it is added to, out."""
    if x.is_cuda:
        return _run_added(x, weight, to)
    return to + functional.linear(x, weight)


def _plain_norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return functional.rms_norm(x.float(), x.shape[-1:], norm.weight.float(), norm.eps).to(x.dtype)


if triton is not None:
    @triton.jit
    def _begin(OVERLAP: tl.constexpr):  # type: ignore[no-untyped-def]
        """Wait for the kernel before this one; the next one may begin, and wait for this one."""
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()

    @triton.jit
    def _weights(at, rows, columns):  # type: ignore[no-untyped-def]
        """Read what is not read again in this pass; what is may stay in the cache."""
        return tl.load(at, mask=rows[:, None] & columns[None, :], other=0.0,
                       eviction_policy='evict_first')

    @triton.jit
    def _products(  # type: ignore[no-untyped-def]
            x, norm, eps, first, second, rows, others, within, n_in: tl.constexpr,
            IN: tl.constexpr, NORM: tl.constexpr, TWO: tl.constexpr, OVERLAP: tl.constexpr):
        """Return rows of one weight, and others of a second, times x; weights are read first."""
        columns = tl.arange(0, IN)
        at = rows.to(tl.int64)[:, None] * n_in + columns[None, :]
        to = others.to(tl.int64)[:, None] * n_in + columns[None, :]
        left = columns < n_in
        w = _weights(first + at, within, left)
        if TWO:
            v = _weights(second + to, within, left)
        if NORM:
            times = tl.load(norm + columns, mask=left, other=0.0).to(tl.float32)
        _begin(OVERLAP)
        part = tl.load(x + columns, mask=left, other=0.0).to(tl.float32)
        squares = part * part
        if NORM:
            part *= times
        sums = w.to(tl.float32) * part[None, :]
        more = sums
        if TWO:
            more = v.to(tl.float32) * part[None, :]
        for begin in tl.range(IN, n_in, IN, num_stages=3):
            left = (begin + columns) < n_in
            w = _weights(first + at + begin, within, left)
            if TWO:
                v = _weights(second + to + begin, within, left)
            part = tl.load(x + begin + columns, mask=left, other=0.0).to(tl.float32)
            if NORM:
                squares += part * part
                part *= tl.load(norm + begin + columns, mask=left, other=0.0).to(tl.float32)
            sums += w.to(tl.float32) * part[None, :]
            if TWO:
                more += v.to(tl.float32) * part[None, :]
        found, other = tl.sum(sums, 1), tl.sum(more, 1)
        if NORM:
            scale = tl.rsqrt(tl.sum(squares) / n_in + eps)
            found, other = found * scale, other * scale
        return found, other

    @triton.jit
    def _look_up(  # type: ignore[no-untyped-def]
            x, norm, eps, weight, bias, cos, sin, keys, values, where, query, heads, pairs, tokens,
            n_in: tl.constexpr, D: tl.constexpr, BIAS: tl.constexpr, OUT: tl.constexpr,
            IN: tl.constexpr, OVERLAP: tl.constexpr):
        """Compute two numbers, half a head apart, of each of OUT places: they turn together."""
        HALF: tl.constexpr = D // 2
        number = tl.program_id(0) * OUT + tl.arange(0, OUT)
        head, i = number // HALF, number % HALF
        row, within = head * D + i, head < heads + 2 * pairs
        turns = head < heads + pairs
        cos_a = tl.load(cos + i, mask=turns, other=1.0).to(tl.float32)
        sin_a = tl.load(sin + i, mask=turns, other=0.0).to(tl.float32)
        cos_b = tl.load(cos + i + HALF, mask=turns, other=1.0).to(tl.float32)
        sin_b = tl.load(sin + i + HALF, mask=turns, other=0.0).to(tl.float32)
        at = tl.load(where)
        a, b = _products(x, norm, eps, weight, weight, row, row + HALF, within, n_in, IN, True,
                         True, OVERLAP)
        if BIAS:
            a += tl.load(bias + row, mask=within, other=0.0).to(tl.float32)
            b += tl.load(bias + row + HALF, mask=within, other=0.0).to(tl.float32)
        first = (a * cos_a - b * sin_a).to(query.dtype.element_ty)
        second = (b * cos_b + a * sin_b).to(query.dtype.element_ty)
        mine = head < heads
        tl.store(query + row, first, mask=mine)
        tl.store(query + row + HALF, second, mask=mine)
        to = ((head - heads) * tokens + at) * D + i
        mine = (head >= heads) & turns
        tl.store(keys + to, first, mask=mine)
        tl.store(keys + to + HALF, second, mask=mine)
        to -= pairs * tokens * D
        mine = within & (head >= heads + pairs)
        tl.store(values + to, first, mask=mine)
        tl.store(values + to + HALF, second, mask=mine)

    @triton.jit
    def _attend(  # type: ignore[no-untyped-def]
            query, keys, values, mask, where, sums, tops, done, out, scaling, tokens, group,
            D: tl.constexpr, DIM: tl.constexpr, TOKENS: tl.constexpr, PARTS: tl.constexpr,
            OVERLAP: tl.constexpr):
        """One head looks at some of the tokens; the program that is last joins what was found."""
        part, head = tl.program_id(0), tl.program_id(1)
        n_parts, n_heads = tl.num_programs(0), tl.num_programs(1)
        last = tl.load(where)
        if part * TOKENS > last:
            return
        at, dims = part * TOKENS + tl.arange(0, TOKENS), tl.arange(0, DIM)
        here = (head // group).to(tl.int64) * tokens * D + dims
        inside = dims < D
        old = (at < last)[:, None] & inside[None, :]
        k = tl.load(keys + here[None, :] + at[:, None] * D, mask=old, other=0.0)
        v = tl.load(values + here[None, :] + at[:, None] * D, mask=old, other=0.0)
        added = tl.load(mask + at, mask=at <= last, other=float('-inf')).to(tl.float32)
        _begin(OVERLAP)
        q = tl.load(query + head * D + dims, mask=inside, other=0.0).to(tl.float32) * scaling
        now = (at == last)[:, None]  # what the kernel before this one wrote
        k = tl.where(now, tl.load(keys + here + last * D, mask=inside, other=0.0)[None, :], k)
        v = tl.where(now, tl.load(values + here + last * D, mask=inside, other=0.0)[None, :], v)
        scores = tl.sum(k.to(tl.float32) * q[None, :], 1) + added
        top = tl.max(scores)
        weights = tl.exp(scores - top)
        tl.store(sums + (head * n_parts + part) * D + dims,
                 tl.sum(weights[:, None] * v.to(tl.float32), 0), mask=inside)
        tl.store(tops + head * n_parts + part, top)
        tl.store(tops + (n_heads + head) * n_parts + part, tl.sum(weights))
        tl.debug_barrier()
        if tl.atomic_add(done + head, 1) == last // TOKENS:
            tl.debug_barrier()
            parts = tl.arange(0, PARTS)
            there = parts <= last // TOKENS
            highest = tl.load(tops + head * n_parts + parts, mask=there, other=float('-inf'),
                              cache_modifier='.cg')
            totals = tl.load(tops + (n_heads + head) * n_parts + parts, mask=there, other=0.0,
                             cache_modifier='.cg')
            found = tl.load(sums + (head * n_parts + parts)[:, None] * D + dims[None, :],
                            mask=there[:, None] & inside[None, :], other=0.0,
                            cache_modifier='.cg')
            shares = tl.exp(highest - tl.max(highest))
            seen = tl.sum(shares[:, None] * found, 0) / tl.sum(shares * totals)
            tl.store(out + head * D + dims, seen.to(out.dtype.element_ty), mask=inside)
            tl.store(done + head, 0)

    @triton.jit
    def _gated(  # type: ignore[no-untyped-def]
            x, norm, eps, gate, up, out, n_out, n_in: tl.constexpr, OUT: tl.constexpr,
            IN: tl.constexpr, OVERLAP: tl.constexpr):
        rows = tl.program_id(0) * OUT + tl.arange(0, OUT)
        within = rows < n_out
        a, b = _products(x, norm, eps, gate, up, rows, rows, within, n_in, IN, True, True, OVERLAP)
        tl.store(out + rows, (a * tl.sigmoid(a) * b).to(out.dtype.element_ty), mask=within)

    @triton.jit
    def _added(  # type: ignore[no-untyped-def]
            x, weight, to, out, n_out, n_in: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
            OVERLAP: tl.constexpr):
        rows = tl.program_id(0) * OUT + tl.arange(0, OUT)
        within = rows < n_out
        found, _ = _products(x, x, 0.0, weight, weight, rows, rows, within, n_in, IN, False, False,
                             OVERLAP)
        found += tl.load(to + rows, mask=within, other=0.0).to(tl.float32)
        tl.store(out + rows, found.to(out.dtype.element_ty), mask=within)

    def _options(like: torch.Tensor) -> dict[str, Any]:
        """Return how to run a kernel: on Hopper it begins while the one before it ends."""
        over = (torch.cuda.get_device_capability(like.device)[0] >= 9
                and hasattr(tl.extra.cuda, 'gdc_wait'))
        return {'OVERLAP': over, 'num_warps': WARPS, **({'launch_pdl': True} if over else {})}

    def _shape(n_out: int, n_in: int, lanes: int) -> dict[str, int]:
        """Return how many outputs a program computes, and how many inputs it reads at once."""
        wide = min(WIDE, triton.next_power_of_2(n_in))
        most = max(1, n_out // PROGRAMS)
        return {'OUT': min(lanes // wide, 1 << (most.bit_length() - 1)), 'IN': wide}

    def _run_look_up(x: torch.Tensor, norm: Norm, weight: torch.Tensor, bias: torch.Tensor | None,
                     cos: torch.Tensor, sin: torch.Tensor, seen: Keys) -> torch.Tensor:
        (_, pairs, tokens, dim), (n_out, n_in) = seen.keys.shape, weight.shape
        query = x.new_empty((n_out // dim - 2 * pairs, dim))
        shape = _shape(n_out // 2, n_in, LANES)  # few enough programs to run all at once
        _look_up[(triton.cdiv(n_out // 2, shape['OUT']),)](
            x, *norm, weight, weight if bias is None else bias, cos, sin, *seen, query, len(query),
            pairs, tokens, n_in, dim, bias is not None, **shape, **_options(x))
        return query

    def _run_attend(query: torch.Tensor, seen: Keys, mask: torch.Tensor, scaling: float,
                    space: Room) -> torch.Tensor:
        (heads, dim), (_, pairs, tokens, _) = query.shape, seen.keys.shape
        parts, out = space.sums.shape[1], torch.empty_like(query)
        _attend[(parts, heads)](
            query, seen.keys, seen.values, mask, seen.where, *space, out, scaling, tokens,
            heads // pairs, dim, triton.next_power_of_2(dim), TOKENS,
            triton.next_power_of_2(parts), **_options(query))
        return out

    def _run_gated(x: torch.Tensor, norm: Norm, gate: torch.Tensor, up: torch.Tensor,
                   ) -> torch.Tensor:
        n_out, n_in = gate.shape
        shape, out = _shape(n_out, n_in, LANES // 2), x.new_empty(n_out)
        _gated[(triton.cdiv(n_out, shape['OUT']),)](
            x, *norm, gate, up, out, n_out, n_in, **shape, **_options(x))
        return out

    def _run_added(x: torch.Tensor, weight: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        n_out, n_in = weight.shape
        shape, out = _shape(n_out, n_in, LANES), torch.empty_like(to)
        _added[(triton.cdiv(n_out, shape['OUT']),)](
            x, weight, to, out, n_out, n_in, **shape, **_options(x))
        return out
