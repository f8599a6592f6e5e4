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
"""Keyframes as they leave the robot: small enough, and without what nobody may see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import io
import math

import cv2
import numpy as np
from PIL import Image as PilImage

from ..config.nodes import KeyframeConfig
from ..frames.jpeg import complete_jpeg, is_jpeg, without_metadata
from ..frames.pixels import check_jpeg, decode_image, encode_jpeg, Image, NOT_READ

Polygon = tuple[tuple[float, float], ...]  # corners, 0..1 of width and height
LEAST_QUALITY = 40
SCALES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.18, 0.125)
MASK_CELLS = 24   # what is masked is averaged over cells of this share of the long side
ORIENTATION = 274  # EXIF tag; 1 = upright


@dataclass(frozen=True)
class EncodedKeyframe:
    """A keyframe as it is sent; ``width`` and ``height`` are the camera's [pixels]."""

    jpeg: bytes
    width: int
    height: int
    scale: float = 1.0  # side of the image sent over the camera's


class KeyframeEncoder:
    """Encodes within the limits set; remembers what fitted, so that most are encoded once."""

    def __init__(self, config: KeyframeConfig | None = None) -> None:
        """Start with the best quality; raise ValueError for a malformed privacy mask."""
        config = config or KeyframeConfig()
        self._config, self._masks = config, read_masks(config.privacy_masks)
        best, worst = config.jpeg_quality, min(LEAST_QUALITY, config.jpeg_quality)
        qualities = sorted({best, (best + worst) // 2, worst}, reverse=True)
        self._steps = [(q, SCALES[0]) for q in qualities] + [(worst, s) for s in SCALES[1:]]
        self._step = 0

    def encode(self, jpeg: bytes | None, rgb: Callable[[], Image]) -> EncodedKeyframe:
        """
        Return a frame as it may leave; a camera's own JPEG as it is if the limits allow.

        ``rgb`` is called only where pixels are needed. Raise ValueError for what cannot be sent.
        """
        limits = self._config
        if jpeg is not None and not self._masks:
            whole = complete_jpeg(jpeg) if is_jpeg(jpeg) else None
            size = _upright_size(whole) if whole is not None else None
            if whole is not None and not limits.keep_metadata:
                whole = without_metadata(whole)
            jpeg = whole or jpeg
            if size and not (limits.max_side and max(size) > limits.max_side) and \
                    not (limits.max_image_bytes and len(jpeg) > limits.max_image_bytes):
                check_jpeg(jpeg)
                return EncodedKeyframe(jpeg, *size)
        pixels = rgb()
        height, width = pixels.shape[:2]
        data, scale = self._fit(masked(pixels, self._masks))
        return EncodedKeyframe(data, width, height, scale)

    def _fit(self, pixels: Image) -> tuple[bytes, float]:
        """Return the JPEG and its scale; raise ValueError where no step fits."""
        side, limits = max(pixels.shape[:2]), self._config
        shrunk = min(1.0, limits.max_side / side) if limits.max_side else 1.0
        if not limits.max_image_bytes:
            return encode_scaled(pixels, shrunk, limits.jpeg_quality), shrunk
        data = b''
        for step in range(max(0, self._step - 1), len(self._steps)):
            quality, scale = self._steps[step]
            data = encode_scaled(pixels, shrunk * scale, quality)
            if len(data) <= limits.max_image_bytes:
                self._step = step
                return data, shrunk * scale
        raise ValueError(f'a frame of {pixels.shape[1]}x{pixels.shape[0]} pixels has {len(data)} '
                         f'bytes at its smallest; raise max_image_bytes')


def encode_scaled(pixels: Image, scale: float, quality: int) -> bytes:
    """Return the JPEG of an RGB frame, its sides multiplied by ``scale``."""
    if scale < 1.0:
        height, width = pixels.shape[:2]
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    return encode_jpeg(pixels, quality)


def shrink(keyframe: EncodedKeyframe, max_bytes: int) -> EncodedKeyframe:
    """Return a keyframe again in fewer bytes, for a server that found it too large."""
    pixels = decode_image(keyframe.jpeg)
    if pixels is None:
        raise ValueError('the keyframe cannot be decoded; check the camera driver')
    again = KeyframeEncoder(KeyframeConfig(max_image_bytes=max_bytes)).encode(None, lambda: pixels)
    return EncodedKeyframe(again.jpeg, keyframe.width, keyframe.height,
                           keyframe.scale * again.scale)


def masked(pixels: Image, masks: Sequence[Polygon]) -> Image:
    """Return a frame whose masked parts are averaged over coarse cells; nothing else remains."""
    if not masks:
        return pixels
    height, width = pixels.shape[:2]
    shape = np.zeros((height, width), np.uint8)
    for polygon in masks:
        corners = np.round([(x * width, y * height) for x, y in polygon]).astype(np.int32)
        cv2.fillPoly(shape, [corners], 255)
    cell = max(8, math.ceil(max(height, width) / MASK_CELLS))
    size = (max(1, width // cell), max(1, height // cell))
    coarse = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    out = pixels.copy()
    out[shape > 0] = coarse[shape > 0]
    return out


def read_masks(texts: Sequence[str]) -> tuple[Polygon, ...]:
    """Read masks: ``x0 y0 x1 y1`` for a box, three or more corners ``x y`` for a polygon, 0..1."""
    masks = []
    for text in texts:
        try:
            numbers = [float(n) for n in text.replace(',', ' ').split()]
        except ValueError:
            numbers = []
        if len(numbers) < 4 or len(numbers) % 2 or not all(0 <= n <= 1 for n in numbers):
            raise ValueError(f'privacy mask {text!r}: give 4 numbers for a box (left, top, right, '
                             'bottom) or 6 and more for the corners of a polygon, each from 0 to '
                             '1 of the width or the height')
        corners = list(zip(numbers[::2], numbers[1::2]))
        if len(corners) == 2:
            (x0, y0), (x1, y1) = corners
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        masks.append(tuple(corners))
    return tuple(masks)


def _upright_size(jpeg: bytes) -> tuple[int, int] | None:
    """Return the size of an upright JPEG; None for all else, which must be decoded."""
    try:
        with PilImage.open(io.BytesIO(jpeg), formats=('JPEG',)) as image:
            return image.size if image.getexif().get(ORIENTATION, 1) == 1 else None
    except NOT_READ:
        return None
