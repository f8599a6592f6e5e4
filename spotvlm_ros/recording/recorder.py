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
Recording what context and edge did (`spotvlm run --record`), and doing it again (`replay`).

A recording is a folder: `context.jsonl` holds, in order, every answer that came, every frame
that regions were carried to and every context that was told; `edge.jsonl` every frame that was
answered, with its context and its answer; `frames/` those pictures that cannot be drawn again. A
replay runs the same method and the same model over it, without ROS, network or cloud.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
import json
from pathlib import Path
import queue
import threading
from typing import Any

import cv2
import numpy as np
from pydantic import TypeAdapter, ValidationError

from ..config.nodes import EdgeConfig
from ..frames.pixels import decode_image, encode_png, FrameError, Image
from ..method.facts import Context, Fact, Query, Turn
from ..method.focus import FocusConfig
from ..method.guard import OFF
from ..method.transfer import TransferConfig, Transfers
from ..mini.shipped import model_name_or_path

WAITING = 512   # lines and pictures that may wait to be written
DONE_S = 10.0   # longest wait for them at the end


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def plain(value: Any) -> Any:
    """Return a value of `method` as what JSON can hold, exactly."""
    return _adapter(type(value)).dump_python(value, mode='json', fallback=dict, warnings=False)


def read(kind: Any, value: Any) -> Any:
    """Return what `plain` was given."""
    return _adapter(kind).validate_python(value)


def recorded_load(config: EdgeConfig) -> dict[str, Any]:
    """Return how an edge model was loaded, as it stands in a recording."""
    return {'path': model_name_or_path(config.model),
            'focus': plain(FocusConfig(backend=config.focus_backend)),
            'device': config.device, 'threads': config.threads, 'decoding': config.decoding,
            'engine': config.engine, 'odds': config.guard_odds}


def edge_config(load: dict[str, Any]) -> tuple[EdgeConfig, FocusConfig]:
    """
    Return what `recorded_load` was given; raise TypeError for an option that is no more.

    Recordings made before there was a guard have no odds.
    """
    options = dict(load)
    path, focus = options.pop('path'), read(FocusConfig, options.pop('focus'))
    odds = options.pop('odds', OFF)
    return EdgeConfig(model=path, focus_backend=focus.backend, guard_odds=odds, **options), focus


class Recorder:
    """
    Writes one file of a recording from a thread of its own.

    Nobody waits for the disk: what does not fit into the queue is dropped and counted, and a
    replay tells which pictures are missing.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        """Start a new file `name`.jsonl; raise ValueError when the folder cannot be written."""
        self.dropped = 0
        self._name = name
        self._folder = Path(folder).expanduser()
        try:
            (self._folder / 'frames').mkdir(parents=True, exist_ok=True)
            self._file = open(self._folder / f'{name}.jsonl', 'w', encoding='utf-8')
        except OSError as error:
            raise ValueError(f'record_dir {folder}: {error.strerror}; name a folder that can be '
                             'written') from error
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name='recorder', daemon=True)
        self._thread.start()

    def write(self, event: str, **values: Any) -> None:
        """Add a line; the values are plain already."""
        self._put(lambda: self._line({'event': event, **values}))

    def frame(self, stamp_ns: int, image: Image, jpeg: bytes | None, reference: str,
              camera: str = '') -> Any:
        """Keep a picture; return how a replay finds it."""
        if reference:
            return json.loads(reference)
        stem = f'{camera.replace("/", ".")}-{stamp_ns}' if camera else str(stamp_ns)
        name = f'{stem}.{"img" if jpeg is not None else "png"}'
        self._put(lambda: self._picture(self._folder / 'frames' / name, image, jpeg))
        return {'file': name}

    def close(self) -> None:
        """Write what waits, at most for a while, and close."""
        try:
            self._queue.put(None, timeout=DONE_S)
        except queue.Full:
            return
        self._thread.join(DONE_S)

    def _put(self, job: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        with self._file:
            while (job := self._queue.get()) is not None:
                try:
                    job()
                except (OSError, FrameError):
                    self.dropped += 1
            try:
                self._line({'event': 'end', 'dropped': self.dropped})
            except OSError:
                self.dropped += 1

    def _line(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values) + '\n')

    def _picture(self, path: Path, image: Image, jpeg: bytes | None) -> None:
        if path.exists():  # context and edge see the same frames
            return
        data = jpeg
        if data is None:
            data = encode_png(image)
        part = path.with_suffix(f'.{self._name}')  # the other recorder may write it, too
        part.write_bytes(data)
        part.replace(path)


# -- replay -------------------------------------------------------------------------------------

class Pictures:
    """The frames of a recording."""

    def __init__(self, folder: Path) -> None:
        """Read from folder/frames, or draw again."""
        self._folder = folder
        self._worlds: dict[tuple[Any, ...], Any] = {}

    def get(self, where: dict[str, Any]) -> Image | None:
        """Return a frame, RGB; None when it was not kept."""
        if 'world' in where:
            from ..mini.worlds import make_world
            named = (where['world'], where['seed'], where['condition'])
            if named not in self._worlds:
                self._worlds[named] = make_world(*named)
            return np.asarray(self._worlds[named].frame(where['index']), np.uint8)
        path = self._folder / 'frames' / where['file']
        return decode_image(path.read_bytes()) if path.is_file() else None


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file of a recording; the last may be cut off."""
    with open(path, encoding='utf-8') as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError:
                if line.endswith('\n'):
                    raise ValueError(f'{path}:{number} is no JSON; is this a recording of '
                                     'spotvlm run --record?') from None


