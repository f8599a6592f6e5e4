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
The whole graph under every fault of the chaos server, or on a real network that fails.

``spotvlm perf faults`` meets each fault in turn; ``--network`` puts robot and cloud into two
network namespaces, slows the link between them, kills and restarts the server and takes the link
down for 30 s. Reported for each trouble: the edge's answers per second against those without it,
and how soon context is back after the first good reply.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
import json
import os
from pathlib import Path
import statistics
import sys
import time

import psutil

from . import network
from .chaos_faults import FAULTS
from .relay import Link
from .rig import ChaosProcess, LoadEdge, RobotGraph
from ...nodes.edge import load_edge_model
from ...system.machine import cpu_time

CLEAN_S = 5.0
BACK_S = 60.0  # longest wait for the first good reply
SETTLE_S = 0.5
BUSY = 0.25    # cores; with more than this taken by others a rate tells nothing


@dataclass(frozen=True)
class Trouble:
    """What a fault did."""

    name: str
    clean_hz: float        # of the edge, before and after
    hz: float              # of the edge, meanwhile
    good_reply_s: float    # end of the trouble to the first good reply
    context_s: float       # from that reply to the first edge answer with context
    errors: dict[str, int]
    others: float          # cores that other processes or the host took, at most

    @property
    def ratio(self) -> float:
        """Return the edge's rate under the trouble over that without."""
        return self.hz / self.clean_hz


def meet(robot: RobotGraph, name: str, seconds: float, begin: Callable[[], object],
         end: Callable[[], object], clean_s: float = CLEAN_S) -> Trouble:
    """Bring a trouble about and end it; return what came of it."""
    others = OtherLoad()
    robot.wait(lambda: robot.since('edge', time.monotonic() - 0.5), BACK_S)
    before = robot.watch(clean_s)
    others.look()
    counted = dict(robot.bridge.stats.errors_by)
    begin()
    time.sleep(SETTLE_S)
    rate = robot.watch(seconds)
    others.look()
    errors = {k: n - counted.get(k, 0) for k, n in dict(robot.bridge.stats.errors_by).items()
              if n > counted.get(k, 0)}
    end()
    ended = time.monotonic()
    good = robot.wait(lambda: robot.since('cloud', ended), BACK_S)
    context = robot.wait(lambda: robot.since('edge', good), BACK_S)
    time.sleep(SETTLE_S)
    after = robot.watch(clean_s)
    others.look()
    return Trouble(name, statistics.mean((before, after)), rate, good - ended, context - good,
                   errors, round(others.most, 2))


