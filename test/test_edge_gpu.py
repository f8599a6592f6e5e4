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
"""What makes passes fast on a GPU gives the same on a CPU, by a compiler that needs no GPU."""

from contextlib import nullcontext
from functools import partial

import pytest
from spotvlm_ros.edge import packed_attention
from spotvlm_ros.edge.engine import Engine, Prompt
from spotvlm_ros.edge.families import model_family
from spotvlm_ros.edge.gpu import ends, kernels, layers as gpu
from spotvlm_ros.edge.gpu.graphs import GraphBackend
from spotvlm_ros.edge.gpu.kv_cache import StaticKVCache
from spotvlm_ros.edge.gpu.prompt import turn_and_store
from spotvlm_ros.edge.grammar import FreeText
from spotvlm_ros.edge.quantised import quantise, rounded
import tiny
import torch
from torch._dynamo.testing import CompileCounterWithBackend
import transformers as hf


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
        backend = GraphBackend(model_family(model), tokens=512, capture=False, compiled=compiled)
        if family == 'qwen2_5_vl':  # away from a GPU its windows are not one kernel
            backend._vision_layers = gpu.CompiledLayers([])
        prompt = asked(family, model, processor)
        answers.append(Engine(backend).answer('q', prompt, FreeText(()), 12).tokens)
    assert answers[0] == answers[1]
    assert counter.frame_count <= 5   # with code for each layer and length it would be 8 or more
    layers = model_family(model).decoder.layers
    assert 'forward' not in vars(layers[0])
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    torch._dynamo.reset()


def test_where_nothing_can_be_compiled_the_engine_says_so_and_goes_on(monkeypatch):
    model, processor = tiny.checkpoint('llava')

    def broken(graph, examples):
        raise RuntimeError('no compiler here')
    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **_: real(f, backend=broken))
    torch._dynamo.reset()
    engine = Engine(GraphBackend(model_family(model), tokens=512, capture=False, compiled=True))
    prompt = asked('llava', model, processor)
    with pytest.warns(UserWarning, match='no compiler here.*TORCH_COMPILE_DISABLE'):
        found = engine.answer('q', prompt, FreeText(()), 6).tokens
    plain = Engine(GraphBackend(model_family(model), tokens=512, capture=False))
    assert found == plain.answer('q', prompt, FreeText(()), 6).tokens
    torch._dynamo.reset()


def test_where_kernels_cannot_run_the_engine_says_so_and_goes_on(monkeypatch):
    model, processor = tiny.checkpoint('llava')

    def broken(*args):
        raise RuntimeError('no C\ncompiler')
    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **_: real(f, backend='eager'))
    monkeypatch.setattr(kernels, 'fused_norm_swiglu', broken)
    torch._dynamo.reset()
    engine = Engine(GraphBackend(model_family(model), tokens=512, capture=False, compiled=True))
    prompt = asked('llava', model, processor)
    with pytest.warns(UserWarning, match='no C compiler.*headers of Python') as found:
        answer = engine.answer('q', prompt, FreeText(()), 6).tokens
    assert len(found) == 1
    plain = Engine(GraphBackend(model_family(model), tokens=512, capture=False))
    assert answer == plain.answer('q', prompt, FreeText(()), 6).tokens
    torch._dynamo.reset()


@pytest.mark.parametrize('kernel', ['fused_norm_qkv_rope', 'fused_norm_swiglu',
                                    'linear_residual'])
def test_where_kernels_are_wrong_the_engine_says_so_and_goes_on(kernel, monkeypatch):
    """As they were on an H200 for some days: wrong answers, and nobody was told."""
    model, processor = tiny.checkpoint('llava')
    real, right = torch.compile, getattr(kernels, kernel)
    monkeypatch.setattr(torch, 'compile', lambda f, **_: real(f, backend='eager'))
    monkeypatch.setattr(kernels, kernel, lambda *given: right(*given) * 1.05)
    torch._dynamo.reset()
    prompt = asked('llava', model, processor)
    backend = GraphBackend(model_family(model), tokens=512, capture=False, compiled=True)
    with pytest.warns(UserWarning, match='the kernel of .* is [45]% off.*please report') as found:
        answer = Engine(backend).answer('q', prompt, FreeText(()), 6).tokens
    assert len(found) == 1
    plain = Engine(GraphBackend(model_family(model), tokens=512, capture=False))
    assert answer == plain.answer('q', prompt, FreeText(()), 6).tokens
    torch._dynamo.reset()


