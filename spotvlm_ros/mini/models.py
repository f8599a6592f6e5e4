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
The two miniature models: shapes, tokenizer and processor.

Both are ordinary Idefics3 checkpoints (the architecture that SmolVLM uses), loaded as any other
model is. Programs that are given one by name warn that it is small, see ``shipped``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers import PreTrainedTokenizerFast

PAD, END = '<pad>', '<end_of_utterance>'
SPECIAL = (PAD, '<s>', END, '<fake_token_around_image>', '<image>', '<global-img>')

# A key with its colon, an age, and the fixed parts of the JSON reply are one piece each, so that a
# fact costs two tokens to write; any other text falls apart into words, numbers and bytes.
_PIECES = (r'\{"label": "|", "bbox_2d": \[|\], "value": "|", "value": "|"\}, |"\}\]'
           r'|\n?[A-Za-z_]+:| \(\d+\.\d s ago\)|,? ?\d+(?:\.\d+)?|[\n ]?[A-Za-z_]+'
           r'|[^A-Za-z0-9_\s]|\s+')

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize + ':' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")


@dataclass(frozen=True)
class Shape:
    """Size of a miniature model; a picture, or tile of one, is squeezed to a square [pixels]."""

    name: str
    image: int
    patch: int
    shuffle: int
    tiles: tuple[int, int]              # columns, rows that the processor cuts a 4:3 picture into
    vision: tuple[int, int, int]        # hidden, layers, heads
    text: tuple[int, int, int, int]     # hidden, layers, heads, feed-forward

    @property
    def tokens_per_image(self) -> int:
        """Visual tokens that one image becomes."""
        return (self.image // self.patch // self.shuffle) ** 2

    @property
    def images(self) -> int:
        """Images that one picture becomes: its tiles and the whole."""
        columns, rows = self.tiles
        return columns * rows + 1 if columns > 1 else 1


EDGE = Shape('spot-mini-edge', 48, 8, 2, (1, 1), (160, 5, 5), (192, 4, 4, 448))
CLOUD = Shape('spot-mini-cloud', 96, 8, 2, (5, 4), (160, 5, 5), (192, 4, 4, 448))


def build_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on the corpus; reads any other text too."""
    from tokenizers import decoders, models, pre_tokenizers, Regex, Tokenizer, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PIECES), 'isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=1400, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token='<s>', eos_token=END,
        additional_special_tokens=list(SPECIAL[3:]), padding_side='left',
        model_max_length=2048, clean_up_tokenization_spaces=False)


def add_tile_tags(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> None:
    """Give the tokenizer the tags that Idefics3 puts before the tiles of a picture."""
    side = range(1, max(shape.tiles) + 1)  # portraits have as many rows as others have columns
    tags = [f'<row_{r}_col_{c}>' for r in side for c in side]
    tokenizer.add_tokens(tags, special_tokens=True)


def expand_images(shape: Shape, text: str) -> str:
    """Replace each image placeholder as the processor does for a picture of 4:3."""
    image = '<image>' * shape.tokens_per_image
    whole = f'<fake_token_around_image><global-img>{image}<fake_token_around_image>'
    if shape.images > 1:
        columns, rows = shape.tiles
        lines = [''.join(f'<fake_token_around_image><row_{r + 1}_col_{c + 1}>{image}'
                         for c in range(columns)) + '\n' for r in range(rows)]
        whole = ''.join(lines) + '\n' + whole
    return text.replace('<image>', whole)


def cut(shape: Shape, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the images that the processor makes of a 4:3 picture, n x side x side x 3."""
    from PIL import Image

    def squeeze(image: Image.Image, width: int, height: int) -> Image.Image:
        return image.resize((width, height), Image.Resampling.BILINEAR)

    (columns, rows), side = shape.tiles, shape.image
    if shape.images == 1:
        raise ValueError(f'{shape.name} is given views, not tiles')
    height, width = picture.shape[:2]
    image = squeeze(Image.fromarray(picture), columns * side, columns * side * height // width)
    image = squeeze(image, columns * side, rows * side)
    whole = np.asarray(squeeze(image, side, side))
    tiles = np.asarray(image).reshape(rows, side, columns, side, 3).swapaxes(1, 2)
    return np.concatenate([tiles.reshape(-1, side, side, 3), whole[None]])


def build_processor(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """Return the processor: squeezes each picture to the model's square, after cutting tiles."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil)

    images = Idefics3ImageProcessorPil(
        do_image_splitting=shape.images > 1, size={'longest_edge': shape.image * shape.tiles[0]},
        max_image_size={'longest_edge': shape.image}, resample=2, do_rescale=True,
        rescale_factor=1 / 255, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Idefics3Processor(images, tokenizer, image_seq_len=shape.tokens_per_image,
                             chat_template=CHAT_TEMPLATE)


def build_model(shape: Shape, tokenizer: PreTrainedTokenizerFast
                ) -> Idefics3ForConditionalGeneration:
    """Return the model with random weights."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    vision, layers, heads = shape.vision
    hidden, text_layers, text_heads, feed = shape.text
    ids = {'pad_token_id': tokenizer.pad_token_id, 'bos_token_id': tokenizer.bos_token_id,
           'eos_token_id': tokenizer.eos_token_id}
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids('<image>'), scale_factor=shape.shuffle,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        vision_config={
            'hidden_size': vision, 'intermediate_size': 4 * vision, 'num_hidden_layers': layers,
            'num_attention_heads': heads, 'image_size': shape.image, 'patch_size': shape.patch},
        text_config={
            'model_type': 'llama', 'vocab_size': -(-len(tokenizer) // 64) * 64,
            'hidden_size': hidden, 'intermediate_size': feed, 'num_hidden_layers': text_layers,
            'num_attention_heads': text_heads, 'num_key_value_heads': text_heads,
            'max_position_embeddings': 2048, 'rms_norm_eps': 1e-5, 'tie_word_embeddings': True,
            **ids})
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config.update(do_sample=False, **ids)
    return model
