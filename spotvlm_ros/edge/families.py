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
What the engine must know of a model's architecture: its parts, positions and masks.

Every family is made of the same parts: a vision tower whose output takes the places of the image
tokens, a decoder and a head. The families differ in the positions of image tokens (Qwen), in who
may look at whom (Gemma 3 lets the tokens of one image see each other), and in what the vision
tower feeds to later layers (Qwen3-VL). Weights and forward passes are those of transformers.

The engine makes the attention masks itself, and focus by ``attention`` adds to them. The kernels
of `eager` and `sdpa` take such masks; `flash_attention_2` and `flex_attention` do not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import vision_utils

from .gpu.layers import can_pack, packed

Tensors = Mapping[str, torch.Tensor]
Allowed = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Visual:
    """Outputs of the vision tower: one row per image token, and rows added to later layers."""

    rows: torch.Tensor
    deep: tuple[torch.Tensor, ...] = ()

    def part(self, index: torch.Tensor) -> Visual:
        """Return the rows of some image tokens."""
        return Visual(self.rows[index], tuple(d[index] for d in self.deep))

    def split(self, images: int) -> list[Visual]:
        """Return the outputs for each of several images of one size."""
        deep = [d.chunk(images) for d in self.deep]
        return [Visual(rows, tuple(d[i] for d in deep))
                for i, rows in enumerate(self.rows.chunk(images))]

    @staticmethod
    def joined(parts: Sequence[Visual]) -> Visual:
        """Return the outputs for several images as one."""
        return Visual(torch.cat([p.rows for p in parts]),
                      tuple(torch.cat(d) for d in zip(*(p.deep for p in parts))))


class Family:
    """A model whose image tokens have plain positions and plain causal attention (LLaVA)."""

    focus: frozenset[str] = frozenset({'crop', 'tokens', 'attention'})
    why_not = ''
    fixed_shapes = True   # a forward pass is the same computation whatever the tokens are

    def __init__(self, model: Any) -> None:
        """Find the parts of a loaded `...ForConditionalGeneration`."""
        self.core = model.model
        self.decoder = getattr(self.core, 'language_model', None) or self.core.text_model
        self.tower = next(getattr(self.core, name) for name in ('visual', 'vision_model',
                                                                'vision_tower')
                          if hasattr(self.core, name))
        self.vision_layers = max((m for m in self.tower.modules()
                                  if isinstance(m, torch.nn.ModuleList)), key=len)
        self.head = model.get_output_embeddings()
        self.embedding = model.get_input_embeddings()
        self.image_token = int(model.config.image_token_id)
        self.text_config = model.config.get_text_config()

    def images(self, inputs: Tensors, numbers: list[int]) -> Tensors:
        """Return what the vision tower needs of some of the images."""
        return {'pixel_values': inputs['pixel_values'][numbers]}

    def visual(self, inputs: Tensors) -> Visual:
        """Return what the vision tower makes of the images."""
        found = self.core.get_image_features(pixel_values=inputs['pixel_values'],
                                             return_dict=True).pooler_output
        rows = torch.cat(list(found)) if isinstance(found, (list, tuple)) else found
        return Visual(rows.reshape(-1, rows.shape[-1]))

    def positions(self, ids: torch.Tensor, inputs: Tensors) -> torch.Tensor:
        """Return the positions of a prompt's tokens, axes x tokens."""
        return torch.arange(len(ids))[None]

    def grid(self, inputs: Tensors, n_images: int, n_tokens: int) -> tuple[int, int]:
        """Return rows and columns of image tokens of each image."""
        side = round((n_tokens / max(1, n_images)) ** 0.5)
        if side * side * n_images != n_tokens:
            raise ValueError(f'{n_tokens} image tokens are not {n_images} squares; use the focus '
                             "back-end 'crop' with this model")
        return side, side

    def allowed(self, image: Allowed, new: int) -> Allowed:
        """Return which tokens (columns) the last ``new`` may look at; ``image``: of an image."""
        n = len(image)
        return np.tri(new, n, n - new, dtype=np.bool_)

    def attention(self, mask: Callable[[Allowed], torch.Tensor], allowed: Allowed) -> Any:
        """Return the mask as the decoder takes it."""
        return mask(allowed)

    def decode(self, visual: Visual | None, where: torch.Tensor | None,
               **kwargs: Any) -> torch.Tensor:
        """Run the decoder; ``visual`` are image tokens among its inputs, at places ``where``."""
        hidden: torch.Tensor = self.decoder(**kwargs).last_hidden_state
        return hidden