def test_widened_mlps_give_the_same():
    torch.manual_seed(0)
    config = tiny.checkpoint('qwen2_5_vl')[0].config.vision_config
    config.intermediate_size, config.hidden_act = 42, 'silu'
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP
    mlp = Qwen2_5_VLMLP(config, bias=True).eval()
    x = torch.randn(5, config.hidden_size)
    before = mlp(x)
    gpu.pad_gated_mlps(torch.nn.Sequential(mlp).modules())
    assert mlp.gate_proj.weight.shape[0] == mlp.down_proj.weight.shape[1] == 64
    torch.testing.assert_close(mlp(x), before)


def test_kernels_that_write_weights_out_wait_for_those_before():
    """Else a prompt's answers differ from one time to the next (seen on an H200)."""
    layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(32, 32))])
    assert gpu.compile_options(layers) == {'triton.enable_pdl': True}
    quantise(layers, 8, torch.device('cpu'))
    assert gpu.compile_options(layers) == {'triton.enable_pdl': False}


@torch.inference_mode()
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_a_prompt_in_8_bits_gives_the_same_each_time():
    torch.manual_seed(0)
    config = hf.Qwen2Config(hidden_size=2048, num_hidden_layers=8, num_attention_heads=16,
                            num_key_value_heads=2, intermediate_size=11008, vocab_size=100)
    model = hf.Qwen2Model(config).to('cuda', torch.bfloat16).eval()
    quantise([model.layers], 8, torch.device('cuda'))
    embeds = torch.randn((1, 640, 2048), device='cuda', dtype=torch.bfloat16)
    with gpu.CompiledLayers(model.layers).compiled():
        found = [model(inputs_embeds=embeds, use_cache=False).last_hidden_state for _ in range(9)]
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize('vocabulary', [330, 49280, 151936])
def test_the_likeliest_token_is_found_in_parts_of_the_vocabulary(vocabulary):
    torch.manual_seed(0)
    given = torch.randn(2, 3, vocabulary)
    given[0, 0, [7, -1]] = 9.0   # of two that are alike the first
    logits, top = ends.with_top(given)
    probability, token = given.softmax(-1).max(-1)
    assert torch.equal(logits, given) and top[0, 0, 0] == 7
    assert torch.equal(top[..., 0][1], token[1].double())
    torch.testing.assert_close(top[..., 1].float(), probability)


@torch.inference_mode()
def test_what_is_around_the_layers_gives_the_same_compiled(monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda f, **_: real(f, backend='aot_eager'))
    torch._dynamo.reset()
    model = tiny.checkpoint('qwen2_5_vl')[0]
    decoder = model_family(model).decoder
    x, found = torch.randn(1, 1, 32), []
    positions = torch.full((3, 1, 1), 5)
    for made in (ends.Ends(decoder, False), ends.Ends(decoder, True)):
        data = torch.tensor([1, 8, 0, 0, 5, 5, 5])[:, None, None]
        with made.compiled():
            parts = [decoder.norm(x), *decoder.rotary_emb(x, positions)]
        mask = made.attention_mask(torch.arange(10), data[1], torch.full((1, 10), 0.5))
        _, top = made.with_top(torch.arange(330.0)[None, None])
        made.go_on(data, top, 0, 1, 4, 9)
        found.append([*parts, mask, top, data])
    assert found[1][-1].flatten().tolist() == [329, 9, 0, 0, 6, 6, 6]
    assert found[1][3][0, 0, 0].tolist()[7:] == [0.5, 0.5, torch.finfo(torch.float32).min]
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
@pytest.mark.parametrize('heads, kv_heads, dim', [(16, 2, 128), (9, 3, 64), (3, 1, 24)])
def test_queries_turn_and_keys_are_stored_as_in_the_plain_version(heads, kv_heads, dim):
    torch.manual_seed(0)
    qkv, angles = torch.randn(2, 33, (heads + 2 * kv_heads) * dim), torch.randn(2, 2, 33, dim)
    slots = torch.stack([torch.arange(7, 40), torch.arange(33)])
    results = []
    for device in ('cpu', 'cuda'):
        keys, values = torch.zeros(2, 2, kv_heads, 64, dim, device=device)
        query = turn_and_store(*(x.to(device) for x in (qkv, *angles)), keys, values,
                               slots.to(device))
        results.append([x.cpu() for x in (query, keys, values)])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_patches_given_one_by_one_are_a_product():
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4))
    patches, more = torch.randn(5, 3, 2, 4, 4), torch.randn(5, 3, 2, 8, 8)
    wanted = conv(patches), conv(more)
    gpu.PatchLinear.replace_in([conv])
    assert type(conv) is gpu.PatchLinear
    torch.testing.assert_close((conv(patches), conv(more)), wanted)


