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
drawn again bit for bit. Coordinates of the room: camera of the robot, x right, y up from the
floor, z ahead [m]. 'left' and 'right' are those of the frame.

What the labels mean. The *partner* stands behind the counter and faces the robot; *bystanders*
walk by, seen from the side. A thing is labelled when at least half of it is inside the frame and
not hidden, and 'none' otherwise. A gesture counts while the hand is raised and formed, pointing
while the finger is stretched, handing over while the arm is out; the gaze changes in the middle of
the head's turn. A person is counted where the head is visible. Of several heads the gaze is the
partner's; of pointing, hand and target must both be visible.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from . import hand_shape
from ...method.facts import Fact, Query, Region

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

RAISE_S, FORM_S, TURN_S, WALK_S = 0.5, 0.25, 0.4, 2.6
HAND_M = 0.21         # from the wrist to the tip of the middle finger
SPRITE_PX = 100.0     # this many pixels of a photograph are HAND_M
OUT = 0.75            # an arm that is out this far points or hands over
FORMED = 3            # a hand that is formed by so many steps of hand_shape.STEPS is a digit

Point = tuple[float, float]
Image = npt.NDArray[np.uint8]


class Hands(Hashable, Protocol):
    """Where real hands come from; hands.HandBank is one."""

    def pick(self, split: str, digit: int, rng: np.random.Generator) -> Image:
        """Return a photograph of a digit as RGBA."""
        ...


