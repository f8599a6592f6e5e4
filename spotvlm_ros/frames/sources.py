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
from dataclasses import dataclass
from functools import partial
from itertools import chain
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

import cv2
import numpy as np

from .pixels import Image, image_to_rgb
from ..config.nodes import CameraConfig
from ..method.facts import Fact, NS
from ..mini.worlds import make_world

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.webp')
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


def video(path: str, rate_hz: float = 0.0) -> Iterator[SourceFrame]:
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
            yield SourceFrame(index / rate, partial(_rgb, bgr))
            index += 1
    finally:
        capture.release()


def images(path: str, rate_hz: float = 0.0) -> Iterator[SourceFrame]:
    """Yield the images in a folder, sorted by name."""
    files = sorted(p for p in Path(path).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) \
        if Path(path).is_dir() else []
    if not files:
        raise SourceError(f'path {path!r} is no folder with images ({" ".join(IMAGE_SUFFIXES)})')
    for index, file in enumerate(files):
        yield SourceFrame(index / (rate_hz or 10.0), jpeg=file.read_bytes())


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
                at_s = index / rate_hz if rate_hz else (received_ns - first_ns) / NS
                stamp = message.header.stamp
                stamp_ns = stamp.sec * NS + stamp.nanosec
                if connection.msgtype == BAG_TYPES[1]:
                    yield SourceFrame(at_s, jpeg=message.data.tobytes(), stamp_ns=stamp_ns)
                else:
                    yield SourceFrame(at_s, partial(image_to_rgb, message), stamp_ns=stamp_ns)
            if first_ns is None:
                raise SourceError(f'bag {path}: topic {connection.topic} is empty')
    except (AnyReaderError, OSError) as error:
        raise SourceError(f'bag {path}: {error}; give the folder that holds metadata.yaml'
                          ) from error


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


def _image_connection(connections: Sequence[Connection], topic: str, path: str) -> Connection:
    images = [c for c in connections if c.msgtype in BAG_TYPES]
    chosen = [c for c in images if topic in ('', c.topic)]
    if len({c.topic for c in chosen}) == 1:
        return chosen[0]
    if not images:
        raise SourceError(f'bag {path} has no topic of type Image or CompressedImage')
    topics = sorted({c.topic for c in images})
    raise SourceError(f'bag {path}: set topic to one of {", ".join(topics)}'
                      + (f'; {topic} is not there' if topic else ''))
