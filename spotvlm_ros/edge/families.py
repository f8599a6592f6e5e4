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
tokens, a decoder and a head. The families differ in the positions of image tokens (Qwen), in what
attends to what (in Gemma 3 the tokens of one image do to each other), and in what the vision tower
feeds to later layers (Qwen3-VL). Weights and forward passes are those of transformers.

The engine makes the attention masks itself, and focus by ``attention`` adds to them. The kernels
of `eager` and `sdpa` take such masks; `flash_attention_2` and `flex_attention` do not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, vision_utils

from . import packed_attention

Tensors = Mapping[str, torch.Tensor]
BoolArray = npt.NDArray[np.bool_]
DecoderMask: TypeAlias = torch.Tensor | dict[str, torch.Tensor]   # or one per kind of layer
Layout: TypeAlias = dict[str, torch.Tensor | int]
# Decoder layers that differ in nothing but sizes and biases.
LLAMA_LIKE = ('LlamaDecoderLayer', 'MistralDecoderLayer', 'Qwen2DecoderLayer',
              'Qwen2_5_VLDecoderLayer')


@dataclass(frozen=True)
class ImageFeatures:
    """Output of the vision tower: one row per image token, also of what later layers get."""

    embeddings: torch.Tensor                      # image tokens x width of the decoder
    deepstack: tuple[torch.Tensor, ...] = ()      # added to the output of the first layers, each

    def select(self, rows: torch.Tensor) -> ImageFeatures:
        """Return the features of some image tokens."""
        return ImageFeatures(self.embeddings[rows], tuple(d[rows] for d in self.deepstack))

    def split(self, images: int) -> list[ImageFeatures]:
        """Return the features of each of several images of one size."""
        deepstack = [d.chunk(images) for d in self.deepstack]
        return [ImageFeatures(embeddings, tuple(d[i] for d in deepstack))
                for i, embeddings in enumerate(self.embeddings.chunk(images))]

    @staticmethod
    def concatenate(parts: Sequence[ImageFeatures]) -> ImageFeatures:
        """Return the features of several images as one."""
        return ImageFeatures(torch.cat([p.embeddings for p in parts]),
                             tuple(torch.cat(d) for d in zip(*(p.deepstack for p in parts))))


