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
Linear layers whose weights have 8 or 4 bits.

Only weights are rounded: what is computed is what the same layer with the rounded weights written
out would compute, so greedy answers are those of such a model. In 8 bits each row has one scale,
in 4 bits each 32 weights of a row have one. Few rows at once (tokens of an answer) are multiplied
by weights as they are stored, which is what makes it faster; for many the weights are written out
first, layer by layer.

On a CPU inputs may be rounded to 8 bits too, each row by itself (``int8_dynamic``): products of 8
bits take half the time of those of 16, and results are no longer those of any plain layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
import itertools
from typing import NamedTuple, TypeVar
import warnings

import torch
from torch import nn
from torch.nn import functional

from .native.library import why_not
from .native.linear import linear_of, NativeLinear

GROUP = 32           # weights of 4 bits that share a scale
WORDS = GROUP // 8   # that hold them, int32
MIDDLE = 8           # what is stored for a weight of 0
FEW, FEW_OF_16 = 4, 16   # rows that a CPU multiplies by weights of 8 bits, by the width of rows
SHRINK = (1.0, 0.95, 0.9, 0.85)   # of scales that are tried: outliers may be cut off
Number = TypeVar('Number', int, torch.Tensor)


class Weight(NamedTuple):
    """
    The weight of a linear layer, n_out x n_in: plain, or in 8 or 4 bits with scales.

    Byte b of word j of a group of 4 bits holds its weights 8 j + b, low, and 8 j + 4 + b, high.
    """

    values: torch.Tensor                  # n_out x n_in, in 4 bits n_out x n_in / 8, int32
    scales: torch.Tensor | None = None    # n_out, in 4 bits n_out x n_in / 32
    rounds: bool = False                  # inputs to 8 bits, too

    @property
    def bits(self) -> int:
        """Return 4, 8, or 16 for plain weights of any width."""
        return {torch.int32: 4, torch.int8: 8}.get(self.values.dtype, 16)

    @property
    def n_in(self) -> int:
        """Return the number of inputs."""
        return int(self.values.shape[1]) * (8 if self.bits == 4 else 1)

    def plain(self) -> torch.Tensor:
        """Return the weight written out, n_out x n_in."""
        if self.scales is None:
            return self.values
        native = _native(self)
        if native is not None:   # on a CPU: the same numbers, in less time
            return native.dequantize(self.scales.dtype)
        return self._plain_by_torch(self.scales)

    def _plain_by_torch(self, scales: torch.Tensor) -> torch.Tensor:
        if self.bits == 8:
            return self.values.to(scales.dtype) * scales[:, None]
        order = torch.arange(8, device=self.values.device, dtype=torch.int32)
        words = self.values.unflatten(1, (-1, WORDS, 1))
        numbers = ((words >> _shift(order)) & 15) - MIDDLE   # n_out x groups x WORDS x 8
        groups = numbers.flatten(2).to(scales.dtype) * scales[..., None]
        return groups.flatten(1)


def _shift(number: Number) -> Number:
    """Return where in a word of 4 bits the weight of a number, 0 to 7, begins."""
    return number % 4 * 8 + number // 4 * 4


def rounded(weight: torch.Tensor, bits: int) -> Weight:
    """Return a weight, n_out x n_in, in 8 or 4 bits; the scales have its dtype."""
    exact = weight.float()
    if bits == 8:
        scales = (exact.abs().amax(1).clamp(min=1e-12) / 127).to(weight.dtype)
        return Weight((exact / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8),
                      scales)
    groups = exact.unflatten(1, (-1, GROUP))
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))   # becomes -8
    best = scales = numbers = None
    for shrink in SHRINK:
        scale = (extreme * shrink / -MIDDLE).to(weight.dtype).float()
        number = (groups / torch.where(scale == 0, 1.0, scale)).round().clamp(-MIDDLE, MIDDLE - 1)
        error = (number * scale - groups).square().sum(2, keepdim=True)
        if best is None or scales is None or numbers is None:
            best, scales, numbers = error, scale, number
            continue
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, scale, scales)
        numbers = torch.where(better, number, numbers)
    assert scales is not None and numbers is not None
    stored = (numbers.int() + MIDDLE).unflatten(2, (WORDS, 8))
    words = stored[..., 0].clone()
    for k in range(1, 8):
        words |= stored[..., k] << _shift(k)
    return Weight(words.flatten(1), scales[..., 0].to(weight.dtype))


