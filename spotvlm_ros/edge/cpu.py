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
"""What torch computes slowly on a CPU, done so that it takes less time and gives the same."""

from __future__ import annotations

from collections.abc import Hashable
import math
import time
from typing import Any
import warnings

import torch
from transformers.activations import GELUTanh

from .families import Family, sizes, Tensors, Visual

RUNS = 3       # TorchScript settles on its kernels in the first ones
WORTH_S = 0.1  # a tower that takes longer has little to gain


class QuickGelu(torch.nn.Module):
    """
    GELU by tanh, in half the time of torch's own on a CPU.

    The same function, since (1 + tanh(z)) / 2 = sigmoid(2 z); results differ by rounding only.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x * sigmoid(sqrt(8 / pi) * (x + 0.044715 x^3))."""
        slope = math.sqrt(8.0 / math.pi)
        return (x * x).mul_(0.044715 * slope).add_(slope).mul_(x).sigmoid_().mul_(x)


def quicken(model: Any) -> None:
    """Replace such functions in a model that runs on a CPU."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, GELUTanh):
                setattr(module, name, QuickGelu())


class Eye:
    """
    The vision tower, traced for each size of its inputs: no Python between its kernels.

    That is a fifth of its time where the model is small. A trace that does not give exactly what
    the tower gives is not used.
    """

    def __init__(self, family: Family) -> None:
        """Wrap the vision tower of a model."""
        self._family = family
        self._traces: dict[Hashable, Any] = {}  # None: the tower itself is used

    def __call__(self, inputs: Tensors) -> Visual:
        """Return what the vision tower makes of the images."""
        key = sizes(inputs)
        if key not in self._traces:
            self._traces[key] = self._traced(inputs)
        trace = self._traces[key]
        return self._family.visual(inputs) if trace is None else Visual(trace(
            inputs['pixel_values']))

    def _traced(self, inputs: Tensors) -> Any:
        """Return the trace, None where there can be none or it differs."""
        family, pixels = self._family, inputs['pixel_values']
        fixed = {k: v for k, v in inputs.items() if k != 'pixel_values'}
        begin = time.perf_counter()
        if family.visual(inputs).deep or time.perf_counter() - begin > WORTH_S:
            return None

        def rows(pixel_values: torch.Tensor) -> torch.Tensor:
            return family.visual({'pixel_values': pixel_values, **fixed}).rows
        try:
            with warnings.catch_warnings():  # of what is constant in the trace: all but pixels is
                warnings.simplefilter('ignore')
                trace = torch.jit.trace(rows, pixels, check_trace=False)
            noise = torch.Generator().manual_seed(0)  # of its own: others count on torch's
            for _ in range(RUNS):
                other = torch.randn(pixels.shape, generator=noise, dtype=pixels.dtype)
                if not torch.equal(trace(other), rows(other)):
                    return None
        except Exception:  # whatever torch finds that it cannot trace
            return None
        return trace
