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
"""Numbers of other formats: dtype, bits, what they take, and what is refused."""

from dataclasses import replace
from importlib.util import find_spec
import json
import weakref

import numpy as np
import pytest

from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge import precision, quantised
from spotvlm_ros.edge.engine import Engine
from spotvlm_ros.edge.families import model_family
from spotvlm_ros.edge.gpu.graphs import GraphBackend
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.edge.precision import Format, Formats, memory_plan, place, weight_bytes
from spotvlm_ros.edge.quantised import QuantisedLinear, rounded, Weight
from spotvlm_ros.method.facts import Context, Fact, NS, Query
from spotvlm_ros.method.guard import OFF
import tiny
import torch

FACTS = Query('scene', 'What is on the road?', 'facts',
              {'light': ('red', 'green', 'none'), 'lead': ('none', 'braking')}, max_new_tokens=12)
TEXT = Query('text', 'Describe the road.', 'text', max_new_tokens=9)
LATE = Context('scene', 9 * NS, (Fact('light', 'red', 8 * NS),))


def frame_of(number):
    """Return a noisy picture."""
    return np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def said(model):
    """Return answers, in tokens, about some frames."""
    found = []
    for number in (0, 0, 1):
        for query, context in ((FACTS, None), (FACTS, LATE), (TEXT, None)):
            model.answer(frame_of(number), query, context, 9 * NS)
            found.append(model._last_answers[query.id].tokens)
    return found


