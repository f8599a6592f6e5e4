# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
What the compiler does not make fast enough in passes of one token, as a kernel for NVIDIA GPUs.

Such a pass reads every weight once, so it takes what reading takes, and most weights are those of
the MLPs. Compiled code reads them at two thirds of the memory's speed, now and then more, by how
its tuning turns out; here they are read at nine tenths. Each operation has a plain version, which
runs on a CPU and is what it is tested against. Triton comes with torch's CUDA builds.
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
WARPS = 4


def _plain_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, weight)


def _plain_gated(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return functional.silu(functional.linear(x, gate)) * functional.linear(x, up)


@torch.library.custom_op('spotvlm::product', mutates_args=())
def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return one token, ... x in, times a weight, out x in."""
    return _plain_product(x, weight)


@torch.library.custom_op('spotvlm::gated', mutates_args=())
def gated(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(x gate) * (x up) for one token, ... x in, and two weights, out x in."""
    return _plain_gated(x, gate, up)


@product.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@gated.register_fake
def _(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], gate.shape[0]))


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
