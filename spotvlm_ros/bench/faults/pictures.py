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
"""Pictures that are none, claim to be huge or are, and folders and bags with them among others."""

from __future__ import annotations

from collections.abc import Sequence
import os
from pathlib import Path
from random import Random
import struct
import zlib

import cv2

from ...frames.pixels import encode_jpeg, Image
from ...mini.worlds import make_world

HUGE = 20_000         # pixels a side: 1.2 GB as RGB
BAG_HZ = 12.0
SECONDS = 4           # length of a folder or bag, shown again and again


def frames(count: int) -> list[Image]:
    """Return frames of the miniature world, 640x480."""
    world = make_world('driving', 1)
    return [cv2.resize(world.frame(4 * i), (640, 480)) for i in range(count)]


def clip(folder: str) -> str:
    """
    Write a few seconds of the miniature world, to be shown again and again.

    The world itself keeps scenery that it has drawn, which would hide what a node keeps.
    """
    path = str(Path(folder) / 'clip.avi')
    video = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*'MJPG'), 12.0, (640, 480))
    for pixels in frames(60):
        video.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    video.release()
    return path


def png(side: int) -> bytes:
    """Return a black square of one bit a pixel, a few kilobytes whatever its size."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (struct.pack('>I', len(data)) + kind + data
                + struct.pack('>I', zlib.crc32(kind + data)))
    row, packed = bytes(1 + (side + 7) // 8), zlib.compressobj(9)
    data = b''.join([packed.compress(row * 100) for _ in range(side // 100)])
    header = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
            + chunk(b'IDAT', data + packed.flush()) + chunk(b'IEND', b''))


def bombs() -> dict[str, bytes]:
    """Return pictures by the suffix that a file of them has, and a name before it."""
    small = frames(1)[0]
    jpeg = encode_jpeg(small)
    sizes = jpeg.find(b'\xff\xc0') + 5
    side = struct.pack('<ii', HUGE, HUGE)
    tags = [(256, 60_000), (257, 60_000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1),
            (278, 60_000), (279, 2**32 - 1)]
    return {
        'huge.png': png(HUGE),
        'header.jpg': jpeg[:sizes] + b'\xff\xdc\xff\xdc' + jpeg[sizes + 4:],
        'cut.jpg': jpeg[:len(jpeg) // 2], 'follows.jpg': jpeg + bytes(300_000),
        'holes.jpg': jpeg[:3000] + bytes(500) + jpeg[3500:],
        'header.bmp': b'BM' + bytes(8) + struct.pack('<II', 54, 40) + side
                      + struct.pack('<HH', 1, 24) + bytes(24),
        'header.webp': b'RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0\x2f' + b'\xff' * 4 + bytes(12),
        'header.tiff': b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + b''.join(
            struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags) + bytes(4),
        'header.ppm': b'P6\n60000 60000\n255\n' + bytes(99),
        'header.gif': b'GIF89a' + b'\xff' * 4 + bytes(40),
        'header.jp2': bytes.fromhex('0000000c6a5020200d0a870a') + bytes(60),
        'empty.jpg': b'', 'text.png': b'This is no picture.\n' * 99,
        'noise.jpg': b'\xff\xd8' + Random(1).randbytes(200_000), 'other.jpg': png(500)}


class Folder:
    """A folder of images, and bad ones that come and go."""

    def __init__(self, path: Path) -> None:
        """Fill it with good ones."""
        self.path = path
        self._bombs = bombs()
        path.mkdir()
        for i, pixels in enumerate(frames(round(SECONDS * BAG_HZ))):
            (path / f'{i}.jpg').write_bytes(encode_jpeg(pixels))

    def spoil(self) -> int:
        """Add the bad ones, each twice; return how many there are."""
        for copy in range(2):
            for i, (name, data) in enumerate(self._bombs.items()):
                (self.path / f'{20 * copy + i}_{name}').write_bytes(data)
        return 2 * len(self._bombs)

    def mend(self) -> None:
        """Take them away."""
        for file in self.path.glob('*_*'):
            file.unlink()


class Bag:
    """A path where now a good bag is, now one with bad images among the others."""

    def __init__(self, path: Path) -> None:
        """Write both."""
        self.path = path
        self._bombs = list(bombs().values())
        good = [encode_jpeg(pixels) for pixels in frames(round(SECONDS * BAG_HZ))]
        write_bag(path.with_name('good'), good)
        mixed = list(good)
        for i, data in enumerate(self._bombs * 2):
            mixed.insert(3 * i, data)
        write_bag(path.with_name('bad'), mixed)
        self.mend()

    def spoil(self) -> int:
        """Show the bad one from its next beginning on; return how many bad images it has."""
        self._show('bad')
        return 2 * len(self._bombs)

    def mend(self) -> None:
        """Show the good one."""
        self._show('good')

    def _show(self, name: str) -> None:
        link = self.path.with_name('next')
        link.symlink_to(name)
        os.replace(link, self.path)


def write_bag(path: Path, images: Sequence[bytes]) -> None:
    """Write compressed images as a rosbag2, BAG_HZ of them a second."""
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import get_typestore, Stores
    import numpy as np
    types = get_typestore(Stores.ROS2_KILTED)
    kind, header, time = (types.types[f'{name}'] for name in (
        'sensor_msgs/msg/CompressedImage', 'std_msgs/msg/Header', 'builtin_interfaces/msg/Time'))
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topic = writer.add_connection('/image/compressed', kind.__msgtype__, typestore=types)
        for i, data in enumerate(images):
            ns = round((1 + i / BAG_HZ) * 1e9)
            message = kind(header(time(*divmod(ns, 10**9)), 'camera'), 'jpeg',
                           np.frombuffer(data, np.uint8))
            writer.write(topic, ns, types.serialize_cdr(message, kind.__msgtype__))
