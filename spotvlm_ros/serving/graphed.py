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
Batches on a GPU: after the prompts, each pass of a token per reply is one CUDA graph.

`generate` has Python launch each kernel of each pass, which takes a GPU several times as long as
the kernels do. A graph computes the same shapes at the same addresses, so batches are filled up to
one of a few sizes, and keys and values have room for a multiple of some tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
import warnings

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, Cache, PreTrainedModel

from .constraints import Held
from .pictures import Pictures
from ..edge.families import (
    count_images, model_family, ModelFamily, Tensors, use_maskable_attention)

ROWS = (1, 2, 4, 8, 12, 16, 24, 32)   # of batches; larger ones have their own
ROOM = 256     # room for prompt and reply is a multiple of this [tokens]
GRAPHS = 12    # that are kept
GROUPED = 'spotvlm_grouped'


def grouped_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor,
                      value: torch.Tensor, attention_mask: torch.Tensor | None,
                      scaling: float | None = None, **options: object
                      ) -> tuple[torch.Tensor, None]:
    """
    Return the attention of one token per row; heads that share keys are rows of one product.

    transformers repeats keys and values for each head instead where there is a mask, which takes
    as long as all else of a pass of 32 rows.
    """
    rows, heads, _, dim = query.shape
    shared = query.view(rows, key.shape[1], -1, dim)
    output = scaled_dot_product_attention(shared, key, value, attention_mask, scale=scaling)
    return output.reshape(rows, 1, heads, dim), None


AttentionInterface.register(GROUPED, grouped_attention)


