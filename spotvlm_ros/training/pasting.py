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
Variety from few frames: labelled things cut out of one and pasted into others.

A thing covers the one that is there, or stands elsewhere in its place, or the one that is there is
covered by what is beside it. Value and region follow. That suits keys whose value is of the thing
itself, as the colour of a light; not those that count things or say where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt

from .material import Clip
from ..labels.schema import Label
from ..method.facts import Region

Image = npt.NDArray[np.uint8]
MARGIN = 0.3            # around a thing that is cut out, at most, in its sides
MOST = 500              # things kept of a key
ERASED = 0.1            # share in which the thing that is there is taken away, where one is
COVERED = 0.5           # share of the others in which the new one is put over it
STRAY = 0.04            # from a place where such a thing was seen, in sides of the frame
LARGER = 1.3            # than one that cannot be taken away: height of one that stands elsewhere
TRIED = 4               # things of a value, of which the one nearest in height is pasted


@dataclass(frozen=True)
class Patch:
    """A thing with what is around it."""

    value: str
    pixels: Image
    box: Region         # of the thing in the pixels


@dataclass(frozen=True)
class Pasted:
    """What a frame shows now for a key; ``place`` is where it is, or was before it was erased."""

    key: str
    value: str
    region: Region | None
    place: Region
    values: Sequence[str]   # that it might have had before


def value_before(now: str, values: Sequence[str], hazards: float,
                 rng: np.random.Generator) -> str:
    """Return the value some time ago; ``hazards``: that time over that between changes."""
    others = [value for value in values if value != now]
    return str(rng.choice(others)) if others and rng.random() > np.exp(-hazards) else now


@dataclass(frozen=True)
class Patches:
    """Things of one key, where and how tall things of it are, and what it is called if none is."""

    key: str
    by_value: Mapping[str, list[Patch]]
    places: Sequence[tuple[float, float, float]]   # centre and height, in sides of the frame
    absent: str = ''
    values: Sequence[str] = field(default=())
    balance: float = 0.5    # of values; 0: as often as they come, 1: all equally often

    def paste(self, image: Image, label: Label, rng: np.random.Generator,
              ) -> tuple[Image, Pasted] | None:
        """Return a frame with a thing pasted or erased, None where it does not fit."""
        there, bare = label.regions.get(self.key), None
        if there is not None and self.absent and rng.random() < ERASED:
            bare = without(image, there, rng)
            return None if bare is None else (
                bare, Pasted(self.key, self.absent, None, there, self.values))
        value = self._value(rng)
        height, width = image.shape[:2]
        if there is not None and rng.random() < COVERED:
            patch = self._patch(value, there.h, rng)
            x, y = there.x + there.w / 2, there.y + there.h / 2
            tall = max(there.h, there.w * patch.box.h / patch.box.w)
            tall *= float(rng.uniform(0.95, 1.4))
        else:
            x, y, tall = self.places[int(rng.integers(len(self.places)))]
            dx, dy = (float(v) for v in rng.normal(0, STRAY, 2))
            x, y = (x + dx) * width, (y + dy) * height
            tall *= height * float(rng.uniform(0.75, 1.4))
            if there is not None:
                bare = without(image, there, rng)
                tall = max(tall, LARGER * there.h) if bare is None else tall
            patch = self._patch(value, tall, rng)
        image = image.copy() if bare is None else bare
        region = _put(image, patch, (x, y), tall / patch.box.h, rng)
        if region is None:
            return None
        return image, Pasted(self.key, value, region, region, self.values)

    def _value(self, rng: np.random.Generator) -> str:
        values = list(self.by_value)
        weights = np.array([len(self.by_value[value]) for value in values]) ** (1 - self.balance)
        return values[int(rng.choice(len(values), p=weights / weights.sum()))]

    def _patch(self, value: str, tall: float, rng: np.random.Generator) -> Patch:
        """Return a thing of a value, of some the one that needs least scaling."""
        options = self.by_value[value]
        some = [options[int(i)] for i in rng.integers(len(options), size=TRIED)]
        return min(some, key=lambda patch: abs(np.log(patch.box.h / tall)))


