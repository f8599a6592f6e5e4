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
Overhead, latency and speed against named baselines in the same run (`spotvlm perf`).

Each row of out/perf/results.json is `{name, value, unit, baseline, ratio, machine}`. What cannot
be measured on this machine is left out with the reason in `meta.failed`. `spotvlm perf NAME` runs
one of the longer programs instead, see PROGRAMS.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
import datetime
import importlib
import json
from pathlib import Path
import threading
import time
import traceback

import numpy as np

from .result import PerfResult, print_results
from ...system.machine import machine, StealTime
from ...system.markdown import replace_between, table
from ...system.progress import working
from ...system.signals import StopSignal

OVERHEAD_S = 15.0   # length of a run that overhead is measured in
CAMERA_HZ = 12.0    # of that run
SEED = 1_000_004    # a tuning drive
MEASURES = ('overhead', 'calibration', 'focus', 'edge', 'cameras', 'wire', 'outage', 'soak')
# Programs of their own, which parse their own arguments: module and what it does.
PROGRAMS = {
    'edge': ('spotvlm_ros.bench.perf.edge_cpu',
             "the engine against transformers' generate, on a CPU or with --gpu"),
    'remote-edge': ('spotvlm_ros.bench.perf.remote_edge',
                    'the edge model in this process against a server on localhost'),
    'bridge': ('spotvlm_ros.bench.perf.bridge', 'what the cloud side costs, and --soak MIN'),
    'executors': ('spotvlm_ros.bench.perf.executors', 'executors of rclpy, and which hang'),
    'faults': ('spotvlm_ros.bench.perf.faults', 'the running graph under attack, and a soak'),
    'robots': ('spotvlm_ros.bench.faults.robots', 'how many robots one server carries'),
    'ray-kills': ('spotvlm_ros.bench.faults.ray_kills', 'parts of Ray Serve killed under robots'),
    'fleet': ('spotvlm_ros.bench.fleet.main', 'fleets of robots and regions, in simulated time'),
    'chaos-server': ('spotvlm_ros.bench.faults.chaos', 'a server with faults on demand'),
}
MARKS = ('<!-- figures: made by `spotvlm perf --update docs/performance.md` -->',
         '<!-- end of figures -->')


def overhead(stop: StopSignal) -> list[PerfResult]:
    """Measure what the graph adds to the model's own time, in one process and in four."""
    from ...nodes.runner import run, RunConfig

    rows = []
    for name, several in (('composed', False), ('multiprocess', True)):
        with Memory() as memory:
            code, summary = run(RunConfig(
                'driving', duration_s=OVERHEAD_S, quiet=True, log_level='warn',
                multi_process=several, overrides={
                    'camera': {'source': 'mini', 'seed': SEED, 'rate_hz': CAMERA_HZ},
                    'cloud': {'emulated_delay_median_s': 1.5}}), stop)
        if code or stop():
            raise RuntimeError(f'the {name} graph ended early; the lines above say why')
        spent, total = summary['overhead_ms'], summary['stamp_to_answer_ms']
        waited = summary['frame_age_at_start_ms']['p95']
        rows += [
            PerfResult(f'overhead_{name}_p95_ms', spent['p95'], 'ms',
                       f'stamp to answer, p95 {total["p95"]} ms', spent['p95'] / total['p95'],
                       machine()),
            PerfResult(f'frame_age_at_start_{name}_p95_ms', waited, 'ms',
                       f'camera period, {1e3 / CAMERA_HZ:.1f} ms', 1e-3 * waited * CAMERA_HZ,
                       machine()),
            PerfResult(f'memory_{name}_mb', memory.most / 1e6, 'MB resident, all node processes',
                       '', None, machine())]
    return rows


class Memory:
    """Watches what the node processes that this one starts hold at most [bytes]."""

    def __enter__(self) -> Memory:
        """Begin."""
        self.most, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        import psutil
        while not self._stop.wait(1.0):
            total = 0
            for child in psutil.Process().children():
                with suppress(psutil.Error):
                    total += child.memory_info().rss if 'node' in child.cmdline() else 0
            self.most = max(self.most, total)