class Graphed:
    """Answers batches of prompts whose pictures have one size."""

    def __init__(self, family: ModelFamily, ends: frozenset[int], capture: bool) -> None:
        """Begin; without ``capture`` the same passes run as they are."""
        self._family, self._ends, self._capture = family, ends, capture
        self._pictures = Pictures()
        self._passes: OrderedDict[tuple[int, int, int], _Passes] = OrderedDict()

    @classmethod
    def of(cls, model: PreTrainedModel, ends: frozenset[int]) -> Graphed | None:
        """Return what answers by a model; None where there is no GPU or graphs do not fit."""
        family = model_family(model.requires_grad_(False))
        if family is None or not (family.fixed_shapes and model.device.type == 'cuda'):
            return None
        from ..edge.gpu.layers import pad_gated_mlps, PatchLinear  # needs compilers
        pad_gated_mlps(family.vision_tower.modules())
        PatchLinear.replace_in(family.vision_tower.modules())
        use_maskable_attention(model)
        return cls(family, ends, True)

    @property
    def vision_dtype(self) -> torch.dtype:
        """Return the dtype of the pixels that the model takes."""
        return self._family.vision_dtype

    def takes(self, inputs: Tensors) -> bool:
        """Whether a prompt can be computed like this."""
        return self._pictures.usual(inputs)

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Tensors], limits: Sequence[int],
               held: Sequence[Held | None], gone: Callable[[int], bool]) -> list[list[int]]:
        """Return the likeliest tokens of each reply, within its schema; fewer where ``gone``."""
        replies: list[list[int]] = [[] for _ in prompts]
        open_ = set(range(len(prompts)))
        passes, logits = self._begin(prompts, max(limits))
        while True:
            tokens = _likeliest(logits[:len(prompts)], held)
            for i in list(open_):
                replies[i].append(tokens[i])
                if tokens[i] in self._ends or len(replies[i]) >= limits[i] or gone(i):
                    open_.remove(i)
            if not open_:
                return replies
            logits = passes.go_on(tokens)

    def _begin(self, prompts: Sequence[Tensors], limit: int) -> tuple[_Passes, torch.Tensor]:
        """Compute prompts; return what goes on with them, and the logits after each."""
        family = self._family
        rows = next((n for n in ROWS if n >= len(prompts)), len(prompts))
        filled = [*prompts, *[prompts[-1]] * (rows - len(prompts))]
        ids = [prompt['input_ids'][0].cpu() for prompt in filled]
        length = max(map(len, ids))
        positions = [family.position_ids(row, prompt) for row, prompt in zip(ids, filled)]
        passes = self._of_size(rows, -(-(length + limit) // ROOM) * ROOM, len(positions[0]))
        device, dtype = passes.ids.device, self.vision_dtype
        images = [family.select_images(p, list(range(count_images(p)))) for p in filled]
        features = family.encode_images({
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in family.join_images(images).items()})
        joined = torch.stack([_padded(row, length) for row in ids])
        image = (joined == family.image_token_id).to(device)
        embeds = family.embed_tokens(joined.masked_fill(image.cpu(), 0).to(device))
        embeds[image] = features.embeddings.to(embeds.dtype)
        begins = torch.tensor([length - len(row) for row in ids])
        after = torch.stack([p.max() + 1 for p in positions])
        return passes, passes.begin(
            embeds, torch.stack([_padded(p, length) for p in positions], 1), begins, after)

    def _of_size(self, rows: int, room: int, axes: int) -> _Passes:
        """Return what computes batches of a size."""
        key = rows, room, axes
        if key not in self._passes:
            while len(self._passes) >= GRAPHS:
                self._passes.popitem(last=False)
            self._passes[key] = _Passes(self._family, key, self._capture)
        self._passes.move_to_end(key)
        return self._passes[key]


class _Passes(Cache):
    """The passes of batches of one size, with their keys and values."""

    def __init__(self, family: ModelFamily, size: tuple[int, int, int], capture: bool) -> None:
        super().__init__(layers=[])
        (rows, room, axes), weight = size, family.embed_tokens.weight
        config = family.text_config
        heads = config.num_attention_heads
        dim = getattr(config, 'head_dim', None) or config.hidden_size // heads
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads or heads, room, dim)
        # Zeros: what was never written to must still be a number.
        self._family = family
        self._keys, self._values = weight.new_zeros(shape), weight.new_zeros(shape)
        self.ids = torch.zeros((rows, 1), dtype=torch.int64, device=weight.device)
        self._positions = self.ids.new_zeros((axes, rows))
        self._begins, self._slot = self.ids.new_zeros((rows, 1)), self.ids.new_zeros(1)
        self._range = torch.arange(room, device=weight.device)
        self._prompt = 0      # tokens of the prompts while they are computed
        self._logits = weight.new_zeros(0)
        self._run = self._compute
        if capture:
            self._run = self._captured()

    def begin(self, embeds: torch.Tensor, positions: torch.Tensor, begins: torch.Tensor,
              after: torch.Tensor) -> torch.Tensor:
        """Compute prompts, which are padded up to ``begins``; return the logits after each."""
        length = self._prompt = embeds.shape[1]
        self._begins.copy_(begins[:, None])
        self._positions.copy_(after[None])
        self._slot.fill_(length)
        places = self._range[:length]
        seen = (places >= self._begins)[:, None] & (places <= places[:, None])
        try:
            return self._forward(embeds, positions.to(embeds.device), seen)
        finally:
            self._prompt = 0

    def go_on(self, tokens: Sequence[int]) -> torch.Tensor:
        """Compute a token of each reply; return the logits after it."""
        self.ids[:len(tokens), 0] = torch.tensor(tokens, device=self.ids.device)
        self._run()
        return self._logits

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int,
               *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of a layer; return those that are attended to."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._prompt:
            keys[:, :, :self._prompt] = key_states
            values[:, :, :self._prompt] = value_states
            return key_states, value_states
        keys.index_copy_(2, self._slot, key_states)
        values.index_copy_(2, self._slot, value_states)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return nothing of use: positions and masks are given to each pass."""
        return 0

    def _compute(self) -> None:
        seen = (self._range >= self._begins) & (self._range <= self._slot)
        config = self._family.text_config
        usual, config._attn_implementation = config._attn_implementation, GROUPED
        try:
            self._logits = self._forward(self._family.embed_tokens(self.ids),
                                         self._positions[..., None], seen[:, None])
        finally:
            config._attn_implementation = usual
        self._slot.add_(1)
        self._positions.add_(1)

    def _forward(self, embeds: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor
                 ) -> torch.Tensor:
        """Return the logits after the last token of each row; ``seen``: rows x new x tokens."""
        least = torch.finfo(embeds.dtype).min
        mask = torch.zeros(seen.shape, dtype=embeds.dtype, device=embeds.device)
        hidden = self._family.forward(
            embeds, None, None, use_cache=True, past_key_values=self,
            position_ids=positions[0] if len(positions) == 1 else positions,
            attention_mask=mask.masked_fill(~seen, least)[:, None])
        return self._family.lm_head(hidden[:, -1]).float()  # type: ignore[no-any-return]

    def _captured(self) -> Callable[[], None]:
        """Return the pass of a token as a graph, or as it is where nothing can be captured."""
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # kernels choose their work space on the first runs
                self._compute()
        torch.cuda.current_stream().wait_stream(side)
        try:
            with torch.cuda.graph(graph, capture_error_mode='thread_local'):
                self._compute()
        except RuntimeError as error:
            torch.cuda.synchronize()
            warnings.warn(f'{type(self._family).__name__}: a pass cannot be captured as a CUDA '
                          f'graph and is slower for it: {error}', stacklevel=2)
            return self._compute
        return graph.replay


def _likeliest(logits: torch.Tensor, held: Sequence[Held | None]) -> list[int]:
    """Return the likeliest token of each row, among those that its schema allows."""
    for row, one in enumerate(held):
        if one is not None:
            logits[row].masked_fill_(~one.allowed(logits.shape[1]).to(logits.device), -torch.inf)
    tokens: list[int] = logits.argmax(-1).tolist()
    for token, one in zip(tokens, held):
        if one is not None:
            one.take(token)
    return tokens


def _padded(values: torch.Tensor, length: int) -> torch.Tensor:
    """Return values of some tokens with zeros before them."""
    return pad(values, (length - values.shape[-1], 0))
