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
"""A frame of a recording, when it is due, and in which order files are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math
from pathlib import Path
import re

from .pixels import Image
from ..method.facts import Fact
from ..mini.pose import Pose

LONGEST_GAP_S = 60.0  # between frames that is waited for; longer ones are jumps of a clock


class SourceError(ValueError):
    """A source that cannot be opened; the message names it and the remedy."""


@dataclass(frozen=True)
class SourceFrame:
    """
    One recorded or rendered frame, due ``at_s`` seconds after the start of the stream.

    Either ``load`` makes its pixels, and may raise FrameError, or ``jpeg`` holds them.
    """

    at_s: float
    load: Callable[[], Image] | None = None
    jpeg: bytes | None = None
    stamp_ns: int = 0                        # in the recording; 0: it has none
    log_ns: int = 0                          # when a bag's recorder got it
    frame_id: str = ''                       # in a bag: its optical frame
    truth: Callable[[int], tuple[Fact, ...]] | None = None  # frame stamp -> exact facts
    pose: Callable[[], Pose] | None = None   # where the camera is
    reference: str = ''                      # what renders this frame again, as JSON
    warning: str = ''                        # what was odd about the recording here


class RecordedClock:
    """
    Makes times of a recording ones that can be waited for: they never go back, nor years ahead.

    Log times are 0 before the first /clock (ros2/rosbag2#1276), roll over (#2389), and jump where
    a clock was set. A jump takes as long as the step before it.
    """

    def __init__(self, usual_step_s: float = 0.1) -> None:
        """Start before the first frame; ``usual_step_s`` is that of a jump with none before."""
        self._last_s: float | None = None
        self._at_s, self._step_s = 0.0, usual_step_s

    def at(self, recorded_s: float) -> tuple[float, str]:
        """Return when a frame is due [s from the start], and a warning where the clock jumped."""
        step_s = 0.0 if self._last_s is None else recorded_s - self._last_s
        self._last_s = recorded_s
        warning = ''
        if not math.isfinite(step_s) or not 0.0 <= step_s <= LONGEST_GAP_S:
            warning = (f'the recorded time jumps by {step_s:.6g} s, {self._at_s:.1f} s after the '
                       f'start; going on after {self._step_s:.2g} s')
            step_s = self._step_s
        elif step_s > 0:
            self._step_s = min(step_s, 1.0)
        self._at_s += step_s
        return self._at_s, warning


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts the numbers in a name as numbers."""
    return [(int(part), '') if part.isdigit() else (0, part)
            for part in re.split(r'(\d+)', path.name)]
