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
"""The clock that paces frames of a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
import threading
import time

from .pixels import FrameError
from .sources import SourceFrame


@dataclass
class Pace:
    """
    Real-time schedule of one stream on the steady clock.

    Frames that are late by more than ``late_s`` [s] are skipped and counted, so that a slow
    consumer never gets old ones. Those that cannot be decoded are counted in ``failed``.
    """

    late_s: float = 0.1
    skipped: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    def run(self, frames: Iterator[SourceFrame], on_frame: Callable[[SourceFrame], None],
            stop: threading.Event) -> None:
        """Hand each frame to ``on_frame`` when it is due, until the stream or ``stop`` ends."""
        self.started = time.monotonic()
        for frame in frames:
            wait = self.started + frame.at_s - time.monotonic()
            if stop.is_set() or (wait > 0 and stop.wait(wait)):
                return
            if frame.at_s and wait < -self.late_s:
                self.skipped += 1
                continue
            try:
                on_frame(frame)
            except FrameError:
                self.failed += 1
