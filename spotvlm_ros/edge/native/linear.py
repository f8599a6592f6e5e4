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
"""Linear layers for few rows, and weights of few bits written out; see decoder.c."""

from __future__ import annotations

from collections.abc import Callable
import ctypes
from typing import Protocol, TypeAlias

import torch

from .library import library, why_not

BLOCK = 4   # as in decoder.c
F32, BF16, I8, I8_I8, I4 = range(5)
KINDS = {torch.float32: F32, torch.bfloat16: BF16}
# The most rows: with more, products of matrices take less (SmolVLM-256M's shape, two cores of an
# Intel Xeon with AMX; without AMX they do so later).
MOST = {F32: 12, BF16: 6, I8: 8, I8_I8: 16, I4: 8}


class Product(ctypes.Structure):
    """A linear layer."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ('weight', 'scales', 'sums', 'bias')),
                *((name, ctypes.c_int64) for name in ('n_out', 'n_in', 'kind', 'scale_kind'))]


class StoredWeight(Protocol):
    """A weight as it is stored; `quantised.Weight` is one."""

    @property
    def values(self) -> torch.Tensor:
        """Return n_out x n_in numbers, in 4 bits n_out x n_in / 8 words."""

    @property
    def scales(self) -> torch.Tensor | None:
        """Return the scales, n_out, in 4 bits n_out x n_in / 32; of plain weights None."""

    @property
    def rounds(self) -> bool:
        """Return whether inputs are rounded to 8 bits, too."""


Given: TypeAlias = ctypes.Structure | torch.Tensor | float | None   # numbers: addresses, too


def call(function: Callable[..., object], *given: Given) -> None:
    """Call a function of the library, with as many threads as torch may use."""
    function(*(
        ctypes.byref(part) if isinstance(part, ctypes.Structure) else
        ctypes.c_double(part) if isinstance(part, float) else
        ctypes.c_int64(part) if isinstance(part, int) else
        ctypes.c_void_p(None if part is None else part.data_ptr()) for part in given),
        ctypes.c_int64(torch.get_num_threads()))


class NativeLinear:
    """A linear layer for few rows."""

    def __init__(self, weight: StoredWeight, bias: torch.Tensor | None = None) -> None:
        """Take a weight that `fits`; what is kept of it is no copy. Raise CompilerError."""
        self._library = library()
        # Detached: where a model is converted later, these numbers stay where they are.
        self.kind, self.values = kind_of(weight), weight.values.detach()
        scales, sums = weight.scales, None
        if scales is not None:
            scales = (scales if self.kind == I4 else scales.float()).detach().contiguous()
        if weight.rounds:
            sums = weight.values.sum(1, dtype=torch.int32)
        if bias is not None:
            bias = bias.detach().float().contiguous()
        self._kept = scales, sums, bias
        n_out, n_in = weight.values.shape
        self.product = Product(
            *(None if part is None else part.data_ptr() for part in (
                self.values, scales, sums, bias)), n_out, n_in * (8 if self.kind == I4 else 1),
            self.kind, F32 if scales is None else KINDS[scales.dtype])

    @property
    def most_rows(self) -> int:
        """Return the most rows that it multiplies in less time than torch."""
        return MOST[self.kind]

    @staticmethod
    def fits(weight: StoredWeight) -> bool:
        """Return whether a weight is of a kind that can be multiplied here."""
        values, scales = weight.values, weight.scales
        return (values.device.type == 'cpu' and values.is_contiguous()
                and len(values) % BLOCK == 0
                and (scales is None or (scales.dtype in KINDS and scales.is_contiguous()))
                and values.dtype in (*KINDS, torch.int8, torch.int32))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product of each row of ``x``, in 32 bits."""
        x = x.float().contiguous()
        y = x.new_empty(len(x), self.product.n_out)
        call(self._library.linear, self.product, len(x), x, y, torch.empty_like(x),
             x.new_empty(len(x)))
        return y

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return a weight of 8 or 4 bits, n_out x n_in."""
        y = torch.empty(self.product.n_out, self.product.n_in, dtype=dtype)
        call(self._library.dequantize_weight, self.product, KINDS[dtype], y)
        return y


def kind_of(weight: StoredWeight) -> int:
    """Return how numbers of a weight, and its inputs, are stored."""
    if weight.values.dtype == torch.int8:
        return I8_I8 if weight.rounds else I8
    return I4 if weight.values.dtype == torch.int32 else KINDS[weight.values.dtype]


def linear_of(weight: StoredWeight) -> NativeLinear | None:
    """Return a weight of 8 or 4 bits for few rows, None where it cannot be multiplied here."""
    if weight.scales is None or weight.rounds or not NativeLinear.fits(weight) or why_not():
        return None
    return NativeLinear(weight)
