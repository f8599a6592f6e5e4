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
Measures the edge engine against `model.generate` in one run.

On a CPU with the shipped model, over frames of the miniature world. With ``--gpu`` with random
weights of the shapes of known models (`edge_gpu`). Run alone: `spotvlm perf edge [--gpu]`.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
import itertools
from pathlib import Path
import time
from typing import TYPE_CHECKING

import numpy as np
from torch import nn
from torch.ao.quantization import quantize_dynamic
from transformers import PreTrainedModel

from .result import PerfResult, print_results, write_results
from ...config.nodes import EdgeConfig
from ...edge.answer import EdgeVLM
from ...edge.model import EdgeModel, ModelInputs
from ...frames.pixels import encode_png, Image
from ...method.facts import Context, Fact
from ...method.guard import FixedOdds, ODDS, OFF
from ...mini.driving.scene import SCENE
from ...mini.shipped import checkpoint_path
from ...mini.training.dataset import Sample, sample
from ...mini.worlds import make_world, TUNE_SEEDS
from ...system.machine import machine
from ...system.progress import working

if TYPE_CHECKING:
    from openai import OpenAI


ROOFLINES = ('orin-nano', 'orin', 'thor', 'nuc')


class TwoPasses(FixedOdds):
    """The guard's rule, of frames that all leave a doubt."""

    def leaves_no_doubt(self, facts: Sequence[Fact], context: Context | None) -> bool:
        """Return False."""
        return False


class CpuComparison:
    """Whole answers, frame in to facts out, timed one after the other in the same run."""

    def __init__(self, threads: int, drives: int) -> None:
        """Load the models and render frames of as many drives."""
        self.path = checkpoint_path('spot-mini-edge')
        config = EdgeConfig(model=str(self.path), threads=threads, guard_odds=OFF)
        self.threads = threads
        self.engine = EdgeModel.load(config)
        self.generate, self.usual = (EdgeModel.load(replace(config, engine='generate'))
                                     for _ in range(2))
        self.converted = {
            name: EdgeModel(change(EdgeModel.load(config)._model),
                            self.usual._input_processor.processor, replace(config, model=name))
            for name, change in (('int8', as_int8), ('bf16', as_bf16))}
        self.guarded, self.apart = (EdgeModel.load(replace(config, guard_odds=ODDS))
                                    for _ in range(2))
        self.apart._joins = False
        self.rng = np.random.default_rng(5)
        self.samples = [sample(make_world('driving', TUNE_SEEDS[k]),
                               int(self.rng.integers(300, 2300)), self.rng, SCENE)
                        for k in range(drives)]
        for model in (self.engine, self.generate, self.usual, self.guarded, self.apart,
                      *self.converted.values()):
            model.warm_up([SCENE])
        self.usual.use_processor()
        self.times_ms: dict[str, list[float]] = {}
        self.answers = self.differ = 0  # answers compared, and those that differ

    def measure(self, name: str, answer: Callable[[], str]) -> str:
        """Return an answer, and keep what it took."""
        begin = time.perf_counter()
        text = answer()
        self.times_ms.setdefault(name, []).append(1e3 * (time.perf_counter() - begin))
        return text

    def ask(self, name: str, model: EdgeVLM, frame: Image, given: Sample,
            context: Context | None) -> str:
        """Time a model's answer."""
        return self.measure(name, lambda: model.answer(frame, SCENE, context, given.stamp_ns).text)

    def guard(self, kind: str, given: Sample, frame: Image) -> None:
        """Answer by the guard's two passes, made as one and one after the other."""
        def ask(model: EdgeVLM) -> str:
            return model.answer(frame, SCENE, given.context, given.stamp_ns,
                                judge=TwoPasses(SCENE)).text
        self.compare(self.measure(f'two_passes_{kind}', lambda: ask(self.guarded)),
                     self.measure(f'two_apart_{kind}', lambda: ask(self.apart)))

    def compare(self, wanted: str, *answers: str) -> None:
        """Count answers that are not as wanted."""
        self.answers += len(answers)
        self.differ += sum(answer != wanted for answer in answers)

    def against_generate(self, given: Sample) -> None:
        """Answer about noisy copies of one frame by every model in this process."""
        context, frame = given.context, noisy(given.frame, self.rng)
        self.compare(self.ask('generate', self.generate, frame, given, context),
                     self.ask('changed', self.engine, frame, given, context))
        self.guard('changed', given, frame)
        frame = noisy(given.frame, self.rng)
        self.compare(self.ask('generate', self.generate, frame, given, context),
                     self.ask('unchanged', self.engine, frame, given, context),
                     self.ask('still', self.engine, frame, given, context))
        self.guard('unchanged', given, frame)
        self.ask('usual', self.usual, frame, given, context)
        for name, model in self.converted.items():
            self.ask(f'{name}_changed', model, frame, given, context)
        self.compare(self.ask('generate_alone', self.generate, frame, given, None),
                     self.ask('alone', self.engine, frame, given, None))

    def against_server(self, repeats: int) -> None:
        """Answer about unchanged scenes by the engine and by `transformers serve`."""
        from openai import OpenAI  # not on a GPU machine, where this is not measured
        from ..faults.servers import Options, Server
        with Server('transformers', Options(self.path, self.threads)) as server, \
                OpenAI(base_url=server.url, api_key=server.key, timeout=60.0,
                       max_retries=0) as client:
            def serve(frame: Image, given: Sample) -> str:
                return served(client, str(self.path), self.engine.model_inputs(
                    frame, SCENE, given.context, given.stamp_ns), SCENE.max_new_tokens)
            for given in self.samples:
                for repeat in range(repeats):
                    frame = noisy(given.frame, self.rng)
                    self.compare(
                        self.ask('beside_serve', self.engine, frame, given, given.context),
                        self.measure('serve', lambda: serve(frame, given)))
                    if not repeat and repeats > 1:  # the frame before was of another drive
                        del self.times_ms['beside_serve'][-1], self.times_ms['serve'][-1]

    def results(self) -> list[PerfResult]:
        """Return the rows."""
        on, times = machine(self.threads), self.times_ms
        same = 'model.generate, same inputs'
        rows = [speedup(f'edge_cpu_speedup_{name}', times[name.removesuffix('_over_usual')],
                        times[base], what, on)
                for name, base, what in (
                    ('unchanged', 'generate', same),
                    ('unchanged_over_usual', 'usual', 'processor and model.generate'),
                    ('changed', 'generate', same),
                    ('still', 'generate', f'{same}; no pixel changed'),
                    ('alone', 'generate_alone', f'{same}, without context'))]
        rows += [speedup(f'edge_cpu_{name}_over_fp32', times[f'{name}_changed'], times['changed'],
                         'the engine as it is, another scene each time', on)
                 for name in self.converted]
        for name, kind in itertools.product(('two_passes', 'two_apart'), ('changed', 'unchanged')):
            cost = float(np.median(times[f'{name}_{kind}']) / np.median(times[kind]))
            rows.append(PerfResult(f'edge_cpu_{name}_over_one_{kind}', cost, 'times',
                                   'one pass with the same context', cost, on))
        rows.append(speedup('edge_cpu_speedup_over_serve', times['beside_serve'], times['serve'],
                            'transformers serve on loopback, same prompt, unchanged scene', on))
        rows += [PerfResult(f'edge_cpu_{name}_ms', float(np.median(values)), 'ms', '', None, on)
                 for name, values in times.items()]
        return [*rows, PerfResult('edge_cpu_answers_that_differ', self.differ,
                                  f'of {self.answers}', 'model.generate', None, on)]


