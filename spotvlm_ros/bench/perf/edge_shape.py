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
answer. The base is `generate` on the model as a checkpoint in 32 bits is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
import itertools
import time

import numpy as np
import torch

from .edge_gpu import Case, Chip, HISTORY, SHAPES
from .result import PerfResult
from ...config.nodes import EdgeConfig
from ...edge.cpu import replace_gelu_tanh
from ...edge.engine import Engine, Prompt
from ...edge.families import model_family
from ...edge.precision import place
from ...edge.torch_backend import TorchBackend
from ...system.machine import machine

FP32, BF16 = EdgeConfig(dtype='fp32'), EdgeConfig(dtype='bf16')
WAYS: Mapping[str, EdgeConfig] = {
    'generate': replace(FP32, engine='generate'),
    'generate_bf16': replace(BF16, engine='generate'),
    'engine_fp32': replace(FP32, vision_backend='torch'),
    'engine_fp32_openvino': replace(FP32, vision_backend='openvino'),
    'engine_bf16': replace(BF16, vision_backend='torch'),
    'engine_bf16_openvino': replace(BF16, vision_backend='openvino'),
    'engine_bf16_int8_openvino': replace(BF16, quantization='int8', vision_backend='openvino')}


class CpuCase(Case):
    """A model on a CPU, in the formats of one of WAYS."""

    def __init__(self, name: str, view: int, way: str) -> None:
        """Make the model, for views of a side in pixels."""
        config = SHAPES[name]()
        config.vision_config.image_size = view
        super().__init__(name, config, 'cpu', Chip(1.0, 1.0))
        self.config = WAYS[way]
        self.model = place(self.model, self.config, 0)
        if self.config.dtype == 'fp32' and self.config.engine == 'fast':
            replace_gelu_tanh(self.model)
        self.vision = {'pixel_values': self.vision['pixel_values'].to(self.model.dtype)}

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
        self.frames += 1
        return Prompt(tuple(self.ids(history)), self.vision, ((self.frames, 0), (self.frames, 1)))

    def answer(self) -> None:
        """Answer once."""
        history = self._words(HISTORY)
        if self.config.engine == 'fast':
            self.free('changed', history, [])
        else:
            self.generate(history, False)


@torch.inference_mode()
def shape_rows(name: str, view: int, threads: int, rounds: int = 5) -> list[PerfResult]:
    """Return what each way takes, in turns."""
    torch.set_num_threads(threads)
    cases = {way: CpuCase(name, view, way) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn, (way, case) in itertools.product(range(rounds + 1), cases.items()):
        begin = time.perf_counter()
        case.answer()
        if turn:   # the first compiles and warms up
            times[way].append(time.perf_counter() - begin)
    base, rows = float(np.median(times['generate'])), list[PerfResult]()
    for way, case in cases.items():
        if case.config.vision_backend == 'openvino' and case.backend.vision_by != 'openvino':
            print(f'{way}: left out, OpenVINO is not installed or did not give the same')
            continue
        p50 = float(np.median(times[way]))
        rows.append(PerfResult(f'edge_shape_{name}_{view}_{way}_ms', 1e3 * p50, 'ms',
                               'generate, 32 bits', base / p50, machine(threads)))
    return rows