class OtherLoad:
    """How much of the machine is taken by processes that are not ours, or by its host (steal)."""

    def __init__(self) -> None:
        """Begin to watch."""
        self.most = 0.0
        self._then = self._now()

    def look(self) -> None:
        """Note the cores taken since the last look."""
        now = self._now()
        took = [b - a for a, b in zip(self._then, now)]
        self.most = max(self.most, (took[1] - took[2]) / max(0.1, took[0]))
        self._then = now

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Return the time, and the CPU time that is taken by anybody and by us [s]."""
        total, idle, _ = cpu_time()
        ours = psutil.Process()
        times = [p.cpu_times() for p in (ours, *ours.children(recursive=True))]
        return time.monotonic(), total - idle, sum(t.user + t.system for t in times)


def show(trouble: Trouble) -> None:
    """Print a line."""
    errors = ', '.join(f'{n} {kind}' for kind, n in trouble.errors.items()) or 'no errors'
    print(f'{trouble.name:22} edge {trouble.hz:5.2f} of {trouble.clean_hz:5.2f} Hz '
          f'({trouble.ratio:6.1%})  good reply after {trouble.good_reply_s:5.2f} s, context '
          f'{trouble.context_s:4.2f} s later  {errors}; others took {trouble.others:.1f} cores',
          flush=True)


def undisturbed(once: Callable[[], Trouble], times: int) -> Trouble:
    """Meet a trouble, again while others took the machine; return the least disturbed."""
    met: list[Trouble] = []
    while len(met) < times and (not met or met[-1].others > BUSY):
        met.append(once())
        show(met[-1])
    return min(met, key=lambda t: t.others)


def all_faults(names: Sequence[str], seconds: float, clean_s: float, times: int = 1,
               load_edge: LoadEdge = load_edge_model) -> list[Trouble]:
    """Meet faults of the server, one after another, and an outage."""
    troubles = []
    with ChaosProcess(pause_s=0.3) as server, \
            RobotGraph(server.url, {'deadline_s': 5.0}, load_edge) as robot:
        robot.wait(lambda: robot.since('edge', 0.0), BACK_S)
        for name in names:
            troubles.append(undisturbed(lambda: meet(
                robot, name, seconds, lambda: server.set(name), lambda: server.set('none'),
                clean_s), times))
    return troubles


def real_network(outage_s: float, seconds: float, clean_s: float,
                 times: int = 1) -> list[Trouble]:
    """Meet a killed server and a lost link; this process must be in a namespace of its own."""
    link = Link(delay_s=0.04, jitter_s=0.01, bytes_per_s=20e6 / 8)
    troubles = []
    with network.TwoHosts(link) as hosts, \
            RobotGraph(hosts.url, {'deadline_s': 5.0}) as robot:
        shaped = 'tc netem' if hosts.netem else 'relay'
        print(f'link: 40 ms and 10 ms of jitter each way, 20 Mbit/s ({shaped})', flush=True)
        robot.wait(lambda: robot.since('edge', 0.0), BACK_S)
        for name, length, begin, end in (
                ('server killed', seconds, hosts.kill_server, hosts.start_server),
                ('link down', outage_s, lambda: hosts.connect(False),
                 lambda: hosts.connect(True))):
            troubles.append(undisturbed(
                lambda: meet(robot, name, length, begin, end, clean_s), times))
    return troubles


def main(argv: Sequence[str] | None = None) -> int:
    """Run; return 1 when an edge was slowed by more than 5 % or context came back late."""
    parser = argparse.ArgumentParser(prog='spotvlm perf faults', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', action='store_true', help='two namespaces and a real link')
    parser.add_argument('--faults', nargs='*', default=[f for f in FAULTS if f != 'none'],
                        metavar='NAME', help='only these')
    parser.add_argument('--seconds', type=float, default=9.0, help='length of a fault')
    parser.add_argument('--clean', type=float, default=CLEAN_S, help='time without, before and '
                        'after, each [s]')
    parser.add_argument('--outage', type=float, default=30.0, help='time without a link [s]')
    parser.add_argument('--tolerance', type=float, default=0.05, help='of the edge rate')
    parser.add_argument('--times', type=int, default=2, help='meet a trouble at most so often '
                        'while other processes take the machine')
    parser.add_argument('--out', default='', metavar='FILE', help='write the figures there')
    arguments = parser.parse_args(argv)
    if arguments.network and os.environ.get('SPOTVLM_ISOLATED') != '1':
        return _isolate(list(sys.argv[1:] if argv is None else argv))
    how = (arguments.seconds, arguments.clean, arguments.times)
    if arguments.network:
        troubles = real_network(arguments.outage, *how)
    else:
        troubles = all_faults(arguments.faults, *how)
    if arguments.out:
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(json.dumps(
            [asdict(t) | {'ratio': t.ratio} for t in troubles], indent=2) + '\n', encoding='utf-8')
    slow = [t.name for t in troubles if t.ratio < 1 - arguments.tolerance]
    late = [t.name for t in troubles if t.context_s > 2.0]
    ratios = [t.ratio for t in troubles]
    print(f'{len(troubles)} troubles: edge rate median {statistics.median(ratios):.1%}, least '
          f'{min(ratios):.1%} of that without; context back within '
          f'{max(t.context_s for t in troubles):.2f} s of the first good reply')
    for what, names in (('slowed the edge', slow), ('context late', late)):
        if names:
            print(f'{what}: {", ".join(names)}')
    return 1 if slow or late else 0


def _isolate(argv: Sequence[str]) -> int:
    why = network.why_not()
    if why:
        print(f'skipped: {why}')
        return 0
    command = [sys.executable, '-P', '-m', 'spotvlm_ros.bench.faults.bridge', *argv]
    return network.isolated(command, {**os.environ, 'SPOTVLM_ISOLATED': '1'})


if __name__ == '__main__':
    sys.exit(main())
