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
Exact labels of an HRI scene, and the answers that follow from them.

The *partner* stands behind the counter and faces the robot; *bystanders* walk by, seen from the
side. A thing is labelled when at least half of it is inside the frame and not hidden, and 'none'
otherwise. A gesture counts while the hand is raised and formed, pointing while the finger is
stretched, handing over while the arm is out; the gaze changes in the middle of the head's turn. A
person is counted where the head is visible. Of several heads the gaze is the partner's; of
pointing, hand and target must both be visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .hand_shape import FORMED
from .scene import DIGITS, Hand, HEIGHT, HRI_SCENE, HriScene, PEOPLE, Person, WIDTH
from ...method.facts import Fact, Region

_SAMPLES = (np.arange(9) + 0.5) / 9   # where a box is probed, as shares of its sides


@dataclass(frozen=True)
class Occluder:
    """Something that hides what is behind."""

    region: Region
    round: bool = False  # noqa: A003


def label(scene: HriScene, stamp_ns: int) -> tuple[Fact, ...]:
    """Return the facts of a frame, in the query's order, with the region of each but people."""
    things = _visible_things(scene)
    people = [*scene.walkers, *([scene.partner] if scene.partner is not None else [])]
    facts = []
    for key in HRI_SCENE.keys:
        if key == 'people':
            count = sum(_head_visible(scene, person) for person in people)
            facts.append(Fact(key, PEOPLE[min(count, 3)], stamp_ns))
        elif key in things:
            value, region = things[key]
            facts.append(Fact(key, value, stamp_ns, 1.0, region.clipped(WIDTH, HEIGHT)))
        else:
            facts.append(Fact(key, 'none', stamp_ns))
    return tuple(facts)


def _visible_things(scene: HriScene) -> dict[str, tuple[str, Region]]:
    """Return value and region of each fact that is about a visible part of the partner."""
    things: dict[str, tuple[str, Region]] = {}
    partner = scene.partner
    if partner is None:
        return things
    front = [c for w in scene.walkers if w.z < partner.z for c in _occluders(w)]
    if scene.post is not None:
        front.append(Occluder(scene.post))
    if _head_visible(scene, partner):
        things['gaze'] = (partner.gaze, partner.head)
    for arm in partner.arms:
        hand = arm.hand
        if hand.pose == 'digit':
            if hand.step >= FORMED and _visible(hand.region, front):
                things['gesture'] = (DIGITS[hand.digit], hand.region)
        elif arm.held and arm.out:
            box = arm.held_region(partner.m)
            if _visible(box, front):
                things['object'] = (arm.held, box)
        elif arm.target >= 0 and arm.out:
            item = scene.items[arm.target]
            hands = [Occluder(other.hand.region) for other in partner.arms]
            if _visible(hand.region, front) and _visible(item.region, front + hands):
                things['pointing'] = (item.kind, pointing_region(hand, item.region))
    return things


def pointing_region(hand: Hand, target: Region) -> Region:
    """Return hand and target; where both are over a third of the frame, finger tip and target."""
    both = _union(hand.region, target)
    if both.w * both.h <= WIDTH * HEIGHT / 3:
        return both
    tip = hand.place(np.array([[0.26, 0.91]]))[0]
    return _union(target, Region(float(tip[0]) - 1, float(tip[1]) - 1, 2, 2))


def _union(a: Region, b: Region) -> Region:
    x, y = min(a.x, b.x), min(a.y, b.y)
    return Region(x, y, max(a.x + a.w, b.x + b.w) - x, max(a.y + a.h, b.y + b.h) - y)


def _head_visible(scene: HriScene, person: Person) -> bool:
    occluders = [c for w in scene.walkers if w.z < person.z for c in _occluders(w)]
    if scene.partner is not None and scene.partner.z < person.z:
        occluders += _occluders(scene.partner)
    if scene.post is not None:
        occluders.append(Occluder(scene.post))
    return _visible(person.head, occluders)


def _occluders(person: Person) -> list[Occluder]:
    """Return what a person hides: head, trunk, legs and raised hands."""
    m, half = person.m, 0.13 if person.heading else 0.20
    return [Occluder(person.head, True),
            Occluder(Region(person.x - half * m, person.y, 2 * half * m, 0.60 * m)),
            Occluder(Region(person.x - 0.13 * m, person.y + 0.6 * m, 0.26 * m, 0.75 * m)),
            *(Occluder(arm.hand.region) for arm in person.arms)]


def _visible(region: Region, occluders: Sequence[Occluder]) -> bool:
    """Whether at least half of a box is inside the frame and not covered."""
    x = (region.x + region.w * _SAMPLES)[None, :]
    y = (region.y + region.h * _SAMPLES)[:, None]
    visible = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
    for occluder in occluders:
        r = occluder.region
        if occluder.round:
            u, v = (x - r.x - r.w / 2) / (r.w / 2), (y - r.y - r.h / 2) / (r.h / 2)
            visible &= u * u + v * v > 1
        else:
            visible &= (x < r.x) | (x > r.x + r.w) | (y < r.y) | (y > r.y + r.h)
    return bool(visible.mean() >= 0.5)


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
