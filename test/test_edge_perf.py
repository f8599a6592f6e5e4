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
"""The measuring of the edge engine runs and compares what it should."""

from importlib.util import find_spec

import pytest
from spotvlm_ros.bench.perf import cameras as cameras_perf, edge_cpu as edge_perf, edge_gpu
from spotvlm_ros.bench.perf import edge_llama, edge_shape
from spotvlm_ros.bench.perf.edge_openvino import OpenVinoDecoder
from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge.precision import place
from spotvlm_ros.mini.worlds import make_world, TUNE_SEEDS
import torch
from transformers import AutoModelForImageTextToText


def test_cpu_rows():
    rows = {r.name: r for r in edge_perf.cpu_rows(drives=2, repeats=1)}
    assert rows['edge_cpu_answers_that_differ'].value == 0
    for name in ('unchanged', 'changed', 'still', 'alone'):
        found = rows[f'edge_cpu_speedup_{name}']
        assert found.ratio == found.value > 0 and 'generate' in found.baseline
    assert rows['edge_cpu_two_passes_over_one_changed'].value > 0


def test_gpu_rows_on_shapes_so_small_that_a_cpu_runs_them():
    """The same prompts, graphs aside; every way of answering worked."""
    for name in edge_gpu.tiny_shapes():
        case = edge_gpu.Case(name, edge_gpu.tiny_shapes()[name](), 'cpu', edge_gpu.Chip(1e9, 1e9))
        rows = {r.name: r for r in edge_gpu.case_rows(case, 'here', seconds=0.0)}
        for way in ('generate', 'generate_static', 'engine_16_changed', 'engine_16_same_history',
                    'engine_16_unchanged', 'engine_choice', 'vision'):
            assert rows[f'edge_gpu_{name}_{way}_ms'].value > 0
        assert rows[f'edge_gpu_{name}_tokens_as_generate'].value == edge_gpu.ANSWER


def test_rows_of_a_shape_on_a_cpu(monkeypatch, capsys):
    """Every way that can be is measured and tells its progress; base of all is `generate`."""
    monkeypatch.setattr(edge_shape, 'SHAPES', edge_gpu.tiny_shapes())
    monkeypatch.setattr(edge_shape, 'find_spec', lambda name: None)
    monkeypatch.setattr(edge_shape, 'llama_cpp_is_there', lambda: False)
    rows = {r.name: r for r in edge_shape.shape_rows('tiny-smol', 64, 1, rounds=1)}
    ways = [way for way in edge_shape.WAYS if 'openvino' not in way and 'llama' not in way]
    assert list(rows) == [f'edge_shape_tiny-smol_64_{way}_ms' for way in ways]
    assert rows['edge_shape_tiny-smol_64_generate_ms'].ratio == 1.0
    assert rows['edge_shape_tiny-smol_64_text_generate_ms'].ratio == 1.0
    said = capsys.readouterr().out
    assert said.count('turn 1') == len(ways) and said.count(
        'left out') == len(edge_shape.WAYS) - len(ways)


@pytest.mark.skipif(not edge_llama.llama_cpp_is_there(),
                    reason='llama-cpp-python and gguf, a peer, are not installed by make setup')
def test_a_decoder_by_llama_cpp_says_what_generate_says(tmp_path):
    """With the same weights, but for their rounding to 8 bits."""
    torch.manual_seed(0)
    config = edge_gpu.smol(64, 16, 2, (32, 2, 4, 64), (256, 2, 4, 2, 256))
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():   # logits far apart: 8 bits change none of the tokens
        model.lm_head.weight.mul_(20)
    edge_llama.write_decoder(model, tmp_path / 'decoder.gguf')
    decoder = edge_llama.LlamaDecoder(tmp_path / 'decoder.gguf', 1, 64)
    ids = list(range(1000, 1040))
    said = model.generate(input_ids=torch.tensor([ids]), do_sample=False, min_new_tokens=8,
                          attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                          max_new_tokens=8, pad_token_id=0)[0, len(ids):].tolist()
    assert decoder.answer(ids, 8) == said == decoder.answer(ids, 8)


@pytest.mark.skipif(find_spec('openvino') is None,
                    reason='OpenVINO, 184 MB, is not installed by make setup; pip install it')
def test_a_decoder_by_openvino_says_what_generate_says():
    torch.manual_seed(0)
    config = edge_gpu.smol(64, 16, 2, (32, 2, 4, 64), (256, 2, 4, 2, 256))
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model = place(model, EdgeConfig(quantization='int8_dynamic'), 0)
    ids, decoder = list(range(1000, 1040)), OpenVinoDecoder(model, 1)
    said = model.generate(input_ids=torch.tensor([ids]), do_sample=False, min_new_tokens=8,
                          attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                          max_new_tokens=8, pad_token_id=0)[0, len(ids):].tolist()
    assert decoder.answer(ids, 8) == said == decoder.answer(ids, 8)


@pytest.mark.alone
def test_cameras_are_answered_in_turns(monkeypatch):
    monkeypatch.setattr(cameras_perf, 'SECONDS', 2.0)
    pictures = [[make_world('driving', TUNE_SEEDS[k]).frame(300)] * cameras_perf.FRAMES
                for k in range(2)]
    load = cameras_perf._load(pictures, 2.0)
    assert 0.0 < load.answered <= 1.5 and 0.0 < load.model_s < load.p95_s
