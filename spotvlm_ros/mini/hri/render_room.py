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
"""Draws the room: wall, floor, and clutter that may be mistaken for the real thing."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
import math

import cv2
import numpy as np
import numpy.typing as npt

from . import hand_shape
from .render_hands import draw_hand, SKIN
from .render_things import draw_bottle, draw_cup, tone
from .scene import DIGITS, Hand, HEIGHT, Item, WIDTH
from ..drawing import capsule, oval, polygon, rectangle, shade
from ..pictures import Image
from ...method.facts import Region

PAD_X, PAD_TOP, PAD_LOW = 80, 200, 110   # spare columns and rows of the room


@lru_cache(maxsize=1)
def _texture() -> npt.NDArray[np.int16]:
    """Return uneven paint, larger than a room so that each has its own part of it."""
    rng = np.random.default_rng(5)
    size = (HEIGHT + PAD_TOP + PAD_LOW + 200, WIDTH + 2 * PAD_X + 200)
    paint = 9 * cv2.GaussianBlur(rng.normal(0, 4, size).astype(np.float32), (0, 0), 4)
    return np.repeat(paint[:, :, None], 3, axis=2).astype(np.int16)


@lru_cache(maxsize=4)  # 1.9 MB each
def room(variant: int) -> Image:
    """Return wall, floor and clutter that may be mistaken for the real thing."""
    rng = np.random.default_rng(variant + 3)
    h, w = HEIGHT + PAD_TOP + PAD_LOW, WIDTH + 2 * PAD_X
    floor = PAD_TOP + HEIGHT // 2 + 150
    wall = rng.uniform(105, 225) + rng.uniform(-28, 28, 3)
    ground = rng.uniform(60, 150) * np.array([1.1, 1.0, 0.88])
    slope = np.linspace(0.88, 1.08, h, dtype=np.float32)[:, None]
    rows = np.arange(h)[:, None]
    column = np.where(rows < floor, wall, ground).astype(np.float32) * slope
    dy, dx = rng.integers(0, 200, 2)
    plain = np.repeat(np.clip(column, 0, 255).astype(np.uint8)[:, None, :], w, axis=1)
    image = np.asarray(cv2.add(plain, _texture()[dy:dy + h, dx:dx + w], dtype=cv2.CV_8U))
    rectangle(image, 0, floor - 9, w, 12, shade((70, 64, 60), 1.0))
    kinds = rng.permutation(['window', 'poster', 'shelf', 'lamp', 'plant', 'door', 'poster',
                             'picture', 'shelf'])[:int(rng.integers(4, 7))]
    for kind, x in zip(kinds, np.linspace(20, w - 190, len(kinds)) + rng.uniform(-35, 35)):
        CLUTTER[str(kind)](image, float(x), float(floor), rng)
    return image


def _window(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    y, w, h = floor - float(rng.uniform(330, 420)), float(rng.uniform(120, 190)), 190.0
    rectangle(image, x - 8, y - 8, w + 16, h + 16, (205, 200, 190))
    rectangle(image, x, y, w, h, (232, 242, 252))
    rectangle(image, x, y + 0.7 * h, w, 0.3 * h, (150, 190, 130))
    rectangle(image, x + w / 2 - 4, y, 8, h, (205, 200, 190))


def _poster(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    """Draw a picture of a hand on the wall."""
    y, w = floor - float(rng.uniform(300, 430)), float(rng.uniform(70, 115))
    r, g, b = (float(v) for v in rng.uniform(60, 245, 3))
    rectangle(image, x - 4, y - 4, w + 8, 1.3 * w + 8, (45, 40, 38))
    rectangle(image, x, y, w, 1.3 * w, (r, g, b))
    skin = SKIN[int(rng.integers(len(SKIN)))]
    hand = Hand(x + w / 2, y + 1.18 * w, 0.95 * w, float(rng.uniform(-0.2, 0.2)),
                bool(rng.random() < 0.5), 'digit', int(rng.integers(len(DIGITS))),
                hand_shape.STEPS)
    draw_hand(image, hand, skin, 1.0)


def _picture(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    """Draw a portrait."""
    y, w = floor - float(rng.uniform(320, 430)), float(rng.uniform(60, 100))
    rectangle(image, x - 6, y - 6, w + 12, 1.2 * w + 12, (120, 88, 45))
    rectangle(image, x, y, w, 1.2 * w, tone(int(rng.integers(1000))))
    oval(image, x + w / 2, y + 0.45 * w, 0.2 * w, 0.26 * w,
         shade(SKIN[int(rng.integers(len(SKIN)))], 0.8))
    polygon(image, [(x + 0.2 * w, y + 1.2 * w), (x + 0.35 * w, y + 0.8 * w),
                    (x + 0.65 * w, y + 0.8 * w), (x + 0.8 * w, y + 1.2 * w)],
            tone(int(rng.integers(1000))))


def _shelf(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    """Draw boards with books, bottles, balls and cups."""
    w = float(rng.uniform(120, 180))
    for board in range(3):
        y = floor - 120.0 - 95 * board
        rectangle(image, x, y, w, 8, (110, 78, 50))
        at = x + 4
        while at < x + w - 22:
            color = tone(int(rng.integers(1000)))
            kind = int(rng.integers(5))
            if kind == 0:
                oval(image, at + 13, y - 13, 13, 13, color)
            elif kind == 1:
                draw_bottle(image, Region(at, y - 55, 20, 55), 0.9, int(rng.integers(3)))
            elif kind == 2:
                draw_cup(image, Item('cup', at + 14, y, 28, int(rng.integers(1000))), 0.9)
            else:
                rectangle(image, at, y - 52, 12, 52, color)
                at -= 13
            at += 30 + float(rng.uniform(0, 8))


def _lamp(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    top = floor - float(rng.uniform(260, 330))
    rectangle(image, x + 46, top, 7, floor - top, (70, 66, 64))
    polygon(image, [(x + 25, top - 50), (x + 75, top - 50), (x + 98, top + 8), (x + 2, top + 8)],
            (250, 228, 170))


def _plant(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    polygon(image, [(x + 15, floor - 60), (x + 85, floor - 60), (x + 72, floor + 12),
                    (x + 28, floor + 12)], (165, 90, 60))
    for _ in range(9):
        a, n = float(rng.uniform(-1.1, 1.1)), float(rng.uniform(70, 150))
        tip = (x + 50 + n * math.sin(a), floor - 60 - n * math.cos(a))
        capsule(image, (x + 50, floor - 60), tip, 9, 3,
                (float(rng.uniform(30, 80)), float(rng.uniform(90, 150)), 50))


def _door(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    color = tone(int(rng.integers(1000)))
    rectangle(image, x, floor - 400, 170, 400, shade(color, 0.7))
    rectangle(image, x + 10, floor - 390, 150, 390, color)
    oval(image, x + 145, floor - 180, 7, 7, (210, 190, 90))


CLUTTER: dict[str, Callable[[Image, float, float, np.random.Generator], None]] = {
    'window': _window, 'poster': _poster, 'picture': _picture, 'shelf': _shelf, 'lamp': _lamp,
    'plant': _plant, 'door': _door}
