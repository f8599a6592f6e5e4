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
"""One episode: its script, what looks the same all through, and what each frame shows."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
import math
from typing import Protocol

import numpy as np

from .hand_photo import exposed, skin_color
from .hand_shape import FORMED
from .scene import (Arm, CAMERA_HEIGHT, CONDITIONS, DIGITS, DISTANCE, FOCAL, FPS, Hand, HEIGHT,
                    HriScene, Item, Light, OBJECTS, Person, TARGETS, WIDTH)
from .script import Act, draw_passes, draw_visits, ease, mix, Visit, WALK_S
from ..pictures import Image, Point
from ...method.facts import Region

TURN_S = 0.4          # to turn the head
HAND_M = 0.21         # from the wrist to the tip of the middle finger
OUT = 0.75            # an arm that is out this far points or hands over


class Hands(Hashable, Protocol):
    """Where photographs of hands come from; hands.HandBank is one."""

    def pick(self, split: str, digit: int, rng: np.random.Generator) -> Image:
        """Return a cut-out photograph of a digit, RGBA."""


def split_of(seed: int) -> str:
    """Return whose hands a world of this seed shows; the ranges are those of ``worlds``."""
    return 'train' if seed < 1_000_000 else 'tune' if seed < 2_000_000 else 'test'


@lru_cache(maxsize=64)
def episode(seed: int, number: int, condition: str | None, hands: Hands | None) -> HriEpisode:
    """Return an episode of a world, counted from 0; condition None draws one."""
    return HriEpisode(seed, number, condition, hands)


class View:
    """The camera in one frame, which sways: shifts of the picture [pixels]."""

    def __init__(self, yaw: float, pitch: float) -> None:
        self.yaw, self.pitch = yaw, pitch

    def project(self, x: float, y: float, z: float) -> Point:
        """Return the pixel of a point of the room [m]."""
        return (WIDTH / 2 + self.yaw + FOCAL * x / z,
                HEIGHT / 2 + self.pitch - FOCAL * (y - CAMERA_HEIGHT) / z)


class HriEpisode:
    """Draws the whole script once; a frame shows one moment of it."""

    def __init__(self, seed: int, number: int, condition: str | None, hands: Hands | None
                 ) -> None:
        possible = CONDITIONS if hands is not None else CONDITIONS[:2]
        self.condition = condition or str(np.random.default_rng([seed, number]).choice(possible))
        rng = np.random.default_rng([seed, number, CONDITIONS.index(self.condition), 20261])
        self.variant = int(rng.integers(1 << 30))
        self.key = [seed, number, 20262]
        self.bank = hands if self.condition == 'real' else None
        self.split = split_of(seed)
        self.photos: dict[int, Image] = {}
        self.exposure = float(rng.uniform(130, 185))
        self._draw_places(rng)
        self.visits = draw_visits(rng)
        self.passes = draw_passes(rng, *self.z)
        self.wobble = rng.uniform(0, 2 * math.pi, 16)
        self.sway = rng.uniform(0.75, 1.3, 8)
        self._draw_light(rng)
        post = rng.random() < 0.35
        self.post = (float(rng.uniform(-0.4, 0.4)), float(rng.uniform(0.03, 0.06))) if post \
            else None

    def _draw_places(self, rng: np.random.Generator) -> None:
        """Draw how far away and how tall the partner is, and what stands on the counter."""
        near, far = DISTANCE[self.condition]
        middle = float(rng.uniform(near * 1.08, far * 0.93))
        self.z = (max(near, middle * 0.84), min(far, middle * 1.16))
        self.size = float(rng.uniform(1.58, 1.86))                    # of the partner [m]
        self.hand = HAND_M * float(rng.uniform(1.0, 1.2))
        self.mirror = bool(rng.random() < 0.15)                       # back of the hand to us
        self.counter_z = 0.9 * self.z[0]
        aim = float(rng.uniform(0.30, 0.36)) + 0.10 * max(0.0, middle - 1.2) * float(rng.random())
        self.pitch = FOCAL * (self.size - aim - CAMERA_HEIGHT) / middle
        self.counter_y = max(0.92, self.size - aim - 0.33 * self.counter_z)
        self.above = self.size - 0.30 - self.counter_y     # shoulders over the counter [m]
        self.counter_depth = 0.14 * self.counter_z
        order = rng.permutation(len(TARGETS))
        slots = (np.arange(4) - 1.5) * 118 + rng.uniform(-22, 22, 4) + rng.uniform(-25, 25)
        # kind, place to the right [m], to the rear [depths of the counter], size [m], variant
        self.items = [(TARGETS[k], float(u) * self.counter_z / FOCAL, float(rng.uniform(0, 0.5)),
                       min(0.165, 0.15 * self.counter_z) * float(rng.uniform(0.88, 1.0)),
                       int(rng.integers(1 << 30))) for k, u in zip(order, slots)]

    def _draw_light(self, rng: np.random.Generator) -> None:
        """Draw the light of the room and what the camera makes of it."""
        self.gain = float(rng.choice([rng.uniform(0.48, 0.68), rng.uniform(0.75, 1.12),
                                      rng.uniform(0.75, 1.12)]))
        warm = float(rng.normal(0, 0.07))
        self.tint = (1.0 + warm, 1.0, 1.0 - warm)
        bright = self.gain > 0.7
        self.backlight = float(rng.uniform(0.55, 0.8)) if bright and rng.random() < 0.4 else 1.0
        self.noise = int(rng.integers(0, 3)) + (not bright)
        self.shake = float(rng.uniform(0.0, 1.0))

    def photo(self, digit: int) -> Image | None:
        """Return the photograph of a digit; all of an episode are of one person."""
        if self.bank is None:
            return None
        if digit not in self.photos:
            photo = self.bank.pick(self.split, digit, np.random.default_rng(self.key))
            self.photos[digit] = exposed(photo, self.exposure)
        return self.photos[digit]

    def scene(self, i: int, index: int) -> HriScene:
        """Return frame i of the episode, which is frame ``index`` of the world."""
        t, a = i / FPS, self.wobble
        rough = max(0.0, math.sin(0.41 * t + a[0])) ** 4 * self.shake
        yaw = (60.0 * math.sin(0.19 * t * self.sway[0] + a[1])
               + 5.0 * rough * math.sin(4.1 * t + a[2]))
        pitch = (self.pitch + 12.0 * math.sin(0.27 * t * self.sway[1] + a[3])
                 + 3.0 * rough * math.sin(5.3 * t + a[4]))
        view = View(yaw, pitch)
        items = []
        for kind, x, back, s, variant in self.items:
            z = self.counter_z + back * self.counter_depth
            u, v = view.project(x, self.counter_y, z)
            items.append(Item(kind, u, v, s * FOCAL / z, variant))
        visit = next((v for v in self.visits if v.start <= t <= v.end), None)
        partner = None if visit is None else self._partner(visit, t, view, items)
        rear, front = (view.project(0.0, self.counter_y, self.counter_z + d)[1]
                       for d in (0.5 * self.counter_depth, -0.5 * self.counter_depth))
        photo = self.photo(5)
        return HriScene(
            index, self.condition, self.variant, yaw, pitch, self._light(t, rough),
            None if photo is None else skin_color(photo), partner, self._walkers(t, view),
            (rear, front, FOCAL / self.counter_z), tuple(items), self._post(view))

    def _light(self, t: float, rough: float) -> Light:
        """Return the light at t seconds; ``rough``: how much the camera shakes, 0 to 1."""
        a = self.wobble
        level = self.gain * (1.0 + 0.12 * math.sin(0.33 * t + a[5]))
        return Light((level * self.tint[0], level * self.tint[1], level * self.tint[2]),
                     mix(self.backlight, 1.0, 0.2 + 0.2 * math.sin(0.21 * t + a[6])),
                     self.noise, 1.0 + 4.0 * rough * (1.0 if self.z[0] < 1.8 else 0.6))

    def _walkers(self, t: float, view: View) -> tuple[Person, ...]:
        """Return the bystanders in or beside the frame at t seconds, far ones first."""
        walkers = []
        for one in self.passes:
            span = WIDTH / FOCAL * one.z / 2 + 0.4
            x = one.heading * (one.speed * (t - one.start) - span)
            if abs(x) <= span + 0.2:
                m = FOCAL / one.z
                u, v = view.project(x, one.height - 0.30 + 0.015 * math.sin(9 * t), one.z)
                head = Region(u - 0.105 * m, v - 0.31 * m, 0.21 * m, 0.27 * m)
                walkers.append(Person(u, v, m, one.z, head, one.variant, heading=one.heading,
                                      step=4.6 * one.speed * t * 1.6))
        return tuple(sorted(walkers, key=lambda w: -w.z))

    def _post(self, view: View) -> Region | None:
        """Return the box of the post in the foreground, where there is one."""
        if self.post is None:
            return None
        u, _ = view.project(self.post[0] * self.z[0] * 0.55, 0.0, self.z[0] * 0.55)
        w = self.post[1] * FOCAL / max(0.8, self.z[0] * 0.55)
        return Region(u - w / 2, 0.0, w, float(HEIGHT))

    def _partner(self, visit: Visit, t: float, view: View, items: list[Item]) -> Person:
        """Return the partner at t seconds of a visit."""
        a = self.wobble
        x, z = self._where(visit, t)
        m = FOCAL / z
        u, v = view.project(x, self.size - 0.30 + 0.008 * math.sin(1.7 * t + a[10]), z)
        gaze, turn, nod = self._gaze(visit, t)
        tilt = 0.02 * m * math.sin(0.9 * t + a[11])
        head = Region(u + tilt - 0.115 * m + 0.02 * m * turn, v - 0.335 * m + 0.015 * m * nod,
                      0.23 * m, 0.29 * m)
        arms = (self._gesture(visit, t, (u, v), m, z), self._other(visit, t, (u, v), m, items))
        return Person(u, v, m, z, head, self.variant, turn, nod, gaze, arms=arms)

    def _where(self, visit: Visit, t: float) -> tuple[float, float]:
        """Return where the partner stands, to the right and ahead [m]."""
        a, s = self.wobble, self.sway
        low, high = self.z
        z = (low + high) / 2 + (high - low) / 2 * math.sin(0.31 * t * s[2] + a[7])
        reach = (50 + 48 * (z - 0.7)) / FOCAL * z   # sways over more of the frame when far away
        x = reach * (0.75 * math.sin(0.23 * t * s[3] + a[8])
                     + 0.25 * math.sin(0.71 * t * s[4] + a[9]))
        outside = WIDTH / 2 / FOCAL * z + 0.55 + 60 / FOCAL * z
        for since, side in ((t - visit.start, visit.enters), (visit.end - t, visit.leaves)):
            x = mix(side * outside, x, ease(since / WALK_S))
        return x, z

    def _target(self, visit: Visit, act: Act) -> int:
        """Return one of the items next to where the partner stands when the arm goes out."""
        x, z = self._where(visit, act.start)
        near = sorted(range(len(self.items)), key=lambda k: abs(
            self.items[k][1] / self.counter_z - (x - visit.side * 0.25) / z))
        return near[int(act.a * (3 if z < 1.8 else 2))]

    @staticmethod
    def _gaze(visit: Visit, t: float) -> tuple[str, float, float]:
        """Return where the partner looks, and turn and nod of the head."""
        poses = {'robot': (0.0, 0.0), 'left': (-1.0, 0.0), 'right': (1.0, 0.0),
                 'down': (0.0, 1.0)}
        k = max((i for i, act in enumerate(visit.gaze) if act.start <= t), default=0)
        now, before = visit.gaze[k], visit.gaze[max(0, k - 1)]
        share = ease((t - now.start) / TURN_S) if k else 1.0
        ends = [tuple(c * (0.8 + 0.2 * act.a) for c in poses[act.value]) for act in (before, now)]
        return ((now if share >= 0.5 else before).value,
                mix(ends[0][0], ends[1][0], share), mix(ends[0][1], ends[1][1], share))

    def _gesture(self, visit: Visit, t: float, neck: Point, m: float, z: float) -> Arm:
        """Return the arm that shows digits, m pixels per metre, z metres away."""
        side, a = visit.side, self.wobble
        act = next((g for g in visit.gestures if g.start <= t <= g.end), None)
        out = 0.0 if act is None else act.out(t)
        wrist, angle, pose, digit, step = self._rest(side, neck, m), side * 2.9, 'fist', 0, 0
        if act is not None:
            high = -0.17 + 0.12 * min(z, 2.3)                  # lower where the view is narrow,
            drop = min(0.22, max(0.0, 0.8 * self.above + high))     # but over the counter
            wide = mix(0.24, min(0.44, 0.22 + 0.10 * z), act.a)
            goal = (neck[0] + m * (side * wide + 0.02 * math.sin(1.3 * t + a[12])),
                    neck[1] - m * (high - drop * act.b + 0.015 * math.sin(1.9 * t + a[13])))
            wrist = (mix(wrist[0], goal[0], out), mix(wrist[1], goal[1], out))
            angle = mix(angle, 0.5 * (act.c - 0.5) + 0.06 * math.sin(1.1 * t + a[14]), out)
            step = act.formed(t)
            pose, digit = ('digit' if step else 'fist'), DIGITS.index(act.value)
        photo = self.photo(digit) if step >= FORMED else None
        hand = Hand(*wrist, self.hand * m, angle, (side > 0) != self.mirror, pose, digit, step,
                    photo)
        shoulder, elbow = _shoulder_and_elbow(neck, side, m, (hand.x, hand.y))
        return Arm(shoulder, elbow, hand)

    def _other(self, visit: Visit, t: float, neck: Point, m: float, items: list[Item]) -> Arm:
        """Return the arm that points or holds something out, m pixels per metre."""
        side, a = -visit.side, self.wobble
        act = next((o for o in visit.others if o.start <= t <= o.end), None)
        out = 0.0 if act is None else act.out(t)
        wrist, angle, pose = self._rest(side, neck, m), side * 2.9, 'fist'
        length, held, target = self.hand * m, '', -1
        if act is not None and act.value in OBJECTS:
            held = act.value
            goal = (neck[0] + m * (side * mix(0.20, 0.31, act.a) + 0.015 * math.sin(t + a[12])),
                    neck[1] + m * (mix(0.25, 0.70, act.b) * min(0.40, self.above)
                                   + 0.012 * math.sin(1.7 * t + a[13])))
            wrist = (mix(wrist[0], goal[0], out), mix(wrist[1], goal[1], out))
            angle = mix(angle, 0.5 * (act.c - 0.5), ease(out * 1.6))
        elif act is not None:
            target = self._target(visit, act)
            pose = 'point' if out >= OUT else 'fist'   # a stretched finger is a labelled one
            box = items[target].region
            root = (neck[0] + side * 0.19 * m, neck[1] + 0.03 * m)
            to = (box.x + box.w / 2 - root[0], box.y + box.h * 0.35 - root[1])
            far = max(1e-6, math.hypot(*to))
            reach = min(0.52 * m, max(-0.14 * m, far - length - 0.55 * box.w))
            goal = (root[0] + to[0] / far * reach, root[1] + to[1] / far * reach)
            # the index finger tip leans 16 degrees in the hand
            lean = math.radians(16.0) * (1 if side < 0 else -1)
            aim = math.atan2(to[0], -to[1]) - lean
            turned = (aim - angle + math.pi) % (2 * math.pi) - math.pi
            wrist = (mix(wrist[0], goal[0], out), mix(wrist[1], goal[1], out))
            angle += turned * out
        shoulder, elbow = _shoulder_and_elbow(neck, side, m, wrist, out if target >= 0 else 0.0)
        return Arm(shoulder, elbow, Hand(*wrist, length, angle, side > 0, pose), held, target,
                   out >= OUT)

    @staticmethod
    def _rest(side: int, neck: Point, m: float) -> Point:
        """Return the wrist of an arm that hangs."""
        return neck[0] + side * 0.25 * m, neck[1] + 0.54 * m


def _shoulder_and_elbow(neck: Point, side: int, m: float, wrist: Point,
                        lift: float = 0.0) -> tuple[Point, Point]:
    """Let the upper arm hang when the wrist is near the shoulder, and stretch it with distance."""
    root = (neck[0] + side * 0.19 * m, neck[1] + 0.03 * m)
    straight = ease((math.hypot(wrist[0] - root[0], wrist[1] - root[1]) / m - 0.28) / 0.24)
    elbow = (mix(root[0] + side * mix(0.07, 0.19, lift) * m, (root[0] + wrist[0]) / 2, straight),
             mix(root[1] + mix(0.27, 0.13, lift) * m, (root[1] + wrist[1]) / 2, straight))
    return root, elbow
