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
little: so the layers are compiled, which joins most of them, and in passes of one token a layer of
the usual make is five kernels of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch
from torch import nn
from torch._inductor import config as inductor
from torch.nn import functional
from transformers.activations import ACT2FN

from . import kernels
from .kv_cache import LayerCache, StaticKVCache
from .products import FAILURES, MAX_ROWS
from .prompt import turn_and_store
from ..families import LLAMA_LIKE
from ..quantised import GROUP, Joined, joined, QuantisedLinear, stored, Weight

MLP_MULTIPLE = 64   # matrix products are fast with sides that are multiples of 8
MAX_SHAPES = 64     # that code is compiled for
LayerOutput: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]


class CompiledLayers:
    """Layers of one kind, which share the code that is compiled for the first of them."""

    def __init__(self, layers: Iterable[nn.Module],
                 run: Callable[..., LayerOutput] | None = None) -> None:
        """Compile nothing yet: the first forward pass of each shape does."""
        self._layers = list(layers)
        on_gpu = any(tensor.is_cuda for layer in self._layers[:1] for tensor in (
            *layer.parameters(), *layer.buffers()))
        self._run = torch.compile(run or _run, dynamic=False,
                                  options=compile_options(self._layers) if on_gpu else None)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Have the layers run compiled code meanwhile; after it the model is as it was."""
        with (replaced(self._layers, self._forward),
              torch._dynamo.config.patch(recompile_limit=MAX_SHAPES)):
            yield

    def _forward(self, layer: nn.Module, index: int, *args: object,
                 past_key_values: StaticKVCache | None = None, **kwargs: object) -> LayerOutput:
        if past_key_values is not None:  # by its number a layer would need code of its own
            kwargs['past_key_values'] = past_key_values.layer(index)
        output: LayerOutput = self._run(layer, *args, **kwargs)
        return output


def compile_options(layers: Iterable[nn.Module] = ()) -> dict[str, bool]:
    """
    Return how to compile on a GPU.

    A kernel begins while the one before it ends, where torch and the GPU know how (Hopper). Not
    one that writes weights of few bits out: it reads nothing of the kernel before, and torch had
    it write where that kernel still read (a prompt's logits were 14 % off, each time otherwise).
    """
    if not hasattr(inductor.triton, 'enable_pdl'):
        return {}
    return {'triton.enable_pdl': not any(isinstance(part, QuantisedLinear)
                                         for layer in layers for part in layer.modules())}


def _run(layer: nn.Module, *args: object, **kwargs: object) -> LayerOutput:
    output: LayerOutput = type(layer).forward(layer, *args, **kwargs)
    return output


class JoinedLayers(CompiledLayers):
    """
    Decoder layers of the usual make, compiled for passes of many tokens.

    Queries, keys and values are one product, and keys and values are not copied for each of the
    heads that share them, where attention on this GPU needs no copies.
    """

    def __init__(self, layers: Iterable[nn.Module], qkv: list[Joined]) -> None:
        """Take the joined weights of `OneTokenLayers`."""
        super().__init__(layers, _run_joined)
        self._qkv = qkv
        self._shares_heads = _attention_shares_heads(self._layers[0].self_attn, qkv[0][0])

    def _forward(self, layer: nn.Module, index: int, *args: object,
                 past_key_values: StaticKVCache | None = None, **inputs: object) -> LayerOutput:
        assert past_key_values is not None
        output: LayerOutput = self._run(
            layer, self._qkv[index], *args, past_key_values.layer(index),
            inputs['position_embeddings'], (inputs['attention_mask'], self._shares_heads))
        return output


def _run_joined(layer: nn.Module, qkv: Joined, hidden: torch.Tensor, cache: LayerCache,
                rotation: tuple[torch.Tensor, torch.Tensor],
                attends: tuple[torch.Tensor, bool]) -> torch.Tensor:
    """
    Return what a layer makes of tokens, 1 x tokens x width.

    ``attends``: a mask over slots, and whether attention takes keys that heads share.
    """
    attention, (mask, shares_heads) = layer.self_attn, attends
    query = turn_and_store(qkv(layer.input_layernorm(hidden)), *rotation, cache.keys, cache.values,
                           cache.slots)
    keys, values = cache.keys, cache.values
    if not shares_heads:
        each = query.shape[1] // keys.shape[1]
        keys, values = (x.repeat_interleave(each, 1) for x in (keys, values))
    mixed = functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, scale=attention.scaling, enable_gqa=shares_heads)
    hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    added: torch.Tensor = layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden + added


def _attention_shares_heads(attention: nn.Module, like: Weight) -> bool:
    """Return whether there is fast attention to keys that several heads share (cuDNN's)."""
    if not like.values.is_cuda or not hasattr(torch.backends.cuda, 'can_use_cudnn_attention'):
        return False
    dim, dtype = attention.head_dim, attention.o_proj.weight.dtype
    query, keys = (torch.zeros((1, heads, 64, dim), dtype=dtype, device=like.values.device)
                   for heads in (attention.o_proj.in_features // dim,
                                 attention.k_proj.out_features // dim))
    mask = query.new_zeros((1, 1, 64, 64))
    return bool(torch.backends.cuda.cudnn_sdp_enabled() and
                torch.backends.cuda.can_use_cudnn_attention(torch.backends.cuda.SDPAParams(
                    query, keys, keys, mask, 0.0, False, True)))


MAX_DIFFERENCE = 0.02   # of what a kernel gives from what torch gives: 16 bits differ by 0.004


class KernelError(RuntimeError):
    """Kernels of our own cannot be compiled here, this GPU cannot run them, or they are wrong."""


class OneTokenLayers:
    """Decoder layers of the usual make for passes of one token, by kernels of our own."""

    @staticmethod
    def supports(layers: Iterable[nn.Module]) -> bool:
        """Return whether there are kernels for what the layers compute."""
        return all(type(layer).__name__ in LLAMA_LIKE and _is_plain(layer) for layer in layers)

    def __init__(self, layers: Iterable[nn.Module], tokens: int) -> None:
        """
        Join the weights of queries, keys and values; each stays what it was, as a part of them.

        ``tokens``: the size of the KV cache.
        """
        self._layers = list(layers)
        self.qkv = [joined([getattr(layer.self_attn, f'{n}_proj') for n in 'qkv'])
                    for layer in self._layers]
        attention = self._layers[0].self_attn
        self._scratch = kernels.attention_scratch(
            attention.q_proj.out_features // attention.head_dim, tokens, attention.head_dim,
            self._layers[0].input_layernorm.weight.device)
        self._tokens, self._checked = tokens, False

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """
        Have the layers run the kernels meanwhile; after it the model is as it was.

        Raise KernelError where those of the first layer do not give what torch gives.
        """
        if not self._checked:
            self._check()
            self._checked = True
        with replaced(self._layers, self._forward):
            yield

    def _check(self) -> None:
        """Raise KernelError where a product differs from torch's: wrong answers are silent."""
        layer = self._layers[0]
        weight = layer.input_layernorm.weight
        noise = torch.Generator(weight.device).manual_seed(0)
        before, after = (kernels.RMSNorm(norm.weight, norm.variance_epsilon) for norm in (
            layer.input_layernorm, layer.post_attention_layernorm))
        gate_up = [stored(layer.mlp.get_submodule(f'{n}_proj')) for n in ('gate', 'up')]
        down = stored(layer.mlp.down_proj)
        try:
            for rows in range(1, MAX_ROWS + 1):
                x, inner = (torch.randn((rows, n), generator=noise, dtype=weight.dtype,
                                        device=weight.device) for n in (len(weight), down.n_in))
                _compare('qkv', *(self._qkv_of(way, x, before) for way in (
                    kernels.fused_norm_qkv_rope, kernels.plain_norm_qkv_rope)))
                _compare('gate and up', *(way(x, after, *gate_up) for way in (
                    kernels.fused_norm_swiglu, kernels.plain_norm_swiglu)))
                _compare('down', *(way(inner, down, x) for way in (
                    kernels.linear_residual, kernels.plain_residual)))
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise KernelError(str(error)) from error

    def _qkv_of(self, way: Callable[..., torch.Tensor], x: torch.Tensor,
                norm: kernels.RMSNorm) -> torch.Tensor:
        """Return queries, keys and values of the first layer, rows x width, not turned."""
        attention, rows = self._layers[0].self_attn, len(x)
        dim = attention.head_dim
        keys, values = x.new_zeros(
            (2, rows, attention.k_proj.out_features // dim, self._tokens, dim))
        cache = kernels.LayerKV(keys, values, torch.zeros(rows, dtype=torch.long, device=x.device))
        turn = x.new_ones((rows, dim)), x.new_zeros((rows, dim))
        query = way(x, norm, *self.qkv[0], *turn, cache)
        return torch.cat([query, keys[:, :, 0], values[:, :, 0]], 1).flatten(1)

    def _forward(self, layer: nn.Module, index: int, hidden_states: torch.Tensor, *,
                 past_key_values: StaticKVCache, **inputs: torch.Tensor) -> torch.Tensor:
        """Return what a layer makes of tokens, rows x 1 x width; raise KernelError."""
        cache, (cos, sin) = past_key_values.layer(index), inputs['position_embeddings']
        try:
            return self._compute(layer, self.qkv[index], hidden_states[:, 0],
                                 kernels.LayerKV(cache.keys, cache.values, cache.slots[:, 0]),
                                 inputs['attention_mask'][:, 0, 0], (cos[:, 0], sin[:, 0]))
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            raise KernelError(str(error)) from error

    def _compute(self, layer: nn.Module, qkv: Joined, x: torch.Tensor, cache: kernels.LayerKV,
                 mask: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return what a layer makes of ``x``, rows x width, with a ``mask`` over tokens."""
        attention, mlp = layer.self_attn, layer.mlp
        before, after = (kernels.RMSNorm(norm.weight, norm.variance_epsilon) for norm in (
            layer.input_layernorm, layer.post_attention_layernorm))
        query = kernels.fused_norm_qkv_rope(x, before, *qkv, *rotation, cache)
        heads = kernels.decode_attention(query, cache, mask, attention.scaling, self._scratch)
        x = kernels.linear_residual(heads.flatten(1), stored(attention.o_proj), x)
        inner = kernels.fused_norm_swiglu(x, after, *map(stored, (mlp.gate_proj, mlp.up_proj)))
        return kernels.linear_residual(inner, stored(mlp.down_proj), x)[:, None]


def _compare(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Raise KernelError where numbers are too far from those wanted."""
    difference = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    if not difference <= MAX_DIFFERENCE:   # or NaN
        raise KernelError(f'the kernel of {name} is {difference:.0%} off on this GPU, with torch '
                          f'{torch.__version__}; please report both')


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer has nothing but what the kernels compute."""
    attention, mlp = layer.self_attn, layer.mlp
    inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
    others = [attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return (isinstance(mlp.act_fn, (nn.SiLU, type(ACT2FN['silu']))) and attention.head_dim % 2 == 0
            and all(len({_kind(part) for part in parts}) == 1 and _kind(parts[0])
                    for parts in (inputs, [mlp.gate_proj, mlp.up_proj], *([p] for p in others)))
            and len({part.bias is None for part in inputs}) == 1
            and all(part.bias is None for part in others)
            and kernels.can_run(layer.input_layernorm.weight))


def _kind(part: nn.Module) -> int:
    """Return the bits of a linear layer, 16 of a plain one; 0 of what no kernel is for."""
    if isinstance(part, QuantisedLinear):
        return 0 if part.in_features % GROUP else part.stored.bits
    return 16 * (type(part) is nn.Linear)


@contextmanager
def replaced(layers: list[nn.Module], forward: Callable[..., LayerOutput]) -> Iterator[None]:
    """Have layers run ``forward(layer, index, ...)`` meanwhile."""
    for index, layer in enumerate(layers):
        layer.forward = partial(forward, layer, index)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class PatchLinear(nn.Conv3d):
    """A convolution of patches that are given one by one is a product of matrices."""

    @staticmethod
    def replace_in(modules: Iterable[nn.Module]) -> None:
        """
        Have convolutions be computed like this where they can be.

        Qwen2.5-VL has one, which took a twentieth of the vision tower's time.
        """
        for module in modules:
            if type(module) is nn.Conv3d and module.padding == (0, 0, 0) and module.groups == 1:
                module.__class__ = PatchLinear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one output per patch, n x out x 1 x 1 x 1."""
        if x.shape[2:] != self.kernel_size or self.dilation != (1, 1, 1):
            return super().forward(x)
        return functional.linear(x.flatten(1), self.weight.flatten(1),
                                 self.bias)[..., None, None, None]


def pad_gated_mlps(modules: Iterable[nn.Module]) -> None:
    """
    Widen gated MLPs to a multiple of what is fast; what is added is zero and changes nothing.

    The MLPs of Qwen2.5-VL's vision tower are 3420 wide, which took a third of its time.
    """
    for mlp in modules:
        parts = [getattr(mlp, f'{name}_proj', None) for name in ('gate', 'up', 'down')]
        gate, up, down = (p if isinstance(p, nn.Linear) else None for p in parts)
        if gate is None or up is None or down is None or gate.out_features % 8 == 0:
            continue
        more = -gate.out_features % MLP_MULTIPLE
        for part in (gate, up):
            part.weight = _padded(part.weight, (0, 0, 0, more))
            if part.bias is not None:
                part.bias = _padded(part.bias, (0, more))
        down.weight = _padded(down.weight, (0, more))
        for part in (gate, up, down):
            part.out_features, part.in_features = part.weight.shape


def _padded(weight: nn.Parameter, sides: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(functional.pad(weight.detach(), sides), requires_grad=False)
