# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
What the compiler does not make fast enough in passes of one token, as kernels for NVIDIA GPUs.

Such a pass reads every weight once, so it takes what reading takes. Two things keep the compiled
code from that: its long sums reach two thirds of the memory's speed, and attention is four kernels
of little work. Each operation has a plain version, which runs on a CPU and is what it is tested
against; the kernels are written in Triton, which comes with torch's CUDA builds.
"""

from __future__ import annotations

import torch
from torch.nn import functional

try:
    import triton
    from triton import language as tl
except ImportError:      # no CUDA build: the plain versions are all there is
    triton = None

LANES = 8192             # numbers that a program of a product holds at once
PROGRAMS = 264           # at least so many programs, two for each multiprocessor
TOKENS = 128             # that a program of attention reads at once
WARPS = 8


def _plain_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight)


def _plain_gated(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return functional.silu(functional.linear(x, gate)) * functional.linear(x, up)


def _plain_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
                     added: torch.Tensor, scaling: float) -> torch.Tensor:
    (_, heads, _, dim), pairs = query.shape, keys.shape[1]
    scores = query.reshape(pairs, heads // pairs, dim) @ keys[0].transpose(1, 2)
    weights = (scores * scaling + added).float().softmax(-1).to(query.dtype)
    return (weights @ values[0]).reshape(1, 1, heads, dim)


@torch.library.custom_op('spotvlm::product', mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return one token, ... x in, times a weight, out x in."""
    return _plain_product(x, weight)


@torch.library.custom_op('spotvlm::gated', mutates_args=())
def gated(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(x gate) * (x up) for one token, ... x in, and two weights, out x in."""
    return _plain_gated(x, gate, up)


@torch.library.custom_op('spotvlm::attention', mutates_args=())
def attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, added: torch.Tensor,
              scaling: float) -> torch.Tensor:
    """
    Return the attention of one token, 1 x 1 x heads x dim.

    ``query``: 1 x heads x 1 x dim; ``keys``, ``values``: 1 x pairs x tokens x dim; ``added`` to
    the scores: one number per token.
    """
    return _plain_attention(query, keys, values, added, scaling)


@product.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@gated.register_fake
def _(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], gate.shape[0]))


@attention.register_fake
def _(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, added: torch.Tensor,
      scaling: float) -> torch.Tensor:
    return query.new_empty((1, 1, query.shape[1], query.shape[3]))


if triton is not None:
    @triton.jit
    def _products(  # type: ignore[no-untyped-def]
            x, gate, up, out, n_out, n_in: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
            GATED: tl.constexpr, OVERLAP: tl.constexpr):
        """OUT rows of one or two weights times x; the first reads come before x is there."""
        rows = tl.program_id(0) * OUT + tl.arange(0, OUT)
        columns = tl.arange(0, IN)
        inside = (rows < n_out)[:, None]
        at = rows.to(tl.int64)[:, None] * n_in + columns[None, :]
        w = tl.load(gate + at, mask=inside & (columns < n_in)[None, :], other=0.0)
        if GATED:
            v = tl.load(up + at, mask=inside & (columns < n_in)[None, :], other=0.0)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        part = tl.load(x + columns, mask=columns < n_in, other=0.0).to(tl.float32)[None, :]
        sums = w.to(tl.float32) * part
        if GATED:
            others = v.to(tl.float32) * part
        for begin in tl.range(IN, n_in, IN):
            left = (begin + columns) < n_in
            part = tl.load(x + begin + columns, mask=left, other=0.0).to(tl.float32)[None, :]
            w = tl.load(gate + at + begin, mask=inside & left[None, :], other=0.0)
            sums += w.to(tl.float32) * part
            if GATED:
                v = tl.load(up + at + begin, mask=inside & left[None, :], other=0.0)
                others += v.to(tl.float32) * part
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
        found = tl.sum(sums, 1)
        if GATED:
            found = found * tl.sigmoid(found) * tl.sum(others, 1)
        tl.store(out + rows, found.to(out.dtype.element_ty), mask=rows < n_out)

    @triton.jit
    def _attend(  # type: ignore[no-untyped-def]
            query, keys, values, added, out, scaling, tokens: tl.constexpr, GROUP: tl.constexpr,
            DIM: tl.constexpr, TOKENS: tl.constexpr, OVERLAP: tl.constexpr):
        """One head; tokens that nobody sees are not read."""
        head = tl.program_id(0)
        places = tl.arange(0, DIM)
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
        q = tl.load(query + head * DIM + places).to(tl.float32) * scaling
        begin_at = (head // GROUP).to(tl.int64) * tokens * DIM
        top = -1e30
        total = 0.0
        seen = tl.zeros((DIM,), tl.float32)
        for begin in tl.range(0, tokens, TOKENS):
            t = begin + tl.arange(0, TOKENS)
            more = tl.load(added + t, mask=t < tokens, other=-1e30).to(tl.float32)
            if tl.max(more, 0) > -1e30:
                at = begin_at + t[:, None] * DIM + places[None, :]
                k = tl.load(keys + at, mask=(t < tokens)[:, None], other=0.0).to(tl.float32)
                v = tl.load(values + at, mask=(t < tokens)[:, None], other=0.0).to(tl.float32)
                scores = tl.sum(k * q[None, :], 1) + more
                higher = tl.maximum(top, tl.max(scores, 0))
                weights = tl.exp(scores - higher)
                kept = tl.exp(top - higher)
                total = total * kept + tl.sum(weights, 0)
                seen = seen * kept + tl.sum(weights[:, None] * v, 0)
                top = higher
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
        tl.store(out + head * DIM + places, (seen / total).to(out.dtype.element_ty))

    def _overlaps(like: torch.Tensor) -> bool:
        """Return whether a kernel may begin while the one before it ends (Hopper)."""
        return (torch.cuda.get_device_capability(like.device)[0] >= 9
                and hasattr(tl.extra.cuda, 'gdc_wait'))

    def _run_products(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, two: bool,
                      ) -> torch.Tensor:
        n_out, n_in = gate.shape
        out = x.new_empty((*x.shape[:-1], n_out))
        lanes = min(2048, triton.next_power_of_2(n_in))
        most = max(1, n_out // PROGRAMS)
        rows = min(LANES // lanes // (2 if two else 1), 1 << (most.bit_length() - 1))
        over = _overlaps(x)
        _products[(triton.cdiv(n_out, rows),)](
            x, gate, up, out, n_out, n_in, rows, lanes, two, over, num_warps=WARPS,
            **({'launch_pdl': True} if over else {}))
        return out

    @product.register_kernel('cuda')
    def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return _run_products(x.contiguous(), weight, weight, False)

    @gated.register_kernel('cuda')
    def _(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return _run_products(x.contiguous(), gate, up, True)

    @attention.register_kernel('cuda')
    def _(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, added: torch.Tensor,
          scaling: float) -> torch.Tensor:
        (_, heads, _, dim), (_, pairs, tokens, _) = query.shape, keys.shape
        if dim & (dim - 1) or not (keys.is_contiguous() and values.is_contiguous()):
            return _plain_attention(query, keys, values, added, scaling)
        out = query.new_empty((1, 1, heads, dim))
        over = _overlaps(query)
        _attend[(heads,)](query.contiguous(), keys, values, added.contiguous(), out, scaling,
                          tokens, heads // pairs, dim, TOKENS, over, num_warps=WARPS,
                          **({'launch_pdl': True} if over else {}))
        return out
