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
"""A decoder's passes of few tokens by one call, of many by few for a layer; see decoder.c."""

from __future__ import annotations

from collections.abc import Sequence
import ctypes
from typing import NamedTuple, Protocol

import torch

from .library import library
from .linear import BLOCK, call, I8_I8, KINDS, NativeLinear, Product, StoredWeight


class Layer(ctypes.Structure):
    """A layer of the decoder."""

    _fields_ = [('before', ctypes.c_void_p), ('after', ctypes.c_void_p), ('qkv', Product),
                ('out', Product), ('gate_up', Product), ('down', Product)]


class Cache(ctypes.Structure):
    """Keys and values of a layer."""

    _fields_ = [('keys', ctypes.c_void_p), ('values', ctypes.c_void_p)]


class Decoder(ctypes.Structure):
    """All layers."""

    _fields_ = [*((name, ctypes.c_int64) for name in (
        'n_layers', 'width', 'heads', 'kv_heads', 'dim', 'inner', 'cache_kind')),
        ('scaling', ctypes.c_double), ('epsilon', ctypes.c_double),
        ('layers', ctypes.c_void_p), ('norm', ctypes.c_void_p)]


class Row(ctypes.Structure):
    """A token."""

    _fields_ = [('caches', ctypes.c_void_p), ('mask', ctypes.c_void_p),
                *((name, ctypes.c_int64) for name in ('capacity', 'slot', 'n_slots'))]


class LinearParts(Protocol):
    """A linear layer, or several as one; `quantised.Joined` is one."""

    @property
    def weight(self) -> StoredWeight:
        """Return the weight."""

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the bias, n_out."""


class LayerParts(Protocol):
    """The weights of one layer; `plain_decoder.Layer` is one."""

    @property
    def norms(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of the norms before attention and before the MLP."""

    @property
    def products(self) -> Sequence[LinearParts]:
        """Return queries, keys and values; the output of attention; gate and up; down."""


class Shape(NamedTuple):
    """What a decoder is like."""

    heads: int
    kv_heads: int        # heads of keys and values
    dim: int          # of a head
    scaling: float    # of the attention
    epsilon: float    # of the norms


