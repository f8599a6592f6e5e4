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
"""Nothing comes in: the nodes say so, with the topic and what to do."""

import cv2
from fakes import FakeEdge, wait_for
import numpy as np
import pytest

pytest.importorskip('rclpy')
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402, I100
from rclpy.node import Node  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from spotvlm_msgs.msg import Answer  # noqa: E402
from spotvlm_ros.frames.frame import Frame  # noqa: E402
from spotvlm_ros.frames.hub import FrameHub  # noqa: E402
from spotvlm_ros.nodes.camera import CameraNode  # noqa: E402
from spotvlm_ros.nodes.context import ContextNode  # noqa: E402
from spotvlm_ros.nodes.convert import image_msg  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from spotvlm_ros.nodes.monitor import Monitor  # noqa: E402
from test_frames_recorded import START, write_bag  # noqa: E402
from test_nodes_graph import graph, GREY, overlay  # noqa: E402


def test_a_topic_that_nobody_publishes_is_said_with_those_there_are(tmp_path):
    """The driver's topic has another name (realsenseai/realsense-ros#3099)."""
    edge = FakeEdge()
    over = overlay(tmp_path, camera={'source': 'topic'})
    with graph(lambda: [EdgeNode(load=edge.load)], files=('driving', over)) as (probe, running):
        probe.destroy_publisher(probe.image)
        wait_for(lambda: '/image/compressed is published: set image_transport to compressed'
                 in probe.health.get('edge', ('', ''))[1])
        probe.destroy_publisher(probe.jpeg)
        other = probe.create_publisher(Image, 'front/image_raw', 1)
        wait_for(lambda: probe.count('edge', 'no_frames') and 'front' in probe.health['edge'][1])
        assert 'from /image for' in probe.health['edge'][1]
        assert 'remap' in probe.health['edge'][1]
        again = probe.create_publisher(Image, 'image', 1)
        stamp = probe.get_clock().now().nanoseconds

        def answered():
            nonlocal stamp
            stamp += 10**8
            again.publish(image_msg(Frame(stamp, 'camera', pixels=GREY)))
            return probe.answers
        wait_for(answered)
        assert other.topic_name == '/front/image_raw'


def test_a_camera_that_falls_silent_is_said_by_all_in_its_process(tmp_path):
    edge, hub = FakeEdge(), FrameHub()
    over = overlay(tmp_path, camera={'source': 'topic'})
    with graph(lambda: [EdgeNode(hub, load=edge.load), CameraNode(hub)],
               files=('driving', over)) as (probe, running):
        wait_for(lambda: probe.count('camera', 'no_frames') and probe.count('edge', 'no_frames'))
        assert '1 publish it: /probe (reliable, volatile)' in probe.health['camera'][1]
        assert 'node camera' in probe.health['edge'][1]


def test_a_second_graph_and_a_second_camera_are_named(tmp_path):
    """Answers and frames of both were mixed without a word."""
    edge = FakeEdge()
    over = overlay(tmp_path, camera={'source': 'topic'})
    # A namespace of its own: nodes of other tests live until they are collected.
    with graph(lambda: [EdgeNode(load=edge.load), EdgeNode(load=edge.load), ContextNode()],
               files=('driving', over), namespace='pair') as (probe, running):
        first, second, other = running.nodes[1:]
        wait_for(lambda: first.problem_counts['same_name'] and second.problem_counts['same_name'])
        wait_for(lambda: probe.health['pair/edge'][0] == DiagnosticStatus.WARN
                 and '2 nodes are /pair/edge' in probe.health['pair/edge'][1])
        camera = Node('second_camera')
        camera.create_publisher(Image, 'image', 1)
        wait_for(lambda: first.problem_counts['several_publishers'])
        wait_for(lambda: '/pair/probe, /pair/second_camera' in probe.health['pair/edge'][1])
        camera.destroy_node()
        wait_for(lambda: '/pair/second_camera' not in probe.health['pair/edge'][1])
        assert 'same_name' not in other.problem_counts


def test_a_camera_sees_another_on_its_topic(tmp_path):
    over = overlay(tmp_path, camera={'source': 'mini', 'wait_for_listener_s': 0.0})
    with graph(lambda: [CameraNode()], files=('driving', over),
               namespace='crowd') as (probe, running):
        wait_for(lambda: running.nodes[-1].problem_counts['several_publishers'])
        wait_for(lambda: 'crowd/camera' in probe.health
                 and '/crowd/camera, /crowd/probe' in probe.health['crowd/camera'][1])
        assert '2 publish /crowd/image' in probe.health['crowd/camera'][1]


def test_a_recording_without_a_usable_frame_ends_as_a_failure(tmp_path):
    """Cameras record nv12 (christianrauch/camera_ros#54)."""
    bag = write_bag(tmp_path / 'bag', [START + i * 10**8 for i in range(3)], encoding='nv12')
    hub = FrameHub()
    over = overlay(tmp_path, camera={'source': 'bag', 'path': str(bag)})
    with graph(lambda: [EdgeNode(hub, load=FakeEdge().load), CameraNode(hub)],
               files=('driving', over)) as (_, running):
        camera = running.nodes[-1]
        assert hub.finished.wait(20.0)
        assert "none of 3 frames could be used: encoding 'nv12'" in camera.failure
        assert camera.problem_counts['bad_images'] == 3


def test_pictures_that_cannot_be_decoded_are_counted_by_the_edge(tmp_path):
    for number in range(3):
        data = cv2.imencode('.jpg', np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
        (tmp_path / f'{number}.jpg').write_bytes(data[:-40])
    edge, hub = FakeEdge(), FrameHub()
    over = overlay(tmp_path, camera={'source': 'images', 'path': str(tmp_path)})
    with graph(lambda: [EdgeNode(hub, load=edge.load), CameraNode(hub)],
               files=('driving', over)) as (probe, running):
        assert hub.finished.wait(20.0)
        wait_for(lambda: probe.count('edge', 'bad_images') >= 1)
        assert not edge.seen


def test_the_table_on_a_terminal_shows_what_comes_and_obeys_nothing(monkeypatch, capsys):
    """It was drawn before there was anything to draw, and the run ended in a traceback."""
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    with graph(lambda: [Monitor()]) as (probe, running):
        monitor = running.nodes[-1]
        answers = probe.create_publisher(Answer, 'answers', 1)

        def shown():
            answers.publish(Answer(query_id='describe', text='a \x1b[2J [red]b'))
            return monitor.newest
        wait_for(shown)
        column = monitor.table._draw().columns[2]
        monitor.table.stop()
    assert list(column.cells) == ['a \\x1b[2J \\[red]b']
