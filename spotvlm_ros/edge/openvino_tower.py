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
The vision tower by OpenVINO, where that is installed: on CPUs it is ahead of torch.

It is tried on towers that take long, one for each size of inputs, and used where it is faster and
what it gives is what torch gives, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
import time
import warnings

import torch
from torch import nn

from .processors import UnusableError
from .quantised import written_out
from ..config.nodes import VisionBackend

Tower = Callable[[torch.Tensor], torch.Tensor]   # pixel values to embeddings
MAX_DIFFERENCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
MAX_ROUNDED = 0.1   # where inputs of layers are rounded, from where they are not
# What OpenVINO computes in, by the dtype of the tower.
PRECISIONS = {torch.float32: 'f32', torch.bfloat16: 'bf16', torch.float16: 'f16'}


class _Module(nn.Module):
    def __init__(self, tower: Tower, dtype: torch.dtype) -> None:
        super().__init__()
        self.tower, self.dtype = tower, dtype

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values.to(self.dtype)).float()   # numpy knows no bfloat16


def check_backend(backend: VisionBackend, device: str) -> None:
    """Raise UnusableError, with the remedy, where a back-end for vision cannot be used."""
    if backend != 'openvino':
        return
    if device != 'cpu':
        raise UnusableError(f"vision_backend is 'openvino', which is for CPUs, and device is "
                            f"{device!r}; use 'auto'")
    if find_spec('openvino') is None:
        raise UnusableError("vision_backend is 'openvino', which is not installed; pip install "
                            "openvino, or use 'auto'")


def compile_tower(tower: Tower, pixels: torch.Tensor, rounds: int = 0) -> Tower | None:
    """
    Return a tower compiled for inputs like these; None where it differs or cannot be compiled.

    It uses as many threads as torch does now. ``rounds``: so many inputs of a linear layer whose
    weights have 8 bits are rounded to 8 bits at a time, with a scale of their own; 0: none.
    """
    if find_spec('openvino') is None:
        return None
    import openvino
    dtype = pixels.dtype
    try:
        with warnings.catch_warnings():  # of what is constant in a trace: all but pixels is
            warnings.simplefilter('ignore')
            with written_out():
                wanted = tower(pixels).float()
                trace = torch.jit.trace(_Module(tower, dtype).eval(), pixels.float(),
                                        check_trace=False)
            model = openvino.convert_model(trace, example_input=pixels.float())
        model.reshape(list(pixels.shape))
        compiled = openvino.Core().compile_model(model, 'CPU', {
            'INFERENCE_PRECISION_HINT': PRECISIONS[dtype], 'PERFORMANCE_HINT': 'LATENCY',
            'INFERENCE_NUM_THREADS': torch.get_num_threads(),
            'DYNAMIC_QUANTIZATION_GROUP_SIZE': rounds})
    except Exception:   # of any type: what it cannot convert, it cannot speed up
        return None

    def run(pixel_values: torch.Tensor) -> torch.Tensor:
        found = compiled([pixel_values.float().numpy()])[0]
        return torch.from_numpy(found).to(dtype)
    difference = float((run(pixels).float() - wanted).norm() / wanted.norm())
    return run if difference <= (MAX_ROUNDED if rounds else MAX_DIFFERENCE[dtype]) else None


def seconds(tower: Tower, pixels: torch.Tensor) -> float:
    """Return how long a tower takes, the shorter of two runs after one."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        tower(pixels)
        times.append(time.perf_counter() - begin)
    return min(times[1:])
