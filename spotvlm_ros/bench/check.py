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
Whether an edge model answers a profile's questions in time on this machine (`spotvlm check`).

Each question is asked about frames that change, with context where there can be any, as node edge
would ask it, and its time is compared with its deadline. Told are also the model's family, what
its views cost in tokens, whether the fast engine is used and why not, and what the weights take in
each format. With ``--accuracy`` the facts that a format loses on the miniature are counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
import json
from pathlib import Path
import sys
import time

import numpy as np

from ..config.nodes import EdgeConfig
from ..config.profiles import load_profile
from ..edge.accuracy import keep_points, WORST
from ..edge.model import EdgeModel
from ..edge.native.library import why_not
from ..edge.precision import DYNAMIC, Format, Formats, free_bytes, gib, memory_plan, n_patches
from ..method.facts import Context, Fact, Query
from ..method.prompt import messages
from ..mini.driving.scene import SCENE
from ..mini.shipped import checkpoint_path
from ..mini.training.dataset import Sample, sample
from ..mini.worlds import make_world, TUNE_SEEDS
from ..system.machine import machine

FORMATS: Mapping[str, Callable[[EdgeConfig], EdgeConfig]] = {
    'bfloat16': lambda config: replace(config, dtype='bfloat16'),
    'int8': lambda config: replace(config, quantization='int8'),
    'int4': lambda config: replace(config, quantization='int4'),
    'int8_dynamic': lambda config: replace(config, quantization='int8_dynamic',
                                           vision_quantization='int8_dynamic')}


@dataclass(frozen=True)
class QueryTime:
    """How long answers to one question take [s]."""

    id: str  # noqa: A003
    deadline_s: float
    rate_hz: float
    p50_s: float
    p95_s: float
    passes: float       # of the decoder, mean
    in_time: bool


@dataclass(frozen=True)
class Loss:
    """Facts right in one format and not in another, less those the other way round."""

    format: str  # noqa: A003
    facts: int
    points: float       # percentage points lost, below 0: gained
    low: float          # its 95 % interval
    high: float
    fine: bool          # no more than WORST lost


@dataclass(frozen=True)
class Report:
    """What `spotvlm check` found."""

    model: str
    family: str
    engine: str
    why: str                            # what is not as fast as it could be, and why
    device: str
    formats: str
    views: tuple[int, int]              # width and height [pixels]
    tokens_per_view: int
    inputs_ms: float
    load_s: float
    memory: Mapping[str, str]           # by format: the arithmetic
    free: str                           # memory of the device, before the model was there
    queries: tuple[QueryTime, ...]
    busy: float                         # share of the time that the questions want, at p50
    losses: tuple[Loss, ...]
    machine: str

    @property
    def fine(self) -> bool:
        """Whether all is answered in time, each and together."""
        return self.busy <= 1.0 and all(q.in_time for q in self.queries)


def noise(rng: np.random.Generator) -> np.ndarray:
    """Return a frame that was never seen."""
    coarse = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((32, 32, 1), np.uint8))


def asked_of(query: Query) -> Context:
    """Return a context of a question, with an answer to each key."""
    facts = tuple(Fact(key, values[0], 0) for key, values in query.choices.items())
    return Context(query.id, 0, facts, text='a car ahead' * (not facts))


def time_query(model: EdgeModel, query: Query, seconds: float) -> QueryTime:
    """Ask one question about frames that change, for so long and three times at least."""
    rng, context = np.random.default_rng(0), asked_of(query)
    times, passes, begin = list[float](), list[int](), time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        frame, start = noise(rng), time.perf_counter()
        passes.append(model.answer(frame, query, context, 10**9).passes)
        times.append(time.perf_counter() - start)
    p50, p95 = (float(np.percentile(times, q)) for q in (50, 95))
    return QueryTime(query.id, query.deadline_s, query.rate_hz, round(p50, 4), round(p95, 4),
                     round(float(np.mean(passes)), 2), p95 <= query.deadline_s)


