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
How many robots one server carries: bridges of simulated robots against it, more and more.

Each robot offers camera frames of its own miniature drive and asks the queries of a profile, as
node cloud does. A server carries as many as get the answers that they want, young enough, without
errors; a request that is refused because the server is busy is no error. ``--against`` starts
servers on this machine and has the robots ask one after the other for each number of robots, so
that all meet the same neighbours.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache, partial
import json
from pathlib import Path
import statistics
import sys
import threading
import time

import numpy as np

from .servers import Options, Server, SERVERS, start
from ...cloud.bridge import CloudBridge
from ...cloud.bridge_statistics import percentile
from ...cloud.client import cloud_server, CloudServer
from ...cloud.keyframe_encoder import EncodedKeyframe, KeyframeEncoder
from ...cloud.parse import CloudAnswer
from ...config.nodes import RequestConfig, ServerConfig
from ...config.profiles import load_profile
from ...method.facts import Query
from ...mini.shipped import checkpoint_path
from ...mini.worlds import make_world, TUNE_SEEDS
from ...system.machine import machine

CAMERA_HZ = 10.0
DISTINCT = 24  # frames per robot, then again from the first
DRIVES = 16    # robots beyond these see what the first ones see
MOST_ERRORS = 0.01
WANTED = 0.95  # share of the answers that robots want
BUSY = ('http_429', 'http_503')  # what a server says that sheds load
HEADING = ('server        robots  answers/s  wanted   round trip p50, p95   context age p50, p95'
           '   errors  refused')


@dataclass(frozen=True)
class Fleet:
    """What all robots have in common."""

    server: CloudServer
    queries: Sequence[Query]
    in_flight: int = 2      # requests under way, per robot
    world: str = 'driving'
    fallbacks: Sequence[CloudServer] = ()

    @property
    def wanted_per_s(self) -> float:
        """Return how many answers a robot wants each second."""
        return sum(1.0 / q.cloud_period_s for q in self.queries if q.cloud_period_s > 0)


@dataclass(frozen=True)
class Service:
    """What some robots get of a server."""

    server: str
    robots: int
    answers_per_s: float
    answers_per_s_per_robot: float
    wanted: float             # share of the answers that they want
    round_trip_p50_s: float
    round_trip_p95_s: float
    context_age_p50_s: float  # of the newest answer to the first query
    context_age_p95_s: float
    errors: float             # share of the requests
    refused: float            # share that the server was too busy for, beside those

    def __str__(self) -> str:
        """Return a line below HEADING."""
        return (f'{self.server:12}  {self.robots:6}  {self.answers_per_s:9.2f}  {self.wanted:6.1%}'
                f'   {self.round_trip_p50_s:6.2f} s {self.round_trip_p95_s:6.2f} s'
                f'   {self.context_age_p50_s:9.2f} s {self.context_age_p95_s:6.2f} s'
                f'   {self.errors:6.1%}  {self.refused:7.1%}')


class SimulatedRobot:
    """A camera and a bridge."""

    def __init__(self, number: int, fleet: Fleet) -> None:
        """Begin to ask."""
        self._keyframes = _keyframes(fleet.world, number % DRIVES)
        self._main = fleet.queries[0].id
        self.answers: list[CloudAnswer] = []
        self.ages_s: list[float] = []
        self.offers_s: list[float] = []  # how long the camera was held up
        self._began = time.monotonic_ns()
        self.bridge = CloudBridge(
            [fleet.server, *fleet.fallbacks], fleet.queries, self.answers.append,
            RequestConfig(max_in_flight=fleet.in_flight))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._drive, name=f'robot-{number}', daemon=True)
        self._thread.start()

    def measure(self) -> None:
        """Forget what was measured so far."""
        self.answers.clear()
        self.ages_s.clear()
        self.bridge.stats.errors = self.bridge.stats.requests = 0
        self.bridge.stats.errors_by.clear()
        self._began = time.monotonic_ns()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()
        self.bridge.stop()

    def _drive(self) -> None:
        """Offer frames, and note how old the newest answer to the first query is."""
        sent, newest, stamp = 0, self._began, time.monotonic_ns()
        while not self._ended.wait(max(0.0, (stamp - time.monotonic_ns()) / 1e9)):
            now, keyframe = time.monotonic_ns(), self._keyframes[sent % DISTINCT]
            # As a camera's, stamps do not jitter: a query is due at the frame a period later.
            self.bridge.offer(stamp, lambda keyframe=keyframe: keyframe)  # type: ignore[misc]
            stamp += round(1e9 / CAMERA_HZ)
            self.offers_s.append((time.monotonic_ns() - now) / 1e9)
            sent += 1
            newest = max([newest, *(a.stamp_ns for a in self.answers[-4:]
                                    if a.query_id == self._main)])
            self.ages_s.append((now - newest) / 1e9)


@cache
def _keyframes(name: str, number: int) -> list[EncodedKeyframe]:
    """Return what the camera of a robot sees."""
    world, encoder = make_world(name, TUNE_SEEDS.start + number), KeyframeEncoder()
    return [encoder.encode(None, partial(np.asarray, world.frame(5 * i)))
            for i in range(DISTINCT)]


