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
"""Cameras on a network, as servers of this process: MJPEG over HTTP, JPEG over RTSP."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
import itertools
import re
import socket
import struct
import threading
import time

import cv2
import numpy as np

LOGIN = 'admin', 'hunter2-secret'
MULTIPART = (b'HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=--frame'
             b'\r\n\r\n')
Behaviour = Callable[[socket.socket, bytes], None]


def jpeg(level: int = 90, width: int = 64, height: int = 48) -> bytes:
    """Return a picture of one grey level."""
    return cv2.imencode('.jpg', np.full((height, width, 3), level, np.uint8))[1].tobytes()


def claiming(width: int, height: int) -> bytes:
    """Return a small JPEG whose header says another size."""
    small = jpeg()
    at = small.index(b'\xff\xc0') + 5
    return small[:at] + struct.pack('>HH', height, width) + small[at + 4:]


def part(body: bytes, length: bool = True) -> bytes:
    """Return a picture as a part of a multipart stream."""
    stated = b'Content-Length: %d\r\n' % len(body) if length else b''
    return b'--frame\r\nContent-Type: image/jpeg\r\n' + stated + b'\r\n' + body + b'\r\n'


class CameraServer:
    """Listens until it is closed; ``behave`` is given each connection and what it asked."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.connections = 0
        self._open: list[socket.socket] = []
        self._socket = socket.create_server(('127.0.0.1', 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CameraServer:
        return self

    def __exit__(self, *args: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends accept(), which would go on listening
        self._socket.close()
        self.hang_up()

    def hang_up(self) -> None:
        """End all connections."""
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self.behave(connection, request(connection))


def request(connection: socket.socket) -> bytes:
    """Return the next request, or b'' at the end."""
    asked = b''
    while b'\r\n\r\n' not in asked:
        more = connection.recv(1)
        if not more:
            return b''
        asked += more
    return asked


def mjpeg(connection: socket.socket, asked: bytes, period_s: float = 0.02,
          length: bool = True) -> None:
    """Send grey pictures until nobody listens."""
    connection.sendall(MULTIPART)
    for number in itertools.count():
        connection.sendall(part(jpeg(number % 200), length))
        time.sleep(period_s)


def with_login(behave: Behaviour) -> Behaviour:
    """Return a behaviour that wants LOGIN."""
    wanted = base64.b64encode(':'.join(LOGIN).encode())

    def check(connection: socket.socket, asked: bytes) -> None:
        while asked and b'Basic ' + wanted not in asked:
            kind = re.search(rb'(HTTP|RTSP)/1.\d', asked)[0]
            number = re.search(rb'CSeq: \d+', asked)
            connection.sendall(kind + b' 401 Unauthorized\r\nWWW-Authenticate: Basic realm="eye"'
                               b'\r\nContent-Length: 0\r\n' +
                               (number[0] + b'\r\n' if number else b'') + b'\r\n')
            if kind.startswith(b'HTTP'):
                return
            asked = request(connection)
        if asked:
            behave(connection, asked)
    return check


def rtsp(connection: socket.socket, asked: bytes, period_s: float = 0.04) -> None:
    """Speak RTSP (RFC 2326) and send JPEG over RTP (RFC 2435) through the same connection."""
    port = connection.getsockname()[1]
    sdp = (b'v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=eye\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n'
           b'm=video 0 RTP/AVP 26\r\na=control:track0\r\n')
    more = {
        b'OPTIONS': b'Public: OPTIONS, DESCRIBE, SETUP, PLAY\r\n\r\n',
        b'DESCRIBE': b'Content-Base: rtsp://127.0.0.1:%d/\r\nContent-Type: application/sdp\r\n'
                     b'Content-Length: %d\r\n\r\n%b' % (port, len(sdp), sdp),
        b'SETUP': b'Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n',
        b'PLAY': b'Session: 1\r\nRange: npt=0.000-\r\n\r\n'}
    while asked:
        verb = asked.partition(b' ')[0]
        number = re.search(rb'CSeq: \d+', asked)[0]
        connection.sendall(b'RTSP/1.0 200 OK\r\n' + number + b'\r\n' + more.get(verb, b'\r\n'))
        if verb == b'PLAY':
            break
        asked = request(connection)
    sequence = itertools.count()
    for number in itertools.count() if asked else ():
        for last, payload in _rtp_jpeg(jpeg(number % 200)):
            packet = struct.pack('>BBHII', 0x80, 26 | 0x80 * last, next(sequence) & 0xffff,
                                 3600 * number, 1) + payload
            connection.sendall(b'$\0' + struct.pack('>H', len(packet)) + packet)
        time.sleep(period_s)


def _rtp_jpeg(data: bytes) -> list[tuple[bool, bytes]]:
    """Return the payloads of a baseline 4:2:0 JPEG, and which is the last."""
    at, tables, width, height = 2, b'', 0, 0
    while data[at + 1] != 0xda:
        length = struct.unpack('>H', data[at + 2:at + 4])[0]
        if data[at + 1] == 0xdb:
            tables += data[at + 5:at + 2 + length]
        if data[at + 1] == 0xc0:
            height, width = struct.unpack('>HH', data[at + 5:at + 9])
        at += 2 + length
    scan = data[at + 2 + struct.unpack('>H', data[at + 2:at + 4])[0]:-2]
    assert len(tables) == 128
    payloads = []
    for offset in range(0, len(scan), 1000):
        header = struct.pack('>IBBBB', offset, 1, 255, width // 8, height // 8)
        if not offset:
            header += struct.pack('>BBH', 0, 0, len(tables)) + tables
        payloads.append((offset + 1000 >= len(scan), header + scan[offset:offset + 1000]))
    return payloads