def focus() -> list[PerfResult]:
    """Measure what carrying six regions costs a frame, and how well they fit after 2 s."""
    import cv2

    from . import ego
    from ...method.facts import NS, Region
    from ...method.flow import RegionTracker
    from ...mini.worlds import make_world, TUNE_SEEDS

    cv2.setNumThreads(1)
    spent, carried, stayed = [], [], []
    for number in range(12):
        world = make_world('driving', TUNE_SEEDS[number], 'day')
        first = 400 + 100 * number
        before = {f.key: f.region for f in world.facts(first, 0) if f.region is not None}
        more = {f'more {k}': Region(80 + 90 * k, 180 + 20 * k, 60, 50)
                for k in range(6 - len(before))}
        tracker: RegionTracker[str] = RegionTracker()
        for n in range(21):
            frame, begin = world.frame(first + 2 * n), time.thread_time()
            tracker.add((n + 1) * NS // 10, frame)
            if n:
                spent.append(1e3 * (time.thread_time() - begin))
            else:
                tracker.start(before | more, NS // 10)
        regions, truth = tracker.regions(), world.follow(first, first + 40)
        for key in set(truth) & set(before):
            carried.append(regions[key].iou(truth[key]) if key in regions else 0.0)
            stayed.append(before[key].iou(truth[key]))
    here = machine(1)
    iou, still = float(np.mean(carried)), float(np.mean(stayed))
    return [PerfResult('focus_step_ms', float(np.median(spent)), 'ms of CPU time', '', None, here),
            PerfResult('focus_iou_2s', iou, 'IoU, lost regions count as 0', 'regions that stay',
                       iou / still, here),
            PerfResult('focus_iou_gain', iou - still, 'IoU', 'regions that stay', None, here),
            *ego.rows()]


def measure(name: str, stop: StopSignal) -> list[PerfResult]:
    """Measure one of MEASURES; imports what that needs, ROS for some."""
    if name == 'overhead':
        return overhead(stop)
    if name == 'calibration':
        from . import calibrating
        return calibrating.rows()
    if name == 'focus':
        return focus()
    if name == 'edge':
        from .edge_cpu import cpu_rows
        return cpu_rows(1)
    if name == 'cameras':
        from . import cameras
        return cameras.rows()
    from . import bridge
    if name == 'wire':
        return bridge.wire()
    if name == 'outage':
        return bridge.outage()
    return [bridge.soak(1.0, 20.0).result]


def _page(rows: Sequence[PerfResult], stolen: Mapping[str, float]) -> str:
    """Return the rows as they stand in docs/performance.md; ``stolen``: see `StealTime`."""
    lines = [[f'`{r.name}`', f'{r.value:.4g}', r.unit, '' if r.ratio is None else f'{r.ratio:.3g}',
              r.baseline] for r in rows]
    places = '; '.join(sorted({r.machine for r in rows}))
    today = datetime.date.today().isoformat()
    most = max(stolen.values(), default=0.0)
    return (f'{today}, {places}; the host took at most {most:.0%} of the CPU time.\n\n'
            + table(('name', 'value', 'unit', 'ratio', 'baseline'), lines))


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line without NAME."""
    programs = '\n'.join(f'  {name:<14}{text}' for name, (_, text) in PROGRAMS.items())
    parser = argparse.ArgumentParser(
        prog='spotvlm perf', usage='spotvlm perf [options] | spotvlm perf NAME [its options]',
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'NAME, each with a --help of its own:\n{programs}\n\n'
        'example: spotvlm perf --only focus edge')
    parser.add_argument('--only', nargs='+', choices=MEASURES, default=list(MEASURES))
    parser.add_argument('--out', type=Path, default=Path('out/perf'), help='folder to write')
    parser.add_argument('--update', type=Path, metavar='FILE',
                        help='put the table into this Markdown file, between its marks')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write results.json; or run one of PROGRAMS."""
    argv = list(argv or [])
    if argv and argv[0] in PROGRAMS:
        return int(importlib.import_module(PROGRAMS[argv[0]][0]).main(argv[1:]))
    stop = StopSignal()
    args = command_parser().parse_args(argv)
    rows: list[PerfResult] = []
    failed: dict[str, str] = {}
    stolen: dict[str, float] = {}
    for name in args.only:
        with working(f'measuring {name}'):
            meanwhile = StealTime()
            try:
                rows += measure(name, stop)
            except Exception as error:
                traceback.print_exc()
                failed[name] = f'{type(error).__name__}: {error}'
        stolen[name] = meanwhile.fraction
        meanwhile.print_warning(name)
        if stop():
            break
    print_results(rows)
    if args.update is not None:
        replace_between(args.update, _page(rows, stolen), MARKS)
    for name, why in failed.items():
        print(f'{name} was not measured: {why}')
    args.out.mkdir(parents=True, exist_ok=True)
    meta = {'machine': machine(), 'failed': failed, 'measured': args.only, 'cpu_stolen': stolen}
    (args.out / 'results.json').write_text(
        json.dumps({'results': [asdict(r) for r in rows], 'meta': meta}, indent=2) + '\n')
    print(f'wrote {args.out}/results.json')
    return 1 if failed else 0
