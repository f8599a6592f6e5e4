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
Where frames come from, as iterators in recorded order.

Needs no ROS: bags are read with rosbags. Each raises SourceError where it cannot be opened, when
its first frame is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from heapq import merge
from itertools import chain
import json
import math
from pathlib import Path
import re
from typing import Any, TYPE_CHECKING

import cv2
import numpy as np

from .pixels import FrameError, Image, image_to_rgb
from ..config.nodes import CameraConfig
from ..method.facts import Fact, NS
from ..mini.worlds import make_world

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.webp')
LONGEST_GAP_S = 60.0  # between frames that is waited for; longer ones are jumps of a clock
BAG_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')


class SourceError(ValueError):
    """A source that cannot be opened; the message names it and the remedy."""


@dataclass(frozen=True)
class SourceFrame:
    """
    One recorded or rendered frame, due ``at_s`` seconds after the start of the stream.

    Either ``load`` makes its pixels, and may raise FrameError, or ``jpeg`` holds them.
    """

    at_s: float
    load: Callable[[], Image] | None = None
    jpeg: bytes | None = None
    stamp_ns: int = 0                        # in the recording; 0: it has none
    truth: Callable[[int], tuple[Fact, ...]] | None = None  # frame stamp -> exact facts
    reference: str = ''                      # what renders this frame again, as JSON
    warning: str = ''                        # what was odd about the recording here


def open_source(config: CameraConfig, stop: Callable[[], bool]) -> Iterator[SourceFrame]:
    """
    Return the stream that node camera is to show, its first frame read already.

    So SourceError comes at once. ``stop`` ends the endless miniature world.
    """
    frames: Iterator[SourceFrame]
    match config.source:
        case 'mini':
            frames = mini(config.world, config.seed, config.condition, config.rate_hz, stop)
        case 'video':
            frames = video(config.path, config.rate_hz)
        case 'images':
            frames = images(config.path, config.rate_hz)
        case 'usb':
            frames = usb(config.device, config.rate_hz)
        case _:
            frames = bag(config.path, config.topic, config.rate_hz)
    first = next(frames)
    return chain((first,), frames)


class RecordedClock:
    """
    Makes times of a recording ones that can be waited for: they never go back, nor years ahead.

    Log times are 0 before the first /clock (ros2/rosbag2#1276), roll over (#2389), and jump where
    a clock was set. A jump takes as long as the step before it.
    """

    def __init__(self, usual_step_s: float = 0.1) -> None:
        """Start before the first frame; ``usual_step_s`` is that of a jump with none before."""
        self._last_s: float | None = None
        self._at_s, self._step_s = 0.0, usual_step_s

    def at(self, recorded_s: float) -> tuple[float, str]:
        """Return when a frame is due [s from the start], and a warning where the clock jumped."""
        step_s = 0.0 if self._last_s is None else recorded_s - self._last_s
        self._last_s = recorded_s
        warning = ''
        if not math.isfinite(step_s) or not 0.0 <= step_s <= LONGEST_GAP_S:
            warning = (f'the recorded time jumps by {step_s:.6g} s, {self._at_s:.1f} s after the '
                       f'start; going on after {self._step_s:.2g} s')
            step_s = self._step_s
        elif step_s > 0:
            self._step_s = min(step_s, 1.0)
        self._at_s += step_s
        return self._at_s, warning


def video(path: str, rate_hz: float = 0.0) -> Iterator[SourceFrame]:
    """
    Yield the frames of a video file, at its own presentation times or at ``rate_hz``.

    Not by the rate in its header: phones and cameras vary theirs (opencv/opencv#24000), and webm
    says 1000 (opencv/opencv-python#322).
    """
    capture = cv2.VideoCapture(path)
    try:
        if not Path(path).is_file() or not capture.isOpened():
            raise SourceError(f'path {path!r} is no video that OpenCV can open; give the path '
                              'of a file such as clip.mp4')
        stated_hz = capture.get(cv2.CAP_PROP_FPS)
        step_s = 1.0 / stated_hz if 1.0 <= stated_hz <= 240.0 else 0.04
        clock, before_s, index = RecordedClock(step_s), -1.0, 0
        while True:
            ok, bgr = capture.read()
            if not ok:
                if not index:
                    raise SourceError(f'{path} holds no frame that OpenCV can decode')
                return
            now_s = capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
            if index and now_s == before_s == 0.0:  # a container without times
                at_s, warning = index * step_s, ''
            else:
                at_s, warning = clock.at(now_s)
            before_s = now_s
            yield SourceFrame(index / rate_hz if rate_hz else at_s, partial(_rgb, bgr),
                              warning=warning)
            index += 1
    finally:
        capture.release()


def images(path: str, rate_hz: float = 0.0) -> Iterator[SourceFrame]:
    """Yield the images in a folder, sorted by name, numbers in it as numbers: 2 before 10."""
    files = sorted((p for p in Path(path).iterdir()
                    if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()),
                   key=_natural) if Path(path).is_dir() else []
    if not files:
        raise SourceError(f'path {path!r} is no folder with images ({" ".join(IMAGE_SUFFIXES)})')
    for index, file in enumerate(files):
        at_s = index / (rate_hz or 10.0)
        try:
            yield SourceFrame(at_s, jpeg=file.read_bytes())
        except OSError as error:
            yield SourceFrame(at_s, partial(_unreadable, f'{file}: {error.strerror}'))


