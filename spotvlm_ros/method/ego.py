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
How the camera turned between two frames, by what the robot knows of its own motion.

A turn moves each pixel, whatever its depth, by the homography K R K^-1 (Hartley and Zisserman,
Multiple View Geometry, 2nd ed., 8.4.2). What moving along adds depends on depth: that is left to
flow. Axes are those of REP 103: optical frames look along z, x is right and y down; bodies look
along x, y is left and z up. A rotation turns directions of a frame into those of a fixed one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from .facts import NS, Region

Matrix = npt.NDArray[np.float64]      # 3 x 3
Points = npt.NDArray[np.float32]      # n x 2 [pixels]
GAP_S = 0.5           # rotations this far apart are not interpolated
AHEAD_S = 0.1         # the newest two are extrapolated this far, at most
STEADY_S = 0.05       # of which time the rate of turning is taken for that
KEPT = 1024           # rotations
UNIT = 0.01           # a quaternion may be this far from length 1
BEND = 0.02           # of the width: what a lens may bend a picture and still count as straight
BODY_FROM_OPTICAL: Matrix = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True)
class Lens:
    """A camera without distortion: ``matrix`` makes pixels of directions."""

    matrix: Matrix
    width: int       # of the pictures it is about [pixels]
    height: int

    def turn(self, before: Matrix, after: Matrix, size: tuple[int, int]) -> Matrix:
        """
        Return the homography that moves pixels when the camera turns from one rotation to another.

        ``size``: width and height of the frames. ValueError where they are cut or stretched.
        """
        scale = size[0] / self.width
        if abs(size[1] - scale * self.height) > 1.0 + 0.01 * size[1]:
            raise ValueError(f'frames are {size[0]}x{size[1]}, and camera_info is about '
                             f'{self.width}x{self.height}; publish the one that belongs to them')
        relative = np.asarray(after, np.float64).T @ before
        return rescaled(self.matrix @ relative @ np.linalg.inv(self.matrix), scale)


def pinhole(values: Sequence[float], width: int, height: int) -> Lens:
    """Return the lens of a 3 x 3 camera matrix, row by row; ValueError where it is none."""
    matrix = np.array(values, np.float64).reshape(3, 3)
    fx, fy = matrix[0, 0], matrix[1, 1]
    if not (np.isfinite(matrix).all() and min(fx, fy, width, height) > 0
            and 0.05 * width < fx < 1e3 * width):
        raise ValueError(f'focal length {fx:g}, {fy:g} and size {width}x{height} are no '
                         'calibration; calibrate the camera')
    middle = matrix[:2, 2] / (width, height)
    if np.abs(middle - 0.5).max() > 1.0 or not 0.1 < fx / fy < 10.0 or \
            np.abs(matrix[[1, 2, 2, 2], [0, 0, 1, 2]] - (0, 0, 0, 1)).max() > 1e-6:
        raise ValueError('matrix does not fit the size of the pictures; calibrate the camera')
    return Lens(matrix, width, height)


def bend(lens: Lens, distortion: Sequence[float]) -> float:
    """Return how far the lens bends the edge of a picture, as a part of its width."""
    if not np.any(np.asarray(distortion, np.float64)):
        return 0.0
    w, h = lens.width, lens.height
    edge = np.array([(x, y, 1.0) for x in (0, w / 2, w) for y in (0, h / 2, h)], np.float64)
    rays = edge @ np.linalg.inv(lens.matrix).T
    seen, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), lens.matrix,
                                np.array(distortion, np.float64))
    off = np.abs(seen.reshape(-1, 2) - edge[:, :2]).max()
    return float(off / w) if np.isfinite(off) else float('inf')


def rotation(x: float, y: float, z: float, w: float) -> Matrix:
    """Return the rotation of a quaternion; ValueError where it is none of length 1."""
    q = np.array((x, y, z, w), np.float64)
    length = float(np.sqrt((q * q).sum()))
    if not abs(length - 1.0) <= UNIT:  # not so with NaN
        raise ValueError(f'quaternion has length {length:.3g}, not 1')
    x, y, z, w = (float(v) for v in q / length)
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])


