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
SpotBench: whether late cloud answers make the small model better, and never worse.

Synthetic worlds with exact labels, synthetic delays, real models. docs/benchmark.md explains.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
import datetime
from functools import partial
from importlib.util import find_spec
import os
from pathlib import Path
import resource
import subprocess
import time
from typing import TYPE_CHECKING

from . import cells
from .delays import HEADLINE, QUICK, TRACES
from .latencies import FILE, Latencies
from .replay import RunScope
from .seeds import BASE, Episode, episodes, first_seed, SETS, Split
from .streams import Sampling
from .tally import Tally
from ... import __version__
from ...method.guard import ODDS
from ...method.prompt import printable
from ...mini.hri.hands import DATA_SET
from ...mini.shipped import checkpoint_path
from ...system.machine import machine, StealTime
from ...system.progress import progress

if TYPE_CHECKING:
    from .on_ray import RayPool
    from .work import Result, Setup, WorkerPool

HANDS_ENV = 'SPOTVLM_HANDS'
REAL = 'hri real hands'
QUICK_EPISODES, QUICK_ABLATED = 7, 3   # of each set; with ablations and the short delay
FULL_EPISODES = 24
FULL_SECONDS = 30.0
CALIBRATION_EPISODES = 26   # of each set: 13 minutes


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='spotvlm bench', description=__doc__,
        epilog='example: spotvlm bench --split tune --episodes 2',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--full', action='store_true', help='all delays, more and longer '
                        'episodes; hours rather than minutes')
    parser.add_argument('--split', choices=('tune', 'test'), default='test',
                        help='seeds; test is for published runs only (default test)')
    parser.add_argument('--sets', nargs='+', default=list(SETS), choices=list(SETS),
                        metavar='SET', help=f'default: all of {", ".join(SETS)}')
    parser.add_argument('--episodes', type=int, default=0, help='of each set; 0: as usual')
    parser.add_argument('--seconds', type=float, default=0.0,
                        help='of an episode, with --calibration; 0: as usual')
    parser.add_argument('--seed-base', type=int, default=0, metavar='N', help='with '
                        '--calibration: episodes from this seed of the split on; 0: as usual')
    parser.add_argument('--hands', type=Path, default=None, metavar='DIR',
                        help=f'photographs of hands (also {HANDS_ENV}): {DATA_SET}')
    parser.add_argument('--edge', default='spot-mini-edge', help='checkpoint folder')
    parser.add_argument('--cloud', default='spot-mini-cloud', help='checkpoint folder; on own '
                        'data also "labels": simulated from them')
    parser.add_argument('--guard-odds', type=float, default=ODDS, help='as the parameter of the '
                        f'edge node; 0: one pass, no guard (default {ODDS:g})')
    parser.add_argument('--jobs', type=int, default=min(2, os.cpu_count() or 1),
                        help='processes, of one thread each')
    parser.add_argument('--ray', default='', metavar='ADDRESS', help='spread episodes over a Ray '
                        'cluster in the place of --jobs; local: one that is started here')
    parser.add_argument('--out', type=Path, default=Path('out/bench'), help='folder to write')
    parser.add_argument('--no-cache', action='store_true',
                        help='ask every model again, even what it has answered in an earlier run')
    parser.add_argument('--calibration', action='store_true',
                        help='learn on the stream whom to believe, against rules tuned before; '
                        'run --split tune first, then --split test, which has seeds of its own')
    parser.add_argument('--wall-clock', action='store_true',
                        help='also run three episodes of each set in real time and compare')
    parser.add_argument('--measure', action='store_true', help='measure the latencies of this '
                        'machine, write them into the package, and end')
    parser.add_argument('--report', action='store_true',
                        help='only draw the report again, from results.json')
    parser.add_argument('--update', type=Path, metavar='FILE',
                        help='put the tables into this Markdown file, between its marks')
    _add_own(parser.add_argument_group('your own data (docs/benchmark.md)'))
    return parser


