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
"""Draws a scene of the driving world as the camera would see it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
import math

import cv2
import numpy as np

from . import digits
from .scene import DrivingScene, FOCAL, HEIGHT, RANGE, SHIFTED, Thing, WIDTH
from ..drawing import (add_noise, fixed, motion_blur, Noise, NOISE_SHAPE, polygon, shade, SHIFT)
from ..pictures import Color, Image

LAMPS: dict[str, Color] = {'red': (255, 40, 30), 'yellow': (255, 200, 30), 'green': (40, 235, 90)}
HAZE = {'rain': (110.0, 150.0), SHIFTED: (100.0, 190.0)}  # how far it lets one see [m], its grey
CAST = np.array([1.0, 0.95, 0.78])   # gain of red, green and blue of the shifted camera


def draw(scene: DrivingScene, seed: int) -> Image:
    """Return the picture of a scene, height x width x 3, RGB; a pure function of its arguments."""
    canvas = _ground(scene)
    for thing in sorted(scene.things, key=lambda t: -t.z):
        _DRAW[thing.kind](canvas, scene, thing)
    rng = np.random.default_rng([seed, scene.index, 7])
    if scene.condition == 'rain':
        _rain(canvas, scene, rng)
    if scene.condition == SHIFTED:
        canvas = np.asarray(canvas * CAST, np.uint8)
    return add_noise(motion_blur(canvas, scene.blur), _noise_bank(scene.condition), rng)


# -- geometry -----------------------------------------------------------------------------------

def _rect(canvas: Image, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
    if x1 - x0 >= 0.3 and y1 - y0 >= 0.3:
        polygon(canvas, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)


def _disc(canvas: Image, x: float, y: float, r: float, color: Color) -> None:
    cv2.circle(canvas, (fixed(x), fixed(y)), max(1, fixed(r)), color, -1, cv2.LINE_AA, SHIFT)


def _dim(scene: DrivingScene, color: Color, z: float, lit: bool = False) -> Color:
    """Darken at night (headlights reach about 40 m) and fade into haze with distance."""
    if lit:
        return color
    if scene.condition == 'night':
        gain = 0.20 + 0.5 * math.exp(-((z / 24.0) ** 2))
        return shade(color, gain)
    reach, fog = HAZE.get(scene.condition, (320.0, 200.0))
    haze = 1 - math.exp(-z / reach)
    return tuple(c + (fog - c) * haze for c in color)  # type: ignore[return-value]


def _palette(variant: int, low: int, high: int) -> Color:
    rng = np.random.default_rng(variant)
    r, g, b = rng.uniform(low, high, 3)
    return float(r), float(g), float(b)


# -- ground and sky -----------------------------------------------------------------------------

@lru_cache(maxsize=4)  # 1.2 MB each
def _backdrop(variant: int, condition: str) -> Image:
    """Sky and verge with 80 spare rows and columns, so that pitch and yaw are a crop."""
    rng = np.random.default_rng(variant)
    h, w = HEIGHT + 80, WIDTH
    rows = np.arange(h, dtype=np.float32)[:, None]
    horizon = 225.0 + 40.0
    sky_top = rng.uniform(90, 190) * np.array([0.75, 0.95, 1.2]) + rng.uniform(-12, 12, 3)
    sky_low = rng.uniform(170, 235) + rng.uniform(-12, 12, 3)
    verge = rng.uniform(60, 130, 3) * (0.9, 1.1, 0.7)
    if condition == SHIFTED:    # a desert in the evening
        sky_top, sky_low = np.array([205.0, 150.0, 130.0]), np.array([215.0, 185.0, 170.0])
        verge = rng.uniform(100, 160) * np.array([1.2, 0.9, 0.6])
    if condition == 'rain':
        sky_top, sky_low, verge = sky_top * 0.6, sky_low * 0.7, verge * 0.7
    if condition == 'night':
        sky_top, sky_low, verge = sky_top * 0.08, sky_low * 0.16, verge * 0.12
    mix = np.clip(rows / horizon, 0, 1)
    column = np.where(rows < horizon, sky_top * (1 - mix) + sky_low * mix, verge)
    image = np.repeat(column[:, None, :], w, axis=1)
    texture = cv2.GaussianBlur(rng.normal(0, 1, (h, w)).astype(np.float32), (0, 0), 3)
    image += texture[:, :, None] * (40 if condition == 'day' else 18)
    return np.asarray(np.clip(image, 0, 255), dtype=np.uint8)


def _ground(scene: DrivingScene) -> Image:
    top = int(round(40.0 - scene.pitch))
    canvas = _backdrop(scene.variant, scene.condition)[top:top + HEIGHT].copy()
    rng = np.random.default_rng(scene.variant + 1)
    grey = float(rng.uniform(60, 115))
    zs = np.array([2.0, 3, 4, 6, 9, 14, 22, 40, 90])
    for near, far in zip(zs[:-1], zs[1:]):
        color = _dim(scene, (grey, grey, grey + 4), float(far))
        _strip(canvas, scene, (-5.4, 5.4), (near, far), _dim(scene, (150, 145, 140), float(far)))
        _strip(canvas, scene, (-3.6, 3.6), (near, far), color)
    for k in range(12):  # dashes of the centre line move with the car
        near = 3.0 + k * 6.0 - scene.distance % 6.0
        if near > 2.0:
            _strip(canvas, scene, (-1.86, -1.70), (near, near + 2.5),
                   _dim(scene, (225, 225, 225), near))
    return canvas


def _strip(canvas: Image, scene: DrivingScene, across: tuple[float, float],
           along: tuple[float, float], color: Color) -> None:
    """Paint a piece of the road from left to right and from near to far [m]."""
    (x0, x1), (near, far) = across, along
    polygon(canvas, [scene.project(x0, 0, near), scene.project(x1, 0, near),
                     scene.project(x1, 0, far), scene.project(x0, 0, far)], color)


# -- things -------------------------------------------------------------------------------------

def _box(scene: DrivingScene, thing: Thing) -> tuple[float, float, float, float, float]:
    """Return left, top, right, bottom [pixels] and pixels per metre."""
    u, v = scene.project(thing.x, thing.base, thing.z)
    m = FOCAL / thing.z
    return u - thing.w * m / 2, v - thing.h * m, u + thing.w * m / 2, v, m


def _light(canvas: Image, scene: DrivingScene, thing: Thing) -> None:
    x0, y0, x1, y1, m = _box(scene, thing)
    u = (x0 + x1) / 2
    _rect(canvas, u - 0.06 * m, y1, u + 0.06 * m, y1 + thing.base * m,
          _dim(scene, (70, 70, 70), thing.z))
    housing: Color = (80, 70, 25) if scene.condition == SHIFTED else (25, 25, 25)
    _rect(canvas, x0, y0, x1, y1, _dim(scene, housing, thing.z))
    for k, name in enumerate(('red', 'yellow', 'green')):
        cy, r = y0 + (k + 0.5) * (y1 - y0) / 3, 0.19 * m
        if name == thing.state:
            if scene.condition == 'night':
                _glow(canvas, u, cy, 3.0 * r, LAMPS[name])
            _disc(canvas, u, cy, r, LAMPS[name])
        else:
            _disc(canvas, u, cy, r, _dim(scene, (55, 50, 48), thing.z))


def _glow(canvas: Image, u: float, v: float, r: float, color: Color) -> None:
    """Add a soft halo around a lamp."""
    half = int(r * 2) + 2
    x0, y0 = max(0, int(u) - half), max(0, int(v) - half)
    patch = canvas[y0:int(v) + half, x0:int(u) + half]
    if patch.size == 0:
        return
    ys, xs = np.mgrid[y0:y0 + patch.shape[0], x0:x0 + patch.shape[1]]
    halo = 0.45 * np.exp(-((xs - u) ** 2 + (ys - v) ** 2) / (r * r + 1e-6))
    patch[:] = np.clip(patch + halo[:, :, None] * np.array(color), 0, 255).astype(np.uint8)


def _limit(canvas: Image, scene: DrivingScene, thing: Thing) -> None:
    x0, y0, x1, y1, m = _box(scene, thing)
    u, v, r = (x0 + x1) / 2, (y0 + y1) / 2, (y1 - y0) / 2
    _rect(canvas, u - 0.05 * m, v, u + 0.05 * m, y1 + thing.base * m,
          _dim(scene, (110, 110, 112), thing.z))
    # Signs reflect the headlights, so the night does not darken them as much.
    z = thing.z * (0.7 if scene.condition == 'night' else 1.0)
    if scene.condition == SHIFTED:    # on a square board
        _rect(canvas, u - 1.2 * r, v - 1.2 * r, u + 1.2 * r, v + 1.2 * r,
              _dim(scene, (40, 80, 160), z))
    _disc(canvas, u, v, r, _dim(scene, (205, 25, 30), z))
    _disc(canvas, u, v, 0.76 * r, _dim(scene, (245, 245, 245), z))
    height = r * (0.615 if len(thing.state) == 3 else 0.828)
    corner = (u - (0.4585 * len(thing.state) - 0.044) * height, v - 0.346 * height)
    digits.write(canvas, thing.state, corner, height, r >= 10.5, _dim(scene, (15, 15, 15), z))


def _vehicle(canvas: Image, scene: DrivingScene, thing: Thing) -> None:
    x0, y0, x1, y1, m = _box(scene, thing)
    rng = np.random.default_rng(thing.variant)
    tall = 1.0 + 0.55 * float(rng.random() < 0.3)  # some are vans
    y0 = y1 - (y1 - y0) * tall
    body = _dim(scene, _palette(thing.variant, 30, 230), thing.z)
    polygon(canvas, [(x0 - 0.1 * m, y1), (x1 + 0.1 * m, y1), (x1, y1 + 0.12 * m),
                     (x0, y1 + 0.12 * m)], _dim(scene, (25, 25, 28), thing.z))
    polygon(canvas, [(x0, y1 - 0.25 * m), (x0, y0 + 0.45 * (y1 - y0)), (x0 + 0.22 * m, y0),
                     (x1 - 0.22 * m, y0), (x1, y0 + 0.45 * (y1 - y0)), (x1, y1 - 0.25 * m)], body)
    _rect(canvas, x0 + 0.3 * m, y0 + 0.12 * m, x1 - 0.3 * m, y0 + 0.40 * (y1 - y0),
          _dim(scene, (45, 55, 65), thing.z))
    for x in (x0 + 0.05 * m, x1 - 0.35 * m):
        _rect(canvas, x, y1 - 0.30 * m, x + 0.30 * m, y1 + 0.02 * m,
              _dim(scene, (15, 15, 15), thing.z))
    if thing.kind != 'lead':
        return
    night = scene.condition == 'night'
    braking = thing.state == 'braking'
    color: Color = (255, 45, 35) if braking else (150, 12, 14) if night else (110, 22, 22)
    lit = braking or night
    y = y1 - 0.72 * m
    for x in (x0 + 0.04 * m, x1 - 0.40 * m):
        _rect(canvas, x, y, x + 0.36 * m, y + 0.22 * m, _dim(scene, color, thing.z, lit))
        if braking:
            _glow(canvas, x + 0.18 * m, y + 0.11 * m, 0.40 * m, color)
    if braking:  # the third brake light
        u = (x0 + x1) / 2
        _rect(canvas, u - 0.25 * m, y0 + 0.03 * m, u + 0.25 * m, y0 + 0.11 * m, color)


def _pedestrian(canvas: Image, scene: DrivingScene, thing: Thing) -> None:
    x0, y0, x1, y1, m = _box(scene, thing)
    u, w = (x0 + x1) / 2, (x1 - x0)
    # The variant's last bit is the phase of the step; clothes must not change with it.
    coat = _dim(scene, _palette(thing.variant >> 1, 15, 235), thing.z)
    legs = _dim(scene, _palette((thing.variant >> 1) + 1, 15, 140), thing.z)
    stride = 0.16 * m if thing.variant % 2 else 0.05 * m
    for side in (-1, 1):
        polygon(canvas, [(u - 0.09 * m, y1 - 0.85 * m), (u + 0.09 * m, y1 - 0.85 * m),
                         (u + side * stride + 0.08 * m, y1), (u + side * stride - 0.08 * m, y1)],
                legs)
    _rect(canvas, u - 0.36 * w, y1 - 1.5 * m, u + 0.36 * w, y1 - 0.75 * m, coat)
    _disc(canvas, u, y0 + 0.13 * m, 0.13 * m, _dim(scene, (205, 160, 130), thing.z))


def _building(canvas: Image, scene: DrivingScene, thing: Thing) -> None:
    x0, y0, x1, y1, m = _box(scene, thing)
    _rect(canvas, x0, y0, x1, y1, _dim(scene, _palette(thing.variant, 70, 190), thing.z))
    rng = np.random.default_rng(thing.variant + 1)
    for row in range(int(thing.h // 1.6)):
        for col in range(int(thing.w // 1.3)):
            lit = bool(rng.random() < 0.3)
            wx, wy = x0 + (0.35 + 1.3 * col) * m, y0 + (0.4 + 1.6 * row) * m
            night_lit = lit and scene.condition == 'night'
            color = (220.0, 190.0, 110.0) if night_lit else (60.0, 70.0, 85.0)
            _rect(canvas, wx, wy, wx + 0.7 * m, wy + 0.9 * m,
                  _dim(scene, color, thing.z, night_lit))


def _tree(canvas: Image, scene: DrivingScene, thing: Thing) -> None:
    x0, y0, x1, y1, m = _box(scene, thing)
    u = (x0 + x1) / 2
    _rect(canvas, u - 0.15 * m, y0, u + 0.15 * m, y1, _dim(scene, (80, 60, 45), thing.z))
    rng = np.random.default_rng(thing.variant)
    for _ in range(5):
        _disc(canvas, u + float(rng.uniform(-1, 1)) * m, y0 + float(rng.uniform(0, 1.6)) * m,
              float(rng.uniform(0.7, 1.3)) * m,
              _dim(scene, (float(rng.uniform(20, 70)), float(rng.uniform(70, 130)), 40), thing.z))


def _clutter(canvas: Image, scene: DrivingScene, thing: Thing) -> None:
    """Draw what may be mistaken for the real thing: shop signs, coloured lamps, posts, ads."""
    x0, y0, x1, y1, m = _box(scene, thing)
    rng = np.random.default_rng(thing.variant)
    u, kind = (x0 + x1) / 2, int(rng.integers(4))
    top = y1 - float(rng.uniform(1.4, 3.2)) * m
    color = list(LAMPS.values())[int(rng.integers(3))]
    lit = scene.condition == 'night'
    if kind == 0:    # lamp over a shop
        _rect(canvas, u - 0.7 * m, top, u + 0.7 * m, top + 0.35 * m,
              _dim(scene, color, thing.z, lit))
    elif kind == 1:  # round sign without a number
        _rect(canvas, u - 0.05 * m, top, u + 0.05 * m, y1, _dim(scene, (110, 110, 110), thing.z))
        _disc(canvas, u, top, 0.5 * m,
              _dim(scene, (30, 60, 170) if rng.random() < 0.5 else (205, 25, 30), thing.z))
        _rect(canvas, u - 0.3 * m, top - 0.09 * m, u + 0.3 * m, top + 0.09 * m,
              _dim(scene, (240, 240, 240), thing.z))
    elif kind == 2:  # post
        _rect(canvas, u - 0.14 * m, y1 - 1.6 * m, u + 0.14 * m, y1,
              _dim(scene, _palette(thing.variant, 20, 220), thing.z))
    else:            # advertisement
        _rect(canvas, u - 1.0 * m, top, u + 1.0 * m, top + 1.2 * m,
              _dim(scene, _palette(thing.variant, 40, 250), thing.z))
        _disc(canvas, u, top + 0.6 * m, 0.25 * m, _dim(scene, color, thing.z))


_DRAW: dict[str, Callable[[Image, DrivingScene, Thing], None]] = {
    'light': _light, 'limit': _limit, 'lead': _vehicle, 'parked': _vehicle,
    'pedestrian': _pedestrian, 'building': _building, 'tree': _tree, 'clutter': _clutter,
}


# -- weather and sensor -------------------------------------------------------------------------

def _rain(canvas: Image, scene: DrivingScene, rng: np.random.Generator) -> None:
    for x, y, n in zip(rng.uniform(0, WIDTH, 90), rng.uniform(-20, HEIGHT, 90),
                       rng.uniform(8, 26, 90)):
        cv2.line(canvas, (int(x), int(y)), (int(x - 0.15 * n), int(y + n)),
                 (165, 168, 172), 1, cv2.LINE_AA)
    # The wiper crosses the picture every 1.2 s.
    angle = math.pi * abs((scene.index / 20.0 / 1.2) % 2.0 - 1.0)
    foot = (WIDTH / 2, HEIGHT + 60.0)
    tip = (foot[0] + 620 * math.cos(angle), foot[1] - 620 * math.sin(angle))
    cv2.line(canvas, (int(foot[0]), int(foot[1])), (int(tip[0]), int(tip[1])), (22, 22, 24), 11,
             cv2.LINE_AA)


@lru_cache(maxsize=4)
def _noise_bank(condition: str) -> Noise:
    rng = np.random.default_rng(99)
    noise = np.asarray(rng.normal(0, 16, NOISE_SHAPE), dtype=np.int16)
    return noise // {'day': 4, 'rain': 3, 'night': 2, SHIFTED: 1}[condition]


assert set(RANGE) <= set(_DRAW)
