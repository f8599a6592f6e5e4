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
"""Passes of few tokens that are compiled for the processor."""

from dataclasses import replace
import itertools
import os
from pathlib import Path
import subprocess

import pytest
from spotvlm_ros.bench.check import why_slow
from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge import quantised
from spotvlm_ros.edge.families import model_family
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.edge.native import library
from spotvlm_ros.edge.native.decoder import NativeDecoder
from spotvlm_ros.edge.native.linear import linear_of, NativeLinear
from spotvlm_ros.edge.plain_decoder import PlainDecoder, Turn
from spotvlm_ros.edge.precision import place
from spotvlm_ros.edge.quantised import product, quantise, rounded, stored
from spotvlm_ros.edge.torch_backend import KVCache
import tiny
import torch
from torch.nn import functional

compiles = pytest.mark.skipif(bool(library.why_not()), reason='needs a C compiler')
NATIVE = EdgeConfig(decoder_backend='native')
FORMATS = {'fp32': NATIVE, 'bf16': replace(NATIVE, dtype='bf16'),
           'int8': replace(NATIVE, quantization='int8'),
           'int4': replace(NATIVE, quantization='int4'),
           'int4 of bf16': replace(NATIVE, dtype='bf16', quantization='int4'),
           'int8 of bf16': replace(NATIVE, dtype='bf16', quantization='int8'),
           'int8_dynamic': replace(NATIVE, quantization='int8_dynamic'),
           'int8_dynamic of bf16': replace(NATIVE, dtype='bf16', quantization='int8_dynamic')}
LIKE_LLAMA = ('smolvlm', 'llava', 'qwen2_5_vl')