class ModelFamily:
    """A model whose image tokens have plain positions and plain causal attention (LLaVA)."""

    focus_backends: frozenset[str] = frozenset({'crop', 'tokens', 'attention'})
    focus_limit = ''      # why there are no others
    fixed_shapes = True   # a forward pass is the same computation whatever the tokens are
    causal = True         # tokens attend to those before them, and to no others

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the parts of a loaded `...ForConditionalGeneration`."""
        self.backbone = model.model
        self.decoder = getattr(self.backbone, 'language_model', None) or self.backbone.text_model
        self.vision_tower = next(
            getattr(self.backbone, name) for name in ('visual', 'vision_model', 'vision_tower')
            if hasattr(self.backbone, name))
        self.vision_layers = max((m for m in self.vision_tower.modules()
                                  if isinstance(m, torch.nn.ModuleList)), key=len)
        self.lm_head = model.get_output_embeddings()
        self.embed_tokens = model.get_input_embeddings()
        self.image_token_id = int(model.config.image_token_id)
        self.text_config = model.config.get_text_config()

    @property
    def vision_dtype(self) -> torch.dtype:
        """Return the dtype of the pixels that the vision tower takes."""
        return next(p.dtype for p in self.vision_tower.parameters() if p.is_floating_point())

    def select_images(self, inputs: Tensors, indices: list[int]) -> Tensors:
        """Return what the vision tower needs of some of the images."""
        return {'pixel_values': inputs['pixel_values'][indices]}

    @staticmethod
    def join_images(parts: Sequence[Tensors]) -> Tensors:
        """Return what `select_images` gave of several prompts as one."""
        axis = _image_axis(parts[0])
        return {name: torch.cat([part[name] for part in parts], axis) for name in parts[0]}

    def encode_images(self, inputs: Tensors) -> ImageFeatures:
        """Run the vision tower on all images of ``inputs``."""
        output = self.backbone.get_image_features(pixel_values=inputs['pixel_values'],
                                                  return_dict=True).pooler_output
        rows = torch.cat(list(output)) if isinstance(output, (list, tuple)) else output
        return ImageFeatures(rows.reshape(-1, rows.shape[-1]))

    def position_ids(self, ids: torch.Tensor, inputs: Tensors) -> torch.Tensor:
        """Return the positions of a prompt's tokens, axes x tokens."""
        return torch.arange(len(ids))[None]

    def token_grid(self, inputs: Tensors, n_images: int, n_tokens: int) -> tuple[int, int]:
        """
        Return rows and columns of the image tokens of each image, of ``n_tokens`` in all.

        Raise ValueError where they are no squares.
        """
        side = round((n_tokens / max(1, n_images)) ** 0.5)
        if side * side * n_images != n_tokens:
            raise ValueError(f'{n_tokens} image tokens are not {n_images} squares; use the focus '
                             "back-end 'crop' with this model")
        return side, side

    def attention_mask(self, image: BoolArray, new: int) -> BoolArray:
        """
        Return which tokens the last ``new`` attend to, new x tokens.

        ``image``: tokens, whether each is an image token.
        """
        n = len(image)
        return np.tri(new, n, n - new, dtype=np.bool_)

    def decoder_mask(self, as_bias: Callable[[BoolArray], torch.Tensor],
                     attended: BoolArray) -> DecoderMask:
        """Return the mask as the decoder takes it; ``as_bias`` makes a mask what is added."""
        return as_bias(attended)

    def forward(self, inputs_embeds: torch.Tensor, features: ImageFeatures | None,
                slots: torch.Tensor | None, **options: object) -> torch.Tensor:
        """
        Run the decoder; return its last hidden states, 1 x tokens x width.

        ``features`` are those of the image tokens among its inputs, which are at ``slots``.
        """
        hidden: torch.Tensor = self.decoder(inputs_embeds=inputs_embeds,
                                            **options).last_hidden_state
        return hidden


