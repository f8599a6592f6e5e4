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
"""The processes of a run: who was killed is started again, what is awaited is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
import itertools
import os
from pathlib import Path
import tempfile
import time

from rclpy.node import Node

from .health import SILENCE_S
from .publishers import frame_topic, who_publishes
from ..config.profiles import Profile
from ..system.middleware import own_ports
from ..system.processes import Child

RESPAWNS = 5   # of a process, at most, in a row: each time it was killed
ROW_S = 60.0   # or less after it was started
LIVE = ('mini', 'usb', 'topic')  # sources that go on; a recording would start over


class Family:
    """The processes of a run by name, that of the camera last."""

    def __init__(self, profile: Profile, stack: ExitStack) -> None:
        """Start without any; all are stopped when ``stack`` is left."""
        self._live, self._stack = profile.camera.source in LIVE, stack
        self._children: dict[str, Child] = {}
        self._make: dict[str, Callable[..., Child]] = {}
        # Of those started again, and not the same as those of another run on this host.
        self._numbers = itertools.count(os.getpid())
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='spotvlm-')))
        self._respawns: Counter[str] = Counter()  # in a row
        self._started: dict[str, float] = {}      # steady clock [s]

    def start(self, name: str, make: Callable[..., Child],
              env: Mapping[str, str] | None = None) -> Child:
        """Start a process; ``make`` is given what to change of the environment, as ``env``."""
        self._make[name] = make
        child = self._children[name] = make(env=env)
        self._started[name] = time.monotonic()
        self._stack.callback(child.stop)
        return child

    @property
    def source(self) -> Child:
        """Return the process of the camera; it ends by itself when there are no more frames."""
        return list(self._children.values())[-1]

    def tend(self) -> str:
        """Start again who was killed; return why that will not do, '' while all is well."""
        for name, child in tuple(self._children.items()):
            if child.alive or child is self.source and not child.process.returncode:
                continue
            child.stop()  # what it has left behind
            if not child.killed:
                return f'ended early: {name} {child.end}; the lines above say why, or else ' \
                    'somebody has stopped it'
            if child is self.source and not self._live:
                return f'ended early: {name} {child.end}; its recording is not started over'
            if time.monotonic() - self._started[name] > ROW_S:
                self._respawns[name] = 0
            if self._respawns[name] >= RESPAWNS:
                return f'ended early: {name} {child.end}, after it was started again ' \
                    f'{RESPAWNS} times in a row; see spotvlm doctor, and dmesg'
            self._respawns[name] += 1
            print(f'{name} {child.end}; it is started again ({self._respawns[name]} of '
                  f'{RESPAWNS} times)', flush=True)
            self.start(name, self._make[name],
                       own_ports(os.environ, self._folder, next(self._numbers)))
        return ''

    def stop(self) -> None:
        """End all, at the same time."""
        for child in self._children.values():
            child.terminate()
        for child in self._children.values():
            child.stop()


class Awaited:
    """Says what a run waits for where its frames come from topics."""

    def __init__(self, monitor: Node, profile: Profile, multi_process: bool) -> None:
        """Begin to wait."""
        transport = (profile.edge if multi_process else profile.camera).image_transport
        names = (profile.camera.cameras or ('',)) if profile.camera.source == 'topic' else ()
        self._monitor, self._transport = monitor, transport
        self._topics = [frame_topic(monitor, name, transport) for name in names]
        self._at = time.monotonic() + SILENCE_S

    def look(self) -> None:
        """Say it once, when the time has come and there is no answer; called again and again."""
        if not self._topics or time.monotonic() < self._at:
            return
        for topic in self._topics:
            print(f'waiting for frames on {topic}: '
                  f'{who_publishes(self._monitor, topic, self._transport)}', flush=True)
        self._topics = []
