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
Measures the engine on a CPU with random weights of a known shape (`spotvlm perf edge --shape`).

What is said is of no meaning; what it costs is. Each way answers the same prompts in turns: two
views whose pixels were never seen, 128 tokens of history that changed, 64 of question, 16 of
answer. The base is `generate` on the model as a checkpoint in 32 bits is loaded. Ways whose name
begins with `text_` know the views already, as in the guard's second pass: their base is `generate`
without pictures, and decoders of OpenVINO and llama.cpp are among them.
"""

from __future__ import annotations

from collections.abc import Mapping
import copy
from dataclasses import replace
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
import tempfile
import time

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from .edge_gpu import ANSWER, Case, Chip, HISTORY, SHAPES
from .edge_llama import llama_cpp_is_there, LlamaDecoder, write_decoder
from .edge_openvino import OpenVinoDecoder
from .result import PerfResult
from ...config.nodes import EdgeConfig
from ...edge.cpu import replace_gelu_tanh
from ...edge.engine import Engine, Prompt
from ...edge.families import model_family
from ...edge.precision import Formats, place
from ...edge.torch_backend import TorchBackend
from ...system.machine import machine

FP32, BF16 = EdgeConfig(dtype='fp32'), EdgeConfig(dtype='bf16')
BYTES = replace(FP32, quantization='int8_dynamic', vision_dtype='bf16',
                vision_quantization='int8_dynamic')
HALF_BYTES = replace(BYTES, dtype='bf16')
WAYS: Mapping[str, EdgeConfig] = {
    'generate': replace(FP32, engine='generate'),
    'generate_static': replace(FP32, engine='generate'),
    'generate_static_compiled': replace(FP32, engine='generate'),
    'generate_bf16': replace(BF16, engine='generate'),
    'engine_fp32': replace(FP32, vision_backend='torch'),
    'engine_fp32_openvino': replace(FP32, vision_backend='openvino'),
    'engine_bf16': replace(BF16, vision_backend='torch'),
    'engine_bf16_openvino': replace(BF16, vision_backend='openvino'),
    'engine_bf16_int8_openvino': replace(BF16, quantization='int8', vision_backend='openvino'),
    'engine_int8_dynamic': replace(BYTES, vision_backend='torch'),
    'engine_int8_dynamic_openvino': replace(BYTES, vision_backend='openvino'),
    'engine_bf16_int8_dynamic_openvino': replace(HALF_BYTES, vision_backend='openvino'),
    'text_generate': replace(FP32, engine='generate'),
    'text_engine_fp32': replace(FP32, vision_backend='torch'),
    'text_engine_int8_dynamic': replace(BYTES, vision_backend='torch'),
    'text_engine_bf16_int8_dynamic': replace(HALF_BYTES, vision_backend='torch'),
    'text_openvino_int8': BYTES,
    'text_llama_cpp_q8_0': FP32}
LLAMA_CPP, OPENVINO = 'text_llama_cpp_q8_0', 'text_openvino_int8'


@lru_cache(1)
def base_model(name: str, view: int) -> PreTrainedModel:
    """Return a model of a shape for views of a side in pixels, in 32 bits."""
    config = SHAPES[name]()
    config.vision_config.image_size = view
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


class CpuCase(Case):
    """A model on a CPU, in the formats of one of WAYS."""

    def __init__(self, name: str, view: int, way: str) -> None:
        """Make the model, for views of a side in pixels."""
        self.way, self.config = way, WAYS[way]
        super().__init__(name, base_model(name, view).config, 'cpu', Chip(1.0, 1.0))
        self.model = place(self.model, self.config, 0)
        if self.config.dtype == 'fp32' and self.config.engine == 'fast':
            replace_gelu_tanh(self.model)
        self.vision = {'pixel_values': self.vision['pixel_values'].to(
            Formats.of_model(self.model).vision.dtype)}

    def make_model(self, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """Return a copy of the model of the shape."""
        return copy.deepcopy(base_model(self.name, config.vision_config.image_size))

    @cached_property
    def engine(self) -> Engine:
        """Return the engine."""
        return Engine(self.backend)

    @cached_property
    def backend(self) -> TorchBackend:
        """Return what computes."""
        family = model_family(self.model)
        assert family is not None
        return TorchBackend(family, self.config.vision_backend)

    def prompt(self, history: list[int]) -> Prompt:
        """Return a prompt about two views that were never seen."""
        self.frames += not self.knows_views
        return Prompt(tuple(self.ids(history)), self.vision, ((self.frames, 0), (self.frames, 1)))

    @property
    def knows_views(self) -> bool:
        """Whether views are those of the answer before."""
        return self.way.startswith('text_')

    def generate(self, history: list[int], static: bool, compiled: bool = False) -> list[int]:
        """Answer by `generate`, without pictures where views are known."""
        kept = self.vision
        self.vision = {} if self.knows_views else kept
        try:
            return super().generate(history, static, compiled)
        finally:
            self.vision = kept

    def answer(self) -> None:
        """Answer once."""
        history = self._words(HISTORY)
        if self.config.engine == 'fast':
            self.free('changed', history, [])
        else:
            self.generate(history, self.way.startswith('generate_static'),
                          self.way.endswith('compiled'))

    @property
    def there(self) -> bool:
        """Whether what it is named for computed it."""
        return (self.config.vision_backend != 'openvino' or self.config.engine != 'fast'
                or self.backend.vision_by == 'openvino')


class PeerCase:
    """The text decoder of a shape by another engine."""

    there = True

    def __init__(self, name: str, view: int, way: str, threads: int) -> None:
        """Make it of the weights of the shape."""
        self._like = CpuCase(name, view, 'text_generate' if way == LLAMA_CPP else way)
        self._decoder: LlamaDecoder | OpenVinoDecoder
        if way == OPENVINO:
            self._decoder = OpenVinoDecoder(self._like.model, threads)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / 'decoder.gguf'
            write_decoder(self._like.model, file)
            self._decoder = LlamaDecoder(file, threads, room=len(self._ids()) + ANSWER)

    def _ids(self) -> list[int]:
        return self._like.ids(self._like._words(HISTORY))

    def answer(self) -> None:
        """Answer once."""
        self._decoder.answer(self._ids(), ANSWER)


def _can_run(way: str) -> bool:
    if way == LLAMA_CPP:
        return llama_cpp_is_there()
    return find_spec('openvino') is not None or (
        way != OPENVINO and WAYS[way].vision_backend != 'openvino')


@torch.inference_mode()
def shape_rows(name: str, view: int, threads: int, limit_s: float = 200.0,
               rounds: int = 5) -> list[PerfResult]:
    """Return what each way takes, in turns; no turn begins after ``limit_s``."""
    torch.set_num_threads(threads)
    begin, times = time.perf_counter(), dict[str, list[float]]()
    cases = {way: PeerCase(name, view, way, threads) if way in (LLAMA_CPP, OPENVINO) else
             CpuCase(name, view, way) for way in WAYS if _can_run(way)}
    for turn in range(rounds + 1):
        if turn > 1 and time.perf_counter() - begin > limit_s:
            print(f'{limit_s:g} s are over: {turn - 1} turns', flush=True)
            break
        for way, case in cases.items():
            start = time.perf_counter()
            case.answer()
            took = time.perf_counter() - start
            print(f'{view} pixels, turn {turn}, {way}: {took:.2f} s', flush=True)
            if turn:   # the first compiles and warms up
                times.setdefault(way, []).append(took)
    rows = list[PerfResult]()
    for way in WAYS:
        if way not in cases or not cases[way].there:
            print(f'{way}: left out, ' + (
                'llama-cpp-python or gguf is not installed' if way == LLAMA_CPP else
                'OpenVINO is not installed or did not give the same'))
            continue
        base, named = (('text_generate', 'generate, 32 bits, no views')
                       if way.startswith('text_') else ('generate', 'generate, 32 bits'))
        p50 = float(np.median(times[way]))
        rows.append(PerfResult(f'edge_shape_{name}_{view}_{way}_ms', 1e3 * p50, 'ms', named,
                               float(np.median(times[base])) / p50, machine(threads)))
    return rows
