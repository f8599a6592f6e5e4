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
"""The decoder back-end that calls the model as it is, on any device and for any family."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import Cache

from .cpu import TracedVisionTower
from .engine import batched_position_ids, Bias, PrefixState, Prompt, Step
from .families import BoolArray, DecoderMask, ImageFeatures, ModelFamily, Tensors
from .grammar import DraftTree, Logits
from .plain_decoder import last_rows, PlainDecoder, Turn
from ..config.nodes import DecoderBackendName, VisionBackend

MAX_IMAGES = 8        # whose features are kept; passes about one frame share most of them
CAPACITY_STEP = 256   # KV caches are made in multiples of this [tokens]


class KVCache(Cache):
    """Keys and values in buffers of fixed size, each 1 x heads x capacity x dim."""

    def __init__(self) -> None:
        """Start empty; the first layer to write decides on dtype and device."""
        super().__init__(layers=[])
        self.capacity = 0
        self._begin = self._end = 0   # slots that the present forward pass writes
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def buffers(self) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
        """Return the keys and values of layers; of none before the first pass writes them."""
        return self._buffers

    def reserve(self, tokens: int) -> bool:
        """Make the buffers hold that many tokens; return False if that loses what they held."""
        if tokens <= self.capacity <= 4 * tokens + CAPACITY_STEP:
            return True  # after an answer that might have been very long it is made anew
        self.capacity = -(-tokens // CAPACITY_STEP) * CAPACITY_STEP
        self._buffers = []
        return False

    def set_slots(self, begin: int, end: int) -> None:
        """Set where the next forward pass writes; it attends to all slots before ``end``."""
        self._begin, self._end = begin, end

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int,
               *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of one layer; return all up to them."""
        if layer_idx == len(self._buffers):
            try:
                self._buffers.append((self._empty(key_states), self._empty(value_states)))
            except (MemoryError, RuntimeError):
                self.capacity = 0  # the next answer may need less
                raise
        keys, values = self._buffers[layer_idx]
        keys[:, :, self._begin:self._end] = key_states
        values[:, :, self._begin:self._end] = value_states
        return keys[:, :, :self._end], values[:, :, :self._end]

    @property
    def n_new(self) -> int:
        """Return how many tokens the present forward pass writes."""
        return self._end - self._begin

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens before the present forward pass."""
        return self._begin

    def _empty(self, states: torch.Tensor) -> torch.Tensor:
        # Not zeros: what no token is written to takes no memory, and is not attended to.
        return states.new_empty((*states.shape[:2], self.capacity, states.shape[-1]))


class JoinedCaches(Cache):
    """The caches of some prefixes as one: their tokens follow each other."""

    def __init__(self, caches: Sequence[KVCache]) -> None:
        """Join them for one forward pass."""
        super().__init__(layers=[])
        self._caches = caches

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int,
               *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of one layer, each prefix's to its own; return all of them."""
        counts = [cache.n_new for cache in self._caches]
        keys, values = zip(*(
            cache.update(*new, layer_idx) for cache, *new in zip(
                self._caches, key_states.split(counts, 2), value_states.split(counts, 2))))
        return torch.cat(keys, 2), torch.cat(values, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return nothing of use: positions and masks are given to each pass."""
        return 0


def join_masks(masks: Sequence[DecoderMask]) -> DecoderMask:
    """Return masks, each 1 x 1 x queries x keys, as one in which none sees another's keys."""
    first = masks[0]
    if isinstance(first, dict):
        return {kind: _side_by_side([mask[kind] for mask in masks if isinstance(mask, dict)])
                for kind in first}
    return _side_by_side([mask for mask in masks if isinstance(mask, torch.Tensor)])


def _side_by_side(masks: Sequence[torch.Tensor]) -> torch.Tensor:
    rows, columns = (sum(mask.shape[axis] for mask in masks) for axis in (2, 3))
    joined = masks[0].new_full((1, 1, rows, columns), torch.finfo(masks[0].dtype).min)
    row = column = 0
    for mask in masks:
        to_row, to_column = row + mask.shape[2], column + mask.shape[3]
        joined[:, :, row:to_row, column:to_column] = mask
        row, column = to_row, to_column
    return joined


class TorchBackend:
    """Runs the model's own forward passes, with a KV cache for each prefix."""

    joins = True

    def __init__(self, family: ModelFamily, vision: VisionBackend = 'auto',
                 decoder: DecoderBackendName = 'auto') -> None:
        """Wrap the parts of a model; on a CPU its vision tower is traced, or compiled."""
        self.family = family
        weight = family.embed_tokens.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._min = np.float32(torch.finfo(weight.dtype).min)
        self._encode = (TracedVisionTower(family, vision) if weight.device.type == 'cpu'
                        else family.encode_images)
        self._plain = (PlainDecoder(family, decoder) if weight.device.type == 'cpu'
                       and PlainDecoder.supports(family) else None)
        self._features: OrderedDict[Hashable, ImageFeatures] = OrderedDict()
        self._caches: WeakKeyDictionary[PrefixState, KVCache] = WeakKeyDictionary()

    def encode_images(self, prompt: Prompt) -> ImageFeatures:
        """Return the features of a prompt's images; the vision tower runs on the new ones."""
        self.see([prompt])
        return ImageFeatures.concatenate([self._features[key] for key in prompt.image_keys])

    def see(self, prompts: Sequence[Prompt]) -> None:
        """Run the vision tower once, on all images of some prompts that are new."""
        features, new, parts = self._features, list[Hashable](), list[Tensors]()
        for prompt in prompts:
            keys = prompt.image_keys
            mine = [i for i, key in enumerate(keys) if key not in features and key not in new]
            new += [keys[i] for i in mine]
            if mine:
                parts.append(self.family.select_images(prompt.inputs, mine))
        if new:
            encoded = self._encode(parts[0] if len(parts) == 1 else self.family.join_images(parts))
            features.update(zip(new, encoded.split(len(new))))
        for prompt in prompts:
            for key in prompt.image_keys:
                features.move_to_end(key)
        while len(features) > MAX_IMAGES:
            features.popitem(last=False)

    @property
    def vision_by(self) -> str:
        """Return what runs the vision tower."""
        return getattr(self._encode, 'by', 'torch')

    @property
    def decoder_by(self) -> str:
        """Return what runs passes of few tokens."""
        return 'torch' if self._plain is None else self._plain.by

    def fit_draft(self, draft: DraftTree) -> DraftTree:
        """Return the draft: a forward pass takes any number of tokens."""
        return draft

    def reserve(self, state: PrefixState, tokens: int) -> bool:
        """Have forward passes go on with a prefix; see `DecoderBackend`."""
        cache = self._caches.get(state)
        if cache is None:
            cache = self._caches[state] = KVCache()
        return cache.reserve(tokens)

    def forward(self, state: PrefixState, step: Step, lookahead: bool) -> list[Logits]:
        """Compute a step; return logits after its known tokens and drafts."""
        return self.forward_all([(state, step)])[0]

    def forward_all(self, turns: Sequence[tuple[PrefixState, Step]],
                    lookahead: bool = False) -> list[list[Logits]]:
        """
        Compute a step of each of some prefixes in one pass.

        Their tokens follow each other; those of one prefix attend to nothing of another.
        """
        family, caches, masks = self.family, list[KVCache](), list[DecoderMask | None]()
        for state, step in turns:
            caches.append(self._caches[state])
            caches[-1].set_slots(step.begin, step.end)
            masks.append(self._mask(state, step))
        ids = torch.from_numpy(np.concatenate([step.ids for _, step in turns]))
        embeds = family.embed_tokens(ids.to(self._device))[None]
        features, slots = self._images(turns)
        if features is not None:
            embeds[0, slots] = features.embeddings.to(embeds.dtype)
        positions = torch.cat([step.position_ids for _, step in turns], 1).to(self._device)
        lengths = [len(step.ids) for _, step in turns]
        counts = [1 + len(step.draft.tokens) for _, step in turns]
        if self._plain is not None:
            logits = self._plain.logits(self._plain(
                embeds[0], positions, list(map(Turn, caches, masks, lengths, counts))))
        else:
            hidden = family.forward(
                embeds, features, slots, use_cache=True,
                past_key_values=caches[0] if len(caches) == 1 else JoinedCaches(caches),
                position_ids=batched_position_ids(positions),
                attention_mask=masks[0] if len(masks) == 1 else join_masks(
                    [mask for mask in masks if mask is not None]))[0, last_rows(lengths, counts)]
            logits = family.lm_head(hidden).float()
        return [[Logits(values) for values in part] for part in logits.split(counts)]

    def _images(self, turns: Sequence[tuple[PrefixState, Step]]
                ) -> tuple[ImageFeatures | None, torch.Tensor | None]:
        """Return the features of the image tokens of some steps, and where they go."""
        parts, slots, begin = list[ImageFeatures](), list[torch.Tensor](), 0
        for state, step in turns:
            if len(step.image_slots) and state.features is not None:
                parts.append(state.features.select(
                    torch.from_numpy(step.image_rows).to(self._device)))
                slots.append(torch.from_numpy(step.image_slots + begin).to(self._device))
            begin += len(step.ids)
        return (ImageFeatures.concatenate(parts), torch.cat(slots)) if parts else (None, None)

    def _mask(self, state: PrefixState, step: Step) -> DecoderMask | None:
        """Return what a step's tokens attend to, of those of its prefix; None: all before."""
        attended, n_known = self.family.attention_mask(step.image, len(step.ids)), step.n_known
        attended[n_known:, step.begin + n_known:] = step.draft.attention_mask()
        return self.family.decoder_mask(lambda a: self._as_bias(a, state.bias), attended)

    def prepare(self) -> None:
        """Do nothing: every pass is made when it runs."""

    def _as_bias(self, attended: BoolArray, bias: Bias | None) -> torch.Tensor:
        """Return what is added to the attention, 1 x 1 x queries x keys."""
        mask = np.where(attended, np.float32(0), self._min)
        if bias is not None:
            mask[:, :len(bias)] += bias
        return torch.from_numpy(mask)[None, None].to(self._device, self._dtype)
