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
"""Regions carried by what the robot knows of its camera's motion, through the graph."""

from itertools import count
import sys
from types import ModuleType, SimpleNamespace

from fakes import wait_for
import numpy as np
import pytest

pytest.importorskip('rclpy')
from geometry_msgs.msg import Quaternion  # noqa: E402, I100
from nav_msgs.msg import Odometry  # noqa: E402
from sensor_msgs.msg import CameraInfo, RegionOfInterest  # noqa: E402
from spotvlm_msgs.msg import Answer  # noqa: E402
from spotvlm_ros.config.nodes import ContextNodeConfig  # noqa: E402
from spotvlm_ros.config.spec import ParameterError  # noqa: E402
from spotvlm_ros.frames.frame import Frame  # noqa: E402
from spotvlm_ros.frames.hub import FrameHub  # noqa: E402
from spotvlm_ros.method.ego import BODY_FROM_OPTICAL, pinhole, rotation_of_angles  # noqa: E402
from spotvlm_ros.method.facts import Fact, NS, Region  # noqa: E402
from spotvlm_ros.mini.worlds import make_world  # noqa: E402
from spotvlm_ros.nodes.camera import CameraNode  # noqa: E402
from spotvlm_ros.nodes.context import ContextNode  # noqa: E402
from spotvlm_ros.nodes.convert import fact_msg, header_msg, image_msg, region_from_msg, \
    stamp_ns  # noqa: E402
from spotvlm_ros.nodes.ego import lens_of, TfTurns  # noqa: E402
from test_method_ego import body, K, picture, SIZE, truth  # noqa: E402
from test_nodes_graph import graph  # noqa: E402

BOX = Region(140, 100, 40, 40)
YAWS = [0.0, 0.16, 0.32, 0.48]     # five times a second: 46 degrees a second


def info(**values):
    """Return the calibration of the camera of test_method_ego."""
    k = [float(v) for v in K]
    return CameraInfo(**{'width': SIZE[0], 'height': SIZE[1], 'distortion_model': 'plumb_bob',
                         'd': [0.0] * 5, 'k': k, 'r': np.eye(3).ravel().tolist(),
                         'p': [*k[:3], 0.0, *k[3:6], 0.0, *k[6:], 0.0], **values})


def odometry(stamp, yaw=0.0, **orientation):
    """Return how a robot that turned by an angle says so."""
    message = Odometry(header=header_msg(stamp, 'odom'), child_frame_id='base_link')
    message.pose.pose.orientation = Quaternion(
        **(orientation or {'z': float(np.sin(yaw / 2)), 'w': float(np.cos(yaw / 2))}))
    return message


@pytest.mark.parametrize(('message', 'rectified', 'why'), [
    (info(k=[0.0] * 9), False, 'no calibration'), (info(k=[float('nan')] * 9), False, 'no cal'),
    (info(width=0), False, 'no calibration'), (info(p=[0.0] * 12), True, 'no calibration'),
    (info(d=[-0.3, 0.1, 0.0, 0.0, 0.0]), False, 'ego_rectified'),
    (info(d=[float('nan')] * 5), False, 'ego_rectified'), (info(d=[0.0] * 3), False, 'rectified'),
    (info(distortion_model='equidistant', d=[0.0] * 4), False, 'ego_rectified'),
    (info(roi=RegionOfInterest(x_offset=300, width=100)), False, 'roi is not inside'),
    (info(r=[0.0] * 9), True, 'no rotation'), (info(r=[float('nan')] * 9), True, 'no rotation')])
def test_a_camera_info_that_is_no_pinhole_is_refused(message, rectified, why):
    with pytest.raises(ValueError, match=why):
        lens_of(message, rectified)


def test_a_camera_info_is_read_for_the_part_of_the_sensor_that_is_sent():
    bent = info(d=[-0.3, 0.1, 0.0, 0.0, 0.0])
    assert lens_of(bent, True).matrix == pytest.approx(np.reshape(K, (3, 3)))
    half = info(binning_x=2, binning_y=2)
    half.roi.x_offset, half.roi.y_offset, half.roi.width, half.roi.height = 20, 10, 280, 200
    lens = lens_of(half, False)
    assert lens.matrix == pytest.approx(np.array([[150, 0, 70], [0, 150, 55], [0, 0, 1]]))
    assert (lens.width, lens.height) == (140, 100)


