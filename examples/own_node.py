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
A node of one's own in the process of the four of spotvlm, which sees the frames without a copy.

    python3 own_node.py --ros-args --params-file config/driving.yaml

See docs/composition.md.
"""

import sys

from rclpy.node import Node
from spotvlm_ros.frames.hub import FrameHub, Mailbox
from spotvlm_ros.nodes.composed import make_nodes
from spotvlm_ros.nodes.executor import run_nodes
from std_msgs.msg import Float32


class Brightness(Node):
    """Publishes how bright the newest frame is, twice a second."""

    def __init__(self, hub: FrameHub) -> None:
        """Listen to the frames of ``hub``."""
        super().__init__('brightness')
        self.publisher = self.create_publisher(Float32, 'brightness', 1)
        self.newest = Mailbox()
        hub.listen(self.newest.put)  # called by the camera's thread: only keep the frame
        self.create_timer(0.5, self.tell)

    def tell(self) -> None:
        """Publish, where a new frame has come."""
        frame = self.newest.get(0.0)
        if frame is not None:
            self.publisher.publish(Float32(data=float(frame.rgb().mean())))


def make() -> list[Node]:
    """Return all nodes of the process, in the order in which they start."""
    hub = FrameHub()
    return [Brightness(hub), *make_nodes(hub)]


if __name__ == '__main__':
    sys.exit(run_nodes(make, sys.argv[1:]))
