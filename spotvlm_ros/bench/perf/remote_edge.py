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
Measures the edge model in this process against the same checkpoint behind a server.

The server is `spotvlm serve` on localhost, so that the network is the smallest part. Both answer
the same frames: first one after the other as fast as they can, then an episode of the miniature
world in real time, alone and with the method. The cloud's answers of that are the truth, two
seconds late. Run alone: `spotvlm perf remote-edge`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
import time

import numpy as np

from .result import PerfResult, print_results, write_results
from ..spotbench.delays import DeliveredReply
from ..spotbench.score import latest, PublishedAnswer, right
from ..spotbench.seeds import episodes
from ..spotbench.streams import Sampling, WorldStream
from ..spotbench.wallclock import real_time
from ...cloud.server import EmbeddedServer
from ...config.nodes import EdgeConfig
from ...edge.answer import EdgeVLM
from ...edge.model import EdgeModel
from ...method.facts import Fact, NS, Source, Turn
from ...method.guard import OFF
from ...mini.shipped import checkpoint_path
from ...nodes.remote_edge import RemoteEdge
from ...system.machine import machine
from ...system.progress import working

MODEL = 'spot-mini-edge'
FRAMES = 40       # answered one after the other
DELAY_S = 2.0     # of the cloud
PERIOD_S = 1.0    # between its answers


def rows(threads: int, quality: int, set_: str) -> list[PerfResult]:
    """Measure; ``quality`` is that of the views sent, ``set_`` of SpotBench has the episode."""
    stream = WorldStream(episodes('tune', set_, 1)[0], Sampling())
    local = EdgeConfig(model=MODEL, threads=threads)
    with EmbeddedServer(str(checkpoint_path(MODEL)), threads=threads) as server, \
            NamedTemporaryFile('w') as key:
        key.write(server.key)
        key.flush()
        here = EdgeModel.load(local)
        side = here.model_inputs(stream.image(stream.edge[0]), stream.query, None, 0).images[0]
        there = RemoteEdge(replace(
            local, remote_url=server.url, remote_key_file=key.name, remote_schema=False,
            remote_view_side=len(side), remote_view_quality=quality))
        unguarded = EdgeModel.load(replace(local, guard_odds=OFF))
        models: dict[str, EdgeVLM] = {'local': here, 'remote': there}
        for model in models.values():
            model.warm_up([stream.query])
        results = list(_one_after_the_other(models, stream, machine(threads)))
        replies = _replies(stream)
        for name, model, given in (
                ('local_alone', here, None), ('remote_alone', there, None),
                ('local', here, replies), ('local_unguarded', unguarded, replies),
                ('remote', there, replies)):
            results += _figures(name, stream, real_time(stream, model, given), machine(threads))
        print(', '.join(f'{k} {v}' for k, v in there.report().items()))
        there.close()
    return results


def _one_after_the_other(models: dict[str, EdgeVLM], stream: WorldStream, on: str,
                         ) -> Iterator[PerfResult]:
    spent: dict[str, list[float]] = {name: [] for name in models}
    same = 0
    for stamp in stream.edge[:FRAMES]:
        values = []
        for name, model in models.items():
            begin = time.perf_counter()
            answer = model.answer(stream.image(stamp), stream.query, None, stamp)
            spent[name].append(time.perf_counter() - begin)
            values.append([(f.key, f.value) for f in answer.facts])
        same += values[0] == values[1]
    for name, seconds in spent.items():
        rate, base = 1 / float(np.mean(seconds)), 1 / float(np.mean(spent['local']))
        yield PerfResult(f'remote_edge_{name}_answers_hz', rate, 'answers a second, no pause',
                         'in this process', rate / base, on)
    yield PerfResult('remote_edge_same', same / len(stream.edge[:FRAMES]),
                     'share of answers without context that are equal', '', None, on)


def _replies(stream: WorldStream) -> list[DeliveredReply]:
    """Return the truth, late."""
    step, replies = round(PERIOD_S * NS), []
    for stamp in stream.edge:
        if (stamp - stream.edge[0]) % step == 0:
            regions = stream.regions(stamp)
            facts = tuple(Fact(k, v, stamp, region=regions.get(k))
                          for k, v in stream.truth(stamp).items())
            replies.append(DeliveredReply(Turn(stream.query.id, stamp, Source.CLOUD, facts),
                                          stamp + int(DELAY_S * NS)))
    return replies


def _figures(name: str, stream: WorldStream, published: Sequence[PublishedAnswer],
             on: str) -> Iterator[PerfResult]:
    """Yield what an episode in real time came to."""
    wanted = len(stream.edge)
    late_ms = [1e-6 * (p.at_ns - p.stamp_ns) for p in published]
    grid = right(latest(published, stream.labels), [stream.truth(t) for t in stream.labels],
                 stream.query.keys)
    yield PerfResult(f'remote_edge_{name}_accuracy', float(grid.mean()), 'share of facts right',
                     f'{stream.name}, one episode in real time', None, on)
    yield PerfResult(f'remote_edge_{name}_answered', len(published) / wanted,
                     'share of the answers wanted', f'{wanted} frames at 5 Hz', None, on)
    for percent in (50, 95):
        yield PerfResult(f'remote_edge_{name}_p{percent}_ms',
                         float(np.percentile(late_ms, percent)), 'ms from stamp to answer', '',
                         None, on)


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm perf remote-edge', description=__doc__,
                                     epilog='example: spotvlm perf remote-edge --threads 1',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=1, help='CPU threads of each model')
    parser.add_argument('--quality', type=int, default=0,
                        help='JPEG quality of the views sent; 0: PNG, without loss')
    parser.add_argument('--set', default='driving day', help='set of SpotBench')
    parser.add_argument('--out', type=Path, help='file to write the rows to')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    args = command_parser().parse_args(argv)
    with working('measuring both'):
        results = rows(args.threads, args.quality, args.set)
    print_results(results)
    if args.out is not None:
        write_results(results, args.out)
    return 0
