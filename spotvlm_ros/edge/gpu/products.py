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
Products of weights in 16, 8 or 4 bits and one vector, as parts of kernels, and their tiles.

Reading weights is all that they should take. Weights of few bits are not converted to floats,
which is slow: their bits are put into those of floats.
"""

from __future__ import annotations

from subprocess import SubprocessError

import torch

from ..quantised import GROUP, Weight, WORDS

# What is raised where there is no C compiler, or a GPU is too small.
FAILURES: tuple[type[Exception], ...] = (RuntimeError, OSError, SubprocessError)
try:
    import triton
    from triton import language as tl
    FAILURES += triton.TritonError,
except ImportError:      # no CUDA build: the plain versions are all there is
    triton = None

MAX_TILE = {16: 8192, 8: 16384}   # numbers of a weight that a program holds, by bits
MAX_TILE_WIDTH = 2048    # most of them of one row
FEW_ROWS, WARP_WIDTH = 4, 1024    # of weights in 4 bits: rows, and numbers of each for a warp
MIN_PROGRAMS = 264       # of a product: two for each of the 132 multiprocessors of an H100
WARPS = 4
LOW, HIGH = 0x45000000, 0x43000000   # 2048 and 128 as floats; no constants, which cost a LOP3


if triton is not None:
    @triton.jit
    def wait_for_previous(OVERLAP: tl.constexpr):  # type: ignore[no-untyped-def]
        """Wait for the kernel before this one; the next one may begin, and wait for this one."""
        if OVERLAP:
            tl.extra.cuda.gdc_wait()
            tl.extra.cuda.gdc_launch_dependents()

    @triton.jit
    def _load_weights(at, rows, columns):  # type: ignore[no-untyped-def]
        """Read what is not read again in this pass; what is may stay in the cache."""
        return tl.load(at, mask=rows[:, None] & columns[None, :], other=0,
                       eviction_policy='evict_first')

    _GROUP, _WORDS = tl.constexpr(GROUP), tl.constexpr(WORDS)

    @triton.jit
    def _load_words(values, scales, rows, words, within,  # type: ignore[no-untyped-def]
                    n_in: tl.constexpr):
        """Return words, rows x words, and the scale of each."""
        there = within[:, None] & (words < n_in // 8)[None, :]
        at = rows.to(tl.int64)[:, None]
        return (tl.load(values + at * (n_in // 8) + words[None, :], mask=there, other=0,
                        eviction_policy='evict_first'),
                tl.load(scales + at * (n_in // _GROUP) + words[None, :] // _WORDS, mask=there,
                        other=0.0).to(tl.float32))

    @triton.jit
    def _number(words, k: tl.constexpr, low, high):  # type: ignore[no-untyped-def]
        """
        Return the k-th number of each word and what it is too much, 2048 or 128.

        There is no conversion, which is slow: the bits of a number become bits 12 or 16 and on of
        a float that is 2048 or 128 without them. Words are shifted for half of them.
        """
        LOW: tl.constexpr = k == 0 or k == 1 or k == 3 or k == 5
        TO: tl.constexpr = 12 if LOW else 16
        if 4 * k >= TO:
            moved = words >> (4 * k - TO)
        else:
            moved = words << (TO - 4 * k)
        if LOW:
            return ((moved & 0xF000) | low).to(tl.float32, bitcast=True), 2048.0
        else:  # noqa: RET505 (of two returns one is compiled)
            return ((moved & 0xF0000) | high).to(tl.float32, bitcast=True), 128.0

    @triton.jit
    def _word_products(x, norm, w, v, words, low, high,  # type: ignore[no-untyped-def]
                       n_in: tl.constexpr, NORM: tl.constexpr, TWO: tl.constexpr):
        """Return words of two weights times x, rows x words each, and the squares of x."""
        left, first = words < n_in // 8, words // _WORDS * _GROUP + words % _WORDS
        dots = tl.zeros(w.shape, tl.float32)
        other = tl.zeros(w.shape, tl.float32)
        squares = tl.zeros(words.shape, tl.float32)
        more = tl.zeros(words.shape, tl.float32)
        for k in tl.static_range(8):
            column = first + _WORDS * k
            part = tl.load(x + column, mask=left, other=0.0).to(tl.float32)
            if NORM:
                squares += part * part
                part *= tl.load(norm + column, mask=left, other=0.0).to(tl.float32)
            number, extra = _number(w, k, low, high)
            dots += number * part[None, :]
            more += (extra + 8) * part   # a weight is a number minus 8
            if TWO:
                number, _ = _number(v, k, low, high)
                other += number * part[None, :]
        return dots - more[None, :], other - more[None, :], squares

    @triton.jit
    def _dot_products_of_words(  # type: ignore[no-untyped-def]
            x, norm, eps, first, scales, second, more_scales, rows, others, within, low, high,
            n_in: tl.constexpr, IN: tl.constexpr, NORM: tl.constexpr, TWO: tl.constexpr,
            STAGES: tl.constexpr, OVERLAP: tl.constexpr):
        """Return what `dot_products` does, of weights in 4 bits."""
        WORDS: tl.constexpr = IN // 8
        words = tl.arange(0, WORDS)
        w, s = _load_words(first, scales, rows, words, within, n_in)
        v, t = w, s
        if TWO:
            v, t = _load_words(second, more_scales, others, words, within, n_in)
        wait_for_previous(OVERLAP)
        dots, other, squares = _word_products(x, norm, w, v, words, low, high, n_in, NORM, TWO)
        sums, more = dots * s, other * t
        for begin in tl.range(WORDS, n_in // 8, WORDS, num_stages=STAGES):
            here = begin + words
            w, s = _load_words(first, scales, rows, here, within, n_in)
            v, t = w, s
            if TWO:
                v, t = _load_words(second, more_scales, others, here, within, n_in)
            dots, other, part = _word_products(x, norm, w, v, here, low, high, n_in, NORM, TWO)
            sums += dots * s
            if TWO:
                more += other * t
            squares += part
        first_dots, second_dots = tl.sum(sums, 1), tl.sum(more, 1)
        if NORM:
            scale = tl.rsqrt(tl.sum(squares) / n_in + eps)
            first_dots, second_dots = first_dots * scale, second_dots * scale
        return first_dots, second_dots

    @triton.jit
    def _float(weights, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
        """Return weights as floats; a byte becomes the end of one, for to convert it is slow."""
        if BITS != 8:
            return weights.to(tl.float32)
        return tl.inline_asm_elementwise(
            """{ .reg .b32 t, f;
            xor.b32 t, $4, 0x80808080;
            prmt.b32 f, t, 0x4B000000, 0x7540; add.f32 $0, f, 0fCB000080;
            prmt.b32 f, t, 0x4B000000, 0x7541; add.f32 $1, f, 0fCB000080;
            prmt.b32 f, t, 0x4B000000, 0x7542; add.f32 $2, f, 0fCB000080;
            prmt.b32 f, t, 0x4B000000, 0x7543; add.f32 $3, f, 0fCB000080; }""",
            '=r,=r,=r,=r,r', [weights], dtype=tl.float32, is_pure=True, pack=4)

    @triton.jit
    def _dot_products_of_numbers(  # type: ignore[no-untyped-def]
            x, norm, eps, first, scales, second, more_scales, rows, others, within,
            n_in: tl.constexpr, IN: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr,
            TWO: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr):
        """Return what `dot_products` does, of plain weights, or in 8 bits."""
        columns = tl.arange(0, IN)
        at = rows.to(tl.int64)[:, None] * n_in + columns[None, :]
        to = others.to(tl.int64)[:, None] * n_in + columns[None, :]
        left = columns < n_in
        w = _load_weights(first + at, within, left)
        if TWO:
            v = _load_weights(second + to, within, left)
        if NORM:
            times = tl.load(norm + columns, mask=left, other=0.0).to(tl.float32)
        wait_for_previous(OVERLAP)
        part = tl.load(x + columns, mask=left, other=0.0).to(tl.float32)
        squares = part * part
        if NORM:
            part *= times
        sums = _float(w, BITS) * part[None, :]
        more = sums
        if TWO:
            more = _float(v, BITS) * part[None, :]
        for begin in tl.range(IN, n_in, IN, num_stages=STAGES):
            left = (begin + columns) < n_in
            w = _load_weights(first + at + begin, within, left)
            if TWO:
                v = _load_weights(second + to + begin, within, left)
            part = tl.load(x + begin + columns, mask=left, other=0.0).to(tl.float32)
            if NORM:
                squares += part * part
                part *= tl.load(norm + begin + columns, mask=left, other=0.0).to(tl.float32)
            sums += _float(w, BITS) * part[None, :]
            if TWO:
                more += _float(v, BITS) * part[None, :]
        dots, other = tl.sum(sums, 1), tl.sum(more, 1)
        if BITS == 8:
            dots *= tl.load(scales + rows, mask=within, other=0.0).to(tl.float32)
            other *= tl.load(more_scales + others, mask=within, other=0.0).to(tl.float32)
        if NORM:
            scale = tl.rsqrt(tl.sum(squares) / n_in + eps)
            dots, other = dots * scale, other * scale
        return dots, other

    @triton.jit
    def dot_products(  # type: ignore[no-untyped-def]
            x, norm, eps, first, scales, second, more_scales, rows, others, within, low, high,
            n_in: tl.constexpr, IN: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr,
            TWO: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr):
        """Return rows of one weight, and others of a second, times x; weights are read first."""
        if BITS == 4:
            return _dot_products_of_words(x, norm, eps, first, scales, second, more_scales, rows,
                                          others, within, low, high, n_in, IN, NORM, TWO, STAGES,
                                          OVERLAP)
        else:  # noqa: RET505 (of two returns one is compiled)
            return _dot_products_of_numbers(x, norm, eps, first, scales, second, more_scales, rows,
                                            others, within, n_in, IN, BITS, NORM, TWO,
                                            STAGES, OVERLAP)

    def launch_options(like: torch.Tensor) -> dict[str, bool | int]:
        """Return how to run a kernel: on Hopper it begins while the one before it ends."""
        overlap = (like.is_cuda and torch.cuda.get_device_capability(like.device)[0] >= 9
                   and hasattr(tl.extra.cuda, 'gdc_wait'))
        return {'OVERLAP': overlap, **({'launch_pdl': True} if overlap else {})}

    def tile_shape(n_out: int, weight: Weight, two: bool) -> dict[str, int]:
        """
        Return how many outputs a program computes, and how many inputs it reads at once.

        Found by trying, on an H100, with the shapes of Qwen2.5-VL-3B.
        """
        most = 1 << (max(1, n_out // MIN_PROGRAMS).bit_length() - 1)
        width = triton.next_power_of_2(weight.n_in)
        if weight.bits == 4:
            rows, width = min(FEW_ROWS, most), max(WARP_WIDTH, min(width, WARPS * WARP_WIDTH))
            if n_out > 8 * rows * MIN_PROGRAMS:
                width = max(WARP_WIDTH, width // 2)
            return {'OUT': rows, 'IN': width, 'BITS': 4, 'STAGES': 1,
                    'num_warps': width // WARP_WIDTH}
        width = min(MAX_TILE_WIDTH, width)
        return {'OUT': min(MAX_TILE[weight.bits] // (1 + two) // width, most), 'IN': width,
                'BITS': weight.bits, 'STAGES': 3, 'num_warps': WARPS}

    def weight_parts(weight: Weight) -> tuple[torch.Tensor, torch.Tensor]:
        """Return numbers and scales; where there are none, what is not read."""
        return weight.values, weight.values if weight.scales is None else weight.scales
