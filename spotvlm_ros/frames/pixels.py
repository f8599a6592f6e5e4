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
Pixels of sensor_msgs/Image to RGB and back, for messages of rclpy and of rosbags alike.

cv_bridge is not used: its compiled part breaks with NumPy 2, and this is faster than its copies.
"""

from __future__ import annotations

import array
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .frame import FrameError, Image

# encoding -> (bytes per channel, channels, OpenCV conversion to RGB or None)
ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    'rgb8': (1, 3, None), '8UC3': (1, 3, cv2.COLOR_BGR2RGB), 'bgr8': (1, 3, cv2.COLOR_BGR2RGB),
    'rgba8': (1, 4, cv2.COLOR_RGBA2RGB), 'bgra8': (1, 4, cv2.COLOR_BGRA2RGB),
    '8UC4': (1, 4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, 1, cv2.COLOR_GRAY2RGB), '8UC1': (1, 1, cv2.COLOR_GRAY2RGB),
    'rgb16': (2, 3, None), 'bgr16': (2, 3, cv2.COLOR_BGR2RGB),
    'rgba16': (2, 4, cv2.COLOR_RGBA2RGB), 'bgra16': (2, 4, cv2.COLOR_BGRA2RGB),
    'mono16': (2, 1, cv2.COLOR_GRAY2RGB), '16UC1': (2, 1, cv2.COLOR_GRAY2RGB),
    'yuv422': (1, 2, cv2.COLOR_YUV2RGB_UYVY), 'uyvy': (1, 2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422_yuy2': (1, 2, cv2.COLOR_YUV2RGB_YUY2), 'yuyv': (1, 2, cv2.COLOR_YUV2RGB_YUY2),
    # OpenCV names a Bayer pattern by its second row and column, ROS by the first.
    'bayer_rggb8': (1, 1, cv2.COLOR_BayerBG2RGB), 'bayer_bggr8': (1, 1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg8': (1, 1, cv2.COLOR_BayerGR2RGB), 'bayer_grbg8': (1, 1, cv2.COLOR_BayerGB2RGB),
}


def check_image(message: Any) -> None:
    """Raise FrameError unless encoding, step and size of an Image agree; costs nothing."""
    known = ENCODINGS.get(message.encoding)
    if known is None:
        raise FrameError(f'encoding {message.encoding!r} is not supported; publish one of '
                         f'{", ".join(ENCODINGS)}')
    width, height, step = message.width, message.height, message.step
    if not width or not height:
        raise FrameError(f'image of {width}x{height} pixels')
    if step < width * known[0] * known[1]:
        raise FrameError(f'step is {step} bytes, a row of {width} pixels of {message.encoding} '
                         f'needs {width * known[0] * known[1]}')
    if len(message.data) < step * height:
        raise FrameError(f'{len(message.data)} bytes of data, step times height is '
                         f'{step * height}; the image is cut off')


def image_to_rgb(message: Any) -> Image:
    """Return the pixels as height x width x 3, RGB; a view of the data for rgb8."""
    check_image(message)
    size, channels, conversion = ENCODINGS[message.encoding]
    width, height, step = message.width, message.height, message.step
    raw = np.frombuffer(message.data, np.uint8, count=step * height).reshape(height, step)
    raw = raw[:, :width * size * channels]
    if size == 2:
        order = '>u2' if message.is_bigendian else '<u2'
        wide = np.ascontiguousarray(raw).view(order)
        raw = (wide >> 8).astype(np.uint8)
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


def fast_bytes(pixels: npt.NDArray[np.uint8]) -> array.array[int]:
    """
    Return data for a uint8[] field.

    rclpy checks any other type element by element: 503 ms instead of 0.17 ms for 1080p.
    """
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(pixels).data)
    return data
