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
"""Measures of a cut-out photograph of a hand, RGBA with the wrist at its lower edge."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..pictures import Color, Image

SPRITE_PX = 100.0     # this many pixels of a photograph are one unit of a hand's coordinates


def wrist_column(photo: Image) -> float:
    """Return the column of a cut-out hand where the arm begins."""
    low = photo[-max(3, photo.shape[0] // 12):, :, 3].astype(float).sum(axis=0)
    return float((low * np.arange(len(low))).sum() / max(1.0, low.sum()))


def outline(photo: Image) -> npt.NDArray[np.float64]:
    """Return points around a cut-out hand in the hand's coordinates, n x 2."""
    solid = photo[:, :, 3] > 100
    rows = np.flatnonzero(solid.any(axis=1))[::3]
    left = solid[rows].argmax(axis=1)
    right = solid.shape[1] - solid[rows, ::-1].argmax(axis=1)
    x = (np.concatenate([left, right]) - wrist_column(photo)) / SPRITE_PX
    return np.stack([x, (solid.shape[0] - np.concatenate([rows, rows])) / SPRITE_PX], axis=1)


def skin_color(photo: Image) -> Color:
    """Return the median colour of a cut-out hand."""
    solid = photo[photo[:, :, 3] > 200][:, :3].astype(float)
    r, g, b = np.median(solid, axis=0)
    return float(r), float(g), float(b)


def exposed(photo: Image, level: float) -> Image:
    """Return the photograph with skin as bright as asked, within what an exposure can do."""
    gain = min(1.7, max(0.8, level / max(1.0, sum(skin_color(photo)) / 3)))
    bright = photo.copy()
    bright[:, :, :3] = np.clip(photo[:, :, :3] * gain, 0, 255)
    return bright