@pytest.fixture()
def fresh(tmp_path, monkeypatch):
    """Have nothing compiled yet; return the folder for what is."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    library._made.cache_clear()
    yield tmp_path / 'spotvlm'
    library._made.cache_clear()


def decoders(family, config):
    """Return the family of a tiny model, and its decoder by torch and compiled."""
    model, _ = tiny.checkpoint(family)
    known = model_family(place(model, config, 0))
    found = PlainDecoder(known, 'torch'), PlainDecoder(known, 'native')
    assert [decoder.by for decoder in found] == ['torch', 'native']
    found[1]._native_checked = found[1]._steps_checked = True   # else it finds a fault itself
    return known, *found


class Passes:
    """Passes of a decoder, with a cache of its own for each prefix."""

    def __init__(self, family, decoder):
        self.family, self.decoder = family, decoder
        self.caches = [KVCache(), KVCache()]
        for cache in self.caches:
            cache.reserve(64)

    def __call__(self, *turns, axes=1):
        """Return hidden states and logits; a turn: prefix, first slot, tokens, mask."""
        numbers = torch.Generator().manual_seed(sum(turn[1] for turn in turns))
        width = self.family.embed_tokens.weight.shape[1]
        tokens = sum(turn[2] for turn in turns)
        embeds = torch.randn(tokens, width, generator=numbers).to(
            self.family.embed_tokens.weight.dtype)
        positions = torch.tensor([[*itertools.chain.from_iterable(
            range(begin, begin + count) for _, begin, count, _ in turns)]] * axes)
        given = []
        for prefix, begin, count, mask in turns:
            self.caches[prefix].set_slots(begin, begin + count)
            given.append(Turn(self.caches[prefix], mask, count, count))
        hidden = self.decoder(embeds, positions, given)
        return hidden, self.decoder.logits(hidden)


@compiles
@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('family', LIKE_LLAMA)
@torch.inference_mode()
def test_few_tokens_give_what_torch_gives(family, kind, monkeypatch):
    known, *found = decoders(family, FORMATS[kind])
    passes = [Passes(known, decoder) for decoder in found]
    axes = 3 if family == 'qwen2_5_vl' else 1
    tree = torch.zeros(1, 1, 3, 33)   # the last two tokens do not see each other
    tree[0, 0, 1, 32] = tree[0, 0, 0, 31:] = tree[0, 0, 2, 31] = torch.finfo(torch.float32).min
    tree[0, 0, :, 4] = 0.5            # and all look at this
    tree = tree.to(known.embed_tokens.weight.dtype)
    monkeypatch.setattr(PlainDecoder, '_by_torch', counted := Counted(PlainDecoder._by_torch))
    one_by_one = torch.zeros(1, 1, 2, 22, dtype=tree.dtype)
    one_by_one[0, 0, 0, 21] = torch.finfo(torch.float32).min
    for turns in ([(0, 0, 29, None)], [(1, 0, 20, None)],      # prompts
                  [(0, 29, 1, None)], [(0, 30, 3, tree)],
                  [(0, 33, 1, None), (1, 20, 2, one_by_one)], [(1, 22, 1, None)]):
        before = counted.calls
        wanted, given = (each(*turns, axes=axes) for each in passes)
        assert counted.calls - before == (1 if len(turns) > 1 or turns[0][1] else 2)
        for one, other in zip(wanted, given):   # prompts are by torch, but for `steps`
            assert one.dtype == other.dtype and one.shape == other.shape
            # In bf16 torch rounds more often.
            exact = 2e-5 if kind in ('fp32', 'int8', 'int4') else 0.06
            assert (one - other).float().norm() <= exact * one.float().norm()


class Counted:
    """A method that counts its calls."""

    def __init__(self, method):
        self.method, self.calls = method, 0

    def __get__(self, instance, owner):
        def call(*args, **kwargs):
            self.calls += 1
            return self.method(instance, *args, **kwargs)
        return call


@compiles
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('bits', [8, 4])
def test_weights_are_written_out_as_torch_does(bits, dtype):
    torch.manual_seed(0)
    weight = rounded(torch.randn(12, 352).to(dtype), bits)
    found = linear_of(weight).dequantize(dtype)
    assert torch.equal(found, weight._plain_by_torch(weight.scales))
    assert torch.equal(found, weight.plain()) and found.dtype == dtype
    for rows in (1, 3, 40):
        x = torch.randn(rows, 352, dtype=dtype)
        near = functional.linear(x.float(), found.float())
        assert (product(x, weight, None).float() - near).norm() <= (
            1e-6 if dtype == torch.float32 else 5e-3) * near.norm()


@compiles
def test_what_differs_in_a_weight_is_not_used(monkeypatch):
    right = NativeLinear.dequantize
    monkeypatch.setattr(NativeLinear, 'dequantize', lambda self, dtype: right(self, dtype) * 2)
    quantised._native_works.cache_clear()
    weight = rounded(torch.randn(12, 96), 8)
    try:
        with pytest.warns(UserWarning, match='weights of 8 bits gives other numbers'):
            assert torch.equal(weight.plain(), weight._plain_by_torch(weight.scales))
    finally:
        quantised._native_works.cache_clear()


@compiles
@pytest.mark.parametrize('rounds', [False, True])
@pytest.mark.parametrize('n_in, n_out', [(64, 8), (100, 4), (3, 12), (1537, 260)])
def test_products_of_8_bits_are_exact_at_any_size(n_in, n_out, rounds):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(n_in, n_out)).requires_grad_(False)
    quantise([layers], 8, torch.device('cpu'), rounds)
    weight, bias = stored(layers[0]), layers[0].bias
    for rows in (1, 2, 5):
        x = torch.randn(rows, n_in) * 10 ** torch.arange(rows)[:, None]
        x[0] = 0.0 if rows == 2 else x[0]
        found, wanted = NativeLinear(weight, bias)(x), product(x, weight, bias)
        assert ((found - wanted).norm(dim=1) <= 1e-6 * wanted.norm(dim=1)).all()


@compiles
@torch.inference_mode()
def test_a_model_that_is_converted_later_leaves_what_is_computed():
    known, _, decoder = decoders('smolvlm', NATIVE)
    passes = Passes(known, decoder)
    passes((0, 0, 29, None))
    before = passes((0, 29, 1, None))[0]
    for weight in known.decoder.parameters():
        weight.data = torch.full_like(weight, float('nan'))
    junk = [torch.full((256, 64), float('nan')) for _ in range(64)]   # where weights were
    found = decoder._by_native(decoder._native, *given_of(known, passes, 29))
    assert torch.equal(found, before) and junk


def given_of(known, passes, slot):
    """Return the embeddings, positions and turns of one token as `Passes` gives them."""
    numbers = torch.Generator().manual_seed(slot)
    embeds = torch.randn(1, known.embed_tokens.weight.shape[1], generator=numbers)
    passes.caches[0].set_slots(slot, slot + 1)
    return embeds, torch.tensor([[slot]]), [Turn(passes.caches[0], None, 1, 1)]


@compiles
@torch.inference_mode()
def test_what_differs_is_not_used(monkeypatch):
    known, *found = decoders('smolvlm', NATIVE)
    right, found[1]._native_checked = NativeDecoder.__call__, False
    monkeypatch.setattr(NativeDecoder, '__call__',
                        lambda self, *args: right(self, *args) * 1.01)
    torch_passes, passes = (Passes(known, decoder) for decoder in found)
    assert all(map(torch.equal, passes((0, 0, 29, None)), torch_passes((0, 0, 29, None))))
    with pytest.warns(UserWarning, match="1.0% off .* set decoder_backend to 'torch'"):
        given = passes((0, 29, 1, None))
    assert all(map(torch.equal, given, torch_passes((0, 29, 1, None))))
    assert found[1].by == 'torch'
    assert all(map(torch.equal, passes((0, 30, 1, None)), torch_passes((0, 30, 1, None))))


@compiles
@torch.inference_mode()
def test_what_differs_in_a_prompt_is_not_used(monkeypatch):
    known, *found = decoders('smolvlm', FORMATS['int8_dynamic'])
    right, found[1]._steps_checked = NativeDecoder.step, False
    monkeypatch.setattr(NativeDecoder, 'step', lambda self, *args: tuple(
        part * 1.2 for part in right(self, *args)))
    torch_passes, passes = (Passes(known, decoder) for decoder in found)
    with pytest.warns(UserWarning, match="20.0% off .* set decoder_backend to 'torch'"):
        given = passes((0, 0, 29, None))
    assert all(map(torch.equal, given, torch_passes((0, 0, 29, None))))
    assert found[1].by == 'torch'


@compiles
def test_a_checkpoint_says_what_computes_it(tmp_path):
    checkpoint = saved('smolvlm', tmp_path)
    assert EdgeModel.load(EdgeConfig(model=checkpoint)).formats == (
        'decoder float32 by native, vision float32')
    assert EdgeModel.load(EdgeConfig(model=checkpoint, decoder_backend='torch')).formats == (
        'decoder float32, vision float32')
    for options, why in (({'dtype': 'fp16'}, 'this is a smolvlm decoder in decoder float16'),
                         ({'engine': 'generate'}, "engine 'generate'; use 'auto'")):
        with pytest.raises(ValueError, match=f"decoder_backend is 'native', .*{why}"):
            EdgeModel.load(EdgeConfig(model=checkpoint, decoder_backend='native', **options))


def saved(family, folder):
    """Write a tiny checkpoint into a folder; return its path."""
    model, processor = tiny.checkpoint(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize('compiler, why', [
    ('no-such-compiler', "there is no C compiler 'no-such-compiler'; apt install gcc"),
    ('false', 'false failed: '), ('cc "', 'CC is')])
def test_without_a_compiler_torch_computes(compiler, why, fresh, tmp_path, monkeypatch):
    monkeypatch.setenv('CC', compiler)
    checkpoint = saved('smolvlm', tmp_path / 'model')
    config = EdgeConfig(model=checkpoint)
    model = EdgeModel.load(config)
    assert model.formats == 'decoder float32, vision float32'
    assert why in why_slow(model, config)
    with pytest.raises(ValueError, match="decoder_backend is 'native', which cannot be compiled"):
        EdgeModel.load(replace(config, decoder_backend='native'))


@compiles
def test_it_is_compiled_once(fresh, monkeypatch):
    assert not fresh.exists()
    library.library()
    made = [*fresh.iterdir()]
    assert [file.suffix for file in made] == ['.so'] and fresh.stat().st_mode & 0o077 == 0
    library._made.cache_clear()
    runs = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, 'run', lambda words, **k: runs.append(words) or real(
        words, **k))
    library.library()
    assert [words[1:] for words in runs] == [['--version']] and [*fresh.iterdir()] == made


@compiles
def test_nothing_is_loaded_from_where_others_may_write(fresh, monkeypatch):
    fresh.mkdir()
    fresh.chmod(0o777)
    assert library.library() and not [*fresh.iterdir()]
    library._made.cache_clear()
    monkeypatch.setenv('XDG_CACHE_HOME', '/proc/nowhere')
    assert library.library() and not Path('/proc/nowhere').exists()
    monkeypatch.setattr(os, 'getuid', lambda: 12345)
    library._made.cache_clear()
    assert library.library() and not [*fresh.iterdir()]