@torch.inference_mode()
@pytest.mark.parametrize('family', tiny.FIXED)
def test_layers_of_one_token_give_the_same(family):
    model = tiny.checkpoint(family)[0]
    found = model_family(model)
    layers, config = found.decoder.layers, found.text_config
    for layer in layers:  # as made, all biases are nought
        for name, parameter in layer.named_parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1.0 if 'norm' in name else 0.0, 0.3)
    assert gpu.OneTokenLayers.supports(layers)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    axes = 3 if family == 'qwen2_5_vl' else 1
    results = []
    for own in (False, True):
        cache = StaticKVCache((len(layers), 2, config.num_key_value_heads, 96, 8),
                              found.embed_tokens.weight)
        one = gpu.OneTokenLayers(layers, 96)
        for begin, end in ((0, 70), (70, 71), (71, 72)):
            cache.slots = torch.stack([torch.arange(begin, end), torch.arange(begin, end)])
            cache.slots[1] -= begin // 3   # a shorter one
            mask = torch.where(torch.arange(96) <= cache.slots[..., None], 0.0, -1e30)
            mask[..., 3] -= 1.0
            with one.compiled() if own and begin else nullcontext():
                results.append(found.forward(
                    found.embed_tokens(cache.slots + torch.tensor([[0], [9]])), None, None,
                    position_ids=cache.slots if axes == 1 else cache.slots.expand(axes, -1, -1),
                    past_key_values=cache, attention_mask=mask[:, None], use_cache=True))
        results += [cache.keys, cache.values]
    for usual, other in zip(results[:5], results[5:]):
        torch.testing.assert_close(other, usual)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert 'forward' not in vars(layers[0])
    layers[-1].mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(32))
    assert not gpu.OneTokenLayers.supports(layers)


