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
from dataclasses import asdict, replace
import datetime
from pathlib import Path
import time

import numpy as np

from . import cells
from .cache import Cache
from .cloud_said import cloud_said, CloudSaid, summary
from .delays import NEVER_S, QUICK, TRACES
from .measure import measure_stream
from .models import CachedCloud, CachedEdge, Cloud, LocalCloud, RemoteCloud
from .replay import Replay, RunScope
from .report import report
from .streams import JPEG_QUALITY, Sampling, START_NS
from .systems import Inputs
from ...cloud.client import cloud_server
from ...config.nodes import EdgeConfig
from ...config.profiles import find_profile, load_profile
from ...edge.model import EdgeModel
from ...frames import sources
from ...frames.pixels import decode_image, encode_jpeg, Image
from ...labels.schema import Label, read_labels
from ...method.facts import NS, Query, Region
from ...method.guard import OFF
from ...mini.shipped import checkpoint_path, is_miniature, MINIATURE_WARNING
from ...system.machine import machine

BLOCK_S = 15.0     # of a recording are one unit of statistics: near moments are not independent
LONGEST_S = 1800.0


class RecordedStream:
    """Frames of a recording, kept as JPEG."""

    def __init__(self, name: str, query: Query, jpegs: Mapping[int, bytes], labels: list[Label],
                 sampling: Sampling) -> None:
        """Pick the frames for each use; labels past the recording are an error."""
        self.name, self.query, self.seed = name, query, 0
        self._jpegs, self._labels = jpegs, labels
        self.frames = _spaced(list(jpegs), 1 / sampling.flow_hz)
        self.edge = _spaced(self.frames, 1 / query.rate_hz)
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
        image = decode_image(self._jpegs[stamp_ns])
        if image is None:
            raise ValueError(f'{self.name}: a frame is no picture that OpenCV can decode; is the '
                             'recording whole?')
        return image

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
    source = sources.bag(args.bag, args.topic) if args.bag else sources.video(args.video)
    jpegs: dict[int, bytes] = {}
    last = -1.0
    for frame in source:
        if frame.at_s > LONGEST_S:
            print(f'the recording is longer than {LONGEST_S:g} s; the rest is left out')
            break
        if frame.at_s - last < 0.95 / Sampling().flow_hz:
            continue
        last = frame.at_s
        data = frame.jpeg if frame.load is None else encode_jpeg(frame.load(), JPEG_QUALITY)
        jpegs[START_NS + int(frame.at_s * NS)] = data or b''
    return jpegs


def run_own_data(args: argparse.Namespace) -> int:
    """Score a recording; return the exit code."""
    if args.labels is None:
        raise ValueError('--labels is missing; name a file of labels, docs/benchmark.md tells '
                         'the format')
    if bool(args.cloud_url) != bool(args.cloud_model):
        raise ValueError('--cloud-url and --cloud-model go together; give both, or none for a '
                         'checkpoint on this machine (--cloud)')
    started, sampling = time.monotonic(), Sampling()
    query = facts_query(args.profile)
    labels = read_labels(args.labels, query)
    stream = RecordedStream(Path(args.bag or args.video).name, query, recorded_jpegs(args),
                            labels, sampling)
    edge = EdgeModel.load(EdgeConfig(model=args.edge, guard_odds=OFF))
    for name in (args.edge, args.cloud_model or args.cloud):
        if is_miniature(name):
            print(f'{name}: {MINIATURE_WARNING}')
    latencies = measure_stream(edge, stream)
    cloud = opened_cloud(args)
    scale = cloud.server.config.box_scale if isinstance(cloud, RemoteCloud) else 'relative'
    cached = CachedCloud(cloud, stream, Cache(None, ''), scale)
    run = Replay(Inputs(stream, CachedEdge(edge, stream, Cache(None, ''), args.guard_odds), cached,
                        latencies), sampling)
    tally = run.run(RunScope(QUICK, ablations=False))
    said = cloud_said(stream, cached.answers)
    print(f'{len(stream.edge)} frames for the edge, {len(labels)} labels; {summary(said)}',
          flush=True)
    _check_replies(cloud, said)
    _warn_of_delays(stream)
    meta: dict[str, object] = {
        'commit': '', 'clock': 'replay', 'extent': 'own data', 'split': 'no',
        'models': {'edge': {'name': edge.name, 'hash': ''},
                   'cloud': {'name': args.cloud_model or args.cloud, 'hash': ''}},
        'latencies_charged': asdict(latencies), 'recording': stream.name, 'cloud_said': said,
        'synthetic': f'delays are synthetic; units of statistics are blocks of {BLOCK_S:g} s',
        'run': {'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
                'took_s': round(time.monotonic() - started), 'machine': machine()}}
    if isinstance(cloud, RemoteCloud):
        meta['cloud_round_trips_s'] = {'median': float(np.median(cloud.round_trips_s)),
                                       'n': len(cloud.round_trips_s)}
    all_cells = cells.cells({stream.name: [tally]})
    cells.write(args.out / 'results.json', all_cells, meta)
    report(all_cells, meta, args.out)
    return 0


def opened_cloud(args: argparse.Namespace) -> Cloud:
    """Return the server that the user names, asked as the profile says, or a checkpoint here."""
    if args.cloud_url:
        config = load_profile(args.profile).cloud
        return RemoteCloud(cloud_server(replace(config, base_url=args.cloud_url,
                                                model=args.cloud_model)), config)
    return LocalCloud(checkpoint_path(args.cloud))


def _check_replies(cloud: Cloud, said: CloudSaid) -> None:
    """Tell failed requests; raise ValueError where no reply can be used: all would be edge."""
    if isinstance(cloud, RemoteCloud) and cloud.errors:
        print(f'{len(cloud.errors)} of {said["requests"]} requests failed: {cloud.errors[0]}')
    if said['without_reply'] == said['requests']:
        raise ValueError('the server answered nothing; see above')
    if said['unusable'] + said['without_reply'] == said['requests']:
        raise ValueError('no reply of the cloud could be used, see above; check the model, and '
                         'box_scale, max_tokens and reply_form of node cloud in the profile')


def _warn_of_delays(stream: RecordedStream) -> None:
    """Name the delays that no answer can be in time with."""
    seconds = (stream.frames[-1] - stream.frames[0]) / NS
    late = [name for name in QUICK if seconds <= TRACES[name].median_s < NEVER_S]
    if late:
        print(f'the recording is {seconds:.1f} s long: with the delays of {", ".join(late)} no '
              'cloud answer comes before its end, and the method is the edge alone')
