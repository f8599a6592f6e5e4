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
How numbers are stored: dtype and bits of the decoder and of the vision tower, and what fits.

A model is brought to its device in the formats that are asked for. What it will take there is
reckoned before: weights, keys and values, and what a pass needs. Where that does not fit it is
refused with the arithmetic and with what would fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from .accuracy import points_lost, WORST
from .families import FAMILIES, model_family
from .processors import UnusableError
from .quantised import can_quantise, GROUP, quantise, QuantisedLinear
from ..config.nodes import EdgeConfig
from ..mini.shipped import checkpoint_path

DTYPES = {'bfloat16': torch.bfloat16, 'float16': torch.float16, 'float32': torch.float32,
          'bf16': torch.bfloat16, 'fp16': torch.float16, 'fp32': torch.float32}
BITS = {'none': 0, 'auto': 0, 'int8': 8, 'int4': 4, 'int8_dynamic': 8}
DYNAMIC = 'int8_dynamic'
TOKENS = 2048        # of prompt and answer that keys and values are kept for
PREFIXES = 4         # of other questions, 512 tokens each
GRAPHS = 400 << 20   # bytes: libraries, and the CUDA graphs of a model
ACTIVATIONS = 4      # widest tensors of the vision tower that are there at once
# What CPUs multiply 16-bit numbers by; where none of these is there they are widened.
INSTRUCTIONS = {torch.bfloat16: ('avx512_bf16', 'amx_bf16'),
                torch.float16: ('avx512_fp16', 'amx_fp16')}


@dataclass(frozen=True)
class Format:
    """How the numbers of one part of a model are stored."""

    dtype: torch.dtype
    bits: int = 0        # of the weights of linear layers; 0: as the others
    rounds: bool = False   # inputs of linear layers to 8 bits, too
    by: str = 'torch'      # what computes it

    def __str__(self) -> str:
        """Return it in words, as bfloat16 with int4 weights; torch is not named."""
        weights = f' with int{self.bits} weights' if self.bits else ''
        weights += ' and inputs' * self.rounds + f' by {self.by}' * (self.by != 'torch')
        return str(self.dtype).removeprefix('torch.') + weights


@dataclass(frozen=True)
class Formats:
    """How the numbers of a model are stored."""

    decoder: Format
    vision: Format

    @staticmethod
    def of(config: EdgeConfig, checkpoint: torch.dtype) -> Formats:
        """Return what is asked for; ``checkpoint``: the dtype of its weights."""
        dtype = DTYPES.get(config.dtype) or _suits(checkpoint, config.device)
        vision = DTYPES.get(config.vision_dtype, dtype)
        return Formats(*(Format(part, BITS[asked], asked == DYNAMIC) for part, asked in (
            (dtype, config.quantization), (vision, config.vision_quantization))))

    @staticmethod
    def of_model(model: PreTrainedModel) -> Formats:
        """Return how the numbers of a model are stored."""
        parts, found = Parts(model), list[Format]()
        for modules in ([parts.decoder], parts.vision or [parts.decoder]):
            inner = [m for part in modules for m in part.modules()]
            weights = [m.stored for m in inner if isinstance(m, QuantisedLinear)]
            dtype = next(p.dtype for m in inner for p in m.parameters() if p.is_floating_point())
            found.append(Format(dtype, min((w.bits for w in weights), default=0),
                                any(w.rounds for w in weights)))
        return Formats(*found)

    def __str__(self) -> str:
        """Return both in words."""
        return f'decoder {self.decoder}, vision {self.vision}'


def multiplies(dtype: torch.dtype) -> bool:
    """Return whether this CPU multiplies numbers of 16 bits as they are."""
    has: dict[str, object] = dict(getattr(torch.cpu, 'get_capabilities', dict)())
    return any(map(has.get, INSTRUCTIONS[dtype]))


