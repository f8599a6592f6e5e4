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
from .source_frame import SourceFrame

FIRST_PERIOD_S = 0.1  # of a stream of a single frame


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
    last_error: str = ''
    on_error: Callable[[str], None] = lambda message: None
    started: float = field(default_factory=time.monotonic)

    def run(self, frames: Iterator[SourceFrame], on_frame: Callable[[SourceFrame], None],
            stop: threading.Event) -> None:
        """Hand each frame to ``on_frame`` when it is due, until the stream or ``stop`` ends."""
        self.started = time.monotonic()
        last_s, period_s = 0.0, FIRST_PERIOD_S
        for frame in frames:
            period_s, last_s = frame.at_s - last_s or period_s, frame.at_s
            wait = self.started + frame.at_s - time.monotonic()
            if stop.is_set() or (wait > 0 and stop.wait(wait)):
                return
            if frame.at_s and wait < -self.late_s:
                self.skipped += 1
                continue
            try:
                on_frame(frame)
            except FrameError as error:
                self.failed += 1
                self.last_error = str(error)
                self.on_error(str(error))
        # The last frame has its time, too: a short clip that is shown over and over must not run.
        stop.wait(max(0.0, self.started + last_s + min(period_s, 1.0) - time.monotonic()))
