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
What makes the kernels of a forward pass fast on a GPU, before it is captured as a graph.

A graph takes away what it costs to launch kernels. What is left is kernels that read little and do
little: so the layers are compiled, which joins most of them, attention inside the windows of a
picture (Qwen2.5-VL) is one kernel and not one per window, and in passes of one token a layer of
the usual make is five kernels of our own.
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
ALIGNED = 64                      # matrix products are fast with sides that are multiples of 8
SHAPES = 64                       # most shapes that code is compiled for
# A kernel begins while the one before it ends, where torch and the GPU know how (Hopper).
OVERLAP = ({'triton.enable_pdl': True} if hasattr(inductor.triton, 'enable_pdl') else {})
# Layers that differ in nothing but sizes and biases.
USUAL = ('LlamaDecoderLayer', 'MistralDecoderLayer', 'Qwen2DecoderLayer', 'Qwen2_5_VLDecoderLayer')


class Layers:
    """Layers of one kind, which share the code that is compiled for the first of them."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        """
        Compile nothing yet: the first forward pass of each shape does.

        A cache (``past_key_values``) must have `layer`, which returns the part of one layer.
        """
        self._layers = list(layers)
        on_gpu = bool(self._layers) and next(self._layers[0].parameters()).is_cuda
        self._run = torch.compile(_run, dynamic=False, options=OVERLAP if on_gpu else None)

    @contextmanager
    def fast(self) -> Iterator[None]:
        """Have the layers run compiled code meanwhile; after it the model is as it was."""
        with (replaced(self._layers, self._forward),
              torch._dynamo.config.patch(recompile_limit=SHAPES)):
            yield

    def _forward(self, layer: nn.Module, index: int, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get('past_key_values')
        if cache is not None:  # by its number a layer would need code of its own
            kwargs['past_key_values'] = cache.layer(index)
        return self._run(layer, *args, **kwargs)


def _run(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


class KernelsFail(RuntimeError):
    """Kernels of our own cannot be compiled here, or this GPU cannot run them."""


class OneTokenLayers:
    """Decoder layers of the usual make for passes of one token, by kernels of our own."""

    @staticmethod
    def can_be(layers: Iterable[nn.Module]) -> bool:
        """Return whether there are kernels for what the layers compute."""
        return all(type(layer).__name__ in USUAL and _is_usual(layer) for layer in layers)

    def __init__(self, layers: Iterable[nn.Module], tokens: int) -> None:
        """
        Join the weights of queries, keys and values; each stays what it was, as a part of them.

        ``tokens``: the size of the cache, which has `layer`, for the part of one layer.
        """
        self._layers = list(layers)
        self._joined = [_joined([getattr(layer.self_attn, f'{n}_proj') for n in 'qkv'])
                        for layer in self._layers]
        own = self._layers[0].self_attn
        self._room = kernels.room(own.q_proj.out_features // own.head_dim, tokens, own.head_dim,
                                  own.q_proj.weight.device)

    @contextmanager
    def fast(self) -> Iterator[None]:
        """Have the layers run the kernels meanwhile; after it the model is as it was."""
        with replaced(self._layers, self._forward):
            yield

    def _forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return what a layer makes of one token; raise KernelsFail."""
        try:
            return self._computed(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except kernels.FAILURES as error:
            raise KernelsFail(str(error)) from error

    def _computed(self, layer: Any, index: int, hidden_states: torch.Tensor, *,
                  attention_mask: torch.Tensor, past_key_values: Any,
                  position_embeddings: tuple[torch.Tensor, torch.Tensor],
                  **kwargs: Any) -> torch.Tensor:
        """Return what the layer makes of one token, 1 x 1 x width."""
        x, cache, own, mlp = (hidden_states[0, 0], past_key_values.layer(index), layer.self_attn,
                              layer.mlp)
        before, after = (kernels.Norm(norm.weight, norm.variance_epsilon) for norm in (
            layer.input_layernorm, layer.post_attention_layernorm))
        seen = kernels.Keys(cache.keys, cache.values, cache.where)
        cos, sin = (p[0, 0] for p in position_embeddings)
        query = kernels.look_up(x, before, *self._joined[index], cos, sin, seen)
        found = kernels.attend(query, seen, attention_mask[0, 0, 0], own.scaling, self._room)
        x = kernels.added(found.flatten(), own.o_proj.weight, x)
        inner = kernels.gated(x, after, mlp.gate_proj.weight, mlp.up_proj.weight)
        return kernels.added(inner, mlp.down_proj.weight, x)[None, None]


def _is_usual(layer: Any) -> bool:
    own, mlp = layer.self_attn, layer.mlp
    inputs = [own.q_proj, own.k_proj, own.v_proj]
    others = [own.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return (isinstance(mlp.act_fn, (nn.SiLU, type(ACT2FN['silu']))) and own.head_dim % 2 == 0
            and all(type(part) is nn.Linear for part in (*inputs, *others))
            and len({part.bias is None for part in inputs}) == 1
            and all(part.bias is None for part in others) and kernels.can_run(own.q_proj.weight))


def _joined(parts: list[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weights and biases as one; those of the parts become views of them."""
    ends, whole = [part.out_features for part in parts], list[torch.Tensor | None]()
    for name in ('weight', 'bias'):
        if getattr(parts[0], name) is None:
            whole.append(None)
            continue
        joined = torch.cat([getattr(part, name).detach() for part in parts])
        for part, view in zip(parts, joined.split(ends)):
            setattr(part, name, nn.Parameter(view, requires_grad=False))
        whole.append(joined)
    weight, bias = whole
    assert weight is not None
    return weight, bias


@contextmanager
def replaced(layers: list[nn.Module], forward: Any) -> Iterator[None]:
    """Have layers run ``forward(layer, index, ...)`` meanwhile."""
    for index, layer in enumerate(layers):
        layer.forward = partial(forward, layer, index)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class OnePatch(nn.Conv3d):
    """A convolution of patches that are given one by one is a product of matrices."""

    @staticmethod
    def use(modules: Iterable[nn.Module]) -> None:
        """
        Have convolutions be computed like this where they can be.

        Qwen2.5-VL has one, which took a twentieth of the vision tower's time.
        """
        for module in modules:
            if type(module) is nn.Conv3d and module.padding == (0, 0, 0) and module.groups == 1:
                module.__class__ = OnePatch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one output per patch, n x out x 1 x 1 x 1."""
        if x.shape[2:] != self.kernel_size or self.dilation != (1, 1, 1):
            return super().forward(x)
        return nn.functional.linear(x.flatten(1), self.weight.flatten(1),
                                    self.bias)[..., None, None, None]


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


AttentionInterface.register(PACKED, packed_attention)


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