def cpu_rows(threads: int = 1, drives: int = 12, repeats: int = 5) -> list[PerfResult]:
    """
    Compare the engine with `generate`, and with a server of transformers.

    Pixels always differ by sensor noise from any frame before, unless said otherwise. Changed:
    the frame before was of another drive with another context. Unchanged: it was of the same
    scene with the same context.
    """
    comparison = CpuComparison(threads, drives)
    for _ in range(repeats):
        for given in comparison.samples:
            comparison.against_generate(given)
    comparison.against_server(repeats)
    return comparison.results()


def as_int8(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model with its layers' weights in 8 bits, quantised dynamically."""
    quantize_dynamic(model.model, {nn.Linear}, inplace=True)
    return model


def as_bf16(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model with weights in 16 bits."""
    return model.bfloat16()


def served(client: OpenAI, model: str, inputs: ModelInputs, limit: int) -> str:
    """Return a server's reply to what the edge model is given, images sent as PNG."""
    images = iter(inputs.images)
    messages = [{**message, 'content': [
        part if part['type'] == 'text' else _image_part(next(images))
        for part in message['content']]} for message in inputs.chat]
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=limit,
                                           temperature=0.0)
    return str(reply.choices[0].message.content).strip()


def _image_part(image: Image) -> dict[str, object]:
    url = 'data:image/png;base64,' + base64.b64encode(encode_png(image)).decode()
    return {'type': 'image_url', 'image_url': {'url': url}}


def speedup(name: str, ours: Sequence[float], base: Sequence[float], baseline: str,
            on: str) -> PerfResult:
    """Return how many times faster the median of ours is."""
    ratio = float(np.median(base) / np.median(ours))
    return PerfResult(name, ratio, 'times', baseline, ratio, on)


def noisy(frame: Image, rng: np.random.Generator) -> Image:
    """Return the frame with the noise of another exposure, +-2 grey levels."""
    noise = rng.integers(-2, 3, frame.shape, dtype=np.int8)
    return np.clip(frame.astype(np.int16) + noise, 0, 255).astype(np.uint8)


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm perf edge', description=__doc__,
                                     epilog='example: spotvlm perf edge --threads 2')
    parser.add_argument('--gpu', action='store_true', help='random weights of known shapes')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads of the model')
    parser.add_argument('--cases', default='', help='GPU: names of the shapes, by comma')
    parser.add_argument('--formats', action='store_true',
                        help='GPU: with weights of 16, 8 and 4 bits, too')
    parser.add_argument('--limit', type=float, default=460.0,
                        help='GPU, shapes: begin no case and no turn after [s]')
    parser.add_argument('--out', type=Path, help='file to write the rows to')
    parser.add_argument('--shape', default='', help='on a CPU: random weights, as SmolVLM-256M')
    parser.add_argument('--views', type=int, nargs='+', default=[512, 256],
                        help='of a shape: sides of its views [pixels]')
    parser.add_argument('--roofline', choices=ROOFLINES, default='',
                        help='what such a computer would take, computed')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    args = command_parser().parse_args(argv)
    if args.roofline:
        from .roofline import print_roofline
        print_roofline(args.roofline, [c for c in args.cases.split(',') if c])
        return 0
    with working('measuring the engine'):
        if args.shape:
            from .edge_shape import shape_rows
            rows = [row for view in args.views
                    for row in shape_rows(args.shape, view, args.threads,
                                          args.limit / len(args.views))]
        elif args.gpu:
            from .edge_gpu import gpu_rows
            rows = gpu_rows(args.cases, args.limit, args.formats)
        else:
            rows = cpu_rows(args.threads)
    print_results(rows)
    if args.out is not None:
        write_results(rows, args.out)
    return 0
