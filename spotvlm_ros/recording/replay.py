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
Doing again what `spotvlm run --record` recorded, and comparing (`spotvlm replay`).

The same method and the same model run over the recording, without ROS, network or cloud. What the
files hold is told by the dataclasses below; `recorder` writes them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
from pydantic import JsonValue

from .judged import NotingJudge
from .recorder import from_plain, plain
from ..config.nodes import EdgeConfig
from ..edge.answer import EdgeVLM
from ..edge.model import EdgeModel
from ..frames.pixels import decode_image, Image
from ..method.calibrations import Calibrations
from ..method.ego import Matrix
from ..method.facts import Context, Fact, Query, Turn
from ..method.focus import FocusConfig
from ..method.guard import OFF
from ..method.prompt import printable
from ..method.transfer import FactId, TransferConfig, Transfers
from ..mini.worlds import make_world, World
from ..system.progress import tracked

MAX_LINE = 1 << 20  # longest line of a recording [bytes]; a longer one counts as torn
AS_SURE = 0.01      # difference of confidences that another batch or CPU makes, at most
MAX_WHY = 1000      # of an error shown [characters]
Line = dict[str, JsonValue]


@dataclass(frozen=True)
class Picture:
    """Where a frame is: a file below `frames/`, or a frame of a miniature world."""

    file: str = ''
    world: str = ''
    seed: int = 0
    condition: str | None = None
    index: int = 0


@dataclass(frozen=True)
class ContextStart:
    """The first line of `context.jsonl`."""

    queries: tuple[Query, ...]
    config: TransferConfig


@dataclass(frozen=True)
class FrameLine:
    """
    A frame of a camera: event `frame` before its regions are carried, `carried` after.

    ``turn``: the homography of the camera's turn since the last, row by row, where it is known.
    """

    stamp_ns: int
    camera: str = ''
    frame: Picture = Picture()
    turn: tuple[float, ...] = ()


@dataclass(frozen=True)
class EdgeStart:
    """The first line of `edge.jsonl`; ``load`` is what `recorded_load` returns."""

    queries: tuple[Query, ...]
    load: dict[str, JsonValue]


@dataclass(frozen=True)
class AnswerLine:
    """
    An answered frame; ``query`` stands only where it is none of those at the start.

    ``judged``: by the calibration; ``alone``: a pass with context was wanted and did not come;
    ``own``: what the pass without context said.
    """

    stamp_ns: int
    query_id: str
    frame: Picture
    text: str
    facts: tuple[Fact, ...]
    partial: bool
    context: Context | None = None
    query: Query | None = None
    judged: bool = False
    alone: bool = False
    own: tuple[Fact, ...] = ()


class Pictures:
    """The frames of a recording."""

    def __init__(self, folder: Path) -> None:
        """Read from folder/frames, or draw again."""
        self._folder = folder
        self._worlds: dict[tuple[str, int, str | None], World] = {}

    def get(self, picture: Picture) -> Image | None:
        """Return a frame, RGB; None when it was not kept."""
        if not picture.world:
            path = self._folder / 'frames' / Path(picture.file).name
            return decode_image(path.read_bytes()) if path.is_file() else None
        name = (picture.world, picture.seed, picture.condition)
        if name not in self._worlds:
            self._worlds[name] = make_world(*name)
        return np.asarray(self._worlds[name].frame(picture.index), np.uint8)


def read_lines(path: Path, counts: Counter[str]) -> Iterator[Line]:
    """
    Yield the lines of a file of a recording.

    Count in ``counts`` what says that they are not what was recorded: lines torn by a full disk,
    an end that is missing, a number or checksum of lines that does not fit.
    """
    digest, count, end = hashlib.sha256(), 0, None
    if not path.is_file():
        raise ValueError(f'{path} is no file')
    with open(path, 'rb') as file:
        for number, data in enumerate(iter(partial(file.readline, MAX_LINE), b''), start=1):
            if not data.strip():
                continue
            try:
                line: Line = json.loads(data)
                event = line['event']
            except (ValueError, TypeError, KeyError, RecursionError):
                if number == 1:
                    raise ValueError(f'{path} begins with what is no JSON; is this a recording of '
                                     'spotvlm run --record?') from None
                counts['lines_torn'] += 1
                continue
            if event == 'end':
                end = line
                dropped = from_plain(int, line['dropped'])
                counts['not_recorded'] += abs(dropped)
                counts['files_altered'] += dropped < 0
            else:
                digest.update(data)
                count += 1
                yield line
    counts['files_cut_off'] += end is None
    if end is not None and 'sha256' in end:
        same = (end['lines'], end['sha256']) == (count, digest.hexdigest())
        counts['files_altered'] += not same and not counts['lines_torn']


