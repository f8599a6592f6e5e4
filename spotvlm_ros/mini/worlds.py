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
"""The worlds by name, and the seeds that each use of them may draw from."""

from __future__ import annotations

from typing import Protocol, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .driving import scene as driving
from .driving.world import DrivingWorld
from .hri import scene as hri
from .hri.world import HriWorld
from .pose import Pose
from ..method.facts import Fact, Query, Region

if TYPE_CHECKING:
    from .hri.hands import HandBank

# Seeds of worlds, disjoint: never train on a tuning or test drive.
TRAIN_SEEDS = range(1_000_000)
TUNE_SEEDS = range(1_000_000, 1_100_000)
TEST_SEEDS = range(2_000_000, 2_100_000)
NAMES = ('driving', 'hri')
CONDITIONS = {'driving': (*driving.CONDITIONS, driving.SHIFTED), 'hri': hri.CONDITIONS}


class World(Protocol):
    """What every world offers; a frame is a pure function of seed, condition and index."""

    name: str
    fps: float
    size: tuple[int, int]                # width, height [pixels]
    queries: tuple[Query, ...]           # the first asks for facts
    lens: tuple[float, float, float]     # focal length, column and row of the middle [pixels]

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        """Return the picture of a frame, height x width x 3, RGB."""

    def facts(self, index: int, stamp_ns: int) -> tuple[Fact, ...]:
        """Return the exact facts of the first query, with regions."""

    def answers(self, index: int, stamp_ns: int) -> dict[str, tuple[tuple[Fact, ...], str]]:
        """Return the exact facts and text of every query, by its id."""

    def pose(self, index: int) -> Pose:
        """Return where the camera of a frame is and how it is turned."""

    def follow(self, before: int, index: int) -> dict[str, Region]:
        """Return where the things that frame ``before`` was labelled with are in ``index``."""


def make_world(name: str, seed: int, condition: str | None = None,
               hands: HandBank | None = None) -> World:
    """Return the named world; ``hands`` are photographs for condition ``real`` of ``hri``."""
    if name == 'driving':
        return DrivingWorld(seed, condition)
    if name == 'hri':
        return HriWorld(seed, condition, hands)
    raise ValueError(f'there is no world {name!r}; use one of {", ".join(NAMES)}')