@dataclass(frozen=True)
class Hand:
    """A hand in one frame: where, how large, and which pose."""

    x: float         # wrist [pixels]
    y: float
    length: float    # from the wrist to the tip of the middle finger [pixels]
    angle: float     # of the fingers from upright, clockwise [rad]
    mirror: bool
    pose: str        # digit, fist, point
    digit: int = 0
    step: int = 0    # formed so far, of hand_shape.STEPS
    photo: Image | None = None

    def place(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the pixels of points in the hand's own coordinates."""
        a = -points[:, 0] if self.mirror else points[:, 0]
        b, cos, sin = points[:, 1], math.cos(self.angle), math.sin(self.angle)
        return np.stack([self.x + self.length * (a * cos + b * sin),
                         self.y + self.length * (a * sin - b * cos)], axis=1)

    @property
    def region(self) -> Region:
        """Bounding box, which may reach out of the frame."""
        points = (photo_outline(self.photo) if self.photo is not None else
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
    target: int = -1             # item that is pointed to
    out: bool = False            # as far as it goes

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

    x: float             # middle of the shoulders [pixels]
    y: float
    m: float             # pixels per metre
    z: float
    head: Region
    look: int            # picks colours and variants
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
    x: float         # middle of the foot [pixels]
    y: float
    s: float         # width and height [pixels]
    look: int

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
class Scene:
    """Everything about one frame that is needed to draw and to label it."""

    index: int
    condition: str
    look: int                          # picks the room
    yaw: float                         # shift of the room [pixels]
    pitch: float
    light: Light
    skin: tuple[float, float, float] | None     # of a photographed hand; None: drawn
    partner: Person | None
    walkers: tuple[Person, ...]        # far ones first
    counter: tuple[float, float, float]         # row of its rear and front edge, pixels per metre
    items: tuple[Item, ...]
    post: Region | None                # something in the foreground


@dataclass(frozen=True)
class Cover:
    """Something that hides what is behind."""

    region: Region
    round: bool = False  # noqa: A003


class HriWorld:
    """A person before a robot: digits, pointing, gaze, objects held out, and passers-by."""

    name = 'hri'
    fps = FPS
    size = (WIDTH, HEIGHT)
    queries = (HRI_SCENE, INTENT, HRI_DESCRIBE)

    def __init__(self, seed: int, condition: str | None = None, hands: Hands | None = None
                 ) -> None:
        """Prepare the episode of this seed; condition None draws one per episode."""
        if condition is not None and condition not in CONDITIONS:
            raise ValueError(f'condition is {condition!r}; use one of {", ".join(CONDITIONS)}')
        if condition == 'real' and hands is None:
            raise ValueError("condition 'real' needs photographs of hands; pass "
                             'hands=HandBank(folder), or use near or far')
        self.seed, self.condition, self.hands = seed, condition, hands
        self._last: Scene | None = None  # picture and labels of a frame share its scene

    def scene(self, index: int) -> Scene:
        """Return everything there is in frame ``index``."""
        last = self._last
        if last is None or last.index != index:
            episode, i = divmod(index, int(EPISODE_S * FPS))
            script = _episode(self.seed, episode, self.condition, self.hands)
            last = self._last = script.scene(i, index)
        return last

    def frame(self, index: int) -> Image:
        """Return the picture of frame ``index``, height x width x 3, RGB."""
        from .render import draw  # OpenCV is needed to draw only, not to label
        return draw(self.scene(index), self.seed)

    def facts(self, index: int, stamp_ns: int) -> tuple[Fact, ...]:
        """Return the exact facts of the scene query for frame ``index``, with regions."""
        return label(self.scene(index), stamp_ns)

    def follow(self, before: int, index: int) -> dict[str, Region]:
        """Return where the things that frame ``before`` was labelled with are in ``index``."""
        then, now = self.scene(before), self.scene(index)
        if then.partner is None or now.partner is None:
            return {}
        first, other = now.partner.arms
        seen = {'gaze': now.partner.head, 'gesture': first.hand.region,
                'object': other.held_region(now.partner.m) if other.held else other.hand.region}
        target = then.partner.arms[1].target
        if target >= 0:
            item = now.items[target].region
            seen['pointing'] = _pointing(other.hand, item) if other.target == target else item
        labelled = {fact.key for fact in label(then, 0) if fact.region is not None}
        clipped = {key: region.clipped(WIDTH, HEIGHT) for key, region in seen.items()}
        return {key: r for key, r in clipped.items() if r is not None and key in labelled}

    def answers(self, index: int, stamp_ns: int) -> dict[str, tuple[tuple[Fact, ...], str]]:
        """Return the exact facts and text of every query for frame ``index``, by query id."""
        facts = self.facts(index, stamp_ns)
        return {
            'scene': (facts, ''),
            'intent': ((Fact('intent', intent(facts), stamp_ns),), ''),
            'describe': ((), describe(facts)),
        }


def split_of(seed: int) -> str:
    """Return whose hands a world of this seed shows; the ranges are those of dataset.py."""
    return 'train' if seed < 1_000_000 else 'tune' if seed < 2_000_000 else 'test'


# -- labels -------------------------------------------------------------------------------------

def label(scene: Scene, stamp_ns: int) -> tuple[Fact, ...]:
    """Return the facts of a frame, in the query's order, with the region of each but people."""
    partner = scene.partner
    front = [c for w in scene.walkers if partner is None or w.z < partner.z for c in _body(w)]
    if scene.post is not None:
        front.append(Cover(scene.post))
    found: dict[str, tuple[str, Region]] = {}
    people = sum(_head_visible(scene, walker) for walker in scene.walkers)
    if partner is not None:
        if _head_visible(scene, partner):
            found['gaze'] = (partner.gaze, partner.head)
            people += 1
        for arm in partner.arms:
            hand = arm.hand
            if hand.pose == 'digit':
                if hand.step >= FORMED and _visible(hand.region, front):
                    found['gesture'] = (DIGITS[hand.digit], hand.region)
            elif arm.held and arm.out:
                box = arm.held_region(partner.m)
                if _visible(box, front):
                    found['object'] = (arm.held, box)
            elif arm.target >= 0 and arm.out:
                item = scene.items[arm.target]
                hands = [Cover(other.hand.region) for other in partner.arms]
                if _visible(hand.region, front) and _visible(item.region, front + hands):
                    found['pointing'] = (item.kind, _pointing(hand, item.region))
    facts = []
    for key in HRI_SCENE.keys:
        if key == 'people':
            facts.append(Fact(key, PEOPLE[min(people, 3)], stamp_ns))
        elif key in found:
            value, region = found[key]
            facts.append(Fact(key, value, stamp_ns, 1.0, region.clipped(WIDTH, HEIGHT)))
        else:
            facts.append(Fact(key, 'none', stamp_ns))
    return tuple(facts)


def _pointing(hand: Hand, target: Region) -> Region:
    """Return hand and target; where that is over a third of the frame, finger tip and target."""
    both = _union(hand.region, target)
    if both.w * both.h <= WIDTH * HEIGHT / 3:
        return both
    tip = hand.place(np.array([[0.26, 0.91]]))[0]
    return _union(target, Region(float(tip[0]) - 1, float(tip[1]) - 1, 2, 2))


def _union(a: Region, b: Region) -> Region:
    x, y = min(a.x, b.x), min(a.y, b.y)
    return Region(x, y, max(a.x + a.w, b.x + b.w) - x, max(a.y + a.h, b.y + b.h) - y)


def _head_visible(scene: Scene, person: Person) -> bool:
    covers = [c for w in scene.walkers if w.z < person.z for c in _body(w)]
    if scene.partner is not None and scene.partner.z < person.z:
        covers += _body(scene.partner)
    if scene.post is not None:
        covers.append(Cover(scene.post))
    return _visible(person.head, covers)


def _body(person: Person) -> list[Cover]:
    """Return what a person hides: head, trunk, legs and raised hands."""
    m, half = person.m, 0.13 if person.heading else 0.20
    covers = [Cover(person.head, True),
              Cover(Region(person.x - half * m, person.y, 2 * half * m, 0.60 * m)),
              Cover(Region(person.x - 0.13 * m, person.y + 0.6 * m, 0.26 * m, 0.75 * m))]
    return covers + [Cover(arm.hand.region) for arm in person.arms]


_STEPS = (np.arange(9) + 0.5) / 9


def _visible(region: Region, covers: Sequence[Cover]) -> bool:
    """Whether at least half of a box is inside the frame and not covered."""
    x = (region.x + region.w * _STEPS)[None, :]
    y = (region.y + region.h * _STEPS)[:, None]
    seen = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
    for cover in covers:
        r = cover.region
        if cover.round:
            u, v = (x - r.x - r.w / 2) / (r.w / 2), (y - r.y - r.h / 2) / (r.h / 2)
            seen &= u * u + v * v > 1
        else:
            seen &= (x < r.x) | (x > r.x + r.w) | (y < r.y) | (y > r.y + r.h)
    return bool(seen.mean() >= 0.5)


def intent(facts: tuple[Fact, ...]) -> str:
    """Return what the person wants of the robot."""
    value = {f.key: f.value for f in facts}
    if value['object'] != 'none':
        return 'give'
    if value['pointing'] != 'none':
        return 'fetch'
    if value['gaze'] == 'robot':
        return 'order' if value['gesture'] != 'none' else 'attention'
    return 'nothing'


def describe(facts: tuple[Fact, ...]) -> str:
    """Return the facts as a sentence."""
    value = {f.key: f.value for f in facts}
    parts = [{'nobody': 'nobody', 'one': 'one person'}.get(value['people'],
                                                           f'{value["people"]} people')]
    if value['gaze'] != 'none':
        parts.append('looking at the robot' if value['gaze'] == 'robot'
                     else f'looking {value["gaze"]}')
    if value['gesture'] != 'none':
        parts.append(f'showing {value["gesture"]}')
    if value['pointing'] != 'none':
        parts.append(f'pointing at the {value["pointing"]}')
    if value['object'] != 'none':
        parts.append(f'holding out {"an" if value["object"] == "apple" else "a"} '
                     f'{value["object"]}')
    return ', '.join(parts).capitalize() + '.'


# -- photographs --------------------------------------------------------------------------------

def photo_wrist(photo: Image) -> float:
    """Return the column of a cut-out hand where the arm begins."""
    low = photo[-max(3, photo.shape[0] // 12):, :, 3].astype(float).sum(axis=0)
    return float((low * np.arange(len(low))).sum() / max(1.0, low.sum()))


def photo_outline(photo: Image) -> npt.NDArray[np.float64]:
    """Return points around a cut-out hand in the hand's coordinates."""
    solid = photo[:, :, 3] > 100
    rows = np.flatnonzero(solid.any(axis=1))[::3]
    left = solid[rows].argmax(axis=1)
    right = solid.shape[1] - solid[rows, ::-1].argmax(axis=1)
    x = (np.concatenate([left, right]) - photo_wrist(photo)) / SPRITE_PX
    return np.stack([x, (solid.shape[0] - np.concatenate([rows, rows])) / SPRITE_PX], axis=1)


def _skin(photo: Image) -> tuple[float, float, float]:
    solid = photo[photo[:, :, 3] > 200][:, :3].astype(float)
    r, g, b = np.median(solid, axis=0)
    return float(r), float(g), float(b)


def _exposed(photo: Image, level: float) -> Image:
    """Return the photograph with skin as bright as asked, within what an exposure can do."""
    gain = min(1.7, max(0.8, level / max(1.0, sum(_skin(photo)) / 3)))
    bright = photo.copy()
    bright[:, :, :3] = np.clip(photo[:, :, :3] * gain, 0, 255)
    return bright


# -- the script of one episode ------------------------------------------------------------------

@dataclass(frozen=True)
class _Act:
    """Something done from ``start`` to ``end`` [s]; places are chosen in 0 to 1."""

    start: float
    end: float
    value: str
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0

    def out(self, t: float) -> float:
        """Return how far the arm is out, 0 to 1."""
        return _ease(min(t - self.start, self.end - t) / RAISE_S)

    def formed(self, t: float) -> int:
        """Return how far the hand is formed, in steps."""
        share = (min(t - self.start, self.end - t) - RAISE_S) / FORM_S
        return int(hand_shape.STEPS * min(1.0, max(0.0, share)))


@dataclass(frozen=True)
class _Visit:
    """The partner comes, stays and goes."""

    start: float
    end: float
    enters: int          # from -1 left, 1 right
    leaves: int
    side: int            # of the hand that shows digits: -1 left, 1 right of the frame
    gestures: tuple[_Act, ...]
    others: tuple[_Act, ...]
    gaze: tuple[_Act, ...]


@dataclass(frozen=True)
class _Pass:
    """A bystander walks by."""

    start: float
    heading: int
    speed: float
    z: float
    height: float
    look: int


def _ease(x: float) -> float:
    x = min(1.0, max(0.0, x))
    return x * x * (3 - 2 * x)


def _mix(a: float, b: float, share: float) -> float:
    return a + (b - a) * share


def _acts(rng: np.random.Generator, start: float, end: float, pause: tuple[float, float],
          hold: tuple[float, float], draw: Callable[[], str]) -> tuple[_Act, ...]:
    acts: list[_Act] = []
    t, before = start + float(rng.uniform(0, pause[1])), ''
    while True:
        length = float(rng.uniform(*hold))
        value = draw()
        while value == before:
            value = draw()
        a, b, c = (float(v) for v in rng.random(3))
        if t + length > end:
            return tuple(acts)
        acts.append(_Act(t, t + length, value, a, b, c))
        t, before = t + length + float(rng.uniform(*pause)), value


@lru_cache(maxsize=64)
def _episode(seed: int, number: int, condition: str | None, hands: Hands | None) -> _Episode:
    return _Episode(seed, number, condition, hands)


class _Episode:
    """Draws the whole script once; a frame is then a look at one moment of it."""

    def __init__(self, seed: int, number: int, condition: str | None, hands: Hands | None
                 ) -> None:
        known = CONDITIONS if hands is not None else CONDITIONS[:2]
        self.condition = condition or str(np.random.default_rng([seed, number]).choice(known))
        rng = np.random.default_rng([seed, number, CONDITIONS.index(self.condition), 20261])
        self.look = int(rng.integers(1 << 30))
        self.key = [seed, number, 20262]
        self.bank = hands if self.condition == 'real' else None
        self.split = split_of(seed)
        self.photos: dict[int, Image] = {}
        self.exposure = float(rng.uniform(130, 185))
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
        self.items = [(TARGETS[k], float(u) * self.counter_z / FOCAL, float(rng.uniform(0, 0.5)),
                       min(0.165, 0.15 * self.counter_z) * float(rng.uniform(0.88, 1.0)),
                       int(rng.integers(1 << 30))) for k, u in zip(order, slots)]
        self.visits = self._visits(rng)
        self.passes = self._passes(rng)
        self.wobble = rng.uniform(0, 2 * math.pi, 16)
        self.sway = rng.uniform(0.75, 1.3, 8)
        self.gain = float(rng.choice([rng.uniform(0.48, 0.68), rng.uniform(0.75, 1.12),
                                      rng.uniform(0.75, 1.12)]))
        warm = float(rng.normal(0, 0.07))
        self.tint = (1.0 + warm, 1.0, 1.0 - warm)
        bright = self.gain > 0.7
        self.backlight = float(rng.uniform(0.55, 0.8)) if bright and rng.random() < 0.4 else 1.0
        self.noise = int(rng.integers(0, 3)) + (not bright)
        self.shake = float(rng.uniform(0.0, 1.0))
        post = rng.random() < 0.35
        self.post = (float(rng.uniform(-0.4, 0.4)), float(rng.uniform(0.03, 0.06))) if post \
            else None

    def _visits(self, rng: np.random.Generator) -> list[_Visit]:
        visits, t = [], float(rng.uniform(-20, 4))
        while t < EPISODE_S:
            end = t + float(rng.uniform(22, 45))
            first, last = t + 0.65 * WALK_S, end - 0.65 * WALK_S
            digits = [int(d) for d in rng.permutation(10)]

            def digit(left: list[int] = digits) -> str:
                if not left:
                    left.extend(int(d) for d in rng.permutation(10))
                return DIGITS[left.pop()]

            def other() -> str:
                return str(rng.choice([*TARGETS, *OBJECTS]))

            def gaze() -> str:
                return str(rng.choice(['robot', 'left', 'right', 'down'],
                                      p=[0.49, 0.18, 0.18, 0.15]))
            visits.append(_Visit(
                t, end, int(rng.choice([-1, 1])), int(rng.choice([-1, 1])),
                int(rng.choice([-1, 1])),
                _acts(rng, first, last, (0.5, 3.0), (5.0, 11.0), digit),
                _acts(rng, first, last, (0.5, 2.5), (5.0, 11.0), other),
                _acts(rng, first - 3.0, last + 7.5, (0.0, 0.0), (4.0, 12.0), gaze)))
            t = end + float(rng.uniform(1.5, 5.0))
        return visits

    def _passes(self, rng: np.random.Generator) -> list[_Pass]:
        passes = []
        for lane in range(2):
            t = float(rng.uniform(-8, 8))
            while t < EPISODE_S:
                front = self.z[0] > 1.8 and rng.random() < 0.22
                z = self.z[0] * rng.uniform(0.62, 0.74) if front \
                    else max(1.7, self.z[1] * 1.15) * rng.uniform(1.0, 1.25) + 0.35 * lane
                one = _Pass(t, int(rng.choice([-1, 1])), float(rng.uniform(0.4, 0.75)), float(z),
                            float(rng.uniform(1.5, 1.88)), int(rng.integers(1 << 30)))
                passes.append(one)
                t += (WIDTH / FOCAL * one.z + 1.2) / one.speed + float(rng.uniform(8.0, 24.0))
        return passes

    def photo(self, digit: int) -> Image | None:
        """Return the photograph of a digit; all of an episode are of one person."""
        if self.bank is None:
            return None
        if digit not in self.photos:
            cut = self.bank.pick(self.split, digit, np.random.default_rng(self.key))
            self.photos[digit] = _exposed(cut, self.exposure)
        return self.photos[digit]

    def scene(self, i: int, index: int) -> Scene:
        t, a = i / FPS, self.wobble
        rough = max(0.0, math.sin(0.41 * t + a[0])) ** 4 * self.shake
        yaw = (60.0 * math.sin(0.19 * t * self.sway[0] + a[1])
               + 5.0 * rough * math.sin(4.1 * t + a[2]))
        pitch = (self.pitch + 12.0 * math.sin(0.27 * t * self.sway[1] + a[3])
                 + 3.0 * rough * math.sin(5.3 * t + a[4]))

        def project(x: float, y: float, z: float) -> Point:
            return (WIDTH / 2 + yaw + FOCAL * x / z,
                    HEIGHT / 2 + pitch - FOCAL * (y - CAMERA_HEIGHT) / z)

        items = []
        for kind, x, back, s, look in self.items:
            z = self.counter_z + back * self.counter_depth
            u, v = project(x, self.counter_y, z)
            items.append(Item(kind, u, v, s * FOCAL / z, look))
        walkers = []
        for one in self.passes:
            span = WIDTH / FOCAL * one.z / 2 + 0.4
            x = one.heading * (one.speed * (t - one.start) - span)
            if abs(x) <= span + 0.2:
                m = FOCAL / one.z
                u, v = project(x, one.height - 0.30 + 0.015 * math.sin(9 * t), one.z)
                head = Region(u - 0.105 * m, v - 0.31 * m, 0.21 * m, 0.27 * m)
                walkers.append(Person(u, v, m, one.z, head, one.look, heading=one.heading,
                                      step=4.6 * one.speed * t * 1.6))
        walkers.sort(key=lambda w: -w.z)
        visit = next((v for v in self.visits if v.start <= t <= v.end), None)
        partner = None if visit is None else self._partner(visit, t, project, items)
        rear, front = (project(0.0, self.counter_y, self.counter_z + d)[1]
                       for d in (0.5 * self.counter_depth, -0.5 * self.counter_depth))
        post = None
        if self.post is not None:
            u, _ = project(self.post[0] * self.z[0] * 0.55, 0.0, self.z[0] * 0.55)
            w = self.post[1] * FOCAL / max(0.8, self.z[0] * 0.55)
            post = Region(u - w / 2, 0.0, w, float(HEIGHT))
        level = self.gain * (1.0 + 0.12 * math.sin(0.33 * t + a[5]))
        skin = self.photo(5)
        return Scene(
            index, self.condition, self.look, yaw, pitch,
            Light((level * self.tint[0], level * self.tint[1], level * self.tint[2]),
                  _mix(self.backlight, 1.0, 0.2 + 0.2 * math.sin(0.21 * t + a[6])),
                  self.noise, 1.0 + 4.0 * rough * (1.0 if self.z[0] < 1.8 else 0.6)),
            None if skin is None else _skin(skin), partner, tuple(walkers),
            (rear, front, FOCAL / self.counter_z), tuple(items), post)

    def _partner(self, visit: _Visit, t: float, project: Callable[[float, float, float], Point],
                 items: list[Item]) -> Person:
        a = self.wobble
        x, z = self._where(visit, t)
        m = FOCAL / z
        u, v = project(x, self.size - 0.30 + 0.008 * math.sin(1.7 * t + a[10]), z)
        gaze, turn, nod = self._gaze(visit, t)
        tilt = 0.02 * m * math.sin(0.9 * t + a[11])
        head = Region(u + tilt - 0.115 * m + 0.02 * m * turn, v - 0.335 * m + 0.015 * m * nod,
                      0.23 * m, 0.29 * m)
        arms = (self._gesture(visit, t, (u, v), m, z), self._other(visit, t, (u, v), m, items))
        return Person(u, v, m, z, head, self.look, turn, nod, gaze, arms=arms)

    def _where(self, visit: _Visit, t: float) -> tuple[float, float]:
        """Return where the partner stands, to the right and ahead [m]."""
        a, s = self.wobble, self.sway
        low, high = self.z
        z = (low + high) / 2 + (high - low) / 2 * math.sin(0.31 * t * s[2] + a[7])
        reach = (50 + 48 * (z - 0.7)) / FOCAL * z   # sways over more of the frame when far away
        x = reach * (0.75 * math.sin(0.23 * t * s[3] + a[8])
                     + 0.25 * math.sin(0.71 * t * s[4] + a[9]))
        outside = WIDTH / 2 / FOCAL * z + 0.55 + 60 / FOCAL * z
        for since, side in ((t - visit.start, visit.enters), (visit.end - t, visit.leaves)):
            x = _mix(side * outside, x, _ease(since / WALK_S))
        return x, z

    def _target(self, visit: _Visit, act: _Act) -> int:
        """Return one of the items next to where the partner stands when the arm goes out."""
        x, z = self._where(visit, act.start)
        near = sorted(range(len(self.items)), key=lambda k: abs(
            self.items[k][1] / self.counter_z - (x - visit.side * 0.25) / z))
        return near[int(act.a * (3 if z < 1.8 else 2))]

    @staticmethod
    def _gaze(visit: _Visit, t: float) -> tuple[str, float, float]:
        poses = {'robot': (0.0, 0.0), 'left': (-1.0, 0.0), 'right': (1.0, 0.0),
                 'down': (0.0, 1.0)}
        k = max((i for i, act in enumerate(visit.gaze) if act.start <= t), default=0)
        now, before = visit.gaze[k], visit.gaze[max(0, k - 1)]
        share = _ease((t - now.start) / TURN_S) if k else 1.0
        ends = [tuple(c * (0.8 + 0.2 * act.a) for c in poses[act.value]) for act in (before, now)]
        return ((now if share >= 0.5 else before).value,
                _mix(ends[0][0], ends[1][0], share), _mix(ends[0][1], ends[1][1], share))

    def _gesture(self, visit: _Visit, t: float, neck: Point, m: float, z: float) -> Arm:
        side, a = visit.side, self.wobble
        act = next((g for g in visit.gestures if g.start <= t <= g.end), None)
        out = 0.0 if act is None else act.out(t)
        wrist, angle, pose, digit, step = self._rest(side, neck, m), side * 2.9, 'fist', 0, 0
        if act is not None:
            high = -0.17 + 0.12 * min(z, 2.3)                  # lower where the view is narrow,
            drop = min(0.22, max(0.0, 0.8 * self.above + high))     # but over the counter
            wide = _mix(0.24, min(0.44, 0.22 + 0.10 * z), act.a)
            goal = (neck[0] + m * (side * wide + 0.02 * math.sin(1.3 * t + a[12])),
                    neck[1] - m * (high - drop * act.b + 0.015 * math.sin(1.9 * t + a[13])))
            wrist = (_mix(wrist[0], goal[0], out), _mix(wrist[1], goal[1], out))
            angle = _mix(angle, 0.5 * (act.c - 0.5) + 0.06 * math.sin(1.1 * t + a[14]), out)
            step = act.formed(t)
            pose, digit = ('digit' if step else 'fist'), DIGITS.index(act.value)
        photo = self.photo(digit) if step >= FORMED else None
        hand = Hand(*wrist, self.hand * m, angle, (side > 0) != self.mirror, pose, digit, step,
                    photo)
        return _arm(neck, side, m, hand)

    def _other(self, visit: _Visit, t: float, neck: Point, m: float, items: list[Item]) -> Arm:
        side, a = -visit.side, self.wobble
        act = next((o for o in visit.others if o.start <= t <= o.end), None)
        out = 0.0 if act is None else act.out(t)
        wrist, angle, pose = self._rest(side, neck, m), side * 2.9, 'fist'
        length, held, target = self.hand * m, '', -1
        if act is not None and act.value in OBJECTS:
            held = act.value
            goal = (neck[0] + m * (side * _mix(0.20, 0.31, act.a) + 0.015 * math.sin(t + a[12])),
                    neck[1] + m * (_mix(0.25, 0.70, act.b) * min(0.40, self.above)
                                   + 0.012 * math.sin(1.7 * t + a[13])))
            wrist = (_mix(wrist[0], goal[0], out), _mix(wrist[1], goal[1], out))
            angle = _mix(angle, 0.5 * (act.c - 0.5), _ease(out * 1.6))
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
            wrist = (_mix(wrist[0], goal[0], out), _mix(wrist[1], goal[1], out))
            angle += turned * out
        return _arm(neck, side, m, Hand(*wrist, length, angle, side > 0, pose), held, target,
                    out >= OUT, out if target >= 0 else 0.0)

    @staticmethod
    def _rest(side: int, neck: Point, m: float) -> Point:
        return neck[0] + side * 0.25 * m, neck[1] + 0.54 * m


def _arm(neck: Point, side: int, m: float, hand: Hand, held: str = '', target: int = -1,
         out: bool = False, lift: float = 0.0) -> Arm:
    """Let the upper arm hang when the wrist is near the shoulder, and stretch it with distance."""
    root = (neck[0] + side * 0.19 * m, neck[1] + 0.03 * m)
    straight = _ease((math.hypot(hand.x - root[0], hand.y - root[1]) / m - 0.28) / 0.24)
    elbow = (_mix(root[0] + side * _mix(0.07, 0.19, lift) * m, (root[0] + hand.x) / 2, straight),
             _mix(root[1] + _mix(0.27, 0.13, lift) * m, (root[1] + hand.y) / 2, straight))
    return Arm(root, elbow, hand, held, target, out)
