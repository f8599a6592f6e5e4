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
Copy-paste augmentation for keys that count or say where: things come and go in other frames.

After "Simple Copy-Paste" (Ghiasi et al., CVPR 2021), with a past, which late context is about.
The rule file that made the labels of boxes says what one more of them changes: a count goes up by
one if it is tall enough, and the side is that of the tallest. So it does in what the cloud said of
earlier frames, in which a pasted object was elsewhere, or not there yet, or there and is gone now.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from .material import Clip
from .pasts import beside, MADE_UP
from .tracks import jittered
from ..labels.rules import around, KeyRule, Rules
from ..labels.schema import Label
from ..method.facts import NS, Region
from ..mini.training.dataset import carried_by_flow

Image = npt.NDArray[np.uint8]
MOST = 300                  # frames that things are cut out of
WORK_HEIGHT = 128           # at which they are told from what is behind them [pixels]
FILLED = 0.25, 0.85         # of its box by a thing that was told well
NEAR, SMALL, GONE = 4, 3, 3     # fewer of each come into a frame
STAY_S, GONE_S = 4.0, 2.0   # mean time that they stay, and since they left
SPEED = 0.08                # of the frame's width in a second, standard deviation
OLDEST_S = 6.0              # of what is known of the flow
ALIKE = 40                  # of those, as old as this one or so, on either side
VISIBLE = 0.3               # of its width; of less nothing is to be seen
TALLER = 1.15               # than the tallest of the frame that lends its place


@dataclass(frozen=True)
class PastedObject:
    """A thing that is there from ``since_s`` to ``until_s`` ago, and moves."""

    pixels: Image           # RGBA
    box: Region             # now, were it still there; may reach beyond the frame
    speed: float            # to the right [pixels/s]
    since_s: float
    until_s: float = 0.0

    def seen(self, age_s: float, size: tuple[int, int]) -> Region | None:
        """Return where it was in the frame that long ago, None where it was not."""
        if not self.until_s <= age_s < self.since_s:
            return None
        x0, y0 = self.box.x - self.speed * age_s, self.box.y
        left, top = max(0.0, x0), max(0.0, y0)
        right, bottom = min(size[0], x0 + self.box.w), min(size[1], y0 + self.box.h)
        if right - left < VISIBLE * self.box.w or bottom - top < VISIBLE * self.box.h:
            return None
        return Region(left, top, right - left, bottom - top)


@dataclass(frozen=True)
class Miss:
    """What the robot's flow made of the region of such a thing, beside where one is now."""

    age_s: float
    carried: Region | None      # None: lost
    true: Region


@dataclass(frozen=True)
class Told:
    """What is said of a frame with objects; of a region, which objects are in it."""

    facts: dict[str, str] = field(default_factory=dict)
    regions: dict[str, Region] = field(default_factory=dict)
    carried: dict[str, Region | None] = field(default_factory=dict)
    similar: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class PastedObjects:
    """The objects of one frame."""

    objects: Sequence[PastedObject]
    rules: Rules
    misses: Sequence[Miss] = ()     # by age

    def now(self, clip: Clip, stamp: int) -> dict[str, str]:
        """Return what is true of the frame with them."""
        label, size = clip.labels[stamp], clip.sequence.size
        boxes = [one.seen(0.0, size) for one in self.objects]
        return {key: value if key not in self.rules else
                _with(self.rules[key], clip.query.choices[key], (value, label.regions.get(key)),
                      boxes, size)[0] for key, value in label.facts.items()}

    def past(self, clip: Clip, seen: int, stamp: int, rng: np.random.Generator) -> Told:
        """Return what was to be said of an earlier frame, and where it is carried to by now."""
        assert clip.tracks is not None
        label, size, told = clip.labels[seen], clip.sequence.size, Told()
        then = [one.seen((stamp - seen) / NS, size) for one in self.objects]
        for key, value in label.facts.items():
            name, who = (seen, key), list[int]()
            own = clip.tracks.boxes.get(name)
            if key in self.rules:
                value, who, stays = _with(self.rules[key], clip.query.choices[key],
                                          (value, label.regions.get(key)), then, size)
                own = own if stays else None
            told.facts[key] = value
            boxes = [jittered(box, rng) for i in who if (box := then[i]) is not None]
            moved = [self._carried(box, self.objects[i].seen(0.0, size), (stamp - seen) / NS, rng)
                     for i in who if (box := then[i]) is not None]
            if own is not None:
                boxes.append(own)
                moved.append(clip.tracks.regions[stamp].get(name))
                told.similar[key] = clip.tracks.similarities[stamp].get(name)
            if boxes:
                told.regions[key] = around(boxes)
                left = [box for box in moved if box is not None]
                told.carried[key] = around(left) if left else None
        return told

    def _carried(self, then: Region, now: Region | None, age_s: float, rng: np.random.Generator,
                 ) -> Region | None:
        """Return where flow says that an object is: mostly as wrong as it is of such things."""
        if now is None or not self.misses or rng.random() < MADE_UP:
            return carried_by_flow(then, now, rng)
        place = bisect_left(self.misses, age_s, key=lambda miss: miss.age_s)
        some = self.misses[max(0, place - ALIKE):place + ALIKE]
        miss = some[int(rng.integers(len(some)))]
        return None if miss.carried is None else beside(now, miss.carried, miss.true)


