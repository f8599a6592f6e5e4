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
Boxes in the spellings that models have for them, as regions in camera pixels.

Models differ in the name of the field, the order of the corners and the scale (roboflow/
inference#2921, google-gemini/cookbook#345, MoonshotAI/Kimi-VL#56). What cannot be read without a
guess is rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import json
import math
import re

from ..config.nodes import BoxScale
from ..method.facts import Region

MIN_SIDE_PX = 1.0   # smaller boxes show nothing
_YX = frozenset({'box_2d', 'box2d'})  # Gemini's: y before x
_NAMES = frozenset({
    'bbox_2d', 'bbox2d', 'bbox', 'box', 'bounding_box', 'boundingbox', 'bndbox', 'bboxes', 'boxes',
    'region', 'rect', 'coordinates', 'location', 'position', *_YX})
_CORNERS = (('x1', 'y1', 'x2', 'y2'), ('x0', 'y0', 'x1', 'y1'), ('xmin', 'ymin', 'xmax', 'ymax'),
            ('x_min', 'y_min', 'x_max', 'y_max'), ('left', 'top', 'right', 'bottom'))
_SIDES = (('x', 'y', 'w', 'h'), ('x', 'y', 'width', 'height'), ('left', 'top', 'width', 'height'))
_NUMBER = re.compile(r'-?\d+(?:\.\d+)?')
Corners = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class ImageGeometry:
    """What boxes of a reply refer to."""

    size: tuple[int, int]         # width, height of the camera's frame [pixels]
    sent_scale: float = 1.0       # size of the image sent over that of the frame
    box_scale: BoxScale = 'relative'  # 0 to 1000 of the frame, or pixels of the image sent

    def region(self, corners: Corners) -> Region | None:
        """Return corners as a region of the frame [pixels], None outside or without area."""
        x0, y0, x1, y1 = corners
        width, height = self.size
        fraction = max(corners) <= 1.0 and any(c != int(c) for c in corners)
        if fraction or corners == (0.0, 0.0, 1.0, 1.0):
            sx, sy = float(width), float(height)
        elif self.box_scale == 'relative':
            sx, sy = width / 1000, height / 1000
        else:
            sx = sy = 1 / self.sent_scale
        region = Region(x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy).clipped(width, height)
        if region is None or region.w < MIN_SIDE_PX or region.h < MIN_SIDE_PX:
            return None
        return region


def box_field(item: Mapping[str, object]) -> str | None:
    """Return the name of the field that holds a box, None without one; names are lower case."""
    return next((name for name in item if name in _NAMES and item[name] not in (None, [], '', {})),
                None)


def corners_of(name: str, value: object, depth: int = 0) -> Corners | None:
    """Return the corners in the value of field ``name``, None when it is no box."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = [float(n) for n in _NUMBER.findall(value[:200])] if isinstance(value, str) \
                else None
    if isinstance(value, Mapping):
        return _named(value)
    if not isinstance(value, (list, tuple)) or depth > 2:
        return None
    if len(value) == 1:  # a list of one box
        return corners_of(name, value[0], depth + 1)
    if len(value) == 2 and all(isinstance(v, (list, tuple)) and len(v) == 2 for v in value):
        value = [*value[0], *value[1]]
    numbers = _finite(value)
    if numbers is None:
        return None
    x0, y0, x1, y1 = numbers
    return (y0, x0, y1, x1) if name in _YX else (x0, y0, x1, y1)


def _named(value: Mapping[object, object]) -> Corners | None:
    """Return the corners of a box whose numbers have names."""
    lower = {str(k).strip().casefold(): v for k, v in list(value.items())[:16]}
    for names in _CORNERS:
        if all(n in lower for n in names):
            return _finite([lower[n] for n in names])
    for names in _SIDES:
        if all(n in lower for n in names):
            numbers = _finite([lower[n] for n in names])
            return numbers and (numbers[0], numbers[1], numbers[0] + numbers[2],
                                numbers[1] + numbers[3])
    return None


def _finite(values: object) -> Corners | None:
    if not isinstance(values, (list, tuple)) or len(values) != 4:
        return None
    numbers = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return None
        try:
            numbers.append(float(value))
        except (ValueError, OverflowError):
            return None
    if not all(map(math.isfinite, numbers)):
        return None
    return numbers[0], numbers[1], numbers[2], numbers[3]
