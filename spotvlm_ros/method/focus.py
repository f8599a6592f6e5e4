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
Visual focus: two views of a frame inside a fixed visual-token budget, in three ways.

The first view is the whole frame. With back-end ``crop`` the second shows, at camera resolution
where possible, either the regions carried from the cloud's frame (a two by two mosaic, one cell
per key) or, when nothing is known, the default region. The number of views, and so of visual
tokens, never changes.

``tokens`` has the same views and leaves out image tokens that show no region, thinned evenly, down
to a share of all. ``attention`` has the views of a frame about which nothing is known, and adds to
the attention to image tokens in proportion to how much of each a region covers. With no region all
three are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from .facts import Context, NS, Query, Region

Image = npt.NDArray[np.uint8]   # height x width x 3
Array = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1
FocusBackend = Literal['crop', 'tokens', 'attention']
CELLS = 4                       # cells of the mosaic
ELSEWHERE = 1 / 6               # share of the kept tokens that show no region, where there are any


@dataclass(frozen=True)
class FocusConfig:
    """How regions become a view. Fractions are of the frame's width and height."""

    default: tuple[float, float, float, float] = (0.3, 0.3, 0.4, 0.4)  # x, y, w, h
    margin: float = 1.4         # side of the crop over the longer side of the region
    growth_per_s: float = 0.12  # the crop's side grows by this share per second of age
    min_side_px: float = 40.0   # smallest crop, at camera resolution
    backend: FocusBackend = 'crop'
    keep: float = 0.4           # tokens: share of the image tokens that is kept
    bias: float = 1.0           # attention: added before the softmax where a region covers all


def crop_box(region: Region, age_s: float, width: int, height: int,
             config: FocusConfig) -> tuple[int, int, int, int]:
    """Return the square crop around a region as x0, y0, x1, y1 inside the frame [pixels]."""
    side = max(region.w, region.h) * config.margin
    side = max(config.min_side_px, side) * (1.0 + config.growth_per_s * max(0.0, age_s))
    side = min(side, width, height)
    x0 = min(max(0.0, region.x + region.w / 2 - side / 2), width - side)
    y0 = min(max(0.0, region.y + region.h / 2 - side / 2), height - side)
    return int(x0), int(y0), max(int(x0) + 1, int(x0 + side)), max(int(y0) + 1, int(y0 + side))


def default_box(width: int, height: int, config: FocusConfig) -> tuple[int, int, int, int]:
    """Return the region looked at when nothing is known, as x0, y0, x1, y1 [pixels]."""
    x, y, w, h = config.default
    return (int(x * width), int(y * height),
            max(int(x * width) + 1, int((x + w) * width)),
            max(int(y * height) + 1, int((y + h) * height)))


def focus_boxes(query: Query, context: Context | None, now_ns: int, width: int, height: int,
                config: FocusConfig) -> dict[str, tuple[int, int, int, int]]:
    """Return the crops to look at, per key in the query's order, at most CELLS of them."""
    if context is None:
        return {}
    stamps: Mapping[str, int] = {f.key: f.stamp_ns for f in context.facts}
    boxes = {}
    for key in query.keys:
        region = context.focus.get(key)
        region = region.clipped(width, height) if region is not None else None
        if region is not None:
            age_ns = now_ns - stamps.get(key, context.stamp_ns)
            boxes[key] = crop_box(region, age_ns / NS, width, height, config)
    return dict(list(boxes.items())[:CELLS])


def views(frame: Image, query: Query, boxes: Mapping[str, Sequence[int]], size: tuple[int, int],
          config: FocusConfig) -> list[Image]:
    """
    Return the whole frame and the focus view, each of size (width, height).

    The region of a query's only key is shown as large as that; regions of several share a mosaic,
    whose cells without a region show the default region. Back-end ``attention`` shows none.
    """
    width, height = size
    whole = resize(frame, width, height)
    fallback = _crop(frame, default_box(frame.shape[1], frame.shape[0], config))
    if not boxes or config.backend == 'attention':
        return [whole, resize(fallback, width, height)]
    if len(query.keys) == 1:
        return [whole, resize(_crop(frame, *boxes.values()), width, height)]
    cell_w, cell_h = width // 2, height // 2
    small = [resize(fallback, cell_w, cell_h)] * CELLS
    for key, cell in cells(query, boxes).items():
        small[cell] = resize(_crop(frame, boxes[key]), cell_w, cell_h)
    mosaic = np.vstack([np.hstack(small[:2]), np.hstack(small[2:])])
    return [whole, resize(mosaic, width, height)]


