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
Measures the edge engine on a GPU with random weights of the shapes of known models, in bf16.

What is said is of no meaning; what it costs is. Each case answers one frame with 16 tokens, after
a history of 128 tokens and a question of 64, by `generate`, by `generate` with a static cache, and
by the engine: freely with a history that changed, freely with one that stayed, with a draft that
is right (unchanged scene), and by choosing one of four words. Two passes are those of the guard,
with the history and without it, made as one. Pixels are always seen anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
import gc
import itertools
import time
import traceback

import numpy as np
import numpy.typing as npt
import torch
import transformers as hf

from .result import PerfResult
from ...edge.engine import Ask, Engine, Prompt
from ...edge.families import model_family
from ...edge.gpu.graphs import GraphBackend
from ...edge.gpu.layers import pad_gated_mlps
from ...edge.grammar import FreeText, Grammar, Slot, Template
from ...edge.precision import Parts
from ...edge.quantised import quantise, QuantisedLinear

HISTORY, QUESTION, ANSWER = 128, 64, 16
LABELS = {0: '', 16: '_bf16', 8: '_int8', 4: '_int4'}   # by bits of weights; 0: with `generate`
COMPILED = 'Qwen2.5-VL-3B'       # the shape for which `generate` is compiled too


def qwen(text: Mapping[str, int], tied: bool) -> hf.PretrainedConfig:
    """Return a configuration of Qwen2.5-VL."""
    return hf.Qwen2_5_VLConfig(
        image_token_id=151655, video_token_id=151656, vision_start_token_id=151652,
        vision_end_token_id=151653, tie_word_embeddings=tied,
        vision_config={'depth': 32, 'hidden_size': 1280, 'intermediate_size': 3420,
                       'num_heads': 16, 'patch_size': 14, 'window_size': 112,
                       'fullatt_block_indexes': [7, 15, 23, 31], 'spatial_merge_size': 2,
                       'temporal_patch_size': 2, 'out_hidden_size': text['hidden_size']},
        text_config={'tie_word_embeddings': tied, 'max_position_embeddings': 32768,
                     'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6,
                                         'mrope_section': [16, 24, 24]}, **text})


def smol(image: int, patch: int, shuffle: int, vision: tuple[int, int, int, int],
         text: tuple[int, int, int, int, int]) -> hf.PretrainedConfig:
    """Return a configuration of SmolVLM."""
    width, layers, heads, feed = vision
    hidden, text_layers, text_heads, pairs, text_feed = text
    return hf.SmolVLMConfig(
        image_token_id=49190, scale_factor=shuffle, pad_token_id=2, tie_word_embeddings=False,
        vision_config={'hidden_size': width, 'intermediate_size': feed, 'image_size': image,
                       'num_hidden_layers': layers, 'num_attention_heads': heads,
                       'patch_size': patch},
        text_config={'model_type': 'llama', 'vocab_size': 49280, 'hidden_size': hidden,
                     'intermediate_size': text_feed, 'num_hidden_layers': text_layers,
                     'num_attention_heads': text_heads, 'num_key_value_heads': pairs,
                     'head_dim': 64, 'max_position_embeddings': 8192, 'pad_token_id': 2,
                     'tie_word_embeddings': False})


SHAPES: Mapping[str, Callable[[], hf.PretrainedConfig]] = {
    COMPILED: lambda: qwen(
        {'hidden_size': 2048, 'num_hidden_layers': 36, 'num_attention_heads': 16,
         'num_key_value_heads': 2, 'intermediate_size': 11008, 'vocab_size': 151936}, True),
    'SmolVLM-256M': lambda: smol(512, 16, 4, (768, 12, 12, 3072), (576, 30, 9, 3, 1536)),
    'SmolVLM2-2.2B': lambda: smol(384, 14, 3, (1152, 27, 16, 4304), (2048, 24, 32, 32, 8192)),
    'Qwen2.5-VL-7B': lambda: qwen(
        {'hidden_size': 3584, 'num_hidden_layers': 28, 'num_attention_heads': 28,
         'num_key_value_heads': 4, 'intermediate_size': 18944, 'vocab_size': 152064}, False),
}