class QuantisedLinear(nn.Module):
    """A linear layer whose weight has few bits."""

    values: torch.Tensor
    scales: torch.Tensor

    def __init__(self, linear: nn.Linear, bits: int, device: torch.device,
                 rounds: bool = False) -> None:
        """Round the weight of a layer, on the device where it will run, or its inputs too."""
        super().__init__()
        self.rounds = rounds
        self.out_features, self.in_features = linear.out_features, linear.in_features
        stored = rounded(linear.weight.detach().to(device), bits)
        self.register_buffer('values', stored.values)
        self.register_buffer('scales', stored.scales)
        self.bias = linear.bias

    @property
    def stored(self) -> Weight:
        """Return the weight as it is stored."""
        return Weight(self.values, self.scales, self.rounds)

    @property
    def weight(self) -> torch.Tensor:
        """Return the weight written out."""
        return self.stored.plain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return weight @ x + bias, of each row of ``x``."""
        return product(x, self.stored, self.bias)


def product(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """Return weight @ x + bias, of each row of ``x``."""
    if _written_out:
        return functional.linear(x, weight.plain(), bias)
    if weight.rounds and weight.scales is not None:
        return _of_8_bits(x, weight.values, weight.scales, bias)
    native = _native(weight)
    if native is not None and x.shape[:-1].numel() <= native.most_rows:
        found = native(x.reshape(-1, x.shape[-1])).to(x.dtype).view(
            *x.shape[:-1], len(weight.values))
        return found if bias is None else found + bias
    few = FEW if x.dtype == torch.float32 else FEW_OF_16
    if x.is_cuda or weight.bits != 8 or weight.scales is None or x.shape[:-1].numel() > few:
        return _plain_product(x, weight.plain(), bias)
    rows = x.reshape(-1, x.shape[-1])
    found = torch._weight_int8pack_mm(rows, weight.values, weight.scales).view(
        *x.shape[:-1], len(weight.values))
    return found if bias is None else found + bias


def _plain_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
                   ) -> torch.Tensor:
    if x.is_cuda or x.dtype == torch.float32 or x.shape[:-1].numel() != 1:
        return functional.linear(x, weight, bias)
    # A CPU takes a quarter less time for one row of 16 bits this way.
    found = torch.mv(weight, x.flatten()).view(*x.shape[:-1], len(weight))
    return found if bias is None else found + bias


def _of_8_bits(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor,
               bias: torch.Tensor | None) -> torch.Tensor:
    """Return the product of a weight of 8 bits and rows that are rounded to them, plus a bias."""
    rows = x.reshape(-1, x.shape[-1]).float()
    scale = rows.abs().amax(1, keepdim=True).div_(127).clamp_(min=1e-12)
    numbers = (rows / scale).round_().to(torch.int8)
    if len(rows) <= FEW_OF_16:   # weights first: oneDNN takes a third less time
        whole = torch._int_mm(values, numbers.t()).t()
    else:
        whole = torch._int_mm(numbers, values.t())
    found = whole.to(torch.float32, memory_format=torch.contiguous_format)
    found.mul_(scale).mul_(scales.float())
    if bias is not None:
        found += bias
    return found.to(x.dtype).view(*x.shape[:-1], len(values))


def _native(weight: Weight) -> NativeLinear | None:
    """Return what multiplies by a weight on a CPU, or writes it out; None where torch does."""
    if _written_out or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return None   # torch sees its own functions only
    return linear_of(weight) if weight.values.device.type == 'cpu' and _native_works() else None


@lru_cache(1)
def _native_works() -> bool:
    """Return whether compiled code gives what torch gives on this processor; warn if not."""
    if why_not():
        return False
    numbers = torch.Generator().manual_seed(0)
    full, x = (torch.randn(n, 96, generator=numbers) for n in (8, 2))
    for bits, dtype in itertools.product((8, 4), (torch.float32, torch.bfloat16)):
        weight = rounded(full.to(dtype), bits)
        native = linear_of(weight)
        assert native is not None and weight.scales is not None
        plain = weight._plain_by_torch(weight.scales)
        wanted = functional.linear(x, weight._plain_by_torch(weight.scales.float()))
        if not (torch.equal(native.dequantize(dtype), plain)
                and float((native(x) - wanted).norm()) <= 1e-5 * float(wanted.norm())):
            warnings.warn(f'compiled code for weights of {bits} bits gives other numbers than '
                          'torch on this processor: answers are slower without it; report it, '
                          'with what cc --version says', stacklevel=2)
            return False
    return True


_written_out = False


@contextmanager
def written_out() -> Iterator[None]:
    """Have all layers computed by weights written out, for who reads off what they do."""
    global _written_out
    _written_out = True
    try:
        yield
    finally:
        _written_out = False


class Joined(NamedTuple):
    """Linear layers of the same input as one."""

    weight: Weight                # all n_out x n_in
    bias: torch.Tensor | None     # all n_out

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of all, one after the other."""
        return product(x, self.weight, self.bias)


def stored(part: nn.Linear | QuantisedLinear) -> Weight:
    """Return the weight of a linear layer as it is stored."""
    return part.stored if isinstance(part, QuantisedLinear) else Weight(part.weight)


def joined(parts: Iterable[nn.Linear | QuantisedLinear]) -> Joined:
    """Return layers of equal kind as one; their weights and biases become views of its."""
    parts = list(parts)
    if len(parts) == 1:
        return Joined(stored(parts[0]), parts[0].bias)
    names = (('values', 'scales', 'bias') if isinstance(parts[0], QuantisedLinear) else
             ('weight', 'bias'))
    ends, tensors = [part.out_features for part in parts], list[torch.Tensor | None]()
    for name in names:
        if getattr(parts[0], name) is None:
            tensors.append(None)
            continue
        whole = torch.cat([getattr(part, name).detach() for part in parts])
        for part, view in zip(parts, whole.split(ends)):
            setattr(part, name, view if name in ('values', 'scales') else
                    nn.Parameter(view, requires_grad=False))
        tensors.append(whole)
    values, scales, bias = tensors if len(tensors) == 3 else (tensors[0], None, tensors[1])
    assert values is not None
    return Joined(Weight(values, scales, stored(parts[0]).rounds), bias)


def can_quantise(linear: nn.Module, bits: int) -> bool:
    """Return whether a module is a linear layer whose weight can have so few bits."""
    return type(linear) is nn.Linear and (bits == 8 or linear.in_features % GROUP == 0)


def quantise(parts: Iterable[nn.Module], bits: int, device: torch.device,
             rounds: bool = False) -> None:
    """
    Replace all linear layers inside of some modules; the others keep their weights.

    ``rounds``: their inputs are rounded to 8 bits, too.

    Nothing holds a layer once it is replaced, so that there is never more than one layer twice.
    """
    for part in parts:
        for module in [m for m in part.modules() if type(m) is not nn.Linear]:
            for name in [n for n, child in module.named_children() if can_quantise(child, bits)]:
                setattr(module, name,
                        QuantisedLinear(getattr(module, name), bits, device, rounds))
