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
"""Draws a scene of the HRI world as the robot's camera would see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
import math

import cv2
import numpy as np
import numpy.typing as npt

from . import hand_shape
from .world import (Arm, DIGITS, Hand, HEIGHT, Item, Person, photo_wrist, Scene, SPRITE_PX, WIDTH)
from ..driving.render import add_noise, motion_blur, Noise, NOISE_SHAPE
from ...method.facts import Region

Image = npt.NDArray[np.uint8]
Color = tuple[float, float, float]
Point = tuple[float, float]
SHIFT = 4                  # OpenCV draws at 1/16 pixel, so that slow motion looks continuous
SPRITE = 160.0             # pixels of a drawn hand's unit
ORIGIN = (80, 184)         # its wrist in the sprite
PAD_X, PAD_TOP, PAD_LOW = 80, 200, 110   # spare columns and rows of the room
SKIN: tuple[Color, ...] = ((241, 205, 178), (226, 182, 148), (205, 155, 118), (172, 121, 86),
                           (133, 90, 62), (97, 65, 46))


def draw(scene: Scene, seed: int) -> Image:
    """Return the picture of a scene, height x width x 3, RGB; a pure function of its arguments."""
    top, left = round(PAD_TOP - scene.pitch), round(PAD_X - scene.yaw)
    top = min(max(0, top), PAD_TOP + PAD_LOW)
    left = min(max(0, left), 2 * PAD_X)
    canvas = _room(scene.look)[top:top + HEIGHT, left:left + WIDTH].copy()
    partner, k = scene.partner, scene.light.person
    behind = [w for w in scene.walkers if partner is None or w.z > partner.z]
    for walker in behind:
        _walker(canvas, walker, k)
    style = _style(scene.look, scene.skin)
    if partner is not None:
        _trunk(canvas, partner, style, k)
        for arm in partner.arms:
            if not _in_front(scene, arm):
                _arm(canvas, partner, arm, style, k)
    _counter(canvas, scene, k)
    for item in sorted(scene.items, key=lambda one: one.y):
        _ITEM[item.kind](canvas, item, k)
    if partner is not None:
        for arm in partner.arms:
            if _in_front(scene, arm):
                _arm(canvas, partner, arm, style, k)
    for walker in scene.walkers[len(behind):]:
        _walker(canvas, walker, k)
    if scene.post is not None:
        _post(canvas, scene.post, scene.look)
    rng = np.random.default_rng([seed, scene.index, 7])
    return _sensor(motion_blur(canvas, scene.light.blur), scene, rng)


def _in_front(scene: Scene, arm: Arm) -> bool:
    """Whether an arm is over the counter and what stands on it."""
    return arm.hand.y < scene.counter[0] or arm.target >= 0 and arm.out


# -- geometry -----------------------------------------------------------------------------------

def _poly(canvas: Image, points: Iterable[Point], color: Color) -> None:
    fixed = np.rint(np.array(list(points)) * (1 << SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], color, cv2.LINE_AA, SHIFT)


def _rect(canvas: Image, x: float, y: float, w: float, h: float, color: Color) -> None:
    _poly(canvas, [(x, y), (x + w, y), (x + w, y + h), (x, y + h)], color)


def _fixed(value: float) -> int:
    return round(float(value) * (1 << SHIFT))


def _oval(canvas: Image, x: float, y: float, a: float, b: float, color: Color,
          angle: float = 0.0, start: float = 0.0, end: float = 360.0) -> None:
    if a > 0.3 and b > 0.3:
        cv2.ellipse(canvas, (_fixed(x), _fixed(y)), (_fixed(a), _fixed(b)), angle, start, end,
                    color, -1, cv2.LINE_AA, SHIFT)


_ARC = np.linspace(0, np.pi, 9)


def _capsule(canvas: Image, p: Point, q: Point, r: float, s: float, color: Color) -> None:
    """Draw a limb with round ends of radius r at p and s at q."""
    a = math.atan2(q[1] - p[1], q[0] - p[0]) + math.pi / 2
    first = np.stack([p[0] + r * np.cos(a + _ARC), p[1] + r * np.sin(a + _ARC)], axis=1)
    second = np.stack([q[0] - s * np.cos(a + _ARC), q[1] - s * np.sin(a + _ARC)], axis=1)
    fixed = np.rint(np.concatenate([first, second]) * (1 << SHIFT)).astype(np.int32)
    cv2.fillConvexPoly(canvas, fixed, color, cv2.LINE_AA, SHIFT)


def _lit(color: Color, k: float) -> Color:
    return color[0] * k, color[1] * k, color[2] * k


def _paste(canvas: Image, sprite: Image, matrix: npt.NDArray[np.float64], k: float = 1.0) -> None:
    """Draw a sprite (RGBA) through an affine map from its pixels to those of the canvas."""
    scale = math.hypot(matrix[0, 0], matrix[1, 0])
    matrix = matrix.copy()
    while scale < 0.6 and min(sprite.shape[:2]) > 8:   # halves of it, so that nothing aliases
        h, w = sprite.shape[:2]
        sprite = np.asarray(cv2.resize(sprite, (w // 2, h // 2), interpolation=cv2.INTER_AREA),
                            dtype=np.uint8)
        matrix[:, 0] *= w / (w // 2)
        matrix[:, 1] *= h / (h // 2)
        scale *= 2
    h, w = sprite.shape[:2]
    corners = np.array([(0, 0, 1), (w, 0, 1), (0, h, 1), (w, h, 1)]) @ matrix.T
    x0, y0 = (max(0, int(v) - 1) for v in np.floor(corners.min(axis=0)))
    x1 = min(canvas.shape[1], int(corners[:, 0].max()) + 2)
    y1 = min(canvas.shape[0], int(corners[:, 1].max()) + 2)
    if x1 <= x0 or y1 <= y0:
        return
    matrix[:, 2] -= (x0, y0)
    warped = cv2.warpAffine(sprite, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    patch = canvas[y0:y1, x0:x1]
    alpha = warped[:, :, 3:].astype(np.float32) / 255.0
    patch[:] = (patch * (1 - alpha) + warped[:, :, :3] * np.float32(k)).astype(np.uint8)


# -- hands --------------------------------------------------------------------------------------

@lru_cache(maxsize=128)
def _sprite(pose: str, digit: int, step: int, skin: Color) -> Image:
    """Return a drawn hand, its colours multiplied by its alpha."""
    size = (int(1.45 * SPRITE), int(1.15 * SPRITE), 3)
    dark, mid = _lit(skin, 0.52), _lit(skin, 0.90)
    color = np.full(size, skin, np.uint8)
    alpha = np.zeros(size, np.uint8)

    def at(point: Point) -> Point:
        return ORIGIN[0] + SPRITE * point[0], ORIGIN[1] - SPRITE * point[1]

    def line(stroke: hand_shape.Stroke, fill: Color) -> None:
        for grow, paint in ((hand_shape.EDGE, dark), (0.0, fill)):
            r = (stroke.radius + grow) * SPRITE
            for p, q in zip(stroke.points, stroke.points[1:]):
                _capsule(color, at(p), at(q), r, r * 0.93, paint)
                _capsule(alpha, at(p), at(q), r, r * 0.93, (255, 255, 255))

    parts = hand_shape.strokes(pose, digit, step)
    for stroke in parts:
        if not stroke.front:
            line(stroke, skin)
    outline = [at(p) for p in hand_shape.palm(pose, digit, step)]
    _poly(alpha, outline, (255, 255, 255))
    _poly(color, outline, skin)
    for stroke in parts:
        if stroke.front:
            line(stroke, mid)
    rgba = np.dstack([color, alpha[:, :, :1]])
    rgba[:, :, :3] = (rgba[:, :, :3].astype(np.uint16) * rgba[:, :, 3:] // 255).astype(np.uint8)
    return rgba


def _hand(canvas: Image, hand: Hand, skin: Color, k: float) -> None:
    if hand.photo is not None:
        sprite = hand.photo.copy()
        sprite[:, :, :3] = (sprite[:, :, :3].astype(np.uint16) * sprite[:, :, 3:] // 255)
        wrist, unit = (photo_wrist(hand.photo), float(hand.photo.shape[0])), SPRITE_PX
    else:
        sprite, wrist, unit = _sprite(hand.pose, hand.digit, hand.step, skin), ORIGIN, SPRITE
    corners = np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])     # in the hand's coordinates
    origin, right, up = hand.place(corners)
    matrix = np.stack([(right - origin) / unit, -(up - origin) / unit], axis=1)
    offset = origin - matrix @ np.array(wrist)
    _paste(canvas, sprite, np.column_stack([matrix, offset]), k)


# -- people -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Style:
    """How somebody looks."""

    skin: Color
    hair: Color
    shirt: Color
    trousers: Color
    long: bool       # hair
    glasses: bool
    bare: bool       # forearms


@lru_cache(maxsize=256)
def _style(look: int, skin: Color | None = None) -> _Style:
    rng = np.random.default_rng(look)
    own = SKIN[int(rng.integers(len(SKIN)))]
    jitter = float(rng.uniform(0.94, 1.06))
    hair = [(35, 26, 22), (82, 54, 34), (150, 110, 62), (60, 60, 64), (170, 168, 165)]
    shirt, trousers = rng.uniform(25, 235, 3), rng.uniform(20, 120, 3)
    return _Style(skin or _lit(own, jitter), hair[int(rng.integers(len(hair)))],
                  (float(shirt[0]), float(shirt[1]), float(shirt[2])),
                  (float(trousers[0]), float(trousers[1]), float(trousers[2])),
                  bool(rng.random() < 0.4), bool(rng.random() < 0.25), bool(rng.random() < 0.5))


def _trunk(canvas: Image, person: Person, style: _Style, k: float) -> None:
    """Draw head, trunk and legs of the partner."""
    x, y, m = person.x, person.y, person.m
    trousers, shirt = _lit(style.trousers, k), _lit(style.shirt, k)
    for side in (-1, 1):
        _capsule(canvas, (x + side * 0.09 * m, y + 0.58 * m), (x + side * 0.11 * m, y + 1.38 * m),
                 0.085 * m, 0.06 * m, trousers)
    _poly(canvas, [(x - 0.21 * m, y + 0.02 * m), (x - 0.07 * m, y - 0.05 * m),
                   (x + 0.07 * m, y - 0.05 * m), (x + 0.21 * m, y + 0.02 * m),
                   (x + 0.17 * m, y + 0.36 * m), (x + 0.18 * m, y + 0.62 * m),
                   (x - 0.18 * m, y + 0.62 * m), (x - 0.17 * m, y + 0.36 * m)], shirt)
    _face(canvas, person, style, k)


def _face(canvas: Image, person: Person, style: _Style, k: float) -> None:
    """Draw a head that is turned by moving what is in the face."""
    r, turn, nod = person.head, person.turn, person.nod
    skin, hair = _lit(style.skin, k), _lit(style.hair, k)
    line = _lit(style.skin, 0.45 * k)
    u, v, a, b = r.x + r.w / 2, r.y + r.h / 2, r.w / 2, r.h / 2
    _rect(canvas, person.x - 0.35 * a, v + 0.5 * b, 0.7 * a, 0.9 * b, _lit(style.skin, 0.8 * k))
    if style.long:
        _oval(canvas, u - 0.18 * a * turn, v + 0.15 * b, 1.05 * a, 1.12 * b, hair)
    _oval(canvas, u, v, a * 0.96, b, hair)
    face_x = u + 0.30 * a * turn
    _oval(canvas, face_x, v + (0.16 + 0.20 * nod) * b, a * (0.86 - 0.10 * abs(turn)),
          (0.84 - 0.12 * nod) * b, skin)
    if abs(turn) < 0.95:
        for side in (-1, 1):                                     # ears
            hidden = side * turn > 0.3
            if not hidden:
                _oval(canvas, u + side * 0.93 * a - 0.25 * a * turn, v + (0.1 - 0.12 * nod) * b,
                      0.11 * a, 0.2 * b, _lit(skin, 0.88))
    shift, drop = 0.62 * a * turn, 0.34 * b * nod
    eye_y = v + 0.02 * b + drop
    narrow = 1.0 - 0.35 * abs(turn)
    for side in (-1, 1):
        ex = u + shift + side * 0.36 * a * narrow
        far_eye = side * turn > 0.3                              # the one that turns away
        ew = a * (0.11 if far_eye else 0.2)
        brow = eye_y - (0.25 - 0.05 * nod) * b
        _poly(canvas, [(ex - 1.1 * ew, brow), (ex + 1.1 * ew, brow),
                       (ex + 1.1 * ew, brow + 0.07 * b), (ex - 1.1 * ew, brow + 0.07 * b)], hair)
        if nod > 0.5:                                            # lids
            _poly(canvas, [(ex - ew, eye_y), (ex + ew, eye_y), (ex + 0.6 * ew, eye_y + 0.09 * b),
                           (ex - 0.6 * ew, eye_y + 0.09 * b)], line)
        else:
            _oval(canvas, ex, eye_y, ew, 0.12 * b * (1 - 0.5 * nod), _lit((245, 245, 242), k))
            _oval(canvas, ex + 0.42 * ew * turn, eye_y + 0.04 * b * nod, 0.085 * a + 0.1 * ew,
                  0.105 * b * (1 - 0.5 * nod), _lit((28, 22, 20), k))
        if style.glasses and a > 14:
            cv2.ellipse(canvas, (_fixed(ex), _fixed(eye_y)), (_fixed(1.35 * ew), _fixed(0.19 * b)),
                        0, 0, 360, _lit((20, 20, 24), k), max(1, round(0.04 * a)), cv2.LINE_AA,
                        SHIFT)
    nose = u + shift * 1.18
    _poly(canvas, [(nose - 0.06 * a, eye_y + 0.1 * b), (nose + 0.06 * a, eye_y + 0.1 * b),
                   (nose + (0.14 + 0.12 * turn) * a, eye_y + 0.42 * b),
                   (nose - (0.14 - 0.12 * turn) * a, eye_y + 0.42 * b)], _lit(skin, 0.82))
    _oval(canvas, u + shift * 0.95, v + (0.60 + 0.16 * nod) * b, 0.26 * a * narrow, 0.06 * b,
          _lit((150, 62, 58), k))


def _arm(canvas: Image, person: Person, arm: Arm, style: _Style, k: float) -> None:
    m, hand = person.m, arm.hand
    sleeve = _lit(style.shirt, 0.86 * k)
    wrist = (hand.x, hand.y)
    _capsule(canvas, arm.shoulder, arm.elbow, 0.062 * m, 0.050 * m, sleeve)
    fore = _lit(style.skin, 0.92 * k) if style.bare or hand.photo is not None else sleeve
    _capsule(canvas, arm.elbow, wrist, 0.050 * m, 0.033 * m, fore)
    if arm.held:
        _HELD[arm.held](canvas, arm.held_region(m), k, person.look)
    _hand(canvas, hand, style.skin, k)


def _walker(canvas: Image, person: Person, k: float) -> None:
    """Draw a bystander from the side."""
    style = _style(person.look)
    x, y, m, d = person.x, person.y, person.m, person.heading
    shirt, trousers = _lit(style.shirt, k), _lit(style.trousers, k)
    skin, hair = _lit(style.skin, k), _lit(style.hair, k)
    swing = math.sin(person.step)
    hip, neck = (x, y + 0.55 * m), (x, y + 0.02 * m)
    for sign, shade in ((-1, 0.75), (1, 1.0)):
        foot = (x + sign * swing * 0.30 * m, y + 1.38 * m)
        _capsule(canvas, hip, foot, 0.095 * m, 0.055 * m, _lit(trousers, shade))
    _capsule(canvas, (x, y + 0.06 * m), hip, 0.125 * m, 0.11 * m, shirt)
    elbow = (x - swing * 0.10 * m, y + 0.30 * m)
    hand = (x - swing * 0.22 * m + 0.05 * d * m, y + 0.53 * m)
    _capsule(canvas, neck, elbow, 0.055 * m, 0.045 * m, _lit(shirt, 0.8))
    _capsule(canvas, elbow, hand, 0.043 * m, 0.033 * m, _lit(shirt, 0.8))
    _oval(canvas, hand[0], hand[1] + 0.03 * m, 0.038 * m, 0.05 * m, skin)
    r = person.head
    u, v, a, b = r.x + r.w / 2, r.y + r.h / 2, r.w / 2, r.h / 2
    _rect(canvas, u - 0.45 * a, v + 0.6 * b, 0.8 * a, 0.6 * b, _lit(skin, 0.8))
    _oval(canvas, u, v, 0.92 * a, b, skin)
    _poly(canvas, [(u + d * 0.80 * a, v - 0.08 * b), (u + d * 1.12 * a, v + 0.22 * b),
                   (u + d * 0.76 * a, v + 0.26 * b)], skin)
    _oval(canvas, u - d * 0.30 * a, v - 0.14 * b, 0.70 * a, 0.88 * b, hair)
    _oval(canvas, u - d * 0.06 * a, v - 0.55 * b, 0.80 * a, 0.46 * b, hair)
    if style.long:
        _oval(canvas, u - d * 0.62 * a, v + 0.4 * b, 0.4 * a, 0.75 * b, hair)
    _oval(canvas, u + d * 0.58 * a, v + 0.0 * b, 0.10 * a, 0.09 * b, _lit((25, 20, 20), k))


# -- what is held out, and what stands on the counter -------------------------------------------

# Colours differ from episode to episode: the shape tells what it is.
_LOOKS: dict[str, tuple[Color, ...]] = {
    'apple': ((200, 32, 36), (120, 175, 50), (225, 175, 60)),
    'bottle': ((40, 130, 75), (120, 72, 32), (95, 150, 200)),
    'phone': ((90, 160, 235), (225, 120, 60), (70, 190, 120)),
    'key': ((214, 170, 52), (190, 194, 200), (176, 108, 62)),
}


def _apple(canvas: Image, r: Region, k: float, look: int) -> None:
    u, v, a = r.x + r.w / 2, r.y + r.h * 0.56, r.w / 2
    red = _lit(_LOOKS['apple'][look % 3], k)
    for side in (-1, 1):
        _oval(canvas, u + side * 0.34 * a, v, 0.66 * a, 0.86 * a, red)
    _oval(canvas, u - 0.4 * a, v - 0.3 * a, 0.16 * a, 0.24 * a, _lit((240, 150, 140), k))
    _capsule(canvas, (u, v - 0.65 * a), (u + 0.1 * a, v - 1.05 * a), 0.06 * a, 0.06 * a,
             _lit((80, 52, 30), k))
    _oval(canvas, u + 0.38 * a, v - 0.92 * a, 0.32 * a, 0.15 * a, _lit((60, 150, 50), k), -20)


def _bottle(canvas: Image, r: Region, k: float, look: int) -> None:
    glass, cap, sign = (_lit(c, k) for c in (_LOOKS['bottle'][look % 3], (225, 220, 210),
                                             (238, 232, 205)))
    x, y, w, h = r.x, r.y, r.w, r.h
    _poly(canvas, [(x + 0.36 * w, y + 0.04 * h), (x + 0.64 * w, y + 0.04 * h),
                   (x + 0.66 * w, y + 0.25 * h), (x + 0.98 * w, y + 0.40 * h),
                   (x + 0.98 * w, y + h), (x + 0.02 * w, y + h), (x + 0.02 * w, y + 0.40 * h),
                   (x + 0.34 * w, y + 0.25 * h)], glass)
    _rect(canvas, x + 0.30 * w, y, 0.40 * w, 0.09 * h, cap)
    _rect(canvas, x + 0.02 * w, y + 0.48 * h, 0.96 * w, 0.2 * h, sign)
    _rect(canvas, x + 0.13 * w, y + 0.42 * h, 0.1 * w, 0.5 * h, _lit(glass, 1.35))


def _phone(canvas: Image, r: Region, k: float, look: int) -> None:
    _rect(canvas, r.x, r.y, r.w, r.h, _lit((18, 18, 22), k))
    _rect(canvas, r.x + 0.08 * r.w, r.y + 0.08 * r.h, 0.84 * r.w, 0.80 * r.h,
          _lit(_LOOKS['phone'][look % 3], 0.5 + 0.5 * k))      # a screen shines by itself
    for row in (0.2, 0.36, 0.52):
        _rect(canvas, r.x + 0.2 * r.w, r.y + row * r.h, 0.6 * r.w, 0.07 * r.h,
              _lit((235, 242, 250), 0.5 + 0.5 * k))


def _key(canvas: Image, r: Region, k: float, look: int) -> None:
    gold = _lit(_LOOKS['key'][look % 3], k)
    u, w = r.x + r.w / 2, r.w
    # the bow is up, the teeth point out of the hand to the side
    cv2.ellipse(canvas, (_fixed(u), _fixed(r.y + 0.5 * w)), (_fixed(0.37 * w), _fixed(0.37 * w)),
                0, 0, 360, gold, max(2, round(0.24 * w)), cv2.LINE_AA, SHIFT)
    _rect(canvas, u - 0.10 * w, r.y + 0.95 * w, 0.20 * w, r.h - 0.95 * w, gold)
    for row in (0.56, 0.70):
        _rect(canvas, u, r.y + row * r.h, 0.46 * w, 0.08 * r.h, gold)


_HELD: dict[str, Callable[[Image, Region, float, int], None]] = {
    'apple': _apple, 'bottle': _bottle, 'phone': _phone, 'key': _key}


@lru_cache(maxsize=256)
def _tone(look: int) -> Color:
    r, g, b = np.random.default_rng(look).uniform(40, 240, 3)
    return float(r), float(g), float(b)


def _cup(canvas: Image, item: Item, k: float) -> None:
    c, r = _lit(_tone(item.look), k), item.region
    x, y, s = r.x, r.y, r.w
    side = 1 if item.look % 2 else -1
    u = x + s / 2 - side * 0.10 * s
    cv2.ellipse(canvas, (_fixed(u + side * 0.36 * s), _fixed(y + 0.55 * s)),
                (_fixed(0.19 * s), _fixed(0.21 * s)), 0, 0, 360, _lit(c, 0.8),
                max(2, round(0.10 * s)), cv2.LINE_AA, SHIFT)
    _poly(canvas, [(u - 0.36 * s, y + 0.14 * s), (u + 0.36 * s, y + 0.14 * s),
                   (u + 0.28 * s, y + s), (u - 0.28 * s, y + s)], c)
    _oval(canvas, u, y + 0.14 * s, 0.36 * s, 0.11 * s, _lit(c, 1.2))
    _oval(canvas, u, y + 0.15 * s, 0.29 * s, 0.075 * s, _lit((60, 38, 26), k))


def _ball(canvas: Image, item: Item, k: float) -> None:
    c, r = _lit(_tone(item.look), k), item.region
    u, v, a = r.x + r.w / 2, r.y + r.h / 2, r.w * 0.48
    _oval(canvas, u, v, a, a, c)
    _oval(canvas, u, v, 0.36 * a, a, _lit((245, 245, 240), k), float(item.look % 90) - 45)
    _oval(canvas, u - 0.35 * a, v - 0.4 * a, 0.2 * a, 0.16 * a, _lit((255, 255, 255), k))


def _box(canvas: Image, item: Item, k: float) -> None:
    r = item.region
    c = _lit((196, 150, 98), k * (0.85 + 0.3 * (item.look % 100) / 100))
    x, y, s = r.x, r.y, r.w
    _rect(canvas, x + 0.02 * s, y + 0.28 * s, 0.70 * s, 0.72 * s, c)
    _poly(canvas, [(x + 0.02 * s, y + 0.28 * s), (x + 0.27 * s, y + 0.06 * s),
                   (x + 0.98 * s, y + 0.06 * s), (x + 0.72 * s, y + 0.28 * s)], _lit(c, 1.18))
    _poly(canvas, [(x + 0.72 * s, y + 0.28 * s), (x + 0.98 * s, y + 0.06 * s),
                   (x + 0.98 * s, y + 0.78 * s), (x + 0.72 * s, y + s)], _lit(c, 0.7))
    _rect(canvas, x + 0.30 * s, y + 0.28 * s, 0.14 * s, 0.72 * s, _lit(c, 0.82))


def _book(canvas: Image, item: Item, k: float) -> None:
    c, r = _lit(_tone(item.look), k), item.region
    x, y, s = r.x, r.y, r.w
    # open and leaning back: two white pages between coloured covers
    for side in (-1, 1):
        u = x + s / 2
        _poly(canvas, [(u, y + 0.20 * s), (u + side * 0.50 * s, y + 0.08 * s),
                       (u + side * 0.50 * s, y + 0.90 * s), (u, y + s)], c)
        _poly(canvas, [(u, y + 0.22 * s), (u + side * 0.43 * s, y + 0.13 * s),
                       (u + side * 0.43 * s, y + 0.82 * s), (u, y + 0.92 * s)],
              _lit((238, 234, 222) if side < 0 else (222, 218, 205), k))
        for row in (0.32, 0.46, 0.60):
            _poly(canvas, [(u + side * 0.07 * s, y + row * s),
                           (u + side * 0.36 * s, y + (row - 0.06) * s),
                           (u + side * 0.36 * s, y + (row - 0.01) * s),
                           (u + side * 0.07 * s, y + (row + 0.05) * s)], _lit((130, 128, 125), k))


_ITEM: dict[str, Callable[[Image, Item, float], None]] = {
    'cup': _cup, 'ball': _ball, 'box': _box, 'book': _book}


def _counter(canvas: Image, scene: Scene, k: float) -> None:
    rear, front, m = scene.counter
    wood = _lit(_tone(scene.look + 5), 0.75 * k)
    _rect(canvas, -2, rear, WIDTH + 4, front - rear, wood)
    _rect(canvas, -2, front, WIDTH + 4, 0.05 * m, _lit(wood, 0.6))
    if front < HEIGHT:
        for leg in (-0.9, 0.9):
            x = WIDTH / 2 + scene.yaw + leg * m
            _rect(canvas, x - 0.03 * m, front, 0.06 * m, m, _lit(wood, 0.5))


def _post(canvas: Image, post: Region, look: int) -> None:
    color = _lit(_tone(look + 9), 0.8)
    _rect(canvas, post.x, post.y - 2, post.w, post.h + 4, color)
    _rect(canvas, post.x + 0.15 * post.w, post.y - 2, 0.2 * post.w, post.h + 4, _lit(color, 1.25))


# -- room ---------------------------------------------------------------------------------------

@lru_cache(maxsize=1)
def _texture() -> npt.NDArray[np.int16]:
    """Return uneven paint, larger than a room so that each has its own part of it."""
    rng = np.random.default_rng(5)
    size = (HEIGHT + PAD_TOP + PAD_LOW + 200, WIDTH + 2 * PAD_X + 200)
    paint = 9 * cv2.GaussianBlur(rng.normal(0, 4, size).astype(np.float32), (0, 0), 4)
    return np.repeat(paint[:, :, None], 3, axis=2).astype(np.int16)


@lru_cache(maxsize=4)  # 1.9 MB each
def _room(look: int) -> Image:
    """Return wall, floor and clutter that may be mistaken for the real thing."""
    rng = np.random.default_rng(look + 3)
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
    _rect(image, 0, floor - 9, w, 12, _lit((70, 64, 60), 1.0))
    kinds = rng.permutation(['window', 'poster', 'shelf', 'lamp', 'plant', 'door', 'poster',
                             'picture', 'shelf'])[:int(rng.integers(4, 7))]
    for kind, x in zip(kinds, np.linspace(20, w - 190, len(kinds)) + rng.uniform(-35, 35)):
        _CLUTTER[str(kind)](image, float(x), float(floor), rng)
    return image


def _window(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    y, w, h = floor - float(rng.uniform(330, 420)), float(rng.uniform(120, 190)), 190.0
    _rect(image, x - 8, y - 8, w + 16, h + 16, (205, 200, 190))
    _rect(image, x, y, w, h, (232, 242, 252))
    _rect(image, x, y + 0.7 * h, w, 0.3 * h, (150, 190, 130))
    _rect(image, x + w / 2 - 4, y, 8, h, (205, 200, 190))


def _poster(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    """Draw a picture of a hand on the wall."""
    y, w = floor - float(rng.uniform(300, 430)), float(rng.uniform(70, 115))
    r, g, b = (float(v) for v in rng.uniform(60, 245, 3))
    _rect(image, x - 4, y - 4, w + 8, 1.3 * w + 8, (45, 40, 38))
    _rect(image, x, y, w, 1.3 * w, (r, g, b))
    skin = SKIN[int(rng.integers(len(SKIN)))]
    hand = Hand(x + w / 2, y + 1.18 * w, 0.95 * w, float(rng.uniform(-0.2, 0.2)),
                bool(rng.random() < 0.5), 'digit', int(rng.integers(len(DIGITS))),
                hand_shape.STEPS)
    _hand(image, hand, skin, 1.0)


def _picture(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    """Draw a portrait."""
    y, w = floor - float(rng.uniform(320, 430)), float(rng.uniform(60, 100))
    _rect(image, x - 6, y - 6, w + 12, 1.2 * w + 12, (120, 88, 45))
    _rect(image, x, y, w, 1.2 * w, _tone(int(rng.integers(1000))))
    _oval(image, x + w / 2, y + 0.45 * w, 0.2 * w, 0.26 * w,
          _lit(SKIN[int(rng.integers(len(SKIN)))], 0.8))
    _poly(image, [(x + 0.2 * w, y + 1.2 * w), (x + 0.35 * w, y + 0.8 * w),
                  (x + 0.65 * w, y + 0.8 * w), (x + 0.8 * w, y + 1.2 * w)],
          _tone(int(rng.integers(1000))))


def _shelf(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    """Draw boards with books, bottles, balls and cups."""
    w = float(rng.uniform(120, 180))
    for board in range(3):
        y = floor - 120.0 - 95 * board
        _rect(image, x, y, w, 8, (110, 78, 50))
        at = x + 4
        while at < x + w - 22:
            color = _tone(int(rng.integers(1000)))
            kind = int(rng.integers(5))
            if kind == 0:
                _oval(image, at + 13, y - 13, 13, 13, color)
            elif kind == 1:
                _bottle(image, Region(at, y - 55, 20, 55), 0.9, int(rng.integers(3)))
            elif kind == 2:
                _cup(image, Item('cup', at + 14, y, 28, int(rng.integers(1000))), 0.9)
            else:
                _rect(image, at, y - 52, 12, 52, color)
                at -= 13
            at += 30 + float(rng.uniform(0, 8))


def _lamp(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    top = floor - float(rng.uniform(260, 330))
    _rect(image, x + 46, top, 7, floor - top, (70, 66, 64))
    _poly(image, [(x + 25, top - 50), (x + 75, top - 50), (x + 98, top + 8), (x + 2, top + 8)],
          (250, 228, 170))


def _plant(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    _poly(image, [(x + 15, floor - 60), (x + 85, floor - 60), (x + 72, floor + 12),
                  (x + 28, floor + 12)], (165, 90, 60))
    for _ in range(9):
        a, n = float(rng.uniform(-1.1, 1.1)), float(rng.uniform(70, 150))
        tip = (x + 50 + n * math.sin(a), floor - 60 - n * math.cos(a))
        _capsule(image, (x + 50, floor - 60), tip, 9, 3,
                 (float(rng.uniform(30, 80)), float(rng.uniform(90, 150)), 50))


def _door(image: Image, x: float, floor: float, rng: np.random.Generator) -> None:
    color = _tone(int(rng.integers(1000)))
    _rect(image, x, floor - 400, 170, 400, _lit(color, 0.7))
    _rect(image, x + 10, floor - 390, 150, 390, color)
    _oval(image, x + 145, floor - 180, 7, 7, (210, 190, 90))


_CLUTTER: dict[str, Callable[[Image, float, float, np.random.Generator], None]] = {
    'window': _window, 'poster': _poster, 'picture': _picture, 'shelf': _shelf, 'lamp': _lamp,
    'plant': _plant, 'door': _door}


# -- light and sensor ---------------------------------------------------------------------------

@lru_cache(maxsize=4)
def _noise_bank(level: int) -> Noise:
    rng = np.random.default_rng(98)
    return np.asarray(rng.normal(0, (3.0, 5.0, 7.5, 10.0)[level], NOISE_SHAPE), dtype=np.int16)


def _sensor(canvas: Image, scene: Scene, rng: np.random.Generator) -> Image:
    ramp = np.arange(256, dtype=np.float32)[:, None] * np.array(scene.light.gain, np.float32)
    canvas = np.asarray(cv2.LUT(canvas, np.clip(ramp, 0, 255).astype(np.uint8)[None]))
    return add_noise(canvas, _noise_bank(scene.light.noise), rng)