def tiny_shapes() -> dict[str, Callable[[], hf.PretrainedConfig]]:
    """Return shapes so small that this file can be tried on a CPU."""
    def small_qwen() -> hf.PretrainedConfig:
        config = qwen({'hidden_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4,
                       'num_key_value_heads': 2, 'intermediate_size': 64,
                       'vocab_size': 151936, 'head_dim': 16}, True)
        config.vision_config.depth, config.vision_config.hidden_size = 2, 64
        config.vision_config.num_heads, config.vision_config.intermediate_size = 4, 64
        config.text_config.rope_parameters['mrope_section'] = [2, 3, 3]
        return config
    return {'tiny-qwen': small_qwen,
            'tiny-smol': lambda: smol(64, 16, 2, (32, 2, 4, 64), (64, 2, 4, 2, 64))}


def inputs_of(config: hf.PretrainedConfig, device: str, dtype: torch.dtype
              ) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Return what the vision tower sees, and the tokens that stand for it."""
    image = int(config.image_token_id)
    if config.model_type == 'qwen2_5_vl':
        side = config.vision_config.patch_size ** 2 * 3 * 2
        grid = torch.tensor([[1, 34, 46]])
        pixels = torch.randn(34 * 46, side, device=device, dtype=dtype)
        return {'pixel_values': pixels, 'image_grid_thw': grid}, [image] * (17 * 23)
    size = config.vision_config.image_size
    each = (size // config.vision_config.patch_size // config.scale_factor) ** 2
    pixels = torch.randn(1, 2, 3, size, size, device=device, dtype=dtype)
    return {'pixel_values': pixels}, [image] * (2 * each)


@dataclass(frozen=True)
class Chip:
    """What a chip was measured to do per second."""

    flops: float      # products of large matrices, bf16
    moved: float      # bytes read and written by a copy

    @staticmethod
    def measured(device: str) -> Chip:
        """Measure."""
        side = 8192 if device == 'cuda' else 128
        a, b, c = torch.randn(3, side, side, device=device).bfloat16()
        whole = torch.empty(2, 2 * side, 4 * side, device=device)
        product, copy = (float(np.median(timed(run, device, 0.3, 10))) / 1e3 for run in (
            lambda: torch.matmul(a, b, out=c), lambda: whole[0].copy_(whole[1])))
        return Chip(2 * side ** 3 / product, whole.numel() * whole.element_size() / copy)


class Case:
    """One model and its prompt."""

    def __init__(self, name: str, config: hf.PretrainedConfig, device: str, chip: Chip,
                 bits: int = 0) -> None:
        """Make the model; with ``bits`` for weights of the decoder, those of vision have 8."""
        self.name, self.device, self.chip, self.bits = name, device, chip, bits
        dtype = torch.bfloat16 if device == 'cuda' else torch.float32
        torch.manual_seed(0)
        with torch.device(device):
            self.model = self.make_model(config, dtype).eval().requires_grad_(False)
        self.label = name + LABELS[bits]
        if bits in (8, 4):
            parts = Parts(self.model)
            pad_gated_mlps([m for part in parts.vision for m in part.modules()])
            quantise([parts.decoder], bits, torch.device(device))
            quantise(parts.vision, 8, torch.device(device))
        if device == 'cuda':  # what it took to make it does not count
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.vision, self.image = inputs_of(config, device, dtype)
        self.rng = np.random.default_rng(0)
        self.question = self._words(QUESTION)
        self.frames = 0

    def make_model(self, config: hf.PretrainedConfig, dtype: torch.dtype) -> hf.PreTrainedModel:
        """Return a model with random weights."""
        return hf.AutoModelForImageTextToText.from_config(config, dtype=dtype)

    @cached_property
    def engine(self) -> Engine:
        """Return the engine, made when `generate` has run on the model as it is."""
        family = model_family(self.model)
        assert family is not None
        return Engine(GraphBackend(family, tokens=640))

    def _words(self, n: int) -> list[int]:
        return [int(i) for i in self.rng.integers(1000, 40000, n)]

    def ids(self, history: list[int]) -> list[int]:
        """Return a prompt's tokens."""
        return [*history, *self.image, *self.question]

    def prompt(self, history: list[int]) -> Prompt:
        """Return a prompt whose pixels were never seen."""
        self.frames += 1
        return Prompt(tuple(self.ids(history)), self.vision, (self.frames,))

    def generate(self, history: list[int], static: bool, compiled: bool = False) -> list[int]:
        """Answer by `generate`; with a static cache transformers can compile the decoder."""
        ids = torch.tensor([self.ids(history)], device=self.device)
        inputs = {k: v.to(self.device) for k, v in self.vision.items()}
        if 'image_grid_thw' in inputs:
            inputs['mm_token_type_ids'] = (ids == self.image[0]).int()
        options: dict[str, object] = {'cache_implementation': 'static'} if static else {}
        if compiled and self.device == 'cpu':   # where transformers does not compile by itself
            how = options['compile_config'] = hf.CompileConfig(dynamic=False, mode='default')
            how._compile_all_devices = True
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
            min_new_tokens=ANSWER, max_new_tokens=ANSWER, pad_token_id=0,
            disable_compile=not compiled, **inputs, **options)
        return [int(i) for i in out[0, ids.shape[1]:]]

    def free(self, query: str, history: list[int], draft: list[int]) -> list[int]:
        """Answer by the engine, any token allowed."""
        return self.engine.answer(query, self.prompt(history), FreeText((), draft), ANSWER).tokens

    def choose(self, query: str, history: list[int]) -> list[int]:
        """Choose one of four words by the engine."""
        return self.engine.answer(query, self.prompt(history), one_of_four(), ANSWER).tokens

    def both(self, history: list[int], grammar: Callable[[], Grammar]) -> list[list[int]]:
        """Answer about one frame with a history and without it, in one pass."""
        told = self.prompt(history)
        alone = Prompt(tuple(self.ids([])), self.vision, told.image_keys)
        return [found.tokens for found in self.engine.answer_all(
            [Ask('told', told, grammar(), ANSWER), Ask('alone', alone, grammar(), ANSWER)])]

    def floor_ms(self) -> float:
        """Return the least time for prefill and 16 tokens at the speed of the chip."""
        family = self.engine.family
        layers, read = size_of(family.decoder.layers)
        head, tower = family.lm_head.weight.numel(), family.vision_tower
        seen, _ = size_of(tower)
        patches = (self.vision['pixel_values'].shape[0] if 'image_grid_thw' in self.vision else
                   2 * (self.vision['pixel_values'].shape[-1] // tower.patch_size) ** 2)
        flops = 2 * (seen * patches + layers * len(self.ids([0] * HISTORY)))
        return 1e3 * (flops / self.chip.flops + 15 * (read + 2 * head) / self.chip.moved)


def one_of_four() -> Template:
    """Return the grammar of a choice of four words."""
    return Template([Slot('x', {str(i): (2000 + i,) for i in range(4)})], 1, {})


def size_of(part: torch.nn.Module) -> tuple[int, int]:
    """Return how many weights a part has, and how many bytes they take."""
    count = sum(p.numel() for p in part.parameters())
    size = sum(p.numel() * p.element_size() for p in part.parameters())
    for module in part.modules():
        if isinstance(module, QuantisedLinear):
            count += module.in_features * module.out_features
            size += sum(t.numel() * t.element_size() for t in module.stored[:2] if t is not None)
    return count, size


def timed(run: Callable[[], object], device: str, seconds: float, least: int = 3,
          most: int = 40) -> npt.NDArray[np.float64]:
    """Return durations of runs [ms], after two that do not count."""
    times = []
    for i in range(most + 2):
        begin = time.perf_counter()
        run()
        if device == 'cuda':
            torch.cuda.synchronize()
        if i >= 2:
            times.append(1e3 * (time.perf_counter() - begin))
        if len(times) >= least and sum(times) > 1e3 * seconds:
            break
    return np.array(times)


@torch.inference_mode()
def case_rows(case: Case, on: str, seconds: float = 2.5, base: float = 0.0) -> list[PerfResult]:
    """
    Return the measurements of one model; a way that fails says so and the others go on.

    ``base``: what `generate` takes [ms] where that is known, and only the engine is measured.
    """
    stays = case._words(HISTORY)
    right: list[int] = []
    by_generate: dict[str, Callable[[], object]] = {
        'generate': lambda: case.generate(case._words(HISTORY), False),
        'generate_static': lambda: case.generate(case._words(HISTORY), True)}
    ways: dict[str, Callable[[], object]] = ({} if base else by_generate) | {
        'engine_16_changed': lambda: case.free('changed', case._words(HISTORY), []),
        'engine_16_same_history': lambda: case.free('same', stays, []),
        'engine_16_unchanged': lambda: case.free('drafted', stays, right),
        'engine_choice': lambda: case.choose('choice', stays),
        'engine_two_16_changed': lambda: case.both(case._words(HISTORY), lambda: FreeText(())),
        'engine_two_choice_changed': lambda: case.both(case._words(HISTORY), one_of_four),
        'engine_choice_changed': lambda: case.choose('chosen', case._words(HISTORY)),
        'vision': lambda: case.engine.backend.encode_images(case.prompt([])),
    }
    if case.name == COMPILED and case.device == 'cuda' and not base:  # it takes a minute
        ways['generate_static_compiled'] = lambda: case.generate(stays, True, True)
    rows: list[PerfResult] = []
    for name, run in ways.items():
        try:
            if name == 'engine_16_unchanged':
                right[:] = case.free('drafted', stays, [])
            # All ratios are against `generate`, whose time is that of the CPU and varies most.
            times = timed(run, case.device, seconds, 10 if name == 'generate' else 3)
            p50, p95 = (float(np.percentile(times, q)) for q in (50, 95))
            base = base or p50
            rows.append(PerfResult(f'edge_gpu_{case.label}_{name}_ms', p50, 'ms', 'generate',
                                   base / p50, on))
            rows.append(PerfResult(f'edge_gpu_{case.label}_{name}_jitter', p95 / p50, 'p95/p50',
                                   '', None, on))
            print(f'{case.label:20} {name:24} p50 {p50:8.2f} ms  p95/p50 {p95 / p50:5.2f}  '
                  f'{base / p50:6.2f} times generate  ({len(times)} runs)', flush=True)
        except Exception as error:
            traceback.print_exc()
            print(f'{case.label:20} {name:24} failed: {type(error).__name__}: {error}', flush=True)
    return rows + (memory_rows(case, on) if case.bits else comparison_rows(case, on))


def memory_rows(case: Case, on: str) -> list[PerfResult]:
    """Return what a model took of a GPU, and what the chip could do at best."""
    rows = [PerfResult(f'edge_gpu_{case.label}_floor_ms', case.floor_ms(), 'ms',
                       'weights and products alone', None, on)]
    if case.device == 'cuda':
        most = torch.cuda.max_memory_allocated() / 2**30
        rows.append(PerfResult(f'edge_gpu_{case.label}_memory_gib', most, 'GiB', '', None, on))
        print(f'{case.label:20} memory {most:.2f} GiB, floor {case.floor_ms():.1f} ms', flush=True)
    return rows


@torch.inference_mode()
def comparison_rows(case: Case, on: str) -> list[PerfResult]:
    """Return how alike the engine and `generate` answer, and what the chip could do at best."""
    rows: list[PerfResult] = []
    try:
        fresh = case._words(HISTORY)
        same = sum(a == b for a, b in zip(case.generate(fresh, False),
                                          case.free('compare', fresh, [])))
        rows.append(PerfResult(f'edge_gpu_{case.label}_tokens_as_generate', same, f'of {ANSWER}',
                               'generate', None, on))
        print(f'{case.label:20} {same} of {ANSWER} tokens as generate (bf16 rounds differently)',
              flush=True)
        rows += memory_rows(case, on)
    except Exception as error:
        traceback.print_exc()
        print(f'{case.label:20} comparison failed: {type(error).__name__}: {error}', flush=True)
    return rows


def gpu_rows(names: str = '', limit_s: float = 460.0, formats: bool = False) -> list[PerfResult]:
    """
    Return all measurements, or those of the shapes named; begin none after ``limit_s``.

    With ``formats`` the engine's again, alone in the memory, with weights of 16, 8 and 4 bits.
    """
    begin, rows = time.perf_counter(), list[PerfResult]()
    gpu = torch.cuda.is_available()
    device = 'cuda' if gpu else 'cpu'
    on = (f'{torch.cuda.get_device_name() if gpu else "CPU"}, torch {torch.__version__}, '
          f'transformers {hf.__version__}')
    shapes, chip = SHAPES if gpu else tiny_shapes(), Chip.measured(device)
    for name, value, unit in (('flops', chip.flops / 1e12, 'TFLOP/s'),
                              ('memory', chip.moved / 1e12, 'TB/s')):
        rows.append(PerfResult(f'edge_gpu_{name}', value, unit, '', None, on))
    for name, bits in itertools.product(names.split(',') if names else shapes,
                                        (0, 16, 8, 4) if formats else (0,)):
        if time.perf_counter() - begin > limit_s:
            print(f'{name}: left out, {limit_s:g} s are over', flush=True)
            continue
        base = next((r.value for r in rows if bits and r.name == f'edge_gpu_{name}_generate_ms'),
                    0.0)
        try:
            with torch.inference_mode():
                case = Case(name, shapes[name](), device, chip, bits)
                rows += case_rows(case, on, 2.5 if gpu else 0.01, base)
                del case
        except Exception as error:
            traceback.print_exc()
            print(f'{name}: failed: {type(error).__name__}: {error}', flush=True)
        gc.collect()   # engines hold themselves in circles
        print(f'{name}: {time.perf_counter() - begin:.0f} s so far', flush=True)
    return rows