class Idefics3(Family):
    """Idefics3 and SmolVLM."""

    def __init__(self, model: Any) -> None:
        """Find the parts."""
        super().__init__(model)
        self._places: dict[tuple[int, ...], torch.Tensor] = {}

    def images(self, inputs: Tensors, numbers: list[int]) -> Tensors:
        """Return the pixels of some images, of which there is a list for each prompt."""
        return {'pixel_values': inputs['pixel_values'][:, numbers]}

    def visual(self, inputs: Tensors) -> Visual:
        """
        Return what the vision tower makes of the images.

        The model's own `get_image_features` looks for pixels that are padding, and finds the
        place of each patch, anew for each frame. Our views have no padding and one size, so the
        layers are called directly; places are learned from the model's own forward pass once.
        """
        pixels, tower = inputs['pixel_values'].flatten(0, 1), self.tower
        places = self._places.get(tuple(pixels.shape))
        if places is None:
            places = self._places[tuple(pixels.shape)] = self._learn(pixels)
        patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        seen = tower.encoder(inputs_embeds=patches + places, attention_mask=None)
        rows = self.core.connector(tower.post_layernorm(seen.last_hidden_state))
        return Visual(rows.reshape(-1, rows.shape[-1]))

    def _learn(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the vision tower adds to each patch for its place."""
        embeddings, found = self.tower.embeddings, list[torch.Tensor]()
        patch = self.core.config.vision_config.patch_size
        real = torch.ones((len(pixels), pixels.shape[2] // patch, pixels.shape[3] // patch),
                          dtype=torch.bool, device=pixels.device)
        hook = embeddings.position_embedding.register_forward_hook(
            lambda module, args, output: found.append(output))
        try:
            embeddings(pixel_values=pixels, patch_attention_mask=real)
        finally:
            hook.remove()
        return found[0]


class Gemma3(Family):
    """Gemma 3: tokens of one image see each other, some layers see only the last tokens."""

    focus = frozenset({'crop'})
    fixed_shapes = False
    why_not = ('the tokens of an image look at each other in both directions, so that leaving '
               'some out or favouring some changes all of them')

    def allowed(self, image: Allowed, new: int) -> Allowed:
        """Return which tokens the last ``new`` may look at: those before, and their image."""
        block = np.where(image, np.cumsum(np.diff(image, prepend=False) & image), 0)
        same = (block[-new:, None] == block[None]) & image[-new:, None]
        both: Allowed = super().allowed(image, new) | same
        return both

    def attention(self, mask: Callable[[Allowed], torch.Tensor], allowed: Allowed) -> Any:
        """Return one mask per kind of layer."""
        new, n = allowed.shape
        window = int(self.text_config.sliding_window)
        near = ~np.tri(new, n, n - new - window, dtype=np.bool_)
        return {'full_attention': mask(allowed), 'sliding_attention': mask(allowed & near)}


class Qwen(Family):
    """Qwen2.5-VL: image tokens have positions in time, height and width."""

    def __init__(self, model: Any) -> None:
        """Find the parts."""
        super().__init__(model)
        self.merge = int(self.tower.spatial_merge_size)
        self._layouts: dict[object, dict[str, Any]] = {}

    def images(self, inputs: Tensors, numbers: list[int]) -> Tensors:
        """Return the patches of some images; those of all images follow each other."""
        grid = inputs['image_grid_thw']
        patches = inputs['pixel_values'].split(grid.prod(1).tolist())
        return {'pixel_values': torch.cat([patches[i] for i in numbers]),
                'image_grid_thw': grid[numbers]}

    def visual(self, inputs: Tensors) -> Visual:
        """
        Return what the vision tower makes of the images.

        What follows from the size of the images alone is worked out once. Lengths stay where
        they are read: on the CPU by the model, on the GPU by packed attention.
        """
        pixels, grid = inputs['pixel_values'], inputs['image_grid_thw']
        layout: dict[str, Any] = {}
        if hasattr(self.tower, 'window_size'):
            key = tuple(map(tuple, grid.tolist()))
            if key not in self._layouts:
                self._layouts[key] = self._lay_out(grid.cpu(), pixels)
            layout, grid = dict(self._layouts[key]), grid.cpu()
        with packed(self.tower.config, pixels) if layout else nullcontext():
            found = self.core.get_image_features(pixels, grid, return_dict=True, **layout)
        deep = getattr(found, 'deepstack_features', None) or ()
        return Visual(torch.cat(list(found.pooler_output)),
                      tuple(torch.cat(list(d)) for d in deep))

    def _lay_out(self, grid: torch.Tensor, pixels: torch.Tensor) -> dict[str, Any]:
        tower, device = self.tower, pixels.device
        windows, ends = vision_utils.get_vision_window_index(
            grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)
        lengths = {'cu_window_seqlens': ends,
                   'cu_seqlens': vision_utils.get_vision_cu_seqlens(grid)}
        layout: dict[str, Any] = {
            'position_ids': vision_utils.get_vision_position_ids(
                grid, tower.spatial_merge_size).to(device), 'window_index': windows.to(device)}
        if not can_pack(pixels):
            return layout | lengths
        longest = {name.replace('cu', 'max').removesuffix('s'): int(ends.diff().max())
                   for name, ends in lengths.items()}
        return layout | longest | {name: ends.to(device, torch.int32)
                                   for name, ends in lengths.items()}

    def positions(self, ids: torch.Tensor, inputs: Tensors) -> torch.Tensor:
        """Return the positions in time, height and width."""
        kinds = (ids == self.image_token).int()[None]
        found, _ = self.core.get_rope_index(
            ids[None], mm_token_type_ids=kinds, image_grid_thw=inputs['image_grid_thw'].cpu())
        return torch.as_tensor(found[:, 0])

    def grid(self, inputs: Tensors, n_images: int, n_tokens: int) -> tuple[int, int]:
        """Return rows and columns of image tokens of each image; all have the same size."""
        _, height, width = inputs['image_grid_thw'][0].tolist()
        return height // self.merge, width // self.merge


class Qwen3(Qwen):
    """Qwen3-VL: as Qwen2.5-VL, with outputs of inner vision layers added to the first layers."""

    fixed_shapes = False

    def decode(self, visual: Visual | None, where: torch.Tensor | None,
               **kwargs: Any) -> torch.Tensor:
        """Run the decoder."""
        if visual is not None and where is not None and visual.deep:
            places = torch.zeros(kwargs['inputs_embeds'].shape[:2], dtype=torch.bool,
                                 device=kwargs['inputs_embeds'].device)
            places[0, where] = True
            kwargs |= {'visual_pos_masks': places, 'deepstack_visual_embeds': list(visual.deep)}
        return super().decode(None, None, **kwargs)


def sizes(inputs: Tensors) -> Hashable:
    """Return what is equal when the images of two prompts have the same sizes."""
    grid = inputs.get('image_grid_thw')
    return (tuple(inputs['pixel_values'].shape),
            None if grid is None else tuple(map(tuple, grid.tolist())))


FAMILIES: Mapping[str, type[Family]] = {
    'idefics3': Idefics3, 'smolvlm': Idefics3, 'llava': Family, 'gemma3': Gemma3,
    'qwen2_5_vl': Qwen, 'qwen3_vl': Qwen3}


def family_of(model: Any) -> Family | None:
    """Return what is known of the model's architecture, None where the engine does not fit."""
    kind = FAMILIES.get(model.config.model_type)
    return kind(model) if kind is not None else None


def use_masks(model: Any) -> None:
    """Have the decoder's attention run by a kernel that takes masks."""
    if model.config.get_text_config()._attn_implementation not in ('eager', 'sdpa'):
        model.set_attn_implementation('sdpa')


def check_focus(backend: str, kind: str, engine: str = 'fast') -> None:
    """Raise ValueError, with the reason, where a focus back-end does not suit a model."""
    family = FAMILIES.get(kind)
    if backend == 'crop' or engine == 'fast' and family is not None and backend in family.focus:
        return
    why = ('model.generate takes no such prompts' if engine != 'fast' else
           'spotvlm has no engine for this architecture' if family is None else family.why_not)
    able = ', '.join(sorted(k for k, f in FAMILIES.items() if backend in f.focus))
    raise ValueError(f'focus_backend {backend!r} cannot be used with this {kind} model: {why}; '
                     f"use 'crop', which suits every model, or engine 'fast' and one of {able}")
