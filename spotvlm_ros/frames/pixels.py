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
"""Encodings of pixels: those of sensor_msgs/Image, of rclpy and rosbags alike, JPEG and PNG."""

from __future__ import annotations

import array
import io
import re
import struct
from typing import Protocol
import warnings

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
import simplejpeg

from .jpeg import complete_jpeg, EOI, is_jpeg, jpeg_size

Image = npt.NDArray[np.uint8]  # height x width x 3, RGB

warnings.filterwarnings('ignore', category=PilImage.DecompressionBombWarning)  # ours is lower
# What Pillow raises for what it cannot read.
NOT_READ = (OSError, ValueError, SyntaxError, struct.error, OverflowError,
            PilImage.DecompressionBombError)
MAX_PIXELS = 1 << 25  # 8K and no more: a PNG of 389 kB can claim 20,000 x 20,000 and take 4.6 GB
LARGE = 1 << 24  # bytes of pixels, 5.6 megapixels: of these as few as possible are kept
_READ_RGB = getattr(cv2, 'IMREAD_COLOR_RGB', None)  # since OpenCV 4.11; Ubuntu 24.04 has 4.6

# encoding -> (bytes per channel, channels, OpenCV conversion to RGB or None)
ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    'rgb8': (1, 3, None), '8UC3': (1, 3, cv2.COLOR_BGR2RGB), 'bgr8': (1, 3, cv2.COLOR_BGR2RGB),
    'rgba8': (1, 4, cv2.COLOR_RGBA2RGB), 'bgra8': (1, 4, cv2.COLOR_BGRA2RGB),
    '8UC4': (1, 4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, 1, cv2.COLOR_GRAY2RGB), '8UC1': (1, 1, cv2.COLOR_GRAY2RGB),
    'rgb16': (2, 3, None), 'bgr16': (2, 3, cv2.COLOR_BGR2RGB),
    'rgba16': (2, 4, cv2.COLOR_RGBA2RGB), 'bgra16': (2, 4, cv2.COLOR_BGRA2RGB),
    'mono16': (2, 1, cv2.COLOR_GRAY2RGB),
    'yuv422': (1, 2, cv2.COLOR_YUV2RGB_UYVY), 'uyvy': (1, 2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422_yuy2': (1, 2, cv2.COLOR_YUV2RGB_YUY2), 'yuyv': (1, 2, cv2.COLOR_YUV2RGB_YUY2),
    # OpenCV names a Bayer pattern by its second row and column, ROS by the first.
    'bayer_rggb8': (1, 1, cv2.COLOR_BayerBG2RGB), 'bayer_bggr8': (1, 1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg8': (1, 1, cv2.COLOR_BayerGR2RGB), 'bayer_grbg8': (1, 1, cv2.COLOR_BayerGB2RGB),
}
ENCODINGS |= {name[:-1] + '16': (2, 1, conversion) for name, (_, _, conversion)
              in ENCODINGS.items() if name.startswith('bayer')}
DEPTH = ('16UC1', '32FC1')  # encodings of depth images (REP-118)

# What libjpeg warns of (jerror.h), to fill up with grey or go on elsewhere in the picture.
# Many webcams leave some bytes before the end mark; a hole leaves many, or some before others.
_HOLES = re.compile(
    'remature end of|bad Huffman code|bad arithmetic code|instead of RST|before marker 0xd[0-7]'
    r'|(?:[1-9]\d{2,}|6[5-9]|[7-9]\d) extraneous bytes')
_EXIF, _EXIF_WITHIN = b'Exif\0', 1 << 16  # where an orientation may stand


class FrameError(ValueError):
    """A frame that cannot be decoded or encoded; the message names the cause and the remedy."""


class ImageMessage(Protocol):
    """The fields of a sensor_msgs/Image that tell its pixels."""

    encoding: str
    width: int
    height: int
    step: int          # bytes per row
    is_bigendian: int
    data: bytes | array.array[int] | npt.NDArray[np.uint8]


def check_image(message: ImageMessage) -> None:
    """Raise FrameError unless encoding, step and size of an image agree; costs nothing."""
    encoding = ENCODINGS.get(message.encoding)
    if message.encoding in DEPTH:
        raise FrameError(f'encoding {message.encoding} is depth (REP-118), not a picture; give '
                         'the topic of the colour image')
    if encoding is None:
        raise FrameError(f'encoding {message.encoding!r} is not supported; publish one of '
                         f'{", ".join(ENCODINGS)}')
    width, height, step = message.width, message.height, message.step
    if not width or not height:
        raise FrameError(f'image of {width}x{height} pixels')
    row = width * encoding[0] * encoding[1]
    if step < row:
        raise FrameError(f'step is {step} bytes, a row of {width} pixels of {message.encoding} '
                         f'needs {row}')
    if len(message.data) < step * height:
        raise FrameError(f'{len(message.data)} bytes of data, step times height is '
                         f'{step * height}; the image is cut off')


def image_to_rgb(message: ImageMessage) -> Image:
    """
    Return the pixels as height x width x 3, RGB; a view of the data for rgb8.

    Raise FrameError for what `check_image` refuses and OpenCV cannot convert.
    """
    check_image(message)
    size, channels, conversion = ENCODINGS[message.encoding]
    width, height, step = message.width, message.height, message.step
    raw = np.frombuffer(message.data, np.uint8, count=step * height).reshape(height, step)
    raw = raw[:, :width * size * channels]
    if size == 2:
        order = '>u2' if message.is_bigendian else '<u2'
        wide = np.ascontiguousarray(raw).view(order)
        raw = (wide >> _unused_bits(wide)).astype(np.uint8)
    pixels = raw.reshape(height, width, channels) if raw.flags.c_contiguous else \
        np.lib.stride_tricks.as_strided(raw, (height, width, channels),
                                        (raw.strides[0], channels, 1))
    if conversion is None:
        return pixels
    try:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), conversion), np.uint8)
    except cv2.error as error:
        raise FrameError(f'{width}x{height} {message.encoding} cannot be converted: '
                         f'{error.err}') from error


