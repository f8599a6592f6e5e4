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
"""Exact labels of a driving scene, and the answers that follow from them."""

from __future__ import annotations

from .scene import DrivingScene, SCENE, Thing
from ...method.facts import Fact


def labelled_things(scene: DrivingScene) -> dict[str, Thing]:
    """Return the nearest thing of each kind that is half visible; a crossing pedestrian first."""
    best: dict[str, Thing] = {}
    for thing in sorted(scene.things, key=lambda t: (t.state != 'crossing', t.z)):
        if thing.kind in SCENE.choices and thing.kind not in best and scene.visible(thing) >= 0.5:
            best[thing.kind] = thing
    return best


def label(scene: DrivingScene, stamp_ns: int) -> tuple[Fact, ...]:
    """Return what there is of each kind as a fact."""
    things = labelled_things(scene)
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