def why_slow(model: EdgeModel, config: EdgeConfig) -> str:
    """Return what keeps a model from the fast engine, or a part of it; '' where nothing does."""
    kind = model.checkpoint.config.model_type
    if config.engine != 'fast':
        return "engine is 'generate'; set it to 'fast'"
    if model.engine is None:
        return (f'spotvlm has no engine for {kind} models: transformers generates each answer '
                'from its first token')
    if config.device != 'cpu' and not model.engine.family.fixed_shapes:
        return f'{kind} models have no CUDA graphs here: their passes differ in more than tokens'
    if not model.inputs.fast:
        return 'inputs are made by the processor: it does more than scale and shift pixels'
    if config.device == 'cpu' and config.decoder_backend == 'auto' and (why := why_not()):
        return f'passes of few tokens are not compiled for this processor: {why}'
    return ''


def tokens_and_inputs_ms(model: EdgeModel, query: Query) -> tuple[int, float]:
    """Return the tokens that a view costs, and how long the inputs of a frame take."""
    width, height = model.view_size
    views = [np.zeros((height, width, 3), np.uint8)] * 2
    lengths = [len(model.inputs(messages(query, None, 0, n), views[:n])['input_ids'][0])
               for n in (1, 2)]
    chat, times = messages(query, None, 0, 2), list[float]()
    for _ in range(5):
        begin = time.perf_counter()
        model.inputs(chat, views)
        times.append(time.perf_counter() - begin)
    return lengths[1] - lengths[0], round(1e3 * float(np.median(times)), 2)


def memory_by_format(model: EdgeModel, config: EdgeConfig) -> dict[str, str]:
    """Return what a model takes of the memory by format, with the arithmetic."""
    import torch
    on_gpu, patches = config.device != 'cpu', n_patches(model.checkpoint, model.view_size)
    plans = {}
    for dtype in (torch.float32, torch.bfloat16):
        for bits in (0, 8, 4):
            formats = Formats(Format(dtype, bits), Format(dtype))
            plans[str(formats.decoder)] = str(memory_plan(model.checkpoint, formats, on_gpu,
                                                          patches))
    return plans


def losses(config: EdgeConfig, frames: int) -> tuple[Loss, ...]:
    """
    Return what each format loses on frames of the miniature world, with context and without.

    With ``view_size`` set, what smaller views lose.
    """
    rng = np.random.default_rng(7)
    samples = [sample(make_world('driving', TUNE_SEEDS[k]), int(rng.integers(300, 2300)), rng,
                      SCENE) for k in range(frames)]
    plain = right(replace(config, view_size=0), samples)
    ways = {f'view_size {config.view_size}': config} if config.view_size else {
        name: changed(config) for name, changed in FORMATS.items()
        if name != DYNAMIC or config.device == 'cpu'}
    found = []
    for name, changed in ways.items():
        lost = 100.0 * (plain - right(changed, samples)).mean(1)
        half = 1.96 * float(lost.std(ddof=1)) / len(lost) ** 0.5
        mean = float(lost.mean())
        found.append(Loss(name, plain.size, round(mean, 2), round(mean - half, 2),
                          round(mean + half, 2), mean <= WORST))
    return tuple(found)


def kept_losses(config: EdgeConfig, frames: int) -> tuple[Loss, ...]:
    """Return the same of a checkpoint; its folder keeps what formats lose."""
    if config.view_size:
        return losses(config, frames)
    found = losses(replace(config, quantization='none', vision_quantization='none'), frames)
    if not keep_points(checkpoint_path(config.model), {loss.format: loss.points for loss in found},
                       found[0].facts):
        print(f'{config.model}: its folder cannot be written to; what formats lose is not kept',
              file=sys.stderr)
    return found


def right(config: EdgeConfig, samples: Sequence[Sample]) -> np.ndarray:
    """Return which facts a model has right, samples x facts; it answers each sample twice."""
    model, rows = EdgeModel.load(config, any_format=True), []
    for given in samples:
        truth = given.answer.splitlines()
        row: list[bool] = []
        for context in (given.context, None):
            said = model.answer(given.frame, SCENE, context, given.stamp_ns).text.splitlines()
            row += [line in said for line in truth]
        rows.append(row)
    return np.array(rows, dtype=float)


