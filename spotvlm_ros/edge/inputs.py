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
Model inputs from views and chat, without the detour that a processor takes.

What a processor does to a prompt is learned from one: which text it puts in place of an image,
around the tokens that stand for it, and which tokens its tokenizer begins with. What it does to
pixels is known for three kinds: whole images, images in a list per prompt (Idefics3, SmolVLM) and
patches (Qwen).

A transformers processor converts each image to PIL and back and checks its arguments anew for each
frame, which costs several milliseconds. Where views have the size that the processor asks for, all
it does to pixels is to scale and shift them, and all it does to the text is to put the same tokens
in place of each image. Whether that holds is not assumed but tried when the model is loaded, and
again for each query at warm-up; if anything differs, the processor is used.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
import sys

import cv2
import numpy as np
import torch
from transformers import ProcessorMixin

from ..method.focus import Image
from ..method.prompt import Message, MessagePart

SUPPORTED = {'input_ids', 'attention_mask', 'pixel_values', 'pixel_attention_mask',
             'token_type_ids', 'mm_token_type_ids', 'image_grid_thw'}
KINDS = ('token_type_ids', 'mm_token_type_ids')   # 1 where a token stands for an image
MAX_BUFFERS = 4   # of pixels that are kept for the frames to come
MAX_PROMPTS = 32  # prompts whose tokens are kept; a prompt changes only with its context


