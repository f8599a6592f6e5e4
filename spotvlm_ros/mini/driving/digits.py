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
Digits on signs, drawn from strokes of our own.

OpenCV's text looks different in its versions 4 and 5, and models read worse what looks unlike what
they were trained on (a third of the speed signs less). Strokes look the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from ..drawing import SHIFT
from ..pictures import Color, Image, Point

Points = npt.NDArray[np.float64]

ADVANCE = 0.907           # from one digit to the next, in heights of a digit
THIN, BOLD = 0.155, 0.215  # width of a stroke, in heights
FINE = 4                  # drawn so many times larger, then averaged


def _ring(x: float, y: float, rx: float, ry: float, power: float = 1.0) -> Points:
    """Return an ellipse; below 1 ``power`` makes it squarer."""
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    dx, dy = (np.sign(c) * np.abs(c) ** power for c in (np.cos(angles), np.sin(angles)))
    return np.stack([x + rx * dx, y + ry * dy], 1)


def _line(*points: tuple[float, float]) -> Points:
    return np.array(points)


# Strokes of each digit: points [heights, from its left upper corner], whether they close, width.
STROKES: Mapping[str, tuple[tuple[Points, bool, float], ...]] = {
    '0': ((_ring(.39, .5, .27, .38, .8), True, 1.0), (_line((.30, .67), (.48, .33)), False, .33)),
    '1': ((_line((.09, .30), (.36, .12), (.36, .88)), False, 1.0),
          (_line((.09, .885), (.63, .885)), False, .95)),
    '3': ((_line((.13, .115), (.62, .115), (.38, .40), (.53, .43), (.64, .53), (.66, .65),
                 (.60, .79), (.47, .87), (.33, .885), (.19, .85), (.11, .77)), False, 1.0),),
    '5': ((_line((.62, .115), (.20, .115), (.16, .47), (.30, .42), (.45, .42), (.59, .49),
                 (.66, .63), (.62, .77), (.50, .87), (.36, .885), (.20, .85), (.11, .77)),
           False, 1.0),),
    '8': ((_ring(.39, .295, .215, .185), True, .95), (_ring(.39, .69, .265, .195), True, .95)),
}


def write(canvas: Image, text: str, corner: Point, height: float, bold: bool,
          color: Color) -> None:
    """Write digits from their left upper corner [pixels]; the canvas cuts off what is outside."""
    x, y = corner
    x0, y0 = max(0, int(x) - 2), max(0, int(y) - 2)
    x1 = min(canvas.shape[1], int(x + ADVANCE * height * len(text)) + 3)
    y1 = min(canvas.shape[0], int(y + height) + 3)
    if x1 <= x0 or y1 <= y0:
        return
    ink = np.zeros((FINE * (y1 - y0), FINE * (x1 - x0)), np.uint8)
    for i, digit in enumerate(text):
        offset = np.array((x + ADVANCE * height * i - x0, y - y0))
        for points, closed, part in STROKES[digit]:
            at = np.rint((FINE * (points * height + offset) - 0.5) * (1 << SHIFT))
            width = max(1, round(FINE * part * (BOLD if bold else THIN) * height))
            cv2.polylines(ink, [at.astype(np.int32)], closed, 255, width, cv2.LINE_8, SHIFT)
    share = cv2.resize(ink, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)[..., None] / 255.0
    patch = canvas[y0:y1, x0:x1]
    patch[:] = np.rint(patch * (1.0 - share) + share * np.array(color)).astype(np.uint8)
