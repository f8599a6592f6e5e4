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
The data of the driving world: its constants, its queries, and what one frame shows.

Coordinates: camera frame of the ego car, x right, y up from the road, z ahead [m].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...method.facts import Query, Region

FPS = 20.0            # frames a second of the script
WIDTH, HEIGHT = 640, 480
FOCAL = 520.0         # pixels
HORIZON = 225.0       # image row of the horizon with no pitch
CAMERA_HEIGHT = 1.4   # m above the road
EPISODE_S = 120.0     # after this a new episode with a derived seed begins
CONDITIONS = ('day', 'rain', 'night')
SHIFTED = 'shifted'   # colours, signs, fog and noise that no shipped model has seen; never drawn

# Beyond these distances [m] a thing is neither drawn nor labelled.
RANGE = {'light': 46.0, 'limit': 32.0, 'lead': 44.0, 'pedestrian': 34.0}
SOLID = ('building', 'parked', 'lead', 'pedestrian')  # hide what is behind them
LIMITS = ('30', '50', '80', '100')

SCENE = Query('scene', 'What is on the road?', 'facts', {
    'light': ('none', 'red', 'yellow', 'green'),
    'limit': ('none', *LIMITS),
    'lead': ('none', 'cruising', 'braking'),
    'pedestrian': ('none', 'sidewalk', 'crossing'),
}, rate_hz=6.0, deadline_s=0.3, cloud_period_s=1.0, ttl_s={'light': 6.0, 'default': 9.0})
ACTION = Query('action', 'What should the car do?', 'choice',
               {'action': ('stop', 'slow', 'go')}, rate_hz=1.0, deadline_s=0.5,
               cloud_period_s=4.0, ttl_s={'default': 8.0})
DESCRIBE = Query('describe', 'Describe the road.', 'text', rate_hz=0.5, deadline_s=1.0,
                 cloud_period_s=4.0, ttl_s={'default': 8.0})


@dataclass(frozen=True)
class Thing:
    """Something that stands or moves on the road, in camera coordinates of one frame."""

    kind: str         # light, limit, lead, pedestrian, parked, building, tree, clutter
    x: float          # centre [m]
    base: float       # height of the lower edge above the road [m]
    z: float          # distance [m]
    w: float          # width [m]
    h: float          # height [m]
    state: str = ''   # value of the fact about it; empty for scenery
    variant: int = 0  # seed of its colours and shape
    name: int = 0     # the same for the same thing in every frame of an episode


@dataclass(frozen=True)
class DrivingScene:
    """Everything about one frame that is needed to draw and to label it."""

    index: int
    condition: str
    variant: int     # seed of the colours of sky, road and verge
    pitch: float     # shift of the horizon [pixels]
    yaw: float       # shift of the vanishing point [pixels]
    curve: float     # curvature of the road [1/m]
    blur: float      # length of motion blur [pixels]
    distance: float  # driven so far [m]
    things: tuple[Thing, ...]

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Return the pixel (u, v) of a point in camera coordinates [m], y above the road."""
        u = WIDTH / 2 + self.yaw + FOCAL * (x / z + self.curve * z / 2)
        return u, HORIZON + self.pitch + FOCAL * (CAMERA_HEIGHT - y) / z

    def region(self, thing: Thing) -> Region | None:
        """Return the part of the frame that a thing covers, None when it is outside."""
        return self._box(thing).clipped(WIDTH, HEIGHT)

    def visible(self, thing: Thing) -> float:
        """Return the share of a thing that is inside the frame and not behind another, 0..1."""
        box = self._box(thing)
        u = box.x + box.w * (np.arange(6) + 0.5)[None, :] / 6
        v = box.y + box.h * (np.arange(8) + 0.5)[:, None] / 8
        visible = (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
        for other in self.things:
            if other.kind in SOLID and other.z < thing.z:
                cover = self._box(other)
                visible &= ~((u >= cover.x) & (u <= cover.x + cover.w)
                             & (v >= cover.y) & (v <= cover.y + cover.h))
        return float(visible.mean())

    def _box(self, thing: Thing) -> Region:
        u, v = self.project(thing.x, thing.base, thing.z)
        w, h = FOCAL * thing.w / thing.z, FOCAL * thing.h / thing.z
        return Region(u - w / 2, v - h, w, h)
