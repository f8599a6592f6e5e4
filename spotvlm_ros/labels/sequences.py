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
Labelled sequences: a label file and the frames that it is about, whatever they are kept in.

Frames of a folder are read when they are asked for, those of a bag or video once, into a
temporary file: memory does not grow with the recording.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import tempfile

import numpy as np

from .schema import Header, Label, LabelError, read_label_file
from ..config.nodes import CloudNodeConfig
from ..frames.pixels import decode_compressed, encode_jpeg, FrameError, Image
from ..frames.source_frame import natural_order, SourceError, SourceFrame
from ..frames.sources import bag, image_files, video
from ..method.facts import NS, Query
from ..method.prompt import printable

START_NS = 1000 * NS       # stamp of t = 0
FILE = 'labels.jsonl'      # in a folder of frames
KEPT_HZ = 10.0             # of a bag or video, at most, beside the labelled frames
IMAGES_HZ = 10.0           # of a folder where the labels do not tell
SAME_S = 1e-3              # a label and a frame that are no further apart belong together
OVER_PX = 1.0              # by which a box may stick out of the picture, by rounding
LATE_S = 1.0               # by which a label may come after the last frame
JPEG_QUALITY = CloudNodeConfig().jpeg_quality


@dataclass(frozen=True)
class LabelledSequence:
    """Frames and what is true of them. Stamps are START_NS + t."""

    name: str
    query: Query
    labels: list[Label]
    jpegs: Mapping[int, bytes]     # by stamp, in order; PNG or such where the folder holds that
    size: tuple[int, int]          # width and height [pixels]
    header: Header | None = None
    skipped: int = 0               # frames of a bag or video that cannot be decoded

    def image(self, stamp_ns: int) -> Image:
        """Return a frame; raise LabelError where it cannot be decoded any more."""
        try:
            return decode_compressed(self.jpegs[stamp_ns])
        except FrameError as error:
            raise LabelError(f'{self.name}: the frame at {(stamp_ns - START_NS) / NS:g} s: '
                             f'{error}') from error

    def stamp_of(self, label: Label) -> int:
        """Return the stamp of the frame that a label is about: the newest one at its time."""
        stamps = list(self.jpegs)
        return stamps[max(0, bisect_right(stamps, stamp(label.t + SAME_S)) - 1)]


def open_labelled(path: Path, query: Query, recording: Header | None = None) -> LabelledSequence:
    """
    Open a label file, or a folder that holds one, with its frames.

    They are those of ``recording``, or else of the file's header, or else the images beside the
    file: one for each line, in natural order, or as ``image`` says. Raise LabelError.
    """
    if path.is_dir():
        path = path / FILE
        if not path.is_file():
            raise LabelError(f'{path.parent} holds no {FILE}; name a label file, or a folder of '
                             'frames with one')
    header, labels = read_label_file(path, query)
    header = recording or header
    place = path.parent / header.recording if header else path.parent
    jpegs: Mapping[int, bytes]
    skipped = 0
    try:
        if header is None or header.kind == 'images':
            jpegs, size = _files(path, place, labels, header)
        else:
            source = video(str(place)) if header.kind == 'video' else bag(str(place), header.topic)
            jpegs, size, skipped = _spooled(str(place), source, labels)
    except SourceError as error:
        where = ('its frames are the images beside it' if header is None else
                 'the recording is given' if recording else 'its first line names the recording')
        raise LabelError(f'{path}: {printable(str(error))} ({where})') from error
    _check(path, labels, size, list(jpegs)[-1])
    return LabelledSequence(place.resolve().name, query, labels, jpegs, size, header, skipped)


def sequence_paths(path: Path) -> list[Path]:
    """Return the folders of a folder that are labelled sequences, or the path as it is."""
    if not path.is_dir() or (path / FILE).exists():
        return [path]
    return sorted((p.parent for p in path.glob(f'*/{FILE}')), key=natural_order) or [path]


def stamp(t: float) -> int:
    """Return the stamp of a time of a label."""
    return START_NS + round(t * NS)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise LabelError(f'{file}: cannot be read: {error.strerror}; make it readable, or take '
                         'it and its line out') from error


def new_folder(folder: Path) -> None:
    """Make a folder to write a sequence into; raise LabelError where something is in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LabelError(f'{folder} is not empty; name another --out')
    folder.mkdir(parents=True, exist_ok=True)


class Pace:
    """
    Takes frames as often as a period says, as far as there are so many.

    On the mean: of 12.5 a second, for ten, not every second one.
    """

    def __init__(self, period_s: float) -> None:
        """Take the first frame."""
        self._period_s, self._next_s = period_s, -1e9

    def due(self, at_s: float) -> bool:
        """Return whether to take a frame, with a tolerance for a camera's jitter."""
        if at_s < self._next_s - 0.05 * self._period_s:
            return False
        in_time = at_s < self._next_s + self._period_s
        self._next_s = (self._next_s if in_time else at_s) + self._period_s
        return True