def _add_own(own: argparse._ArgumentGroup) -> None:
    one = own.add_mutually_exclusive_group()
    one.add_argument('--bag', metavar='DIR', help='rosbag2, mcap or sqlite3')
    one.add_argument('--video', metavar='FILE')
    one.add_argument('--frames', nargs='+', type=Path, default=[], metavar='DIR', help='folders '
                     'of frames with labels.jsonl, or label files that name their recordings')
    own.add_argument('--topic', default='', help='image topic of the bag')
    own.add_argument('--labels', type=Path, metavar='FILE.jsonl', help='of the bag or video')
    own.add_argument('--held-out', nargs='+', metavar='NAME', help='sequences that are scored')
    own.add_argument('--tune', nargs='+', metavar='NAME', help='sequences that thresholds and '
                     'the best baseline are chosen on; default: those not held out')
    own.add_argument('--block', type=_seconds, default=15.0, metavar='SECONDS', help='unit of '
                     'statistics where fewer than eight sequences are scored (default 15)')
    own.add_argument('--cloud-errors', type=_share, default=0.05, metavar='SHARE',
                     help='of facts, with --cloud labels (default 0.05)')
    own.add_argument('--cloud-box-jitter', type=_pixels, default=2.0, metavar='PIXELS',
                     help='with --cloud labels: standard deviation of the edges of boxes '
                     '(default 2)')
    own.add_argument('--profile', default='driving', help='driving, hri, or a params file: the '
                     'first facts query in it is asked')
    own.add_argument('--cloud-url', default='', help='OpenAI-compatible server')
    own.add_argument('--cloud-model', default='', help='name the server knows it by')


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f'{text} is no share; give 0 to 1')
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 1.0 <= value <= 3600.0:
        raise argparse.ArgumentTypeError(f'{text} is no number of seconds from 1 to 3600')
    return value


def _pixels(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1000.0:
        raise argparse.ArgumentTypeError(f'{text} is no number of pixels from 0 to 1000')
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    args = command_parser().parse_args(argv or [])
    try:
        return _main(args)
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), flush=True)
        return 1


def _main(args: argparse.Namespace) -> int:
    if args.report and args.calibration:
        return _calibration_report(args)
    if args.report:
        return _report(args.out, args.update)
    if args.measure:
        return _measure(args)
    if args.bag or args.video or args.frames:
        from .own_data import run_own_data
        return run_own_data(args)
    started, stolen = time.monotonic(), StealTime()
    hands = hands_folder(args.hands)
    sets = [s for s in args.sets if s != REAL or hands is not None]
    if REAL in args.sets and hands is None:
        print(f'{REAL}: left out, there are no photographs; get {DATA_SET} and name its folder '
              f'with --hands or {HANDS_ENV}', flush=True)
    if not sets:
        return 1
    if args.calibration:
        return _calibration(args, sets, hands)
    sampling = Sampling(seconds=FULL_SECONDS) if args.full else Sampling()
    worlds = _replayed(args, sampling, sets, hands)
    found = cells.cells(worlds)
    meta = _meta(args, sampling, sets)
    if args.wall_clock:
        from .wallclock import compare
        meanwhile = StealTime()
        more, meta['wall_clock'] = compare(_setup(args, sampling, hands), args.split, sets)
        meanwhile.print_warning()
        found += more
    meta['run'] = _this_run(args, started, stolen)
    cells.write(args.out / 'results.json', found, meta)
    return _report(args.out, args.update)


def _this_run(args: argparse.Namespace, started: float, stolen: StealTime) -> dict[str, object]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return {'date': now.isoformat(timespec='seconds'),
            'took_s': round(time.monotonic() - started), 'machine': machine(),
            'jobs': args.jobs, 'cpu_s': _cpu_s(), 'cpu_stolen': stolen.fraction,
            'load': [round(v, 1) for v in os.getloadavg()]}


