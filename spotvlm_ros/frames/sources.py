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
Where frames come from, as iterators in recorded order. Needs no ROS.

Each raises SourceError where it cannot be opened, when its first frame is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
import json
from pathlib import Path
import re

import cv2
import numpy as np

from .bags import bag
from .pixels import FrameError, Image
from .source_frame import natural_order, RecordedClock, SourceError, SourceFrame
from .streams import open_stream
from ..config.nodes import CameraConfig
from ..method.prompt import printable
from ..mini.worlds import make_world

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.webp')


def open_source(config: CameraConfig, stop: Callable[[], bool],
                lost: Callable[[str], None] = lambda why: None) -> Iterator[SourceFrame]:
    """
    Return the stream that node camera is to show, its first frame read already.

    So SourceError comes at once. ``stop`` ends the endless ones. A stream of a network is not
    waited for; ``lost`` is told when and why it gives nothing, and '' when it gives pictures.
    """
    frames: Iterator[SourceFrame]
    match config.source:
        case 'mini':
            frames = mini(config.world, config.seed, config.condition, config.rate_hz, stop,
                          config.speed)
        case 'video':
            frames = video(config.path, config.rate_hz)
        case 'images':
            frames = images(config.path, config.rate_hz)
        case 'usb':
            device = video_device(config.path) if config.path else config.device
            frames = usb(device, config.rate_hz)
        case 'stream':
            return open_stream(config, stop, lost)
        case _:
            frames = bag(config.path, config.topic, config.rate_hz)
    first = next(frames)
    return chain((first,), frames)


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


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder by name, numbers in it as numbers: 2 before 10."""
    files = sorted((p for p in folder.iterdir()
                    if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()),
                   key=natural_order) if folder.is_dir() else []
    if not files:
        raise SourceError(f'path {str(folder)!r} is no folder with images '
                          f'({" ".join(IMAGE_SUFFIXES)})')
    return files


def images(path: str, rate_hz: float = 0.0) -> Iterator[SourceFrame]:
    """Yield the images in a folder, in the order of ``image_files``."""
    files = image_files(Path(path))
    for index, file in enumerate(files):
        at_s = index / (rate_hz or 10.0)
        try:
            yield SourceFrame(at_s, jpeg=file.read_bytes())
        except OSError as error:
            yield SourceFrame(at_s, partial(_unreadable, f'{file}: {error.strerror}'))


def video_device(name: str, names: Path = Path('/sys/class/video4linux')) -> int:
    """
    Return the number of a USB camera by its path in /dev/v4l/by-id, or by its name.

    That is what ``v4l2-ctl --list-devices`` shows; a part of it will do. Raise SourceError.
    """
    if name.startswith('/'):
        number = re.fullmatch(r'video(\d+)', Path(name).resolve().name)
        if number is None or not Path(name).exists():
            raise SourceError(f'path {name!r} is no camera that is there; see ls -l '
                              '/dev/v4l/by-id /dev/v4l/by-path')
        return int(number[1])
    found = {int(folder.name[5:]): card for folder in names.glob('video[0-9]*')
             if _line(folder / 'index') in ('', '0')  # the others are metadata of the same camera
             and (card := _line(folder / 'name'))}
    fitting = [n for n, card in found.items() if card == name] or \
        [n for n, card in found.items() if name.lower() in card.lower()]
    if len(fitting) == 1:
        return fitting[0]
    those = ', '.join(f'{found[n]} (video{n})' for n in sorted(fitting or found)[:8])
    raise SourceError(f'path {name!r} is the name of {len(fitting) or "no"} camera'
                      f'{"s" * (len(fitting) > 1)}; there are: {those or "none"}. Give the whole '
                      'name, or a path in /dev/v4l/by-id')


def _line(file: Path) -> str:
    try:
        return printable(file.read_bytes()[:200].decode('utf-8', 'replace').strip())
    except OSError:
        return ''


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


def mini(world: str, seed: int, condition: str = '', rate_hz: float = 0.0,
         stop: Callable[[], bool] = lambda: False, speed: float = 1.0) -> Iterator[SourceFrame]:
    """
    Yield frames of the miniature world without end; pure functions of seed and index.

    The world goes by ``speed`` times as fast as its own time.
    """
    scene = make_world(world, seed=seed, condition=condition or None)
    rate = rate_hz or scene.fps
    step = speed * scene.fps / rate  # frames of the world per frame of the camera
    count = 0
    while not stop():
        index = round(count * step)
        reference = json.dumps({'world': world, 'seed': seed, 'index': index,
                                'condition': condition or None})
        yield SourceFrame(count / rate, partial(scene.frame, index),
                          truth=partial(scene.facts, index), pose=partial(scene.pose, index),
                          reference=reference)
        count += 1


def _rgb(bgr: Image) -> Image:
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _unreadable(why: str) -> Image:
    raise FrameError(why)