def _with(rule: KeyRule, choices: Sequence[str], own: tuple[str, Region | None],
          boxes: Sequence[Region | None], size: tuple[int, int],
          ) -> tuple[str, list[int], bool]:
    """Return a value with more boxes, which of them are in its region, whether its own stays."""
    value, region = own
    near = {i: box for i, box in enumerate(boxes)
            if box is not None and box.h >= rule.near * size[1]}
    if not near or rule.largest:
        return value, [], True
    absent = rule.absent or choices[0]
    if rule.count:
        values = list(rule.values or choices)
        number = 0 if value == absent else values.index(value)
        return values[min(number + len(near), len(values) - 1)], list(near), True
    if value != absent and region is None:
        return value, [], True      # nobody knows how tall it is
    tallest = max(near, key=lambda i: (near[i].h, near[i].w))
    if region is not None and (region.h, region.w) >= (near[tallest].h, near[tallest].w):
        return value, [], True
    return rule.side_of(near[tallest], size), [tallest], False


@dataclass(frozen=True)
class CopyPaste:
    """Things that may come into frames; heights and lower edges in sides of the frame."""

    rules: Rules
    pixels: Sequence[Image]
    places: Sequence[tuple[float, float]]
    near: float
    misses: Sequence[Miss] = ()

    def paste(self, image: Image, rng: np.random.Generator) -> tuple[Image, PastedObjects]:
        """Return a frame with some of them in it, the tallest before the others."""
        size = image.shape[1], image.shape[0]
        objects = [self._one(size, tall, gone, rng) for tall, gone, most in (
            (True, False, NEAR), (False, False, SMALL), (True, True, GONE))
            for _ in range(int(rng.integers(most)))]
        image = image.copy()
        for one in sorted(objects, key=lambda v: v.box.h):
            if not one.until_s:
                _paint(image, one, rng)
        return image, PastedObjects(objects, self.rules, self.misses)

    def _one(self, size: tuple[int, int], tall: bool, gone: bool, rng: np.random.Generator,
             ) -> PastedObject:
        share, lower = self.places[int(rng.integers(len(self.places)))]
        least = self.near or 0.5 * share
        most = max(share * TALLER, least * TALLER)
        height = float(np.exp(rng.uniform(*np.log((least * 1.03, most)))) if tall
                       else least * rng.uniform(0.4, 0.95))
        below = 0.5 + (lower - 0.5) * max(0.5, height / share)
        pixels = self.pixels[int(rng.integers(len(self.pixels)))]
        if rng.random() < 0.5:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        h = height * size[1]
        w = h * pixels.shape[1] / pixels.shape[0]
        x = float(rng.random()) * size[0] - w / 2
        y = min(below + float(rng.normal(0, 0.02)), 1.0) * size[1] - h
        until = float(rng.exponential(GONE_S)) + 0.1 if gone else 0.0
        return PastedObject(pixels, Region(x, y, w, h), float(rng.normal(0, SPEED * size[0])),
                            until + float(rng.exponential(STAY_S)), until)


def cut_objects(clips: Sequence[Clip], rules: Rules, rng: np.random.Generator,
                ) -> CopyPaste | None:
    """Cut the tallest thing out of training frames; None where too few can be told well."""
    key = next((key for key, rule in rules.items() if rule.side), None)
    if key is None:
        return None
    frames = [(clip, stamp) for clip in clips for stamp in clip.frames
              if key in clip.labels[stamp].regions]
    places = [_place(clip, clip.labels[stamp], key) for clip, stamp in frames]
    some = [frames[int(i)] for i in rng.permutation(len(frames))[:MOST]]
    cut = [cut_out(clip.sequence.image(stamp), clip.labels[stamp].regions[key])
           for clip, stamp in some]
    pixels = [one for one in cut if one is not None]
    return CopyPaste(rules, pixels, places, rules[key].near,
                     _misses(clips, key)) if pixels else None


