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
Label files: JSON Lines, one labelled moment per line, in order of time.

    {"t": 3.2, "facts": {"light": "red", "lead": "none"}}
    {"t": 3.7, "facts": {"light": "green"}, "regions": {"light": [410, 66, 26, 78]}}

``t`` is seconds after the first frame of the recording. Only facts that are named are scored at
that moment. Between labels the last one counts as true where something must be: for what has
changed since the cloud's frame, and for accuracy frame by frame. Regions are ``[x, y, width,
height]`` in pixels of the frame.

What ``spotvlm label`` writes says more: ``confidences`` of facts (0 to 1), ``second``, what
another model said where it disagreed, and ``image``, the frame's file beside the label file. Its
first line is no moment but names the recording and who labelled it, see ``Header``; files of
people and of data sets may leave it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ..method.facts import Query, Region
from ..method.prompt import printable
from ..system.text_file import read_text_file

MAX_BYTES = 256 << 20  # of a label file
SCHEMA = '{"t": seconds, "facts": {key: value}, "regions": {key: [x, y, w, h]}}, regions optional'
LONGEST_S = 1e6         # of a recording
Place = Annotated[FiniteFloat, Field(ge=-65536, le=65536)]  # pixels
Side = Annotated[FiniteFloat, Field(gt=0, le=65536)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class LabelError(ValueError):
    """A label file that cannot be used; the message names line, field and remedy."""


class Header(BaseModel):
    """First line of a label file, where there is one: what was labelled, by whom."""

    model_config = ConfigDict(extra='forbid', strict=True)

    recording: str                               # bag, video or folder; from the file's folder
    kind: Literal['bag', 'video', 'images']
    topic: str = ''                              # image topic of the bag
    query: str = ''                              # id of the query that was asked
    labelled_by: str = ''                        # a model's name, or who or what else
    second: str = ''                             # the model asked for a second opinion
    licence: str = ''                            # of the pictures


class Line(BaseModel):
    """One line of a label file."""

    model_config = ConfigDict(extra='forbid', strict=True)

    t: Annotated[FiniteFloat, Field(ge=0, le=LONGEST_S)]
    facts: Annotated[dict[str, str], Field(min_length=1)]
    regions: dict[str, tuple[Place, Place, Side, Side]] = {}
    confidences: dict[str, Share] = {}
    second: dict[str, str] = {}
    image: str = ''


@dataclass(frozen=True)
class Label:
    """What was true at one moment."""

    t: float
    facts: dict[str, str]
    regions: dict[str, Region]
    confidences: dict[str, float] = field(default_factory=dict)
    second: dict[str, str] = field(default_factory=dict)  # of another model, where it disagrees
    image: str = ''                                       # file of the frame


def read_labels(path: Path, query: Query) -> list[Label]:
    """Read and check a label file; raise LabelError."""
    return read_label_file(path, query)[1]


def read_label_file(path: Path, query: Query) -> tuple[Header | None, list[Label]]:
    """Read and check a label file and its first line, if that is a header; raise LabelError."""
    try:
        lines = read_text_file(path, MAX_BYTES).splitlines()
    except ValueError as error:
        raise LabelError(f'{path}: {error}; give a text file, UTF-8, one JSON object per line'
                         ) from error
    numbered = [(number, text) for number, text in enumerate(lines, 1) if text.strip()]
    header = None
    if numbered and '"recording"' in numbered[0][1]:
        header = _header(f'{path}: line {numbered[0][0]}', numbered.pop(0)[1])
    labels = [_label(f'{path}: line {number}', text, query) for number, text in numbered]
    if not labels:
        raise LabelError(f'{path} holds no labels; each line is {SCHEMA}')
    for before, after in zip(labels, labels[1:]):
        if after.t <= before.t:
            raise LabelError(f'{path}: t goes from {before.t:g} to {after.t:g}; sort the lines by '
                             't and label each moment once')
    return header, labels


def label_line(label: Label) -> str:
    """Return the line of a label file, without its newline."""
    boxes = {key: (round(box.x, 1), round(box.y, 1), round(box.w, 1), round(box.h, 1))
             for key, box in label.regions.items()}
    return Line(t=round(label.t, 6), facts=label.facts, regions=boxes,
                confidences={k: round(v, 4) for k, v in label.confidences.items()},
                second=label.second, image=label.image).model_dump_json(exclude_defaults=True)


def write_labels(path: Path, labels: Iterable[Label], header: Header | None = None) -> None:
    """Write a label file."""
    lines = [header.model_dump_json(exclude_defaults=True)] if header else []
    path.write_text('\n'.join([*lines, *map(label_line, labels)]) + '\n', encoding='utf-8')


def _header(where: str, text: str) -> Header:
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        raise LabelError(f'{where}: {first_error(error)}; it names the recording, as spotvlm '
                         'label writes it; or leave that line out') from error


def first_error(error: ValidationError) -> str:
    """Return the first thing that is wrong, with the name of its field."""
    first = error.errors()[0]
    name = '.'.join(str(part) for part in first['loc']) or 'the line'
    return f'{printable(name)}: {first["msg"]}'


def _label(where: str, text: str, query: Query) -> Label:
    try:
        line = Line.model_validate_json(text)
    except ValidationError as error:
        raise LabelError(f'{where}: {first_error(error)}; a line is {SCHEMA}') from error
    for name in (*line.facts, *line.regions, *line.confidences, *line.second):
        if name not in query.choices:
            raise LabelError(f'{where}: facts.{printable(name)}: query {query.id} has no such '
                             f'key; use {", ".join(query.keys)}, or give the query that has it '
                             'with --profile')
    for key, value in (*line.facts.items(), *line.second.items()):
        if value not in query.choices[key]:
            raise LabelError(f'{where}: facts.{key}: {value!r} is none of the choices; use one of '
                             f'{", ".join(query.choices[key])}')
    return Label(line.t, line.facts, {k: Region(*box) for k, box in line.regions.items()},
                 line.confidences, line.second, line.image)
