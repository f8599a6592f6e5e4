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
The data of the HRI world: its constants, its queries, and what one frame shows.

Coordinates of the room: camera of the robot, x right, y up from the floor, z ahead [m]. 'left' and
'right' are those of the frame.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np
import numpy.typing as npt

from . import hand_photo, hand_shape
from ..pictures import Color, Image, Point
from ...method.facts import Query, Region

FPS = 20.0            # frames a second of the script
WIDTH, HEIGHT = 640, 480
FOCAL = 560.0         # pixels
CAMERA_HEIGHT = 1.35  # m above the floor
EPISODE_S = 120.0     # after this a new episode with a derived seed begins
CONDITIONS = ('near', 'far', 'real')
DISTANCE = {'near': (0.7, 1.6), 'far': (2.0, 3.4), 'real': (0.7, 2.2)}  # of the partner [m]

DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
TARGETS = ('cup', 'ball', 'box', 'book')
OBJECTS = ('apple', 'bottle', 'phone', 'key')
PEOPLE = ('nobody', 'one', 'two', 'three')

HRI_SCENE = Query('scene', 'What does the person do?', 'facts', {
    'gesture': ('none', *DIGITS),
    'pointing': ('none', *TARGETS),
    'gaze': ('none', 'robot', 'left', 'right', 'down'),
    'object': ('none', *OBJECTS),
    'people': PEOPLE,
}, rate_hz=6.0, deadline_s=0.3, cloud_period_s=1.0, ttl_s={'gesture': 6.0, 'default': 7.5})
INTENT = Query('intent', 'What does the person want?', 'choice',
               {'intent': ('nothing', 'attention', 'order', 'fetch', 'give')}, rate_hz=1.0,
               deadline_s=0.5, cloud_period_s=4.0, ttl_s={'default': 8.0})
HRI_DESCRIBE = Query('describe', 'Describe the person.', 'text', rate_hz=0.5, deadline_s=1.0,
                     cloud_period_s=4.0, ttl_s={'default': 8.0})


@dataclass(frozen=True)
class Hand:
    """A hand in one frame: where, how large, and which pose."""

    x: float         # of the wrist [pixels]
    y: float         # of the wrist [pixels]
    length: float    # from the wrist to the tip of the middle finger [pixels]
    angle: float     # of the fingers from upright, clockwise [rad]
    mirror: bool     # the back of the hand, or a left hand
    pose: str        # digit, fist, point
    digit: int = 0
    step: int = 0    # formed so far, of hand_shape.STEPS
    photo: Image | None = None    # cut out, RGBA; None: drawn

    def place(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the pixels, n x 2, of points in the hand's own coordinates, n x 2."""
        a = -points[:, 0] if self.mirror else points[:, 0]
        b, cos, sin = points[:, 1], math.cos(self.angle), math.sin(self.angle)
        return np.stack([self.x + self.length * (a * cos + b * sin),
                         self.y + self.length * (a * sin - b * cos)], axis=1)

    @property
    def region(self) -> Region:
        """Bounding box, which may reach out of the frame."""
        points = (hand_photo.outline(self.photo) if self.photo is not None else
                  np.array(hand_shape.outline(self.pose, self.digit, self.step)))
        low, high = (f(self.place(points), axis=0) for f in (np.min, np.max))
        return Region(float(low[0]), float(low[1]), float(high[0] - low[0]),
                      float(high[1] - low[1]))


@dataclass(frozen=True)
class Arm:
    """Shoulder, elbow and wrist [pixels] with what the hand does."""

    shoulder: Point
    elbow: Point
    hand: Hand
    held: str = ''               # object in the hand
    target: int = -1             # index of the item that is pointed to; -1: none
    out: bool = False            # far enough to point or to hand over

    def held_region(self, m: float) -> Region:
        """Box of the object in the hand, m pixels per metre."""
        w, h = HELD_SIZE[self.held]
        up = 0.50 * self.hand.length + 0.30 * h * m
        x = self.hand.x + up * math.sin(self.hand.angle)
        y = self.hand.y - up * math.cos(self.hand.angle)
        return Region(x - w * m / 2, y - h * m / 2, w * m, h * m)


HELD_SIZE = {'apple': (0.14, 0.14), 'bottle': (0.10, 0.27), 'phone': (0.10, 0.19),
             'key': (0.10, 0.21)}  # width, height [m], larger than life for small cameras


@dataclass(frozen=True)
class Person:
    """The partner or a bystander."""

    x: float             # of the middle of the shoulders [pixels]
    y: float             # of the middle of the shoulders [pixels]
    m: float             # pixels per metre
    z: float             # distance [m]
    head: Region
    variant: int         # seed of colours and shapes
    turn: float = 0.0    # of the head, -1 left to 1 right
    nod: float = 0.0     # 1 looks down
    gaze: str = ''       # value of the fact; empty for a bystander
    step: float = 0.0    # phase of the walk [rad]
    heading: int = 0     # a bystander walks to -1 left, 1 right
    arms: tuple[Arm, ...] = ()


@dataclass(frozen=True)
class Item:
    """Something that stands on the counter."""

    kind: str
    x: float         # of the middle of the foot [pixels]
    y: float         # of the foot [pixels]
    s: float         # width and height [pixels]
    variant: int     # seed of its colours

    @property
    def region(self) -> Region:
        """Box around it."""
        return Region(self.x - self.s / 2, self.y - self.s, self.s, self.s)


@dataclass(frozen=True)
class Light:
    """Light of one frame."""

    gain: tuple[float, float, float]   # of red, green, blue
    person: float                      # of people against a bright window
    noise: int                         # of the sensor, 0 to 3
    blur: float                        # motion blur [pixels]


@dataclass(frozen=True)
class HriScene:
    """Everything about one frame that is needed to draw and to label it."""

    index: int
    condition: str
    variant: int                       # seed of the room
    yaw: float                         # shift of the room to the right [pixels]
    pitch: float                       # and down [pixels]
    light: Light
    skin: Color | None                 # of a photographed hand; None: drawn
    partner: Person | None
    walkers: tuple[Person, ...]        # far ones first
    counter: tuple[float, float, float]    # rows of its rear and front edge, pixels per metre
    items: tuple[Item, ...]
    post: Region | None                # something in the foreground
