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
"""Hands of photographs, cut out and held into other pictures, as a robot sees them from afar."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from .schema import LabelError
from ..frames.pixels import decode_compressed, FrameError, Image
from ..frames.source_frame import natural_order
from ..frames.sources import IMAGE_SUFFIXES
from ..method.facts import Region
from ..mini.hri.hands import cut_out

SWAY = 0.04            # of the picture's width, standard deviation: how far a hand is moved
STEADY = 0.9           # of it that is left after a frame
MARGIN = 0.2           # of the picture that hands are not held into, at each side


def read_picture(file: Path) -> Image:
    """Return the pixels of a file; raise LabelError."""
    try:
        return decode_compressed(file.read_bytes())
    except (OSError, FrameError) as error:
        raise LabelError(f'{file}: {error}; replace the file, or take it out') from error


def scenes_in(folder: Path) -> list[Path]:
    """Return the pictures of a folder and of those in it; raise LabelError."""
    found = [p for p in sorted(folder.glob('**/*'), key=natural_order)
             if p.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise LabelError(f'{folder}: no pictures there that hands could be held into; scenes '
                         'names a folder, from that of the stills')
    return found


class Stage:
    """One picture, and the place where hands of one size are held into it."""

    def __init__(self, scene: Path, heights: tuple[float, float], rng: np.random.Generator,
                 ) -> None:
        """Choose place and size, sizes by their ratio."""
        self.picture = read_picture(scene)
        self._height = float(np.exp(rng.uniform(*np.log(heights)))) * self.picture.shape[0]
        self._place = rng.uniform(MARGIN, 1 - MARGIN, 2)
        self._sway = np.zeros(2)

    def hand(self, file: Path) -> Image:
        """Return the hand of a photograph, RGBA, as large as it is here."""
        rows = read_picture(file).shape[0]
        try:
            cut = cut_out(file)
        except ValueError as error:
            raise LabelError(f'{error}; or leave scenes out of the rule file') from error
        return np.asarray(cv2.resize(cut, None, fx=self._height / rows, fy=self._height / rows,
                                     interpolation=cv2.INTER_AREA), np.uint8)

    def frame(self, hand: Image, rng: np.random.Generator) -> tuple[Image, Region]:
        """Return the picture with a hand in it, a bit further, and where that is."""
        self._sway = STEADY * self._sway + np.sqrt(1 - STEADY ** 2) * rng.normal(size=2)
        height, width = self.picture.shape[:2]
        h, w = hand.shape[:2]
        x, y = self._place * (width, height) + SWAY * width * self._sway - (w / 2, h / 2)
        matrix = np.array([[1, 0, x], [0, 1, y]])
        laid = cv2.warpAffine(hand, matrix, (width, height)).astype(np.float32)
        share = laid[..., 3:] / 255
        mixed = self.picture * (1 - share) + laid[..., :3] * share
        return np.asarray(np.rint(mixed), np.uint8), Region(float(x), float(y), w, h)
