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
From boxes of a data set to facts of a query: a small rule file, YAML, one entry per key.

    light: {largest: {red_light: red, green_light: green}}
    people: {count: [person], near: 0.42}
    nearest: {side: [person], near: 0.42}

``largest``: the value of the class of the largest box. ``count``: of boxes, as a place among the
choices of the key, the last of which stands for more. ``side``: the third of the picture that the
tallest box is in, ``values`` (left, ahead, right). ``near``: boxes lower than this share of the
picture's height do not count. ``absent``: the value without any box, by default the first choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .schema import first_error, LabelError
from ..config.strict_yaml import read_yaml
from ..method.facts import Query, Region

Classes = Annotated[list[str], Field(min_length=1)]
DOCS = 'docs/real.md shows one'


class Box(NamedTuple):
    """A box of a data set; its class is a name."""

    name: str
    region: Region


class KeyRule(BaseModel):
    """How a key gets its value: one of ``largest``, ``count`` and ``side``."""

    model_config = ConfigDict(extra='forbid')

    largest: dict[str, str] = {}
    count: list[str] = []
    side: list[str] = []
    values: list[str] = []
    near: Annotated[float, Field(ge=0, le=1)] = 0.0
    absent: str = ''

    def value(self, boxes: Sequence[Box], choices: Sequence[str], size: tuple[int, int],
              ) -> tuple[str, Region | None]:
        """Return the value and where it is."""
        classes = (*self.largest, *self.count, *self.side)
        seen = [b for b in boxes if b.name in classes and b.region.h >= self.near * size[1]]
        absent = self.absent or choices[0]
        if not seen:
            return absent, None
        if self.count:
            values = self.values or choices
            return values[min(len(seen), len(values) - 1)], around([b.region for b in seen])
        if self.side:
            nearest = max((b.region for b in seen), key=lambda r: (r.h, r.w))
            return self.side_of(nearest, size), nearest
        first = max(seen, key=lambda b: b.region.w * b.region.h)
        return self.largest[first.name], first.region

    def side_of(self, region: Region, size: tuple[int, int]) -> str:
        """Return the third of the picture that the middle of a region is in."""
        third = int(3 * (region.x + region.w / 2) / size[0])
        return (self.values or SIDES)[max(0, min(2, third))]

    def problem(self, choices: Sequence[str]) -> str:
        """Return what is wrong with the rule for a key of these choices, '' if nothing is."""
        if sum(map(bool, (self.largest, self.count, self.side))) != 1:
            return 'give one of largest, count and side'
        said = [*self.largest.values(), *self.values, *([self.absent] if self.absent else []),
                *(SIDES if self.side and not self.values else ())]
        wrong = [value for value in said if value not in choices]
        if wrong:
            return f'{wrong[0]!r} is none of the choices; use one of {", ".join(choices)}'
        if self.side and self.values and len(self.values) != 3:
            return 'values of side are three: left, in the middle, right'
        return ''


SIDES = ('left', 'ahead', 'right')
Rules = Mapping[str, KeyRule]


def read_rules(path: Path, query: Query) -> Rules:
    """Read a rule file for a query; raise LabelError."""
    try:
        rules = TypeAdapter(dict[str, KeyRule]).validate_python(read_yaml(path))
    except ValidationError as error:
        raise LabelError(f'{path}: {first_error(error)}; {DOCS}') from error
    if not rules:
        raise LabelError(f'{path} has no rule; {DOCS}')
    for key, rule in rules.items():
        if key not in query.choices:
            raise LabelError(f'{path}: {key}: query {query.id} has no such key; use '
                             f'{", ".join(query.keys)}')
        if problem := rule.problem(query.choices[key]):
            raise LabelError(f'{path}: {key}: {problem}')
    return rules


def facts_of(rules: Rules, query: Query, boxes: Sequence[Box], size: tuple[int, int],
             ) -> tuple[dict[str, str], dict[str, Region]]:
    """Return the facts that boxes say, and their regions."""
    found = {key: rule.value(boxes, query.choices[key], size) for key, rule in rules.items()}
    return ({key: value for key, (value, _) in found.items()},
            {key: region for key, (_, region) in found.items() if region is not None})


def around(regions: Sequence[Region]) -> Region:
    """Return the smallest region that holds some."""
    left, top = min(r.x for r in regions), min(r.y for r in regions)
    return Region(left, top, max(r.x + r.w for r in regions) - left,
                  max(r.y + r.h for r in regions) - top)