class ContextReplay:
    """The method over a recording, line by line; `counts` says how it compares."""

    def __init__(self, pictures: Pictures) -> None:
        """Wait for the line that starts a recording."""
        self.counts: Counter[str] = Counter()
        self._pictures = pictures
        self._method = Transfers((), TransferConfig())
        self._image: Image | None = None
        self._turn: Matrix | None = None            # to that image
        self._facts: Mapping[FactId, Fact] = {}     # whose regions are carried to that image

    def take(self, line: Line) -> None:
        """Do what a line tells."""
        match line['event']:
            case 'start':
                start = from_plain(ContextStart, line)
                self._method = Transfers(start.queries, start.config)
            case 'queries':
                self._method.replace(from_plain(tuple[Query, ...], line['queries']))
            case 'clear':
                camera = line.get('camera')
                for name in self._method.cameras if camera is None else [str(camera)]:
                    self._method.of_camera(name).clear()
            case 'turn':
                turn = from_plain(Turn, line['turn'])
                self._method.of_query(turn.query_id).add(turn)
                self.counts['turns'] += 1
            case 'frame':
                frame = from_plain(FrameLine, line)
                self._facts = self._method.of_camera(frame.camera).facts_to_track(frame.stamp_ns)
                self._image = self._pictures.get(frame.frame)
                self._turn = np.reshape(frame.turn, (3, 3)) if frame.turn else None
                self.counts['frames'] += 1
                self.counts['frames_missing'] += self._image is None
            case 'carried' if self._image is not None:
                frame = from_plain(FrameLine, line)
                transfer = self._method.of_camera(frame.camera)
                transfer.apply(transfer.carry(frame.stamp_ns, self._image, self._facts,
                                              self._turn))
            case 'context':
                query_id = str(line['query_id'])
                context = self._method.of_query(query_id).context(query_id)
                same = plain(context) == line['context']
                self.counts['contexts_equal' if same else 'contexts_different'] += 1


def replay_context(folder: Path, pictures: Pictures) -> Counter[str]:
    """Run the method over a recording; count contexts equal, different, and frames missing."""
    replay = ContextReplay(pictures)
    for line in read_lines(folder / 'context.jsonl', replay.counts):
        replay.take(line)
    return replay.counts


def edge_config(load: Mapping[str, JsonValue]) -> tuple[EdgeConfig, FocusConfig]:
    """
    Return what `recorded_load` was given; raise ValidationError for an option that is no more.

    Recordings made before there was a guard have no odds, and those before there was a calibration
    do not tell of it.
    """
    options = dict(load)
    focus = from_plain(FocusConfig, options.pop('focus'))
    options.setdefault('calibrate', False)
    options.setdefault('calibrate_share', 0.0)
    named = {'model': options.pop('path'), 'guard_odds': options.pop('odds', OFF)}
    unknown = [name for name in options if name not in EdgeConfig.__dataclass_fields__]
    if unknown:
        raise ValueError(f'edge.jsonl: no option {", ".join(unknown)} of the edge model')
    return from_plain(EdgeConfig, {**named, **options, 'focus_backend': focus.backend}), focus


