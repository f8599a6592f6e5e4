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
"""Draws hands: from strokes, or from cut-out photographs."""

from __future__ import annotations

from functools import lru_cache
import math

import cv2
import numpy as np
import numpy.typing as npt

from . import hand_shape
from .hand_photo import SPRITE_PX, wrist_column
from .scene import Hand
from ..drawing import capsule, polygon, shade
from ..pictures import Color, Image, Point

SPRITE = 160.0             # pixels of a drawn hand's unit
ORIGIN = (80, 184)         # its wrist in the sprite
SKIN: tuple[Color, ...] = ((241, 205, 178), (226, 182, 148), (205, 155, 118), (172, 121, 86),
                           (133, 90, 62), (97, 65, 46))


@lru_cache(maxsize=128)
def _sprite(pose: str, digit: int, step: int, skin: Color) -> Image:
    """Return a drawn hand, its colours multiplied by its alpha."""
    size = (int(1.45 * SPRITE), int(1.15 * SPRITE), 3)
    dark, mid = shade(skin, 0.52), shade(skin, 0.90)
    color = np.full(size, skin, np.uint8)
    alpha = np.zeros(size, np.uint8)

    def at(point: Point) -> Point:
        return ORIGIN[0] + SPRITE * point[0], ORIGIN[1] - SPRITE * point[1]

    def line(stroke: hand_shape.Stroke, fill: Color) -> None:
        for grow, paint in ((hand_shape.EDGE, dark), (0.0, fill)):
            r = (stroke.radius + grow) * SPRITE
            for p, q in zip(stroke.points, stroke.points[1:]):
                capsule(color, at(p), at(q), r, r * 0.93, paint)
                capsule(alpha, at(p), at(q), r, r * 0.93, (255, 255, 255))

    parts = hand_shape.strokes(pose, digit, step)
    for stroke in parts:
        if not stroke.front:
            line(stroke, skin)
    outline = [at(p) for p in hand_shape.palm(pose, digit, step)]
    polygon(alpha, outline, (255, 255, 255))
    polygon(color, outline, skin)
    for stroke in parts:
        if stroke.front:
            line(stroke, mid)
    rgba = np.dstack([color, alpha[:, :, :1]])
    rgba[:, :, :3] = (rgba[:, :, :3].astype(np.uint16) * rgba[:, :, 3:] // 255).astype(np.uint8)
    return rgba


def draw_hand(canvas: Image, hand: Hand, skin: Color, k: float) -> None:
    """Draw a hand, k times as bright as in plain light; a photographed one has its own skin."""
    if hand.photo is not None:
        sprite = hand.photo.copy()
        sprite[:, :, :3] = (sprite[:, :, :3].astype(np.uint16) * sprite[:, :, 3:] // 255)
        wrist, unit = (wrist_column(hand.photo), float(hand.photo.shape[0])), SPRITE_PX
    else:
        sprite, wrist, unit = _sprite(hand.pose, hand.digit, hand.step, skin), ORIGIN, SPRITE
    corners = np.array([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])     # in the hand's coordinates
    origin, right, up = hand.place(corners)
    matrix = np.stack([(right - origin) / unit, -(up - origin) / unit], axis=1)
    offset = origin - matrix @ np.array(wrist)
    _paste(canvas, sprite, np.column_stack([matrix, offset]), k)


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