def without(image: Image, there: Region, rng: np.random.Generator) -> Image | None:
    """Return a frame whose thing is covered by what is beside it, None where that is outside."""
    height, width = image.shape[:2]
    w, h = int(there.w * 1.6) + 2, int(there.h * 1.4) + 2
    x, y = int(there.x + there.w / 2 - w / 2), int(there.y + there.h / 2 - h / 2)
    beside = x + int(rng.choice([-1, 1]) * w * rng.uniform(1.1, 2.0))
    if min(x, y, beside) < 0 or max(x, beside) + w > width or y + h > height:
        return None
    image = image.copy()
    _blend(image, np.ascontiguousarray(image[y:y + h, beside:beside + w]), x, y)
    return image


def gather(clips: Sequence[Clip], key: str, rng: np.random.Generator, balance: float = 0.5,
           ) -> Patches | None:
    """Cut the things of a key out of training frames; None where there are too few."""
    frames = [(clip, stamp) for clip in clips for stamp in clip.frames
              if key in clip.labels[stamp].facts]
    with_box = [(c, s) for c, s in frames if key in c.labels[s].regions]
    values = {c.labels[s].facts[key] for c, s in frames}
    shown = {c.labels[s].facts[key] for c, s in with_box}
    if len(shown) < 2:
        return None
    by_value: dict[str, list[Patch]] = {}
    places = []
    rng.shuffle(with_box)  # type: ignore[arg-type]
    for clip, stamp in with_box[:MOST]:
        label = clip.labels[stamp]
        box, (width, height) = label.regions[key], clip.sequence.size
        places.append(((box.x + box.w / 2) / width, (box.y + box.h / 2) / height, box.h / height))
        patch = _cut(clip.sequence.image(stamp), label.facts[key], box)
        if patch is not None:
            by_value.setdefault(patch.value, []).append(patch)
    absent = values - shown
    return Patches(key, by_value, places, min(absent) if len(absent) == 1 else '', sorted(values),
                   balance)


def _cut(image: Image, value: str, box: Region) -> Patch | None:
    dx, dy = MARGIN * box.w, MARGIN * box.h
    x0, y0 = int(box.x - dx), int(box.y - dy)
    x1, y1 = int(np.ceil(box.x + box.w + dx)), int(np.ceil(box.y + box.h + dy))
    height, width = image.shape[:2]
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height or min(box.w, box.h) < 3:
        return None
    return Patch(value, image[y0:y1, x0:x1].copy(), Region(box.x - x0, box.y - y0, box.w, box.h))


def _put(image: Image, patch: Patch, centre: tuple[float, float], scale: float,
         rng: np.random.Generator) -> Region | None:
    """Paste a patch, its thing around a centre; return where that is, None if it sticks out."""
    scale = min(4.0, max(0.25, scale))
    patch = _trimmed(patch, float(rng.random()))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels = cv2.resize(patch.pixels, None, fx=scale, fy=scale, interpolation=how)
    gained = pixels * (rng.uniform(0.8, 1.2) * rng.uniform(0.95, 1.05, 3))
    x = int(centre[0] - scale * (patch.box.x + patch.box.w / 2))
    y = int(centre[1] - scale * (patch.box.y + patch.box.h / 2))
    h, w = pixels.shape[:2]
    if x < 0 or y < 0 or x + w > image.shape[1] or y + h > image.shape[0]:
        return None
    _blend(image, np.clip(gained, 0, 255).astype(np.uint8), x, y)
    return Region(x + scale * patch.box.x, y + scale * patch.box.y, scale * patch.box.w,
                  scale * patch.box.h)


def _trimmed(patch: Patch, share: float) -> Patch:
    """Return a thing with that share of what is around it: its background is not to tell of it."""
    box, (height, width) = patch.box, patch.pixels.shape[:2]
    left, top = int(box.x * (1 - share)), int(box.y * (1 - share))
    right = width - int((width - box.x - box.w) * (1 - share))
    bottom = height - int((height - box.y - box.h) * (1 - share))
    return Patch(patch.value, patch.pixels[top:bottom, left:right],
                 replace(box, x=box.x - left, y=box.y - top))


def _blend(image: Image, pixels: Image, x: int, y: int) -> None:
    """Put pixels into an image, soft at the edges."""
    h, w = pixels.shape[:2]
    soft = max(1.0, 0.12 * min(h, w))
    across, down = (np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in (w, h))
    alpha = np.clip(np.minimum.outer(down, across) / soft, 0, 1)[..., None]
    under = image[y:y + h, x:x + w]
    mixed = under + alpha * (pixels.astype(np.float32) - under)
    image[y:y + h, x:x + w] = mixed.astype(np.uint8)
