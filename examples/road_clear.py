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
Whether the road is clear, for a behaviour tree: a service to ask, and a topic to read.

Service ``is_road_clear`` (std_srvs/Trigger) answers at once, with the reason in ``message``. Topic
``road_clear`` (std_msgs/Bool) has the same, ten times a second. Old facts mean: not clear. See
docs/planners.md for the condition of Nav2 that calls it.

    python3 road_clear.py --ros-args -r __ns:=/robot1
"""

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from spotvlm_ros.client import AnswerClient, Hysteresis, Rules
from std_msgs.msg import Bool
from std_srvs.srv import Trigger

CLEAR = {'light': ('none', 'green'), 'pedestrian': ('none', 'sidewalk')}


class RoadClear(Node):
    """Believes only what was said three times in a row, about frames of the last second."""

    def __init__(self) -> None:
        """Listen to the query ``scene`` of the driving profile."""
        super().__init__('road_clear')
        quick = {'red': 1, 'crossing': 1}  # what speaks against it counts at once
        self.scene = AnswerClient(self, 'scene', Rules(
            max_age_s=1.0, hysteresis=Hysteresis(answers=3, quick=quick)))
        self.create_service(Trigger, 'is_road_clear', self.answer)
        self.clear = self.create_publisher(Bool, 'road_clear', 1)
        self.create_timer(0.1, lambda: self.clear.publish(Bool(data=not self.why_not())))

    def why_not(self) -> str:
        """Return why the road is not clear, '' where it is."""
        for key, clear in CLEAR.items():
            value = self.scene.value(key)
            if value not in clear:
                return f'{key} is {value}' if value else self.scene.why_unknown(key)
        return ''

    def answer(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Fill a response; nothing is waited for."""
        response.message = self.why_not() or 'clear'
        response.success = response.message == 'clear'
        return response


def main() -> None:
    """Answer until Ctrl-C."""
    rclpy.init()
    try:
        rclpy.spin(RoadClear())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
