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
Processors as checkpoints ship them: read without what only videos need, and set to one view size.

Processors cut an image into tiles or scale it up to use the resolution of a photograph. A frame
has two views instead, its own and that of the focus, each of the size that the vision tower was
trained at; so no tiles are made, and views are neither enlarged nor shrunk again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, Idefics3Processor
from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedTokenizerBase
from transformers import ProcessorMixin

from ..method.focus import Image
from ..method.prompt import Message

HERE = {'local_files_only': True, 'trust_remote_code': False}
VIEW_SIDE = 384  # of a view where the processor takes any size [pixels]


class UnusableError(ValueError):
    """What is wrong with a checkpoint that was read, and the remedy."""


class QwenProcessor:
    """What the processors of Qwen2.5-VL and Qwen3-VL do to images and text; theirs want videos."""

    image_token = '<|image_pad|>'

    def __init__(self, images: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase,
                 chat_template: str | None) -> None:
        """Join an image processor and a tokenizer."""
        self.image_processor, self.tokenizer = images, tokenizer
        self.chat_template = chat_template
        self.image_token = getattr(tokenizer, 'image_token', None) or self.image_token

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what it was made of."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.chat_template is not None:
            (Path(folder) / 'chat_template.jinja').write_text(self.chat_template, 'utf-8')

    def apply_chat_template(self, chat: Sequence[Message],
                            add_generation_prompt: bool = False) -> str:
        """Return the prompt."""
        return str(self.tokenizer.apply_chat_template(
            chat, chat_template=self.chat_template, tokenize=False,
            add_generation_prompt=add_generation_prompt))

    def __call__(self, images: Sequence[Image], text: str, return_tensors: str = 'pt',
                 **options: object) -> dict[str, torch.Tensor]:
        """Return the inputs of one prompt, with as many tokens as are left of each image."""
        given = self.image_processor(list(images), return_tensors=return_tensors)
        merged = int(self.image_processor.merge_size) ** 2
        head, *parts = text.split(self.image_token)
        for grid, part in zip(given['image_grid_thw'], parts, strict=True):
            head += self.image_token * (int(grid.prod()) // merged) + part
        words = self.tokenizer(head, return_tensors=return_tensors, **options)
        image = self.tokenizer.convert_tokens_to_ids(self.image_token)
        ids = words['input_ids']
        return {'input_ids': ids, 'attention_mask': words['attention_mask'],
                'mm_token_type_ids': (ids == image).int(), **given}


def load_processor(path: Path, kind: object) -> ProcessorMixin:
    """
    Return the processor of a checkpoint of a ``kind`` (model_type); errors of transformers pass.

    Those of SmolVLM and Qwen need torchvision, and SmolVLM's num2words, for videos alone. Without
    them the processor is made of its parts for images and text.
    """
    try:
        return AutoProcessor.from_pretrained(path, **HERE)
    except (ImportError, ValueError):
        made = _without_video(path, str(kind))
        if made is None:
            raise
        return made


def _without_video(path: Path, kind: str) -> ProcessorMixin | None:
    """Return a processor of images and text, None of other kinds or where a part is missing."""
    if kind not in WITHOUT_VIDEO:
        return None
    try:
        images = AutoImageProcessor.from_pretrained(path, **HERE)
        tokenizer = AutoTokenizer.from_pretrained(path, **HERE)
    except Exception:  # of any type; what the whole processor raised is told instead
        return None
    return WITHOUT_VIDEO[kind](path, images, tokenizer)


def _smolvlm(path: Path, images: BaseImageProcessor,
             tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin:
    settings = json_object(path / 'processor_config.json')
    return Idefics3Processor(images, tokenizer, image_seq_len=settings.get('image_seq_len', 64),
                             chat_template=_template(path, tokenizer))


def _qwen(path: Path, images: BaseImageProcessor,
          tokenizer: PreTrainedTokenizerBase) -> QwenProcessor:
    return QwenProcessor(images, tokenizer, _template(path, tokenizer))


def _template(path: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template, from where it may be."""
    file = path / 'chat_template.jinja'
    if file.is_file():
        return file.read_text('utf-8')
    template = json_object(path / 'chat_template.json').get('chat_template')
    return template if isinstance(template, str) else tokenizer.chat_template


WITHOUT_VIDEO: Mapping[str, Callable[..., ProcessorMixin]] = {
    'smolvlm': _smolvlm, 'qwen2_5_vl': _qwen, 'qwen3_vl': _qwen}


def set_view_size(processor: ProcessorMixin, config: PretrainedConfig,
                  wanted: int = 0) -> tuple[int, int]:
    """
    Return width and height of a view, and have the processor take views of it as they are.

    ``wanted`` is a side in pixels, 0 for that which the checkpoint was trained at. Raise
    UnusableError where its vision tower has no such size.
    """
    images = processor.image_processor
    if getattr(images, 'do_image_splitting', False):
        images.do_image_splitting = False  # two views are the budget; tiles would multiply it
    size = dict(getattr(images, 'size', None) or {})
    longest = dict(getattr(images, 'max_image_size', None) or {}).get('longest_edge')
    merge = getattr(images, 'merge_size', None)
    if longest:
        return _set_tile(processor, config, int(longest), wanted)
    if merge:  # Qwen takes any multiple of this, up to a number of pixels
        step = int(images.patch_size) * int(merge)
        most = int(size.get('longest_edge') or VIEW_SIDE ** 2) ** 0.5
        side = max(step, min(round((wanted or VIEW_SIDE) / step), int(most / step)) * step)
        _check_side(wanted, step, int(most / step) * step)
        if side ** 2 < int(size.get('shortest_edge') or 0):  # else it would be scaled up
            images.size = {**size, 'shortest_edge': side ** 2}
        return side, side
    if size.get('height') and size.get('width'):
        width, height = int(size['width']), int(size['height'])
    else:
        width = height = int(size.get('shortest_edge') or VIEW_SIDE)
    if wanted not in (0, width):
        raise UnusableError(f'view_size is {wanted}, but the vision tower takes pictures of '
                            f'{width} pixels only; leave it at 0')
    return width, height


def _set_tile(processor: ProcessorMixin, config: PretrainedConfig, tile: int,
              wanted: int) -> tuple[int, int]:
    """Have a processor of tiles (Idefics3, SmolVLM) take one of a size for the whole image."""
    images, side = processor.image_processor, wanted or tile
    if side != tile:
        vision = getattr(config, 'vision_config', None)
        step = int(getattr(vision, 'patch_size', 1)) * int(getattr(config, 'scale_factor', 1))
        _check_side(wanted, step, tile)
        images.max_image_size = {'longest_edge': side}
        processor.image_seq_len = (side // step) ** 2
    # The processor scales to `size` first, and SmolVLM's is four tiles: up, only to come down.
    images.size = {'longest_edge': side}
    return side, side


def _check_side(wanted: int, step: int, most: int) -> None:
    if wanted and (wanted % step or not step <= wanted <= most):
        raise UnusableError(f'view_size is {wanted}; use a multiple of {step} up to {most}, or 0')


def json_content(file: Path) -> object:
    """Return what a file holds, None where that is no JSON."""
    try:
        return json.loads(file.read_text('utf-8'))
    except (OSError, ValueError, RecursionError):
        return None


def json_object(file: Path) -> dict[str, object]:
    """Return what a file holds, {} where that is no JSON object."""
    content = json_content(file)
    return content if isinstance(content, dict) else {}
