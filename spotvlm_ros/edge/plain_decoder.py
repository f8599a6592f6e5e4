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
A decoder of the usual make by few calls of torch a layer.

A small model on a CPU waits for Python as long as for its products. Here layers are computed
without their modules: weights that multiply the same numbers are joined, and tokens of several
prefixes go through all but attention together. Passes of few tokens are one call of compiled code
(`native`); without a compiler, for one token, what lies between the attention of two layers is
traced. The results are those of the modules, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
import itertools
from typing import NamedTuple, Protocol
import warnings

import torch
from torch import nn
from torch.nn import functional
from transformers.activations import ACT2FN

from .engine import batched_position_ids
from .families import LLAMA_LIKE, ModelFamily
from .native.decoder import NativeDecoder, Shape, Token
from .native.library import CompilerError
from .native.linear import NativeLinear
from .quantised import Joined, joined, QuantisedLinear, stored
from .tracing import traced
from ..config.nodes import DecoderBackendName

# How far native code may be from torch, of the length of hidden states. Where inputs are rounded,
# what differs in its last bit may be rounded the other way: 1 to 3 % after 30 layers.
MAX_DIFFERENCE, MAX_ROUNDED = {torch.float32: 1e-3, torch.bfloat16: 0.15}, 0.15


class KeysAndValues(Protocol):
    """Those of one prefix."""

    @property
    def buffers(self) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of layers, each 1 x heads x capacity x dim; of none before the first."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens before the present forward pass."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor,
               layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of one layer; return all up to them."""


Step = Callable[..., tuple[torch.Tensor, ...]]


class Turn(NamedTuple):
    """The tokens of one prefix in a forward pass."""

    cache: KeysAndValues
    mask: torch.Tensor | None   # 1 x 1 x tokens x keys, added to the attention; None: all before
    tokens: int
    wanted: int                 # last tokens of which hidden states are returned


class Layer(NamedTuple):
    """The weights of one layer."""

    before: nn.Module     # norms
    after: nn.Module
    qkv: Joined
    out: Joined
    gate_up: Joined
    down: Joined

    @property
    def norms(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of the norms."""
        return self.before.weight, self.after.weight

    @property
    def products(self) -> tuple[Joined, Joined, Joined, Joined]:
        """Return the products, in order."""
        return self.qkv, self.out, self.gate_up, self.down


