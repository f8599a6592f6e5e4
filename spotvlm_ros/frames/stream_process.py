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
The program that reads one stream and hands its newest picture to the node that asks for it.

Decoders hang, crash and take memory on what a network sends; here that ends this process only.
The node gives the address over a pipe, since lists of processes show arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
import json
from multiprocessing.connection import Connection
import os
import re
import resource
import sys
import time
from typing import TYPE_CHECKING
import urllib.error
from urllib.parse import unquote, urlsplit
import urllib.request

from .jpeg import complete_jpeg, EOI, is_jpeg, jpeg_size

if TYPE_CHECKING:
    import cv2

MEMORY = 1 << 30          # for the decoder, beside what its libraries take [bytes]
LONGEST_PICTURE = 1 << 25  # JPEG [bytes]
LONGEST_HEADER = 1 << 14  # of a picture in a multipart stream [bytes]
LONGEST_LOG = 1 << 20     # of FFmpeg, while it connects [bytes]
CHUNK = 1 << 16
LEAST_PERIOD_S = 1 / 240  # no camera sends more often
# Unless the environment says otherwise: nothing is queued, nothing is read but from a network.
FFMPEG_OPTIONS = ('rtsp_transport;tcp|fflags;nobuffer+discardcorrupt|flags;low_delay'
                  '|max_delay;200000|protocol_whitelist;'
                  'rtsp,rtsps,rtp,srtp,rtmp,srt,udp,tcp,tls,http,https,httpproxy,crypto,data')
# What FFmpeg may have said that is of help; all else it says may hold the address.
_SAID = re.compile(r'\b4\d\d(?= \(?[A-Z])|Connection refused|No route to host|timed out'
                   '|Invalid data found|Failed to resolve hostname')

Picture = tuple[str, int, int, bytes | memoryview]  # kind (jpeg, rgb, bad, end), width, height


class StreamError(Exception):
    """Why there are no more pictures; holds nothing that the server wrote, nor the address."""


def is_url(address: str) -> bool:
    """Return whether an address is one; else it is a pipeline of GStreamer."""
    return re.match('[a-z]+://', address, re.IGNORECASE) is not None


def pictures(address: str, timeout_s: float, max_pixels: int) -> Iterator[Callable[[], Picture]]:
    """Yield, for each picture when it has come, the function that returns it."""
    if address.lower().startswith(('http:', 'https:')):
        reply = _get(address, timeout_s)
        if reply.headers.get_content_maintype() == 'multipart':
            mark = reply.headers.get_boundary('').strip('-').encode('latin-1', 'replace')
            for jpeg in parts(reply.read1, b'--' + mark if mark else b'\n--'):
                yield partial(_checked, jpeg, max_pixels)
        if reply.headers.get_content_maintype() == 'image':
            raise StreamError('it is a single picture; give the address of a stream')
        reply.close()
    yield from _decoded(address, max_pixels)


def parts(read: Callable[[int], bytes], mark: bytes) -> Iterator[bytes]:
    """
    Yield the bodies of a multipart stream, each at once when its last byte has come.

    Without Content-Length, which many cameras leave out, a JPEG says itself where it ends.
    """
    held = bytearray()

    def more(limit: int) -> None:
        if len(held) > limit:
            raise StreamError(f'more than {limit} bytes that are no picture')
        chunk = read(CHUNK)
        if not chunk:
            raise StreamError('the server has ended the stream')
        held.extend(chunk)

    def cut(pattern: re.Pattern[bytes], limit: int) -> bytes:
        begin = 0
        while (found := pattern.search(held, begin)) is None:
            begin = max(0, len(held) - len(mark) - 4)
            more(limit)
        before = bytes(held[:found.start()])
        del held[:found.end()]
        return before
    boundary = re.compile(re.escape(mark))
    while True:
        cut(boundary, LONGEST_PICTURE)
        header = cut(re.compile(rb'\r?\n\r?\n'), LONGEST_HEADER)
        stated = re.search(rb'(?im)^content-length:\s*(\d{1,9})\s*$', header)
        if stated is not None:
            length = int(stated[1])
            while len(held) < length:
                more(LONGEST_PICTURE)
            yield bytes(held[:length])
            del held[:length]
            continue
        begin = 0
        while boundary.search(held, begin) is None and not _ends(held):
            begin = max(0, len(held) - len(mark))
            more(LONGEST_PICTURE)
        found = boundary.search(held, begin)
        body = bytes(held[:found.start()] if found is not None else held)
        del held[:len(body)]
        yield body.rstrip(b'\r\n')


def _ends(held: bytearray) -> bool:
    tail = held[-4:].rstrip(b'\r\n')
    return tail.endswith(EOI) and complete_jpeg(bytes(held)) is not None


def _checked(jpeg: bytes, max_pixels: int) -> Picture:
    """Return a JPEG that is complete and not too large, else what is wrong with it."""
    size = jpeg_size(jpeg) if is_jpeg(jpeg) else None
    if size is None:
        return 'bad', 0, 0, b'a part of the stream is no JPEG; set the camera to MJPEG'
    if size[0] * size[1] > max_pixels:
        return _too_large(*size)
    if not jpeg.endswith(EOI) and complete_jpeg(jpeg) is None:
        return 'bad', 0, 0, f'truncated JPEG of {len(jpeg)} bytes; check the network'.encode()
    return 'jpeg', *size, jpeg


