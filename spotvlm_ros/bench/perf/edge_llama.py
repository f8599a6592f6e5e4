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
The text decoder of a shape by llama.cpp, a peer of `spotvlm perf edge --shape`.

Where `llama-cpp-python` and `gguf` are installed; neither is needed for anything else. The weights
are those of the shape, rounded to 8 bits (Q8_0), so that what it says is near to what `generate`
says. Its vision is not run: as the engine does for a view that it knows, it begins with the
tokens of a prompt, and that is what it is compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

# Names of a layer's weights, by those that transformers gives them.
NAMES = {'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
         'self_attn.o_proj': 'attn_output', 'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up',
         'mlp.down_proj': 'ffn_down', 'input_layernorm': 'attn_norm',
         'post_attention_layernorm': 'ffn_norm'}


def llama_cpp_is_there() -> bool:
    """Return whether its library and the writer of its files are installed."""
    return find_spec('llama_cpp') is not None and find_spec('gguf') is not None


def write_decoder(model: PreTrainedModel, path: Path) -> None:
    """Write the text decoder of a model of the make of Llama as a GGUF file, in 8 bits."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants
    text = model.config.get_text_config()
    decoder = model.model.text_model
    writer = GGUFWriter(path, 'llama')
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_rope_dimension_count(text.head_dim)
    writer.add_rope_freq_base(text.rope_parameters['rope_theta'])
    writer.add_vocab_size(text.vocab_size)
    writer.add_tokenizer_model('none')   # tokens come as numbers
    eight = GGMLQuantizationType.Q8_0

    def add(name: str, weight: torch.Tensor) -> None:
        values = weight.detach().float().numpy()
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quants.quantize(values, eight), raw_dtype=eight)

    add('token_embd.weight', decoder.embed_tokens.weight)
    add('output_norm.weight', decoder.norm.weight)
    add('output.weight', model.get_output_embeddings().weight)
    for index, layer in enumerate(decoder.layers):
        for ours, theirs in NAMES.items():
            weight = layer.get_submodule(ours).weight
            add(f'blk.{index}.{theirs}.weight', _turned(weight, theirs, text))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _turned(weight: torch.Tensor, name: str, text: PretrainedConfig) -> torch.Tensor:
    """Return rows of queries and keys as its rotation wants them: halves of a head in turns."""
    heads = {'attn_q': text.num_attention_heads, 'attn_k': text.num_key_value_heads}.get(name)
    if heads is None:
        return weight
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


class LlamaDecoder:
    """Says the likeliest tokens after a prompt."""

    def __init__(self, path: Path, threads: int, room: int) -> None:
        """Load a file; ``room``: tokens of the longest prompt and its answer."""
        from llama_cpp import Llama, llama_get_logits
        self._logits = llama_get_logits   # of the last token
        self._llama = Llama(str(path), n_ctx=room, n_batch=room, n_ubatch=room, verbose=False,
                            n_threads=threads, n_threads_batch=threads)

    def answer(self, ids: Sequence[int], count: int) -> list[int]:
        """Return so many tokens after a prompt, of which nothing is known from before."""
        self._llama.reset()
        said: list[int] = []
        for given in (list(ids), *([] for _ in range(count - 1))):
            self._llama.eval(given or said[-1:])
            logits = np.ctypeslib.as_array(self._logits(self._llama.ctx), (self._llama.n_vocab(),))
            said.append(int(logits.argmax()))
        return said
