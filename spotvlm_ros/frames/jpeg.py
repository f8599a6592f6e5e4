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
Where a JPEG ends, and a JPEG without what its camera wrote about itself; nothing is decoded.

A decoder stops at the end mark, whatever follows: padding (espressif/esp32-camera#162), a video
(motion photos, libjxl/libjxl#3502). What lacks the mark was cut off.
"""

from __future__ import annotations

from collections.abc import Iterator

SOI, EOI = b'\xff\xd8', b'\xff\xd9'
_SOS, _COM = 0xda, 0xfe
_BARE = frozenset({0x01, *range(0xd0, 0xd9)})  # markers without a length (ITU-T T.81, table B.1)
_NO_FRAME = frozenset({0xc4, 0xc8, 0xcc})  # of the markers 0xc0 to 0xcf
# Segments that a decoder needs: JFIF, the colour profile, Adobe's mark of the colour transform.
_KEPT_APPS = frozenset({0xe0, 0xe2, 0xee})


def is_jpeg(data: bytes) -> bool:
    """Return whether data begins as a JPEG does."""
    return data[:2] == SOI


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG [pixels] as its header says, None without one."""
    for marker, begin, _ in _segments(data):
        if 0xc0 <= marker <= 0xcf and marker not in _NO_FRAME:
            height, width = data[begin + 5:begin + 7], data[begin + 7:begin + 9]
            return int.from_bytes(width, 'big'), int.from_bytes(height, 'big')
        if marker == _SOS:
            break
    return None


def complete_jpeg(data: bytes) -> bytes | None:
    """Return a JPEG up to its end mark, None where it has none; 2 ms for a megabyte."""
    end = next((after for marker, _, after in _segments(data) if marker == 0xd9), 0)
    return (data[:end] if end < len(data) else data) if end else None


def without_metadata(data: bytes) -> bytes:
    """
    Return a complete JPEG less EXIF, XMP, IPTC, maker notes and comments; the picture is the same.

    They may tell position and serial number of the camera.
    """
    kept = [SOI]
    for marker, begin, after in _segments(data):
        dropped = marker == _COM or (0xe0 <= marker <= 0xef and marker not in _KEPT_APPS)
        if not dropped:
            kept.append(data[begin:after])
        if marker == 0xd9:
            break
    stripped = b''.join(kept)
    return stripped if len(stripped) < len(data) else data


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, begin and end of each segment; a scan's compressed data belongs to its own."""
    at, size = 2, len(data)
    while at + 2 <= size:
        if data[at] != 0xff:
            return  # no segment begins here: damaged
        if data[at + 1] == 0xff:
            at += 1  # fill bytes
            continue
        marker, begin = data[at + 1], at
        if marker in _BARE or marker == 0xd9:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2:at + 4], 'big')
        if at > size:
            return
        if marker == _SOS:
            at = _scan_end(data, at)
            if at < 0:
                return
        yield marker, begin, at


def _scan_end(data: bytes, at: int) -> int:
    """Return where compressed data ends: at a marker that is no stuffing and no restart; or -1."""
    while True:
        at = data.find(b'\xff', at)
        if at < 0 or at + 1 >= len(data):
            return -1
        after = data[at + 1]
        if after != 0 and not 0xd0 <= after <= 0xd7 and after != 0xff:
            return at
        at += 1 if after == 0xff else 2
