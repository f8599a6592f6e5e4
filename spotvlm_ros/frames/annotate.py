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
"""A picture of what the edge model was shown and what it said, for people to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import textwrap
import unicodedata

import cv2
import numpy as np

from .pixels import Image
from ..method.facts import Region
from ..method.prompt import neutralise

Color = tuple[int, int, int]
WHITE, GREY, RED = (235, 235, 235), (150, 150, 150), (255, 90, 80)
LEAST, MOST = 640, 1280  # sides of the picture; others are scaled [pixels]
ROW, MARGIN = 20, 8      # of text [pixels]
LETTER = 9               # width of a letter, on average [pixels]
ROWS = 24                # of text, at most
REGIONS = 16             # at most
_COLORS: tuple[Color, ...] = ((255, 200, 40), (80, 220, 120), (90, 170, 255), (255, 120, 220),
                              (255, 150, 70), (120, 240, 240))


def annotate(rgb: Image, focus: Mapping[str, Region], shown: bool,
             lines: Sequence[tuple[str, Color]]) -> Image:
    """
    Return a frame with its focus regions, by key, above lines of text, each with its colour.

    Regions are grey and thin where they were not ``shown`` to the model. Texts may be anybody's.
    """
    height, width = rgb.shape[:2]
    scale = min(max(LEAST / width, 1.0), MOST / max(height, width))
    picture = cv2.resize(rgb, (max(1, round(width * scale)), max(1, round(height * scale))),
                         interpolation=cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR)
    for number, (key, region) in enumerate([*focus.items()][:REGIONS]):
        clipped = region.clipped(width, height)
        if clipped is not None:
            color = _COLORS[number % len(_COLORS)] if shown else GREY
            _draw(picture, key, clipped, scale, color)
    columns = max(picture.shape[1], LEAST)
    wrapped = [(row, color) for text, color in lines
               for row in textwrap.wrap(plain(text), (columns - 2 * MARGIN) // LETTER)][:ROWS]
    canvas = np.full((picture.shape[0] + ROW * len(wrapped) + MARGIN, columns, 3), 24, np.uint8)
    canvas[:picture.shape[0], :picture.shape[1]] = picture
    for number, (row, color) in enumerate(wrapped):
        _write(canvas, row, MARGIN, picture.shape[0] + ROW * (number + 1) - 4, color)
    return canvas


def plain(text: str) -> str:
    """Return untrusted text as a line of ASCII, the only letters that OpenCV draws."""
    apart = unicodedata.normalize('NFKD', neutralise(text))
    return ''.join(c for c in apart if not unicodedata.combining(c)) \
        .encode('ascii', 'replace').decode()


def _draw(picture: Image, key: str, region: Region, scale: float, color: Color) -> None:
    x, y = round(region.x * scale), round(region.y * scale)
    right, bottom = round((region.x + region.w) * scale), round((region.y + region.h) * scale)
    cv2.rectangle(picture, (x, y), (right, bottom), color, 1 if color == GREY else 2)
    label = textwrap.shorten(plain(key), 24, placeholder='..')
    left = max(0, min(x, picture.shape[1] - LETTER * len(label)))
    _write(picture, label, left, y - 5 if y > ROW else min(bottom + 15, picture.shape[0] - 4),
           color)


def _write(canvas: Image, text: str, x: int, y: int, color: Color) -> None:
    for shade, thickness in (((0, 0, 0), 3), (color, 1)):  # legible on any ground
        cv2.putText(canvas, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, shade, thickness,
                    cv2.LINE_AA)