def cast_vision(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert what a model of a known family has before its decoder: the vision tower."""
    for part in Parts(model).vision:
        for module in part.modules():
            _cast(module, dtype)


def _suits(dtype: torch.dtype, device: str) -> torch.dtype:
    """Return the dtype of a checkpoint, or a wider one where a CPU has no instructions for it."""
    names = INSTRUCTIONS.get(dtype, ())
    has: dict[str, object] = dict(getattr(torch.cpu, 'get_capabilities', dict)())
    lacking = device == 'cpu' and names and names[0] in has and not any(map(has.get, names))
    return torch.float32 if lacking else dtype


class Parts:
    """Decoder and vision of a model of a known family; of another all is decoder."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the parts."""
        family = model_family(model)
        self.decoder = model if family is None else family.decoder
        self.head = model.get_output_embeddings()
        self.vision = [] if family is None else [
            part for part in family.backbone.children() if part is not family.decoder]
        self._model = model

    def formats(self, formats: Formats) -> Iterator[tuple[nn.Module, Format]]:
        """Yield each module, those inside of others too, and its format."""
        inside = {id(m) for m in self.decoder.modules()}
        seen = {id(m) for part in self.vision for m in part.modules()}
        for module in self._model.modules():
            if id(module) in seen:
                continue
            rounded = id(module) in inside or (formats.decoder.rounds and module is self.head)
            bits = formats.decoder.bits if rounded else 0
            yield module, replace(formats.decoder, bits=bits)
        for part in self.vision:
            for module in part.modules():
                yield module, formats.vision


def weight_bytes(parts: Parts, formats: Formats, inside: nn.Module | None = None) -> int:
    """Return what the weights of a model, or of a part of it, will take in some formats."""
    total, counted = 0, set[int]()
    some = None if inside is None else {id(m) for m in inside.modules()}
    for module, stored in parts.formats(formats):
        if some is not None and id(module) not in some:
            continue
        if isinstance(module, QuantisedLinear):   # reckoned from what it was
            total += _linear_bytes(module.in_features * module.out_features, module.out_features,
                                   stored)
        for name, weight in module.named_parameters(recurse=False):
            if name == 'weight' and stored.bits and can_quantise(module, stored.bits):
                total += _linear_bytes(weight.numel(), len(weight), stored)
            elif id(weight) not in counted:   # else tied
                counted.add(id(weight))
                total += weight.numel() * stored.dtype.itemsize
    return total


def _linear_bytes(numbers: int, rows: int, stored: Format) -> int:
    """Return what the weight of a linear layer takes."""
    if not stored.bits:
        return numbers * stored.dtype.itemsize
    scales = rows if stored.bits == 8 else numbers // GROUP
    return numbers * stored.bits // 8 + scales * stored.dtype.itemsize


@dataclass(frozen=True)
class MemoryPlan:
    """What a model takes of the memory of its device [bytes]."""

    weights: int
    cache: int      # keys and values
    work: int       # what a pass needs beside them: views, graphs, libraries

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.weights + self.cache + self.work

    def __str__(self) -> str:
        """Return the arithmetic."""
        return (f'weights {gib(self.weights)} + keys and values {gib(self.cache)} + views and '
                f'graphs {gib(self.work)} = {gib(self.total)}')


def memory_plan(model: PreTrainedModel, formats: Formats, on_gpu: bool,
                patches: int) -> MemoryPlan:
    """Return what a model will take; ``patches``: those of all views of a frame."""
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    dim = getattr(text, 'head_dim', None) or text.hidden_size // heads
    pairs = getattr(text, 'num_key_value_heads', None) or heads
    tokens = TOKENS * (1 + on_gpu) + PREFIXES * 512   # on a GPU two answers at once
    cache = (2 * text.num_hidden_layers * pairs * dim * tokens * formats.decoder.dtype.itemsize)
    vision = getattr(model.config, 'vision_config', None)
    width = max((int(getattr(vision, name, 0) or 0) for name in ('intermediate_size',
                                                                 'hidden_size')), default=0)
    views = ACTIVATIONS * patches * width * max(2, formats.vision.dtype.itemsize)
    return MemoryPlan(weight_bytes(Parts(model), formats), cache, views + GRAPHS * on_gpu)


def n_patches(model: PreTrainedModel, view_size: tuple[int, int]) -> int:
    """Return the patches of two views of a size (width, height)."""
    patch = int(getattr(getattr(model.config, 'vision_config', None), 'patch_size', 0) or 14)
    return 2 * (view_size[0] // patch) * (view_size[1] // patch)


def free_bytes(device: str) -> int:
    """Return how much memory a device has to give."""
    if device.startswith('cuda'):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    import psutil
    free = int(psutil.virtual_memory().available)
    try:   # of a container, whose files in memory can go
        group = Path('/sys/fs/cgroup')
        held = dict(line.split() for line in (group / 'memory.stat').read_text().splitlines())
        used = int((group / 'memory.current').read_text()) - int(held['file'])
        free = min(free, int((group / 'memory.max').read_text()) - used)
    except (OSError, ValueError, KeyError):
        pass   # no container, or none with a limit
    return max(0, free)


def check_files_fit(path: Path) -> None:
    """Raise ValueError where the weights of a folder cannot be read into this memory."""
    size, free = sum(f.stat().st_size for f in path.glob('model*.safetensors')), free_bytes('cpu')
    if size > free:
        raise ValueError(f'{path} cannot be loaded: its weights take {gib(size)}, and {gib(free)} '
                         'of memory are free; end other programs, or use a smaller checkpoint')


def place(model: PreTrainedModel, config: EdgeConfig, patches: int) -> PreTrainedModel:
    """
    Return a model on its device, in the formats that the configuration asks for.

    Raise UnusableError, with the remedy, where they do not suit the model or it does not fit.
    """
    device, formats = torch.device(config.device), Formats.of(config, model.dtype)
    ready = bool(getattr(model, 'is_quantized', False))
    _check_formats(model, config, ready)
    if ready:   # by its own library, which has put it where it runs
        return model
    _check_memory(model, config, formats, patches)
    parts, before = Parts(model), model.dtype
    for module, stored in parts.formats(formats):
        if stored.dtype != before:   # a checkpoint may have parts that are wider: they stay
            _cast(module, stored.dtype)
    if device.type == 'cuda' and formats.vision.bits:
        from .gpu.layers import pad_gated_mlps
        pad_gated_mlps([m for part in parts.vision for m in part.modules()])
    for stored, modules in ((formats.decoder, [parts.decoder]), (formats.vision, parts.vision)):
        if stored.bits:
            quantise(modules, stored.bits, device, stored.rounds)
    if formats.decoder.rounds and type(parts.head) is nn.Linear:   # embeddings stay as they are
        model.set_output_embeddings(QuantisedLinear(parts.head, 8, device, rounds=True))
    return model.to(device)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert what a module itself holds; frequencies of positions stay as exact as they are."""
    for _, weight in module.named_parameters(recurse=False):
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point() and 'inv_freq' not in name:
            setattr(module, name, buffer.to(dtype))


def _check_formats(model: PreTrainedModel, config: EdgeConfig, ready: bool) -> None:
    """Raise UnusableError where formats do not suit a model."""
    kind = model.config.model_type
    asked = {name: getattr(config, name) for name in (
        'dtype', 'vision_dtype', 'quantization', 'vision_quantization')}
    changed = [name for name, value in asked.items() if value not in ('auto', 'none')]
    if ready and changed:
        raise UnusableError(f'{changed[0]} is {asked[changed[0]]!r}, but the weights of the '
                            'checkpoint are quantised already; leave it at its default')
    formats = Formats.of(config, model.dtype)
    dynamic = [name for name in changed if asked[name] == DYNAMIC]
    if dynamic and config.device != 'cpu':
        raise UnusableError(f'{dynamic[0]} is {DYNAMIC!r}, which is for CPUs, and device is '
                            f"{config.device!r}; use 'int8'")
    if config.engine != 'fast' and formats.decoder.dtype != formats.vision.dtype:
        raise UnusableError("vision_dtype is not that of the decoder, and engine is 'generate', "
                            "which takes one; leave vision_dtype at 'auto', or use engine 'fast'")
    apart = [name for name in changed if name != 'dtype']
    if apart and kind not in FAMILIES:
        raise UnusableError(f'{apart[0]} is {asked[apart[0]]!r}, but spotvlm does not know the '
                            f'parts of {kind} models; leave it at its default, or use a '
                            f'checkpoint of {", ".join(sorted(FAMILIES))}')


def _check_memory(model: PreTrainedModel, config: EdgeConfig, formats: Formats,
                  patches: int) -> None:
    """Raise UnusableError, with the arithmetic, where a model does not fit on its device."""
    on_gpu, free = config.device.startswith('cuda'), free_bytes(config.device)
    plan = memory_plan(model, formats, on_gpu, patches)
    there = 0 if on_gpu else weight_bytes(Parts(model), Formats(*[Format(model.dtype)] * 2))
    if plan.total <= free + there:
        return
    lost = points_lost(checkpoint_path(config.model))
    smaller = [(name, memory_plan(model, Formats(
        replace(formats.decoder, bits=bits), replace(formats.vision, bits=8)), on_gpu, patches))
        for name, bits in (('int8', 8), ('int4', 4))]
    fits = [f"quantization {name!r} with vision_quantization 'int8' ({gib(p.total)})"
            for name, p in smaller
            if p.total <= free + there and model.config.model_type in FAMILIES
            and lost.get(name, 0.0) <= WORST]
    instead = f'use {" or ".join(fits)}' if fits else 'use a smaller checkpoint'
    raise UnusableError(f'the model does not fit on {config.device}: {plan}, and '
                        f'{gib(free + there)} are free; {instead}, or end other programs')


def gib(size: int) -> str:
    """Return a size in words."""
    return f'{size / 2**30:.2f} GiB'