class Idefics3Family(ModelFamily):
    """Idefics3 and SmolVLM."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the parts; position embeddings are learned for each shape of the pixels."""
        super().__init__(model)
        self._patch_positions: dict[tuple[int, ...], torch.Tensor] = {}

    def select_images(self, inputs: Tensors, indices: list[int]) -> Tensors:
        """Return the pixels of some images, of which there is a list for each prompt."""
        return {'pixel_values': inputs['pixel_values'][:, indices]}

    def encode_images(self, inputs: Tensors) -> ImageFeatures:
        """
        Run the vision tower on all images of ``inputs``.

        The model's own `get_image_features` looks for pixels that are padding, and finds the
        position of each patch, anew for each frame. Our views have no padding and one size, so
        the layers are called directly; positions are taken from the model's own forward pass once.
        """
        pixels, tower = inputs['pixel_values'].flatten(0, 1), self.vision_tower
        positions = self._patch_positions.get(tuple(pixels.shape))
        if positions is None:
            positions = self._position_embeddings(pixels)
            self._patch_positions[tuple(pixels.shape)] = positions
        patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        output = tower.encoder(inputs_embeds=patches + positions, attention_mask=None)
        rows = self.backbone.connector(tower.post_layernorm(output.last_hidden_state))
        return ImageFeatures(rows.reshape(-1, rows.shape[-1]))

    def _position_embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the vision tower adds to each patch for its position."""
        embeddings, outputs = self.vision_tower.embeddings, list[torch.Tensor]()
        patch = self.backbone.config.vision_config.patch_size
        real = torch.ones((len(pixels), pixels.shape[2] // patch, pixels.shape[3] // patch),
                          dtype=torch.bool, device=pixels.device)
        hook = embeddings.position_embedding.register_forward_hook(
            lambda module, args, output: outputs.append(output))
        try:
            embeddings(pixel_values=pixels, patch_attention_mask=real)
        finally:
            hook.remove()
        return outputs[0]


class Gemma3Family(ModelFamily):
    """Gemma 3: tokens of one image attend to each other, some layers to the last tokens only."""

    focus_backends = frozenset({'crop'})
    focus_limit = ('the tokens of an image look at each other in both directions, so that leaving '
                   'some out or favouring some changes all of them')
    fixed_shapes = False
    causal = False

    def attention_mask(self, image: BoolArray, new: int) -> BoolArray:
        """Return what the last ``new`` tokens attend to: those before, and their image."""
        block = np.where(image, np.cumsum(np.diff(image, prepend=False) & image), 0)
        same_image = (block[-new:, None] == block[None]) & image[-new:, None]
        mask: BoolArray = super().attention_mask(image, new) | same_image
        return mask

    def decoder_mask(self, as_bias: Callable[[BoolArray], torch.Tensor],
                     attended: BoolArray) -> DecoderMask:
        """Return one mask per kind of layer."""
        new, n = attended.shape
        window = int(self.text_config.sliding_window)
        near = ~np.tri(new, n, n - new - window, dtype=np.bool_)
        return {'full_attention': as_bias(attended), 'sliding_attention': as_bias(attended & near)}


class Qwen25VLFamily(ModelFamily):
    """Qwen2.5-VL: image tokens have positions in time, height and width."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the parts; the layout of windows is worked out for each grid of patches."""
        super().__init__(model)
        self.merge_size = int(self.vision_tower.spatial_merge_size)
        self._layouts: dict[object, Layout] = {}

    def select_images(self, inputs: Tensors, indices: list[int]) -> Tensors:
        """Return the patches of some images; those of all images follow each other."""
        grid = inputs['image_grid_thw']
        patches = inputs['pixel_values'].split(grid.prod(1).tolist())
        return {'pixel_values': torch.cat([patches[i] for i in indices]),
                'image_grid_thw': grid[indices]}

    def encode_images(self, inputs: Tensors) -> ImageFeatures:
        """
        Run the vision tower on all images of ``inputs``.

        What follows from the size of the images alone is worked out once. Lengths stay where
        they are read: on the CPU by the model, on the GPU by packed attention.
        """
        pixels, grid = inputs['pixel_values'], inputs['image_grid_thw']
        layout: Layout = {}
        if hasattr(self.vision_tower, 'window_size'):
            key = tuple(map(tuple, grid.tolist()))
            if key not in self._layouts:
                self._layouts[key] = self._window_layout(grid.cpu(), pixels)
            layout, grid = dict(self._layouts[key]), grid.cpu()
        with (packed_attention.packed(self.vision_tower.config, pixels) if layout
              else nullcontext()):
            output = self.backbone.get_image_features(pixels, grid, return_dict=True, **layout)
        deepstack = getattr(output, 'deepstack_features', None) or ()
        return ImageFeatures(torch.cat(list(output.pooler_output)),
                             tuple(torch.cat(list(d)) for d in deepstack))

    def _window_layout(self, grid: torch.Tensor, pixels: torch.Tensor) -> Layout:
        """Return what the vision tower would work out from the grid, images x (t, h, w)."""
        tower, device = self.vision_tower, pixels.device
        windows, ends = vision_utils.get_vision_window_index(
            grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)
        lengths = {'cu_window_seqlens': ends,
                   'cu_seqlens': vision_utils.get_vision_cu_seqlens(grid)}
        layout: Layout = {
            'position_ids': vision_utils.get_vision_position_ids(
                grid, tower.spatial_merge_size).to(device), 'window_index': windows.to(device)}
        if not packed_attention.can_pack(pixels):
            return layout | lengths
        longest = {name.replace('cu', 'max').removesuffix('s'): int(ends.diff().max())
                   for name, ends in lengths.items()}
        return layout | longest | {name: ends.to(device, torch.int32)
                                   for name, ends in lengths.items()}

    def position_ids(self, ids: torch.Tensor, inputs: Tensors) -> torch.Tensor:
        """Return the positions in time, height and width, 3 x tokens."""
        kinds = (ids == self.image_token_id).int()[None]
        positions, _ = self.backbone.get_rope_index(
            ids[None], mm_token_type_ids=kinds, image_grid_thw=inputs['image_grid_thw'].cpu())
        return torch.as_tensor(positions[:, 0])

    def token_grid(self, inputs: Tensors, n_images: int, n_tokens: int) -> tuple[int, int]:
        """Return rows and columns of image tokens of each image; all have the same size."""
        _, height, width = inputs['image_grid_thw'][0].tolist()
        return height // self.merge_size, width // self.merge_size


