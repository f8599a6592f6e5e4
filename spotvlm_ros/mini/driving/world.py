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
Synthetic driving world: a drive through a town, drawn and labelled exactly.

Every frame is a pure function of (seed, condition, index), so a frame can be named by these and
drawn again bit for bit.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .labels import action, describe, label, labelled_things
from .scene import (ACTION, CONDITIONS, DESCRIBE, DrivingScene, EPISODE_S, FOCAL, FPS, HEIGHT,
                    HORIZON, SCENE, SHIFTED, WIDTH)
from .script import episode
from ..pose import Pose
from ...method.facts import Fact, Query, Region


class DrivingWorld:
    """A drive through a town: lights, speed signs, a lead vehicle and pedestrians."""

    name = 'driving'
    fps = FPS
    size = (WIDTH, HEIGHT)
    queries: tuple[Query, ...] = (SCENE, ACTION, DESCRIBE)
    lens = (FOCAL, WIDTH / 2, HORIZON)

    def __init__(self, seed: int, condition: str | None = None) -> None:
        """
        Take the drive of this seed; condition None draws one per episode.

        Raises ValueError where the condition is unknown.
        """
        known = (*CONDITIONS, SHIFTED)
        if condition is not None and condition not in known:
            raise ValueError(f'condition is {condition!r}; use one of {", ".join(known)}')
        self.seed, self.condition = seed, condition
        self._last: DrivingScene | None = None  # picture and labels of a frame share its scene

    def scene(self, index: int) -> DrivingScene:
        """Return everything there is in frame ``index``."""
        last = self._last
        if last is None or last.index != index:
            number, i = divmod(index, int(EPISODE_S * FPS))
            last = self._last = episode(self.seed, number, self.condition).scene(i, index)
        return last

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        """Return the picture of frame ``index``, height x width x 3, RGB."""
        from .render import draw  # OpenCV is needed to draw only, not to label
        return draw(self.scene(index), self.seed)

    def facts(self, index: int, stamp_ns: int) -> tuple[Fact, ...]:
        """Return the exact facts of the scene query for frame ``index``, with regions."""
        return label(self.scene(index), stamp_ns)

    def pose(self, index: int) -> Pose:
        """Return where the camera of a frame is, from the start of its drive."""
        number, i = divmod(index, int(EPISODE_S * FPS))
        x, y, heading = episode(self.seed, number, self.condition).path[i]
        scene = self.scene(index)
        return Pose(float(x), float(y), -math.atan(scene.pitch / FOCAL),
                    float(heading) + math.atan(scene.yaw / FOCAL))

    def follow(self, before: int, index: int) -> dict[str, Region]:
        """Return where the things that frame ``before`` was labelled with are in ``index``."""
        scene = self.scene(index)
        now = {(t.kind, t.name): t for t in scene.things}
        regions = {}
        for key, thing in labelled_things(self.scene(before)).items():
            same = now.get((thing.kind, thing.name))
            region = scene.region(same) if same is not None else None
            if region is not None:
                regions[key] = region
        return regions

    def answers(self, index: int, stamp_ns: int) -> dict[str, tuple[tuple[Fact, ...], str]]:
        """Return the exact facts and text of every query for frame ``index``, by query id."""
        facts = self.facts(index, stamp_ns)
        return {
            'scene': (facts, ''),
            'action': ((Fact('action', action(facts), stamp_ns),), ''),
            'describe': ((), describe(facts)),
        }