class Robot:
    """Sends frames, and what goes with them; the camera looks ahead."""

    def __init__(self, probe):
        self.probe = probe
        self.info = probe.create_publisher(CameraInfo, 'camera_info', 10)
        self.odom = probe.create_publisher(Odometry, 'odom', 10)
        self.cloud = probe.create_publisher(Answer, 'cloud/answers', 10)
        self.first = probe.get_clock().now().nanoseconds - NS

    def stamp(self, n):
        return self.first + n * NS // 5

    def region(self, n):
        """Return where the context has the box in a frame once that was carried to."""
        def carried():
            return [c for c in self.probe.contexts if stamp_ns(c.header.stamp) == self.stamp(n)
                    and c.query_id == 'scene' and (c.focus or n)]
        context = wait_for(carried)[-1]
        return next(map(region_from_msg, context.focus), None)

    def frame(self, n):
        frame = Frame(self.stamp(n), 'eye', pixels=np.dstack(3 * [picture(
            body(yaw=YAWS[n % len(YAWS)]))]))
        self.probe.image.publish(image_msg(frame))

    def answer(self):
        """Say as the cloud where the box is in the first frame."""
        self.cloud.publish(Answer(
            header=header_msg(self.first, 'eye'), query_id='scene', source=Answer.SOURCE_CLOUD,
            facts=[fact_msg(Fact('light', 'red', self.first, 1.0, BOX), self.first)]))


def sees(probe, *topics):
    """Whether somebody listens to topics of the probe."""
    return all(probe.count_subscribers(topic) for topic in topics)


@pytest.mark.parametrize('known', [True, False])
def test_a_fast_turn_is_followed_where_the_robot_tells_of_it(known):
    with graph(lambda: [ContextNode()], 'ego_motion:=odometry', 'cut_below:=-1.0') as (probe, _):
        robot = Robot(probe)
        wait_for(lambda: sees(probe, 'image', 'camera_info', 'odom', 'cloud/answers'))
        robot.info.publish(info(header=header_msg(robot.first, 'eye')))
        robot.answer()
        for n in range(len(YAWS)):
            if known:
                robot.odom.publish(odometry(robot.stamp(n), YAWS[n]))
        robot.odom.publish(odometry(0))  # once it is refused, those before it are taken
        wait_for(lambda: probe.count('context', 'odometry_refused'))
        for n in range(len(YAWS)):
            robot.frame(n)
            seen = robot.region(n)
        where = truth(body(yaw=YAWS[-1]))
        if known:
            assert seen.iou(where) > 0.7
            wait_for(lambda: probe.count('context', 'turns_known') == len(YAWS) - 1)
        else:
            assert seen is None or seen.iou(where) < 0.1
            wait_for(lambda: probe.count('context', 'turns_unknown') == len(YAWS) - 1)
            assert 'no usable odometry on /odom' in probe.health['context'][1]


