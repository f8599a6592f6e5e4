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

from collections.abc import Callable, Hashable
import math
import time

import torch
from transformers import PreTrainedModel
from transformers.activations import GELUTanh

from . import openvino_tower
from .families import ImageFeatures, input_shapes, ModelFamily, Tensors
from .quantised import QuantisedLinear
from .tracing import traced
from ..config.nodes import VisionBackend

MAX_TRACED_S = 0.1  # a tower that takes longer has little to gain [s]

Trace = Callable[[torch.Tensor], torch.Tensor]   # pixel values to embeddings


class SigmoidGELUTanh(torch.nn.Module):
    """
    GELU by tanh, in half the time of torch's own on a CPU.

    The same function, since (1 + tanh(z)) / 2 = sigmoid(2 z); results differ by rounding only.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x * sigmoid(sqrt(8 / pi) * (x + 0.044715 x^3))."""
        slope = math.sqrt(8.0 / math.pi)
        return (x * x).mul_(0.044715 * slope).add_(slope).mul_(x).sigmoid_().mul_(x)


def replace_gelu_tanh(model: PreTrainedModel) -> None:
    """Replace GELU by tanh in a model that runs on a CPU."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, GELUTanh):
                setattr(module, name, SigmoidGELUTanh())


class TracedVisionTower:
    """
    The vision tower, traced for each size of its inputs: no Python between its kernels.

    That is a fifth of its time where the model is small. A trace that does not give exactly what
    the tower gives is not used. A tower that takes long is tried in OpenVINO instead.
    """

    def __init__(self, family: ModelFamily, backend: VisionBackend = 'auto') -> None:
        """Wrap the vision tower of a model; the first call for each size traces it."""
        self._family, self._backend = family, backend
        self._traces: dict[Hashable, Trace | None] = {}  # None: the tower itself is used
        self.by = 'torch'   # what computes most

    def __call__(self, inputs: Tensors) -> ImageFeatures:
        """Return the features of all images of ``inputs``."""
        key = input_shapes(inputs)
        if key not in self._traces:
            self._traces[key] = self._trace(inputs)
        trace = self._traces[key]
        return (self._family.encode_images(inputs) if trace is None
                else ImageFeatures(trace(inputs['pixel_values'])))

    def _trace(self, inputs: Tensors) -> Trace | None:
        """Return the trace, None where there can be none or it differs."""
        family, pixels = self._family, inputs['pixel_values']
        fixed = {k: v for k, v in inputs.items() if k != 'pixel_values'}

        def embeddings(pixel_values: torch.Tensor) -> torch.Tensor:
            return family.encode_images({'pixel_values': pixel_values, **fixed}).embeddings
        begin = time.perf_counter()
        if family.encode_images(inputs).deepstack:
            return None
        if self._backend == 'openvino' or time.perf_counter() - begin > MAX_TRACED_S:
            # Windows of patches (Qwen) are not for OpenVINO: lengths would be part of the model.
            return (None if self._backend == 'torch' or 'image_grid_thw' in fixed else
                    self._by_openvino(embeddings, pixels))
        return traced(embeddings, (pixels,))

    def _by_openvino(self, embeddings: Trace, pixels: torch.Tensor) -> Trace | None:
        """Return the tower compiled by OpenVINO; None where it is not there, or not better."""
        widths = [m.in_features for part in (self._family.vision_tower,) for m in part.modules()
                  if isinstance(m, QuantisedLinear) and m.rounds]
        compiled = openvino_tower.compile_tower(embeddings, pixels, min(widths, default=0))
        if compiled is None:
            return None
        if self._backend == 'auto':
            ours, theirs = (openvino_tower.seconds(t, pixels) for t in (compiled, embeddings))
            if ours >= theirs:
                return None
        self.by = 'openvino'
        return compiled
