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
"""Tiny checkpoints of every supported architecture with random weights, and their processors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.method.facts import Fact
from spotvlm_ros.method.focus import FocusConfig
from spotvlm_ros.method.guard import OFF
import torch
import transformers as hf
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

END = '<end_of_utterance>'
SPECIAL = ('<pad>', '<s>', END, '<fake_token_around_image>', '<image>', '<global-img>',
           '<start_of_image>', '<end_of_image>', '<video>')
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize + ':' }}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}")
TEXT = {'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 3,
        'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 8,
        'max_position_embeddings': 1024, 'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2,
        'tie_word_embeddings': True}
VISION = {'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2,
          'num_attention_heads': 4, 'image_size': 32, 'patch_size': 4}


def tokenizer() -> Any:
    """Return a byte-level tokenizer with a few merged words."""
    from tokenizers import decoders, models, pre_tokenizers, Tokenizer, trainers
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        ['light: red\nlead: none\nlight: green\nlead: braking\ngo stop slow'] * 9,
        trainers.BpeTrainer(vocab_size=330, special_tokens=list(SPECIAL), show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token='<pad>', bos_token='<s>', eos_token=END,
        extra_special_tokens={'image_token': '<image>', 'boi_token': '<start_of_image>',
                              'eoi_token': '<end_of_image>', 'video_token': '<video>'},
        chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False)


def _idefics3(words: Any, model: Any, config: Any) -> tuple[Any, Any]:
    images = Idefics3ImageProcessorPil(
        do_image_splitting=False, size={'longest_edge': 32}, max_image_size={'longest_edge': 32},
        image_mean=[0.5] * 3, image_std=[0.5] * 3)
    text = {'model_type': 'llama', 'vocab_size': len(words), **TEXT}
    made = model(config(image_token_id=4, scale_factor=2, pad_token_id=0, tie_word_embeddings=True,
                        vision_config=VISION, text_config=text))
    # The image part of SmolVLM's processor is that of Idefics3; its video part wants torchvision.
    return made, hf.Idefics3Processor(images, words, image_seq_len=16,
                                      chat_template=CHAT_TEMPLATE)


def idefics3(words: Any) -> tuple[Any, Any]:
    """Return model and processor."""
    return _idefics3(words, hf.Idefics3ForConditionalGeneration, hf.Idefics3Config)


def smolvlm(words: Any) -> tuple[Any, Any]:
    """Return model and processor."""
    return _idefics3(words, hf.SmolVLMForConditionalGeneration, hf.SmolVLMConfig)


def llava(words: Any) -> tuple[Any, Any]:
    """Return model and processor."""
    images = CLIPImageProcessorPil(size={'shortest_edge': 32},
                                   crop_size={'height': 32, 'width': 32})
    made = hf.LlavaForConditionalGeneration(hf.LlavaConfig(
        image_token_index=4, vision_feature_layer=-2, image_seq_length=64,
        vision_config={'model_type': 'clip_vision_model', 'projection_dim': 32, **VISION},
        text_config={'model_type': 'llama', 'vocab_size': len(words), **TEXT}))
    return made, hf.LlavaProcessor(images, words, patch_size=4, chat_template=CHAT_TEMPLATE,
                                   vision_feature_select_strategy='default',
                                   num_additional_image_tokens=1)


def gemma3(words: Any) -> tuple[Any, Any]:
    """Return model and processor; two thirds of the layers see 48 tokens back only."""
    images = Gemma3ImageProcessorPil(size={'height': 32, 'width': 32})
    made = hf.Gemma3ForConditionalGeneration(hf.Gemma3Config(
        image_token_index=4, boi_token_index=6, eoi_token_index=7, mm_tokens_per_image=16,
        vision_config={'model_type': 'siglip_vision_model', **VISION},
        text_config={'vocab_size': len(words), 'sliding_window': 48, 'query_pre_attn_scalar': 8,
                     'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
                     **TEXT}))
    return made, hf.Gemma3Processor(
        images, words, image_seq_length=16,
        chat_template=CHAT_TEMPLATE.replace("'<image>'", "'<start_of_image>'"))


class QwenInputs:
    """
    What Qwen's processor does to images and text.

    The processor itself wants torchvision, for videos, which CPU installations lack; its image
    part does not.
    """

    chat_template = CHAT_TEMPLATE.replace(
        "'<image>'", "'<start_of_image><image><end_of_image>'")
    image_token = '<image>'

    def __init__(self, words: Any) -> None:
        self.tokenizer = words
        self.image_processor = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, size={'shortest_edge': 64, 'longest_edge': 1024})

    def apply_chat_template(self, chat: Any, add_generation_prompt: bool = False) -> str:
        """Return the prompt."""
        return str(self.tokenizer.apply_chat_template(
            chat, chat_template=self.chat_template, add_generation_prompt=add_generation_prompt,
            tokenize=False))

    def __call__(self, images: Any, text: str, return_tensors: str) -> dict[str, Any]:
        """Return the inputs of one prompt."""
        found = self.image_processor(images, return_tensors=return_tensors)
        parts = text.split(self.image_token)
        counts = [int(n) // 4 for n in found['image_grid_thw'].prod(-1)] + [0]
        ids = [i for part, n in zip(parts, counts, strict=True)
               for i in (*self.tokenizer(part, add_special_tokens=False)['input_ids'], *[4] * n)]
        input_ids = torch.tensor([ids])
        return {**found, 'input_ids': input_ids, 'attention_mask': torch.ones_like(input_ids),
                'mm_token_type_ids': (input_ids == 4).int()}


def qwen2_5_vl(words: Any) -> tuple[Any, Any]:
    """Return model and inputs; one of two vision layers looks through windows."""
    made = hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(
        image_token_id=4, video_token_id=8, vision_start_token_id=6, vision_end_token_id=7,
        vision_config={'depth': 2, 'hidden_size': 32, 'intermediate_size': 64, 'num_heads': 4,
                       'patch_size': 4, 'window_size': 16, 'fullatt_block_indexes': [1],
                       'out_hidden_size': 32, 'spatial_merge_size': 2, 'temporal_patch_size': 2},
        text_config={'vocab_size': len(words), **TEXT, 'rope_parameters': {
            'rope_type': 'default', 'rope_theta': 10000.0, 'mrope_section': [1, 1, 2]}}))
    return made, QwenInputs(words)


def qwen3_vl(words: Any) -> tuple[Any, Any]:
    """Return model and inputs; an inner vision layer feeds the first layer of the decoder."""
    made = hf.Qwen3VLForConditionalGeneration(hf.Qwen3VLConfig(
        image_token_id=4, video_token_id=8, vision_start_token_id=6, vision_end_token_id=7,
        vision_config={'depth': 2, 'hidden_size': 32, 'intermediate_size': 64, 'num_heads': 4,
                       'patch_size': 4, 'out_hidden_size': 32, 'spatial_merge_size': 2,
                       'temporal_patch_size': 2, 'num_position_embeddings': 64,
                       'deepstack_visual_indexes': [0]},
        text_config={'vocab_size': len(words), **TEXT, 'rope_parameters': {
            'rope_type': 'default', 'rope_theta': 10000.0, 'mrope_section': [2, 1, 1]}}))
    return made, QwenInputs(words)


MAKERS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    'idefics3': idefics3, 'smolvlm': smolvlm, 'llava': llava, 'gemma3': gemma3,
    'qwen2_5_vl': qwen2_5_vl, 'qwen3_vl': qwen3_vl}
FIXED = ('idefics3', 'llava', 'qwen2_5_vl')   # of those that the engine for GPUs takes


def checkpoint(family: str, seed: int = 0, attention: str = 'sdpa') -> tuple[Any, Any]:
    """
    Return a model and its processor.

    Weights are larger than usual, so that what is said depends on the picture and the words.
    """
    torch.manual_seed(seed)
    model, processor = MAKERS[family](tokenizer())
    return loud(model, attention), processor


def edge_model(model: Any, processor: Any, focus_config: FocusConfig | None = None,
               **options: Any) -> EdgeModel:
    """Return an edge model without a guard; ``options`` are fields of `EdgeConfig`."""
    return EdgeModel(model, processor, EdgeConfig(guard_odds=OFF, **options), focus_config)


def loud(model: Any, attention: str = 'sdpa') -> Any:
    """Scale the random weights up; Gemma scales its embeddings itself."""
    embedding = 0.1 if model.config.model_type == 'gemma3' else 0.6
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, embedding if 'embed_tokens' in name else 0.25)
    model.set_attn_implementation(attention)
    model.generation_config.update(do_sample=False, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return model.eval()


def assert_alike(facts: Sequence[Fact], others: Sequence[Fact]) -> None:
    """
    Compare facts; confidences up to rounding.

    A CPU may add up in another order where a pass has more tokens or fewer, as some Intel do.
    """
    assert [replace(f, confidence=0.0) for f in facts] == [
        replace(f, confidence=0.0) for f in others]
    assert [f.confidence for f in facts] == pytest.approx([f.confidence for f in others], abs=1e-4)
