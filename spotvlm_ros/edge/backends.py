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
"""What computes a model: back-ends by where it runs, and by what is asked for."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from . import openvino_tower
from .engine import Engine
from .families import model_family, use_maskable_attention
from .native.library import why_not
from .precision import Formats
from .processors import UnusableError
from .torch_backend import TorchBackend
from ..config.nodes import EdgeConfig


def check_backends(config: EdgeConfig) -> None:
    """Raise UnusableError, with the remedy, where a back-end cannot be used here."""
    openvino_tower.check_backend(config.vision_backend, config.device)
    if config.decoder_backend != 'native':
        return
    asked = "decoder_backend is 'native', "
    if config.device != 'cpu' or config.engine != 'fast':
        raise UnusableError(f'{asked}which is of the fast engine on a CPU, and device is '
                            f"{config.device!r} and engine {config.engine!r}; use 'auto'")
    if why := why_not():
        raise UnusableError(f"{asked}which cannot be compiled: {why}, or use 'auto'")


def make_engine(model: PreTrainedModel, config: EdgeConfig) -> Engine | None:
    """
    Return the engine that suits a model and where it runs, None for other architectures.

    Raise UnusableError where the decoder cannot be computed as asked.
    """
    family = model_family(model)
    if family is None:
        return None
    use_maskable_attention(model)
    if family.fixed_shapes and family.embed_tokens.weight.is_cuda:
        from .gpu.graphs import GraphBackend  # compilers are of no use without a GPU
        return Engine(GraphBackend(family))
    backend = TorchBackend(family, config.vision_backend, config.decoder_backend)
    if config.decoder_backend == 'native' and backend.decoder_by != 'native':
        raise UnusableError(f"decoder_backend is 'native', which knows the layers of Llama and "
                            f'its like in 32, 16 (bfloat16), 8 or 4 bits, and this is a '
                            f'{model.config.model_type} decoder in {Formats.of_model(model)}; '
                            "use 'auto'")
    return Engine(backend)


def computed_by(model: PreTrainedModel, engine: Engine | None) -> str:
    """Return how numbers of a model are stored, and what computes where it is not torch."""
    formats, backend = Formats.of_model(model), engine.backend if engine is not None else None
    return str(Formats(replace(formats.decoder, by=getattr(backend, 'decoder_by', 'torch')),
                       replace(formats.vision, by=getattr(backend, 'vision_by', 'torch'))))
