# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
What makes the kernels of a forward pass fast on a GPU, before it is captured as a graph.

A graph takes away what it costs to launch kernels. What is left is kernels that read little and do
little: so the layers are compiled, which joins most of them, and attention inside the windows of a
picture (Qwen2.5-VL) is one kernel and not one per window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._inductor import config as inductor
from transformers import AttentionInterface
from transformers.activations import ACT2FN

from . import kernels

try:
    from torch.nn.attention.varlen import varlen_attn   # since torch 2.10
except ImportError:
    varlen_attn = None

PACKED = 'spotvlm_packed_flash'   # transformers hands lengths to what has "flash" in its name
GROUPED = 'spotvlm_grouped'       # attention of one token
ALIGNED = 64                      # matrix products are fast with sides that are multiples of 8
SHAPES = 64                       # most shapes that code is compiled for
# A kernel begins while the one before it ends, where torch and the GPU know how (Hopper).
OVERLAP = ({'triton.enable_pdl': True} if hasattr(inductor.triton, 'enable_pdl') else {})
# Products of a matrix with one token, of which decoding is made, reach the speed of the memory
# only when tuned (a note in torch/_inductor/decomposition.py says so).
TUNED = {'coordinate_descent_tuning': True}


class Layers:
    """Layers of one kind, which share the code that is compiled for the first of them."""

    def __init__(self, layers: Iterable[nn.Module], one_token: bool = False) -> None:
        """
        Compile nothing yet: the first forward pass of each shape does.

        A cache (``past_key_values``) must have `layer`, which returns the part of one layer.
        ``one_token``: for passes of one token, which take long to compile.
        """
        self._layers = list(layers)
        on_gpu = bool(self._layers) and next(self._layers[0].parameters()).is_cuda
        self._run = torch.compile(_run, dynamic=False, options={
            **OVERLAP, **(TUNED if one_token else {})} if on_gpu else None)
        modules = [m for layer in self._layers for m in layer.modules()] if one_token else []
        self._others = [(m, OneTokenMLP) for m in modules if OneTokenMLP.can_be(m)]
        self._others += [(m, OneToken) for m in modules if type(m) is nn.Linear]

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Have the layers run compiled code meanwhile; after it the model is as it was."""
        for index, layer in enumerate(self._layers):
            layer.forward = partial(self._forward, layer, index)
        usual = [type(module) for module, _ in self._others]
        for module, other in self._others:
            module.__class__ = other
        try:
            with torch._dynamo.config.patch(recompile_limit=SHAPES):
                yield
        finally:
            for layer in self._layers:
                del layer.forward
            for (module, _), kind in zip(self._others, usual):
                module.__class__ = kind

    def _forward(self, layer: nn.Module, index: int, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get('past_key_values')
        if cache is not None:  # by its number a layer would need code of its own
            kwargs['past_key_values'] = cache.layer(index)
        return self._run(layer, *args, **kwargs)


def _run(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


class OneToken(nn.Linear):
    """The same product, written so that the compiler finds the fast way for one token."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times weight plus bias."""
        # What makes the input is computed once, not once for each output.
        out = nn.functional.linear(_in_memory(x), self.weight)
        if self.bias is not None:
            return out + self.bias
        return _in_memory(out) if self.out_features > self.in_features else out


class OneTokenMLP(nn.Module):
    """A gated MLP for one token, by kernels of our own."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    @staticmethod
    def can_be(module: nn.Module) -> bool:
        """Return whether the module computes what this one does."""
        parts = [getattr(module, f'{name}_proj', None) for name in ('gate', 'up', 'down')]
        return (isinstance(getattr(module, 'act_fn', None), (nn.SiLU, type(ACT2FN['silu'])))
                and all(type(p) is nn.Linear and getattr(p, 'bias', None) is None for p in parts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return down(silu(gate(x)) * up(x))."""
        inner = kernels.gated(x, self.gate_proj.weight, self.up_proj.weight)
        return kernels.product(inner, self.down_proj.weight)


def _in_memory(x: torch.Tensor) -> torch.Tensor:
    """Return x as it is; the compiler joins nothing across, for this is a view of memory."""
    return x.as_strided(x.shape, x.stride())


def align(modules: Iterable[nn.Module]) -> None:
    """
    Widen gated MLPs to a multiple of what is fast; what is added is nought and changes nothing.

    Qwen2.5-VL has 3420 places there, and its vision tower spent a third of its time for that.
    """
    for mlp in modules:
        parts = [getattr(mlp, f'{name}_proj', None) for name in ('gate', 'up', 'down')]
        gate, up, down = (p if isinstance(p, nn.Linear) else None for p in parts)
        if gate is None or up is None or down is None or gate.out_features % 8 == 0:
            continue
        more = -gate.out_features % ALIGNED
        for part in (gate, up):
            part.weight = _padded(part.weight, (0, 0, 0, more))
            if part.bias is not None:
                part.bias = _padded(part.bias, (0, more))
        down.weight = _padded(down.weight, (0, more))
        for part in (gate, up, down):
            part.out_features, part.in_features = part.weight.shape


def _padded(weight: nn.Parameter, sides: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(nn.functional.pad(weight.detach(), sides), requires_grad=False)


def packed_attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor,
                     value: torch.Tensor, attention_mask: Any, *, cu_seq_lens_q: torch.Tensor,
                     max_length_q: int, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """
    Return attention inside each of several sequences that follow each other.

    ``query``, ``key``, ``value``: 1 x heads x tokens x dim, scaled by 1 / sqrt(dim).
    """
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    seen = varlen_attn(query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    return seen[None], None


def grouped_attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor,
                      value: torch.Tensor, attention_mask: torch.Tensor, *, scaling: float,
                      **kwargs: Any) -> tuple[torch.Tensor, None]:
    """
    Return the attention of one token; keys are not copied for each head that shares them.

    ``query``: 1 x heads x 1 x dim; ``key``, ``value``: 1 x pairs x tokens x dim;
    ``attention_mask``: 1 x 1 x 1 x tokens, which is added.
    """
    (_, heads, _, dim), pairs = query.shape, key.shape[1]
    scores = query.reshape(pairs, heads // pairs, dim) @ key[0].transpose(1, 2)
    weights = (scores * scaling + attention_mask[0]).float().softmax(-1).to(query.dtype)
    return (weights @ value[0]).reshape(1, 1, heads, dim), None


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(GROUPED, grouped_attention)


def can_pack(like: torch.Tensor) -> bool:
    """Return whether packed attention works for such a tensor."""
    return (varlen_attn is not None and like.is_cuda
            and like.dtype in (torch.bfloat16, torch.float16))


@contextmanager
def attention(config: Any, name: str) -> Iterator[None]:
    """Have a model use another attention function meanwhile."""
    usual, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = usual


def packed(config: Any, like: torch.Tensor) -> Any:
    """Return a context in which a vision tower uses packed attention where that works."""
    return attention(config, PACKED) if can_pack(like) else nullcontext()
