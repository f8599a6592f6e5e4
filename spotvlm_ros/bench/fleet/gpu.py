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
Robots per GPU: the miniature cloud, and the shape of a 7B model with random weights.

`python -m spotvlm_ros.bench.fleet.gpu` measures how long batches take, computes from that how many
robots one GPU carries, and has simulated robots, in a process of their own, ask the app, to see
whether that is so. What random weights say is of no meaning; what it costs is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
import json
import os
from pathlib import Path
import subprocess
import sys

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from .curve import ROUNDS, SIZES
from .main import HEADING as FLEET_HEADING, Plan, robots_per_replica, simulate
from .measured import KEY, measured_curve, serving
from .simulated import NETWORKS, Setting
from ..faults import robots
from ..perf.edge_gpu import inputs_of, SHAPES, tiny_shapes
from ...cloud.errors import KEY_ENV
from ...config.profiles import load_profile
from ...mini.shipped import checkpoint_path
from ...serving.chat import ChatRequest, PicturePart
from ...serving.checkpoint import Checkpoint, picture, Prepared, Reply, Sampling
from ...serving.graphed import Graphed
from ...serving.keys import Keys, Robot
from ...serving.service import Limits, Service

MINIATURE = 'spot-mini-cloud'
TOKENS = 100       # of each reply of random weights, about what facts and boxes take
QUESTION = 160     # tokens of text in their prompts
MAX_BATCH = 32
MOST_ROBOTS = 96   # that this process can be
SHARES = (0.5, 0.8, 1.0, 1.3)  # of the robots that it computes, for as many as are there then
FRESH_S = (3.0, 6.0)  # ages that context may have; the second is that of the shortest-lived fact


class RandomCheckpoint(Checkpoint):
    """A model of some shape that says nothing, in as much time as one that does."""

    def __init__(self, shape: str, device: str) -> None:
        """Make the weights."""
        config = {**SHAPES, **tiny_shapes()}[shape]()
        dtype = torch.bfloat16 if device == 'cuda' else torch.float32
        with torch.device(device):
            self._model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
        self._ends, self._pad = frozenset({-1}), 0
        self._fast = Graphed.of(self._model, self._ends)
        self._vision, self._image = inputs_of(config, 'cpu', dtype)
        self._pictures = Qwen2VLImageProcessorPil() if shape.startswith('Qwen') else None

    def prepare(self, chat: ChatRequest) -> Prepared:
        """Return a request about the picture, or one of its size; the text is made up."""
        ids = torch.tensor([[*self._image, *torch.randint(1000, 40000, (QUESTION,)).tolist()]])
        inputs = {'input_ids': ids, 'attention_mask': torch.ones_like(ids), **self._vision}
        if self._pictures is not None:
            inputs |= self._pictures([picture(part.image_url.url) for part in
                                      chat.messages[-1].content if isinstance(part, PicturePart)],
                                     return_tensors='pt')
        if 'image_grid_thw' in inputs:
            inputs['mm_token_type_ids'] = (ids == self._image[0]).int()
        return Prepared(inputs, '', Sampling(), TOKENS)

    def _reply(self, prepared: Prepared, row: list[int]) -> Reply:
        facts = [{'label': key, 'value': 'none'} for key in (
            'light', 'limit', 'lead', 'pedestrian')]
        return Reply(json.dumps(facts), prepared.inputs['input_ids'].shape[1], len(row), True)


def load(name: str, device: str) -> Checkpoint:
    """Return a model of a name."""
    return Checkpoint(checkpoint_path(name), device) if name == MINIATURE else \
        RandomCheckpoint(name, device)


def service_of(model: Checkpoint, name: str) -> Service:
    """Return what answers by a model, by either name that robots use."""
    return Service(model, Keys([(KEY, Robot('robots'))]),
                   Limits((name, str(checkpoint_path(name))), MAX_BATCH))


def measured_robots(name: str, counts: Sequence[int], port: int,
                    arguments: argparse.Namespace) -> object:
    """Return what simulated robots, in a process of their own, get of the app in real time."""
    out = arguments.out.with_suffix('.robots.json')
    subprocess.run(
        [sys.executable, '-m', robots.__name__, '--url', f'http://127.0.0.1:{port}/v1', '--model',
         name, '--robots', *map(str, counts), '--seconds', str(arguments.seconds), '--in-flight',
         str(arguments.in_flight), '--out', str(out)],
        check=True, env=os.environ | {KEY_ENV: KEY})
    return json.loads(out.read_text())['rows']


def _of(name: str, arguments: argparse.Namespace, port: int,
        show: Callable[[str], None] = partial(print, flush=True)) -> dict[str, object]:
    """Measure one model, compute, and compare."""
    model = load(name, arguments.device)
    curve = measured_curve(model, name, 'driving', SIZES, ROUNDS if name == MINIATURE else 1)
    show(f'{name}: {curve}')
    setting = Setting(load_profile('driving').queries('cloud'), NETWORKS['wired'],
                      arguments.in_flight)
    plan = Plan(curve, setting, 1, max_batch=MAX_BATCH, seconds=15.0)
    computed = {f'{fresh_s:g} s': robots_per_replica(
        replace(plan, fresh_s=fresh_s), MOST_ROBOTS) for fresh_s in FRESH_S}
    show(f'robots per GPU, computed, by age of fresh context: {computed}')
    most = computed[f'{FRESH_S[0]:g} s']
    counts = arguments.robots or sorted({max(1, min(MOST_ROBOTS, int(share * most)))
                                         for share in SHARES})
    show(FLEET_HEADING)
    expected = [simulate(replace(plan, robots=count)) for count in counts]
    for outcome in expected:
        show(str(outcome))
    with serving(service_of(model, name), port):
        rows = measured_robots(name, counts, port, arguments)
    return {'curve': asdict(curve), 'robots_per_gpu_computed': computed,
            'computed': [asdict(o) for o in expected], 'measured': rows}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and compare; return 0."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=[MINIATURE, 'Qwen2.5-VL-7B'])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--seconds', type=float, default=10.0, help='of each number of robots')
    parser.add_argument('--robots', type=int, nargs='+', help='default: by what is computed')
    parser.add_argument('--in-flight', type=int, default=2, help='requests under way per robot')
    parser.add_argument('--out', type=Path, default=Path('out/fleet_gpu.json'))
    parser.add_argument('--port', type=int, default=8077)
    arguments = parser.parse_args(argv)
    found = {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(arguments.models):
        found[name] = _of(name, arguments, arguments.port + number)
        arguments.out.write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')
    print(f'wrote {arguments.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
