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
What the engine would take on a robot's computer, computed (`spotvlm perf edge --roofline NAME`).

Nothing here is measured on such a computer. Operations and bytes are counted on models of known
shapes; a chip does them no faster than its published speeds, which gives the floor. The other
figure divides by the shares of these speeds that the engine reached on an H200
(docs/performance.md). The prompt is that of `edge_gpu`: two views or one large one, 128 tokens of
history, 64 of question, 16 of answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import itertools

import torch
import transformers as hf

from .edge_gpu import ANSWER, HISTORY, inputs_of, QUESTION, SHAPES
from ...edge.families import model_family
from ...edge.precision import Format, Formats, gib, memory_plan, MemoryPlan, Parts
from ...edge.precision import weight_bytes
from ...system.lean import Layout
from ...system.markdown import table

READS, MULTIPLIES = 0.76, 0.5   # shares of a chip's speeds that the engine reached on an H200
BITS = (0, 8, 4)


@dataclass(frozen=True)
class Chip:
    """A computer's published speeds."""

    name: str
    read: float       # bytes per second from memory
    multiply: float   # operations per second, dense, of the format below
    wide: torch.dtype
    memory: int       # bytes
    source: str


CHIPS = {
    'orin-nano': Chip(
        'Jetson Orin Nano 8 GB (Super)', 102e9, 17e12, torch.bfloat16, 8 << 30,
        'NVIDIA, Jetson Orin Nano Super Developer Kit: 102 GB/s, 17 FP16 TFLOPS'),
    'orin': Chip(
        'Jetson AGX Orin 64 GB', 204.8e9, 42.5e12, torch.bfloat16, 64 << 30,
        'NVIDIA, Jetson AGX Orin Series Technical Brief: 204.8 GB/s, 170 sparse INT8 TOPS of the '
        'GPU, of which FP16 dense is a quarter'),
    'thor': Chip(
        'Jetson AGX Thor 128 GB', 273e9, 258.8e12, torch.bfloat16, 128 << 30,
        'NVIDIA, Jetson Thor: 273 GB/s, 2070 sparse FP4 TFLOPS, of which FP16 dense is an eighth'),
    'nuc': Chip(
        'NUC 13 Pro, Core i7-1360P, 32 GB', 51.2e9, 448e9, torch.float32, 32 << 30,
        'Intel: two channels of DDR4-3200; four P cores with two AVX2 FMA units each, taken at '
        '3.5 GHz'),
}


@dataclass(frozen=True)
class Work:
    """What one answer takes, counted."""

    vision: float         # operations
    prompt: float
    weights: int          # bytes that are read for each token after the first
    attention: int        # bytes of keys and values read for each, at most
    plan: MemoryPlan

    def ms(self, chip: Chip, reads: float, multiplies: float) -> tuple[float, float, float]:
        """Return vision, prompt and one token [ms], at shares of the chip's speeds."""
        read, multiply = chip.read * reads, chip.multiply * multiplies
        return (1e3 * max(self.vision / multiply, 0.0),
                1e3 * max(self.prompt / multiply, self.weights / read),
                1e3 * (self.weights + self.attention) / read)


def work_of(config: hf.PretrainedConfig, wide: torch.dtype, bits: int) -> Work:
    """Count the work of a model without weights; those of vision have 8 bits where ``bits``."""
    with torch.device('meta'), Layout():
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=wide).eval()
    family = model_family(model)
    assert family is not None
    vision, image = inputs_of(config, 'cpu', wide)
    pixels = vision['pixel_values']
    patches = (pixels.shape[0] if 'image_grid_thw' in vision else
               2 * (pixels.shape[-1] // family.vision_tower.patch_size) ** 2)
    formats = Formats(Format(wide, bits), Format(wide, 8 if bits else 0))
    plan = memory_plan(model, formats, wide != torch.float32, patches)
    layers = weight_bytes(Parts(model), formats, family.decoder.layers)
    head = family.lm_head.weight.numel()
    numbers = sum(p.numel() for p in family.decoder.layers.parameters())
    tokens, text = HISTORY + len(image) + QUESTION, family.text_config
    pairs = text.num_key_value_heads or text.num_attention_heads
    dim = getattr(text, 'head_dim', None) or text.hidden_size // text.num_attention_heads
    kept = 2 * text.num_hidden_layers * pairs * dim * wide.itemsize * (tokens + ANSWER)
    seen = sum(p.numel() for part in Parts(model).vision for p in part.parameters())
    return Work(2.0 * seen * patches, 2.0 * numbers * tokens, layers + head * wide.itemsize, kept,
                plan)


def rows(name: str, shapes: Sequence[str] = ()) -> list[list[str]]:
    """Return a line for each shape and format, as strings."""
    chip, lines = CHIPS[name], list[list[str]]()
    for shape, bits in itertools.product(shapes or SHAPES, BITS):
        work = work_of(SHAPES[shape](), chip.wide, bits)
        floor, likely = work.ms(chip, 1.0, 1.0), work.ms(chip, READS, MULTIPLIES)
        lines.append([
            shape, str(Format(chip.wide, bits)), gib(work.plan.total),
            'yes' if work.plan.total <= chip.memory else 'NO',
            *(f'{ms:.1f}' for ms in likely), f'{_answer(likely):.0f}', f'{_answer(floor):.0f}'])
    return lines


def _answer(parts: tuple[float, float, float]) -> float:
    vision, prompt, token = parts
    return vision + prompt + (ANSWER - 1) * token


def print_roofline(name: str, shapes: Sequence[str] = ()) -> None:
    """Print what a computer would take."""
    chip = CHIPS[name]
    print(f'{chip.name}: COMPUTED, not measured, from published speeds: {chip.source}.\n'
          f'Times [ms] at {READS:.0%} of the memory and {MULTIPLIES:.0%} of the arithmetic, as '
          'the engine reaches on an H200 with weights of 16 bits (with fewer it reaches less of '
          'the memory: docs/models.md); floor: at all of both.\n')
    print(table(('shape', 'decoder', 'memory', 'fits', 'vision', 'prompt', 'a token',
                 f'{ANSWER} tokens', 'floor'), rows(name, shapes)))