def usb(device: int, rate_hz: float = 0.0) -> Iterator[SourceFrame]:
    """Yield frames of a USB camera as they come; the camera paces."""
    capture = cv2.VideoCapture(device)
    try:
        if not capture.isOpened():
            raise SourceError(f'device {device}: no camera there, or no permission; see '
                              'ls -l /dev/video* and join group video')
        if rate_hz:
            capture.set(cv2.CAP_PROP_FPS, rate_hz)
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        while True:
            ok, bgr = capture.read()
            if not ok:
                raise SourceError(f'device {device}: the camera stopped delivering frames; is '
                                  'it still plugged in?')
            yield SourceFrame(0.0, partial(_rgb, bgr))
    finally:
        capture.release()


def bag(path: str, topic: str = '', rate_hz: float = 0.0) -> Iterator[SourceFrame]:
    """
    Yield the images of one topic of a rosbag2 (mcap or sqlite3) or ROS 1 bag, paced as recorded.

    ``path`` is the folder, or a file within it. All connections of the topic are read: a driver
    that was restarted while recording has a second one. Where metadata.yaml does not fit its files
    (another QoS, written by a converter), the files are read without it.
    """
    from rosbags.rosbag1 import ReaderError as Ros1Error  # slow to import
    from rosbags.rosbag2 import ReaderError as Ros2Error
    from rosbags.serde import SerdeError
    why: Exception | None = None
    for files in _bag_files(Path(path)):
        clock, index = RecordedClock(), 0
        try:
            for message, received_ns in _bag_images(files, topic):
                at_s, warning = clock.at(received_ns / NS)
                if rate_hz:
                    at_s, warning = index / rate_hz, ''
                yield _bag_frame(message, at_s, warning)
                index += 1
        except (Ros1Error, Ros2Error, SerdeError, OSError) as error:
            if index:
                raise SourceError(f'bag {path}: nothing can be read behind frame {index}: {error}'
                                  ) from error
            why = why or error
        if index:
            return
    if why is not None:
        raise SourceError(f'bag {path}: {why}; give the folder that holds metadata.yaml') from why
    raise SourceError(f'bag {path}: topic {topic or "of the images"} is empty')


def _bag_files(path: Path) -> Iterator[list[Path]]:
    """Yield what to open as one bag: the folder, then its files without their metadata."""
    yield [path]
    if path.is_dir():
        for pattern in ('*.mcap', '*.db3', '*.bag'):
            files = sorted(path.glob(pattern), key=_natural)
            if files:
                yield files


def _bag_images(files: Sequence[Path], topic: str) -> Iterator[tuple[Any, int]]:
    """
    Yield images of a bag in recorded order, each with its log time [ns].

    Their definition is that of ROS, not the bag's: one that cannot be read, of another topic, is
    no reason to refuse the bag.
    """
    from rosbags import rosbag1, rosbag2
    from rosbags.typesys import get_typestore, Stores
    with ExitStack() as stack:
        readers = [stack.enter_context(
            rosbag1.Reader(f) if f.suffix == '.bag' else rosbag2.Reader(f)) for f in files]
        connections = _image_connections([c for r in readers for c in r.connections], topic,
                                         files[0])
        if files[0].suffix == '.bag':
            deserialize = get_typestore(Stores.ROS1_NOETIC).deserialize_ros1
        else:
            deserialize = get_typestore(Stores.ROS2_KILTED).deserialize_cdr
        streams = [r.messages(connections=mine) for r in readers
                   if (mine := [c for c in connections if c in r.connections])]
        for connection, received_ns, raw in merge(*streams, key=lambda m: m[1]):
            yield deserialize(raw, connection.msgtype), received_ns


def _bag_frame(message: Any, at_s: float, warning: str) -> SourceFrame:
    stamp = message.header.stamp
    stamp_ns = stamp.sec * NS + stamp.nanosec
    if message.__msgtype__ == BAG_TYPES[1]:
        return SourceFrame(at_s, jpeg=message.data.tobytes(), stamp_ns=stamp_ns, warning=warning)
    return SourceFrame(at_s, partial(image_to_rgb, message), stamp_ns=stamp_ns, warning=warning)


def mini(world: str, seed: int, condition: str = '', rate_hz: float = 0.0,
         stop: Callable[[], bool] = lambda: False) -> Iterator[SourceFrame]:
    """Yield frames of the miniature world without end; pure functions of seed and index."""
    scene = make_world(world, seed=seed, condition=condition or None)
    rate = rate_hz or scene.fps
    step = scene.fps / rate  # frames of the world per frame of the camera
    count = 0
    while not stop():
        index = round(count * step)
        reference = json.dumps({'world': world, 'seed': seed, 'index': index,
                                'condition': condition or None})
        yield SourceFrame(count / rate, partial(scene.frame, index),
                          truth=partial(scene.facts, index), reference=reference)
        count += 1


def _rgb(bgr: Image) -> Image:
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _unreadable(why: str) -> Image:
    raise FrameError(why)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts the numbers in a name as numbers."""
    return [(int(part), '') if part.isdigit() else (0, part)
            for part in re.split(r'(\d+)', path.name)]


def _image_connections(connections: Sequence[Connection], topic: str,
                       path: Path) -> list[Connection]:
    """Return all connections of the topic; raise SourceError where there is not just one topic."""
    images = [c for c in connections if c.msgtype in BAG_TYPES]
    chosen = [c for c in images if topic in ('', c.topic)]
    if len({c.topic for c in chosen}) == 1:
        return chosen
    if not images:
        raise SourceError(f'bag {path} has no topic of type Image or CompressedImage')
    topics = sorted({c.topic for c in images})
    raise SourceError(f'bag {path}: set topic to one of {", ".join(topics)}'
                      + (f'; {topic} is not there' if topic else ''))
