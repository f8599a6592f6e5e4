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
"""A camera frame."""

from __future__ import annotations

from collections.abc import Callable
import threading
import time
from typing import ClassVar
import weakref

from .pixels import decode_compressed, FrameError, Image, LARGE


class Frame:
    """
    One camera image, identified by its camera and acquisition stamp.

    The pixels are decoded when first asked for, so frames that nobody chooses cost nothing. Large
    ones are kept until another frame is decoded.
    """

    _largest: ClassVar[weakref.ref[Frame] | None] = None

    def __init__(self, stamp_ns: int, frame_id: str, *,
                 pixels: Image | Callable[[], Image] | None = None, jpeg: bytes | None = None,
                 reference: str = '', camera: str = '') -> None:
        """
        Keep RGB pixels, or a function that makes them when first asked for, or JPEG bytes.

        ``stamp_ns`` is ROS time; ``frame_id`` is the optical frame (REP-105).
        """
        self.stamp_ns = stamp_ns
        self.frame_id = frame_id
        self.camera = camera               # its name; '' where there is one only
        self.jpeg = jpeg
        self.reference = reference         # what draws this frame again, as JSON; '': nothing
        self.received = time.monotonic()  # steady time of arrival in this process [s]
        self._pixels: Image | None = None if callable(pixels) else pixels
        self._decode: Callable[[], Image] | None = pixels if callable(pixels) else None
        self._lock = threading.Lock()

    @property
    def decoded(self) -> bool:
        """Whether the pixels are at hand."""
        return self._pixels is not None

    def rgb(self) -> Image:
        """Return the pixels; raise FrameError when they cannot be decoded."""
        with self._lock:
            pixels = self._pixels
            if pixels is None:
                self._forget_largest()
                if self._decode is not None:
                    pixels = self._decode()
                elif self.jpeg is not None:
                    pixels = decode_compressed(self.jpeg)
                else:
                    raise FrameError('frame has no data')
                self._pixels = pixels
                if self.jpeg is not None and pixels.nbytes > LARGE:
                    Frame._largest = weakref.ref(self)
            return pixels

    @staticmethod
    def _forget_largest() -> None:
        other = Frame._largest() if Frame._largest is not None else None
        if other is not None:
            other._pixels = None
