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
"""Your own recording, labels and models through the same systems (`spotvlm bench --bag ...`)."""

from __future__ import annotations

import argparse
from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import asdict
import datetime
from pathlib import Path
import time
from typing import Any

import numpy as np

from . import cells
from .cache import Cache
from .delays import QUICK
from .labels import Label, read_labels
from .latencies import Latencies
from .models import Cloud, cloud_turns, decode, Edge, encode, LocalCloud, RemoteCloud, timed
from .replay import Extent, Replay
from .streams import Image, Plan, START_NS
from ...config.nodes import EdgeConfig
from ...config.profiles import find_profile, load_profile
from ...edge.answer import EdgeVLM
from ...edge.model import EdgeModel
from ...method.facts import Context, Fact, NS, Query, Region
from ...method.guard import OFF
from ...method.transfer import Transfer
from ...mini.shipped import checkpoint_path, is_miniature, MINIATURE_WARNING
from ...system.machine import machine

BLOCK_S = 15.0     # of a recording are one unit of statistics: near moments are not independent
LONGEST_S = 1800.0


class RecordedStream:
    """Frames of a recording, kept as JPEG."""

    def __init__(self, name: str, query: Query, jpegs: Mapping[int, bytes], labels: list[Label],
                 plan: Plan) -> None:
        """Pick the frames for each use; labels past the recording are an error."""
        self.name, self.query, self.seed = name, query, 0
        self._jpegs, self._labels = jpegs, labels
        self.frames = _spaced(list(jpegs), 1 / plan.flow_hz)
        self.edge = _spaced(self.frames, 1 / query.rate_hz)
        self.keys = _spaced(self.frames, query.cloud_period_s)
        self.labels = [START_NS + int(one.t * NS) for one in labels]
        self.blocks = [int(one.t // BLOCK_S) for one in labels]
        if self.labels[-1] > self.frames[-1] + NS:
            raise ValueError(f'the last label is at {labels[-1].t:g} s, the recording ends at '
                             f'{(self.frames[-1] - START_NS) / NS:g} s; t is seconds after the '
                             'first frame')
        height, width = self.image(self.frames[0]).shape[:2]
        self.size = (width, height)

    def image(self, stamp_ns: int) -> Image:
        """Return a frame."""
        return decode(self._jpegs[stamp_ns])

    def truth(self, stamp_ns: int) -> Mapping[str, str]:
        """Return the last label of each key at or before a time."""
        held: dict[str, str] = {}
        for label in self._labels[:bisect_right(self.labels, stamp_ns)]:
            held |= label.facts
        return held

    def scored(self, stamp_ns: int) -> Collection[str]:
        """Return the keys that the label of this time names."""
        return self._labels[self.labels.index(stamp_ns)].facts

    def regions(self, stamp_ns: int) -> Mapping[str, Region]:
        """Return the labelled regions of this very time, none at others."""
        place = bisect_right(self.labels, stamp_ns) - 1
        same = place >= 0 and self.labels[place] == stamp_ns
        return self._labels[place].regions if same else {}


def _spaced(stamps: list[int], seconds: float) -> list[int]:
    """Return stamps that are so far apart, with a tolerance for a camera's jitter."""
    taken: list[int] = []
    for stamp in stamps:
        if not taken or stamp - taken[-1] >= 0.95 * seconds * NS:
            taken.append(stamp)
    return taken


def facts_query(profile: str) -> Query:
    """Return the first facts query of a profile or params file."""
    path = find_profile(profile)
    queries = load_profile(profile).queries()
    found = next((q for q in queries if q.format == 'facts'), None)
    if found is None:
        raise ValueError(f'{path} has no query of format facts; add one with the keys of your '
                         'labels')
    return found


def recorded_jpegs(args: argparse.Namespace) -> dict[int, bytes]:
    """Return the frames of the recording as JPEG, by stamp; the first is START_NS."""
    from ...frames import sources
    source = sources.bag(args.bag, args.topic) if args.bag else sources.video(args.video)
    jpegs: dict[int, bytes] = {}
    last = -1.0
    for frame in source:
        if frame.at_s > LONGEST_S:
            print(f'the recording is longer than {LONGEST_S:g} s; the rest is left out')
            break
        if frame.at_s - last < 0.95 / Plan().flow_hz:
            continue
        last = frame.at_s
        data = frame.jpeg if frame.load is None else encode(frame.load())
        jpegs[START_NS + int(frame.at_s * NS)] = data or b''
    return jpegs


def measured(edge: EdgeVLM, stream: RecordedStream, repeats: int = 20) -> Latencies:
    """Return what the steps take here, on this recording."""
    stamps = (stream.frames * repeats)[:repeats]
    images = [stream.image(s) for s in stamps]
    told = tuple(Fact(k, v[0], stamps[0]) for k, v in stream.query.choices.items())
    context = Context(stream.query.id, stamps[0], told)
    edge.warm_up([stream.query])
    method = Transfer([stream.query])

    def answer(i: int, *told_too: Context | None) -> None:
        for given in told_too:
            edge.answer(images[i], stream.query, given, stamps[i])
    took = {
        'decode_s': timed(lambda i: stream.image(stamps[i]), repeats),
        'answer_s': timed(lambda i: answer(i, None), repeats),
        'answer_context_s': timed(lambda i: answer(i, context), repeats),
        'answer_both_s': timed(lambda i: answer(i, None, context), repeats),
        'carry_s': timed(lambda i: method.frame(START_NS + i * NS // 10, images[i]), repeats)}
    return Latencies(**{k: float(np.median(v)) for k, v in took.items()},
                     cloud_round_trip_s=0.0, edge_model=edge.name, machine=machine())


def run_own(args: argparse.Namespace) -> int:
    """Score a recording."""
    from .report import report
    if args.labels is None:
        raise ValueError('--labels is missing; name a file of labels, docs/benchmark.md tells '
                         'the format')
    if bool(args.cloud_url) != bool(args.cloud_model):
        raise ValueError('--cloud-url and --cloud-model go together; give both, or none for a '
                         'checkpoint on this machine (--cloud)')
    started = time.monotonic()
    query = facts_query(args.profile)
    labels = read_labels(args.labels, query)
    plan = Plan()
    jpegs = recorded_jpegs(args)
    stream = RecordedStream(Path(args.bag or args.video).name, query, jpegs, labels, plan)
    edge = EdgeModel.load(EdgeConfig(model=args.edge, guard_odds=OFF))
    for name in (args.edge, args.cloud_model or args.cloud):
        if is_miniature(name):
            print(f'{name}: {MINIATURE_WARNING}')
    took = measured(edge, stream)
    cloud: Cloud
    if args.cloud_url:
        from ...cloud.client import read_api_key
        remote = cloud = RemoteCloud(args.cloud_url, args.cloud_model, read_api_key())
        turns = cloud_turns(cloud, stream, Cache(None, ''))
        if remote.errors:
            print(f'{len(remote.errors)} of {len(stream.keys)} requests failed: '
                  f'{remote.errors[0]}')
        if not turns:
            raise ValueError('the server answered nothing; see above')
    else:
        cloud = LocalCloud(checkpoint_path(args.cloud))
        turns = cloud_turns(cloud, stream, Cache(None, ''))
    print(f'{len(stream.edge)} frames for the edge, {len(turns)} cloud answers, '
          f'{len(labels)} labels', flush=True)
    asked = Edge(edge, stream, Cache(None, ''), args.guard_odds)
    run = Replay(stream, plan, asked, turns, took)
    tally = run.run(Extent(QUICK, ablations=False))
    meta: dict[str, Any] = {
        'commit': '', 'clock': 'replay', 'extent': 'own data', 'split': 'no',
        'models': {'edge': {'name': edge.name, 'hash': ''},
                   'cloud': {'name': args.cloud_model or args.cloud, 'hash': ''}},
        'latencies_charged': asdict(took), 'recording': stream.name,
        'synthetic': f'delays are synthetic; units of statistics are blocks of {BLOCK_S:g} s',
        'run': {'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
                'took_s': round(time.monotonic() - started), 'machine': machine()}}
    if args.cloud_url:
        meta['cloud_round_trips_s'] = {
            'median': float(np.median(remote.round_trips_s)), 'n': len(remote.round_trips_s)}
    found = cells.cells({stream.name: [tally]})
    cells.write(args.out / 'results.json', found, meta)
    report(found, meta, args.out)
    return 0
