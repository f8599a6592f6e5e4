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
Synthetic driving world: a script of what happens, and its exact labels.

Every frame is a pure function of (seed, condition, index), so a frame can be named by these and
drawn again bit for bit. Coordinates: camera frame of the ego car, x right, y up, z ahead [m].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
import math

import numpy as np
import numpy.typing as npt

from ...method.facts import Fact, Query, Region

FPS = 20.0            # frames a second of the script
WIDTH, HEIGHT = 640, 480
FOCAL = 520.0         # pixels
HORIZON = 225.0       # image row of the horizon with no pitch
CAMERA_HEIGHT = 1.4   # m above the road
EPISODE_S = 120.0     # after this a new episode with a derived seed begins
CONDITIONS = ('day', 'rain', 'night')

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

    kind: str      # light, limit, lead, pedestrian, parked, building, tree, oncoming, clutter
    x: float       # centre [m]
    base: float    # height of the lower edge above the road [m]
    z: float       # distance [m]
    w: float       # width [m]
    h: float       # height [m]
    state: str = ''
    look: int = 0  # picks colours and variants
    name: int = 0  # the same for the same thing in every frame of an episode


@dataclass(frozen=True)
class Scene:
    """Everything about one frame that is needed to draw and to label it."""

    index: int
    condition: str
    look: int        # picks colours of sky, road and verge
    pitch: float     # shift of the horizon [pixels]
    yaw: float       # shift of the vanishing point [pixels]
    curve: float     # curvature of the road [1/m]
    blur: float      # length of motion blur [pixels]
    distance: float  # driven so far [m]
    things: tuple[Thing, ...]

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Return the pixel of a point in camera coordinates, y above the road."""
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
        seen = (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
        for other in self.things:
            if other.kind in SOLID and other.z < thing.z:
                cover = self._box(other)
                seen &= ~((u >= cover.x) & (u <= cover.x + cover.w)
                          & (v >= cover.y) & (v <= cover.y + cover.h))
        return float(seen.mean())

    def _box(self, thing: Thing) -> Region:
        u, v = self.project(thing.x, thing.base, thing.z)
        w, h = FOCAL * thing.w / thing.z, FOCAL * thing.h / thing.z
        return Region(u - w / 2, v - h, w, h)


class DrivingWorld:
    """A drive through a town: lights, speed signs, a lead vehicle and pedestrians."""

    name = 'driving'
    fps = FPS
    size = (WIDTH, HEIGHT)
    queries = (SCENE, ACTION, DESCRIBE)

    def __init__(self, seed: int, condition: str | None = None) -> None:
        """Prepare the drive of this seed; condition None draws one per episode."""
        if condition is not None and condition not in CONDITIONS:
            raise ValueError(f'condition is {condition!r}; use one of {", ".join(CONDITIONS)}')
        self.seed, self.condition = seed, condition
        self._last: Scene | None = None  # picture and labels of a frame share its scene

    def scene(self, index: int) -> Scene:
        """Return everything there is in frame ``index``."""
        last = self._last
        if last is None or last.index != index:
            episode, i = divmod(index, int(EPISODE_S * FPS))
            last = self._last = _episode(self.seed, episode, self.condition).scene(i, index)
        return last

    def frame(self, index: int) -> npt.NDArray[np.uint8]:
        """Return the picture of frame ``index``, height x width x 3, RGB."""
        from .render import draw  # OpenCV is needed to draw only, not to label
        return draw(self.scene(index), self.seed)

    def facts(self, index: int, stamp_ns: int) -> tuple[Fact, ...]:
        """Return the exact facts of the scene query for frame ``index``, with regions."""
        return label(self.scene(index), stamp_ns)

    def follow(self, before: int, index: int) -> dict[str, Region]:
        """Return where the things that frame ``before`` was labelled with are in ``index``."""
        scene = self.scene(index)
        now = {(t.kind, t.name): t for t in scene.things}
        found = {}
        for key, thing in asked_about(self.scene(before)).items():
            same = now.get((thing.kind, thing.name))
            region = scene.region(same) if same is not None else None
            if region is not None:
                found[key] = region
        return found

    def answers(self, index: int, stamp_ns: int) -> dict[str, tuple[tuple[Fact, ...], str]]:
        """Return the exact facts and text of every query for frame ``index``, by query id."""
        facts = self.facts(index, stamp_ns)
        return {
            'scene': (facts, ''),
            'action': ((Fact('action', action(facts), stamp_ns),), ''),
            'describe': ((), describe(facts)),
        }


def asked_about(scene: Scene) -> dict[str, Thing]:
    """Return the nearest thing of each kind that is half visible; a crossing pedestrian first."""
    best: dict[str, Thing] = {}
    for thing in sorted(scene.things, key=lambda t: (t.state != 'crossing', t.z)):
        if thing.kind in SCENE.choices and thing.kind not in best and scene.visible(thing) >= 0.5:
            best[thing.kind] = thing
    return best


def label(scene: Scene, stamp_ns: int) -> tuple[Fact, ...]:
    """Return what there is of each kind as a fact."""
    things = asked_about(scene)
    return tuple(Fact(key, things[key].state, stamp_ns, 1.0, scene.region(things[key]))
                 if key in things else Fact(key, 'none', stamp_ns) for key in SCENE.keys)


def action(facts: tuple[Fact, ...]) -> str:
    """Return what the traffic rules ask of the car."""
    value = {f.key: f.value for f in facts}
    if value['light'] == 'red' or value['pedestrian'] == 'crossing':
        return 'stop'
    if value['light'] == 'yellow' or value['lead'] == 'braking':
        return 'slow'
    return 'go'


def describe(facts: tuple[Fact, ...]) -> str:
    """Return the facts as a sentence."""
    value = {f.key: f.value for f in facts}
    parts = []
    if value['light'] != 'none':
        parts.append(f'the light is {value["light"]}')
    if value['limit'] != 'none':
        parts.append(f'the limit is {value["limit"]}')
    if value['lead'] != 'none':
        parts.append(f'the vehicle ahead is {value["lead"]}')
    if value['pedestrian'] == 'crossing':
        parts.append('a pedestrian is crossing')
    elif value['pedestrian'] == 'sidewalk':
        parts.append('a pedestrian is on the sidewalk')
    return (', '.join(parts) if parts else 'the road is free').capitalize() + '.'


# -- the script of one episode ------------------------------------------------------------------

@dataclass
class _Light:
    s: float
    x: float
    phase: float
    green: float
    red: float

    def state(self, t: float) -> str:
        p = (t + self.phase) % (self.green + 1.8 + self.red)
        return 'green' if p < self.green else 'yellow' if p < self.green + 1.8 else 'red'


@dataclass
class _Walker:
    s: float
    side: float
    crosses: bool
    trigger: float       # starts to cross when the car is this near [m]
    speed: float
    look: int
    started: float | None = None

    def x(self, t: float) -> float:
        if self.started is None:
            return self.side * 4.6
        return self.side * max(-4.6, 4.6 - self.speed * (t - self.started))

    def crossing(self, t: float) -> bool:
        return abs(self.x(t)) < 3.4


@lru_cache(maxsize=64)
def _episode(seed: int, number: int, condition: str | None) -> _Episode:
    return _Episode(seed, number, condition)


class _Episode:
    """Simulates the whole drive once; frames are then looked up."""

    def __init__(self, seed: int, number: int, condition: str | None) -> None:
        rng = np.random.default_rng([seed, number, 20260])
        drawn = str(rng.choice(CONDITIONS))
        self.condition = condition or drawn
        self.look = int(rng.integers(1 << 30))
        length = 1600.0
        self.lights = [_Light(s, float(rng.choice([-1, 1, 1])) * rng.uniform(3.6, 5.0),
                              rng.uniform(0, 20), rng.uniform(8.0, 16.0), rng.uniform(8.0, 14.0))
                       for s in self._places(rng, 25, length, 50, 80)]
        self.signs = [(s, rng.uniform(3.8, 5.6), str(rng.choice(LIMITS)))
                      for s in self._places(rng, 15, length, 34, 60)]
        self.walkers = [_Walker(s, float(rng.choice([-1, 1])), bool(rng.random() < 0.6),
                                rng.uniform(14, 30), rng.uniform(0.9, 1.5),
                                int(rng.integers(1 << 30)))
                        for s in self._places(rng, 20, length, 32, 64)]
        self.scenery = [Thing(str(rng.choice(['building', 'building', 'tree', 'clutter', 'clutter',
                                              'parked'])),
                              float(rng.choice([-1, 1])) * rng.uniform(6.5, 11), 0.0, s,
                              rng.uniform(3, 9), rng.uniform(3, 9), '', int(rng.integers(1 << 30)))
                        for s in self._places(rng, 6, length, 3, 9)]
        self._drive(rng)
        self.wobble = rng.uniform(0, 2 * math.pi, 8)

    @staticmethod
    def _places(rng: np.random.Generator, first: float, last: float, lo: float,
                hi: float) -> list[float]:
        places, s = [], first + rng.uniform(0, hi)
        while s < last:
            places.append(float(s))
            s += rng.uniform(lo, hi)
        return places

    def _drive(self, rng: np.random.Generator) -> None:
        """Integrate the ego car, the lead vehicle and the pedestrians at the frame rate."""
        n, dt = int(EPISODE_S * FPS), 1.0 / FPS
        cruise = rng.uniform(3.0, 5.5)
        s, v = 0.0, cruise
        gap, lead_on, lead_until = rng.uniform(12, 40), bool(rng.random() < 0.75), 0.0
        target_gap, braking, brake_until = gap, False, 0.0
        lead_look = int(rng.integers(1 << 30))
        self.track = np.zeros((n, 4))           # distance, speed, gap (0 = none), braking
        self.lead_looks = np.zeros(n, dtype=np.int64)
        for i in range(n):
            t = i * dt
            if t >= lead_until:
                lead_on = not lead_on if i else lead_on
                lead_until = t + (rng.uniform(15, 30) if lead_on else rng.uniform(5, 12))
                lead_look = int(rng.integers(1 << 30))
                gap = rng.uniform(14, 42)
            stop = self._stop_distance(s, t)
            if t >= brake_until:
                braking = not braking and bool(rng.random() < 0.75)
                brake_until = t + rng.uniform(6.0, 14.0)
                target_gap = rng.uniform(10, 24) if braking else rng.uniform(16, 42)
            wanted = min(cruise, math.sqrt(2 * 3.0 * max(0.0, stop - 11.0)))
            if lead_on and braking:
                wanted = min(wanted, 0.55 * cruise)
            v += min(2.0 * dt, max(-5.0 * dt, wanted - v))
            v = max(0.0, v)
            s += v * dt
            gap += min(3.5 * dt, max(-3.5 * dt, target_gap - gap))
            for walker in self.walkers:
                if walker.crosses and walker.started is None and 0 < walker.s - s < walker.trigger:
                    walker.started = t
            self.track[i] = s, v, gap if lead_on else 0.0, braking
            self.lead_looks[i] = lead_look

    def _stop_distance(self, s: float, t: float) -> float:
        stops = [light.s - s for light in self.lights
                 if light.s - s > 9.0 and light.state(t) != 'green']
        stops += [w.s - s + 3.0 for w in self.walkers
                  if w.s - s > 6.0 and w.started is not None and w.crossing(t)]
        return min(stops, default=1e9)

    def scene(self, i: int, index: int) -> Scene:
        t = i / FPS
        s, v, gap, braking = self.track[i]
        things = []
        for k, light in enumerate(self.lights):
            if 2.0 < light.s - s < RANGE['light']:
                things.append(Thing('light', light.x, 2.6, light.s - s, 0.5, 1.35, light.state(t),
                                    0, k))
        for k, (at, x, value) in enumerate(self.signs):
            if 2.0 < at - s < RANGE['limit']:
                things.append(Thing('limit', x, 1.7, at - s, 1.25, 1.25, value, 0, k))
        for k, walker in enumerate(self.walkers):
            if 2.0 < walker.s - s < RANGE['pedestrian']:
                state = 'crossing' if walker.crossing(t) else 'sidewalk'
                moving = int(t * 6) if walker.started is not None else 0
                things.append(Thing('pedestrian', walker.x(t), 0.0, walker.s - s, 0.6, 1.75,
                                    state, walker.look & ~1 | moving % 2, k))
        if gap > 0:
            things.append(Thing('lead', 0.0, 0.0, gap, 1.85, 1.5,
                                'braking' if braking else 'cruising', int(self.lead_looks[i]),
                                int(self.lead_looks[i])))
        for item in self.scenery:
            if 1.5 < item.z - s < 90.0:
                size = (1.9, 1.6) if item.kind == 'parked' else (item.w, item.h)
                x = (math.copysign(5.2, item.x) if item.kind == 'parked' else
                     item.x + math.copysign(item.w / 2, item.x) if item.kind == 'building'
                     else item.x)
                things.append(Thing(item.kind, x, 0.0, item.z - s, *size, '', item.look))
        a = self.wobble
        rough = 0.5 + 0.5 * math.sin(0.37 * t + a[5])
        shake = v / 5.5
        return Scene(
            index, self.condition, self.look,
            pitch=3.0 * shake * math.sin(5.1 * t + a[0]) + 16.0 * math.sin(0.17 * t + a[1]),
            yaw=125.0 * math.sin(0.16 * t + a[2]) + 3.0 * shake * math.sin(3.3 * t + a[3]),
            curve=0.003 * math.sin(0.15 * t + a[4]),
            blur=shake * (1.0 + 5.0 * rough ** 3), distance=float(s), things=tuple(things))
