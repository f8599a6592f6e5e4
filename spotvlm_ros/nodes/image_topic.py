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
"""A subscription to images that asks for what their publishers offer."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from .base import M, SENSOR, SpotNode
from ..config.nodes import ImageInputConfig

RELIABLE_SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)


class ImageTopic:
    """
    Subscribes reliably where all publishers are reliable, else with best effort.

    A best-effort image that is larger than the segment of shared memory of its publisher is mostly
    lost on one host: that of Fast DDS is 512 KiB, and an image of 640x480 is 900. A publisher of
    best effort is noticed when it comes, and when it has gone. What a user says in qos_overrides
    holds.
    """

    def __init__(self, node: SpotNode[ImageInputConfig], kind: type[M], topic: str,
                 callback: Callable[[M], None]) -> None:
        """Listen until the node is deactivated; `look` is to be called every few seconds."""
        self._node = node
        self._subscribe = lambda qos, mismatch: node.subscribe(kind, topic, qos, callback,
                                                               mismatch)
        self.raw = kind is Image
        self.topic = node.resolve_topic_name(topic)
        self.reliable: bool | None = None  # None: as the user says
        if node.overrides_reliability(self.topic):
            self._subscribe(SENSOR, None)
        else:
            self._open(reliable=True)

    @property
    def remedy(self) -> str:
        """Return what to do where images are lost on the way."""
        if self.reliable:
            return 'set image_transport to compressed'
        return 'have the driver publish reliably, set image_transport to compressed, or start ' \
            'the driver with config/fastdds_driver.xml of spotvlm_ros (docs/diagnostics.md)'

    def look(self) -> None:
        """Go back to reliable when the best-effort publisher has gone."""
        if self.reliable is not False:
            return
        offered = {info.qos_profile.reliability
                   for info in self._node.get_publishers_info_by_topic(self.topic)}
        if offered == {ReliabilityPolicy.RELIABLE}:
            self._close()
            self._open(reliable=True)

    def _open(self, reliable: bool) -> None:
        self.reliable = reliable
        self._close = self._subscribe(RELIABLE_SENSOR if reliable else SENSOR, self._on_mismatch)

    def _on_mismatch(self) -> None:
        if self.reliable:
            self._close()
            self._open(reliable=False)
