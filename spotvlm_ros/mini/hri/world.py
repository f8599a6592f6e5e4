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
Synthetic human-robot interaction world: a person at a counter before a robot, and exact labels.

Every frame is a pure function of (seed, condition, index), so a frame can be named by these and
drawn again bit for bit. What the labels mean is said in ``labels``.
"""

from __future__ import annotations

import math

from .episode import episode, Hands
from .labels import describe, intent, label, pointing_region
from .scene import (CONDITIONS, EPISODE_S, FOCAL, FPS, HEIGHT, HRI_DESCRIBE, HRI_SCENE, HriScene,
                    INTENT, WIDTH)
from ..pictures import Image
from ..pose import Pose
from ...method.facts import Fact, Query, Region


class HriWorld:
    """A person before a robot: digits, pointing, gaze, objects held out, and passers-by."""

    name = 'hri'
    fps = FPS
    size = (WIDTH, HEIGHT)
    queries: tuple[Query, ...] = (HRI_SCENE, INTENT, HRI_DESCRIBE)
    lens = (FOCAL, WIDTH / 2, HEIGHT / 2)

    def __init__(self, seed: int, condition: str | None = None, hands: Hands | None = None
                 ) -> None:
        """
        Take the episodes of this seed; condition None draws one for each.

        Raises ValueError where the condition is unknown, or is 'real' without ``hands``.
        """
        if condition is not None and condition not in CONDITIONS:
            raise ValueError(f'condition is {condition!r}; use one of {", ".join(CONDITIONS)}')
        if condition == 'real' and hands is None:
            raise ValueError("condition 'real' needs photographs of hands; pass "
                             'hands=HandBank(folder), or use near or far')
        self.seed, self.condition, self.hands = seed, condition, hands
        self._last: HriScene | None = None  # picture and labels of a frame share its scene

    def scene(self, index: int) -> HriScene:
        """Return everything there is in frame ``index``."""
        last = self._last
        if last is None or last.index != index:
            number, i = divmod(index, int(EPISODE_S * FPS))
            script = episode(self.seed, number, self.condition, self.hands)
            last = self._last = script.scene(i, index)
        return last

    def frame(self, index: int) -> Image:
        """Return the picture of frame ``index``, height x width x 3, RGB."""
        from .render import draw  # OpenCV is needed to draw only, not to label
        return draw(self.scene(index), self.seed)

    def facts(self, index: int, stamp_ns: int) -> tuple[Fact, ...]:
        """Return the exact facts of the scene query for frame ``index``, with regions."""
        return label(self.scene(index), stamp_ns)

    def pose(self, index: int) -> Pose:
        """Return how the camera of a frame is turned."""
        scene = self.scene(index)
        return Pose(pitch=-math.atan(scene.pitch / FOCAL), yaw=math.atan(scene.yaw / FOCAL))

    def follow(self, before: int, index: int) -> dict[str, Region]:
        """Return where the things that frame ``before`` was labelled with are in ``index``."""
        then, now = self.scene(before), self.scene(index)
        if then.partner is None or now.partner is None:
            return {}
        first, other = now.partner.arms
        regions = {'gaze': now.partner.head, 'gesture': first.hand.region,
                   'object': (other.held_region(now.partner.m) if other.held
                              else other.hand.region)}
        target = then.partner.arms[1].target
        if target >= 0:
            item = now.items[target].region
            regions['pointing'] = (pointing_region(other.hand, item) if other.target == target
                                   else item)
        labelled = {fact.key for fact in label(then, 0) if fact.region is not None}
        clipped = {key: region.clipped(WIDTH, HEIGHT) for key, region in regions.items()}
        return {key: r for key, r in clipped.items() if r is not None and key in labelled}

    def answers(self, index: int, stamp_ns: int) -> dict[str, tuple[tuple[Fact, ...], str]]:
        """Return the exact facts and text of every query for frame ``index``, by query id."""
        facts = self.facts(index, stamp_ns)
        return {
            'scene': (facts, ''),
            'intent': ((Fact('intent', intent(facts), stamp_ns),), ''),
            'describe': ((), describe(facts)),
        }
