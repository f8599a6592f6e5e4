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
Label files for your own recordings: JSON Lines, one labelled moment per line.

    {"t": 3.2, "facts": {"light": "red", "lead": "none"}}
    {"t": 3.7, "facts": {"light": "green"}, "regions": {"light": [410, 66, 26, 78]}}

``t`` is seconds after the first frame of the recording. Only facts that are named are scored at
that moment. Between labels the last one counts as true where something must be: for what has
changed since the cloud's frame, and for accuracy frame by frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ...method.facts import Query, Region
from ...method.prompt import printable
from ...system.text_file import read_text_file

MAX_BYTES = 256 << 20  # of a label file
SCHEMA = '{"t": seconds, "facts": {key: value}, "regions": {key: [x, y, w, h]}}, regions optional'
LONGEST_S = 1e6         # of a recording
Place = Annotated[FiniteFloat, Field(ge=-65536, le=65536)]  # pixels
Side = Annotated[FiniteFloat, Field(gt=0, le=65536)]


class LabelError(ValueError):
    """A label file that cannot be used; the message names line, field and remedy."""


class Line(BaseModel):
    """One line of a label file."""

    model_config = ConfigDict(extra='forbid', strict=True)

    t: Annotated[FiniteFloat, Field(ge=0, le=LONGEST_S)]
    facts: Annotated[dict[str, str], Field(min_length=1)]
    regions: dict[str, tuple[Place, Place, Side, Side]] = {}


@dataclass(frozen=True)
class Label:
    """What was true at one moment."""

    t: float
    facts: dict[str, str]
    regions: dict[str, Region]


def read_labels(path: Path, query: Query) -> list[Label]:
    """Read and check a label file; raise LabelError."""
    try:
        lines = read_text_file(path, MAX_BYTES).splitlines()
    except ValueError as error:
        raise LabelError(f'{path}: {error}; give a text file, UTF-8, one JSON object per line'
                         ) from error
    labels = [_label(f'{path}: line {number}', text, query)
              for number, text in enumerate(lines, 1) if text.strip()]
    if not labels:
        raise LabelError(f'{path} holds no labels; each line is {SCHEMA}')
    for before, after in zip(labels, labels[1:]):
        if after.t <= before.t:
            raise LabelError(f'{path}: t goes from {before.t:g} to {after.t:g}; sort the lines by '
                             't and label each moment once')
    return labels


def _label(where: str, text: str, query: Query) -> Label:
    try:
        line = Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = '.'.join(str(part) for part in first['loc']) or 'the line'
        raise LabelError(f'{where}: {printable(field)}: {first["msg"]}; a line is {SCHEMA}'
                         ) from error
    for name in (*line.facts, *line.regions):
        if name not in query.choices:
            raise LabelError(f'{where}: facts.{printable(name)}: query {query.id} has no such '
                             f'key; use {", ".join(query.keys)}, or give the query that has it '
                             'with --profile')
    for key, value in line.facts.items():
        if value not in query.choices[key]:
            raise LabelError(f'{where}: facts.{key}: {value!r} is none of the choices; use one of '
                             f'{", ".join(query.choices[key])}')
    return Label(line.t, line.facts, {k: Region(*box) for k, box in line.regions.items()})
