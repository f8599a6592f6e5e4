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
Ray Serve under simulated robots, while parts of it are killed (`spotvlm perf ray-kills`).

A replica, the HTTP proxy, and all of it: then the robots' second server, one process without Ray,
has to do. Each request has to end in an answer or a counted error, no camera may be held up, and
context has to be back within 5 s.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
import json
import os
from pathlib import Path
import signal
import sys
import time

import psutil

from .robots import Fleet, SimulatedRobot
from .servers import Options, Server, start
from ...cloud.bridge_statistics import percentile
from ...config.profiles import load_profile
from ...mini.shipped import checkpoint_path
from ...system.machine import machine

FIRST_S = 60.0  # longest wait for the first answer to each robot
VICTIMS = {'replica': 'ray::ServeReplica', 'proxy': 'ray::ProxyActor', 'everything': ''}
HEADING = 'killed      context back   answers  errors  unaccounted   camera held up, p99'


@dataclass(frozen=True)
class Kill:
    """What a kill did to the robots."""

    victim: str
    back_s: float        # until all robots have an answer about a frame after the kill
    answers: int
    errors: int
    unaccounted: int     # requests that ended in neither
    held_up_p99_s: float

    def __str__(self) -> str:
        """Return a line below HEADING."""
        return (f'{self.victim:10}  {self.back_s:10.2f} s  {self.answers:8}  {self.errors:6}  '
                f'{self.unaccounted:11}  {1e3 * self.held_up_p99_s:17.1f} ms')


def processes(server: Server, title: str) -> Iterator[psutil.Process]:
    """Yield the processes of a server whose command begins with a title; '' for all."""
    root = psutil.Process(server.child.process.pid)
    for process in [*root.children(recursive=True), root]:
        try:
            if (process.cmdline() or [''])[0].startswith(title):
                yield process
        except psutil.Error:
            continue


def kill(victim: str, server: Server, robots: Sequence[SimulatedRobot], seconds: float) -> Kill:
    """Kill a part of a server, and watch the robots for a while."""
    errors = -sum(r.bridge.stats.errors for r in robots)
    for robot in robots:
        robot.answers.clear()
        robot.offers_s.clear()
    found = list(processes(server, VICTIMS[victim]))
    if not found:
        raise RuntimeError(f'no process of Ray is called {VICTIMS[victim]}')
    for process in found[:1] if VICTIMS[victim] else found:
        os.kill(process.pid, signal.SIGKILL)
    killed_ns, began = time.monotonic_ns(), time.monotonic()
    back_s = float('inf')
    while time.monotonic() - began < seconds:
        if back_s == float('inf') and all(
                any(a.stamp_ns > killed_ns for a in list(r.answers)) for r in robots):
            back_s = time.monotonic() - began
        time.sleep(0.02)
    errors += sum(r.bridge.stats.errors for r in robots)
    reports = [robot.bridge.report() for robot in robots]  # of all that was ever asked
    unaccounted = sum(max(0, int(r['requests']) - sum(int(r[name]) for name in (
        'answers', 'errors', 'superseded', 'in_flight'))) for r in reports)
    return Kill(victim, round(back_s, 2), sum(len(r.answers) for r in robots), errors,
                unaccounted, percentile([s for r in robots for s in r.offers_s], 0.99))


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm perf ray-kills', description=__doc__,
                                     epilog='example: spotvlm perf ray-kills --seconds 10',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--robots', type=int, default=2)
    parser.add_argument('--replicas', type=int, default=2)
    parser.add_argument('--seconds', type=float, default=20.0, help='after each kill')
    parser.add_argument('--victims', nargs='+', choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument('--out', type=Path, metavar='FILE', help='write the figures there')
    return parser


def _wait_for_answers(robots: Sequence[SimulatedRobot]) -> None:
    """Wait until each robot has been answered once; raise RuntimeError where one is not."""
    until = time.monotonic() + FIRST_S
    while not all(robot.answers for robot in robots):
        if time.monotonic() > until:
            raise RuntimeError(f'a robot had no answer within {FIRST_S:g} s, before any kill')
        time.sleep(0.05)


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, print a table; return 0 where context was back in time and all is accounted for."""
    arguments = command_parser().parse_args(argv)
    profile = load_profile('driving')
    with ExitStack() as stack:
        options = Options(checkpoint_path('spot-mini-cloud'), replicas=arguments.replicas)
        servers = start(('ray', 'batching'), options, stack)
        second = servers['batching'].to_ask()
        fleet = Fleet(servers['ray'].to_ask(), profile.queries('cloud'),
                      fallbacks=[replace(second, name='second')])
        robots = [SimulatedRobot(number, fleet) for number in range(arguments.robots)]
        for robot in robots:
            stack.callback(robot.stop)
        _wait_for_answers(robots)
        print(HEADING)
        kills = []
        for victim in arguments.victims:
            kills.append(kill(victim, servers['ray'], robots, arguments.seconds))
            print(kills[-1], flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({
            'machine': machine(), 'kills': [asdict(k) for k in kills]}, indent=2) + '\n')
    return int(any(k.back_s > 5.0 or k.unaccounted for k in kills))


if __name__ == '__main__':
    sys.exit(main())