def rotation_of_angles(roll: float, pitch: float, yaw: float) -> Matrix:
    """Return the rotation of fixed-axis angles about x, y and z, in this order [rad]."""
    about = [np.asarray(cv2.Rodrigues(np.array(axis, np.float64))[0])
             for axis in ((roll, 0, 0), (0, pitch, 0), (0, 0, yaw))]
    return np.asarray(about[2] @ about[1] @ about[0], np.float64)


class Rotations:
    """How the camera was turned lately, by stamp. Not thread-safe."""

    def __init__(self) -> None:
        """Know none."""
        self._known: deque[tuple[int, Matrix]] = deque(maxlen=KEPT)

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def add(self, stamp_ns: int, matrix: Matrix) -> bool:
        """Take the next; return False, and do nothing, where it is not newer than the last."""
        if self._known and stamp_ns <= self._known[-1][0]:
            return False
        self._known.append((stamp_ns, matrix))
        return True

    @property
    def newest_ns(self) -> int:
        """Return the stamp of the newest; 0 without one."""
        return self._known[-1][0] if self._known else 0

    def at(self, stamp_ns: int) -> Matrix | None:
        """Return the rotation at a moment, None where those known do not tell."""
        known, last = self._known, len(self._known) - 1
        after = last + 1
        while after and known[after - 1][0] >= stamp_ns:  # it is near the end
            after -= 1
        if after > last:
            if last < 0 or stamp_ns - known[last][0] > AHEAD_S * NS:
                return None
            before, after = after - 1, last
            while before and known[last][0] - known[before][0] < STEADY_S * NS:
                before -= 1
        else:
            before = after - 1
        (a_ns, a), (b_ns, b) = known[max(0, before)], known[after]
        if b_ns == stamp_ns:
            return b
        if before < 0 or not 0 < b_ns - a_ns <= GAP_S * NS:
            return None
        axis = cv2.Rodrigues(a.T @ b)[0] * ((stamp_ns - a_ns) / (b_ns - a_ns))
        return np.asarray(a @ cv2.Rodrigues(axis)[0], np.float64)


def rescaled(turn: Matrix, scale: float) -> Matrix:
    """Return a homography for pictures ``scale`` times as wide and high."""
    return np.asarray(turn * [[1, 1, scale], [1, 1, scale], [1 / scale, 1 / scale, 1]], np.float64)


def farthest_move(turn: Matrix, shape: Sequence[int]) -> float:
    """Return how far a homography moves a corner of a picture (height, width) [pixels]."""
    height, width = shape[:2]
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)], np.float32)
    return float(np.abs(turned_points(corners, turn) - corners).max())


def turned_points(points: Points, turn: Matrix) -> Points:
    """Return where a homography moves points."""
    if not len(points):
        return points
    moved = cv2.perspectiveTransform(points.reshape(-1, 1, 2).astype(np.float64), turn)
    return np.asarray(moved.reshape(-1, 2), np.float32)


def turned_region(region: Region, turn: Matrix) -> Region | None:
    """Return where a homography moves a box, upright again; None: behind the camera."""
    corners = np.array([(region.x, region.y, 1.0), (region.x + region.w, region.y, 1.0),
                        (region.x + region.w, region.y + region.h, 1.0),
                        (region.x, region.y + region.h, 1.0)]) @ turn.T
    if corners[:, 2].min() <= 1e-3:
        return None
    p = corners[:, :2] / corners[:, 2:]
    x, y = p.mean(axis=0)
    along, down = (p[1] + p[2] - p[0] - p[3]) / 2, (p[2] + p[3] - p[0] - p[1]) / 2
    # Not the box around it all, which would grow with each step of a camera that rolls.
    w, h = (float(np.hypot(along[k], down[k])) for k in (0, 1))
    return Region(float(x - w / 2), float(y - h / 2), w, h)
