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
Products of weights in 16, 8 or 4 bits and few vectors, as parts of kernels, and their tiles.

Reading weights is all that they should take; for two vectors (MAX_ROWS) they are read once.
Weights of few bits are not converted to floats, which is slow: their bits are put into those of
floats.
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
MAX_ROWS = 2             # vectors at once
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
    def _numbers_of_x(x, norm, column, left, NORM: tl.constexpr):  # type: ignore[no-untyped-def]
        """Return some numbers of a vector, multiplied by those of a norm, and their squares."""
        part = tl.load(x + column, mask=left, other=0.0).to(tl.float32)
        squares = part * part
        if NORM:
            part *= tl.load(norm + column, mask=left, other=0.0).to(tl.float32)
        return part, squares

    @triton.jit
    def _word_products(x, norm, w, v, words, low, high,  # type: ignore[no-untyped-def]
                       n_in: tl.constexpr, NORM: tl.constexpr, TWO: tl.constexpr,
                       ROWS: tl.constexpr):
        """
        Return words of two weights times x, rows x words each, and the squares of x.

        Then the same of the second row of x, where there is one.
        """
        left, first = words < n_in // 8, words // _WORDS * _GROUP + words % _WORDS
        zeros, nought = tl.zeros(w.shape, tl.float32), tl.zeros(words.shape, tl.float32)
        dots, other, squares, more = zeros, zeros, nought, nought
        dots_b, other_b, squares_b, more_b = zeros, zeros, nought, nought
        for k in tl.static_range(8):
            number, extra = _number(w, k, low, high)
            second = number
            if TWO:
                second, _ = _number(v, k, low, high)
            part, square = _numbers_of_x(x, norm, first + _WORDS * k, left, NORM)
            squares += square
            dots += number * part[None, :]
            more += (extra + 8) * part   # a weight is a number minus 8
            if TWO:
                other += second * part[None, :]
            if ROWS == 2:
                part, square = _numbers_of_x(x + n_in, norm, first + _WORDS * k, left, NORM)
                squares_b += square
                dots_b += number * part[None, :]
                more_b += (extra + 8) * part
                if TWO:
                    other_b += second * part[None, :]
        return (dots - more[None, :], other - more[None, :], squares,
                dots_b - more_b[None, :], other_b - more_b[None, :], squares_b)

    @triton.jit
    def _scaled(dots, other, squares, eps, n_in: tl.constexpr,  # type: ignore[no-untyped-def]
                NORM: tl.constexpr):
        """Return sums over inputs, of a normed x where there is a norm."""
        first, second = tl.sum(dots, 1), tl.sum(other, 1)
        if NORM:
            scale = tl.rsqrt(tl.sum(squares) / n_in + eps)
            first, second = first * scale, second * scale
        return first, second

    @triton.jit
    def _dot_products_of_words(  # type: ignore[no-untyped-def]
            x, norm, eps, first, scales, second, more_scales, rows, others, within, low, high,
            n_in: tl.constexpr, IN: tl.constexpr, NORM: tl.constexpr, TWO: tl.constexpr,
            STAGES: tl.constexpr, OVERLAP: tl.constexpr, ROWS: tl.constexpr):
        """Return what `dot_products` does, of weights in 4 bits."""
        WORDS: tl.constexpr = IN // 8
        words = tl.arange(0, WORDS)
        w, s = _load_words(first, scales, rows, words, within, n_in)
        v, t = w, s
        if TWO:
            v, t = _load_words(second, more_scales, others, words, within, n_in)
        wait_for_previous(OVERLAP)
        dots, other, squares, dots_b, other_b, squares_b = _word_products(
            x, norm, w, v, words, low, high, n_in, NORM, TWO, ROWS)
        sums, more, sums_b, more_b = dots * s, other * t, dots_b * s, other_b * t
        for begin in tl.range(WORDS, n_in // 8, WORDS, num_stages=STAGES):
            here = begin + words
            w, s = _load_words(first, scales, rows, here, within, n_in)
            v, t = w, s
            if TWO:
                v, t = _load_words(second, more_scales, others, here, within, n_in)
            dots, other, part, dots_b, other_b, part_b = _word_products(
                x, norm, w, v, here, low, high, n_in, NORM, TWO, ROWS)
            sums += dots * s
            squares += part
            if TWO:
                more += other * t
            if ROWS == 2:
                sums_b += dots_b * s
                squares_b += part_b
                if TWO:
                    more_b += other_b * t
        a, b = _scaled(sums, more, squares, eps, n_in, NORM)
        c, d = _scaled(sums_b, more_b, squares_b, eps, n_in, NORM)
        return a, b, c, d

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
    def _number_products(x, norm, w, v, columns, left,  # type: ignore[no-untyped-def]
                         BITS: tl.constexpr, NORM: tl.constexpr, TWO: tl.constexpr):
        """Return numbers of two weights times x, rows x columns each, and the squares of x."""
        part, squares = _numbers_of_x(x, norm, columns, left, NORM)
        dots = _float(w, BITS) * part[None, :]
        other = dots
        if TWO:
            other = _float(v, BITS) * part[None, :]
        return dots, other, squares

    @triton.jit
    def _dot_products_of_numbers(  # type: ignore[no-untyped-def]
            x, norm, eps, first, scales, second, more_scales, rows, others, within,
            n_in: tl.constexpr, IN: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr,
            TWO: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr, ROWS: tl.constexpr):
        """Return what `dot_products` does, of plain weights, or in 8 bits."""
        columns = tl.arange(0, IN)
        at = rows.to(tl.int64)[:, None] * n_in + columns[None, :]
        to = others.to(tl.int64)[:, None] * n_in + columns[None, :]
        left = columns < n_in
        w = _load_weights(first + at, within, left)
        v = w
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
        sums_b, more_b, squares_b = sums, more, squares
        if ROWS == 2:
            sums_b, more_b, squares_b = _number_products(x + n_in, norm, w, v, columns, left, BITS,
                                                         NORM, TWO)
        for begin in tl.range(IN, n_in, IN, num_stages=STAGES):
            here = begin + columns
            left = here < n_in
            w = _load_weights(first + at + begin, within, left)
            if TWO:
                v = _load_weights(second + to + begin, within, left)
            dots, other, part = _number_products(x, norm, w, v, here, left, BITS, NORM, TWO)
            sums, more, squares = sums + dots, more + other, squares + part
            if ROWS == 2:
                dots, other, part = _number_products(x + n_in, norm, w, v, here, left, BITS, NORM,
                                                     TWO)
                sums_b, more_b, squares_b = sums_b + dots, more_b + other, squares_b + part
        a, b = _scaled(sums, more, squares, eps, n_in, NORM)
        c, d = _scaled(sums_b, more_b, squares_b, eps, n_in, NORM)
        if BITS == 8:
            scale = tl.load(scales + rows, mask=within, other=0.0).to(tl.float32)
            other_scale = tl.load(more_scales + others, mask=within, other=0.0).to(tl.float32)
            a, b, c, d = a * scale, b * other_scale, c * scale, d * other_scale
        return a, b, c, d

    @triton.jit
    def dot_products(  # type: ignore[no-untyped-def]
            x, norm, eps, first, scales, second, more_scales, rows, others, within, low, high,
            n_in: tl.constexpr, IN: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr,
            TWO: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr, ROWS: tl.constexpr):
        """
        Return rows of one weight, and others of a second, times x; weights are read first.

        Then the same of the second row of x, where there is one (ROWS).
        """
        if BITS == 4:
            return _dot_products_of_words(x, norm, eps, first, scales, second, more_scales, rows,
                                          others, within, low, high, n_in, IN, NORM, TWO, STAGES,
                                          OVERLAP, ROWS)
        else:  # noqa: RET505 (of two returns one is compiled)
            return _dot_products_of_numbers(x, norm, eps, first, scales, second, more_scales, rows,
                                            others, within, n_in, IN, BITS, NORM, TWO,
                                            STAGES, OVERLAP, ROWS)

    def launch_options(like: torch.Tensor) -> dict[str, bool | int]:
        """Return how to run a kernel: on Hopper it begins while the one before it ends."""
        overlap = (like.is_cuda and torch.cuda.get_device_capability(like.device)[0] >= 9
                   and hasattr(tl.extra.cuda, 'gdc_wait'))
        return {'OVERLAP': overlap, **({'launch_pdl': True} if overlap else {})}

    def tile_shape(n_out: int, weight: Weight, two: bool) -> dict[str, int]:
        """
        Return how many outputs a program computes, and how many inputs it reads at once.

        Found by trying, on an H100, with the shapes of Qwen2.5-VL-3B; for two rows smaller tiles
        were no better.
        """
        most = 1 << (max(1, n_out // MIN_PROGRAMS).bit_length() - 1)
        width = triton.next_power_of_2(weight.n_in)
        if weight.bits == 4:
            outputs, width = min(FEW_ROWS, most), max(WARP_WIDTH, min(width, WARPS * WARP_WIDTH))
            if n_out > 8 * outputs * MIN_PROGRAMS:
                width = max(WARP_WIDTH, width // 2)
            return {'OUT': outputs, 'IN': width, 'BITS': 4, 'STAGES': 1,
                    'num_warps': width // WARP_WIDTH}
        width = min(MAX_TILE_WIDTH, width)
        return {'OUT': min(MAX_TILE[weight.bits] // (1 + two) // width, most), 'IN': width,
                'BITS': weight.bits, 'STAGES': 3, 'num_warps': WARPS}

    def weight_parts(weight: Weight) -> tuple[torch.Tensor, torch.Tensor]:
        """Return numbers and scales; where there are none, what is not read."""
        return weight.values, weight.values if weight.scales is None else weight.scales