class PlainDecoder:
    """Computes the layers of a decoder whose make `supports` knows."""

    def __init__(self, family: ModelFamily, backend: DecoderBackendName = 'auto') -> None:
        """Join weights; each stays what it was, as a part of them."""
        self._decoder, self._lm_head = family.decoder, family.lm_head
        self._layers = [
            Layer(layer.input_layernorm, layer.post_attention_layernorm,
                  joined(getattr(layer.self_attn, f'{n}_proj') for n in 'qkv'),
                  joined([layer.self_attn.o_proj]),
                  joined([layer.mlp.gate_proj, layer.mlp.up_proj]), joined([layer.mlp.down_proj]))
            for layer in family.decoder.layers]
        attention = family.decoder.layers[0].self_attn
        self._traces: dict[int, Step | None] = {}   # of one token, by index
        self._dim, self._scaling = attention.head_dim, attention.scaling
        self._heads = attention.q_proj.out_features // self._dim
        self._pairs = attention.k_proj.out_features // self._dim
        self._native: NativeDecoder | None = None
        self._head: NativeLinear | None = None
        self._native_checked = self._steps_checked = False   # with torch, once
        if backend != 'torch':
            self._use_native(Shape(self._heads, self._pairs, self._dim, self._scaling,
                                   family.decoder.norm.variance_epsilon))

    def _use_native(self, shape: Shape) -> None:
        """Have passes of few tokens computed by compiled code, where that can be."""
        if not NativeDecoder.fits(self._layers, shape):
            return
        try:
            self._native = NativeDecoder(self._layers, self._decoder.norm.weight, shape)
        except CompilerError:   # `spotvlm check` says why
            return
        if isinstance(self._lm_head, QuantisedLinear) or type(self._lm_head) is nn.Linear:
            weight = stored(self._lm_head)
            self._head = NativeLinear(weight, self._lm_head.bias) if NativeLinear.fits(
                weight) else None

    @property
    def by(self) -> str:
        """Return what computes passes of few tokens."""
        return 'torch' if self._native is None else 'native'

    @staticmethod
    def supports(family: ModelFamily) -> bool:
        """Return whether a decoder has nothing but what is computed here."""
        return (type(family).forward is ModelFamily.forward
                and type(family).decoder_mask is ModelFamily.decoder_mask
                and family.text_config._attn_implementation == 'sdpa'
                and all(type(layer).__name__ in LLAMA_LIKE and _is_plain(layer)
                        for layer in family.decoder.layers))

    def __call__(self, embeds: torch.Tensor, positions: torch.Tensor,
                 turns: Sequence[Turn]) -> torch.Tensor:
        """
        Return the last hidden states that are wanted, tokens x width.

        ``embeds``: tokens x width, those of each turn after the other's; ``positions``: axes x
        tokens.
        """
        native = self._native
        if (native is None or len(embeds) > native.most_rows
                or any(len(turn.cache.buffers) < len(self._layers) for turn in turns)):
            return self._by_torch(embeds, positions, turns)
        if self._native_checked:
            return self._by_native(native, embeds, positions, turns)
        wanted = self._by_torch(embeds, positions, turns, traces=False)
        found, self._native_checked = self._by_native(native, embeds, positions, turns), True
        if self._agrees([found], [wanted]):
            return found
        return self._by_torch(embeds, positions, turns)   # whose keys and values stay

    def _agrees(self, found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
        """Return whether compiled code gives what torch does; else it is not used any more."""
        rounds, dtype = self._layers[0].qkv.weight.rounds, wanted[0].dtype
        worst = max(float((one.float() - other.float()).norm() / other.float().norm())
                    for one, other in zip(found, wanted))
        if worst <= (MAX_ROUNDED if rounds else MAX_DIFFERENCE[dtype]):
            return True
        warnings.warn(f'compiled code for the decoder is {worst:.1%} off on this processor: '
                      'answers are slower without it; report it, with what cc --version says, '
                      "and set decoder_backend to 'torch'", stacklevel=3)
        self._native = self._head = None
        return False

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states, rows x vocabulary, in 32 bits."""
        if self._head is not None and len(hidden) <= self._head.most_rows:
            return self._head(hidden)
        logits: torch.Tensor = self._lm_head(hidden)
        return logits.float()

    def _by_native(self, native: NativeDecoder, embeds: torch.Tensor, positions: torch.Tensor,
                   turns: Sequence[Turn]) -> torch.Tensor:
        """Return what `__call__` does, by compiled code."""
        cos, sin = self._rope(embeds, positions)
        tokens = list[Token]()
        for cache, mask, count, _ in turns:
            end = cache.get_seq_length() + count
            for i in range(count):
                slot = end - count + i
                tokens.append(Token(cache.buffers, slot, slot + 1, None) if mask is None else
                              Token(cache.buffers, slot, end, mask[0, 0, i]))
        x = native(embeds, cos, sin, tokens)
        rows = last_rows([t.tokens for t in turns], [t.wanted for t in turns])
        return (x if len(rows) == len(x) else x[rows]).to(embeds.dtype)

    def _by_torch(self, embeds: torch.Tensor, positions: torch.Tensor, turns: Sequence[Turn],
                  traces: bool = True) -> torch.Tensor:
        """Return what `__call__` does, by torch; with ``traces`` one token by them."""
        cos, sin = self._rope(embeds, positions)
        x, compute, last, native = embeds, self._step, len(self._layers), self._native
        if native is not None and native.steps and len(embeds) > native.most_rows:
            compute = self._native_step   # in 32 bits between the products
            x, cos, sin = embeds.float(), cos.float().contiguous(), sin.float().contiguous()
        seen = x
        for index in range(last + 1):
            given = x, seen, cos, sin
            step = self._traced(index, given) if traces and len(embeds) == 1 else None
            x, *states = compute(index, *given) if step is None else step(*given)
            if index == last:
                break
            if index == last - 1:  # keys and values aside, of these nothing but what is wanted
                x = x[last_rows([t.tokens for t in turns], [t.wanted for t in turns])]
            seen = self._attention(index, [part.to(embeds.dtype) for part in states], turns,
                                   index == last - 1)
        return x.to(embeds.dtype)

    def _rope(self, embeds: torch.Tensor, positions: torch.Tensor
              ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and `signed_sines` of positions, tokens x dim."""
        cos, sin = self._decoder.rotary_emb(embeds[None], batched_position_ids(positions))
        return cos[0], signed_sines(sin[0])

    def _native_step(self, index: int, x: torch.Tensor, seen: torch.Tensor, cos: torch.Tensor,
                     sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute what `_step` does, by compiled code."""
        native = self._native
        if native is None or len(x) <= native.most_rows:   # of the last layer, what is wanted
            return self._step(index, x, seen, cos, sin)
        seen = seen.to(x.dtype)
        found = native.step(index, x, seen, cos, sin)
        if not self._steps_checked:
            self._steps_checked = index == 1   # the first that has all there is
            wanted = self._step(index, x, seen, cos, sin)
            return found if self._agrees(found, wanted) else wanted
        return found

    def _step(self, index: int, x: torch.Tensor, seen: torch.Tensor, cos: torch.Tensor,
              sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Compute what lies between the attention of two layers.

        ``seen`` is what the one before ``index`` gave. Return x and the queries, keys and values
        of ``index``, each tokens x heads x dim; past the last layer the hidden states alone.
        """
        if index > 0:
            layer = self._layers[index - 1]
            x = x + layer.out(seen)
            gate, up = layer.gate_up(_norm(x, layer.after)).chunk(2, -1)
            x = x + layer.down(functional.silu(gate).mul_(up))
        if index == len(self._layers):
            return (_norm(x, self._decoder.norm),)
        layer = self._layers[index]
        qkv = layer.qkv(_norm(x, layer.before)).unflatten(1, (-1, self._dim))
        turned = qkv[:, :self._heads + self._pairs]
        turned = torch.addcmul(turned * cos[:, None], turned.roll(self._dim // 2, -1),
                               sin[:, None])
        return (x, turned[:, :self._heads], turned[:, self._heads:],
                qkv[:, self._heads + self._pairs:])

    def _traced(self, index: int, given: tuple[torch.Tensor, ...]) -> Step | None:
        """Return a step of one token without Python, None where that is not the same."""
        if index not in self._traces:
            self._traces[index] = traced(partial(self._step, index), given)
        return self._traces[index]

    def _attention(self, index: int, states: Sequence[torch.Tensor], turns: Sequence[Turn],
                   wanted: bool) -> torch.Tensor:
        """
        Return what tokens, all or those wanted, see of their own prefix, tokens x (heads x dim).

        ``states``: queries, keys and values, each tokens x heads x dim.
        """
        query, key, value = (part.transpose(0, 1)[None] for part in states)
        begin, parts = 0, list[torch.Tensor]()
        for cache, mask, tokens, count in turns:
            end = begin + tokens
            keys, values = cache.update(key[:, :, begin:end], value[:, :, begin:end], index)
            asked = count if wanted else tokens
            if mask is None and 1 < asked < tokens:
                mask = torch.ones(tokens, keys.shape[2], dtype=torch.bool,
                                  device=keys.device).tril()[None, None]
            mask = None if mask is None else mask[:, :, -asked:]
            rows = query[:, :, end - asked:end]
            if asked == 1:   # heads of equal keys as rows: in 16 bits a quarter of the time
                rows = rows.reshape(1, self._pairs, -1, self._dim)
            seen = functional.scaled_dot_product_attention(
                rows, keys, values, mask, is_causal=mask is None and asked > 1,
                scale=self._scaling, enable_gqa=self._heads != self._pairs and asked > 1)
            seen = seen.reshape(self._heads, asked, self._dim)
            parts.append(seen.transpose(0, 1).flatten(1))
            begin = end
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def signed_sines(sin: torch.Tensor) -> torch.Tensor:
    """Return sines, ... x dim, with the sign that RoPE gives them: the first half negative."""
    first, second = sin.chunk(2, -1)
    return torch.cat([-first, second], -1)


def last_rows(lengths: Iterable[int], counts: Iterable[int]) -> list[int]:
    """Return the last rows, so many of each, of parts that follow each other."""
    ends = itertools.accumulate(lengths)
    return [row for count, end in zip(counts, ends) for row in range(end - count, end)]


def _norm(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """Return what an RMS norm makes of rows, computed in 32 bits."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = (length * length).div_(x.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
    return (wide * scale).to(x.dtype) * norm.weight


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer has nothing but what is computed here."""
    attention, mlp = layer.self_attn, layer.mlp
    return (isinstance(mlp.act_fn, (nn.SiLU, type(ACT2FN['silu']))) and all(
        _kind(parts[0]) and len({_kind(part) for part in parts}) == 1 for parts in (
            [attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj],
            [mlp.gate_proj, mlp.up_proj], [mlp.down_proj])))


def _kind(part: nn.Module) -> tuple[int, bool] | None:
    """Return the bits of a linear layer, 16 of a plain one, and whether it has a bias."""
    if not isinstance(part, QuantisedLinear) and type(part) is not nn.Linear:
        return None
    return stored(part).bits, part.bias is not None