class Token(NamedTuple):
    """A token of a pass."""

    buffers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values of layers, each 1 x kv_heads x capacity x dim."""
    slot: int                     # where its keys and values go
    n_slots: int                  # that it attends to
    mask: torch.Tensor | None     # n_slots, added to the attention


class NativeDecoder:
    """Computes passes of few tokens."""

    def __init__(self, layers: Sequence[LayerParts], norm: torch.Tensor, shape: Shape) -> None:
        """Take the weights of a decoder that `fits`. Raise CompilerError."""
        self._library, self._shape = library(), shape
        self._norms = [part.detach().float().contiguous() for layer in layers
                       for part in layer.norms]
        self._last = norm.detach().float().contiguous()
        self._linears = [NativeLinear(part.weight, part.bias) for layer in layers
                         for part in layer.products]
        self._layers = (Layer * len(layers))(*(
            Layer(*(part.data_ptr() for part in self._norms[2 * i:2 * i + 2]),
                  *(part.product for part in self._linears[4 * i:4 * i + 4]))
            for i in range(len(layers))))
        self._inner = int(self._linears[3].product.n_in)
        self._width = len(self._last)
        self.most_rows = self._linears[0].most_rows
        self.steps = all(part.kind == I8_I8 for part in self._linears)   # has `step`

    @staticmethod
    def fits(layers: Sequence[LayerParts], shape: Shape) -> bool:
        """Return whether all weights are of kinds that can be multiplied here."""
        return shape.dim % 2 == 0 and all(
            NativeLinear.fits(part.weight) and part.weight.values.shape[1] % BLOCK == 0
            for layer in layers for part in layer.products)

    def __call__(self, embeds: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
                 tokens: Sequence[Token]) -> torch.Tensor:
        """
        Return the last hidden states of some tokens, tokens x width, in 32 bits.

        ``cos``, ``sin``: tokens x dim; ``sin`` is negative in the first half. Keys and values are
        written to the buffers, which are all of one dtype.
        """
        shape, rows = self._shape, len(tokens)
        x = embeds.float().clone(memory_format=torch.contiguous_format)
        cos, sin = cos.float().contiguous(), sin.float().contiguous()
        masks = [None if t.mask is None else t.mask.float().contiguous() for t in tokens]
        buffers = {id(t.buffers): t.buffers for t in tokens}   # most tokens share theirs
        caches = {key: _pointers(found) for key, found in buffers.items()}
        table = (Row * rows)(*(
            Row(ctypes.addressof(caches[id(t.buffers)]), None if m is None else m.data_ptr(),
                t.buffers[0][0].shape[2], t.slot, t.n_slots) for t, m in zip(tokens, masks)))
        decoder = Decoder(
            len(self._layers), self._width, shape.heads, shape.kv_heads, shape.dim, self._inner,
            KINDS[tokens[0].buffers[0][0].dtype], shape.scaling, shape.epsilon,
            ctypes.addressof(self._layers), self._last.data_ptr())
        attended = shape.heads * shape.dim
        widest = max(self._width, attended, self._inner)
        threads = torch.get_num_threads()
        own = 2 * rows * widest + rows + max(t.n_slots for t in tokens)
        own += -own % 16   # whole cache lines
        shared = x.new_empty(rows * (2 * attended + 2 * shape.kv_heads * shape.dim + self._inner))
        room = x.new_empty(threads * own)
        call(self._library.decode, decoder, rows, ctypes.addressof(table), x, cos, sin, shared,
             room, own, widest)
        return x

    def step(self, index: int, x: torch.Tensor, seen: torch.Tensor, cos: torch.Tensor,
             sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Compute what lies between the attention of two layers, for many tokens in 32 bits.

        As `PlainDecoder._step` does, for layers whose inputs are rounded.
        """
        shape = self._shape
        if index > 0:
            out, gate_up, down = self._linears[4 * index - 3:4 * index]
            x = self._product(out, *self._quantize(seen.contiguous()), x.contiguous())
            numbers, given = self._quantize(x, self._norms[2 * index - 1])
            sums, scales = torch._int_mm(numbers, gate_up.values.t()), x.new_empty(len(x))
            numbers = torch.empty(len(x), self._inner, dtype=torch.int8)
            call(self._library.silu_and_mul_rows, gate_up.product, len(x), sums, given, numbers,
                 scales)
            x = self._product(down, numbers, scales, x)
        if 4 * index == len(self._linears):
            normal = x.new_empty(x.shape)
            call(self._library.rms_norm_rows, *x.shape, x, self._last, shape.epsilon, normal)
            return (normal,)
        found = self._product(self._linears[4 * index],
                              *self._quantize(x, self._norms[2 * index]))
        rotated = shape.heads + shape.kv_heads
        call(self._library.rope_rows, len(x), rotated, rotated + shape.kv_heads, shape.dim, found,
             cos, sin)
        heads = found.unflatten(1, (-1, shape.dim))
        return x, heads[:, :shape.heads], heads[:, shape.heads:rotated], heads[:, rotated:]

    def _quantize(self, x: torch.Tensor, norm: torch.Tensor | None = None
                  ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows, normed where that is asked for, in 8 bits, and the scale of each."""
        numbers, scales = torch.empty(x.shape, dtype=torch.int8), x.new_empty(len(x))
        call(self._library.quantize_rows, *x.shape, x, norm, self._shape.epsilon, numbers, scales)
        return numbers, scales

    def _product(self, linear: NativeLinear, numbers: torch.Tensor, scales: torch.Tensor,
                 base: torch.Tensor | None = None) -> torch.Tensor:
        """Return what a linear layer makes of rounded rows, added to ``base``."""
        sums = torch._int_mm(numbers, linear.values.t())
        y = torch.empty(sums.shape)
        call(self._library.dequantize_rows, linear.product, len(sums), sums, scales, base, y)
        return y


def _pointers(buffers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> ctypes.Array[Cache]:
    """Return where the keys and values of layers are."""
    return (Cache * len(buffers))(*(Cache(k.data_ptr(), v.data_ptr()) for k, v in buffers))
