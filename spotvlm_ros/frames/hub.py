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
"""How frames reach those who work on them: a hub hands out all, a mailbox keeps the newest."""

from __future__ import annotations

from collections.abc import Callable
import threading

from .frame import Frame

# Whoever else works on a frame begins this much later than the edge [s]. The nodes of a process
# share one interpreter, so work of a few milliseconds (optical flow, JPEG, messages) at the same
# moment would hold the edge up on its way to the model call. Well above what that way takes, well
# below the period of flow_hz.
HEAD_START_S = 0.02


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

    def waiting(self) -> tuple[Frame, ...]:
        """Return the frames that wait, the longest waiting first; they go on waiting."""
        with self._changed:
            return tuple(self._frames.values())

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

    def get(self, timeout_s: float) -> Frame | None:
        """Take a frame of any camera; None when woken or when none came in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._woken, timeout_s)
            self._woken = False
            name = next(iter(self._frames), None)
            return self._frames.pop(name) if name is not None else None
