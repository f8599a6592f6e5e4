# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Functions that torch computes slowly on a CPU, written so that it computes them quickly."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.activations import GELUTanh


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