def carry(count: int, fleet: Fleet, seconds: float, name: str = '', warm_up_s: float = 3.0
          ) -> Service:
    """Return what ``count`` robots get of their server."""
    robots = [SimulatedRobot(number, fleet) for number in range(count)]
    try:
        time.sleep(warm_up_s)
        for robot in robots:
            robot.measure()
        time.sleep(seconds)
        trips = [a.round_trip_s for r in robots for a in list(r.answers)]
        ages = [age for r in robots for age in list(r.ages_s)]
        stats = [r.bridge.stats for r in robots]
        requests = max(1, sum(s.requests for s in stats))
        errors = sum(s.errors for s in stats)
        refused = sum(s.errors_by[kind] for s in stats for kind in BUSY)
    finally:
        for robot in robots:
            robot.stop()
    return Service(
        name, count, answers_per_s=round(len(trips) / seconds, 2),
        answers_per_s_per_robot=round(len(trips) / seconds / count, 2),
        wanted=round(len(trips) / seconds / count / fleet.wanted_per_s, 3),
        round_trip_p50_s=round(percentile(trips, 0.5), 3),
        round_trip_p95_s=round(percentile(trips, 0.95), 3),
        context_age_p50_s=round(percentile(ages, 0.5), 2),
        context_age_p95_s=round(percentile(ages, 0.95), 2),
        errors=round((errors - refused) / requests, 3), refused=round(refused / requests, 3))


def carried(services: Sequence[Service], age_s: float) -> dict[str, int]:
    """Return how many robots each server carries, by the medians of its rounds."""
    most: dict[str, int] = {s.server: 0 for s in services}
    for name, robots in sorted({(s.server, s.robots) for s in services}):
        rounds = [s for s in services if (s.server, s.robots) == (name, robots)]
        age, wanted, errors = (statistics.median(getattr(s, field) for s in rounds) for field in (
            'context_age_p95_s', 'wanted', 'errors'))
        if age <= age_s and wanted >= WANTED and errors <= MOST_ERRORS:
            most[name] = robots
    return most


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm perf robots', description=__doc__,
                                     epilog='example: spotvlm perf robots --robots 1 --seconds 9',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--robots', type=int, nargs='+', default=[1, 2, 3, 4, 6, 8])
    parser.add_argument('--profile', default='driving',
                        help='whose queries are asked about whose world')
    parser.add_argument('--seconds', type=float, default=20.0, help='per number of robots')
    parser.add_argument('--rounds', type=int, default=1, help='times that all is measured')
    parser.add_argument('--age', type=float, default=3.0,
                        help='95 %% of the time the newest answer must be younger than this [s]')
    parser.add_argument('--in-flight', type=int, default=2, help='requests under way per robot')
    parser.add_argument('--url', default='', help='server to measure; key in SPOTVLM_API_KEY')
    parser.add_argument('--model', default='', help='name of the model there')
    parser.add_argument('--against', nargs='+', choices=SERVERS, default=['batching'],
                        help='without --url: servers to start here')
    parser.add_argument('--threads', type=int, default=1, help='of each of them')
    parser.add_argument('--max-batch', type=int, default=8, help='requests computed at once')
    parser.add_argument('--out', default='', metavar='FILE', help='write the figures there')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; return 0."""
    arguments = command_parser().parse_args(argv)
    profile = load_profile(arguments.profile)
    queries, world = profile.queries('cloud'), profile.camera.world
    started: Mapping[str, Server] = {}
    with ExitStack() as stack:
        if arguments.url:
            asked = {arguments.url: cloud_server(ServerConfig(base_url=arguments.url,
                                                              model=arguments.model))}
        else:
            started = start(arguments.against, Options(
                checkpoint_path('spot-mini-cloud'), arguments.threads, arguments.max_batch), stack)
            asked = {name: server.to_ask() for name, server in started.items()}
        services = []
        print(HEADING)
        for _ in range(arguments.rounds):
            for count in arguments.robots:
                for name, server in asked.items():
                    fleet = Fleet(server, queries, arguments.in_flight, world)
                    services.append(carry(count, fleet, arguments.seconds, name))
                    print(services[-1], flush=True)
        processes = {name: {'start_s': round(s.start_s, 2), 'memory_mb': round(s.memory_mb, 1)}
                     for name, s in started.items()}
    most = carried(services, arguments.age)
    for name, robots in most.items():
        print(f'{name} carries {robots}'
              + ''.join(f', {key} {value}' for key, value in processes.get(name, {}).items()))
    print(f'(newest answer younger than {arguments.age:g} s 95 % of the time, {WANTED:.0%} of the '
          f'wanted answers, errors at most {MOST_ERRORS:.0%})')
    if arguments.out:
        report = {'machine': machine(), 'url': arguments.url or 'started here', 'carried': most,
                  'servers': processes, 'rows': [asdict(s) for s in services]}
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