def write_out(model):
    """Replace quantised layers by plain ones with the same weights."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, QuantisedLinear):
                plain = torch.nn.Linear(child.in_features, child.out_features,
                                        child.bias is not None)
                plain.weight = torch.nn.Parameter(child.weight.clone(), requires_grad=False)
                plain.bias = child.bias
                setattr(module, name, plain)


@pytest.mark.parametrize('bits', ['int8', 'int4'])
@pytest.mark.parametrize('family', tiny.MAKERS)
def test_tokens_are_those_of_the_weights_written_out(family, bits):
    model, processor = tiny.checkpoint(family)
    model = place(model, EdgeConfig(quantization=bits, vision_quantization='int8'), 0)
    kinds = {m.stored.bits for m in model.modules() if isinstance(m, QuantisedLinear)}
    assert kinds == ({8} if bits == 'int8' else {8, 4})
    fast = said(tiny.edge_model(model, processor, decoding='free'))
    write_out(model)
    assert fast == said(tiny.edge_model(model, processor, decoding='free', engine='generate'))


def write_rounding(model):
    """Replace layers that round their inputs by what they are said to do, in 64 bits."""
    class Rounding(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.weight = layer, layer.weight.double()

        def forward(self, x):
            exact = x.double()
            step = exact.abs().amax(-1, keepdim=True) / 127
            found = (exact / step).round() * step @ self.weight.T
            bias = self.layer.bias
            return (found if bias is None else found + bias).to(x.dtype)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, QuantisedLinear):
                assert child.rounds
                setattr(module, name, Rounding(child))


@pytest.mark.parametrize('family', tiny.MAKERS)
def test_inputs_may_have_8_bits_too(family):
    model, processor = tiny.checkpoint(family)
    model = place(model, EdgeConfig(quantization='int8_dynamic',
                                    vision_quantization='int8_dynamic'), 0)
    assert str(Formats.of_model(model).decoder) == 'float32 with int8 weights and inputs'
    assert isinstance(model.get_output_embeddings(), QuantisedLinear)
    fast = said(tiny.edge_model(model, processor, decoding='free'))
    write_rounding(model)
    assert fast == said(tiny.edge_model(model, processor, decoding='free', engine='generate'))


@pytest.mark.parametrize('bits', ['int8', 'int4'])
@pytest.mark.parametrize('family', tiny.FIXED)
def test_tokens_at_fixed_shapes_are_too(family, bits, monkeypatch):
    """With the layers of one token that a GPU has, in their plain versions."""
    model, processor = tiny.checkpoint(family)
    model = place(model, EdgeConfig(quantization=bits), 0)
    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **_: real(f, backend='eager'))
    edge = tiny.edge_model(model, processor, decoding='free')
    edge._engine = Engine(GraphBackend(model_family(model), tokens=512, capture=False,
                                       compiled=True))
    if family == 'qwen2_5_vl':  # away from a GPU its windows are not one kernel
        edge._engine.backend._vision_layers._layers = []
    fast = said(edge)
    write_out(model)
    assert fast == said(tiny.edge_model(model, processor, decoding='free', engine='generate'))
    torch._dynamo.reset()


@pytest.mark.parametrize('family', tiny.MAKERS)
@pytest.mark.parametrize('dtypes', [('bf16', 'auto'), ('float32', 'bfloat16'),
                                    ('bfloat16', 'fp32')])
def test_decoder_and_vision_may_differ(family, dtypes):
    model, processor = tiny.checkpoint(family)
    config = EdgeConfig(dtype=dtypes[0], vision_dtype=dtypes[1])
    model = place(model, config, 0)
    edge = EdgeModel(model, processor, replace(config, guard_odds=OFF))
    for context in (None, LATE):
        assert edge.answer(frame_of(0), FACTS, context, 9 * NS).facts
    found = Formats.of_model(model)
    wanted = [precision.DTYPES[d] for d in (dtypes[0], dtypes[1].replace('auto', dtypes[0]))]
    assert [found.decoder.dtype, found.vision.dtype] == wanted


@pytest.mark.parametrize('bits, most', [(8, 0.01), (4, 0.12)])
def test_weights_are_near_what_they_were(bits, most):
    torch.manual_seed(0)
    weight = torch.randn(24, 96) * torch.logspace(-3, 1, 24)[:, None]
    weight[3], weight[4, 32:64] = 0.0, 0.0
    stored = rounded(weight, bits)
    assert stored.bits == bits and stored.n_in == 96
    error = (stored.plain() - weight).norm(dim=1) / weight.norm(dim=1).clamp(min=1e-9)
    assert float(error.max()) < most
    assert not stored.plain()[3].any() and not stored.plain()[4, 32:64].any()
    again = rounded(stored.plain(), bits)   # what can be stored stays what it is
    torch.testing.assert_close(again.plain(), stored.plain(), rtol=1e-3, atol=1e-6)
    assert Weight(weight).plain() is weight and Weight(weight).bits == 16


def test_a_layer_goes_when_it_is_replaced(monkeypatch):
    """Or a model would be there twice, in a memory that has room for it once."""
    model, _ = tiny.checkpoint('idefics3')
    alive = [weakref.ref(m) for m in model.model.text_model.modules()
             if type(m) is torch.nn.Linear]
    left = []
    real = quantised.rounded
    monkeypatch.setattr(quantised, 'rounded', lambda weight, bits: left.append(
        sum(ref() is not None for ref in alive)) or real(weight, bits))
    place(model, EdgeConfig(quantization='int8'), 0)
    assert left == list(range(len(alive), 0, -1))


def test_the_arithmetic_is_what_is_there_then():
    """Of weights: what is reckoned before is what a model has when it is placed."""
    for quantization, vision in (('none', 'none'), ('int8', 'none'), ('int4', 'int8'),
                                 ('int8_dynamic', 'int8_dynamic')):
        model, _ = tiny.checkpoint('idefics3')
        config = EdgeConfig(dtype='bf16', quantization=quantization, vision_quantization=vision)
        formats = Formats.of(config, model.dtype)
        reckoned = weight_bytes(precision.Parts(model), formats)
        model = place(model, config, 0)
        tensors = {id(t): t for t in model.parameters()}
        for module in model.modules():
            if isinstance(module, QuantisedLinear):
                tensors |= {id(t): t for t in module.stored[:2]}
        assert reckoned == sum(t.numel() * t.element_size() for t in tensors.values())
        assert weight_bytes(precision.Parts(model), formats) == reckoned, 'and after'
        assert Formats.of_model(model) == formats


@pytest.fixture
def folder(tmp_path):
    """Return a checkpoint in a folder."""
    for part in tiny.checkpoint('idefics3'):
        part.save_pretrained(tmp_path)
    return tmp_path


def refusal(folder, **options):
    """Return what is said about a checkpoint when it is loaded."""
    with pytest.raises(ValueError) as refused:
        EdgeModel.load(EdgeConfig(model=str(folder), **options))
    assert str(folder) in str(refused.value)
    return str(refused.value)


def test_what_does_not_fit_is_refused_with_the_arithmetic(folder, monkeypatch):
    model, _ = tiny.checkpoint('idefics3')
    plain, int8 = (memory_plan(model, Formats(Format(torch.float32, bits),
                                              Format(torch.float32, bits)), False, 128)
                   for bits in (0, 8))
    there = weight_bytes(precision.Parts(model), Formats(*[Format(torch.float32)] * 2))
    monkeypatch.setattr(precision, 'check_files_fit', lambda path: None)
    monkeypatch.setattr(precision, 'gib', lambda size: f'{size} B')
    monkeypatch.setattr(precision, 'free_bytes', lambda device: plain.total - there - 1)
    text = refusal(folder)
    assert str(plain) in text and f'= {plain.total} B, and {plain.total - 1} B are free' in text
    assert f"use quantization 'int8' with vision_quantization 'int8' ({int8.total} B)" in text
    EdgeModel.load(EdgeConfig(model=str(folder), quantization='int8', vision_quantization='int8'))
    (folder / 'spotvlm_accuracy.json').write_text('{"points_lost": {"int8": 1.5}}')
    assert "use quantization 'int8'" not in refusal(folder), 'what costs too much is not offered'
    (folder / 'spotvlm_accuracy.json').unlink()
    monkeypatch.setattr(precision, 'free_bytes', lambda device: -there)
    assert 'use a smaller checkpoint' in refusal(folder)


def test_weights_that_cannot_be_read_into_memory_are_not_begun_with(folder, monkeypatch):
    monkeypatch.setattr(precision, 'free_bytes', lambda device: 10)
    assert 'its weights take' in refusal(folder)


def test_formats_that_a_checkpoint_cannot_have(folder, monkeypatch):
    config = json.loads((folder / 'config.json').read_text())
    for method, needed in (('gptq', 'optimum gptqmodel'), ('awq', 'gptqmodel'),
                           ('bitsandbytes', 'bitsandbytes'),
                           ('compressed-tensors', 'compressed-tensors')):
        more = {'bits': 4, 'load_in_4bit': True, 'config_groups': {}}
        (folder / 'config.json').write_text(json.dumps(
            config | {'quantization_config': {'quant_method': method, **more}}))
        text = refusal(folder)
        assert f'pip install {needed}' in text and 'parameter quantization' in text
    (folder / 'config.json').write_text(json.dumps(config | {'quantization_config': 'int4'}))
    assert 'quantization_config of config.json is no object' in refusal(folder)
    model, _ = tiny.checkpoint('idefics3')
    model.is_quantized = True
    with pytest.raises(ValueError, match='quantization .*quantised already'):
        place(model, EdgeConfig(quantization='int8'), 0)
    model, _ = tiny.checkpoint('llava')
    with pytest.raises(ValueError, match="vision_quantization is 'int8_dynamic', .* use 'int8'"):
        place(model, EdgeConfig(vision_quantization='int8_dynamic', device='cuda'), 0)
    model.config.model_type = 'vipllava'
    with pytest.raises(ValueError, match='vision_dtype .*vipllava'):
        place(model, EdgeConfig(vision_dtype='bf16'), 0)
    assert place(model, EdgeConfig(dtype='bf16'), 0).dtype == torch.bfloat16
    model, _ = tiny.checkpoint('llava')
    with pytest.raises(ValueError, match="engine is 'generate'"):
        place(model, EdgeConfig(vision_dtype='bf16', engine='generate'), 0)


def test_numbers_that_a_cpu_has_no_instructions_for_are_widened(monkeypatch):
    config = EdgeConfig()
    for has, wanted in (({'avx512_bf16': False}, torch.float32),
                        ({'avx512_bf16': True}, torch.bfloat16),
                        ({'avx512_bf16': False, 'amx_bf16': True}, torch.bfloat16),
                        ({}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda has=has: has)
        assert Formats.of(config, torch.bfloat16).decoder.dtype == wanted
        assert Formats.of(replace(config, device='cuda'),
                          torch.bfloat16).vision.dtype == torch.bfloat16
        assert Formats.of(config, torch.float32).vision.dtype == torch.float32


@pytest.mark.skipif(find_spec('openvino') is None,
                    reason='OpenVINO, 184 MB, is not installed by make setup; pip install it')
@pytest.mark.parametrize('family', ['idefics3', 'llava', 'gemma3'])
def test_the_vision_tower_by_openvino_says_the_same(family):
    model, processor = tiny.checkpoint(family)
    ways = [tiny.edge_model(model, processor, decoding='free', vision_backend=backend)
            for backend in ('openvino', 'torch')]
    assert said(ways[0]) == said(ways[1])
    assert [way.formats.endswith(' by openvino') for way in ways] == [True, False]
    half = tiny.edge_model(model.bfloat16(), processor, vision_backend='openvino')
    assert said(half) and half.formats.endswith(' by openvino'), 'numpy knows no bfloat16'
    bytes_too = place(model, EdgeConfig(vision_quantization='int8_dynamic'), 0)
    edge = tiny.edge_model(bytes_too, processor, vision_backend='openvino')
    assert said(edge) and edge.formats.endswith('with int8 weights and inputs by openvino')


def test_openvino_is_asked_for_where_it_cannot_be(folder, monkeypatch):
    monkeypatch.setattr('spotvlm_ros.edge.openvino_tower.find_spec', lambda name: None)
    assert 'pip install openvino' in refusal(folder, vision_backend='openvino')
    EdgeModel.load(EdgeConfig(model=str(folder)))
