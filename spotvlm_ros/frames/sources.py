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
Where frames come from, as iterators of shots in recorded order, and the clock that paces them.

Needs no ROS: bags are read with rosbags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
import json
from pathlib import Path
import threading
import time
from typing import Any

import cv2
import numpy as np

from .frame import FrameError, Image
from .pixels import image_to_rgb
from ..method.facts import Fact

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.webp')
BAG_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')


class SourceError(ValueError):
    """A source that cannot be opened; the message names it and the remedy."""


@dataclass(frozen=True)
class Shot:
    """One recorded or rendered image, due ``at_s`` seconds after the start of the stream."""

    at_s: float
    load: Callable[[], Image] | None = None  # makes RGB pixels; None: jpeg holds them
    jpeg: bytes | None = None
    stamp_ns: int = 0                        # stamp in the recording; 0: it has none
    truth: Callable[[int], tuple[Fact, ...]] | None = None  # frame stamp -> exact facts
    reference: str = ''                      # what renders this frame again, as JSON


def video(path: str, rate_hz: float = 0.0) -> Iterator[Shot]:
    """Yield the frames of a video file."""
    capture = cv2.VideoCapture(path)
    try:
        if not Path(path).is_file() or not capture.isOpened():
            raise SourceError(f'path {path!r} is no video that OpenCV can open; give the path '
                              'of a file such as clip.mp4')
        rate = rate_hz or capture.get(cv2.CAP_PROP_FPS) or 25.0
        index = 0
        while True:
            ok, bgr = capture.read()
            if not ok:
                if not index:
                    raise SourceError(f'{path} holds no frame that OpenCV can decode')
                return
            yield Shot(index / rate, _constant(bgr))
            index += 1
    finally:
        capture.release()


def images(path: str, rate_hz: float = 0.0) -> Iterator[Shot]:
    """Yield the images in a folder, sorted by name."""
    files = sorted(p for p in Path(path).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) \
        if Path(path).is_dir() else []
    if not files:
        raise SourceError(f'path {path!r} is no folder with images ({" ".join(IMAGE_SUFFIXES)})')
    for index, file in enumerate(files):
        yield Shot(index / (rate_hz or 10.0), jpeg=file.read_bytes())


def usb(device: int, rate_hz: float = 0.0) -> Iterator[Shot]:
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
            yield Shot(0.0, _constant(bgr))
    finally:
        capture.release()


def bag(path: str, topic: str = '', rate_hz: float = 0.0) -> Iterator[Shot]:
    """Yield the images of one topic of a rosbag2 (mcap or sqlite3), paced as recorded."""
    from rosbags.highlevel import AnyReader, AnyReaderError  # slow to import
    from rosbags.typesys import get_typestore, Stores
    try:
        with AnyReader([Path(path)],
                       default_typestore=get_typestore(Stores.ROS2_KILTED)) as reader:
            connection = _image_connection(reader.connections, topic, path)
            first_ns = None
            messages = reader.messages(connections=[connection])
            for index, (_, received_ns, raw) in enumerate(messages):
                message: Any = reader.deserialize(raw, connection.msgtype)
                first_ns = received_ns if first_ns is None else first_ns
                at_s = index / rate_hz if rate_hz else (received_ns - first_ns) / 1e9
                stamp = message.header.stamp
                stamp_ns = stamp.sec * 10**9 + stamp.nanosec
                if connection.msgtype == BAG_TYPES[1]:
                    yield Shot(at_s, jpeg=message.data.tobytes(), stamp_ns=stamp_ns)
                else:
                    yield Shot(at_s, _later(image_to_rgb, message), stamp_ns=stamp_ns)
            if first_ns is None:
                raise SourceError(f'bag {path}: topic {connection.topic} is empty')
    except (AnyReaderError, OSError) as error:
        raise SourceError(f'bag {path}: {error}; give the folder that holds metadata.yaml'
                          ) from error


def mini(world: str, seed: int, condition: str = '', rate_hz: float = 0.0,
         stop: Callable[[], bool] = lambda: False) -> Iterator[Shot]:
    """Yield frames of the miniature world without end; pure functions of seed and index."""
    from ..mini.worlds import make_world
    scene = make_world(world, seed=seed, condition=condition or None)
    rate = rate_hz or scene.fps
    step = scene.fps / rate  # frames of the world per frame of the camera
    count = 0
    while not stop():
        index = round(count * step)
        reference = json.dumps({'world': world, 'seed': seed, 'index': index,
                                'condition': condition or None})
        yield Shot(count / rate, _later(scene.frame, index), truth=_truth(scene, index),
                   reference=reference)
        count += 1


def _truth(scene: Any, index: int) -> Callable[[int], tuple[Fact, ...]]:
    def facts(stamp_ns: int) -> tuple[Fact, ...]:
        return tuple(scene.facts(index, stamp_ns))
    return facts


def _later(make: Callable[[Any], Image], argument: Any) -> Callable[[], Image]:
    return lambda: make(argument)


def _constant(bgr: Any) -> Callable[[], Image]:
    return lambda: np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _image_connection(connections: list[Any], topic: str, path: str) -> Any:
    found = [c for c in connections if c.msgtype in BAG_TYPES and topic in ('', c.topic)]
    topics = sorted({c.topic for c in connections if c.msgtype in BAG_TYPES})
    if len({c.topic for c in found}) == 1:
        return found[0]
    if not topics:
        raise SourceError(f'bag {path} has no topic of type Image or CompressedImage')
    raise SourceError(f'bag {path}: set topic to one of {", ".join(topics)}'
                      + (f'; {topic} is not there' if topic else ''))


@dataclass
class Pace:
    """
    Real-time schedule of one stream on the steady clock.

    Shots that are already late by more than a frame are skipped and counted, so that a slow
    consumer never turns into old frames.
    """

    late_s: float = 0.1
    skipped: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)

    def run(self, shots: Iterator[Shot], show: Callable[[Shot], None],
            stop: threading.Event) -> None:
        """Show each shot when it is due until the stream or the event ends it."""
        self.started = time.monotonic()
        for shot in shots:
            wait = self.started + shot.at_s - time.monotonic()
            if stop.is_set() or (wait > 0 and stop.wait(wait)):
                return
            if shot.at_s and wait < -self.late_s:
                self.skipped += 1
                continue
            try:
                show(shot)
            except FrameError:
                self.failed += 1