def test_layers_of_another_make_are_left_to_the_compiler():
    found = model_family(tiny.checkpoint('qwen3_vl')[0])
    assert not gpu.OneTokenLayers.supports(found.decoder.layers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
@pytest.mark.parametrize('rows', [1, 2])
@pytest.mark.parametrize('bits', [16, 8, 4])
@pytest.mark.parametrize('heads, kv_heads, dim, width, inner, tokens, biased', [
    (16, 2, 128, 2048, 11008, 640, True), (28, 4, 128, 3584, 18944, 2048, True),
    (9, 3, 64, 576, 1536, 320, False), (4, 2, 8, 32, 72, 100, True),
    (3, 1, 24, 72, 70, 64, False)])
def test_kernels_compute_what_the_plain_versions_do(heads, kv_heads, dim, width, inner, tokens,
                                                    biased, bits, rows):
    if bits < 16 and (width % 32 or inner % 32):
        pytest.skip('such a layer keeps its weights')

    def same(kernel, *args):
        """Compare a kernel with the plain version in fp32, on the CPU; return what it found."""
        def plain(x):
            if isinstance(x, torch.Tensor):
                return x.cpu().float() if x.is_floating_point() else x.cpu()
            if isinstance(x, kernels.Weight):
                return kernels.Weight(plain(x.plain()))
            return type(x)(*map(plain, x)) if isinstance(x, tuple) else x
        others = [plain(a) for a in args]
        found, wanted = kernel(*args), kernel(*others)
        for one, other in [(found, wanted), *((getattr(a, n), getattr(b, n)) for a, b in
                           zip(args, others) if isinstance(a, kernels.LayerKV)
                           for n in ('keys', 'values'))]:
            assert (one.cpu().float() - other).norm() < 0.01 * other.norm()
        return found
    torch.manual_seed(0)
    make = partial(torch.randn, device='cuda', dtype=torch.bfloat16)
    scratch = kernels.attention_scratch(heads, tokens, dim, torch.device('cuda'))
    mask, norm = make(rows, tokens), kernels.RMSNorm(make(width), 1e-6)

    def weights(n_out, n_in):
        weight = make(n_out, n_in)
        return kernels.Weight(weight) if bits == 16 else rounded(weight, bits)
    weight = weights((heads + 2 * kv_heads) * dim, width)
    bias = make((heads + 2 * kv_heads) * dim)
    for last in (0, 1, 62, 63, tokens - 1):
        slots = torch.tensor([last, tokens // 3][:rows], device='cuda')
        cache = kernels.LayerKV(make(rows, kv_heads, tokens, dim),
                                make(rows, kv_heads, tokens, dim), slots)
        query = same(kernels.fused_norm_qkv_rope, make(rows, width), norm, weight,
                     bias if biased else None, make(rows, dim), make(rows, dim), cache)
        here = mask.masked_fill(torch.arange(tokens, device='cuda') > slots[:, None], -1e30)
        for _ in range(3):  # the counters are back at nought
            same(kernels.decode_attention, query, cache, here, 0.1, scratch)
    same(kernels.fused_norm_swiglu, make(rows, width), norm, weights(inner, width),
         weights(inner, width))
    same(kernels.linear_residual, make(rows, inner), weights(width, inner), make(rows, width))


@torch.inference_mode()
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
@pytest.mark.parametrize('bits', [16, 8, 4])
@pytest.mark.parametrize('shared', [True, False])
def test_layers_of_a_prompt_compute_what_the_model_does(shared, bits):
    torch.manual_seed(0)
    config = hf.Qwen2Config(hidden_size=1024, num_hidden_layers=2, num_attention_heads=8,
                            num_key_value_heads=2, intermediate_size=2048, vocab_size=100)
    model = hf.Qwen2Model(config).to('cuda', torch.bfloat16).eval()
    if bits < 16:
        quantise([model.layers], bits, torch.device('cuda'))
    embeds = torch.randn((1, 96, 1024), device='cuda', dtype=torch.bfloat16)
    slots = torch.arange(20, 116, device='cuda')
    mask = torch.where(torch.arange(128, device='cuda')[None] <= slots[:, None], 0.0, -1e30)
    found = []
    for own in (False, True):
        cache = StaticKVCache((2, 1, 2, 128, 128), embeds)
        cache.slots = slots[None]
        joined = gpu.JoinedLayers(model.layers, gpu.OneTokenLayers(model.layers, 128).qkv)
        joined._shares_heads &= shared
        with joined.compiled() if own else nullcontext():
            found.append(model(
                inputs_embeds=embeds, attention_mask=mask[None, None].to(embeds.dtype),
                position_ids=slots[None], past_key_values=cache, use_cache=True,
            ).last_hidden_state.float())
        found.append(cache.keys.float())
    for one, other in zip(found[2:], found[:2]):
        assert (one - other).norm() < 0.02 * other.norm()


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
    family = model_family(model)
    with torch.inference_mode():
        usual = family.encode_images(inputs).embeddings
        family._layouts.clear()
        used = []
        monkeypatch.setattr(packed_attention, '_varlen_attn',
                            lambda: lambda *a: used.append(a) or per_sequence(*a))
        monkeypatch.setattr(packed_attention, 'can_pack', lambda like: True)
        packed = family.encode_images(inputs).embeddings
    assert used
    torch.testing.assert_close(packed, usual)
