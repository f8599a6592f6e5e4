# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
Visual focus, back-end ``crop``: two views of a frame inside a fixed visual-token budget.

The first view is the whole frame. The second shows, at camera resolution where possible, either
the regions carried from the cloud's frame (a two by two mosaic, one cell per key) or, when nothing
is known, the default region. The number of views, and so of visual tokens, never changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from .facts import Context, NS, Query, Region

Image = npt.NDArray[np.uint8]   # height x width x 3
CELLS = 4                       # cells of the mosaic


@dataclass(frozen=True)
class FocusConfig:
    """How regions become a view. Fractions are of the frame's width and height."""

    default: tuple[float, float, float, float] = (0.3, 0.3, 0.4, 0.4)  # x, y, w, h
    margin: float = 1.6         # side of the crop over the longer side of the region
    growth_per_s: float = 0.25  # the crop's side grows by this share per second of age
    min_side_px: float = 48.0   # smallest crop, at camera resolution


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
    seen: Mapping[str, int] = {f.key: f.stamp_ns for f in context.facts}
    boxes = {}
    for key in query.keys:
        region = context.focus.get(key)
        region = region.clipped(width, height) if region is not None else None
        if region is not None:
            age_ns = now_ns - seen.get(key, context.stamp_ns)
            boxes[key] = crop_box(region, age_ns / NS, width, height, config)
    return dict(list(boxes.items())[:CELLS])


def views(frame: Image, query: Query, boxes: Mapping[str, Sequence[int]], size: tuple[int, int],
          config: FocusConfig) -> list[Image]:
    """
    Return the whole frame and the focus view, each of size (width, height).

    Cells without a region show the default region.
    """
    width, height = size
    whole = resize(frame, width, height)
    fallback = _crop(frame, default_box(frame.shape[1], frame.shape[0], config))
    if not boxes:
        return [whole, resize(fallback, width, height)]
    cell_w, cell_h = width // 2, height // 2
    shown = dict.fromkeys(range(CELLS), fallback)
    shown |= {cell: _crop(frame, boxes[key]) for key, cell in cells(query, boxes).items()}
    small = [resize(shown[i], cell_w, cell_h) for i in range(CELLS)]
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
