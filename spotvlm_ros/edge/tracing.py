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
"""Functions of tensors without Python between their kernels, by TorchScript."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar
import warnings

import torch

CHECKS = 3   # runs a trace is compared in: TorchScript settles on its kernels in the first

Tensors: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
Found = TypeVar('Found', torch.Tensor, tuple[torch.Tensor, ...])


def traced(function: Callable[..., Found], example: tuple[torch.Tensor, ...]
           ) -> Callable[..., Found] | None:
    """
    Return a function of tensors of the shapes of an example as a trace.

    None where there can be none, or where it does not give exactly what the function gives.
    """
    try:
        with warnings.catch_warnings():  # of what is constant in the trace: all but what is given
            warnings.simplefilter('ignore')
            trace = _trace(function, example)
        noise = torch.Generator().manual_seed(0)  # of its own: others count on torch's
        for _ in range(CHECKS):
            others = [torch.randn(part.shape, generator=noise, dtype=part.dtype)
                      for part in example]
            if not all(map(torch.equal, _all(trace(*others)), _all(function(*others)))):
                return None
    except Exception:  # whatever torch finds that it cannot trace
        return None
    return trace


def _all(found: Tensors) -> Sequence[torch.Tensor]:
    return [found] if isinstance(found, torch.Tensor) else found


def _trace(function: Callable[..., Found], example: tuple[torch.Tensor, ...]
           ) -> Callable[..., Found]:
    """
    Do what torch.jit.trace does, which keeps each trace, weights included, until the process ends.

    Here a trace has a compilation unit of its own and goes with it.
    """
    graph, _ = torch._C._create_graph_by_tracing(function, example, lambda value: '', True, False)
    return torch._C._create_function_from_graph('traced', graph)
