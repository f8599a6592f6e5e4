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
"""A graph under attack with its server and its intruder, and what an attack did to it."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
import json
from pathlib import Path
import re
import statistics
import tempfile
import time

import psutil

from . import network
from .kinds import Kind, SCENES
from .pictures import Bag, clip, Folder
from .relay import Link
from .rig import ChaosProcess, HelperProcess, node_process, RobotProcess, write_params
from ...system.machine import cpu_time

BACK_S = 12.0     # longest wait for context to be back; then node cloud is restarted
SETTLE_S = 0.5
CLEAN = 4         # undisturbed rates that are taken together
CLOUD = {'deadline_s': 2.0, 'max_in_flight': 4, 'scene.cloud_period_s': 0.5,
         'action.cloud_period_s': 0.5}  # often: faults are met by keyframes, not by the clock
COUNTED = re.compile(
    r'(?!.*in_flight)(errors\.|skipped\.(?!busy)|.*(reject|refus|bad_|late_|lost|duplicate|out_of|'
    'zero_stamp|restarts|injections|no_frames|jumps|with_error))')


@dataclass(frozen=True)
class Turn:
    """What came of one attack."""

    kind: Kind
    seconds: float
    tried: int             # requests, messages, images, goals or calls that met it
    clean_hz: float        # of the edge, before and after, see `Scene.clean_hz`
    hz: float              # of the edge, meanwhile
    gap_s: float           # longest time without an answer of the edge
    back_s: float          # end of the attack to an answer with context; inf: after a restart
    memory_mb: tuple[float, float, float]  # before, most, after
    threads: tuple[int, int]               # before, after
    sockets: tuple[int, int]
    exceptions: int
    counted: dict[str, int]  # what /diagnostics has counted meanwhile
    others: float            # cores that other processes or the host took, at most

    @property
    def ratio(self) -> float:
        """Return the edge's rate under the attack over that without."""
        return self.hz / self.clean_hz if self.clean_hz else 0.0

    @property
    def lost(self) -> int:
        """Return how many answers of the edge did not come, or came as an error."""
        missing = max(0, round((self.clean_hz - self.hz) * self.seconds))
        return missing + self.counted.get('answers_with_error', 0)


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


class Scene:
    """A graph, its server and its intruder."""

    def __init__(self, name: str) -> None:
        """Prepare one of SCENES."""
        self.name = name
        self._stack = ExitStack()
        self._recorded: Folder | Bag | None = None
        self._served = 0
        self.clean: deque[float] = deque(maxlen=CLEAN)  # undisturbed rates
        self.robot: RobotProcess

    def __enter__(self) -> Scene:
        """Start all processes, and wait for the first answer."""
        with self._stack as stack:
            self._start(stack)
            self.robot.wait(lambda: self.robot.since('edge', 0.0), 60.0)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """End all processes."""
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='spotvlm-')))
        self.server = stack.enter_context(ChaosProcess(pause_s=0.1))
        self._intruder = stack.enter_context(HelperProcess('intruder'))
        params = {node: dict(values) for node, values in SCENES[self.name].items()}
        params['cloud'] = {'base_url': self.server.url, **CLOUD}
        source = params.get('camera', {}).get('source')
        if source == 'topic':
            self._feed(stack, folder)
        elif source is not None:
            self._recorded = (Folder if source == 'images' else Bag)(folder / 'recorded')
            params['camera']['path'] = str(self._recorded.path)
        self.robot = stack.enter_context(RobotProcess(params))

    def _feed(self, stack: ExitStack, folder: Path) -> None:
        """Publish images from another process, as the driver of a camera does."""
        camera = {'source': 'video', 'path': clip(str(folder)), 'loop': True, 'rate_hz': 12.0,
                  'wait_for_listener_s': 0.0}
        child = node_process('camera', [
            '-r', '__ns:=/driver', '-r', 'image:=/image', '-r',
            'image/compressed:=/image/compressed',
            *write_params(str(folder), {'/**/camera': camera})], folder / 'log')
        stack.callback(child.stop)

    def begin(self, kind: Kind) -> None:
        """Begin an attack."""
        self._tried = 0
        if kind.attack:
            self._intruder.tell(kind.attack)
        elif kind.scene in ('folder', 'bag') and self._recorded is not None:
            self._tried = self._recorded.spoil()
        self._served = sum(self.server.stats().served.values())
        self.server.set(kind.server)

    def end(self, kind: Kind) -> tuple[int, dict[str, int]]:
        """End it; return how often it was tried, and what the intruder has counted."""
        served = self.server.stats().served
        self.server.set('none')
        if kind.attack:
            done = json.loads(self._intruder.tell(''))
            return done.pop('tried', 0), done
        if self._recorded is not None:
            self._recorded.mend()
            return self._tried, {}
        return sum(served.values()) - self._served, {}

    def recover(self, ended: float) -> float:
        """Wait until context is back; return when, inf where node cloud had to be restarted."""
        try:
            good = self.robot.wait(lambda: self.robot.since('cloud', ended), BACK_S)
            return self.robot.wait(lambda: self.robot.since('edge', good), BACK_S) - ended
        except RuntimeError:
            if not self.robot.process.is_running():
                raise RuntimeError(f'the graph has ended:\n{self.robot.log()}') from None
            self._intruder.tell('reconnect')
            self._intruder.tell('')
            now = time.monotonic()
            self.robot.wait(lambda: self.robot.since('edge', now), 20.0)
            return float('inf')

    def clean_hz(self, seconds: float) -> float:
        """Measure the undisturbed rate; return the mean of that and the last times before."""
        self.clean.append(self.robot.watch(seconds))
        return statistics.mean(self.clean)


