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
"""Streams of cameras on a network: RTSP, HTTP, pipelines of GStreamer. Needs no ROS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
import json
import multiprocessing
import os
from pathlib import Path
import re
import stat
import time
from typing import NoReturn
from urllib.parse import urlsplit

import cv2
import numpy as np

from .pixels import FrameError, MAX_PIXELS
from .source_frame import SourceError, SourceFrame
from .stream_process import is_url, LONGEST_PICTURE
from ..config.nodes import CameraConfig
from ..method.prompt import printable
from ..system.processes import Child, PYTHON

SCHEMES = ('rtsp', 'rtsps', 'http', 'https', 'rtmp', 'rtp', 'udp', 'tcp', 'srt')
LONGEST_ADDRESS = 4096                     # [bytes]
LONGEST_META = 256                         # before a picture [bytes]
PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0       # before a stream is connected again
PATIENCE = 3.0                             # for the first picture, in times of timeout_s
# User, password or token, in a URL or as properties of an element of GStreamer.
_SECRET = re.compile(r'://[^\s@]+@|(?:^|[?&;/_,\s])(?:user[-_]?(?:id|pw|name)?|usr|login|pwd'
                     r'|pass\w*|\w*token|\w*key|auth\w*|secret)\s*=', re.IGNORECASE)


class _LostError(Exception):
    """Why a stream gives no more pictures, for now."""


def open_stream(config: CameraConfig, stop: Callable[[], bool],
                lost: Callable[[str], None]) -> Iterator[SourceFrame]:
    """
    Return the frames of a stream, always the newest, connected again for ever.

    ``lost`` is told each time why there are none, and '' when there are again. Raise SourceError
    for an address that can never work.
    """
    return _frames(read_address(config.path), config, stop, lost)


def read_address(path: str) -> str:
    """Return the address that ``path`` is, or that the file of that name holds."""
    address = path
    if not is_url(path) and '!' not in path:
        address = _from_file(path)
    elif _SECRET.search(path):
        raise SourceError('path holds a user, password or token, which every peer on the ROS '
                          'graph could read; write the address to a file, run chmod 600 on it, '
                          'and give its name as path')
    (_check_url if is_url(address) else _check_pipeline)(address, shown_address(path))
    return address


def shown_address(path: str, address: str = '') -> str:
    """
    Return ``path`` as it may be logged: without user, password and what follows a '?'.

    Of the ``address`` in a file of that name, the host only: cameras put passwords into paths.
    """
    if is_url(path):
        scheme, _, rest = path.partition('://')
        return f'{scheme}://{rest.rpartition("@")[2].partition("?")[0]}'
    if '!' in path:
        return 'of GStreamer'
    if is_url(address):
        parts = urlsplit(address)
        return f'{path} ({parts.scheme}://{parts.netloc.rpartition("@")[2]})'
    return repr(path)


def _from_file(path: str) -> str:
    file = Path(path).expanduser()
    address = ''
    with suppress(OSError, UnicodeDecodeError):
        if file.is_file():
            with file.open('rb') as text:
                address = text.read(LONGEST_ADDRESS).decode().strip()
    if not is_url(address) and '!' not in address:
        raise SourceError(f'path {path!r} is neither rtsp://, http:// nor a pipeline of GStreamer,'
                          ' nor a file that holds one of these; for a video file set source to '
                          'video')
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise SourceError(f'path {path} is readable by others; run: chmod 600 {path}')
    return address


def _check_url(address: str, shown: str) -> None:
    try:
        parts = urlsplit(address)
        known = parts.scheme in SCHEMES and (parts.port, parts.hostname) != (None, None)
    except ValueError:
        known = False
    if not known or ' ' in address or not address.isprintable():
        raise SourceError(f'path {shown} is no address of a stream; give one that begins with '
                          f'{"://, ".join(SCHEMES[:4])}://, such as rtsp://camera:554/stream1')
    if '@' in address.replace(parts.netloc, '', 1):  # it would be cut within the password
        raise SourceError(f'path {shown} has an @ behind the host; write %2F for / in user and '
                          'password, %3F for ?, %23 for #, %40 for @')


def _check_pipeline(pipeline: str, shown: str) -> None:
    if not re.search(r'!\s*appsink\b[^!]*$', pipeline):
        raise SourceError(f'path {shown} does not end in appsink; end it in "! videoconvert ! '
                          'video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"')
    if not re.search(r'GStreamer:\s+YES', cv2.getBuildInformation()):
        raise SourceError(f'path is a pipeline of GStreamer, and this OpenCV ({cv2.__version__}) '
                          "was built without; give the camera's rtsp:// or http:// address, or "
                          'use the OpenCV of the distribution: apt install python3-opencv, and '
                          'no opencv-python in the environment')


def _frames(address: str, config: CameraConfig, stop: Callable[[], bool],
            lost: Callable[[str], None]) -> Iterator[SourceFrame]:
    """Yield frames of one connection after another, with longer pauses while they are short."""
    pause_s = PAUSE_S
    while not stop():
        began = time.monotonic()
        try:
            yield from _connection(address, config, stop, lost)
            return
        except _LostError as error:
            if time.monotonic() - began > LONGEST_PAUSE_S + PATIENCE * config.timeout_s:
                pause_s = PAUSE_S
            lost(f'stream {shown_address(config.path, address)}: {error}; connecting again in '
                 f'{pause_s:g} s: are camera and network up, address and password right?')
        _wait(time.monotonic() + pause_s, stop)
        pause_s = min(2.0 * pause_s, LONGEST_PAUSE_S)


def _connection(address: str, config: CameraConfig, stop: Callable[[], bool],
                lost: Callable[[str], None]) -> Iterator[SourceFrame]:
    """Yield frames until ``stop``; raise _LostError when no more come."""
    period_s = 1.0 / config.rate_hz if config.rate_hz else 0.0
    limit_s, due = PATIENCE * config.timeout_s, time.monotonic()
    reader, until = _Reader(address, config.timeout_s), due + limit_s
    try:
        while True:
            reader.ask()
            while not reader.ready(0.1) or time.monotonic() > until:
                if stop():
                    return
                if time.monotonic() > until:
                    raise _LostError(f'no picture for {limit_s:g} s')
            frame, good = reader.take()
            if good and limit_s > config.timeout_s:
                limit_s = config.timeout_s
                lost('')
            yield frame
            due = max(due + period_s, time.monotonic())
            _wait(due, stop)
            if stop():
                return
            if good:
                until = time.monotonic() + limit_s
    finally:
        reader.close()


class _Reader:
    """The process that reads one stream, and the pipe to it."""

    def __init__(self, address: str, timeout_s: float) -> None:
        """Start it."""
        try:
            self._pipe, theirs = multiprocessing.Pipe()
            with theirs, open(os.devnull, 'wb') as nowhere:
                self._child = Child(
                    [*PYTHON, '-m', 'spotvlm_ros.frames.stream_process', str(theirs.fileno())],
                    log=nowhere, inherited=(theirs.fileno(),))
        except OSError as error:
            raise _LostError(f'no process can be started ({error.strerror})') from error
        self._send(json.dumps({'address': address, 'timeout_s': timeout_s,
                               'max_pixels': MAX_PIXELS}).encode())

    def ask(self) -> None:
        """Ask for the next picture."""
        self._send(b'next')

    def ready(self, timeout_s: float) -> bool:
        """Wait for what was asked for; return whether it is there."""
        return self._pipe.poll(timeout_s)

    def take(self) -> tuple[SourceFrame, bool]:
        """Return the picture that is there, and whether it is good; raise _LostError."""
        try:
            kind, width, height = json.loads(self._pipe.recv_bytes(LONGEST_META))
            data = self._pipe.recv_bytes(max(LONGEST_PICTURE, 3 * MAX_PIXELS))
        except (EOFError, OSError, ValueError) as error:
            self._child.stop(0.5)
            raise _LostError(f'the process that reads it {self._child.end}') from error
        if kind == 'jpeg':
            return SourceFrame(0.0, jpeg=data), True
        if kind == 'rgb' and len(data) == 3 * width * height:
            pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            return SourceFrame(0.0, lambda: pixels), True
        why = printable(data.decode('utf-8', 'replace'))
        if kind == 'end':
            raise _LostError(why)
        return SourceFrame(0.0, partial(_bad, why)), False

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._pipe.close()
        self._child.stop(0.2)

    def _send(self, data: bytes) -> None:
        with suppress(OSError):  # it has died, which `take` will say
            self._pipe.send_bytes(data)


def _bad(why: str) -> NoReturn:
    raise FrameError(why)


def _wait(until: float, stop: Callable[[], bool]) -> None:
    while (left := until - time.monotonic()) > 0 and not stop():
        time.sleep(min(left, 0.05))
