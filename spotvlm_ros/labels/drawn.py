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
"""Drives of the miniature world as folders of images with exact labels."""

from __future__ import annotations

from pathlib import Path

import cv2

from .schema import Header, Label, LabelError, write_labels
from .sequences import new_folder
from ..frames.pixels import encode_jpeg
from ..method.facts import Query
from ..mini.worlds import CONDITIONS, make_world, NAMES

RATE_HZ = 10.0      # of the images
QUALITY = 92
LONGEST_S = 3600.0


def draw(world: str, what: str, query: Query, folder: Path) -> int:
    """
    Draw ``CONDITION:SEED:SECONDS`` of a world into a new folder; return how many images.

    Raise LabelError.
    """
    condition, seed, seconds = _read(world, what)
    scene = make_world(world, seed, condition or None)
    if not scene.queries[0].asks_as(query):
        raise LabelError(f'world {world} knows the answers to query {scene.queries[0].id} of its '
                         f'own profile, not to {query.id}; give profile {world}')
    new_folder(folder)
    cv2.setNumThreads(1)
    labels = []
    for count in range(round(seconds * RATE_HZ)):
        index = round(count * scene.fps / RATE_HZ)
        name = f'{count:05d}.jpg'
        (folder / name).write_bytes(encode_jpeg(scene.frame(index), QUALITY))
        facts = scene.facts(index, 0)
        labels.append(Label(
            count / RATE_HZ, {fact.key: fact.value for fact in facts},
            {fact.key: fact.region for fact in facts if fact.region is not None}, image=name))
    write_labels(folder / 'labels.jsonl', labels, Header(
        recording='.', kind='images', query=query.id, labelled_by='the miniature world'))
    return len(labels)


def _read(world: str, what: str) -> tuple[str, int, float]:
    form = 'give CONDITION:SEED:SECONDS, as day:7:60; no condition: by seed'
    if world not in NAMES:
        raise LabelError(f'there is no world {world!r}; use one of {", ".join(NAMES)}')
    try:
        condition, seed, seconds = what.split(':')
        number, length = int(seed), float(seconds)
    except ValueError:
        raise LabelError(f'--from mini {what}: {form}') from None
    known = [c for c in CONDITIONS[world] if c != 'real']    # which needs photographs
    if condition and condition not in known or number < 0 or not 0 < length <= LONGEST_S:
        raise LabelError(f'--from mini {what}: {form}; conditions: {", ".join(known)}')
    return condition, number, length