def _misses(clips: Sequence[Clip], key: str) -> list[Miss]:
    """Return what the flow made of regions of a key in frames that have one, by age."""
    found = []
    for clip, tracks in ((c, c.tracks) for c in clips if c.tracks is not None):
        for stamp in clip.frames:
            true = clip.labels[stamp].regions.get(key)
            if true is None:
                continue
            found += [Miss((stamp - seen) / NS, tracks.regions[stamp].get((seen, key)), true)
                      for seen in tracks.keyframes
                      if 0 < stamp - seen <= OLDEST_S * NS and (seen, key) in tracks.boxes]
    return sorted(found, key=lambda miss: miss.age_s)


def _place(clip: Clip, label: Label, key: str) -> tuple[float, float]:
    box, height = label.regions[key], clip.sequence.size[1]
    return box.h / height, min(1.0, (box.y + box.h) / height)


def cut_out(image: Image, box: Region) -> Image | None:
    """Return the pixels in a box, see-through where what is behind the thing is; or None."""
    height, width = image.shape[:2]
    x0, y0 = max(0, int(box.x)), max(0, int(box.y))
    x1, y1 = min(width, int(np.ceil(box.x + box.w))), min(height, int(np.ceil(box.y + box.h)))
    mx, my = int(0.4 * (x1 - x0)) + 2, int(0.1 * (y1 - y0)) + 2
    left, top = max(0, x0 - mx), max(0, y0 - my)
    around_it = image[top:min(height, y1 + my), left:min(width, x1 + mx)]
    # One that is cut off by the picture's side would seem so anywhere else.
    if x0 <= 1 or x1 >= width - 1 or x1 - x0 < 8 or y1 - y0 < 24:
        return None
    scale = min(1.0, WORK_HEIGHT / around_it.shape[0])
    small = cv2.resize(around_it, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    mask = _guess(small.shape, [int(round(v * scale)) for v in (
        x0 - left, y0 - top, x1 - x0, y1 - y0)])
    try:
        cv2.grabCut(small, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 3,
                    cv2.GC_INIT_WITH_MASK)
    except cv2.error:       # nothing behind it
        return None
    alpha = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    alpha = cv2.resize(cv2.GaussianBlur(alpha, (0, 0), 0.8),
                       (around_it.shape[1], around_it.shape[0]))
    inside = np.s_[y0 - top:y1 - top, x0 - left:x1 - left]
    alpha = alpha[inside]
    ends = len(alpha) // 10
    whole = min(alpha[:ends].max(), alpha[-ends:].max()) > 0.5
    if not whole or not FILLED[0] <= float(alpha.mean()) <= FILLED[1]:
        return None
    return np.dstack([around_it[inside], np.rint(255 * alpha).astype(np.uint8)])


def _guess(shape: Sequence[int], box: Sequence[int]) -> Image:
    """Return what is surely, or likely, of an upright thing in a box, for `cv2.grabCut`."""
    mask = np.full(shape[:2], cv2.GC_BGD, np.uint8)
    x, y, w, h = box
    mask[y:y + h, x:x + w] = cv2.GC_PR_BGD
    mask[y:y + h, x + w // 5:x + w - w // 5] = cv2.GC_PR_FGD
    mask[y + h // 8:y + h // 2, x + 2 * w // 5:x + w - 2 * w // 5] = cv2.GC_FGD
    return mask


def _paint(image: Image, pasted: PastedObject, rng: np.random.Generator) -> None:
    """Put a pasted object into a frame, in another light."""
    height, width = image.shape[:2]
    x, y = int(pasted.box.x), int(pasted.box.y)
    w, h = max(1, int(pasted.box.w)), max(1, int(pasted.box.h))
    how = cv2.INTER_AREA if h < pasted.pixels.shape[0] else cv2.INTER_LINEAR
    pixels = cv2.resize(pasted.pixels, (w, h), interpolation=how)
    x0, y0, x1, y1 = max(0, x), max(0, y), min(width, x + w), min(height, y + h)
    if x0 >= x1 or y0 >= y1:
        return
    pixels = pixels[y0 - y:y1 - y, x0 - x:x1 - x].astype(np.float32)
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, 3)
    share = pixels[..., 3:] / 255
    under = image[y0:y1, x0:x1]
    mixed = under * (1 - share) + np.clip(pixels[..., :3] * gain, 0, 255) * share
    image[y0:y1, x0:x1] = mixed.astype(np.uint8)