def check(config: EdgeConfig, queries: Sequence[Query], seconds: float,
          frames: int = 0) -> Report:
    """Load a model and measure it; errors of `EdgeModel.load` pass."""
    free, begin = gib(free_bytes(config.device)), time.perf_counter()
    model = EdgeModel.load(config)
    load_s = time.perf_counter() - begin
    model.warm_up(queries)
    tokens, inputs_ms = tokens_and_inputs_ms(model, queries[0])
    times = tuple(time_query(model, query, seconds) for query in queries)
    return Report(
        model.name, model.checkpoint.config.model_type,
        config.engine if model.engine is not None else 'generate', why_slow(model, config),
        config.device, model.formats, model.view_size, tokens,
        inputs_ms, round(load_s, 2), memory_by_format(model, config), free, times,
        round(sum(q.p50_s * q.rate_hz for q in times), 3),
        kept_losses(config, frames) if frames else (), machine(config.threads))


def print_report(report: Report) -> None:
    """Print a report for people."""
    width, height = report.views
    print(f'{report.model}: {report.family}, engine {report.engine}, on {report.device} '
          f'({report.machine}), {report.formats}')
    if report.why:
        print(f'  not as fast as it could be: {report.why}')
    print(f'  views of {width}x{height} pixels, {report.tokens_per_view} tokens each; inputs '
          f'{report.inputs_ms} ms; loaded in {report.load_s} s')
    for name, plan in report.memory.items():
        print(f'  {name:28} {plan}')
    print(f'  {"memory free before":28} {report.free}')
    for q in report.queries:
        print(f'  {q.id}: p50 {q.p50_s:.3f} s, p95 {q.p95_s:.3f} s of {q.deadline_s:g} s, '
              f'{q.passes:g} passes: {"in time" if q.in_time else "LATE"}')
    print(f'  all questions at their rates: {report.busy:.0%} of the time' + (
        '' if report.busy <= 1.0 else '; lower rate_hz, or use more threads, a faster device, '
        'a smaller view_size or quantization'))
    for loss in report.losses:
        print(f'  {loss.format}: {loss.points:+.2f} points of {loss.facts} facts lost, 95 % '
              f'{loss.low:+.2f} to {loss.high:+.2f}' + (
                  '' if loss.fine else ': too many' + (
                      '' if loss.format.startswith('view') else ', and refused from now on')))


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='spotvlm check', description=__doc__,
        epilog='example: spotvlm check spot-mini-edge driving -p edge.quantization:=int8')
    parser.add_argument('model', help='name of a shipped checkpoint, or folder of another')
    parser.add_argument('profile', nargs='?', default='driving', help='driving, hri, or a path')
    parser.add_argument('--params-file', action='append', type=Path, default=[], metavar='FILE',
                        help='laid over the profile; may be repeated')
    parser.add_argument('-p', '--param', action='append', default=[], metavar='NODE.NAME:=VALUE',
                        help='one parameter, as edge.quantization:=int8')
    parser.add_argument('--seconds', type=float, default=3.0, metavar='S',
                        help='for each question (default 3)')
    parser.add_argument('--accuracy', type=int, default=0, metavar='FRAMES', nargs='?', const=400,
                        help='count the facts that each format loses on the miniature world, or '
                        'smaller views where edge.view_size is set')
    parser.add_argument('--json', action='store_true', help='print the report as JSON')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check a model; return 1 where it cannot be used or is late."""
    args = command_parser().parse_args(argv)
    try:
        profile = load_profile(args.profile, args.params_file).with_values(args.param)
        config = replace(profile.edge, model=args.model)
        if config.remote_url:
            raise ValueError('edge.remote_url is set; check measures a model of this machine: '
                             'leave it empty')
        report = check(config, profile.queries(), args.seconds, args.accuracy)
    except (OSError, ValueError) as error:
        print(json.dumps({'error': str(error)}) if args.json else f'error: {error}',
              file=sys.stdout if args.json else sys.stderr)
        return 1
    if args.json:
        print(json.dumps({**asdict(report), 'fine': report.fine}, indent=2))
    else:
        print_report(report)
    return 0 if report.fine else 1
