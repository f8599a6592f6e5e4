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
"""Draws what is held out, and what stands on the counter."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .scene import Item
from ..drawing import capsule, ellipse, oval, polygon, rectangle, shade
from ..pictures import Color, Image
from ...method.facts import Region


# Colours differ from episode to episode: the shape tells what it is.
COLORS: dict[str, tuple[Color, ...]] = {
    'apple': ((200, 32, 36), (120, 175, 50), (225, 175, 60)),
    'bottle': ((40, 130, 75), (120, 72, 32), (95, 150, 200)),
    'phone': ((90, 160, 235), (225, 120, 60), (70, 190, 120)),
    'key': ((214, 170, 52), (190, 194, 200), (176, 108, 62)),
}


def _apple(canvas: Image, r: Region, k: float, variant: int) -> None:
    u, v, a = r.x + r.w / 2, r.y + r.h * 0.56, r.w / 2
    red = shade(COLORS['apple'][variant % 3], k)
    for side in (-1, 1):
        oval(canvas, u + side * 0.34 * a, v, 0.66 * a, 0.86 * a, red)
    oval(canvas, u - 0.4 * a, v - 0.3 * a, 0.16 * a, 0.24 * a, shade((240, 150, 140), k))
    capsule(canvas, (u, v - 0.65 * a), (u + 0.1 * a, v - 1.05 * a), 0.06 * a, 0.06 * a,
            shade((80, 52, 30), k))
    ellipse(canvas, (u + 0.38 * a, v - 0.92 * a), (0.32 * a, 0.15 * a), shade((60, 150, 50), k),
            -20.0)


def draw_bottle(canvas: Image, r: Region, k: float, variant: int) -> None:
    """Draw a bottle that fills a box, k times as bright as in plain light."""
    glass, cap, sign = (shade(c, k) for c in (COLORS['bottle'][variant % 3], (225, 220, 210),
                                              (238, 232, 205)))
    x, y, w, h = r.x, r.y, r.w, r.h
    polygon(canvas, [(x + 0.36 * w, y + 0.04 * h), (x + 0.64 * w, y + 0.04 * h),
                     (x + 0.66 * w, y + 0.25 * h), (x + 0.98 * w, y + 0.40 * h),
                     (x + 0.98 * w, y + h), (x + 0.02 * w, y + h), (x + 0.02 * w, y + 0.40 * h),
                     (x + 0.34 * w, y + 0.25 * h)], glass)
    rectangle(canvas, x + 0.30 * w, y, 0.40 * w, 0.09 * h, cap)
    rectangle(canvas, x + 0.02 * w, y + 0.48 * h, 0.96 * w, 0.2 * h, sign)
    rectangle(canvas, x + 0.13 * w, y + 0.42 * h, 0.1 * w, 0.5 * h, shade(glass, 1.35))


def _phone(canvas: Image, r: Region, k: float, variant: int) -> None:
    rectangle(canvas, r.x, r.y, r.w, r.h, shade((18, 18, 22), k))
    rectangle(canvas, r.x + 0.08 * r.w, r.y + 0.08 * r.h, 0.84 * r.w, 0.80 * r.h,
              shade(COLORS['phone'][variant % 3], 0.5 + 0.5 * k))      # a screen shines by itself
    for row in (0.2, 0.36, 0.52):
        rectangle(canvas, r.x + 0.2 * r.w, r.y + row * r.h, 0.6 * r.w, 0.07 * r.h,
                  shade((235, 242, 250), 0.5 + 0.5 * k))


def _key(canvas: Image, r: Region, k: float, variant: int) -> None:
    gold = shade(COLORS['key'][variant % 3], k)
    u, w = r.x + r.w / 2, r.w
    # the bow is up, the teeth point out of the hand to the side
    ellipse(canvas, (u, r.y + 0.5 * w), (0.37 * w, 0.37 * w), gold,
            thickness=max(2, round(0.24 * w)))
    rectangle(canvas, u - 0.10 * w, r.y + 0.95 * w, 0.20 * w, r.h - 0.95 * w, gold)
    for row in (0.56, 0.70):
        rectangle(canvas, u, r.y + row * r.h, 0.46 * w, 0.08 * r.h, gold)


HELD: dict[str, Callable[[Image, Region, float, int], None]] = {
    'apple': _apple, 'bottle': draw_bottle, 'phone': _phone, 'key': _key}


@lru_cache(maxsize=256)
def tone(variant: int) -> Color:
    """Return a random colour, neither black nor white."""
    r, g, b = np.random.default_rng(variant).uniform(40, 240, 3)
    return float(r), float(g), float(b)


def draw_cup(canvas: Image, item: Item, k: float) -> None:
    """Draw a cup, k times as bright as in plain light."""
    c, r = shade(tone(item.variant), k), item.region
    x, y, s = r.x, r.y, r.w
    side = 1 if item.variant % 2 else -1
    u = x + s / 2 - side * 0.10 * s
    ellipse(canvas, (u + side * 0.36 * s, y + 0.55 * s), (0.19 * s, 0.21 * s), shade(c, 0.8),
            thickness=max(2, round(0.10 * s)))
    polygon(canvas, [(u - 0.36 * s, y + 0.14 * s), (u + 0.36 * s, y + 0.14 * s),
                     (u + 0.28 * s, y + s), (u - 0.28 * s, y + s)], c)
    oval(canvas, u, y + 0.14 * s, 0.36 * s, 0.11 * s, shade(c, 1.2))
    oval(canvas, u, y + 0.15 * s, 0.29 * s, 0.075 * s, shade((60, 38, 26), k))


def _ball(canvas: Image, item: Item, k: float) -> None:
    c, r = shade(tone(item.variant), k), item.region
    u, v, a = r.x + r.w / 2, r.y + r.h / 2, r.w * 0.48
    oval(canvas, u, v, a, a, c)
    ellipse(canvas, (u, v), (0.36 * a, a), shade((245, 245, 240), k),
            float(item.variant % 90) - 45)
    oval(canvas, u - 0.35 * a, v - 0.4 * a, 0.2 * a, 0.16 * a, shade((255, 255, 255), k))


def _box(canvas: Image, item: Item, k: float) -> None:
    r = item.region
    c = shade((196, 150, 98), k * (0.85 + 0.3 * (item.variant % 100) / 100))
    x, y, s = r.x, r.y, r.w
    rectangle(canvas, x + 0.02 * s, y + 0.28 * s, 0.70 * s, 0.72 * s, c)
    polygon(canvas, [(x + 0.02 * s, y + 0.28 * s), (x + 0.27 * s, y + 0.06 * s),
                     (x + 0.98 * s, y + 0.06 * s), (x + 0.72 * s, y + 0.28 * s)], shade(c, 1.18))
    polygon(canvas, [(x + 0.72 * s, y + 0.28 * s), (x + 0.98 * s, y + 0.06 * s),
                     (x + 0.98 * s, y + 0.78 * s), (x + 0.72 * s, y + s)], shade(c, 0.7))
    rectangle(canvas, x + 0.30 * s, y + 0.28 * s, 0.14 * s, 0.72 * s, shade(c, 0.82))


def _book(canvas: Image, item: Item, k: float) -> None:
    c, r = shade(tone(item.variant), k), item.region
    x, y, s = r.x, r.y, r.w
    # open and leaning back: two white pages between coloured covers
    for side in (-1, 1):
        u = x + s / 2
        polygon(canvas, [(u, y + 0.20 * s), (u + side * 0.50 * s, y + 0.08 * s),
                         (u + side * 0.50 * s, y + 0.90 * s), (u, y + s)], c)
        polygon(canvas, [(u, y + 0.22 * s), (u + side * 0.43 * s, y + 0.13 * s),
                         (u + side * 0.43 * s, y + 0.82 * s), (u, y + 0.92 * s)],
                shade((238, 234, 222) if side < 0 else (222, 218, 205), k))
        for row in (0.32, 0.46, 0.60):
            polygon(canvas, [(u + side * 0.07 * s, y + row * s),
                             (u + side * 0.36 * s, y + (row - 0.06) * s),
                             (u + side * 0.36 * s, y + (row - 0.01) * s),
                             (u + side * 0.07 * s, y + (row + 0.05) * s)],
                    shade((130, 128, 125), k))


ITEMS: dict[str, Callable[[Image, Item, float], None]] = {
    'cup': draw_cup, 'ball': _ball, 'box': _box, 'book': _book}
