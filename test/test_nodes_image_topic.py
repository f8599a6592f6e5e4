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
"""Images come whatever their publishers offer."""

from array import array
import os
import subprocess

from fakes import FakeEdge, wait_for
import pytest

pytest.importorskip('rclpy')
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402, I100
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from spotvlm_msgs.msg import Answer  # noqa: E402
from spotvlm_ros.config.profiles import find_profile  # noqa: E402
from spotvlm_ros.nodes.base import latched  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from spotvlm_ros.nodes.image_topic import ImageTopic  # noqa: E402
from spotvlm_ros.nodes.publishers import who_publishes  # noqa: E402
from spotvlm_ros.system.middleware import PROFILES  # noqa: E402
from spotvlm_ros.system.processes import PYTHON  # noqa: E402
from test_nodes_graph import graph, overlay  # noqa: E402

BEST_EFFORT, RELIABLE = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
# A driver of a camera: 640x480, ten a second, numbered by their stamps [s].
DRIVER = """
import array, sys, time
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
rclpy.init()
publisher = rclpy.create_node('driver').create_publisher(Image, 'image', QoSProfile(
    depth=1, reliability=ReliabilityPolicy[sys.argv[1]]))
step = 3 * 640 + int(sys.argv[2])
image = Image(width=640, height=480, step=step, encoding='rgb8')
image.data = array.array('B', bytes(480 * step))
due = time.monotonic()
while True:
    image.header.stamp.sec += 1
    publisher.publish(image)
    due += 0.1
    time.sleep(max(0.0, due - time.monotonic()))
"""


def offered(node):
    """Return the reliability of a node's own subscriptions to images."""
    return [info.qos_profile.reliability for info in node.get_subscriptions_info_by_topic('/image')
            if info.node_name == node.get_name()]


def publish(probe, publisher):
    """Publish a small image."""
    image = Image(width=8, height=8, step=24, encoding='rgb8', data=array('B', bytes(192)))
    image.header.stamp = probe.get_clock().now().to_msg()
    publisher.publish(image)


def test_a_subscription_follows_what_publishers_offer():
    edge = FakeEdge()
    with graph(lambda: [EdgeNode(load=edge.load)], files=('driving',)) as (probe, running):
        node = running.nodes[1]
        wait_for(lambda: offered(node) == [RELIABLE])

        def answered(publisher):
            before = len(probe.answers)
            wait_for(lambda: publish(probe, publisher) or len(probe.answers) > before)
        answered(probe.image)
        poor = probe.create_publisher(Image, 'image', QoSProfile(depth=1, reliability=BEST_EFFORT))
        wait_for(lambda: offered(node) == [BEST_EFFORT])
        answered(poor)
        answered(probe.image)
        probe.destroy_publisher(poor)
        wait_for(lambda: offered(node) == [RELIABLE])
        answered(probe.image)
        assert 'qos_mismatch' not in node.problem_counts


def test_what_the_user_says_holds(tmp_path):
    over = overlay(tmp_path, edge={'qos_overrides./image.subscription.reliability': 'best_effort'})
    with graph(lambda: [EdgeNode(load=FakeEdge().load)], files=('driving', over)) as (_, running):
        wait_for(lambda: offered(running.nodes[1]) == [BEST_EFFORT])


def test_what_the_user_says_of_topics_that_are_not_there_is_named(tmp_path):
    over = overlay(tmp_path, edge={'qos_overrides./imgae.subscription.reliability': 'reliable',
                                   'qos_overrides./image.subscription.reliability': 'best_effort'})
    with graph(lambda: [EdgeNode(load=FakeEdge().load)], files=('driving', over)) as (_, running):
        node = running.nodes[1]
        wait_for(lambda: offered(node) == [BEST_EFFORT])
        assert node.problem_counts['qos_without_effect'] == 1
        assert node.newest_problem.startswith(
            'qos_overrides./imgae.subscription.reliability has no effect: the node has only ')
        assert '/image.subscription, ' in node.newest_problem


def test_who_asks_for_more_than_is_offered_is_told_what_to_set(tmp_path):
    over = overlay(tmp_path, edge={'qos_overrides./image.subscription.reliability': 'reliable',
                                   'qos_overrides./image.subscription.durability':
                                   'transient_local'})
    with graph(lambda: [EdgeNode(load=FakeEdge().load)], files=('driving', over)) as (probe, run):
        probe.destroy_publisher(probe.image)
        poor = probe.create_publisher(Image, 'image', QoSProfile(depth=1, reliability=BEST_EFFORT))
        asked = 'qos_overrides./image.subscription.reliability to '
        # The node that knows of the event, what it tells the world, and what another one can see.
        wait_for(lambda: ' to what it offers' in run.nodes[1].newest_problem)
        wait_for(lambda: 'set qos_overrides./image' in probe.health.get('edge', (b'', ''))[1])
        assert probe.health['edge'][0] != DiagnosticStatus.OK
        assert f'set {asked}best_effort, or leave it out' in who_publishes(probe, '/image', 'raw')
        assert probe.count('edge', 'qos_mismatch') >= 1
        assert poor.get_subscription_count() == 0


def test_who_subscribes_to_answers_in_vain_is_told_of():
    with graph(lambda: [EdgeNode(load=FakeEdge().load)]) as (probe, run):
        probe.create_subscription(Answer, 'answers', lambda m: None, latched(1))
        wait_for(lambda: probe.count('edge', 'qos_mismatch') >= 1)
        assert 'of /answers asks for another durability' in run.nodes[1].newest_problem


@pytest.mark.alone
@pytest.mark.parametrize('reliability, padding, file', [
    ('RELIABLE', 0, ''), ('RELIABLE', 64, ''), ('BEST_EFFORT', 0, 'fastdds_driver.xml')])
def test_raw_images_come_at_the_rate_of_the_driver(reliability, padding, file):
    """One to six of ten came with best effort: they are larger than Fast DDS's segment."""
    environment = dict(os.environ)
    if file:  # the remedy of docs/diagnostics.md
        path = find_profile('driving').with_name(file)
        assert path.is_file()
        environment.update(dict.fromkeys(PROFILES, str(path)))
    numbers = []
    with graph(lambda: [EdgeNode(load=FakeEdge().load)], files=('driving',)) as (probe, running):
        probe.destroy_publisher(probe.image)
        topic = ImageTopic(running.nodes[1], Image, 'image',
                           lambda image: numbers.append(image.header.stamp.sec))
        driver = subprocess.Popen([*PYTHON, '-c', DRIVER, reliability, str(padding)],
                                  env=environment)
        try:
            wait_for(lambda: topic.reliable is (reliability == 'RELIABLE') and numbers)
            first = len(numbers)
            wait_for(lambda: len(numbers) > first + 20 and numbers[-1] > numbers[first] + 30)
        finally:
            driver.kill()
            driver.wait()
    came = numbers[first:]
    assert len(came) >= 0.95 * (came[-1] - came[0] + 1)