class InputProcessor:
    """
    Makes a model's inputs; ``fast`` tells whether the processor is bypassed.

    A chat holds a placeholder for each of its images, which are height x width x 3, RGB.
    """

    def __init__(self, processor: ProcessorMixin, view_size: tuple[int, int]) -> None:
        """Learn what the processor does to one image of ``view_size`` (width, height)."""
        self.processor = processor
        self.fast = False
        self._tokens: OrderedDict[str, list[int]] = OrderedDict()
        self._buffers = Buffers()
        self._channels = [np.empty((0, 0), np.uint8)]   # of a view, apart
        try:
            self.fast = self._probe(view_size)
        except (AttributeError, KeyError, TypeError, ValueError, IndexError):
            pass  # another kind of processor: it is used as it is

    def __call__(self, chat: Sequence[Message], views: Sequence[Image]) -> dict[str, torch.Tensor]:
        """Return the model's inputs, a batch of one."""
        return self._build(chat, views) if self.fast else self.process(chat, views)

    def process(self, chat: Sequence[Message], views: Sequence[Image]) -> dict[str, torch.Tensor]:
        """Return what the processor makes."""
        text = self.processor.apply_chat_template(list(chat), add_generation_prompt=True)
        # As transformers does it: a template that begins with the first token has written it.
        options = {'add_special_tokens': False} if self._begins_with_bos(text) else {}
        return dict(self.processor(images=list(views), text=text, return_tensors='pt', **options))

    def _begins_with_bos(self, text: str) -> bool:
        bos = getattr(self.processor.tokenizer, 'bos_token', None)
        return isinstance(bos, str) and bool(bos) and text.startswith(bos)

    def check(self, chat: Sequence[Message], views: Sequence[Image]) -> bool:
        """Compare both ways on a prompt; use the processor from now on where they differ."""
        if self.fast:
            built, processed = self._build(chat, views), self.process(chat, views)
            self.fast = built.keys() == processed.keys() and all(
                built[k].shape == processed[k].shape
                and torch.allclose(built[k], processed[k].to(built[k].dtype), rtol=0.0, atol=1e-5)
                for k in built)
        return self.fast

    def _probe(self, view_size: tuple[int, int]) -> bool:
        """Find out what the processor does; return whether `_build` gives the same."""
        images, self._tokenizer = self.processor.image_processor, self.processor.tokenizer
        self._image_token = str(self.processor.image_token)
        mean, std = (torch.tensor(x)[:, None] for x in (images.image_mean, images.image_std))
        levels = torch.arange(256.0).expand(3, -1) * float(images.rescale_factor)
        self._levels = ((levels - mean) / std).numpy()   # channels x what each value becomes
        blank = np.zeros((view_size[1], view_size[0], 3), dtype=np.uint8)
        one = self.processor(images=[blank], text=self._image_token, return_tensors='pt')
        lead = self._lead()
        ids = one['input_ids'][0].tolist()
        if ids[:len(lead)] != lead:
            return False
        self._read_image_text(ids[len(lead):])
        self._kinds = {name: one[name].dtype for name in KINDS if name in one}
        self._mask_shape = (tuple(one['pixel_attention_mask'].shape[-2:])
                            if 'pixel_attention_mask' in one else None)
        self._mask = torch.ones((1, 1, 1, 1), dtype=torch.int64)
        self._ndim = one['pixel_values'].ndim
        self._patches = (None if 'image_grid_thw' not in one else
                         (int(images.patch_size), int(images.merge_size),
                          int(images.temporal_patch_size)))
        if not set(one) <= SUPPORTED or self._ndim not in ((4, 5) if self._patches is None
                                                           else (2,)):
            return False
        self.fast = True
        noise = np.random.default_rng(0).integers(0, 256, blank.shape, dtype=np.uint8)
        content: list[MessagePart] = [{'type': 'image'}, {'type': 'image'},
                                      {'type': 'text', 'text': 'a: b|c\n?'}]
        return self.check([{'role': 'user', 'content': content}], [noise, noise[::-1].copy()])

    def _lead(self) -> list[int]:
        """Return the tokens that the tokenizer puts before any text."""
        plain = self._tokenizer('a', add_special_tokens=False)['input_ids']
        whole = self._tokenizer('a')['input_ids']
        return list(whole[:len(whole) - len(plain)])

    def _read_image_text(self, ids: list[int]) -> None:
        """Learn from the tokens of one image the text around it, with one token in its place."""
        (self._image_id, self._per_image), = Counter(ids).most_common(1)
        image = self._image_id
        single = [t for i, t in enumerate(ids) if t != image or ids[i - 1:i] != [image]]
        self._image_text = str(self._tokenizer.decode(single, skip_special_tokens=False,
                                                      clean_up_tokenization_spaces=False))

    def _build(self, chat: Sequence[Message], views: Sequence[Image]) -> dict[str, torch.Tensor]:
        input_ids = torch.tensor([self.encode(chat)])
        pixels = self._scaled(views)
        inputs = {'input_ids': input_ids, 'attention_mask': torch.ones_like(input_ids)}
        if self._patches is not None:
            inputs['pixel_values'] = as_patches(pixels, *self._patches, self._buffers)
            side = self._patches[0]
            inputs['image_grid_thw'] = torch.tensor(
                [[1, pixels.shape[2] // side, pixels.shape[3] // side]] * len(views))
        else:
            inputs['pixel_values'] = pixels[None] if self._ndim == 5 else pixels
        for name, dtype in self._kinds.items():
            inputs[name] = (input_ids == self._image_id).to(dtype)
        if self._mask_shape is not None:
            inputs['pixel_attention_mask'] = self._mask.expand(1, len(views), *self._mask_shape)
        return inputs

    def _scaled(self, views: Sequence[Image]) -> torch.Tensor:
        """Return pixels as the model takes them, views x 3 x height x width."""
        pixels = self._buffers.take((len(views), 3, *views[0].shape[:2]))
        for view, planes in zip(views, pixels):
            if self._channels[0].shape != view.shape[:2]:
                self._channels = [np.empty(view.shape[:2], np.uint8) for _ in range(3)]
            cv2.split(view, self._channels)
            for channel, levels, plane in zip(self._channels, self._levels, planes):
                cv2.LUT(channel, levels, plane)
        return torch.from_numpy(pixels)

    def encode(self, chat: Sequence[Message]) -> list[int]:
        """Return the tokens of a chat, from memory where it was seen lately."""
        key = repr(chat)
        ids = self._tokens.pop(key, None)
        if ids is None:
            text = self._tokenizer.apply_chat_template(
                list(chat), chat_template=self.processor.chat_template, tokenize=False,
                add_generation_prompt=True)
            whole = self._tokenizer(text.replace(self._image_token, self._image_text),
                                    add_special_tokens=not self._begins_with_bos(text))
            ids = []
            for token in whole['input_ids']:
                ids += [token] * (self._per_image if token == self._image_id else 1)
        self._tokens[key] = ids
        if len(self._tokens) > MAX_PROMPTS:
            self._tokens.popitem(last=False)
        return ids


class Buffers:
    """Arrays that are taken again once nobody holds them: the first write to memory is slow."""

    def __init__(self) -> None:
        """Have none yet."""
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of a shape, fp32, with anything in it."""
        arrays = self._arrays
        for i in range(len(arrays)):   # held here and by the call alone; a tensor of it holds it
            if arrays[i].shape == shape and sys.getrefcount(arrays[i]) == 2:
                arrays.append(arrays.pop(i))
                return arrays[-1]
        arrays.append(np.empty(shape, np.float32))
        del arrays[:-MAX_BUFFERS]
        return arrays[-1]


def as_patches(pixels: torch.Tensor, patch: int, merge: int, times: int,
               buffers: Buffers) -> torch.Tensor:
    """
    Return the patches of images, each image's after the other's, as Qwen's processor orders them.

    ``pixels``: images x 3 x height x width. Patches that are merged into one token follow each
    other; each is given ``times`` times, as pictures of a video would be.
    """
    n, channels, height, width = pixels.shape
    rows, columns = height // patch // merge, width // patch // merge
    patches = pixels.view(n, channels, rows, merge, patch, columns, merge, patch)
    patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :]
    found = torch.from_numpy(buffers.take((n * rows * columns * merge * merge,
                                           channels * times * patch * patch)))
    found.view(*patches.shape[:6], times, patch, patch).copy_(patches)
    return found
