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
Weights of few bits are not converted to floats, which is slow: the vectors are written in 15 bits,
each 32 or 16 numbers with a scale of their own (more exact than bfloat16 is), and bytes are
multiplied and added four at a time.
"""

from __future__ import annotations

from subprocess import SubprocessError

import torch

from ..quantised import Weight

# What is raised where there is no C compiler, or a GPU is too small.
FAILURES: tuple[type[Exception], ...] = (RuntimeError, OSError, SubprocessError)
try:
    import triton
    from triton import language as tl
    FAILURES += triton.TritonError,
except ImportError:      # no CUDA build: the plain versions are all there is
    triton = None

MAX_TILE = 8192          # numbers of a weight that a program holds
MAX_TILE_WIDTH = 2048    # most of them of one row
FEW_OUTPUTS, MAX_FEW_WIDTH = 4, 4096   # the same of weights in 8 or 4 bits
MIN_PROGRAMS = 264       # of a product: two for each of the 132 multiprocessors of an H100
WARPS = 4
MAX_ROWS = 2             # vectors at once


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
    def _packed_bytes(numbers, GROUPS: tl.constexpr,  # type: ignore[no-untyped-def]
                      BITS: tl.constexpr):
        """
        Return numbers of 8 bits, groups x 32 or 16, as words, groups x 4, in the order of weights.

        Weights of 4 bits are two to a byte: first those that go with the low ones.
        """
        if BITS == 4:
            words = _words_of_bytes(tl.reshape(numbers, (GROUPS, 8, 4)))
            return tl.split(tl.reshape(words, (GROUPS, 4, 2)))
        else:  # noqa: RET505 (of two returns one is compiled)
            words = _words_of_bytes(tl.reshape(numbers, (GROUPS, 4, 4)))
            return words, words

    @triton.jit
    def _words_of_bytes(numbers):  # type: ignore[no-untyped-def]
        return tl.sum((numbers & 255) << (8 * tl.arange(0, 4))[None, None, :], 2)

    @triton.jit
    def _bytes_of_x(x, norm, begin, n_in: tl.constexpr,  # type: ignore[no-untyped-def]
                    GROUPS: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr):
        """
        Return groups of a vector, times a norm, in 15 bits: 128 times bytes, and bytes more.

        Then what one is in each group, the sum of each, and of its squares without the norm.
        """
        SIZE: tl.constexpr = 4 * (32 // BITS)
        at = (begin + tl.arange(0, GROUPS))[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
        left = at < n_in
        part = tl.load(x + at, mask=left, other=0.0).to(tl.float32)
        squares = tl.sum(part * part, 1)
        if NORM:
            part *= tl.load(norm + at, mask=left, other=0.0).to(tl.float32)
        most = tl.maximum(tl.max(tl.abs(part), 1), 1e-30)
        whole = tl.floor(part * (16256.0 / most)[:, None] + 0.5).to(tl.int32)
        high = (whole + 64) >> 7
        a, b = _packed_bytes(high, GROUPS, BITS)
        c, d = _packed_bytes(whole - (high << 7), GROUPS, BITS)
        return a, b, c, d, most / 16256.0, tl.sum(whole, 1), squares

    @triton.jit
    def _add_products(words, by, total, SIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
        """Return the total and the products of four bytes; those of x are signed."""
        if SIGNED:
            return tl.inline_asm_elementwise('dp4a.s32.s32 $0, $1, $2, $3;', '=r,r,r,r',
                                             [words, by, total], tl.int32, True, 1)
        else:  # noqa: RET505 (of two returns one is compiled)
            return tl.inline_asm_elementwise('dp4a.u32.s32 $0, $1, $2, $3;', '=r,r,r,r',
                                             [words, by, total], tl.int32, True, 1)

    @triton.jit
    def _group_sums(words, scale, a, b, c, d, one, total,  # type: ignore[no-untyped-def]
                    BITS: tl.constexpr):
        """Return weights, rows x groups x 4 words, times groups of a vector, rows x groups."""
        zero = tl.zeros(words.shape, tl.int32)
        if BITS == 4:
            even, odd = words & 0x0F0F0F0F, (words >> 4) & 0x0F0F0F0F
            high = _add_products(even, a[None, :, :], zero, False)
            high = _add_products(odd, b[None, :, :], high, False)
            low = _add_products(even, c[None, :, :], zero, False)
            low = _add_products(odd, d[None, :, :], low, False)
            sums = tl.sum(high, 2) * 128 + tl.sum(low, 2) - 8 * total[None, :]   # 8 too much
            return sums.to(tl.float32) * (one[None, :] * scale)
        else:  # noqa: RET505 (of two returns one is compiled)
            high = _add_products(words, a[None, :, :], zero, True)
            low = _add_products(words, c[None, :, :], zero, True)
            return (tl.sum(high, 2) * 128 + tl.sum(low, 2)).to(tl.float32) * one[None, :]

    @triton.jit
    def _load_words(values, scales, rows, group, within,  # type: ignore[no-untyped-def]
                    n_in: tl.constexpr, BITS: tl.constexpr):
        """Return words, rows x groups x 4, and in 4 bits the scale of each group."""
        GROUPS: tl.constexpr = n_in // (4 * (32 // BITS))
        there = within[:, None] & (group < GROUPS)[None, :]
        at = rows.to(tl.int64)[:, None] * GROUPS + group[None, :]
        words = tl.load(values + (at * 4)[:, :, None] + tl.arange(0, 4)[None, None, :],
                        mask=there[:, :, None], other=0, eviction_policy='evict_first')
        if BITS == 4:
            return words, tl.load(scales + at, mask=there, other=0.0).to(tl.float32)
        else:  # noqa: RET505 (of two returns one is compiled)
            return words, 1.0

    @triton.jit
    def _dot_products_of_words(  # type: ignore[no-untyped-def]
            x, norm, eps, first, scales, second, more_scales, rows, others, within,
            n_in: tl.constexpr, IN: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr,
            TWO: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr, ROWS: tl.constexpr):
        """Return what `dot_products` does, of weights in 8 or 4 bits."""
        SIZE: tl.constexpr = 4 * (32 // BITS)
        GROUPS: tl.constexpr = IN // SIZE
        group = tl.arange(0, GROUPS)
        w, s = _load_words(first, scales, rows, group, within, n_in, BITS)
        v, t = w, s
        if TWO:
            v, t = _load_words(second, more_scales, others, group, within, n_in, BITS)
        wait_for_previous(OVERLAP)
        a, b, c, d, one, total, squares = _bytes_of_x(x, norm, 0, n_in, GROUPS, BITS, NORM)
        sums = _group_sums(w, s, a, b, c, d, one, total, BITS)
        more, sums_b, more_b, squares_b = sums, sums, sums, squares
        if TWO:
            more = _group_sums(v, t, a, b, c, d, one, total, BITS)
        if ROWS == 2:
            a, b, c, d, one, total, squares_b = _bytes_of_x(x + n_in, norm, 0, n_in, GROUPS, BITS,
                                                            NORM)
            sums_b = _group_sums(w, s, a, b, c, d, one, total, BITS)
            if TWO:
                more_b = _group_sums(v, t, a, b, c, d, one, total, BITS)
        for begin in tl.range(GROUPS, n_in // SIZE, GROUPS, num_stages=STAGES):
            w, s = _load_words(first, scales, rows, begin + group, within, n_in, BITS)
            if TWO:
                v, t = _load_words(second, more_scales, others, begin + group, within, n_in, BITS)
            a, b, c, d, one, total, part = _bytes_of_x(x, norm, begin, n_in, GROUPS, BITS, NORM)
            sums += _group_sums(w, s, a, b, c, d, one, total, BITS)
            squares += part
            if TWO:
                more += _group_sums(v, t, a, b, c, d, one, total, BITS)
            if ROWS == 2:
                a, b, c, d, one, total, part = _bytes_of_x(x + n_in, norm, begin, n_in, GROUPS,
                                                           BITS, NORM)
                sums_b += _group_sums(w, s, a, b, c, d, one, total, BITS)
                squares_b += part
                if TWO:
                    more_b += _group_sums(v, t, a, b, c, d, one, total, BITS)
        a, b = _scaled(sums, more, squares, eps, n_in, NORM)
        c, d = _scaled(sums_b, more_b, squares_b, eps, n_in, NORM)
        if BITS == 8:
            scale = tl.load(scales + rows, mask=within, other=0.0).to(tl.float32)
            other_scale = tl.load(more_scales + others, mask=within, other=0.0).to(tl.float32)
            a, b, c, d = a * scale, b * other_scale, c * scale, d * other_scale
        return a, b, c, d

    @triton.jit
    def _number_products(x, norm, w, v, columns, left,  # type: ignore[no-untyped-def]
                         NORM: tl.constexpr, TWO: tl.constexpr):
        """Return numbers of two weights times x, rows x columns each, and the squares of x."""
        part = tl.load(x + columns, mask=left, other=0.0).to(tl.float32)
        squares = part * part
        if NORM:
            part *= tl.load(norm + columns, mask=left, other=0.0).to(tl.float32)
        dots = w.to(tl.float32) * part[None, :]
        other = dots
        if TWO:
            other = v.to(tl.float32) * part[None, :]
        return dots, other, squares

    @triton.jit
    def _dot_products_of_numbers(  # type: ignore[no-untyped-def]
            x, norm, eps, first, second, rows, others, within,
            n_in: tl.constexpr, IN: tl.constexpr, NORM: tl.constexpr,
            TWO: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr, ROWS: tl.constexpr):
        """Return what `dot_products` does, of plain weights."""
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
        sums = w.to(tl.float32) * part[None, :]
        more = sums
        if TWO:
            more = v.to(tl.float32) * part[None, :]
        sums_b, more_b, squares_b = sums, more, squares
        if ROWS == 2:
            sums_b, more_b, squares_b = _number_products(x + n_in, norm, w, v, columns, left, NORM,
                                                         TWO)
        for begin in tl.range(IN, n_in, IN, num_stages=STAGES):
            here = begin + columns
            left = here < n_in
            w = _load_weights(first + at + begin, within, left)
            if TWO:
                v = _load_weights(second + to + begin, within, left)
            dots, other, part = _number_products(x, norm, w, v, here, left, NORM, TWO)
            sums, more, squares = sums + dots, more + other, squares + part
            if ROWS == 2:
                dots, other, part = _number_products(x + n_in, norm, w, v, here, left, NORM, TWO)
                sums_b, more_b, squares_b = sums_b + dots, more_b + other, squares_b + part
        a, b = _scaled(sums, more, squares, eps, n_in, NORM)
        c, d = _scaled(sums_b, more_b, squares_b, eps, n_in, NORM)
        return a, b, c, d

    @triton.jit
    def dot_products(  # type: ignore[no-untyped-def]
            x, norm, eps, first, scales, second, more_scales, rows, others, within,
            n_in: tl.constexpr, IN: tl.constexpr, BITS: tl.constexpr, NORM: tl.constexpr,
            TWO: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr, ROWS: tl.constexpr):
        """
        Return rows of one weight, and others of a second, times x; weights are read first.

        Then the same of the second row of x, where there is one (ROWS).
        """
        if BITS == 16:
            return _dot_products_of_numbers(x, norm, eps, first, second, rows, others, within,
                                            n_in, IN, NORM, TWO, STAGES, OVERLAP, ROWS)
        else:  # noqa: RET505 (of two returns one is compiled)
            return _dot_products_of_words(x, norm, eps, first, scales, second, more_scales, rows,
                                          others, within, n_in, IN, BITS, NORM, TWO, STAGES,
                                          OVERLAP, ROWS)

    def launch_options(like: torch.Tensor) -> dict[str, bool | int]:
        """Return how to run a kernel: on Hopper it begins while the one before it ends."""
        overlap = (like.is_cuda and torch.cuda.get_device_capability(like.device)[0] >= 9
                   and hasattr(tl.extra.cuda, 'gdc_wait'))
        return {'OVERLAP': overlap, **({'launch_pdl': True} if overlap else {})}

    def tile_shape(n_out: int, weight: Weight, two: bool, rows: int) -> dict[str, int]:
        """
        Return how many outputs a program computes, and how many inputs it reads at once.

        ``two``: of two weights; ``rows``: vectors. Found by trying with the shapes of
        Qwen2.5-VL-3B, for plain weights on an H100, for others on an H200.
        """
        most = 1 << (max(1, n_out // MIN_PROGRAMS).bit_length() - 1)
        width = triton.next_power_of_2(weight.n_in)
        if weight.bits < 16:
            outputs = min(FEW_OUTPUTS * (rows if weight.bits == 4 else 1), most)
            width = max(32, min(width, MAX_FEW_WIDTH))
            return {'OUT': outputs, 'IN': width, 'BITS': weight.bits, 'STAGES': 1,
                    'num_warps': max(WARPS, outputs * width // 4096)}
        width = min(MAX_TILE_WIDTH, width)
        return {'OUT': min(MAX_TILE // (1 + two) // width, most), 'IN': width,
                'BITS': weight.bits, 'STAGES': 3, 'num_warps': WARPS}

    def weight_parts(weight: Weight) -> tuple[torch.Tensor, torch.Tensor]:
        """Return numbers, those of few bits as words, and scales or what is not read."""
        if weight.scales is None:
            return weight.values, weight.values
        return weight.values.view(torch.int32), weight.scales