def test_what_cannot_be_right_is_refused_and_counted():
    bad = [odometry(5 * NS, z=0.0, w=0.0), odometry(5 * NS, x=float('nan')),
           odometry(5 * NS, z=3.0, w=4.0), odometry(0), odometry(NS * 9 // 10)]
    with graph(lambda: [ContextNode()], 'ego_motion:=odometry') as (probe, _):
        robot = Robot(probe)
        wait_for(lambda: sees(probe, 'image', 'camera_info', 'odom'))
        robot.odom.publish(odometry(NS))
        for n, message in enumerate(bad):
            robot.odom.publish(message)
            wait_for(lambda: probe.count('context', 'odometry_refused') == n + 1)
        robot.info.publish(info(k=[0.0] * 9))
        wait_for(lambda: probe.count('context', 'camera_info_refused') == 1)
        stamps = count()
        for why in ('no usable message on /camera_info', "about frame 'other'"):
            wait_for(lambda: robot.frame(next(stamps)) or why in probe.health['context'][1])
            robot.info.publish(info(header=header_msg(NS, 'other')))


@pytest.mark.parametrize('mount', ['', '1 2', '0 0 nan', 'left'])
def test_a_mount_that_is_none_fails_configure(mount):
    with graph(lambda: [ContextNode()], 'ego_motion:=odometry', f"ego_mount:='{mount}'"
               ) as (_, running):
        assert 'ego_mount' in running.nodes[1].last_failure


def test_tf_is_asked_where_it_is_installed_and_else_configure_says_how(monkeypatch):
    config = ContextNodeConfig(ego_frame='odom')
    monkeypatch.setitem(sys.modules, 'tf2_ros', None)
    with pytest.raises(ParameterError, match='ros-.*-tf2-ros-py, or set ego_motion to odometry'):
        TfTurns(config)
    monkeypatch.setitem(sys.modules, 'tf2_ros', fake_tf())
    turns = TfTurns(config)
    look = [turns.at('eye', NS + n * NS // 100) for n in (0, 5, 10)]
    for n, matrix in zip((0, 5, 10), look):    # the newest is of 1.05 s
        assert matrix == pytest.approx(rotation_of_angles(0, 0, 0.01 * n), abs=1e-6)
    with pytest.raises(ValueError, match='-0.95 s from the frame'):
        turns.at('eye', 2 * NS)
    with pytest.raises(ValueError, match="tf: nothing.*is it published from odom to 'nobody'"):
        turns.at('nobody', NS)


def fake_tf():
    """Return a stand-in for tf2_ros that turns by 1 rad/s, up to 1.05 s."""
    module = ModuleType('tf2_ros')
    module.TransformException = type('TransformException', (Exception,), {})
    module.ExtrapolationException = type('Extrapolation', (module.TransformException,), {})

    class Buffer:
        def lookup_transform(self, target, source, time):
            if (target, source) != ('odom', 'eye'):
                raise module.TransformException('nothing')
            ns = time.nanoseconds or NS * 105 // 100
            if ns > NS * 105 // 100:
                raise module.ExtrapolationException('future')
            yaw = ns / NS - 1.0
            return SimpleNamespace(header=header_msg(ns, target), transform=SimpleNamespace(
                rotation=Quaternion(z=float(np.sin(yaw / 2)), w=float(np.cos(yaw / 2)))))
    module.Buffer = Buffer
    return module


def test_the_miniature_tells_of_its_camera():
    heard = []
    with graph(lambda: [CameraNode(FrameHub())], 'publish_motion:=true', 'publish_image:=always',
               'wait_for_listener_s:=0.0') as (probe, _):
        for kind, topic in ((CameraInfo, 'camera_info'), (Odometry, 'odom')):
            probe.create_subscription(kind, topic, heard.append, 10)
        wait_for(lambda: {type(m) for m in heard} == {CameraInfo, Odometry})
    assert lens_of(next(m for m in heard if isinstance(m, CameraInfo)), False).width == 640


def things(world, before, index):
    """Return x and y in both frames [pixels] and the distance [m] of what stands still."""
    if world.name == 'hri':
        then, now = (world.scene(i).items for i in (before, index))
        return [((a.x, a.y), (b.x, b.y), 1.0) for a, b in zip(then, now)]
    then, now = ({(t.kind, t.name): (s.project(t.x, t.base, t.z), t.z) for t in s.things}
                 for s in map(world.scene, (before, index)))
    return [(at, now[name][0], z) for name, (at, z) in then.items()
            if name[0] in ('light', 'limit') and name in now]


@pytest.mark.parametrize('name', ['driving', 'hri'])
def test_a_world_is_seen_as_its_pose_says(name):
    world = make_world(name, 1_000_007)
    focal, column, row = world.lens
    matrix = pinhole([focal, 0, column, 0, focal, row, 0, 0, 1], *world.size).matrix
    off, stayed = [], []
    for first in range(100, 1500, 20):
        (a, a_at), (b, b_at) = (
            (rotation_of_angles(0, pose.pitch, pose.yaw) @ BODY_FROM_OPTICAL,
             np.array([pose.x, pose.y, 0.0])) for pose in map(world.pose, (first, first + 20)))
        for before, now, z in things(world, first, first + 20):
            there = a @ np.linalg.inv(matrix) @ (*before, 1.0) * z + a_at
            seen = matrix @ b.T @ (there - b_at)
            off.append(np.abs(seen[:2] / seen[2] - now).max())
            stayed.append(np.abs(np.subtract(before, now)).max())
    assert len(off) > 20 and np.median(off) < 0.3 * np.median(stayed), (off, stayed)
