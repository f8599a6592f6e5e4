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
Data sets of others as labelled sequences: folders of frames with labels.jsonl.

Pictures of one folder are one sequence. Each is read back when it is written, so that what is
wrong with it is known at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from .formats import FORMATS, picture_size, RATE_HZ, Shot
from .rules import Box, facts_of, read_rules, Rules
from .schema import Header, Label, LabelError, write_labels
from .sequences import FILE, JPEG_QUALITY, new_folder, open_labelled
from .stills import import_stills
from ..frames.jpeg import is_jpeg
from ..frames.pixels import decode_compressed, encode_jpeg
from ..method.facts import Query
from ..method.prompt import printable

STILLS = 'stills'
NAMES = (*FORMATS, STILLS)


def import_labels(kind: str, path: Path, rule: Path | None, out: Path, query: Query) -> list[Path]:
    """
    Write the sequences of a data set into ``out``, or folders in it; return those folders.

    ``kind`` is one of NAMES; ``rule`` is the file that says how boxes become facts, or what the
    folders of stills are (stills do without). Raise LabelError, or ParameterError for the rule.
    """
    if kind not in NAMES:
        raise LabelError(f'--from {printable(kind)}: no such format; use one of '
                         f'mini, {", ".join(NAMES)}')
    if not path.exists():
        raise LabelError(f'--from {kind}: {path} does not exist')
    if kind == STILLS:
        written = import_stills(path, rule, out, query)
    elif rule is None:
        raise LabelError(f'--from {kind}: how boxes become facts is not said; give a rule file '
                         'with --rule, docs/real.md shows one')
    else:
        rules, shots = read_rules(rule, query), FORMATS[kind](path)
        _check_classes(rule, rules, shots)
        shots.sort(key=lambda shot: str(shot.file.parent))
        groups = [list(group) for _, group in groupby(shots, lambda shot: shot.file.parent)]
        written = []
        for group in groups:
            folder = out / group[0].file.parent.name if len(groups) > 1 else out
            if folder in written:
                raise LabelError(f'{path}: two folders of pictures are named {folder.name}; '
                                 'import them one by one')
            _write(folder, group, rules, query, f'{kind}: {path.resolve().name}')
            written.append(folder)
    for folder in written:
        open_labelled(folder, query)
    return written


def _check_classes(rule: Path, rules: Rules, shots: Sequence[Shot]) -> None:
    """Raise LabelError where no rule is about any box: a name was misspelt."""
    there = {box.name for shot in shots for box in shot.boxes}
    asked = {name for r in rules.values() for name in (*r.largest, *r.count, *r.side)}
    if not there & asked:
        raise LabelError(f'{rule} is about {", ".join(sorted(asked))}, and the data set has '
                         f'{printable(", ".join(sorted(there)[:20])) or "no boxes"}; use its '
                         'names')


def _write(folder: Path, shots: Sequence[Shot], rules: Rules, query: Query, said_by: str) -> None:
    labels, left_out = [], 0
    new_folder(folder)
    for number, shot in enumerate(shots):
        size = picture_size(shot.file)
        boxes = list(_within(shot, size))
        left_out += len(shot.boxes) - len(boxes)
        facts, regions = facts_of(rules, query, boxes, size)
        name, data = f'{number:06}.jpg', shot.file.read_bytes()
        if not is_jpeg(data):
            data = encode_jpeg(decode_compressed(data), JPEG_QUALITY)
        (folder / name).write_bytes(data)
        t = number / RATE_HZ if shot.t is None else shot.t
        labels.append(Label(t, facts, regions, image=name))
    write_labels(folder / FILE, labels, Header(recording='.', kind='images', query=query.id,
                                               labelled_by=said_by))
    if left_out:
        print(f'{folder}: {left_out} boxes are outside of their pictures or less than a pixel '
              'wide, and do not count')


def _within(shot: Shot, size: tuple[int, int]) -> Iterable[Box]:
    """Yield boxes, cut off at the edges of the picture; less than a pixel of it is none."""
    for box in shot.boxes:
        region = box.region.clipped(*size)
        if region is not None and min(region.w, region.h) >= 1.0:
            yield Box(box.name, region)
