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
"""Draws the partner, who faces the robot, and bystanders from the side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
import math

import numpy as np

from .render_hands import draw_hand, SKIN
from .render_things import HELD
from .scene import Arm, Person
from ..drawing import capsule, ellipse, oval, polygon, rectangle, shade
from ..pictures import Color, Image


@dataclass(frozen=True)
class Style:
    """How somebody looks."""

    skin: Color
    hair: Color
    shirt: Color
    trousers: Color
    long: bool       # hair
    glasses: bool
    bare: bool       # forearms


@lru_cache(maxsize=256)
def style_of(variant: int, skin: Color | None = None) -> Style:
    """Return the style of a person; ``skin`` that of a photographed hand."""
    rng = np.random.default_rng(variant)
    skin_tone = SKIN[int(rng.integers(len(SKIN)))]
    jitter = float(rng.uniform(0.94, 1.06))
    hair = [(35, 26, 22), (82, 54, 34), (150, 110, 62), (60, 60, 64), (170, 168, 165)]
    shirt, trousers = rng.uniform(25, 235, 3), rng.uniform(20, 120, 3)
    return Style(skin or shade(skin_tone, jitter), hair[int(rng.integers(len(hair)))],
                 (float(shirt[0]), float(shirt[1]), float(shirt[2])),
                 (float(trousers[0]), float(trousers[1]), float(trousers[2])),
                 bool(rng.random() < 0.4), bool(rng.random() < 0.25), bool(rng.random() < 0.5))


def draw_partner(canvas: Image, person: Person, style: Style, k: float) -> None:
    """Draw head, trunk and legs of the partner, k times as bright as in plain light."""
    x, y, m = person.x, person.y, person.m
    trousers, shirt = shade(style.trousers, k), shade(style.shirt, k)
    for side in (-1, 1):
        capsule(canvas, (x + side * 0.09 * m, y + 0.58 * m), (x + side * 0.11 * m, y + 1.38 * m),
                0.085 * m, 0.06 * m, trousers)
    polygon(canvas, [(x - 0.21 * m, y + 0.02 * m), (x - 0.07 * m, y - 0.05 * m),
                     (x + 0.07 * m, y - 0.05 * m), (x + 0.21 * m, y + 0.02 * m),
                     (x + 0.17 * m, y + 0.36 * m), (x + 0.18 * m, y + 0.62 * m),
                     (x - 0.18 * m, y + 0.62 * m), (x - 0.17 * m, y + 0.36 * m)], shirt)
    _face(canvas, person, style, k)


def _face(canvas: Image, person: Person, style: Style, k: float) -> None:
    """Draw a head that is turned by moving what is in the face."""
    r, turn, nod = person.head, person.turn, person.nod
    skin, hair = shade(style.skin, k), shade(style.hair, k)
    u, v, a, b = r.x + r.w / 2, r.y + r.h / 2, r.w / 2, r.h / 2
    rectangle(canvas, person.x - 0.35 * a, v + 0.5 * b, 0.7 * a, 0.9 * b,
              shade(style.skin, 0.8 * k))
    if style.long:
        oval(canvas, u - 0.18 * a * turn, v + 0.15 * b, 1.05 * a, 1.12 * b, hair)
    oval(canvas, u, v, a * 0.96, b, hair)
    face_x = u + 0.30 * a * turn
    oval(canvas, face_x, v + (0.16 + 0.20 * nod) * b, a * (0.86 - 0.10 * abs(turn)),
         (0.84 - 0.12 * nod) * b, skin)
    if abs(turn) < 0.95:
        for side in (-1, 1):                                     # ears
            hidden = side * turn > 0.3
            if not hidden:
                oval(canvas, u + side * 0.93 * a - 0.25 * a * turn, v + (0.1 - 0.12 * nod) * b,
                     0.11 * a, 0.2 * b, shade(skin, 0.88))
    shift, narrow = 0.62 * a * turn, 1.0 - 0.35 * abs(turn)
    eye_y = v + 0.02 * b + 0.34 * b * nod
    for side in (-1, 1):
        _eye(canvas, person, style, k, side)
    nose = u + shift * 1.18
    polygon(canvas, [(nose - 0.06 * a, eye_y + 0.1 * b), (nose + 0.06 * a, eye_y + 0.1 * b),
                     (nose + (0.14 + 0.12 * turn) * a, eye_y + 0.42 * b),
                     (nose - (0.14 - 0.12 * turn) * a, eye_y + 0.42 * b)], shade(skin, 0.82))
    oval(canvas, u + shift * 0.95, v + (0.60 + 0.16 * nod) * b, 0.26 * a * narrow, 0.06 * b,
         shade((150, 62, 58), k))


def _eye(canvas: Image, person: Person, style: Style, k: float, side: int) -> None:
    """Draw the left (side -1) or right eye of a face with its brow and what is before it."""
    r, turn, nod = person.head, person.turn, person.nod
    u, v, a, b = r.x + r.w / 2, r.y + r.h / 2, r.w / 2, r.h / 2
    x = u + 0.62 * a * turn + side * 0.36 * a * (1.0 - 0.35 * abs(turn))
    y = v + 0.02 * b + 0.34 * b * nod
    w = a * (0.11 if side * turn > 0.3 else 0.2)                 # one turns away
    brow = y - (0.25 - 0.05 * nod) * b
    polygon(canvas, [(x - 1.1 * w, brow), (x + 1.1 * w, brow), (x + 1.1 * w, brow + 0.07 * b),
                     (x - 1.1 * w, brow + 0.07 * b)], shade(style.hair, k))
    if nod > 0.5:                                                # lids
        polygon(canvas, [(x - w, y), (x + w, y), (x + 0.6 * w, y + 0.09 * b),
                         (x - 0.6 * w, y + 0.09 * b)], shade(style.skin, 0.45 * k))
    else:
        oval(canvas, x, y, w, 0.12 * b * (1 - 0.5 * nod), shade((245, 245, 242), k))
        oval(canvas, x + 0.42 * w * turn, y + 0.04 * b * nod, 0.085 * a + 0.1 * w,
             0.105 * b * (1 - 0.5 * nod), shade((28, 22, 20), k))
    if style.glasses and a > 14:
        ellipse(canvas, (x, y), (1.35 * w, 0.19 * b), shade((20, 20, 24), k),
                thickness=max(1, round(0.04 * a)))


def draw_arm(canvas: Image, person: Person, arm: Arm, style: Style, k: float) -> None:
    """Draw an arm with its hand and what it holds, k times as bright as in plain light."""
    m, hand = person.m, arm.hand
    sleeve = shade(style.shirt, 0.86 * k)
    wrist = (hand.x, hand.y)
    capsule(canvas, arm.shoulder, arm.elbow, 0.062 * m, 0.050 * m, sleeve)
    fore = shade(style.skin, 0.92 * k) if style.bare or hand.photo is not None else sleeve
    capsule(canvas, arm.elbow, wrist, 0.050 * m, 0.033 * m, fore)
    if arm.held:
        HELD[arm.held](canvas, arm.held_region(m), k, person.variant)
    draw_hand(canvas, hand, style.skin, k)


def draw_walker(canvas: Image, person: Person, k: float) -> None:
    """Draw a bystander from the side, k times as bright as in plain light."""
    style = style_of(person.variant)
    x, y, m, d = person.x, person.y, person.m, person.heading
    shirt, trousers = shade(style.shirt, k), shade(style.trousers, k)
    skin, hair = shade(style.skin, k), shade(style.hair, k)
    swing = math.sin(person.step)
    hip, neck = (x, y + 0.55 * m), (x, y + 0.02 * m)
    for sign, factor in ((-1, 0.75), (1, 1.0)):
        foot = (x + sign * swing * 0.30 * m, y + 1.38 * m)
        capsule(canvas, hip, foot, 0.095 * m, 0.055 * m, shade(trousers, factor))
    capsule(canvas, (x, y + 0.06 * m), hip, 0.125 * m, 0.11 * m, shirt)
    elbow = (x - swing * 0.10 * m, y + 0.30 * m)
    hand = (x - swing * 0.22 * m + 0.05 * d * m, y + 0.53 * m)
    capsule(canvas, neck, elbow, 0.055 * m, 0.045 * m, shade(shirt, 0.8))
    capsule(canvas, elbow, hand, 0.043 * m, 0.033 * m, shade(shirt, 0.8))
    oval(canvas, hand[0], hand[1] + 0.03 * m, 0.038 * m, 0.05 * m, skin)
    r = person.head
    u, v, a, b = r.x + r.w / 2, r.y + r.h / 2, r.w / 2, r.h / 2
    rectangle(canvas, u - 0.45 * a, v + 0.6 * b, 0.8 * a, 0.6 * b, shade(skin, 0.8))
    oval(canvas, u, v, 0.92 * a, b, skin)
    polygon(canvas, [(u + d * 0.80 * a, v - 0.08 * b), (u + d * 1.12 * a, v + 0.22 * b),
                     (u + d * 0.76 * a, v + 0.26 * b)], skin)
    oval(canvas, u - d * 0.30 * a, v - 0.14 * b, 0.70 * a, 0.88 * b, hair)
    oval(canvas, u - d * 0.06 * a, v - 0.55 * b, 0.80 * a, 0.46 * b, hair)
    if style.long:
        oval(canvas, u - d * 0.62 * a, v + 0.4 * b, 0.4 * a, 0.75 * b, hair)
    oval(canvas, u + d * 0.58 * a, v + 0.0 * b, 0.10 * a, 0.09 * b, shade((25, 20, 20), k))
