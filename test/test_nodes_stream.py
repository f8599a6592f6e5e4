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
"""A camera on the network under real rclpy: lifecycle, health, nothing of its login."""

from functools import partial
import time

from cameras import CameraServer, LOGIN, mjpeg, with_login
from fakes import FakeEdge, wait_for
import pytest

pytest.importorskip('rclpy')
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402, I100
from rclpy.lifecycle import TransitionCallbackReturn  # noqa: E402
from spotvlm_ros.frames import streams  # noqa: E402
from spotvlm_ros.frames.hub import FrameHub  # noqa: E402
from spotvlm_ros.method.facts import NS  # noqa: E402
from spotvlm_ros.nodes.camera import CameraNode  # noqa: E402
from spotvlm_ros.nodes.convert import stamp_ns  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from test_nodes_graph import graph, overlay  # noqa: E402


def camera_at(tmp_path, server, **config):
    """Return parameters of a camera whose address with its login is in a file."""
    file = tmp_path / 'camera.url'
    file.write_text(f'http://{":".join(LOGIN)}@127.0.0.1:{server.port}/live')
    file.chmod(0o600)
    return overlay(tmp_path, camera={'source': 'stream', 'path': str(file), 'timeout_s': 1.0,
                                     'wait_for_listener_s': 0.0, **config})


def test_a_stream_is_answered_lost_said_and_answered_again(tmp_path, monkeypatch, capfd):
    """The stamp is that of reception; neither log nor /diagnostics shows the login."""
    monkeypatch.setattr(streams, 'PAUSE_S', 0.2)
    edge, hub = FakeEdge(), FrameHub()
    with CameraServer(with_login(mjpeg)) as server:
        over = camera_at(tmp_path, server)
        said = []
        with graph(lambda: [EdgeNode(hub, load=edge.load), CameraNode(hub)],
                   files=('driving', over)) as (probe, running):
            camera = running.nodes[-1]
            wait_for(lambda: probe.answers)
            age_s = (probe.get_clock().now().nanoseconds
                     - stamp_ns(probe.answers[-1].header.stamp)) / NS
            assert 0.0 <= age_s < 1.0
            wait_for(lambda: probe.health.get('camera', (None,))[0] == DiagnosticStatus.OK)
            server.behave = lambda connection, asked: connection.sendall(
                b'HTTP/1.0 503 Busy\r\n\r\n')
            server.hang_up()
            wait_for(lambda: '503 Service Unavailable' in probe.health['camera'][1])
            assert probe.health['camera'][0] == DiagnosticStatus.ERROR
            assert 'connecting again' in probe.health['camera'][1]
            assert probe.count('camera', 'reconnects') >= 2
            said += [probe.health['camera'][1], str(probe.diagnostics['camera'])]
            mark = len(probe.answers)
            server.behave = with_login(mjpeg)
            wait_for(lambda: len(probe.answers) > mark)
            said += [str(p.value) for p in camera._parameters.values()]
        said += capfd.readouterr()
    assert not [text for text in said if LOGIN[1] in text]


def test_transitions_do_not_wait_for_a_camera_that_says_nothing(tmp_path):
    silence = partial(mjpeg, period_s=60.0)
    with CameraServer(lambda connection, asked: time.sleep(60.0)) as server:
        over = camera_at(tmp_path, server, timeout_s=60.0)
        with graph(lambda: [CameraNode()], files=('driving', over)) as (probe, running):
            camera = running.nodes[-1]
            for behave in (server.behave, silence):
                wait_for(lambda: server.connections)
                began = time.monotonic()
                for change in (camera.trigger_deactivate, camera.trigger_cleanup):
                    assert change() == TransitionCallbackReturn.SUCCESS
                assert time.monotonic() - began < 2.0
                server.connections, server.behave = 0, behave
                for change in (camera.trigger_configure, camera.trigger_activate):
                    assert change() == TransitionCallbackReturn.SUCCESS
                assert time.monotonic() - began < 3.0


def test_a_camera_that_is_not_there_yet_is_no_failed_configure(tmp_path):
    with CameraServer(mjpeg) as server:
        over = camera_at(tmp_path, server)
    with graph(lambda: [CameraNode()], files=('driving', over)) as (probe, running):
        wait_for(lambda: 'connection refused' in probe.health.get('camera', ('', ''))[1])
        assert probe.health['camera'][0] == DiagnosticStatus.ERROR
        assert running.nodes[-1].active
