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
What node context learns of the camera's own motion: camera_info, and odometry or tf.

Nothing is waited for: a frame whose turn is not known by then is carried by optical flow alone,
and that is counted. What cannot be right is refused message by message, and counted.
"""

from __future__ import annotations

import math
import threading
from typing import Protocol

from nav_msgs.msg import Odometry
import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo

from .base import SpotNode
from .convert import stamp_ns
from ..config.nodes import ContextNodeConfig
from ..config.spec import ParameterError
from ..frames.frame import Frame
from ..frames.stamps import RESTART_S
from ..method.ego import (BEND, bend, BODY_FROM_OPTICAL, Lens, Matrix, pinhole, rotation,
                          rotation_of_angles, Rotations, STEADY_S)
from ..method.facts import NS

# Best effort goes with publishers of both kinds; these are small and are not lost on one host.
SMALL = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
STRAIGHT = ('', 'plumb_bob', 'rational_polynomial')  # distortion models that may bend nothing
COEFFICIENTS = (0, 4, 5, 8, 12, 14)                  # so many has one that OpenCV knows
RECTIFY = 'rectify the images (image_proc), remap image to them and set ego_rectified'


class Host(Protocol):
    """Who has the parameters, and counts what is refused: node context, as a rule."""

    @property
    def config(self) -> ContextNodeConfig:
        """Return the parameters."""

    def count_problem(self, kind: str, text: str) -> None:
        """Count something that went wrong."""

    def resolve_topic_name(self, topic: str) -> str:
        """Return the whole name of a topic."""


class Turns(Protocol):
    """Knows how cameras are turned. ValueError says why it does not, with the remedy."""

    def start(self, node: SpotNode[ContextNodeConfig]) -> None:
        """Listen until the node is deactivated."""

    def clear(self) -> None:
        """Forget all: time has jumped."""

    def at(self, frame_id: str, stamp_ns: int) -> Matrix:
        """Return how the optical frame of this name is turned at a moment."""


class EgoMotion:
    """
    Tells how a camera turned from frame to frame.

    Messages are taken on the thread of the executor, `turn` is called on that of the flow.
    """

    def __init__(self, host: Host, turns: Turns | None = None) -> None:
        """Raise ParameterError where that cannot be known as the parameters say."""
        self.known = 0  # turns
        self._host = host
        self._lenses: dict[str, tuple[str, Lens]] = {}  # by camera, with its frame
        self._turns = turns or (TfTurns(host.config) if host.config.ego_motion == 'tf' else
                                OdometryTurns(host))

    def start(self, node: SpotNode[ContextNodeConfig]) -> None:
        """Listen to where the robot is, until the node is deactivated."""
        self.clear()
        self._lenses = {}
        self._turns.start(node)

    def listen(self, node: SpotNode[ContextNodeConfig], camera: str) -> None:
        """Listen to the camera_info of a camera, too."""
        node.subscribe(CameraInfo, info_topic(camera), SMALL,
                       lambda message: self.take(message, camera))

    def clear(self) -> None:
        """Forget where the robot was: time has jumped."""
        self._turns.clear()

    def turn(self, frame: Frame, before_ns: int) -> Matrix | None:
        """Return the homography from the frame of ``before_ns`` to this one, None if unknown."""
        if not before_ns:
            return None
        try:
            turn = self._turn(frame, before_ns)
        except ValueError as error:
            self._host.count_problem('turns_unknown', f'{error}; flow alone carries regions')
            return None
        self.known += 1
        return turn

    def _turn(self, frame: Frame, before_ns: int) -> Matrix:
        topic = self._host.resolve_topic_name(info_topic(frame.camera))
        if frame.camera not in self._lenses:
            raise ValueError(f'no usable message on {topic}; is it published? see ros2 topic echo')
        frame_id, lens = self._lenses[frame.camera]
        if frame_id != frame.frame_id:
            raise ValueError(f'{topic} is about frame {frame_id[:40]!r}, and the images are of '
                             f'{frame.frame_id[:40]!r}; remap it to the camera_info beside them')
        before, after = (self._turns.at(frame_id, ns) for ns in (before_ns, frame.stamp_ns))
        height, width = frame.rgb().shape[:2]
        return lens.turn(before, after, (width, height))

    def take(self, message: CameraInfo, camera: str = '') -> None:
        """Take the calibration of a camera."""
        try:
            lens = lens_of(message, self._host.config.ego_rectified)
        except ValueError as error:
            self._lenses.pop(camera, None)
            topic = self._host.resolve_topic_name(info_topic(camera))
            self._host.count_problem('camera_info_refused', f'{topic}: {error}')
            return
        self._lenses[camera] = message.header.frame_id, lens


def info_topic(camera: str) -> str:
    """Return the topic of a camera's calibration; '' is the only camera."""
    return f'{camera}/camera_info' if camera else 'camera_info'