class _Files(Mapping[int, bytes]):
    """Images of a folder, by stamp."""

    def __init__(self, files: Mapping[int, Path]) -> None:
        self._files = files

    def __getitem__(self, stamp_ns: int) -> bytes:
        return _read(self._files[stamp_ns])

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class _Spool(Mapping[int, bytes]):
    """Frames of a recording in a temporary file, by stamp."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # ends with the process, however that ends
        self._places: dict[int, tuple[int, int]] = {}

    def add(self, stamp_ns: int, data: bytes) -> None:
        self._places[stamp_ns] = self._file.tell(), len(data)
        self._file.write(data)

    def __getitem__(self, stamp_ns: int) -> bytes:
        begin, size = self._places[stamp_ns]
        return os.pread(self._file.fileno(), size, begin)  # for threads and forks alike

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def flush(self) -> None:
        self._file.flush()


def _files(path: Path, folder: Path, labels: Sequence[Label], header: Header | None,
           ) -> tuple[_Files, tuple[int, int]]:
    """Return the images of a folder at the times that the labels give them, and their size."""
    files = image_files(folder)
    named = sum(bool(label.image) for label in labels)
    if named == len(labels):
        by_stamp = _named(path, folder, files, labels)
    elif named:
        line = next(label for label in labels if not label.image)
        raise LabelError(f'{path}: the line of t {line.t:g} has no image, others have; name the '
                         'image in all lines, or in none')
    elif header is not None:
        by_stamp = {stamp(i / IMAGES_HZ): file for i, file in enumerate(files)}
    elif len(files) != len(labels):
        raise LabelError(f'{path} has {len(labels)} lines, and beside it are {len(files)} images; '
                         'give each image a line, in the order of their names, or name the image '
                         'in each line: "image": "0001.jpg"')
    else:
        by_stamp = {stamp(label.t): file for label, file in zip(labels, files)}
    size = None
    for file in by_stamp.values():
        try:
            height, width = decode_compressed(_read(file)).shape[:2]
        except FrameError as error:
            raise LabelError(f'{file}: {error}; replace the file, or take it and its line out'
                             ) from error
        size = _same_size(str(file), size, (width, height))
    assert size is not None    # image_files found some
    return _Files(by_stamp), size


def _named(path: Path, folder: Path, files: Sequence[Path], labels: Sequence[Label],
           ) -> dict[int, Path]:
    """Return the images that labels name, and those between them at times between theirs."""
    places = {file.resolve(): i for i, file in enumerate(files)}
    indices = []
    for label in labels:
        found = (places.get((base / label.image).resolve()) for base in (folder, path.parent))
        index = next((i for i in found if i is not None), None)
        if index is None:
            raise LabelError(f'{path}: t {label.t:g}: image {printable(label.image)!r} is not '
                             f'among the images of {folder}; put it there, or take the line out')
        indices.append(index)
    times = [label.t for label in labels]
    if any(after <= before for before, after in zip(indices, indices[1:])):
        return {stamp(t): files[i] for t, i in zip(times, indices)}  # names tell no order
    first, last = indices[0], indices[-1]
    step = (times[-1] - times[0]) / (last - first) if last > first else 1 / IMAGES_HZ

    def at(i: int) -> float:
        """Return when an image was taken, by the labels around it or the mean step."""
        beyond = min(0, i - first) + max(0, i - last)
        return float(np.interp(i, indices, times)) + beyond * step
    return {stamp(at(i)): file for i, file in enumerate(files) if at(i) >= -SAME_S}


def _spooled(name: str, source: Iterator[SourceFrame], labels: Sequence[Label],
             ) -> tuple[_Spool, tuple[int, int], int]:
    """Return frames of a recording, their size, and how many cannot be decoded."""
    spool, size, skipped, pace = _Spool(), None, 0, Pace(1 / KEPT_HZ)
    times = [label.t for label in labels]
    for frame in source:
        if frame.at_s > times[-1] + LATE_S:
            break
        nearest = bisect_left(times, frame.at_s - SAME_S)
        labelled = nearest < len(times) and times[nearest] <= frame.at_s + SAME_S
        if not pace.due(frame.at_s) and not labelled:
            continue
        try:
            rgb = frame.load() if frame.load else decode_compressed(frame.jpeg or b'')
            data = frame.jpeg if frame.jpeg else encode_jpeg(rgb, JPEG_QUALITY)
        except FrameError:
            skipped += 1
            continue
        size = _same_size(f'{name}: the frame at {frame.at_s:g} s', size, rgb.shape[1::-1])
        spool.add(stamp(frame.at_s), data)
    spool.flush()
    if size is None:
        raise SourceError(f'{name}: none of its {skipped} frames can be decoded')
    return spool, size, skipped


def _same_size(name: str, size: tuple[int, int] | None, this: Sequence[int]) -> tuple[int, int]:
    if size is not None and tuple(this) != size:
        raise LabelError(f'{name}: {this[0]}x{this[1]} pixels, those before it have '
                         f'{size[0]}x{size[1]}; bring all frames of a sequence to one size, or '
                         'make two of it')
    return this[0], this[1]


def _check(path: Path, labels: Sequence[Label], size: tuple[int, int], last_ns: int) -> None:
    """Raise LabelError for labels that cannot be about these frames."""
    width, height = size
    if stamp(labels[-1].t - LATE_S) > last_ns:
        raise LabelError(f'{path}: the last label is at {labels[-1].t:g} s, the recording ends at '
                         f'{(last_ns - START_NS) / NS:g} s; t is seconds after the first frame')
    for label in labels:
        for key, box in label.regions.items():
            if min(box.x, box.y, width - box.x - box.w, height - box.y - box.h) < -OVER_PX:
                raise LabelError(
                    f'{path}: t {label.t:g}: regions.{key} [{box.x:g}, {box.y:g}, {box.w:g}, '
                    f'{box.h:g}] is not within the picture of {width}x{height} pixels; cut it '
                    'off at the edges, or was it drawn on a picture of another size?')