class LinkScene(Scene):
    """A robot and a server on two hosts, with a link that is slow and can be cut."""

    NAMES = ('server killed', 'link down')

    def __init__(self) -> None:
        """Prepare."""
        super().__init__('mini')

    def _start(self, stack: ExitStack) -> None:
        link = Link(delay_s=0.04, jitter_s=0.01, bytes_per_s=20e6 / 8)
        self._hosts = stack.enter_context(network.TwoHosts(link))
        shaped = 'tc netem' if self._hosts.netem else 'relay'
        print(f'link: 40 ms and 10 ms of jitter each way, 20 Mbit/s ({shaped})', flush=True)
        self._intruder = stack.enter_context(HelperProcess('intruder'))
        self.robot = stack.enter_context(RobotProcess(
            {'cloud': {'base_url': self._hosts.url, 'deadline_s': 5.0}}))

    def begin(self, kind: Kind) -> None:
        """Kill the server, or cut the link."""
        self._hosts.kill_server() if kind.name == self.NAMES[0] else self._hosts.connect(False)

    def end(self, kind: Kind) -> tuple[int, dict[str, int]]:
        """Start or connect it again."""
        self._hosts.start_server() if kind.name == self.NAMES[0] else self._hosts.connect(True)
        return 1, {}


def meet(scene: Scene, kind: Kind, seconds: float, clean_s: float) -> Turn:
    """Bring an attack about and end it; return what came of it."""
    robot, others, seconds = scene.robot, OtherLoad(), seconds * kind.longer
    if not scene.clean:
        scene.clean_hz(clean_s)
    before, counts, raised = robot.use(), robot.listener.counts.copy(), robot.exceptions
    robot.peak_rss()
    scene.begin(kind)
    time.sleep(SETTLE_S)
    began = time.monotonic()
    hz = robot.watch(seconds)
    gap_s = robot.gap_s(began, time.monotonic())
    others.look()
    tried, counted = scene.end(kind)
    back_s = scene.recover(time.monotonic())
    time.sleep(SETTLE_S)
    clean_hz = scene.clean_hz(clean_s)
    others.look()
    after, peak = robot.use(), robot.peak_rss()
    grown = robot.listener.counts - counts
    counted |= {key: n for key, n in sorted(grown.items()) if COUNTED.match(key)}
    return Turn(
        kind, seconds, tried, clean_hz, hz, gap_s, back_s,
        (before.rss / 1e6, peak / 1e6, after.rss / 1e6), (before.threads, after.threads),
        (before.sockets, after.sockets), robot.exceptions - raised, counted,
        round(others.most, 2))
