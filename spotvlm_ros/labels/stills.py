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
Photographs in folders by class as streams: each is held for a while, before a shaky camera.

The order in time is lost, and the shake is made: how a gesture begins and ends cannot be learned
from them, nor how fast it is seen. A rule file, YAML, may say

    values: {no_class: none}   # value of a folder, where that is not its name
    key: gesture               # default: the only key of the query
    people: number - class     # who is to be kept apart, by numbers in the files' names; a
                               # series with a photograph missing counts as two people
    sequences: 12              # to make; a person is in one of them only
    stills: 20                 # at most, in each
    seconds: 6.0               # that each is held, on the mean
    rate_hz: 5.0
    seed: 1
    scenes: ../rooms           # pictures, from here: hands are cut out and held into one of them
    height: [0.12, 0.35]       # of the scene's, that a photograph of a hand would have there

Without ``people`` stills are dealt to sequences at random: the same people are in all of them.
With ``scenes`` labels have regions, which the flow of the robot carries as others. Hands are what
is warmer than a pale wall.
"""

from __future__ import annotations

from pathlib import Path
import re
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator, ValidationError

from .schema import first_error, Header, Label, LabelError, write_labels
from .sequences import FILE, JPEG_QUALITY, new_folder
from .stage import read_picture, scenes_in, Stage
from ..config.strict_yaml import read_yaml
from ..frames.pixels import encode_jpeg, Image
from ..frames.source_frame import natural_order
from ..frames.sources import IMAGE_SUFFIXES
from ..method.facts import Query, Region

ZOOM = 1.12            # so that the shake shows nothing of what is beyond the picture's edges
SHAKE = 0.03           # of the width, standard deviation
TURN = 2.0             # degrees, likewise
STEADY = 0.8           # of the shake that is left after a frame

Share = Annotated[float, Field(gt=0, le=1)]


class StillsRule(BaseModel):
    """What the folders are, and what to make of them."""

    model_config = ConfigDict(extra='forbid')

    key: str = ''
    values: dict[str, str] = {}
    people: Literal['', 'number - class'] = ''
    sequences: Annotated[int, Field(ge=1, le=1000)] = 12
    stills: Annotated[int, Field(ge=1, le=10_000)] = 20
    seconds: Annotated[float, Field(ge=0.2, le=60)] = 6.0
    rate_hz: Annotated[float, Field(ge=0.5, le=30)] = 5.0
    seed: int = 1
    scenes: str = ''
    height: tuple[Share, Share] = (0.12, 0.35)

    @model_validator(mode='after')
    def _rising(self) -> StillsRule:
        if self.height[0] > self.height[1]:
            raise ValueError(f'height: {list(self.height)} falls; name the smaller one first')
        return self


def import_stills(path: Path, rule_file: Path | None, out: Path, query: Query) -> list[Path]:
    """Write the sequences; return their folders."""
    rule = _read_rule(rule_file)
    key = rule.key or (query.keys[0] if len(query.keys) == 1 else '')
    if key not in query.choices:
        raise LabelError(f'{rule_file or path}: key {key!r}: query {query.id} has '
                         f'{", ".join(query.keys)}; name one of them as key in the rule file')
    found = _photographs(path, rule, query.choices[key])
    scenes = scenes_in(path / rule.scenes) if rule.scenes else []
    rng = np.random.default_rng(rule.seed)
    written = []
    for number, stills in enumerate(_dealt(found, rule, rng)):
        folder = out / f'{path.resolve().name}-{number:02}'
        new_folder(folder)
        stage = Stage(scenes[int(rng.integers(len(scenes)))], rule.height, rng) if scenes else None
        _write(folder, (key, stills), stage, rule, rng)
        written.append(folder)
    return written


def _read_rule(file: Path | None) -> StillsRule:
    if file is None:
        return StillsRule()
    try:
        return StillsRule.model_validate(read_yaml(file))
    except ValidationError as error:
        raise LabelError(f'{file}: {first_error(error)}; docs/real.md tells what a rule for '
                         'stills says') from error


def _photographs(path: Path, rule: StillsRule, choices: tuple[str, ...],
                 ) -> dict[object, list[tuple[Path, str]]]:
    """Return file and value of each, by person where that is known, else by file."""
    found: dict[object, list[tuple[Path, str]]] = {}
    for folder in sorted((p for p in path.iterdir() if p.is_dir()), key=natural_order):
        files = sorted((p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES),
                       key=natural_order)
        value = rule.values.get(folder.name, folder.name)
        if files and value not in choices:
            raise LabelError(f'{folder}: {value!r} is none of the choices; say its value in the '
                             f'rule file, as in values: {{{folder.name}: {choices[0]}}}')
        for file in files:
            found.setdefault(_person(file, folder) if rule.people else file, []).append(
                (file, value))
    if not found:
        raise LabelError(f'{path}: no folders with photographs there, one for each class; a '
                         'folder is named as its value')
    return found


def _person(file: Path, folder: Path) -> int:
    """Return who is on a photograph of a series of all classes in turn."""
    number = re.findall(r'\d+', file.stem)
    if not number or not folder.name.isdigit():
        raise LabelError(f'{file}: people are told apart by the number of the file less that of '
                         'its folder, and one of them has none; take people out of the rule file')
    return int(number[-1]) - int(folder.name)


def _dealt(found: dict[object, list[tuple[Path, str]]], rule: StillsRule,
           rng: np.random.Generator) -> list[list[tuple[Path, str]]]:
    """Return the stills of each sequence, each person in one of them, shuffled."""
    people = list(found)
    order = rng.permutation(len(people))
    hands = [[still for i in order[n::rule.sequences] for still in found[people[i]]]
             for n in range(min(rule.sequences, len(people)))]
    return [[hand[i] for i in rng.permutation(len(hand))[:rule.stills]] for hand in hands]


def _write(folder: Path, shown: tuple[str, list[tuple[Path, str]]], stage: Stage | None,
           rule: StillsRule, rng: np.random.Generator) -> None:
    (key, stills), labels = shown, list[Label]()
    shake, size = np.zeros(4), None
    for file, value in stills:
        rgb = stage.hand(file) if stage is not None else read_picture(file)
        size = size or (rgb.shape[1], rgb.shape[0])
        still = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
        for _ in range(max(1, round(rule.seconds * rng.uniform(0.5, 1.5) * rule.rate_hz))):
            shake = STEADY * shake + np.sqrt(1 - STEADY ** 2) * rng.normal(size=4)
            frame, region = stage.frame(rgb, rng) if stage is not None else (still, None)
            frame, region = _shaken(frame, region, shake)
            name = f'{len(labels):06}.jpg'
            (folder / name).write_bytes(encode_jpeg(frame, JPEG_QUALITY))
            labels.append(Label(len(labels) / rule.rate_hz, {key: value},
                                {} if region is None else {key: region}, image=name))
    write_labels(folder / FILE, labels, Header(
        recording='.', kind='images', labelled_by=f'folders of stills, {folder.name}; their order '
        f'in time is random, the shake of the camera made (seed {rule.seed})'
        + '; hands cut out and held into other pictures' * (stage is not None)))


def _shaken(rgb: Image, region: Region | None, shake: np.ndarray) -> tuple[Image, Region | None]:
    """Return a picture, zoomed in, moved and turned a bit, and where a region of it is then."""
    height, width = rgb.shape[:2]
    zoom = ZOOM * (1 + SHAKE * float(shake[3]))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(TURN * shake[2]), zoom)
    matrix[:, 2] += SHAKE * width * np.clip(shake[:2], -2, 2)
    moved = np.asarray(cv2.warpAffine(rgb, matrix, (width, height), flags=cv2.INTER_LINEAR,
                                      borderMode=cv2.BORDER_REFLECT_101), np.uint8)
    if region is None:
        return moved, None
    x, y = (float(v) for v in matrix @ (region.x + region.w / 2, region.y + region.h / 2, 1.0))
    w, h = zoom * region.w, zoom * region.h
    return moved, Region(x - w / 2, y - h / 2, w, h).clipped(width, height)
