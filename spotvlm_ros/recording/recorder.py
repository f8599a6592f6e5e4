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
Recording what context and edge node did (`spotvlm run --record`).

A recording is a folder: `context.jsonl` holds, in order, every answer that came, every frame
that regions were carried to and every context that was published; `edge.jsonl` every frame that
was answered, with its context and its answer, and in between the cloud's answers that taught whom
to believe; `frames/` those pictures that cannot be drawn again. The last line of a file says how
many there are and their SHA-256: without it a file was cut off. `replay` reads it.
"""

from __future__ import annotations

from collections.abc import Callable
import errno
import hashlib
import json
import os
from pathlib import Path
import queue
import threading
from typing import cast, TypeVar

from pydantic import JsonValue, TypeAdapter

from ..config.nodes import EdgeConfig
from ..frames.pixels import encode_png, FrameError, Image
from ..method.focus import FocusConfig
from ..mini.shipped import model_name_or_path

T = TypeVar('T')
WAITING = 512   # lines and pictures that may wait to be written
DONE_S = 10.0   # longest wait for them at the end
_adapters: dict[object, TypeAdapter[object]] = {}


def _adapter(kind: type[object]) -> TypeAdapter[object]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def plain(value: object) -> JsonValue:
    """Return a value of `method` as what JSON can hold, exactly."""
    return cast(JsonValue, _adapter(type(value)).dump_python(
        value, mode='json', fallback=dict, warnings=False))


def from_plain(kind: type[T], value: object) -> T:
    """Return what `plain` was given; raise pydantic's ValidationError for what is none."""
    return cast(T, _adapter(kind).validate_python(value))


def recorded_load(config: EdgeConfig) -> dict[str, JsonValue]:
    """Return how an edge model was loaded, as it stands in a recording."""
    return {'path': model_name_or_path(config.model),
            'focus': plain(FocusConfig(backend=config.focus_backend)),
            'device': config.device, 'threads': config.threads, 'dtype': config.dtype,
            'quantization': config.quantization, 'vision_dtype': config.vision_dtype,
            'vision_quantization': config.vision_quantization, 'view_size': config.view_size,
            'vision_backend': config.vision_backend, 'decoder_backend': config.decoder_backend,
            'decoding': config.decoding, 'engine': config.engine, 'odds': config.guard_odds,
            'calibrate': config.calibrate, 'calibrate_share': config.calibrate_share}


class Recorder:
    """
    Writes one file of a recording from a thread of its own.

    Nobody waits for the disk: what does not fit into the queue is dropped and counted, and a
    replay tells which pictures are missing. ``on_drop`` is called with the reason, by the thread
    that finds it.
    """

    def __init__(self, folder: str | Path, name: str,
                 on_drop: Callable[[str], None] = lambda why: None) -> None:
        """
        Start a new file `name`.jsonl.

        Raise ValueError when the folder cannot be written, or has such a file already.
        """
        self.dropped = 0
        self._name, self._on_drop = name, on_drop
        self._folder = Path(folder).expanduser()
        self._lines, self._digest, self._torn = 0, hashlib.sha256(), False
        try:
            (self._folder / 'frames').mkdir(parents=True, exist_ok=True)
            self._file = open(self._folder / f'{name}.jsonl', 'xb', buffering=0)
        except FileExistsError:
            raise ValueError(f'record_dir {folder} holds a recording already; name another '
                             'folder, or remove it') from None
        except OSError as error:
            raise ValueError(f'record_dir {folder}: {error.strerror}; name a folder that can be '
                             'written') from error
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name='recorder', daemon=True)
        self._thread.start()

    def write(self, event: str, **values: object) -> None:
        """Add a line; the values are plain already."""
        self._put(lambda: self._line({'event': event, **values}))

    def frame(self, stamp_ns: int, image: Image, jpeg: bytes | None, reference: str,
              camera: str = '') -> object:
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
            self._drop('the disk is too slow')

    def _drop(self, why: str) -> None:
        self.dropped += 1
        self._on_drop(f'what happened is missing in the recording: {why}; record to a faster disk '
                      'with more room')

    def _run(self) -> None:
        with self._file:
            while (job := self._queue.get()) is not None:
                try:
                    job()
                except (OSError, FrameError) as error:
                    self._drop(error.strerror or str(error) if isinstance(error, OSError)
                               else str(error))
            try:
                self._line({'event': 'end', 'dropped': self.dropped, 'lines': self._lines,
                            'sha256': self._digest.hexdigest()})
            except OSError as error:
                self._drop(error.strerror or str(error))

    def _line(self, values: dict[str, object]) -> None:
        """Write a line, or a part of it when the disk is full: the next one ends that first."""
        data = json.dumps(values).encode() + b'\n'
        written = self._file.write(b'\n' * self._torn + data) - self._torn
        self._torn = written < len(data)
        if self._torn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._lines += 1
        self._digest.update(data)

    def _picture(self, path: Path, image: Image, jpeg: bytes | None) -> None:
        if path.exists():  # context and edge see the same frames
            return
        data = encode_png(image) if jpeg is None else jpeg
        part = path.with_suffix(f'.{self._name}')  # the other recorder may write it, too
        part.write_bytes(data)
        part.replace(path)
