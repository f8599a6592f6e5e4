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
from .recorded import BLOCK_S, RecordedStream
from .replay import Replay, RunScope
from .report import report
from .streams import Sampling
from .systems import Inputs
from ...cloud.client import cloud_server
from ...config.nodes import EdgeConfig
from ...config.profiles import find_profile, load_profile
from ...edge.model import EdgeModel
from ...labels.schema import Header
from ...labels.sequences import LabelledSequence, open_labelled
from ...method.facts import NS, Query
from ...method.guard import OFF
from ...mini.shipped import checkpoint_path, is_miniature, MINIATURE_WARNING
from ...system.machine import machine


def facts_query(profile: str) -> Query:
    """Return the first facts query of a profile or params file."""
    path = find_profile(profile)
    queries = load_profile(profile).queries()
    found = next((q for q in queries if q.format == 'facts'), None)
    if found is None:
        raise ValueError(f'{path} has no query of format facts; add one with the keys of your '
                         'labels')
    return found


def labelled(args: argparse.Namespace, query: Query) -> LabelledSequence:
    """Return the recording of the command line with its labels."""
    if args.labels is None:
        raise ValueError('--labels is missing; name a file of labels, docs/benchmark.md tells '
                         'the format')
    place = str(Path(args.bag or args.video).resolve())
    recording = Header(recording=place, kind='bag' if args.bag else 'video', topic=args.topic)
    sequence = open_labelled(args.labels, query, recording)
    if sequence.skipped:
        print(f'{sequence.name}: {sequence.skipped} frames cannot be decoded and are left out')
    return sequence


def run_own_data(args: argparse.Namespace) -> int:
    """Score a recording; return the exit code."""
    if bool(args.cloud_url) != bool(args.cloud_model):
        raise ValueError('--cloud-url and --cloud-model go together; give both, or none for a '
                         'checkpoint on this machine (--cloud)')
    started, sampling = time.monotonic(), Sampling()
    query = facts_query(args.profile)
    stream = RecordedStream(labelled(args, query), sampling)
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
    print(f'{len(stream.edge)} frames for the edge, {len(stream.labels)} labels; {summary(said)}',
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
