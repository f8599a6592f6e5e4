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
"""Your own recordings, labels and models through the same systems (`spotvlm bench --frames`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
import datetime
import hashlib
from pathlib import Path
import time
import zlib

import numpy as np

from . import cells
from .cache import Cache, model_hash
from .cloud_said import cloud_said, CloudSaid, summary
from .delays import HEADLINE, NEVER_S, QUICK, TRACES
from .measure import measure_stream
from .models import CachedCloud, CachedEdge, Cloud, LocalCloud, RemoteCloud
from .own_tuning import (best_baseline, gains_of_learned, learned, majority_values, run_tuning,
                         tune)
from .recorded import in_place_of, LabelCloud, RecordedStream, SIMULATED
from .replay import Replay, RunScope
from .report import report
from .streams import Sampling
from .systems import Inputs, Tuned
from ...cloud.client import cloud_server
from ...config.nodes import EdgeConfig
from ...config.profiles import find_profile, load_profile
from ...edge.model import EdgeModel
from ...labels.schema import Header
from ...labels.sequences import LabelledSequence, open_labelled, sequence_paths
from ...method.facts import Context, Query
from ...method.guard import OFF
from ...mini.shipped import checkpoint_path, note_on
from ...system.machine import machine
from ...system.progress import progress

FEW = 8         # sequences to score; fewer are cut into blocks, the units of statistics
FROM_LABELS = 'labels'
SAMPLING = Sampling(shift_s=0.0)


def facts_query(profile: str) -> Query:
    """Return the first facts query of a profile or params file."""
    path = find_profile(profile)
    queries = load_profile(profile).queries()
    found = next((q for q in queries if q.format == 'facts'), None)
    if found is None:
        raise ValueError(f'{path} has no query of format facts; add one with the keys of your '
                         'labels')
    return found


def opened(args: argparse.Namespace, query: Query) -> list[LabelledSequence]:
    """Return the labelled sequences of the command line, each by a name of its own."""
    if args.frames:
        if args.labels is not None:
            raise ValueError('--labels is of --bag and --video; give --frames the label file '
                             'itself, whose first line may name a recording')
        found = [open_labelled(path, query) for given in args.frames
                 for path in sequence_paths(given)]
    else:
        if args.labels is None:
            raise ValueError('--labels is missing; name a file of labels, docs/benchmark.md tells '
                             'the format')
        place = str(Path(args.bag or args.video).resolve())
        found = [open_labelled(args.labels, query, Header(
            recording=place, kind='bag' if args.bag else 'video', topic=args.topic))]
    names = [sequence.name for sequence in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f'two sequences are named {", ".join(sorted(twice))}; rename a folder, '
                         'for results go by these names')
    for sequence in found:
        if sequence.skipped:
            print(f'{sequence.name}: {sequence.skipped} frames cannot be decoded and are left out')
    return found


def split(args: argparse.Namespace, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of the sequences to tune on, and of those to score."""
    tuning, held_out = args.tune or [], args.held_out or []
    unknown = [name for name in (*tuning, *held_out) if name not in names]
    if unknown:
        raise ValueError(f'--tune, --held-out: there is no sequence {unknown[0]!r}; there are '
                         f'{", ".join(names)}')
    both = set(tuning) & set(held_out)
    if both:
        raise ValueError(f'{", ".join(sorted(both))}: both in --tune and in --held-out; what is '
                         'tuned on a sequence says nothing about it')
    if held_out and not args.tune:
        tuning = [name for name in names if name not in held_out]
    scored = held_out or [name for name in names if name not in tuning]
    if not scored:
        raise ValueError('--tune: no sequence is left to score; leave one out')
    return tuning, scored


