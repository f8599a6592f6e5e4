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
"""Camera frames, and how the newest one reaches those who work on it. Needs no ROS."""

from __future__ import annotations

from collections.abc import Callable
import threading
import time

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]  # height x width x 3, RGB
HEAD_START_S = 0.02  # others begin on a frame so much later than the edge, which must not wait
RESTART_S = 1.0  # a stamp this far behind the newest is a restarted stream, not a late frame


class FrameError(ValueError):
    """A frame that cannot be decoded; the message names the cause and the remedy."""


class Frame:
    """
    One camera image, identified by its camera and acquisition stamp.

    The pixels are decoded when first asked for, so frames that nobody chooses cost nothing.
    """

    def __init__(self, stamp_ns: int, frame_id: str, *, pixels: Image | None = None,
                 decode: Callable[[], Image] | None = None, jpeg: bytes | None = None,
                 reference: str = '', camera: str = '') -> None:
        """Keep RGB pixels, or a function that makes them, or JPEG bytes."""
        self.stamp_ns = stamp_ns
        self.frame_id = frame_id
        self.camera = camera               # its name; '' where there is one only
        self.jpeg = jpeg
        self.reference = reference         # what draws this frame again, as JSON; '': nothing
        self.received = time.monotonic()  # steady time of arrival in this process [s]
        self._pixels = pixels
        self._decode = decode
        self._lock = threading.Lock()

    @property
    def decoded(self) -> bool:
        """Whether the pixels are at hand."""
        return self._pixels is not None

    def rgb(self) -> Image:
        """Return the pixels; raise FrameError when they cannot be decoded."""
        with self._lock:
            if self._pixels is None:
                if self._decode is not None:
                    self._pixels = self._decode()
                elif self.jpeg is not None:
                    self._pixels = decode_jpeg(self.jpeg)
                else:
                    raise FrameError('frame has no data')
            return self._pixels


def decode_jpeg(data: bytes) -> Image:
    """Decode a compressed image to RGB; a truncated one is an error, not a half grey picture."""
    if data[:2] == b'\xff\xd8' and b'\xff\xd9' not in data[-64:]:
        raise FrameError(f'truncated JPEG of {len(data)} bytes; check the transport and its '
                         'packet loss')
    raw = np.frombuffer(data, np.uint8)
    rgb = cv2.imdecode(raw, cv2.IMREAD_COLOR_RGB) if raw.size else None
    if rgb is None:
        raise FrameError(f'{len(data)} bytes are no image that OpenCV can decode; publish JPEG '
                         'or PNG')
    return np.asarray(rgb, np.uint8)


def encode_jpeg(rgb: Image, quality: int = 85) -> bytes:
    """Return JPEG bytes of a frame."""
    ok, data = cv2.imencode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR),
                            [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise FrameError(f'OpenCV cannot encode a frame of shape {rgb.shape} as JPEG')
    return data.tobytes()


class Mailbox:
    """
    Holds the newest frame of each camera; a newer one takes its place and is counted as a drop.

    The camera that has waited longest is served first, so that none goes hungry.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._frames: dict[str, Frame] = {}  # by camera, longest waiting first
        self._woken = False
        self._changed = threading.Condition()
        self.dropped = 0

    def put(self, frame: Frame) -> None:
        """Leave a frame."""
        with self._changed:
            self.dropped += frame.camera in self._frames
            self._frames[frame.camera] = frame
            self._changed.notify_all()

    def wake(self) -> None:
        """Make the present or the next get() return at once."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def clear(self, camera: str | None = None) -> None:
        """Forget the frame of a camera that waits, or all of them."""
        with self._changed:
            for name in [camera] if camera is not None else list(self._frames):
                self._frames.pop(name, None)

    def get(self, timeout_s: float, camera: str | None = None) -> Frame | None:
        """Take a frame, of one camera or of any; None when woken or when none came in time."""
        def name() -> str | None:
            return next((n for n in self._frames if camera is None or n == camera), None)
        with self._changed:
            self._changed.wait_for(lambda: name() is not None or self._woken, timeout_s)
            self._woken = False
            found = name()
            return self._frames.pop(found) if found is not None else None


class FrameHub:
    """Hands frames to everybody in this process, by reference; calls must return quickly."""

    def __init__(self) -> None:
        """Start without listeners."""
        self._listeners: list[Callable[[Frame], None]] = []
        self._lock = threading.Lock()
        self.finished = threading.Event()  # the source has no more frames

    def listen(self, call: Callable[[Frame], None]) -> Callable[[], None]:
        """Call ``call`` with each frame from now on; return the function that ends this."""
        with self._lock:
            self._listeners = [*self._listeners, call]

        def end() -> None:
            with self._lock:
                self._listeners = [c for c in self._listeners if c is not call]
        return end

    @property
    def listeners(self) -> int:
        """Return how many listen."""
        return len(self._listeners)

    def publish(self, frame: Frame) -> None:
        """Hand a frame to all listeners."""
        for call in self._listeners:
            call(frame)


class StampOrder:
    """Lets each stamp through once and in order; says when the stream starts over."""

    def __init__(self) -> None:
        """Start before the first frame."""
        self.newest_ns = 0
        self.rejected = {'zero_stamp': 0, 'duplicate': 0, 'out_of_order': 0}
        self.restarts = 0

    def admit(self, stamp_ns: int) -> str:
        """Return 'ok', 'restart' or the reason for rejecting a frame of this stamp."""
        if stamp_ns <= 0:
            why = 'zero_stamp'
        elif stamp_ns == self.newest_ns:
            why = 'duplicate'
        elif stamp_ns > self.newest_ns:
            self.newest_ns = stamp_ns
            return 'ok'
        elif self.newest_ns - stamp_ns >= RESTART_S * 1e9:
            self.newest_ns = stamp_ns
            self.restarts += 1
            return 'restart'
        else:
            why = 'out_of_order'
        self.rejected[why] += 1
        return why

    def reset(self) -> None:
        """Accept any stamp next."""
        self.newest_ns = 0
