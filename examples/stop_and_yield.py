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
A planner that stops for red and yields to pedestrians, on fresh facts only.

It publishes the speed that is allowed [m/s] on ``speed_limit`` and what it does, and why, on
``plan``. Where it does not know, it goes slowly, and soon not at all.

    python3 stop_and_yield.py --ros-args -r __ns:=/robot1
"""

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from spotvlm_ros.client import AnswerClient, Hysteresis, Rules
from std_msgs.msg import Float32, String

SPEED = {'go': 8.0, 'slow': 2.0, 'stop': 0.0}  # [m/s]
BLIND_S = 1.0  # unknown for longer means stop


def wary_of(value: str) -> Hysteresis:
    """Return a rule that believes a value soon and gives it up late."""
    return Hysteresis(answers=3, seconds=0.3, quick={value: 2}, hold_s={value: 1.0})


class StopAndYield(Node):
    """Plans anew with each change of what is known, and ten times a second."""

    def __init__(self) -> None:
        """Listen to the query ``scene`` of the driving profile."""
        super().__init__('stop_and_yield')
        rules = Rules(max_age_s=1.0, hysteresis_of={
            'light': wary_of('red'), 'pedestrian': wary_of('crossing')})
        self.scene = AnswerClient(self, 'scene', rules, on_change=lambda scene: self.plan())
        self.plans = self.create_publisher(String, 'plan', 10)
        self.limits = self.create_publisher(Float32, 'speed_limit', 10)
        self.clear_ns = 0  # when the road was last known to be clear [ns, ROS time]
        self.create_timer(0.1, self.plan)

    def plan(self) -> None:
        """Publish what to do now."""
        what, why = self.decide()
        self.plans.publish(String(data=f'{what}: {why}'))
        self.limits.publish(Float32(data=SPEED[what]))

    def decide(self) -> tuple[str, str]:
        """Return one of SPEED, and why."""
        light, pedestrian = self.scene.value('light'), self.scene.value('pedestrian')
        if light == 'red':
            return 'stop', 'the light is red'
        if pedestrian == 'crossing':
            return 'stop', 'a pedestrian crosses'
        now_ns = self.get_clock().now().nanoseconds
        if light and pedestrian:
            self.clear_ns = now_ns
            return ('slow', 'the light is yellow') if light == 'yellow' else ('go', 'all clear')
        why = self.scene.why_unknown('light') or self.scene.why_unknown('pedestrian')
        blind_s = (now_ns - self.clear_ns) / 1e9  # who stands does not go on blindly
        return 'slow' if 0.0 <= blind_s < BLIND_S else 'stop', why


def main() -> None:
    """Plan until Ctrl-C."""
    rclpy.init()
    try:
        rclpy.spin(StopAndYield())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