def _too_large(width: int, height: int) -> Picture:
    return 'bad', 0, 0, (f'a picture of {width}x{height} pixels is not decoded; set the camera '
                         'to a lower resolution').encode()


def _get(address: str, timeout_s: float) -> HTTPResponse:
    """Ask an HTTP server, with user and password of the address only for its own host."""
    parsed = urlsplit(address)
    plain = parsed._replace(netloc=parsed.netloc.rpartition('@')[2]).geturl()
    logins = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    if parsed.username is not None:
        logins.add_password(None, plain, unquote(parsed.username), unquote(parsed.password or ''))
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(logins),
                                         urllib.request.HTTPDigestAuthHandler(logins))
    try:
        reply = opener.open(plain, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        raise StreamError(f'the server says {_status(error.code)}') from None
    except urllib.error.URLError as error:
        raise StreamError(_why(error.reason)) from None
    except ValueError:
        raise StreamError('the server wants a kind of login that is neither Basic nor '
                          'Digest') from None
    assert isinstance(reply, HTTPResponse)
    return reply


def _decoded(address: str, max_pixels: int) -> Iterator[Callable[[], Picture]]:
    """Yield the pictures that FFmpeg or GStreamer decodes, through OpenCV."""
    os.environ.setdefault('OPENCV_FFMPEG_CAPTURE_OPTIONS', FFMPEG_OPTIONS)
    log = os.memfd_create('log')
    os.dup2(log, 2)
    import cv2  # slow, and of no use to JPEGs
    _limit(resource.RLIMIT_DATA, _memory() + MEMORY)
    if not is_url(address):
        capture = cv2.VideoCapture(address, cv2.CAP_GSTREAMER)
    else:
        _limit(resource.RLIMIT_FSIZE, LONGEST_LOG)
        threads = getattr(cv2, 'CAP_PROP_N_THREADS', None)  # each would hold a picture back
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG,
                                   [threads, 1] if threads is not None else [])
    said = _SAID.search(os.pread(log, LONGEST_LOG, 0).decode('ascii', 'replace'))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.close(log)
    if not capture.isOpened():
        why = '' if said is None else f' ({_status(said[0])})'
        raise StreamError(f'OpenCV cannot open it{why}')
    while capture.grab():
        yield partial(_retrieve, capture, max_pixels)
    raise StreamError('the stream has ended, or cannot be decoded')


def _retrieve(capture: cv2.VideoCapture, max_pixels: int) -> Picture:
    import cv2
    width, height = (int(capture.get(p)) for p in
                     (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > max_pixels:
        return _too_large(width, height)
    ok, bgr = capture.retrieve()
    if not ok or bgr.size > 3 * max_pixels:
        return 'bad', 0, 0, b'a picture cannot be decoded; check the network'
    if bgr.ndim != 3:
        return 'bad', 0, 0, b'a picture is not BGR; put video/x-raw,format=BGR before appsink'
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return 'rgb', rgb.shape[1], rgb.shape[0], rgb.reshape(-1).data


def _limit(kind: int, most: int) -> None:
    resource.setrlimit(kind, (most, most))


def _memory() -> int:
    """Return what counts for RLIMIT_DATA already [bytes]."""
    with suppress(OSError), open('/proc/self/status', encoding='ascii') as status:
        found = re.search(r'VmData:\s+(\d+) kB', status.read())
        return int(found[1]) << 10 if found else MEMORY
    return MEMORY


def _serve(connection: Connection) -> None:
    """Send the next picture each time the node asks; drop those nobody has asked for."""
    given = json.loads(connection.recv_bytes())
    due = time.monotonic()
    for take in pictures(given['address'], given['timeout_s'], given['max_pixels']):
        if connection.poll():
            connection.recv_bytes()
            _send(connection, take())
        time.sleep(max(0.0, due - time.monotonic()))
        due = time.monotonic() + LEAST_PERIOD_S


def _send(connection: Connection, picture: Picture) -> None:
    kind, width, height, data = picture
    connection.send_bytes(json.dumps([kind, width, height]).encode())
    connection.send_bytes(data)


def _status(code: object) -> str:
    """Return the number and the usual name of a status, the server's words left out."""
    known = {str(status.value): status.phrase for status in HTTPStatus}
    return f'{code} {known.get(str(code), "")}'.strip()


def _why(error: object) -> str:
    """Return what happened, in words of this machine and not of the server."""
    if isinstance(error, HTTPException):
        return f'the server does not speak HTTP ({type(error).__name__})'
    if isinstance(error, TimeoutError):
        return 'timed out'
    return (isinstance(error, OSError) and error.strerror or type(error).__name__).lower()


def main() -> None:
    """Serve until the stream or the node ends."""
    connection = Connection(int(sys.argv[1]))
    why = ''
    try:
        _serve(connection)
    except EOFError:
        return  # the node has gone
    except StreamError as error:
        why = str(error)
    except MemoryError:
        why = f'it takes more than {MEMORY >> 20} MB; set the camera to a lower resolution'
    except Exception as error:
        why = _why(error)
    with suppress(OSError):
        _send(connection, ('end', 0, 0, why.encode()))


if __name__ == '__main__':
    main()