def _calibration(args: argparse.Namespace, sets: Sequence[str], hands: Path | None) -> int:
    """Replay rules of whom to believe; on test seeds by what was chosen on tuning seeds."""
    from .calibration import all_cells, replayed
    started, stolen = time.monotonic(), StealTime()
    chosen = None
    if args.split != 'tune':
        tuned = _calibration_file(args.out, 'tune')
        if not tuned.is_file():
            raise ValueError(f'{tuned} is missing: run spotvlm bench --calibration --split tune '
                             'first, which chooses thresholds and the best baseline of each set')
        chosen = _chosen(cells.read(tuned)[1])
    sampling = Sampling(seconds=args.seconds or FULL_SECONDS)
    split: Split = 'tune' if args.split == 'tune' else 'test-calibration'
    worlds = replayed(_setup(args, sampling, hands), args.jobs, {
        s: episodes(split, s, args.episodes or CALIBRATION_EPISODES, args.seed_base)
        for s in sets})
    found, chosen = all_cells(worlds, chosen)
    meta = _meta(args, sampling, sets) | {
        'extent': 'calibration', 'split': split, 'chosen': chosen,
        'seeds': {
            'base': first_seed(split, args.seed_base),
            'file': 'spotvlm_ros/bench/spotbench/seeds.py'},
        'run': _this_run(args, started, stolen)}
    cells.write(_calibration_file(args.out, args.split), found, meta)
    return _calibration_report(args)


def _chosen(meta: Mapping[str, object]) -> dict[str, str]:
    chosen = meta.get('chosen')
    return dict(chosen) if isinstance(chosen, Mapping) else {}


def _calibration_file(out: Path, split: str) -> Path:
    return out / f'calibration-{"tune" if split == "tune" else "test"}.json'


def _calibration_report(args: argparse.Namespace) -> int:
    from .calibration_report import MARKS, report
    from ...system.markdown import replace_between
    path = _calibration_file(args.out, args.split)
    found, meta = cells.read(path)
    page = report(cells.CellTable(found), meta, _chosen(meta), path.with_suffix('.png'))
    path.with_suffix('.md').write_text(page)
    if args.update is not None:
        replace_between(args.update, page, MARKS)
    print(f'wrote {path} and, beside it, its tables (.md) and plot (.png)')
    return 0


def _report(out: Path, document: Path | None) -> int:
    from .report import MARKS, report
    from ...system.markdown import replace_between
    found, meta = cells.read(out / 'results.json')
    report(found, meta, out)
    if document is not None:
        replace_between(document, (out / 'report.md').read_text(), MARKS)
    return 0


def _measure(args: argparse.Namespace) -> int:
    from .measure import measure_machine
    stolen = StealTime()
    found = measure_machine(checkpoint_path(args.edge), checkpoint_path(args.cloud))
    found.save()
    stolen.print_warning()
    for name, value in asdict(found).items():
        print(f'{name:20} {value}')
    print(f'wrote {FILE}')
    return 0


def hands_folder(named: Path | None) -> Path | None:
    """Return the folder of photographs, from --hands or SPOTVLM_HANDS; None without either."""
    if named is None and os.environ.get(HANDS_ENV):
        return Path(os.environ[HANDS_ENV])
    return named


def _setup(args: argparse.Namespace, sampling: Sampling, hands: Path | None) -> Setup:
    from .work import Setup
    cache = None if args.no_cache else args.out / 'cache'
    return Setup(checkpoint_path(args.edge), checkpoint_path(args.cloud), hands, cache, sampling,
                 Latencies.load(), args.guard_odds)


