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
"""The script of one episode: who comes when, and does what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import hand_shape
from .scene import DIGITS, EPISODE_S, FOCAL, OBJECTS, TARGETS, WIDTH

RAISE_S, FORM_S, WALK_S = 0.5, 0.25, 2.6   # to raise an arm, to form a digit, to come or go


@dataclass(frozen=True)
class Act:
    """Something done from ``start`` to ``end`` [s]; places are chosen in 0 to 1."""

    start: float
    end: float
    value: str           # of the fact that it is about
    a: float             # across, and how far the head turns
    b: float             # down
    c: float             # how far the hand leans

    def out(self, t: float) -> float:
        """Return how far the arm is out, 0 to 1."""
        return ease(min(t - self.start, self.end - t) / RAISE_S)

    def formed(self, t: float) -> int:
        """Return how far the hand is formed, in steps."""
        part = (min(t - self.start, self.end - t) - RAISE_S) / FORM_S
        return int(hand_shape.STEPS * min(1.0, max(0.0, part)))


@dataclass(frozen=True)
class Visit:
    """The partner comes, stays and goes."""

    start: float         # [s]
    end: float           # [s]
    enters: int          # from -1 left, 1 right
    leaves: int          # to -1 left, 1 right
    side: int            # of the hand that shows digits: -1 left, 1 right of the frame
    gestures: tuple[Act, ...]     # of that hand
    others: tuple[Act, ...]       # of the other: points or holds out
    gaze: tuple[Act, ...]


@dataclass(frozen=True)
class Pass:
    """A bystander walks by."""

    start: float         # [s]
    heading: int         # to -1 left, 1 right
    speed: float         # [m/s]
    z: float             # distance [m]
    height: float        # of the person [m]
    variant: int         # seed of colours


def ease(x: float) -> float:
    """Return 0 up to x = 0, 1 from x = 1, and a smooth step between."""
    x = min(1.0, max(0.0, x))
    return x * x * (3 - 2 * x)


def mix(a: float, b: float, share: float) -> float:
    """Return the value a share of the way from a to b."""
    return a + (b - a) * share


def _acts(rng: np.random.Generator, start: float, end: float, pause: tuple[float, float],
          hold: tuple[float, float], draw: Callable[[], str]) -> tuple[Act, ...]:
    """Return acts in a row, their pauses and lengths within bounds [s], never one value twice."""
    acts: list[Act] = []
    t, before = start + float(rng.uniform(0, pause[1])), ''
    while True:
        length = float(rng.uniform(*hold))
        value = draw()
        while value == before:
            value = draw()
        a, b, c = (float(v) for v in rng.random(3))
        if t + length > end:
            return tuple(acts)
        acts.append(Act(t, t + length, value, a, b, c))
        t, before = t + length + float(rng.uniform(*pause)), value


def draw_visits(rng: np.random.Generator) -> list[Visit]:
    """Return the partner's visits of one episode."""
    visits, t = [], float(rng.uniform(-20, 4))
    while t < EPISODE_S:
        end = t + float(rng.uniform(22, 45))
        first, last = t + 0.65 * WALK_S, end - 0.65 * WALK_S
        digits = [int(d) for d in rng.permutation(10)]

        def digit(left: list[int] = digits) -> str:
            if not left:
                left.extend(int(d) for d in rng.permutation(10))
            return DIGITS[left.pop()]

        def other() -> str:
            return str(rng.choice([*TARGETS, *OBJECTS]))

        def gaze() -> str:
            return str(rng.choice(['robot', 'left', 'right', 'down'],
                                  p=[0.49, 0.18, 0.18, 0.15]))
        visits.append(Visit(
            t, end, int(rng.choice([-1, 1])), int(rng.choice([-1, 1])),
            int(rng.choice([-1, 1])),
            _acts(rng, first, last, (0.5, 3.0), (5.0, 11.0), digit),
            _acts(rng, first, last, (0.5, 2.5), (5.0, 11.0), other),
            _acts(rng, first - 3.0, last + 7.5, (0.0, 0.0), (4.0, 12.0), gaze)))
        t = end + float(rng.uniform(1.5, 5.0))
    return visits


def draw_passes(rng: np.random.Generator, near: float, far: float) -> list[Pass]:
    """Return who walks by in one episode, before or behind a partner from near to far [m]."""
    passes = []
    for lane in range(2):
        t = float(rng.uniform(-8, 8))
        while t < EPISODE_S:
            front = near > 1.8 and rng.random() < 0.22
            z = near * rng.uniform(0.62, 0.74) if front \
                else max(1.7, far * 1.15) * rng.uniform(1.0, 1.25) + 0.35 * lane
            one = Pass(t, int(rng.choice([-1, 1])), float(rng.uniform(0.4, 0.75)), float(z),
                       float(rng.uniform(1.5, 1.88)), int(rng.integers(1 << 30)))
            passes.append(one)
            t += (WIDTH / FOCAL * one.z + 1.2) / one.speed + float(rng.uniform(8.0, 24.0))
    return passes
