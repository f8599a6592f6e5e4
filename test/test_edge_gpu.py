# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""What makes passes fast on a GPU gives the same on a CPU, by a compiler that needs no GPU."""

from functools import partial

import pytest
from spotvlm_ros.edge import families, gpu, kernels
from spotvlm_ros.edge.engine import Prompt
from spotvlm_ros.edge.families import family_of
from spotvlm_ros.edge.grammar import Free
from spotvlm_ros.edge.graphs import GraphEngine
import tiny
import torch
from torch._dynamo.testing import CompileCounterWithBackend


def asked(family, model, processor):
    """Return a prompt about one grey picture."""
    image = torch.full((48, 64, 3), 90, dtype=torch.uint8).numpy()
    chat = [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'light?'}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = dict(processor(images=[[image]] if family == 'idefics3' else [image],
                            text=text if family == 'qwen2_5_vl' else [text], return_tensors='pt'))
    return Prompt(tuple(inputs['input_ids'][0].tolist()), inputs, (0,))


@pytest.mark.parametrize('family', tiny.FIXED)
def test_compiled_layers_give_the_same_and_share_their_code(family, monkeypatch):
    model, processor = tiny.checkpoint(family)
    model.eval().requires_grad_(False)
    counter = CompileCounterWithBackend('aot_eager')
    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **_: real(f, backend=counter, dynamic=False))
    torch._dynamo.reset()
    answers, state = [], {k: v.clone() for k, v in model.state_dict().items()}
    for compiled in (False, True):
        engine = GraphEngine(family_of(model), tokens=512, capture=False, compiled=compiled)
        if family == 'qwen2_5_vl':  # away from a GPU its windows are not one kernel
            engine._vision_layers = gpu.Layers([])
        answers.append(engine.answer('q', asked(family, model, processor), Free(()), 12).tokens)
    assert answers[0] == answers[1]
    assert counter.frame_count <= 5   # with code for each layer and length it would be 8 or more
    layers = family_of(model).decoder.layers
    assert 'forward' not in vars(layers[0]) and type(layers[0].mlp.down_proj) is torch.nn.Linear
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    torch._dynamo.reset()


def test_where_nothing_can_be_compiled_the_engine_says_so_and_goes_on(monkeypatch):
    model, processor = tiny.checkpoint('llava')

    def broken(graph, examples):
        raise RuntimeError('no compiler here')
    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **_: real(f, backend=broken))
    torch._dynamo.reset()
    engine = GraphEngine(family_of(model), tokens=512, capture=False, compiled=True)
    prompt = asked('llava', model, processor)
    with pytest.warns(UserWarning, match='no compiler here.*TORCH_COMPILE_DISABLE'):
        found = engine.answer('q', prompt, Free(()), 6).tokens
    plain = GraphEngine(family_of(model), tokens=512, capture=False)
    assert found == plain.answer('q', prompt, Free(()), 6).tokens
    torch._dynamo.reset()


def test_widened_mlps_give_the_same():
    torch.manual_seed(0)
    config = tiny.checkpoint('qwen2_5_vl')[0].config.vision_config
    config.intermediate_size, config.hidden_act = 42, 'silu'
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP
    mlp = Qwen2_5_VLMLP(config, bias=True).eval()
    x = torch.randn(5, config.hidden_size)
    before = mlp(x)
    gpu.align(torch.nn.Sequential(mlp).modules())
    assert mlp.gate_proj.weight.shape[0] == mlp.down_proj.weight.shape[1] == 64
    torch.testing.assert_close(mlp(x), before)


@pytest.mark.parametrize('family', tiny.FIXED)
def test_gated_mlps_of_one_token_give_the_same(family):
    torch.manual_seed(0)
    model, _ = tiny.checkpoint(family)
    mlp = family_of(model).decoder.layers[0].mlp
    x = torch.randn(1, 1, mlp.down_proj.out_features)
    with torch.inference_mode():
        before = mlp(x)
        assert gpu.OneTokenMLP.can_be(mlp)
        mlp.__class__ = gpu.OneTokenMLP
        torch.testing.assert_close(mlp(x), before)
    mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(mlp.down_proj.out_features))
    assert not gpu.OneTokenMLP.can_be(mlp)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_the_kernel_computes_what_the_plain_versions_do():
    def near(found, wanted):
        assert (found.float() - wanted).norm() < 0.01 * wanted.norm()
    torch.manual_seed(0)
    make = partial(torch.randn, device='cuda', dtype=torch.bfloat16)
    for n_in, n_out in ((2048, 11008), (11008, 2048), (576, 1536), (3000, 70)):
        x, gate, up = make(1, 1, n_in), make(n_out, n_in), make(n_out, n_in)
        near(kernels.product(x, gate), kernels._plain_product(x.float(), gate.float()))
        near(kernels.gated(x, gate, up),
             kernels._plain_gated(x.float(), gate.float(), up.float()))


def test_grouped_attention_is_attention():
    torch.manual_seed(0)
    query, mask = torch.randn(1, 8, 1, 16), torch.zeros(1, 1, 1, 20)
    key, value = torch.randn(2, 1, 2, 20, 16).unbind()
    mask[..., 13:] = -1e9
    found, _ = gpu.grouped_attention(torch.nn.Identity(), query, key, value, mask, scaling=0.3)
    usual = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, usual.transpose(1, 2))


def test_packed_attention_sees_windows_as_the_model_does(monkeypatch):
    """The kernel for it runs on a GPU only: here it is replaced by attention per sequence."""
    def per_sequence(query, key, value, ends, ends_too, longest, longest_too):
        assert ends.dtype == torch.int32 and longest == int(ends.diff().max())
        parts = [torch.nn.functional.scaled_dot_product_attention(
            *(x[a:b].transpose(0, 1)[None] for x in (query, key, value)))[0].transpose(0, 1)
            for a, b in zip(ends[:-1], ends[1:])]
        return torch.cat(parts)
    model, processor = tiny.checkpoint('qwen2_5_vl')
    inputs = asked('qwen2_5_vl', model, processor).inputs
    family = family_of(model)
    with torch.inference_mode():
        usual = family.visual(inputs).rows
        family._layouts.clear()
        used = []
        monkeypatch.setattr(gpu, 'varlen_attn', lambda *a: used.append(a) or per_sequence(*a))
        monkeypatch.setattr(gpu, 'can_pack', lambda like: True)
        monkeypatch.setattr(families, 'can_pack', lambda like: True)
        packed = family.visual(inputs).rows
    assert used
    torch.testing.assert_close(packed, usual)
