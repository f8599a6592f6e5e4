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
The text decoder of a shape by OpenVINO, a peer of `spotvlm perf edge --shape`.

Where OpenVINO is installed. The decoder is exported with its keys and values as states, its
weights in 8 bits as the engine rounds them; OpenVINO rounds inputs itself. As for llama.cpp, it
begins with the tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
import warnings

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from ...edge.families import model_family
from ...edge.plain_decoder import signed_sines
from ...edge.quantised import written_out


class _Decoder(nn.Module):
    """Embeddings of one prompt's tokens to the logits after the last, and all keys and values."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        family = model_family(model)
        assert family is not None
        self.decoder, self.head = family.decoder, family.lm_head

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor,
                *before: torch.Tensor) -> tuple[torch.Tensor, ...]:
        after: list[torch.Tensor] = []
        for index, layer in enumerate(self.decoder.layers):
            attention, given = layer.self_attn, layer.input_layernorm(x)
            query, key, value = (
                part(given).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
                for part in (attention.q_proj, attention.k_proj, attention.v_proj))
            query, key = (part * cos + part.roll(attention.head_dim // 2, -1) * sin
                          for part in (query, key))
            after += [torch.cat([before[2 * index], key], 2),
                      torch.cat([before[2 * index + 1], value], 2)]
            shared = query.shape[1] // key.shape[1]
            keys, values = (part[:, :, None].expand(-1, -1, shared, -1, -1).flatten(1, 2)
                            for part in after[-2:])
            seen = functional.scaled_dot_product_attention(query, keys, values, mask,
                                                           scale=attention.scaling)
            x = x + attention.o_proj(seen.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.head(self.decoder.norm(x[:, -1:])), *after


class OpenVinoDecoder:
    """Says the likeliest tokens after a prompt."""

    def __init__(self, model: PreTrainedModel, threads: int) -> None:
        """Export the decoder of a model in 32 bits whose linear layers may have 8."""
        import openvino
        from openvino._offline_transformations import apply_make_stateful_transformation
        self._decoder = _Decoder(model).eval()
        layers, text = self._decoder.decoder.layers, model.config.get_text_config()
        past = torch.zeros(1, text.num_key_value_heads, 3, layers[0].self_attn.head_dim)
        example = (*self._inputs([5, 6], 3), *[past] * 2 * len(layers))
        with warnings.catch_warnings(), written_out():
            warnings.simplefilter('ignore')
            trace = torch.jit.trace(self._decoder, example, check_trace=False)
            exported = openvino.convert_model(trace, example_input=example)
        exported.reshape({i: [1, -1, text.hidden_size] if i == 0 else [1, 1, -1, -1] if i == 3 else
                          [1, value.shape[1], -1, value.shape[3]]
                          for i, value in enumerate(example)})
        states = dict[str, str]()
        for index, (give, take) in enumerate(zip(exported.inputs[4:], exported.outputs[1:])):
            give.set_names({f'before.{index}'})
            take.set_names({f'after.{index}'})
            states[f'before.{index}'] = f'after.{index}'
        apply_make_stateful_transformation(exported, states)
        self._request = openvino.Core().compile_model(exported, 'CPU', {
            'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_NUM_THREADS': threads,
            'INFERENCE_PRECISION_HINT': 'f32',
            'DYNAMIC_QUANTIZATION_GROUP_SIZE': text.hidden_size}).create_infer_request()

    @torch.no_grad()
    def _inputs(self, ids: Sequence[int], before: int) -> tuple[torch.Tensor, ...]:
        """Return embeddings, positions and mask of tokens after some."""
        decoder, n = self._decoder.decoder, len(ids)
        x = decoder.embed_tokens(torch.tensor([list(ids)]))
        cos, sin = (part[:, None] for part in decoder.rotary_emb(
            x, torch.arange(before, before + n)[None]))
        mask = torch.full((1, 1, n, before + n), torch.finfo(x.dtype).min).triu(before + 1)
        return x, cos, signed_sines(sin), mask

    def answer(self, ids: Sequence[int], count: int) -> list[int]:
        """Return so many tokens after a prompt, of which nothing is known from before."""
        self._request.reset_state()
        said, known, given = list[int](), 0, list(ids)
        for _ in range(count):
            found = self._request.infer([part.numpy() for part in self._inputs(given, known)])
            known, given = known + len(given), [int(found[0][0, -1].argmax())]
            said += given
        return said
