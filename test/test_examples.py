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
"""The examples for planners, on the miniature world, whose truth is known, and without answers."""

import json
from pathlib import Path
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

from fakes import wait_for
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'examples'))

from own_node import Brightness  # noqa: E402, I100
from road_clear import RoadClear  # noqa: E402
from spotvlm_msgs.msg import Answer  # noqa: E402
from spotvlm_ros.frames.hub import FrameHub  # noqa: E402
from spotvlm_ros.method.facts import Fact, NS  # noqa: E402
from spotvlm_ros.nodes.base import RELIABLE  # noqa: E402
from spotvlm_ros.nodes.camera import CameraNode  # noqa: E402
from spotvlm_ros.nodes.cloud import CloudNode  # noqa: E402
from spotvlm_ros.nodes.context import ContextNode  # noqa: E402
from spotvlm_ros.nodes.convert import fact_msg, header_msg, stamp_ns  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from spotvlm_ros.nodes.executor import run_nodes  # noqa: E402
from std_msgs.msg import Float32, String  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from stop_and_yield import SPEED, StopAndYield  # noqa: E402
from test_nodes_graph import graph, overlay  # noqa: E402

DRIVE_S = 13.0


def must_stop(facts):
    """Return whether facts forbid to go on."""
    return facts['light'] == 'red' or facts['pedestrian'] == 'crossing'


def changes(values):
    """Return how often a value is another than the one before."""
    return sum(a != b for a, b in zip(values, values[1:]))


def answer_of(node, **facts):
    """Return an answer of the edge about a frame of now."""
    stamp = node.get_clock().now().nanoseconds
    return Answer(header=header_msg(stamp, 'eye'), query_id='scene', source=Answer.SOURCE_EDGE,
                  facts=[fact_msg(Fact(k, v, stamp), stamp) for k, v in facts.items()])


def test_the_planner_stops_and_goes_as_the_world_does_and_stops_when_it_is_blind(server, tmp_path):
    """The shipped edge model on the drive of seed 1, and a cloud that is right and 1 s late."""
    def reply(request):
        server.content = json.dumps([{'label': f.key, 'value': f.value}
                                     for f in wait_for(lambda: probe.truth)[-1].facts])
        return server.fine(request)
    server.reply = reply
    hub, plans, planner = FrameHub(), [], []

    def nodes():
        planner.append(StopAndYield())
        return [*planner, ContextNode(), CloudNode(hub), EdgeNode(hub), CameraNode(hub)]
    over = overlay(tmp_path, cloud={'base_url': server.url, 'emulated_delay_median_s': 1.0})
    with graph(nodes, files=('driving', over)) as (probe, running):
        probe.create_subscription(String, 'plan', lambda m: plans.append(
            (probe.get_clock().now().nanoseconds, m.data.partition(':')[0])), 50)
        limits = []
        probe.create_subscription(Float32, 'speed_limit', lambda m: limits.append(m.data), 50)
        assert wait_for(lambda: plans)[0][1] == 'stop', 'nothing is known yet'
        begin = stamp_ns(wait_for(lambda: probe.truth)[0].header.stamp)
        wait_for(lambda: stamp_ns(probe.truth[-1].header.stamp) - begin > DRIVE_S * NS)
        drive = [(at, what) for at, what in plans if at - begin > NS]
        truth = [(stamp_ns(m.header.stamp), must_stop({f.key: f.value for f in m.facts}))
                 for m in probe.truth]
        right = [(what == 'stop') == next(stop for at, stop in reversed(truth) if at <= now)
                 for now, what in drive if now >= truth[0][0]]
        flips = changes([what == 'stop' for _, what in drive])
        assert flips <= changes([stop for _, stop in truth]) + 3, (flips, drive)
        assert sum(right) > 0.75 * len(right), (sum(right), len(right))
        assert {what for _, what in drive} >= {'stop', 'go'}
        edge = running.nodes[-2]
        edge.executor.create_task(edge.trigger_deactivate)
        wait_for(lambda: not edge.active)
        wait_for(lambda: 'old' in planner[0].decide()[1] and plans[-1][1] == 'stop')
        last = stamp_ns(probe.answers[-1].header.stamp)
        assert not any(what == 'go' for at, what in plans if at - last > 1.2 * NS)
        assert limits[-1] == 0.0 and set(limits) <= set(SPEED.values())


def test_a_behaviour_tree_is_answered_at_once_and_old_facts_are_not_clear():
    """The flow of messages of the condition in docs/planners.md."""
    with graph(lambda: [RoadClear()]) as (probe, _):
        asked = probe.create_client(Trigger, 'is_road_clear')
        answers = probe.create_publisher(Answer, 'answers', RELIABLE)
        wait_for(asked.service_is_ready)
        wait_for(answers.get_subscription_count)

        def is_clear():
            future = asked.call_async(Trigger.Request())
            response = wait_for(future.done) and future.result()
            return response.success, response.message

        def say(**facts):
            answers.publish(answer_of(probe, **facts))
            return is_clear()
        assert is_clear()[0] is False and 'no answer' in is_clear()[1]
        wait_for(lambda: say(light='green', pedestrian='none') == (True, 'clear'), 10.0)
        wait_for(lambda: say(light='red', pedestrian='none') == (False, 'light is red'), 1.0)
        wait_for(lambda: say(light='none', pedestrian='sidewalk') == (True, 'clear'), 10.0)
        wait_for(lambda: not is_clear()[0], 3.0)
        assert 's old' in is_clear()[1]


def test_the_planner_of_the_readme_goes_and_stops():
    code, = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    with graph(list) as (probe, _):
        answers = probe.create_publisher(Answer, 'answers', RELIABLE)
        planner = subprocess.Popen([sys.executable, '-c', code], text=True, cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        said = []
        reading = threading.Thread(target=lambda: said.extend(planner.stderr), daemon=True)
        reading.start()
        try:
            for light, plan in (('green', 'go: '), ('red', 'stop: '), ('none', 'go: ')):
                wait_for(lambda: answers.publish(answer_of(probe, light=light, pedestrian='none'))
                         or said and plan in said[-1] and f"light='{light}'" in said[-1])
            wait_for(lambda: "stop: light=''" in said[-1])
            planner.send_signal(signal.SIGINT)
            code = planner.wait(10)
            reading.join(5.0)
            assert code == 0, ''.join(said)    # it was a traceback
            assert not any('Traceback' in line for line in said)
        finally:
            planner.kill()
            planner.wait()


def test_a_node_of_ones_own_shares_process_and_frames():
    """With the camera of the miniature world alone: no model is loaded."""
    hub, told = FrameHub(), []

    def make():
        node = Brightness(hub)
        node.create_subscription(Float32, 'brightness', told.append, 1)
        return [node, CameraNode(hub)]
    stop = SimpleNamespace(wait=lambda seconds: time.sleep(0.02) or bool(told),
                           ignore=lambda: None)
    assert run_nodes(make, ['--ros-args', '-p', 'source:=mini', '--log-level', 'error'], stop) == 0
    assert 10 < told[0].data < 250