def cells(query: Query, boxes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """
    Return which cell of the mosaic shows each key's region.

    A key keeps its cell from frame to frame: the cell's number is the key's place in the query.
    Keys beyond the last cell take those that are free, in order.
    """
    placed = {key: i for i, key in enumerate(query.keys[:CELLS]) if key in boxes}
    free = (i for i in range(CELLS) if i not in placed.values())
    return placed | dict(zip((key for key in query.keys[CELLS:] if key in boxes), free))


def regions_of_views(query: Query, boxes: Mapping[str, Sequence[int]], width: int, height: int,
                     config: FocusConfig) -> tuple[list[Box], list[Box]]:
    """Return where each view shows a region, as parts of its width and height."""
    whole = [_part(box, (0, 0, width, height)) for box in boxes.values()]
    if config.backend == 'attention':
        frame = default_box(width, height, config)
        return whole, [_part(box, frame) for box in boxes.values()]
    if len(query.keys) == 1:
        return whole, [(0.0, 0.0, 1.0, 1.0)] * len(boxes)
    return whole, [(0.5 * (cell % 2), 0.5 * (cell // 2), 0.5 * (cell % 2) + 0.5,
                    0.5 * (cell // 2) + 0.5) for cell in cells(query, boxes).values()]


def token_coverage(regions: Sequence[Box], rows: int, columns: int) -> Array:
    """Return how much of each token of a view, row by row, its best region covers, 0..1."""
    coverage = np.zeros((rows, columns), np.float32)
    for x0, y0, x1, y1 in regions:
        part = np.outer(_overlap(y0, y1, rows), _overlap(x0, x1, columns))
        coverage = np.maximum(coverage, part)
    return coverage.ravel()


def tokens_to_keep(regions: Sequence[Sequence[Box]], rows: int, columns: int,
                   config: FocusConfig) -> npt.NDArray[np.bool_]:
    """Return which image tokens stay: those of regions, from their middle out; others evenly."""
    near = np.concatenate([_nearness(view, rows, columns) for view in regions])
    budget = max(1, int(config.keep * len(near)))
    inside = np.flatnonzero(near > 0)
    outside = np.flatnonzero(near <= 0)
    n_inside = min(len(inside), budget - min(len(outside), int(ELSEWHERE * budget)))
    chosen = np.zeros(len(near), np.bool_)
    chosen[inside[np.argsort(-near[inside], kind='stable')[:n_inside]]] = True
    n_outside = min(len(outside), budget - n_inside)
    if n_outside:
        step = len(outside) / n_outside
        chosen[outside[((np.arange(n_outside) + 0.5) * step).astype(int)]] = True
    return chosen


def _nearness(regions: Sequence[Box], rows: int, columns: int) -> Array:
    """Return, per token, how near to the middle of a region it is: 1 there, 0 outside of all."""
    best = np.zeros((rows, columns), np.float32)
    for x0, y0, x1, y1 in regions:
        touched = np.outer(_overlap(y0, y1, rows), _overlap(x0, x1, columns)) > 1e-6
        away = np.maximum(
            np.abs((np.arange(rows) + 0.5) / rows - (y0 + y1) / 2)[:, None] / (y1 - y0 + 1 / rows),
            np.abs((np.arange(columns) + 0.5) / columns - (x0 + x1) / 2)[None]
            / (x1 - x0 + 1 / columns))
        best = np.maximum(best, np.where(touched, 1.0 - away, 0.0).astype(np.float32))
    return best.ravel()


def _overlap(begin: float, end: float, n: int) -> Array:
    """Return the share of each of n equal parts of 0..1 that lies between begin and end."""
    edges = np.arange(n + 1, dtype=np.float32) / n
    shared = np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin)
    return np.clip(shared * n, 0.0, 1.0).astype(np.float32)


def _part(box: Sequence[int], frame: Sequence[int]) -> Box:
    width, height = frame[2] - frame[0], frame[3] - frame[1]
    return ((box[0] - frame[0]) / width, (box[1] - frame[1]) / height,
            (box[2] - frame[0]) / width, (box[3] - frame[1]) / height)


def _crop(frame: Image, box: Sequence[int]) -> Image:
    x0, y0, x1, y1 = box
    return frame[y0:y1, x0:x1]


def resize(image: Image, width: int, height: int) -> Image:
    """
    Return the image at another size, at a quarter of what one INTER_AREA resize costs.

    OpenCV averages two by two pixels many times faster than it does any other area, so shrinking
    is halving, as often as the target allows, then bilinear to twice the target, then halving
    again. That differs from INTER_AREA by less than one grey level on average.
    """
    if image.shape[1] == width and image.shape[0] == height:
        return np.ascontiguousarray(image)
    while image.shape[1] >= 4 * width and image.shape[0] >= 4 * height:
        image = _halve(image)
    ratios = image.shape[1] / width, image.shape[0] / height
    if max(ratios) <= 1.0:
        return _to(image, width, height, cv2.INTER_LINEAR)
    if max(ratios) > 4.0:  # a strip: bilinear would skip pixels
        return _to(image, width, height, cv2.INTER_AREA)
    return _halve(_to(image, 2 * width, 2 * height, cv2.INTER_LINEAR))


def _halve(image: Image) -> Image:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return _to(image[:2 * height, :2 * width], width, height, cv2.INTER_AREA)


def _to(image: Image, width: int, height: int, how: int) -> Image:
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), dtype=np.uint8)
