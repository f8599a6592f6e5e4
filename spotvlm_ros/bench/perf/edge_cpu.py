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
weights of the shapes of known models (`edge_gpu`). Run alone:
`python -m spotvlm_ros.bench.perf.edge_cpu [--gpu]`.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
import time
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .result import PerfResult, write_results
from ...system.machine import machine


def cpu_rows(threads: int = 1, drives: int = 12, repeats: int = 5) -> list[PerfResult]:
    """
    Time whole answers, frame in to facts out, one after the other in the same run.

    Each frame is answered by `generate` and by the engine; pixels always differ by sensor noise
    from any frame before, unless said otherwise. Changed: the frame before was of another drive
    with another context. Unchanged: it was of the same scene with the same context.
    """
    from openai import OpenAI

    from ...cloud.server import EmbeddedServer
    from ...config.nodes import EdgeConfig
    from ...edge.model import EdgeModel
    from ...method.guard import OFF
    from ...mini.training import dataset
    from ...mini import shipped
    from ...mini.driving.scene import SCENE
    from ...mini.worlds import make_world, TUNE_SEEDS

    path = shipped.checkpoint_path('spot-mini-edge')
    config = EdgeConfig(model=str(path), threads=threads, guard_odds=OFF)
    engine = EdgeModel.load(config)
    plain, usual = (EdgeModel.load(replace(config, engine='generate')) for _ in range(2))
    others = {name: EdgeModel(change(EdgeModel.load(replace(config, threads=1))._model),
                              usual._input_processor.processor, replace(config, model=name))
              for name, change in (('int8', as_int8), ('bf16', as_bf16))}
    rng = np.random.default_rng(5)
    items = [dataset.sample(make_world('driving', TUNE_SEEDS[k]),
                            int(rng.integers(300, 2300)), rng, SCENE) for k in range(drives)]
    engine.warm_up([SCENE])
    plain.warm_up([SCENE])
    usual.warm_up([SCENE])
    for other in others.values():
        other.warm_up([SCENE])
    usual.use_processor()
    times: dict[str, list[float]] = {}
    differ = answers = 0

    def timed(name: str, ask: Callable[[], str]) -> str:
        begin = time.perf_counter()
        text = ask()
        times.setdefault(name, []).append(1e3 * (time.perf_counter() - begin))
        return text

    def run(name: str, model: Any, frame: npt.NDArray[np.uint8], item: Any, context: Any) -> str:
        return timed(name, lambda: str(model.answer(frame, SCENE, context, item.stamp_ns).text))

    def serve(frame: npt.NDArray[np.uint8], item: Any) -> str:
        return timed('serve', lambda: served(client, server.model, engine.model_inputs(
            frame, SCENE, item.context, item.stamp_ns), SCENE.max_new_tokens))

    for _ in range(repeats):
        for item in items:
            frame = noisy(item.frame, rng)
            want = run('generate', plain, frame, item, item.context)
            differ += want != run('changed', engine, frame, item, item.context)
            frame = noisy(item.frame, rng)
            want = run('generate', plain, frame, item, item.context)
            differ += want != run('unchanged', engine, frame, item, item.context)
            differ += want != run('still', engine, frame, item, item.context)
            run('usual', usual, frame, item, item.context)
            for name, other in others.items():
                run(f'{name}_changed', other, frame, item, item.context)
            want = run('generate_alone', plain, frame, item, None)
            differ += want != run('alone', engine, frame, item, None)
            answers += 4
    with EmbeddedServer(str(path), threads=threads) as server, \
            OpenAI(base_url=server.url, api_key='none', timeout=60.0, max_retries=0) as client:
        for item in items:  # of each round the first is not counted: it is of another drive
            for repeat in range(repeats):
                frame = noisy(item.frame, rng)
                want = run('beside_serve', engine, frame, item, item.context)
                differ += want != serve(frame, item)
                answers += 1
                if not repeat and repeats > 1:
                    del times['beside_serve'][-1], times['serve'][-1]
    on = machine(threads)
    rows = [speedup(f'edge_cpu_speedup_{name}', times[name.removesuffix('_over_usual')],
                    times[base], what, on)
            for name, base, what in (
                ('unchanged', 'generate', 'model.generate, same inputs'),
                ('unchanged_over_usual', 'usual', 'processor and model.generate'),
                ('changed', 'generate', 'model.generate, same inputs'),
                ('still', 'generate', 'model.generate, same inputs; no pixel changed'),
                ('alone', 'generate_alone', 'model.generate, same inputs, without context'))]
    rows += [speedup(f'edge_cpu_{name}_over_fp32', times[f'{name}_changed'], times['changed'],
                     'the engine as it is, another scene each time', on) for name in others]
    rows.append(speedup('edge_cpu_speedup_over_serve', times['beside_serve'], times['serve'],
                        'transformers serve on loopback, same prompt, unchanged scene', on))
    rows += [PerfResult(f'edge_cpu_{name}_ms', float(np.median(values)), 'ms', '', None, on)
             for name, values in times.items()]
    return [*rows, PerfResult('edge_cpu_answers_that_differ', differ, f'of {answers}',
                              'model.generate', None, on)]


def as_int8(model: Any) -> Any:
    """Return a model with its layers' weights in 8 bits, quantised dynamically."""
    from torch import nn
    from torch.ao.quantization import quantize_dynamic
    quantize_dynamic(model.model, {nn.Linear}, inplace=True)
    return model


def as_bf16(model: Any) -> Any:
    """Return a model with weights in 16 bits."""
    return model.bfloat16()


def served(client: Any, model: str, shown: Any, limit: int) -> str:
    """Return a server's reply to what the edge model is shown, images sent as PNG."""
    images = iter(shown.images)
    chat: Any = [{**turn, 'content': [
        part if part['type'] == 'text' else _image_part(next(images))
        for part in turn['content']]} for turn in shown.chat]
    reply = client.chat.completions.create(model=model, messages=chat, max_tokens=limit,
                                           temperature=0.0)
    return str(reply.choices[0].message.content).strip()


def _image_part(image: npt.NDArray[np.uint8]) -> dict[str, Any]:
    png = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    return {'type': 'image_url',
            'image_url': {'url': 'data:image/png;base64,' + base64.b64encode(png).decode()}}


def speedup(name: str, ours: Sequence[float], base: Sequence[float], baseline: str,
            on: str) -> PerfResult:
    """Return how many times faster the median of ours is."""
    ratio = float(np.median(base) / np.median(ours))
    return PerfResult(name, ratio, 'times', baseline, ratio, on)


def noisy(frame: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return the frame with the noise of another exposure, +-2 grey levels."""
    noise = rng.integers(-2, 3, frame.shape, dtype=np.int8)
    return np.clip(frame.astype(np.int16) + noise, 0, 255).astype(np.uint8)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog='edge_perf', description=__doc__)
    parser.add_argument('--gpu', action='store_true', help='random weights of known shapes')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads of the model')
    parser.add_argument('--cases', default='', help='GPU: names of the shapes, by comma')
    parser.add_argument('--limit', type=float, default=460.0, help='GPU: begin no case after [s]')
    parser.add_argument('--out', type=Path, help='file to write the rows to')
    args = parser.parse_args(argv)
    if args.gpu:
        from .edge_gpu import gpu_rows
        rows = gpu_rows(args.cases, args.limit)
    else:
        rows = cpu_rows(args.threads)
    for row in rows:
        print(f'{row.name:44} {row.value:10} {row.unit:8} {row.ratio or "":8} {row.baseline}')
    if args.out is not None:
        write_results(rows, args.out)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