class OwnRun:
    """All sequences, one edge, one cloud."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Read and check everything, load the models."""
        self.args, self.query = args, facts_query(args.profile)
        sequences = {s.name: s for s in opened(args, self.query)}
        self.tuning, self.scored = split(args, list(sequences))
        self.block_s = args.block if len(self.scored) < FEW else 0.0
        self.streams = {name: RecordedStream(
            sequences[name], SAMPLING, self.block_s,
            zlib.crc32(name.encode()) if args.frames else 0)
                        for name in (*self.tuning, *self.scored)}
        self.majority = majority_values(label for name in self.tuning
                                        for label in sequences[name].labels)
        self.edge = EdgeModel.load(EdgeConfig(model=args.edge, guard_odds=OFF))
        self.cloud = None if args.cloud == FROM_LABELS and not args.cloud_url else \
            opened_cloud(args)
        self.latencies = measure_stream(self.edge, self.streams[self.scored[0]])
        self.tuned, self.best = Tuned(), ''
        self.odds: float | None = None   # of the guard, chosen on tuning sequences
        self.caches: list[Cache[str]] = []

    def run(self) -> tuple[dict[str, Replay], CloudSaid]:
        """Run everything; return the replays of what is scored, and what the cloud said."""
        tuning, runs = [], {}
        with progress('sequences: the edge alone', len(self.streams)) as done:
            for name in self.streams:
                runs[name] = self._replay(name)
                done()
        if self.tuning:
            tuning = [runs[name] for name in self.tuning]
            self.tuned = tune(tuning)
            for run in runs.values():
                run.tuned = self.tuned
            with progress('tuning sequences', len(tuning)) as done:
                for _ in run_tuning(tuning):
                    self.save()
                    done()
        with progress('sequences: all systems', len(self.scored)) as done:
            for name in self.scored:
                runs[name].run(RunScope(QUICK))
                self.save()
                done()
        if len(self.scored) > 1:
            self._contexts_of_others(runs)
        if self.args.calibration:
            self.odds = learned(list(runs.values()), len(tuning))
        self.best = best_baseline(tuning) if tuning else ''
        said = cloud_said([(r.stream, r.inputs.cloud.answers) for r in runs.values()])
        return {name: runs[name] for name in self.scored}, said

    def _replay(self, name: str) -> Replay:
        stream = self.streams[name]
        cloud: LabelCloud | CachedCloud
        if self.cloud is None:
            cloud = LabelCloud(stream, self.args.cloud_errors, self.args.cloud_box_jitter)
        else:
            scale = self.cloud.server.config.box_scale if isinstance(self.cloud, RemoteCloud) \
                else 'relative'
            cloud = CachedCloud(self.cloud, stream, self._kept(stream), scale)
        edge = CachedEdge(self.edge, stream, Cache(None, ''), self.args.guard_odds)
        return Replay(Inputs(stream, edge, cloud, self.latencies), SAMPLING, self.majority)

    def _kept(self, stream: RecordedStream) -> Cache[str]:
        """Return what the server has said of this stream before: that has been paid for."""
        if not isinstance(self.cloud, RemoteCloud) or self.args.no_cache:
            return Cache(None, '')
        config = replace(load_profile(self.args.profile).cloud, base_url='')
        some = stream.frames[::len(stream.frames) // 3 + 1]
        pictures = [stream.image(s).tobytes() for s in some]
        digest = hashlib.blake2b(digest_size=8)
        for part in (repr((self.args.cloud_model, config, self.query)).encode(), *pictures):
            digest.update(part)
        cache: Cache[str] = Cache(self.args.out / 'cache' / 'cloud',
                                  f'{stream.name}-{digest.hexdigest()}')
        self.caches.append(cache)
        return cache

    def save(self) -> None:
        """Keep what the server has said."""
        for cache in self.caches:
            cache.save()

    def _contexts_of_others(self, runs: dict[str, Replay]) -> None:
        for i, name in enumerate(self.scored):
            contexts: dict[int, Context] = runs[self.scored[i - 1]].full[HEADLINE].contexts
            runs[name].other(in_place_of(contexts, runs[name].stream.edge))

    @property
    def cloud_name(self) -> str:
        """Return what the cloud is, errors included where it is simulated."""
        if self.cloud is not None:
            return str(self.args.cloud_model or self.args.cloud)
        return (f'{SIMULATED} ({100 * self.args.cloud_errors:g} % of facts wrong, box jitter '
                f'{self.args.cloud_box_jitter:g} px)')

    def about(self) -> str:
        """Return what must be said with every figure."""
        units = f'blocks of {self.block_s:g} s' if self.block_s else 'sequences'
        said = [f'delays are synthetic; units of statistics are {units}']
        if self.cloud is None:
            said.append(f'the cloud is {self.cloud_name}')
        said.append('nothing is tuned on these data' if not self.tuning else
                    f'thresholds and best baseline are those best on {", ".join(self.tuning)}')
        if self.best:
            said.append(f'fusion at {self.tuned.fusion:g}, cascade at {self.tuned.cascade:g}, '
                        f'smoothed over {self.tuned.smoothed} answers, best {self.best}')
        return '; '.join(said)

    def meta(self, said: CloudSaid) -> dict[str, object]:
        """Return what stands beside the cells."""
        meta: dict[str, object] = {
            'commit': '', 'clock': 'replay', 'extent': 'own data',
            'split': 'held-out' if self.tuning else 'no',
            'models': {'edge': {'name': self.edge.name, 'hash': hash_of(self.args.edge)},
                       'cloud': {'name': self.cloud_name, 'hash': ''}},
            'latencies_charged': asdict(self.latencies), 'recording': ', '.join(self.scored),
            'sequences': {'tuned_on': self.tuning, 'scored': self.scored},
            'cloud_said': said, 'synthetic': self.about(), 'guard_odds': self.args.guard_odds}
        if self.tuning:
            meta['chosen'] = asdict(self.tuned) | {'best_baseline': self.best,
                                                   'guard_odds': self.odds}
        if isinstance(self.cloud, RemoteCloud) and self.cloud.round_trips_s:
            meta['cloud_round_trips_s'] = {'median': float(np.median(self.cloud.round_trips_s)),
                                           'n': len(self.cloud.round_trips_s)}
        return meta


def hash_of(checkpoint: str) -> str:
    """Return a hash of a checkpoint in a folder, '' for one that has none here."""
    path = checkpoint_path(checkpoint)
    return model_hash(path) if path.is_dir() else ''


def run_own_data(args: argparse.Namespace) -> int:
    """Score recordings; return the exit code."""
    if bool(args.cloud_url) != bool(args.cloud_model):
        raise ValueError('--cloud-url and --cloud-model go together; give both, or none for a '
                         'checkpoint on this machine (--cloud)')
    started, own = time.monotonic(), OwnRun(args)
    for name in (args.edge, args.cloud_model or args.cloud):
        note = note_on(name)
        if note:
            print(f'{name}: {note}')
    print(own.about(), flush=True)
    try:
        runs, said = own.run()
    finally:
        own.save()
    frames = sum(len(run.stream.edge) for run in runs.values())
    labels = sum(len(run.stream.labels) for run in runs.values())
    print(f'{frames} frames for the edge, {labels} labels; {summary(said)}', flush=True)
    _check_replies(own.cloud, said)
    _warn_of_delays([own.streams[name] for name in own.scored])
    worlds = {name: [run.tally] for name, run in runs.items()}
    found = cells.cells(worlds)
    if args.calibration:
        together = {cells.ALL_SETS: list(runs.values())} if len(runs) > 1 else {}
        for world, of in ({name: [run] for name, run in runs.items()} | together).items():
            best = own.best or cells.CellTable(found).best_baseline(world)
            found += gains_of_learned(world, of, best)
    meta = own.meta(said) | {
        'run': {'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
                'took_s': round(time.monotonic() - started), 'machine': machine()}}
    cells.write(args.out / 'results.json', found, meta)
    report(found, meta, args.out)
    return 0


def opened_cloud(args: argparse.Namespace) -> Cloud:
    """Return the server that the user names, asked as the profile says, or a checkpoint here."""
    if args.cloud_url:
        config = load_profile(args.profile).cloud
        return RemoteCloud(cloud_server(replace(config, base_url=args.cloud_url,
                                                model=args.cloud_model)), config)
    return LocalCloud(checkpoint_path(args.cloud))


def _check_replies(cloud: Cloud | None, said: CloudSaid) -> None:
    """Tell failed requests; raise ValueError where no reply can be used: all would be edge."""
    if isinstance(cloud, RemoteCloud) and cloud.errors:
        print(f'{len(cloud.errors)} of {said["requests"]} requests failed: {cloud.errors[0]}')
    if said['without_reply'] == said['requests']:
        raise ValueError('the server answered nothing; see above')
    if said['unusable'] + said['without_reply'] == said['requests']:
        raise ValueError('no reply of the cloud could be used, see above; check the model, and '
                         'box_scale, max_tokens and reply_form of node cloud in the profile')


def _warn_of_delays(streams: Sequence[RecordedStream]) -> None:
    """Name the delays that no answer can be in time with."""
    seconds = max(stream.seconds for stream in streams)
    late = [name for name in QUICK if seconds <= TRACES[name].median_s < NEVER_S]
    if late:
        print(f'the recording is {seconds:.1f} s long: with the delays of {", ".join(late)} no '
              'cloud answer comes before its end, and the method is the edge alone')
