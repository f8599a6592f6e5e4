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
The outline of a drawn hand: Turkish sign language digits, a fist, and a pointing finger.

Local coordinates: the wrist is the origin, y goes toward the finger tips, one unit is the length
from the wrist to the tip of the middle finger. It is a right hand seen from its palm: the thumb is
at positive x.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
import math

from ..pictures import Point

# index, middle, ring, little: base, length, radius, angle from upright [degrees, clockwise]
FINGERS = (((0.180, 0.50), 0.42, 0.062, 13.0), ((0.050, 0.53), 0.47, 0.064, 2.5),
           ((-0.085, 0.51), 0.43, 0.060, -8.0), ((-0.205, 0.44), 0.34, 0.053, -21.0))
PALM: tuple[Point, ...] = ((-0.15, -0.02), (0.15, -0.02), (0.21, 0.16), (0.235, 0.48),
                           (0.12, 0.545), (-0.02, 0.56), (-0.16, 0.53), (-0.25, 0.43),
                           (-0.235, 0.20))
STRETCHED = {0: (), 1: (0,), 2: (0, 1), 3: (0, 1), 4: (0, 1, 2, 3), 5: (0, 1, 2, 3),
             6: (0, 1, 2), 7: (0, 1, 3), 8: (0, 2, 3), 9: (1, 2, 3)}
TOUCHED = {6: 3, 7: 2, 8: 1, 9: 0}     # the finger that the thumb touches
EDGE = 0.016                           # width of the dark outline
STEPS = 5                              # a hand forms in this many steps
FORMED = 3                             # from this step on it is a digit, and labelled


@dataclass(frozen=True)
class Stroke:
    """A finger or a part of it: a line with round ends."""

    points: tuple[Point, ...]
    radius: float
    front: bool      # drawn over the palm


@lru_cache(maxsize=256)
def strokes(pose: str, digit: int, step: int) -> tuple[Stroke, ...]:
    """Return the fingers of a pose ('digit', 'point', 'fist'), formed up to a step of STEPS."""
    form = step / STEPS
    if pose == 'point':
        digit, form = 1, 1.0
    if pose == 'fist':
        digit, form = 1, 0.0
    if digit == 0 and form > 0.5:
        return _ring(form)
    up = STRETCHED[digit]
    fingers = []
    for k, (base, length, radius, angle) in enumerate(FINGERS):
        if k in up and form > 0.3:
            tip = _along(base, length * form, angle)
            fingers.append(Stroke((base, tip), radius, False))
        elif digit in TOUCHED and TOUCHED[digit] == k and form > 0.5:
            # bent forward onto the thumb: a short knuckle above the palm
            knuckle = _along(base, 0.07, angle)
            fingers.append(Stroke((knuckle, (knuckle[0] + 0.02, base[1] - 0.05)), radius * 1.1,
                                  True))
        else:
            top = (base[0], base[1] + 0.02)
            fingers.append(Stroke((top, (base[0] * 0.85 + 0.01, base[1] - 0.17)), radius * 1.08,
                                  True))
    return (*fingers, _thumb(digit, form))


def _along(base: Point, length: float, angle: float) -> Point:
    a = math.radians(angle)
    return base[0] + length * math.sin(a), base[1] + length * math.cos(a)


def _thumb(digit: int, form: float) -> Stroke:
    root, radius = (0.165, 0.14), 0.068
    if digit in (3, 5) and form > 0.5:
        return Stroke((root, (0.33, 0.29), (0.36 + 0.12 * form, 0.29 + 0.17 * form)), radius,
                      False)
    if digit in TOUCHED and form > 0.5:
        base = FINGERS[TOUCHED[digit]][0]
        side = 0.25 if digit == 9 else 0.20
        return Stroke((root, (side, 0.30), (base[0] + 0.03, base[1] - 0.08)), radius, True)
    if digit == 4 and form > 0.5:
        return Stroke((root, (0.14, 0.27), (-0.06, 0.33)), radius, True)
    return Stroke((root, (0.21, 0.29), (0.04, 0.36)), radius, True)


def _ring(form: float) -> tuple[Stroke, ...]:
    """Return thumb and fingers bent to an O; the hole shows what is behind."""
    around = [(0.06 + 0.185 * math.sin(a), 0.60 + 0.215 * math.cos(a))
              for a in (2 * math.pi * k / 20 for k in range(21))]
    fingers = tuple(around[10:21] + around[:4])   # from the palm up over the top
    thumb = tuple(around[3:11])
    return (Stroke(tuple((x - 0.09, y + 0.015) for x, y in fingers[:11]), 0.070, False),
            Stroke(fingers, 0.080, True), Stroke(thumb, 0.068, True))


def palm(pose: str, digit: int, step: int) -> tuple[Point, ...]:
    """Return the outline of the palm; an O hides the upper half of it."""
    if pose == 'digit' and digit == 0 and step / STEPS > 0.5:
        return ((-0.15, -0.02), (0.15, -0.02), (0.19, 0.20), (0.15, 0.38), (0.02, 0.41),
                (-0.13, 0.50), (-0.20, 0.42), (-0.20, 0.20))
    return PALM


@lru_cache(maxsize=256)
def outline(pose: str, digit: int, step: int) -> tuple[Point, ...]:
    """Return points whose bounding box, however turned, is that of the hand."""
    points = list(palm(pose, digit, step))
    for stroke in strokes(pose, digit, step):
        for x, y in stroke.points:
            r = stroke.radius + EDGE
            points += [(x + r * math.cos(a), y + r * math.sin(a))
                       for a in (2 * math.pi * k / 12 for k in range(12))]
    return tuple(points)