def replay_context(folder: Path, pictures: Pictures) -> Counter[str]:
    """Run the method over a recording; count contexts equal, different, and frames missing."""
    counts: Counter[str] = Counter()
    method, facts, image = Transfers((), TransferConfig()), {}, None
    for line in lines(folder / 'context.jsonl'):
        match line['event']:
            case 'start':
                queries = [read(Query, q) for q in line['queries']]
                method = Transfers(queries, read(TransferConfig, line['config']))
            case 'clear':
                one = line.get('camera')
                for camera in method.cameras if one is None else [one]:
                    method.of_camera(camera).clear()
            case 'turn':
                turn = read(Turn, line['turn'])
                method.of_query(turn.query_id).add(turn)
                counts['turns'] += 1
            case 'frame':
                facts = method.of_camera(line.get('camera', '')).facts_to_track(
                    line['stamp_ns'])
                image = pictures.get(line['frame'])
                counts['frames'] += 1
                counts['frames_missing'] += image is None
            case 'carried' if image is not None:
                transfer = method.of_camera(line.get('camera', ''))
                transfer.apply(transfer.carry(line['stamp_ns'], image, facts))
            case 'context':
                query_id = line['query_id']
                same = plain(method.of_query(query_id).context(query_id)) == line['context']
                counts['contexts_equal' if same else 'contexts_different'] += 1
            case 'end':
                counts['not_recorded'] += line['dropped']
    return counts


def replay_edge(folder: Path, pictures: Pictures,
                progress: Callable[[Sequence[Any]], Iterator[Any]] = iter) -> Counter[str]:
    """Answer the frames of a recording again; count answers equal and different."""
    from ..edge.model import EdgeModel

    counts: Counter[str] = Counter()
    start, *answers = lines(folder / 'edge.jsonl')
    model = EdgeModel.load(*edge_config(start['load']))
    queries = {q.id: q for q in (read(Query, q) for q in start['queries'])}
    model.warm_up(tuple(queries.values()))
    for line in progress(answers):
        if line['event'] == 'end':
            counts['not_recorded'] += line['dropped']
            continue
        query = read(Query, line['query']) if 'query' in line else queries[line['query_id']]
        image = pictures.get(line['frame'])
        if image is None or line['partial']:
            counts['frames_missing' if image is None else 'cut_short'] += 1
            continue
        context = read(Context, line['context']) if line['context'] is not None else None
        result = model.answer(image, query, context, line['stamp_ns'])
        same = (result.text == line['text']
                and values(result.facts) == values(read(tuple[Fact, ...], line['facts'])))
        counts['answers_equal' if same else 'answers_different'] += 1
    return counts


def values(facts: Sequence[Fact]) -> list[tuple[str, str]]:
    """Return keys and values."""
    return [(f.key, f.value) for f in facts]


def main(argv: Sequence[str] | None = None) -> int:
    """Replay a recording and say whether it came out the same."""
    from rich.progress import track

    parser = argparse.ArgumentParser(prog='spotvlm replay', description=__doc__)
    parser.add_argument('folder', type=Path, help='folder written by spotvlm run --record')
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    counts: Counter[str] = Counter()
    try:
        pictures = Pictures(args.folder)
        counts += replay_context(args.folder, pictures)
        counts += replay_edge(args.folder, pictures, lambda todo: track(todo, 'answering'))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        print(f'error: {args.folder} cannot be replayed: {error}; give a folder written by '
              'spotvlm run --record of this version')
        return 1
    print(', '.join(f'{n} {name.replace("_", " ")}' for name, n in counts.items()))
    differ = counts['contexts_different'] + counts['answers_different']
    lacking = counts['frames_missing'] + counts['not_recorded']
    if differ:
        print(f'{differ} contexts or answers differ')
    if lacking:
        print(f'{lacking} frames or lines are not in the recording; record to a faster disk')
    if not differ and not lacking:
        print('the replay is equal to the run')
    return 1 if differ or lacking else 0
