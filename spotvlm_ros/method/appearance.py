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
What a part of a frame looks like, as a small grey picture that can be compared with another.

The gate compares regions by it, the scene-cut rule whole frames.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from .facts import Region

Grey = npt.NDArray[np.uint8]           # height x width
Appearance = npt.NDArray[np.float32]   # SIDE x SIDE of a region, THUMBNAIL of a whole frame

SIDE = 12                        # a region is compared at this size [pixels]
THUMBNAIL = (32, 24)             # a whole frame at this; width, height [pixels]
FLAT = 3.0                       # below this contrast there is nothing to compare [grey levels]


def appearance_of(grey: Grey, region: Region) -> Appearance | None:
    """Return the appearance of a region [pixels of the grey frame], None outside the frame."""
    inside = region.clipped(grey.shape[1], grey.shape[0])
    if inside is None or inside.w * inside.h < 0.5 * region.w * region.h:
        return None
    x0, y0 = int(inside.x), int(inside.y)
    patch = grey[y0:max(y0 + 1, round(inside.y + inside.h)),
                 x0:max(x0 + 1, round(inside.x + inside.w))]
    return np.asarray(cv2.resize(patch, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float32)


def thumbnail(grey: Grey) -> Appearance:
    """Return the appearance of a whole frame, which scene cuts are detected by."""
    return np.asarray(cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA), np.float32)


def similarity_of(before: Appearance, after: Appearance) -> float:
    """
    Return the correlation of two appearances, -1 to 1; brightness and contrast do not affect it.

    Two flat ones are alike, a flat one and another are not.
    """
    a, b = before - before.mean(), after - after.mean()
    flat = [float(v.std()) < FLAT for v in (a, b)]
    if any(flat):
        return 1.0 if all(flat) else 0.0
    return float((a * b).sum() / np.sqrt(float((a * a).sum()) * float((b * b).sum())))