class Qwen3VLFamily(Qwen25VLFamily):
    """Qwen3-VL: as Qwen2.5-VL, with outputs of inner vision layers added to the first layers."""

    fixed_shapes = False

    def forward(self, inputs_embeds: torch.Tensor, features: ImageFeatures | None,
                slots: torch.Tensor | None, **options: object) -> torch.Tensor:
        """Run the decoder; return its last hidden states, 1 x tokens x width."""
        if features is not None and slots is not None and features.deepstack:
            image = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool,
                                device=inputs_embeds.device)
            image[0, slots] = True
            options |= {'visual_pos_masks': image,
                        'deepstack_visual_embeds': [
                            d.to(inputs_embeds.dtype) for d in features.deepstack]}
        return super().forward(inputs_embeds, None, None, **options)


def count_images(inputs: Tensors) -> int:
    """Return how many images a prompt has."""
    grid = inputs.get('image_grid_thw')
    return len(grid) if grid is not None else inputs['pixel_values'].shape[_image_axis(inputs)]


def _image_axis(inputs: Tensors) -> int:
    """Return the axis of the images in ``pixel_values``: Idefics3 has a list of them."""
    return 1 if inputs['pixel_values'].ndim == 5 else 0


def input_shapes(inputs: Tensors) -> Hashable:
    """Return what is equal when the images of two prompts have the same sizes."""
    grid = inputs.get('image_grid_thw')
    return (tuple(inputs['pixel_values'].shape),
            None if grid is None else tuple(map(tuple, grid.tolist())))


FAMILIES: Mapping[str, type[ModelFamily]] = {
    'idefics3': Idefics3Family, 'smolvlm': Idefics3Family, 'llava': ModelFamily,
    'gemma3': Gemma3Family, 'qwen2_5_vl': Qwen25VLFamily, 'qwen3_vl': Qwen3VLFamily}


def model_family(model: PreTrainedModel) -> ModelFamily | None:
    """Return what is known of the model's architecture, None where the engine does not fit."""
    family = FAMILIES.get(model.config.model_type)
    return family(model) if family is not None else None


def use_maskable_attention(model: PreTrainedModel) -> None:
    """Have the decoder's attention run by a kernel that takes masks."""
    if model.config.get_text_config()._attn_implementation not in ('eager', 'sdpa'):
        model.set_attn_implementation('sdpa')


def check_focus(backend: str, model_type: str, engine: str = 'fast') -> None:
    """Raise ValueError, with the reason, where a focus back-end does not suit a model."""
    family = FAMILIES.get(model_type)
    if backend == 'crop' or (engine == 'fast' and family is not None
                             and backend in family.focus_backends):
        return
    why = ('model.generate takes no such prompts' if engine != 'fast' else
           'spotvlm has no engine for this architecture' if family is None else family.focus_limit)
    able = ', '.join(sorted(k for k, f in FAMILIES.items() if backend in f.focus_backends))
    raise ValueError(f'focus_backend {backend!r} cannot be used with this {model_type} model: '
                     f"{why}; use 'crop', which suits every model, or engine 'fast' and one of "
                     f'{able}')