def _unused_bits(wide: npt.NDArray[np.uint16]) -> int:
    """
    Return by how much 16-bit values are shifted to make 8 bits of them.

    Cameras put 10, 12 or 14 bits into the low ones of 16 and say so nowhere.
    """
    most = int(wide.max(initial=0))
    return next(bits - 8 for bits in (10, 12, 14, 16) if most < 1 << bits)


def fast_bytes(pixels: npt.NDArray[np.uint8]) -> array.array[int]:
    """
    Return data for a uint8[] field.

    rclpy checks any other type element by element: 503 ms instead of 0.17 ms for 1080p.
    """
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(pixels).data)
    return data


def decode_image(data: bytes) -> Image | None:
    """
    Decode JPEG, PNG or what else OpenCV can; None where it cannot. The end may be missing.

    Raise FrameError for a picture of more than MAX_PIXELS, which is not decoded.
    """
    header = _header(data)
    if header is None:
        return None
    width, height, grey = header
    if width * height > MAX_PIXELS:
        raise FrameError(f'an image of {width}x{height} pixels is not decoded; publish at most '
                         f'{MAX_PIXELS >> 20} megapixels')
    # OpenCV takes twice the memory of what it returns: a third of that where it may stay grey.
    flags = cv2.IMREAD_GRAYSCALE if grey else _READ_RGB or cv2.IMREAD_COLOR
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    if pixels is not None and pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    elif pixels is not None and _READ_RGB is None:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return None if pixels is None else np.asarray(pixels, np.uint8)


def _header(data: bytes) -> tuple[int, int, bool] | None:
    """Return width, height, and whether a PNG is grey, by the header; None for what is none."""
    if is_jpeg(data):
        size = jpeg_size(data)
        return None if size is None else (*size, False)
    try:
        with PilImage.open(io.BytesIO(data)) as image:
            return (*image.size, image.format == 'PNG' and image.mode in ('1', 'L'))
    except PilImage.DecompressionBombError as error:
        raise FrameError(f'an image is not decoded: {error}; publish at most {MAX_PIXELS >> 20} '
                         'megapixels') from error
    except NOT_READ:
        return None


def decode_compressed(data: bytes) -> Image:
    """
    Decode the data of a sensor_msgs/CompressedImage.

    Raise FrameError for what is no image; a JPEG that was cut off or has holes is none, not a
    picture that is grey or shifted from there on.
    """
    rgb = _decode_jpeg(data) if is_jpeg(data) else None
    if rgb is None:
        rgb = decode_image(data)
    if rgb is None:
        raise FrameError(f'{len(data)} bytes are no image that OpenCV can decode; publish JPEG '
                         'or PNG')
    return rgb


def check_jpeg(data: bytes) -> None:
    """Raise FrameError for a JPEG that was cut off or has holes."""
    _decode_jpeg(data)


def _decode_jpeg(data: bytes) -> Image | None:
    """
    Return an upright JPEG in colour or grey as OpenCV would, to the bit, but heed libjpeg.

    None for all else that may be a picture: OpenCV knows more kinds, and turns them upright.
    Raise FrameError for what was cut off or has holes.
    """
    if not data.endswith(EOI) and complete_jpeg(data) is None:
        raise FrameError(f'truncated JPEG of {len(data)} bytes; check the transport and its '
                         'packet loss')
    size = jpeg_size(data)
    if size is None or size[0] * size[1] > MAX_PIXELS:
        return None
    try:
        rgb = simplejpeg.decode_jpeg(data, 'RGB', strict=True)
        colours = simplejpeg.decode_jpeg_header(data)[2]
    except ValueError as error:
        if _HOLES.search(str(error)):
            raise FrameError(f'JPEG with a hole ({error}); check the transport and its packet '
                             'loss') from error
        return None  # such as stray bytes between segments, which many webcams write
    plain = colours in ('YCbCr', 'Gray') and _EXIF not in data[:_EXIF_WITHIN]
    return np.asarray(rgb, np.uint8) if plain else None


def encode_jpeg(rgb: Image, quality: int = 85) -> bytes:
    """Return the JPEG of a frame; ``quality`` is 0 to 100. Raise FrameError."""
    if rgb.nbytes > LARGE:  # OpenCV would need a copy; for small ones the benchmark has its bytes
        try:
            return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), max(1, quality), 'RGB',
                                                '420', fastdct=False))
        except ValueError as error:
            raise FrameError(f'a frame of shape {rgb.shape} cannot be a JPEG: {error}') from error
    ok, data = cv2.imencode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR),
                            [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise FrameError(f'OpenCV cannot encode a frame of shape {rgb.shape} as JPEG')
    return data.tobytes()


def encode_png(rgb: Image) -> bytes:
    """Return the PNG of a frame, compressed little for speed. Raise FrameError."""
    ok, data = cv2.imencode('.png', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR),
                            [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not ok:
        raise FrameError(f'OpenCV cannot encode a frame of shape {rgb.shape} as PNG')
    return data.tobytes()
