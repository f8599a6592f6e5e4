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
"""The script of one drive: where things stand, and how the car and the others move."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
import math

import numpy as np
import numpy.typing as npt

from .scene import CONDITIONS, DrivingScene, EPISODE_S, FPS, LIMITS, RANGE, Thing

LENGTH_M = 1600.0     # of the road of one episode
YELLOW_S = 1.8        # of a traffic light


@dataclass(frozen=True)
class TrafficLight:
    """A light beside the road and its cycle."""

    s: float        # distance along the road [m]
    x: float        # to the right of the middle of the ego car's lane [m]
    phase: float    # of the cycle at the beginning of the episode [s]
    green: float    # [s]
    red: float      # [s]

    def state(self, t: float) -> str:
        """Return the colour t seconds after the beginning of the episode."""
        p = (t + self.phase) % (self.green + YELLOW_S + self.red)
        return 'green' if p < self.green else 'yellow' if p < self.green + YELLOW_S else 'red'


@dataclass
class Pedestrian:
    """Somebody beside the road, who may cross it."""

    s: float             # distance along the road [m]
    side: float          # -1 left, 1 right
    crosses: bool
    trigger: float       # starts to cross when the car is this near [m]
    speed: float         # [m/s]
    variant: int         # seed of the colours
    started: float | None = None  # to cross [s]

    def x(self, t: float) -> float:
        """Return the place across the road [m] at t seconds."""
        if self.started is None:
            return self.side * 4.6
        return self.side * max(-4.6, 4.6 - self.speed * (t - self.started))

    def crossing(self, t: float) -> bool:
        """Whether somebody is on the road at t seconds."""
        return abs(self.x(t)) < 3.4


@lru_cache(maxsize=64)
def episode(seed: int, number: int, condition: str | None) -> DrivingEpisode:
    """Return an episode of a world, counted from 0; condition None draws one."""
    return DrivingEpisode(seed, number, condition)


class DrivingEpisode:
    """Simulates a whole drive once; a frame is then read from it."""

    def __init__(self, seed: int, number: int, condition: str | None) -> None:
        rng = np.random.default_rng([seed, number, 20260])
        drawn = str(rng.choice(CONDITIONS))
        self.condition = condition or drawn
        self.variant = int(rng.integers(1 << 30))
        self.lights = [
            TrafficLight(s, float(rng.choice([-1, 1, 1])) * rng.uniform(3.6, 5.0),
                         rng.uniform(0, 20), rng.uniform(8.0, 16.0), rng.uniform(8.0, 14.0))
            for s in self._places(rng, 25, LENGTH_M, 50, 80)]
        self.signs = [(s, rng.uniform(3.8, 5.6), str(rng.choice(LIMITS)))
                      for s in self._places(rng, 15, LENGTH_M, 34, 60)]
        self.pedestrians = [
            Pedestrian(s, float(rng.choice([-1, 1])), bool(rng.random() < 0.6),
                       rng.uniform(14, 30), rng.uniform(0.9, 1.5), int(rng.integers(1 << 30)))
            for s in self._places(rng, 20, LENGTH_M, 32, 64)]
        self.scenery = [Thing(str(rng.choice(['building', 'building', 'tree', 'clutter', 'clutter',
                                              'parked'])),
                              float(rng.choice([-1, 1])) * rng.uniform(6.5, 11), 0.0, s,
                              rng.uniform(3, 9), rng.uniform(3, 9), '', int(rng.integers(1 << 30)))
                        for s in self._places(rng, 6, LENGTH_M, 3, 9)]
        self._drive(rng)
        self.wobble = rng.uniform(0, 2 * math.pi, 8)

    @staticmethod
    def _places(rng: np.random.Generator, first: float, last: float, lo: float,
                hi: float) -> list[float]:
        """Return distances along the road [m], lo to hi apart."""
        places, s = [], first + rng.uniform(0, hi)
        while s < last:
            places.append(float(s))
            s += rng.uniform(lo, hi)
        return places

    def _drive(self, rng: np.random.Generator) -> None:
        """Integrate the ego car, the lead vehicle and the pedestrians at the frame rate."""
        n, dt = int(EPISODE_S * FPS), 1.0 / FPS
        cruise = rng.uniform(3.0, 5.5)
        s, v = 0.0, cruise
        gap, lead_on, lead_until = rng.uniform(12, 40), bool(rng.random() < 0.75), 0.0
        target_gap, braking, brake_until = gap, False, 0.0
        lead_variant = int(rng.integers(1 << 30))
        self.track = np.zeros((n, 4))           # distance, speed, gap (0 = none), braking
        self.lead_variants = np.zeros(n, dtype=np.int64)  # of the vehicle that is ahead then
        for i in range(n):
            t = i * dt
            if t >= lead_until:
                lead_on = not lead_on if i else lead_on
                lead_until = t + (rng.uniform(15, 30) if lead_on else rng.uniform(5, 12))
                lead_variant = int(rng.integers(1 << 30))
                gap = rng.uniform(14, 42)
            stop = self._stop_distance(s, t)
            if t >= brake_until:
                braking = not braking and bool(rng.random() < 0.75)
                brake_until = t + rng.uniform(6.0, 14.0)
                target_gap = rng.uniform(10, 24) if braking else rng.uniform(16, 42)
            wanted = min(cruise, math.sqrt(2 * 3.0 * max(0.0, stop - 11.0)))
            if lead_on and braking:
                wanted = min(wanted, 0.55 * cruise)
            v += min(2.0 * dt, max(-5.0 * dt, wanted - v))
            v = max(0.0, v)
            s += v * dt
            gap += min(3.5 * dt, max(-3.5 * dt, target_gap - gap))
            for one in self.pedestrians:
                if one.crosses and one.started is None and 0 < one.s - s < one.trigger:
                    one.started = t
            self.track[i] = s, v, gap if lead_on else 0.0, braking
            self.lead_variants[i] = lead_variant

    def _stop_distance(self, s: float, t: float) -> float:
        """Return how far ahead of the car at s the next reason to stop is at t seconds [m]."""
        stops = [light.s - s for light in self.lights
                 if light.s - s > 9.0 and light.state(t) != 'green']
        stops += [one.s - s + 3.0 for one in self.pedestrians
                  if one.s - s > 6.0 and one.started is not None and one.crossing(t)]
        return min(stops, default=1e9)

    def scene(self, i: int, index: int) -> DrivingScene:
        """Return frame i of the episode, which is frame ``index`` of the world."""
        t, a = i / FPS, self.wobble
        s, v = self.track[i, :2]
        rough = 0.5 + 0.5 * math.sin(0.37 * t + a[5])
        shake = v / 5.5
        return DrivingScene(
            index, self.condition, self.variant,
            pitch=3.0 * shake * math.sin(5.1 * t + a[0]) + 16.0 * math.sin(0.17 * t + a[1]),
            yaw=125.0 * math.sin(0.16 * t + a[2]) + 3.0 * shake * math.sin(3.3 * t + a[3]),
            curve=self._curve(t),
            blur=shake * (1.0 + 5.0 * rough ** 3), distance=float(s),
            things=tuple(self._things(i, t)))

    def _curve(self, t: float) -> float:
        """Return the curvature of the road at t seconds, to the right [1/m]."""
        return 0.003 * math.sin(0.15 * t + self.wobble[4])

    @cached_property
    def path(self) -> npt.NDArray[np.float64]:
        """Return x, y [m] and heading, to the left [rad], of the car in each frame."""
        driven = np.diff(self.track[:, 0], prepend=self.track[0, 0])
        curve = np.array([self._curve(i / FPS) for i in range(len(driven))])
        heading = -np.cumsum(curve * driven)
        steps = driven[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1)
        return np.column_stack([np.cumsum(steps, axis=0), heading])

    def _things(self, i: int, t: float) -> list[Thing]:
        """Return what stands or moves ahead of the car in frame i, at t seconds."""
        s, _, gap, braking = self.track[i]
        things = []
        for k, light in enumerate(self.lights):
            if 2.0 < light.s - s < RANGE['light']:
                things.append(Thing('light', light.x, 2.6, light.s - s, 0.5, 1.35, light.state(t),
                                    0, k))
        for k, (at, x, value) in enumerate(self.signs):
            if 2.0 < at - s < RANGE['limit']:
                things.append(Thing('limit', x, 1.7, at - s, 1.25, 1.25, value, 0, k))
        for k, one in enumerate(self.pedestrians):
            if 2.0 < one.s - s < RANGE['pedestrian']:
                state = 'crossing' if one.crossing(t) else 'sidewalk'
                moving = int(t * 6) if one.started is not None else 0
                things.append(Thing('pedestrian', one.x(t), 0.0, one.s - s, 0.6, 1.75, state,
                                    one.variant & ~1 | moving % 2, k))
        if gap > 0:
            things.append(Thing('lead', 0.0, 0.0, gap, 1.85, 1.5,
                                'braking' if braking else 'cruising', int(self.lead_variants[i]),
                                int(self.lead_variants[i])))
        for item in self.scenery:
            if 1.5 < item.z - s < 90.0:
                size = (1.9, 1.6) if item.kind == 'parked' else (item.w, item.h)
                x = (math.copysign(5.2, item.x) if item.kind == 'parked' else
                     item.x + math.copysign(item.w / 2, item.x) if item.kind == 'building'
                     else item.x)
                things.append(Thing(item.kind, x, 0.0, item.z - s, *size, '', item.variant))
        return things
