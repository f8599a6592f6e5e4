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
"""The calibration and the motion of the camera of a miniature world, as a robot publishes them."""

from __future__ import annotations

import math

from geometry_msgs.msg import Point, Quaternion
from nav_msgs.msg import Odometry
from sensor_msgs.msg import CameraInfo

from .base import RELIABLE, SpotNode
from .convert import header_msg
from .ego import info_topic
from ..config.nodes import CameraConfig
from ..frames.frame import Frame
from ..mini.pose import Pose
from ..mini.worlds import make_world


class MotionPublisher:
    """Publishes camera_info and odom with each frame."""

    def __init__(self, node: SpotNode[CameraConfig], camera: str) -> None:
        """Advertise until cleanup."""
        world = make_world(node.config.world, node.config.seed)
        focal, column, row = world.lens
        self._calibration = CameraInfo(
            width=world.size[0], height=world.size[1], distortion_model='plumb_bob', d=[0.0] * 5,
            k=[focal, 0.0, column, 0.0, focal, row, 0.0, 0.0, 1.0],
            r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            p=[focal, 0.0, column, 0.0, 0.0, focal, row, 0.0, 0.0, 0.0, 1.0, 0.0])
        self._info = node.advertise(CameraInfo, info_topic(camera), RELIABLE)
        self._odometry = node.advertise(Odometry, 'odom', RELIABLE)

    def publish(self, frame: Frame, pose: Pose) -> None:
        """Publish before the frame itself."""
        self._calibration.header = header_msg(frame.stamp_ns, frame.frame_id)
        self._info.publish(self._calibration)
        message = Odometry(header=header_msg(frame.stamp_ns, 'odom'), child_frame_id='camera_link')
        message.pose.pose.position = Point(x=pose.x, y=pose.y)
        sp, cp = math.sin(pose.pitch / 2), math.cos(pose.pitch / 2)
        sy, cy = math.sin(pose.yaw / 2), math.cos(pose.yaw / 2)
        message.pose.pose.orientation = Quaternion(x=-sy * sp, y=cy * sp, z=sy * cp, w=cy * cp)
        self._odometry.publish(message)
