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
"""What `kill -9` of one process of ``spotvlm run`` does to the others, and how long it shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
import itertools
import math
from pathlib import Path
import signal
import subprocess
import tempfile
import time

from diagnostic_msgs.msg import DiagnosticArray
import psutil
from rclpy.duration import Duration
from rclpy.time import Time
from spotvlm_msgs.msg import Answer, Context

from .rig import KEEP, Listener, START_S, Watched
from .scene import OtherLoad
from ...method.facts import NS
from ...nodes.executor import Graph
from ...system.processes import Child, PYTHON

LEAST = 0.95      # of the rate before
BACK_S = 8.0      # longest without an answer with context
PATIENCE_S = 30.0  # longest wait for that
LAST_S = 0.3      # what a victim has sent arrives within this time
# Whose rate must stay, by victim; of a dead camera or process of all, nobody's can.
OTHERS = {'camera': (), 'edge': ('camera', 'cloud'), 'context': ('camera', 'edge', 'cloud'),
          'cloud': ('camera', 'edge'), 'server': ('camera', 'edge'), 'composed': ()}
MODES = {'--multi-process': ('camera', 'edge', 'context', 'cloud', 'server'),
         'composed': ('server', 'composed')}
# What a victim is to give, as a sign that it is back.
SIGNS = {'camera': 'edge', 'edge': 'edge', 'context': 'contexts', 'cloud': 'cloud',
         'server': 'cloud', 'composed': 'edge'}
WORDS = {'server': 'spotvlm_ros.serving.main'}  # in the command of a victim, else its name


@dataclass(frozen=True)
class Kill:
    """What came of one."""

    mode: str
    victim: str
    seconds: float            # of each rate
    before: dict[str, float]  # answers or frames per second, by who gave them
    after: dict[str, float]   # from the moment of the kill on
    gap_s: float              # longest time without an answer of the edge
    back_s: float             # until the victim gives something again
    context_s: float          # until an answer with context from a frame after the kill
    others: float = 0.0       # cores that other processes or the host took before

    @property
    def title(self) -> str:
        """Return what it is called in tables."""
        return f'{self.victim} ({self.mode.removeprefix("--")})'

    def ratio(self, name: str) -> float:
        """Return a rate after over that before."""
        return self.after[name] / self.before[name] if self.before[name] else 0.0

    def failures(self, least: float = LEAST, longest_s: float = BACK_S) -> list[str]:
        """Return which bars were not met; a message or two fewer may be chance."""
        found = [f'{self.title}: {name} has {self.ratio(name):.1%} of its rate, not {least:.0%}'
                 for name in OTHERS[self.victim] if self.ratio(name) < least
                 and (self.before[name] - self.after[name]) * self.seconds > 2.5]
        if self.context_s > longest_s:
            found.append(f'{self.title}: context is back after {self.context_s:.1f} s, not '
                         f'{longest_s:g}')
        return found


class KillListener(Listener):
    """Notes contexts, frames of the camera, and how old what was told is, too."""

    def __init__(self) -> None:
        """Listen."""
        super().__init__()
        self.contexts: deque[tuple[float, bool]] = deque(maxlen=KEEP)
        self.told: deque[tuple[float, float]] = deque(maxlen=KEEP)    # arrival, newest fact [s]
        self.replied: deque[tuple[float, float]] = deque(maxlen=KEEP)  # arrival, frame [s]
        self.frames: deque[tuple[float, int]] = deque(maxlen=KEEP)    # moment, count of the camera
        self.create_subscription(Context, 'context', lambda message: self.contexts.append(
            (time.monotonic(), True)), 50)

    def _on_edge(self, message: Answer) -> None:
        super()._on_edge(message)
        if message.used_context:
            newest = Time.from_msg(message.header.stamp) - Duration.from_msg(message.context_age)
            self.told.append((time.monotonic(), newest.nanoseconds / NS))

    def _on_cloud(self, message: Answer) -> None:
        super()._on_cloud(message)
        if message.facts:
            self.replied.append((time.monotonic(),
                                 Time.from_msg(message.header.stamp).nanoseconds / NS))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        super()._on_diagnostics(message)
        counted = Time.from_msg(message.header.stamp).nanoseconds / NS - time.time() \
            + time.monotonic()
        for status in message.status:
            if status.name == 'camera':
                self.frames.extend((counted, int(entry.value))
                                   for entry in status.values if entry.key == 'frames')


class KilledRun(Watched):
    """``spotvlm run driving --mini`` in one mode, listened to from this process."""

    listener: KillListener

    def __init__(self, mode: str) -> None:
        """Prepare."""
        self.mode = mode
        self.exit_code = 0  # at the end
        self._stack = ExitStack()

    def __enter__(self) -> KilledRun:
        """Start, and wait for the first answer with context."""
        with self._stack as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='spotvlm-'))
            graph = Graph(lambda: [KillListener()])
            stack.callback(graph.close)
            self.listener = graph.nodes[0]
            self._log = Path(folder) / 'log'
            # An edge that is dead cannot say that it is unsure: the cloud is asked by the clock.
            with self._log.open('wb') as out:
                self._child = Child([
                    *PYTHON, '-m', 'spotvlm_ros.cli', 'run', 'driving', '--mini', '--quiet', '-p',
                    'cloud.unsure_below:=0.0', *[self.mode] * self.mode.startswith('--')],
                    log=out)
            stack.callback(self._end)
            self.wait(lambda: self.listener.told, 2.0 * START_S)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """End it; its exit code is to be 0."""
        self._stack.close()

    def kill(self, victim: str, seconds: float) -> Kill:
        """Kill a process after ``seconds`` of rest, and watch the others for as long."""
        process, others = self._find(victim), OtherLoad()
        began = time.monotonic()
        time.sleep(seconds)
        others.look()  # not later: what the victim has used would be missing
        now, wall = time.monotonic(), time.time()
        before = self._rates(began, now)
        process.send_signal(signal.SIGKILL)
        until = now + seconds
        back = self._first(lambda: self.since(SIGNS[victim], now + LAST_S))
        told = self._first(lambda: self._told_since(now + LAST_S, wall))
        time.sleep(max(0.0, until - time.monotonic()))
        return Kill(self.mode, victim, seconds, before, self._rates(now, until),
                    self.gap_s(now, time.monotonic()), back - now, told - now,
                    round(others.most, 2))

    def log(self) -> str:
        """Return the end of what it has printed."""
        return '\n'.join(self._log.read_text(errors='replace').splitlines()[-20:])

    def _find(self, victim: str) -> psutil.Process:
        word = WORDS.get(victim, victim)
        for process in psutil.Process(self._child.process.pid).children(recursive=True):
            if word in process.cmdline():
                return process
        raise RuntimeError(f'no process of {victim} is there:\n{self.log()}')

    def _told_since(self, moment: float, wall: float) -> float | None:
        """Return when the edge was first told what the cloud said about a frame since then."""
        replied = next(((t, frame) for t, frame in tuple(self.listener.replied)
                        if t >= moment and frame >= wall), None)
        return None if replied is None else next(
            (t for t, newest in tuple(self.listener.told)
             if t >= replied[0] and newest >= replied[1]), None)

    def _first(self, look: Callable[[], float | None]) -> float:
        with suppress(RuntimeError):
            return self.wait(look, PATIENCE_S)
        if not self._child.alive:
            raise RuntimeError(f'the run has ended:\n{self.log()}')
        return math.inf

    def _rates(self, began: float, ended: float) -> dict[str, float]:
        """Return what came per second between two moments, by who gave it."""
        rates = {name: sum(began <= t < ended for t, _ in tuple(getattr(self.listener, name)))
                 / (ended - began) for name in ('edge', 'cloud', 'contexts')}
        counts = [(t, n) for t, n in tuple(self.listener.frames) if began <= t < ended]
        grown = sum(b - a if b >= a else b for (_, a), (_, b) in itertools.pairwise(counts))
        span_s = counts[-1][0] - counts[0][0] if len(counts) > 1 else 0.0
        return {**rates, 'camera': grown / span_s if span_s else 0.0}

    def _end(self) -> None:
        self._child.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.exit_code = self._child.process.wait(20.0)
        self._child.stop()


def kill_all(victims: Mapping[str, Sequence[str]], seconds: float, rest_s: float,
             show: Callable[[Kill], None]) -> tuple[list[Kill], dict[str, int]]:
    """Kill the victims of each mode, one after another; return what came of it, exit codes too."""
    kills, exits = [], {}
    for mode, names in victims.items():
        with KilledRun(mode) as run:
            time.sleep(rest_s)
            for victim in names:
                kills.append(run.kill(victim, seconds))
                show(kills[-1])
                time.sleep(rest_s)
        exits[f'run {mode}'] = run.exit_code
    return kills, exits
