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
"""Drawing with OpenCV at 1/16 pixel, motion blur and sensor noise; for both worlds."""

from __future__ import annotations

from collections.abc import Iterable
import math

import cv2
import numpy as np
import numpy.typing as npt

from .pictures import Color, Image, Point

Noise = npt.NDArray[np.int16]

SHIFT = 4     # bits behind the point, so that slow motion looks continuous
SPARE = 64    # rows and columns by which a bank of noise is larger than a picture
NOISE_SHAPE = (480 + SPARE, 640 + SPARE, 3)
_ARC = np.linspace(0, np.pi, 9)


def fixed(value: float) -> int:
    """Return a length in 1/16 pixel."""
    return round(float(value) * (1 << SHIFT))


def polygon(canvas: Image, points: Iterable[Point], color: Color) -> None:
    """Fill a polygon."""
    corners = np.rint(np.array(list(points)) * (1 << SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [corners], color, cv2.LINE_AA, SHIFT)


def rectangle(canvas: Image, x: float, y: float, w: float, h: float, color: Color) -> None:
    """Fill a rectangle from its left upper corner."""
    polygon(canvas, [(x, y), (x + w, y), (x + w, y + h), (x, y + h)], color)


def ellipse(canvas: Image, center: Point, axes: Point, color: Color, angle: float = 0.0,
            thickness: int = -1) -> None:
    """Draw an ellipse of half axes turned by degrees; thickness [pixels], -1 fills it."""
    if min(axes) > 0.3:
        x, y, a, b = (fixed(value) for value in (*center, *axes))
        cv2.ellipse(canvas, (x, y), (a, b), angle, 0.0, 360.0, color, thickness, cv2.LINE_AA,
                    SHIFT)


def oval(canvas: Image, x: float, y: float, a: float, b: float, color: Color) -> None:
    """Fill an upright ellipse around x, y of half axes a and b [pixels]."""
    ellipse(canvas, (x, y), (a, b), color)


def capsule(canvas: Image, p: Point, q: Point, r: float, s: float, color: Color) -> None:
    """Draw a limb with round ends of radius r at p and s at q."""
    a = math.atan2(q[1] - p[1], q[0] - p[0]) + math.pi / 2
    first = np.stack([p[0] + r * np.cos(a + _ARC), p[1] + r * np.sin(a + _ARC)], axis=1)
    second = np.stack([q[0] - s * np.cos(a + _ARC), q[1] - s * np.sin(a + _ARC)], axis=1)
    outline = np.rint(np.concatenate([first, second]) * (1 << SHIFT)).astype(np.int32)
    cv2.fillConvexPoly(canvas, outline, color, cv2.LINE_AA, SHIFT)


def shade(color: Color, k: float) -> Color:
    """Return a colour, k times as bright."""
    return color[0] * k, color[1] * k, color[2] * k


def motion_blur(canvas: Image, length: float) -> Image:
    """Return a picture blurred over a length [pixels], mostly sideways."""
    n = int(length)
    if n < 2:
        return canvas
    return np.asarray(cv2.blur(canvas, (n, max(1, n // 2))), dtype=np.uint8)


def add_noise(canvas: Image, bank: Noise, rng: np.random.Generator) -> Image:
    """Return a picture with a random part of a bank (NOISE_SHAPE) added."""
    height, width = canvas.shape[:2]
    dy, dx = rng.integers(0, SPARE, 2)
    noise = bank[dy:dy + height, dx:dx + width]
    return np.asarray(cv2.add(canvas, noise, dtype=cv2.CV_8U))  # saturates