class EdgeReplay:
    """The edge node over a recording, line by line; `counts` says how it compares."""

    def __init__(self, start: EdgeStart, model: EdgeVLM, pictures: Pictures) -> None:
        """Start with a model that is warm."""
        self.counts: Counter[str] = Counter()
        self._model, self._pictures = model, pictures
        self._queries = {q.id: q for q in start.queries}
        config, _ = edge_config(start.load)
        self._calibrations = Calibrations(start.queries, config.guard_odds, config.calibrate,
                                          config.calibrate_share)

    def take(self, line: Line) -> None:
        """Do what a line tells."""
        match line['event']:
            case 'answer':
                self.counts[self._compared(from_plain(AnswerLine, line))] += 1
            case 'truth':
                self.counts['truths'] += 1
                self._calibrations.truth(from_plain(Turn, line['turn']))
            case 'forget':
                camera = line['camera']
                self._calibrations.forget(None if camera is None else str(camera))
            case 'queries':
                self._calibrations.replace(from_plain(tuple[Query, ...], line['queries']))

    def _compared(self, line: AnswerLine) -> str:
        """Answer a frame again; return what it counts as."""
        image = self._pictures.get(line.frame)
        if image is None:
            return 'frames_missing'
        if line.partial:
            return 'cut_short'
        query = line.query or self._queries[line.query_id]
        judge = self._calibrations.judge(query, line.stamp_ns) if line.judged else None
        again = self._model.answer(
            image, query, line.context, line.stamp_ns,
            judge=NotingJudge(judge, line.alone) if judge is not None else None)
        if again.text != line.text or _values(again.facts) != _values(line.facts):
            return 'answers_different'
        sure = all(abs(a.confidence - b.confidence) <= AS_SURE
                   for a, b in zip(again.facts, line.facts))
        return 'answers_equal' if sure else 'confidences_different'


def replay_edge(folder: Path, pictures: Pictures,
                progress: Callable[[Sequence[Line]], Iterable[Line]] = iter) -> Counter[str]:
    """Answer the frames of a recording again; count answers equal and different."""
    counts: Counter[str] = Counter()
    first, *rest = read_lines(folder / 'edge.jsonl', counts)
    start = from_plain(EdgeStart, first)
    model = EdgeModel.load(*edge_config(start.load))
    model.warm_up(start.queries)
    replay = EdgeReplay(start, model, pictures)
    for line in progress(rest):
        replay.take(line)
    return counts + replay.counts


def _values(facts: Sequence[Fact]) -> list[tuple[str, str, int]]:
    return [(f.key, f.value, f.stamp_ns) for f in facts]


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm replay', description=__doc__,
                                     epilog='example: spotvlm replay out/rec')
    parser.add_argument('folder', type=Path, help='folder written by spotvlm run --record')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Replay a recording and say whether it came out the same; return the exit code."""
    args = command_parser().parse_args(argv)
    cv2.setNumThreads(1)
    try:
        pictures = Pictures(args.folder)
        counts = replay_context(args.folder, pictures)
        counts += replay_edge(args.folder, pictures,
                              lambda todo: tracked(todo, 'answers', len(todo)))
    except Exception as error:  # what a damaged file makes the method raise can be anything
        why = f'{type(error).__name__}: {str(error)[:MAX_WHY]}'
        print(printable(f'error: {args.folder} cannot be replayed: {why}; give a folder written '
                        'by spotvlm run --record of this version'))
        return 1
    print(', '.join(f'{n} {name.replace("_", " ")}' for name, n in counts.items()))
    damaged = [f'{counts[name]} {name.replace("_", " ")}'
               for name in ('lines_torn', 'files_cut_off', 'files_altered') if counts[name]]
    differ = counts['contexts_different'] + counts['answers_different'] + \
        counts['confidences_different']
    lacking = counts['frames_missing'] + counts['not_recorded']
    if differ:
        print(f'{differ} contexts, answers or their confidences differ')
    if lacking:
        print(f'{lacking} frames or lines are not in the recording; record to a faster disk')
    if damaged:
        print(f'{", ".join(damaged)}: the recording is not whole; end runs with Ctrl-C, and '
              'record to a disk with room')
    if not differ and not lacking and not damaged:
        print('the replay is equal to the run')
    return 1 if differ or lacking or damaged else 0
