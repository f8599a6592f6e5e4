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
"""The focus regions of each answer as vision_msgs, where that package is installed."""

from __future__ import annotations

from rclpy.lifecycle import LifecyclePublisher

from .answered import AnsweredFrame
from .base import RELIABLE, SpotNode
from .convert import detections_msg
from ..config.nodes import EdgeConfig


class FocusDetections:
    """Publishes on topic focus/detections while somebody listens."""

    def __init__(self, node: SpotNode[EdgeConfig]) -> None:
        """Publish nothing until `setup`."""
        self._node = node
        self._publisher: LifecyclePublisher | None = None

    def setup(self) -> None:
        """Create the publisher, if there is a type for it."""
        try:
            from vision_msgs.msg import Detection2DArray
        except ImportError:
            return  # optional, and not on PyPI
        self._publisher = self._node.advertise(Detection2DArray, 'focus/detections', RELIABLE)

    def publish(self, answered: AnsweredFrame) -> None:
        """Publish the regions that this very answer was given; none where it was given none."""
        if self._publisher is not None and self._publisher.get_subscription_count():
            self._publisher.publish(detections_msg(answered.context, answered.message.header))
