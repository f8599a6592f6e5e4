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
What it is worth to know how the camera turns: regions after 2 s, against flow on the same frames.

Once in the driving world as it is, whose camera turns slowly, and once seen by a camera of half
the width and height on a head that turns to and fro: its pictures are those of the world, moved by
the homography of that turn and blurred by it. Five frames a second, as node context takes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import math
import time

import cv2
import numpy as np

from .result import PerfResult
from ...method.ego import (BODY_FROM_OPTICAL, Lens, Matrix, pinhole, rotation_of_angles,
                           turned_region)
from ...method.facts import NS, Region
from ...method.flow import RegionTracker
from ...method.gate import GateConfig
from ...mini.pictures import Image
from ...mini.worlds import make_world, TUNE_SEEDS, World
from ...system.machine import machine

DRIVES = 24
CONDITIONS = ('day', 'rain', 'night')
HZ = 5
STEP = 4             # frames of the world in one of these
STEPS = 10           # in 2 s
HEAD = 320, 240      # size of its camera's pictures
SWING = 0.2          # of the head, to both sides [rad]
EXPOSURE_S = 0.01


@dataclass(frozen=True)
class View:
    """How a camera sees a drive; ``rate``: how fast its head turns at most [rad/s]."""

    world: World
    first: int           # frame of the world
    rate: float
    phase: float

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height of the pictures."""
        return HEAD if self.rate else self.world.size

    @property
    def lens(self) -> Lens:
        """Return the lens of the pictures."""
        f, x, y = self.world.lens
        if self.rate:
            x, y = HEAD[0] / 2, HEAD[1] / 2
        return pinhole((f, 0, x, 0, f, y, 0, 0, 1), *self.size)

    def head(self, t: float) -> Matrix:
        """Return how the head is turned."""
        angle = SWING * math.sin(self.rate / SWING * t + self.phase) if self.rate else 0.0
        return rotation_of_angles(0.0, angle, 0.0)

    def look(self, n: int) -> Matrix:
        """Return how the camera is turned, as a robot would know it."""
        pose = self.world.pose(self.first + n * STEP)
        body = rotation_of_angles(0.0, pose.pitch, pose.yaw)
        return np.asarray(body @ BODY_FROM_OPTICAL @ self.head(n / HZ), np.float64)

    def picture(self, n: int) -> Image:
        """Return a picture."""
        picture = self.world.frame(self.first + n * STEP)
        if not self.rate:
            return picture
        seen = [cv2.warpPerspective(picture, self._to_head(n / HZ + part * EXPOSURE_S), HEAD)
                for part in (-0.5, -0.25, 0.0, 0.25, 0.5)]
        return np.asarray(np.mean(seen, axis=0), np.uint8)

    def regions(self, n: int) -> dict[str, Region]:
        """Return where what the first picture shows is in another, if it is in that at all."""
        where = self.world.follow(self.first, self.first + n * STEP)
        turned = {key: turned_region(region, self._to_head(n / HZ)) if self.rate else region
                  for key, region in where.items()}
        width, height = self.size
        return {key: r for key, r in turned.items() if r is not None
                and 0 <= r.x + r.w / 2 < width and 0 <= r.y + r.h / 2 < height}

    def _to_head(self, t: float) -> Matrix:
        f, x, y = self.world.lens
        whole = pinhole((f, 0, x, 0, f, y, 0, 0, 1), *self.world.size).matrix
        return np.asarray(self.lens.matrix @ self.head(t).T @ np.linalg.inv(whole), np.float64)


def views(rate: float) -> Iterator[View]:
    """Yield drives on tuning seeds."""
    for number in range(DRIVES):
        world = make_world('driving', TUNE_SEEDS[number], CONDITIONS[number % len(CONDITIONS)])
        yield View(world, 400 + 50 * number, rate, 2.4 * number)


def measure(rate: float) -> dict[bool, tuple[float, float]]:
    """Return the mean IoU after 2 s and the time of a step [ms], with ego-motion and without."""
    fits: dict[bool, list[float]] = {True: [], False: []}
    spent: dict[bool, list[float]] = {True: [], False: []}
    for view in views(rate):
        before, after = view.regions(0), view.regions(STEPS)
        kept = {key: before[key] for key in before.keys() & after.keys()}
        pictures = [view.picture(n) for n in range(STEPS + 1)]
        looks = [view.look(n) for n in range(STEPS + 1)]
        for ego, ious in fits.items():
            tracker: RegionTracker[str] = RegionTracker(cut_below=GateConfig().cut_below)
            for n, picture in enumerate(pictures):
                begin = time.thread_time()
                turn = view.lens.turn(looks[n - 1], looks[n], view.size) if ego and n else None
                tracker.add((n + 1) * NS // HZ, picture, turn)
                if n:
                    spent[ego].append(1e3 * (time.thread_time() - begin))
                else:
                    tracker.start(kept, NS // HZ)
            carried = tracker.regions()
            ious += [carried[key].iou(after[key]) if key in carried else 0.0 for key in kept]
    return {ego: (float(np.mean(fits[ego])), float(np.median(spent[ego]))) for ego in fits}


def rows() -> list[PerfResult]:
    """Return ego-motion joined with flow against flow alone."""
    cv2.setNumThreads(1)
    result = []
    for name, rate, where in (('ego', 0.0, 'the camera of the driving world'),
                              ('ego_turning', 0.25, 'on a head, up to 0.25 rad/s'),
                              ('ego_turning_fast', 1.0, 'on a head, up to 1 rad/s')):
        of = measure(rate)
        (iou, ms), (alone, alone_ms) = of[True], of[False]
        result += [
            PerfResult(f'focus_{name}_iou_2s', iou, 'IoU', f'flow alone, {alone:.3f}; {where}',
                       iou / alone if alone else None, machine(1)),
            PerfResult(f'focus_{name}_step_ms', ms, 'ms of CPU time',
                       f'flow alone, {alone_ms:.2f} ms; {where}', ms / alone_ms, machine(1))]
    return result