def lens_of(message: CameraInfo, rectified: bool) -> Lens:
    """Return the lens of images, rectified or not; ValueError where it is no pinhole's."""
    if rectified:
        lens = pinhole(np.delete(message.p, (3, 7, 11)).tolist(), message.width, message.height)
        turned = np.reshape(message.r, (3, 3))
        if not np.abs(turned @ turned.T - np.eye(3)).max() < 1e-3:  # not so with NaN
            raise ValueError('R is no rotation; calibrate the camera')
        matrix = lens.matrix @ turned
    else:
        lens = pinhole(message.k, message.width, message.height)
        if message.distortion_model not in STRAIGHT or len(message.d) not in COEFFICIENTS:
            raise ValueError(f'distortion_model {message.distortion_model[:40]!r} with '
                             f'{len(message.d)} coefficients is not a pinhole; {RECTIFY}')
        if bend(lens, message.d) > BEND:
            raise ValueError(f'the lens bends the picture by more than {BEND:.0%} of its width; '
                             f'{RECTIFY}')
        matrix = lens.matrix
    roi, by_x, by_y = message.roi, max(1, message.binning_x), max(1, message.binning_y)
    if roi.x_offset + roi.width > message.width or roi.y_offset + roi.height > message.height:
        raise ValueError('roi is not inside width and height; mend the driver')
    cut = np.array([[1 / by_x, 0, -roi.x_offset / by_x], [0, 1 / by_y, -roi.y_offset / by_y],
                    [0, 0, 1]])
    return Lens(cut @ matrix, max(1, (roi.width or message.width) // by_x),
                max(1, (roi.height or message.height) // by_y))


class OdometryTurns:
    """By topic odom, and how the camera is fixed to the robot."""

    def __init__(self, host: Host) -> None:
        """Read the mount."""
        self._host, mount = host, host.config.ego_mount
        self._topic = host.resolve_topic_name('odom')
        try:
            roll, pitch, yaw = (float(v) for v in mount.split())
            if not all(map(math.isfinite, (roll, pitch, yaw))):
                raise ValueError
        except ValueError:
            raise ParameterError(f'ego_mount is {mount!r}; give roll, pitch and '
                                 "yaw in radians, such as '0 0.1 0'") from None
        self._mount = rotation_of_angles(roll, pitch, yaw) @ BODY_FROM_OPTICAL
        self._frames = ('', '')   # that odometry is between
        self._known = Rotations()
        self._lock = threading.Lock()

    def start(self, node: SpotNode[ContextNodeConfig]) -> None:
        """Listen until the node is deactivated."""
        node.subscribe(Odometry, 'odom', SMALL, self.take)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._known.clear()

    def at(self, frame_id: str, stamp_ns: int) -> Matrix:
        """Return how the camera is turned at a moment."""
        with self._lock:
            turned, newest_ns = self._known.at(stamp_ns), self._known.newest_ns
        if turned is not None:
            return turned
        if not newest_ns:
            raise ValueError(f'no usable odometry on {self._topic}; is it published? remap odom '
                             'to its topic')
        off_s = (newest_ns - stamp_ns) / NS
        raise ValueError(f'the newest odometry on {self._topic} is {off_s:+.3g} s from the frame, '
                         'or has gaps; it needs 20 Hz or more, by the clock that stamps the '
                         'images')

    def take(self, message: Odometry) -> None:
        """Take where the robot is; what cannot be right is counted."""
        q, at_ns = message.pose.pose.orientation, stamp_ns(message.header.stamp)
        names = message.header.frame_id, message.child_frame_id
        try:
            turned = rotation(q.x, q.y, q.z, q.w) @ self._mount
            if not at_ns:
                raise ValueError('it has no stamp')
            with self._lock:
                if names != self._frames or at_ns < self._known.newest_ns - RESTART_S * NS:
                    self._known.clear()  # of other frames, or time starts over
                other, self._frames = self._frames not in (names, ('', '')), names
                in_order = self._known.add(at_ns, turned)
            if other:
                raise ValueError(f'it is from {names[0][:40]!r} to {names[1][:40]!r} now; remap '
                                 'odom to one publisher of one pair of frames')
            if not in_order:
                raise ValueError('stamps do not rise; stop all publishers but one')
        except ValueError as error:
            self._host.count_problem('odometry_refused', f'{self._topic}: {error}')


class TfTurns:
    """By tf, where tf2_ros is installed."""

    def __init__(self, config: ContextNodeConfig) -> None:
        """Listen to nothing yet."""
        try:
            import tf2_ros
        except ImportError as error:
            raise ParameterError(f'ego_motion is tf, and tf2_ros cannot be imported ({error}); '
                                 'install ros-$ROS_DISTRO-tf2-ros-py, or set ego_motion to '
                                 'odometry') from None
        self._tf, self._fixed = tf2_ros, config.ego_frame
        self._buffer = tf2_ros.Buffer()

    def start(self, node: SpotNode[ContextNodeConfig]) -> None:
        """Listen until the node is deactivated."""
        listener = self._tf.TransformListener(self._buffer, node)
        node.call_at_stop(listener.unregister)

    def clear(self) -> None:
        """Forget all that moves."""
        self._buffer.clear()

    def at(self, frame_id: str, stamp_ns: int) -> Matrix:
        """Return how an optical frame is turned at a moment, or a little after the newest tf."""
        try:
            try:
                return self._look_up(frame_id, stamp_ns)[1]
            except self._tf.ExtrapolationException:
                newest_ns = self._look_up(frame_id, 0)[0]
                known = Rotations()
                for ns in (newest_ns - round(STEADY_S * NS), newest_ns):
                    known.add(ns, self._look_up(frame_id, ns)[1])
                turned = known.at(stamp_ns)
        except self._tf.TransformException as error:
            raise ValueError(f'tf: {error}; is it published from {self._fixed} to '
                             f'{frame_id[:40]!r}? see ros2 run tf2_tools view_frames') from error
        if turned is None:
            off_s = (newest_ns - stamp_ns) / NS
            raise ValueError(f'the newest tf of {frame_id[:40]!r} is {off_s:+.3g} s from the '
                             'frame; it has to come by the clock that stamps the images')
        return turned

    def _look_up(self, frame_id: str, at_ns: int) -> tuple[int, Matrix]:
        """Return the stamp and the rotation of a transform; 0: the newest."""
        found = self._buffer.lookup_transform(self._fixed, frame_id, Time(nanoseconds=at_ns))
        q = found.transform.rotation
        return stamp_ns(found.header.stamp), rotation(q.x, q.y, q.z, q.w)
