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
node cloud does. A server carries as many as get context that is young enough and few errors.
Without ``--url`` the embedded server is measured, on the same machine as the robots.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
import json
from pathlib import Path
import sys
import threading
import time

import numpy as np

from ...cloud.bridge import CloudBridge
from ...cloud.bridge_statistics import percentile
from ...cloud.client import cloud_server, CloudServer
from ...cloud.keyframe_encoder import KeyframeEncoder
from ...cloud.parse import CloudAnswer
from ...cloud.server import EmbeddedServer
from ...config.nodes import RequestConfig, ServerConfig
from ...config.profiles import load_profile
from ...method.facts import Query
from ...mini.shipped import checkpoint_path
from ...mini.worlds import make_world, TUNE_SEEDS
from ...system.machine import machine

CAMERA_HZ = 10.0
DISTINCT = 24  # frames per robot, then again from the first
MOST_ERRORS = 0.01
HEADING = 'robots  answers/s  each   round trip p50, p95   context age p50, p95   errors'


@dataclass(frozen=True)
class Fleet:
    """What all robots have in common."""

    server: CloudServer
    queries: Sequence[Query]
    in_flight: int = 2      # requests under way, per robot
    world: str = 'driving'


@dataclass(frozen=True)
class Service:
    """What some robots get of a server."""

    robots: int
    answers_per_s: float
    answers_per_s_per_robot: float
    round_trip_p50_s: float
    round_trip_p95_s: float
    context_age_p50_s: float  # of the newest answer to the first query
    context_age_p95_s: float
    errors: float             # share of the requests

    def __str__(self) -> str:
        """Return a line below HEADING."""
        return (f'{self.robots:6}  {self.answers_per_s:9.2f}  {self.answers_per_s_per_robot:4.2f}'
                f'   {self.round_trip_p50_s:6.2f} s {self.round_trip_p95_s:6.2f} s'
                f'   {self.context_age_p50_s:9.2f} s {self.context_age_p95_s:6.2f} s'
                f'   {self.errors:6.1%}')


class SimulatedRobot:
    """A camera and a bridge."""

    def __init__(self, number: int, fleet: Fleet) -> None:
        """Begin to ask."""
        world = make_world(fleet.world, TUNE_SEEDS.start + number)
        frames = [world.frame(5 * i) for i in range(DISTINCT)]
        encoder = KeyframeEncoder()
        self._keyframes = [encoder.encode(None, partial(np.asarray, f)) for f in frames]
        self._main = fleet.queries[0].id
        self.answers: list[CloudAnswer] = []
        self.ages_s: list[float] = []
        self._began = time.monotonic_ns()
        self.bridge = CloudBridge([fleet.server], fleet.queries, self.answers.append,
                                  RequestConfig(max_in_flight=fleet.in_flight))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._drive, name=f'robot-{number}', daemon=True)
        self._thread.start()

    def measure(self) -> None:
        """Forget what was measured so far."""
        self.answers.clear()
        self.ages_s.clear()
        self.bridge.stats.errors = self.bridge.stats.requests = 0
        self._began = time.monotonic_ns()

    def stop(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()
        self.bridge.stop()

    def _drive(self) -> None:
        """Offer frames, and note how old the newest answer to the first query is."""
        sent, newest = 0, self._began
        while not self._ended.wait(1.0 / CAMERA_HZ):
            now, keyframe = time.monotonic_ns(), self._keyframes[sent % DISTINCT]
            self.bridge.offer(now, lambda keyframe=keyframe: keyframe)  # type: ignore[misc]
            sent += 1
            newest = max([newest, *(a.stamp_ns for a in self.answers[-4:]
                                    if a.query_id == self._main)])
            self.ages_s.append((now - newest) / 1e9)


def carry(count: int, fleet: Fleet, seconds: float, warm_up_s: float = 3.0) -> Service:
    """Return what ``count`` robots get of their server."""
    robots = [SimulatedRobot(number, fleet) for number in range(count)]
    try:
        time.sleep(warm_up_s)
        for robot in robots:
            robot.measure()
        time.sleep(seconds)
        trips = [a.round_trip_s for r in robots for a in list(r.answers)]
        ages = [age for r in robots for age in list(r.ages_s)]
        requests = sum(r.bridge.stats.requests for r in robots)
        errors = sum(r.bridge.stats.errors for r in robots)
    finally:
        for robot in robots:
            robot.stop()
    return Service(
        count, answers_per_s=round(len(trips) / seconds, 2),
        answers_per_s_per_robot=round(len(trips) / seconds / count, 2),
        round_trip_p50_s=round(percentile(trips, 0.5), 3),
        round_trip_p95_s=round(percentile(trips, 0.95), 3),
        context_age_p50_s=round(percentile(ages, 0.5), 2),
        context_age_p95_s=round(percentile(ages, 0.95), 2),
        errors=round(errors / max(1, requests), 3))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table; return 0."""
    parser = argparse.ArgumentParser(prog='spotvlm perf robots', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--robots', type=int, nargs='+', default=[1, 2, 3, 4, 6, 8])
    parser.add_argument('--profile', default='driving',
                        help='whose queries are asked about whose world')
    parser.add_argument('--seconds', type=float, default=20.0, help='per number of robots')
    parser.add_argument('--age', type=float, default=3.0,
                        help='95 %% of the time the newest answer must be younger than this [s]')
    parser.add_argument('--in-flight', type=int, default=2, help='requests under way per robot')
    parser.add_argument('--url', default='', help='server to measure; key in SPOTVLM_API_KEY')
    parser.add_argument('--model', default='', help='name of the model there')
    parser.add_argument('--threads', type=int, default=1, help='of the embedded server')
    parser.add_argument('--out', default='', metavar='FILE', help='write the figures there')
    arguments = parser.parse_args(argv)
    profile = load_profile(arguments.profile)
    with ExitStack() as stack:
        if arguments.url:
            server = cloud_server(ServerConfig(base_url=arguments.url, model=arguments.model))
        else:
            server = stack.enter_context(EmbeddedServer(
                str(checkpoint_path('spot-mini-cloud')), threads=arguments.threads)).to_ask()
        fleet = Fleet(server, profile.queries('cloud'), arguments.in_flight, profile.camera.world)
        services = []
        print(HEADING)
        for count in arguments.robots:
            services.append(carry(count, fleet, arguments.seconds))
            print(services[-1], flush=True)
    carried = [s.robots for s in services
               if s.context_age_p95_s <= arguments.age and s.errors <= MOST_ERRORS]
    print(f'carried: {max(carried, default=0)} (newest answer younger than {arguments.age:g} s '
          f'95 % of the time, errors at most {MOST_ERRORS:.0%})')
    if arguments.out:
        report = {'machine': machine(), 'url': arguments.url or 'embedded',
                  'rows': [asdict(s) for s in services]}
        Path(arguments.out).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.out).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