def _replayed(args: argparse.Namespace, sampling: Sampling, sets: Sequence[str],
              hands: Path | None) -> dict[str, list[Tally]]:
    """Return the counts of every episode, by set."""
    from .work import majority_values, other_context, replay
    count = args.episodes or (FULL_EPISODES if args.full else QUICK_EPISODES)
    all_episodes = [e for s in sets for e in episodes(args.split, s, count)]
    pool = _pool(args, _setup(args, sampling, hands))
    try:
        majority: dict[str, dict[str, str]] = {}
        with progress('majority classes of training seeds', len(sets)) as done:
            for i, values in pool.run([partial(majority_values, s) for s in sets]):
                majority[sets[i]] = values
                done()
        results: dict[int, Result] = {}
        calls = [partial(replay, e, scope_of(args.full, e), majority[e.set]) for e in all_episodes]
        with progress('episodes: all systems', len(all_episodes)) as done:
            for i, result in pool.run(calls):
                results[i] = result
                done()
        pairs = [partial(other_context, e, results[_partner(i, all_episodes)].contexts)
                 for i, e in enumerate(all_episodes)]
        with progress('episodes: context of another', len(all_episodes)) as done:
            for i, result in pool.run(pairs):
                _merge(results[i].tally, result.tally)
                done()
    finally:
        pool.close()
    return {s: [results[i].tally for i, e in enumerate(all_episodes) if e.set == s]
            for s in sets}


def _pool(args: argparse.Namespace, setup: Setup) -> WorkerPool | RayPool:
    """Return what runs episodes. Raise ValueError where there is no Ray."""
    from .work import WorkerPool
    if not args.ray:
        return WorkerPool(setup, args.jobs)
    from .on_ray import RayPool
    if find_spec('ray') is None:
        raise ValueError('--ray: Ray is not installed; pip install "ray[serve]"')
    kept = None if args.no_cache else args.out / 'cache' / 'ray'
    return RayPool(setup, args.ray, args.jobs, kept)


def scope_of(full: bool, episode: Episode) -> RunScope:
    """Return what is run on an episode."""
    if full:
        return RunScope(tuple(TRACES), ablation_delays=(HEADLINE, 'fixed 4 s', 'fixed 9 s'))
    ablated = episode.number < QUICK_ABLATED
    return RunScope(tuple(d for d in QUICK if ablated or d != 'fixed 0.5 s'), ablations=ablated)


def _partner(place: int, all_episodes: Sequence[Episode]) -> int:
    """Return the place of the next episode of the same set."""
    own = [i for i, e in enumerate(all_episodes) if e.set == all_episodes[place].set]
    return own[(own.index(place) + 1) % len(own)]


def _merge(into: Tally, more: Tally) -> None:
    for block in more.hits:
        for name, tries in more.tries[block].items():
            into.add(block, name, more.hits[block][name], tries)


def _meta(args: argparse.Namespace, sampling: Sampling, sets: Sequence[str]) -> dict[str, object]:
    from .cache import code_hash, model_hash
    edge, cloud = checkpoint_path(args.edge), checkpoint_path(args.cloud)
    return {
        'version': __version__, 'commit': commit(), 'clock': 'replay',
        'extent': 'full' if args.full else 'quick', 'split': args.split, 'sets': list(sets),
        'seeds': {'base': BASE[args.split], 'file': 'spotvlm_ros/bench/spotbench/seeds.py'},
        'models': {'edge': {'name': edge.name, 'hash': model_hash(edge)},
                   'cloud': {'name': cloud.name, 'hash': model_hash(cloud)}},
        'code': code_hash(), 'guard_odds': args.guard_odds, 'plan': asdict(sampling),
        'latencies_charged': asdict(Latencies.load()),
        'delays': {t.name: t.text for t in TRACES.values()},
        'synthetic': 'worlds and delays are synthetic; hands in hri real hands are photographs'}


def _cpu_s() -> int:
    """Return the time that this process and its ended children have computed for [s]."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(sum(u.ru_utime + u.ru_stime for u in used))


def commit() -> str:
    """Return the commit of a checkout, with + when something is not committed."""
    where = Path(__file__).resolve().parent
    try:
        found = [subprocess.run(['git', '-C', str(where), *command], capture_output=True,
                                text=True, timeout=10) for command in (
            ('rev-parse', '--short', 'HEAD'), ('status', '--porcelain', '-uno'))]
    except (OSError, subprocess.TimeoutExpired):
        return 'unknown'
    if found[0].returncode:
        return 'unknown'
    return found[0].stdout.strip() + '+' * bool(found[1].stdout.strip())
