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
"""What the cloud says late, and what node edge makes of it."""

from collections import Counter

from fakes import JudgedEdge
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402, I100
from spotvlm_msgs.msg import Answer, Calibration, Context, Fact  # noqa: E402
from spotvlm_ros.method import facts  # noqa: E402
from spotvlm_ros.method.facts import NS  # noqa: E402
from spotvlm_ros.method.stacking import NAMES  # noqa: E402
from spotvlm_ros.nodes.base import latched, RELIABLE  # noqa: E402
from spotvlm_ros.nodes.convert import context_msg, stamp_ns  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from spotvlm_ros.recording import replay  # noqa: E402
from spotvlm_ros.recording.recorder import from_plain  # noqa: E402
from test_nodes_graph import graph, keep_sending, overlay, send_to  # noqa: E402

LATE = 5       # answers of the edge until the cloud's comes
QUERY = {'prompt': 'Which light is on?', 'format': 'choice', 'rate_hz': 50.0,
         'choices': ['none', 'red', 'green', 'yellow']}   # the edge says none, and is sure
LAMP = facts.Query('lamp', QUERY['prompt'], 'choice', {'lamp': tuple(QUERY['choices'])})


class LateCloud:
    """Sends frames, and says about each that was answered what ``value`` says of its number."""

    def __init__(self, probe, value):
        self.probe, self.value, self.said = probe, value, []
        self.learned = []   # messages
        self._send = send_to(probe.image)
        self._answers = probe.create_publisher(Answer, 'cloud/answers', RELIABLE)
        probe.create_subscription(Calibration, 'calibration', self.learned.append, latched(16))

    def send(self, stamp):
        """Send a frame, and what is due."""
        self._send(stamp)
        for answer in self.probe.answers[len(self.said):max(0, len(self.probe.answers) - LATE)]:
            self.said.append(self.value(len(self.said)))
            self._answers.publish(Answer(
                header=answer.header, query_id='lamp', source=Answer.SOURCE_CLOUD,
                facts=[Fact(key='lamp', value=self.said[-1], confidence=1.0,
                            stamp=answer.header.stamp)]))

    def run(self, until):
        """Go on until that is true."""
        keep_sending(self.probe, self.send, until)

    def held(self, newest):
        """Return the facts of the newest answers that are the cloud's."""
        return [a for a in self.probe.answers[-newest:] for f in a.facts
                if f.origin == Fact.ORIGIN_HELD]

    def warns(self, text):
        """Return whether node edge says so in /diagnostics."""
        level, said = self.probe.health.get('edge', (b'', ''))
        return level == DiagnosticStatus.WARN and text in said


def lamp(n):
    """Return the lamp of a frame: it changes now and then, and is always on."""
    return ('red', 'green', 'yellow')[n // 15 % 3]


def edge_of(tmp_path, **values):
    """Return the parameters of an edge with one question."""
    return 'driving', overlay(tmp_path, edge={'queries': ['lamp'], 'lamp': QUERY, **values})


def test_an_edge_that_is_sure_and_wrong_gives_the_clouds_values_and_says_so(tmp_path):
    files = edge_of(tmp_path, record_dir=str(tmp_path / 'run'))
    with graph(lambda: [EdgeNode(load=JudgedEdge().load)], files=files) as (probe, _):
        cloud = LateCloud(probe, lamp)
        cloud.run(lambda: len(cloud.held(10)) == 10 and cloud.warns(
            'lamp.lamp: the edge model agrees with the cloud about 0 of 100 frames; answers are '
            'mostly what the cloud said'))
        cloud.run(lambda: cloud.learned and cloud.learned[-1].keys[0].learned)
        newest = probe.answers[-1]
        assert newest.facts[0].value in cloud.said[-2 * LATE:] and not newest.used_context
        assert stamp_ns(newest.facts[0].stamp) < stamp_ns(newest.header.stamp)
        assert newest.facts[0].age.nanosec and newest.text == newest.facts[0].value
        key = cloud.learned[-1].keys[0]
        assert key.believed and key.labels >= 20 and key.agreement == 0.0 < key.help
        assert len(key.weights) == len(key.weight_names) == len(NAMES)
        known = probe.diagnostics['edge']
        assert 'learned' in known['calibration_lamp_lamp']
        assert int(known['truths_unmatched']) * 4 < int(known['truths']) >= 20
    counts = replayed(tmp_path)
    assert counts['answers_different'] == counts['confidences_different'] == 0
    assert replayed(tmp_path, lambda line: line['event'] != 'truth')['answers_different']


def replayed(tmp_path, wanted=lambda line: True, edge=None):
    """Answer a recording again, those lines that are wanted; return the counts."""
    first, *lines = replay.read_lines(tmp_path / 'run' / 'edge.jsonl', Counter())
    again = replay.EdgeReplay(from_plain(replay.EdgeStart, first), edge or JudgedEdge(0.0),
                              replay.Pictures(tmp_path / 'run'))
    for line in lines:
        if wanted(line):
            again.take(line)
    assert again.counts['answers_equal'] and not again.counts['frames_missing']
    return again.counts


@pytest.mark.parametrize('seconds, counted', [
    (0.001, 'passes_to_learn'), (0.06, 'passes_without_time')])
def test_a_sure_edge_is_asked_with_context_now_and_then_if_there_is_time(
        tmp_path, seconds, counted):
    files = edge_of(tmp_path, record_dir=str(tmp_path / 'run'), calibrate_share=0.5,
                    lamp={**QUERY, 'deadline_s': 0.15})
    edge = JudgedEdge(seconds)
    with graph(lambda: [EdgeNode(load=edge.load)], files=files) as (probe, _):
        contexts = probe.create_publisher(Context, 'context', latched(8))
        send = send_to(probe.image)

        def told(stamp):
            known = facts.Context('lamp', stamp, (facts.Fact('lamp', 'red', stamp),))
            contexts.publish(context_msg(known, LAMP, 'eye', Context.GATE_OPEN, 0))
            send(stamp)
        keep_sending(probe, told, lambda: probe.count('edge', counted) >= 4)
    asked = sum(context is not None for _, context in edge.seen)
    assert asked >= 4 if counted == 'passes_to_learn' else asked == 0
    again = JudgedEdge(0.0)
    assert replayed(tmp_path, edge=again)['answers_different'] == 0
    assert sum(context is not None for _, context in again.seen) == asked


def test_a_cloud_that_says_anything_is_not_believed(tmp_path):
    rng = np.random.default_rng(1)
    edge = JudgedEdge(choose=lambda ns: ns * 3 // NS % 4)
    with graph(lambda: [EdgeNode(load=edge.load)], files=edge_of(tmp_path)) as (probe, _):
        cloud = LateCloud(probe, lambda n: str(rng.choice(QUERY['choices'])))
        cloud.run(lambda: cloud.warns("lamp.lamp: the cloud's answers fit neither"))
        cloud.run(lambda: not cloud.held(10))
        newest = probe.answers[-1]
        assert newest.facts[0].value == QUERY['choices'][edge.choose(
            stamp_ns(newest.header.stamp))]


def test_without_calibration_the_guard_decides(tmp_path):
    files = edge_of(tmp_path, calibrate=False)
    with graph(lambda: [EdgeNode(load=JudgedEdge().load)], files=files) as (probe, _):
        cloud = LateCloud(probe, lamp)
        cloud.run(lambda: len(cloud.said) > 80)
        assert not cloud.held(len(probe.answers)) and not probe.count('edge', 'truths')


def test_without_calibration_weights_that_were_learned_are_used_as_they_are(tmp_path):
    weights = {'lamp': ['own: 0.0', 'held: 5.0']}
    files = edge_of(tmp_path, calibrate=False, record_dir=str(tmp_path / 'run'),
                    lamp={**QUERY, 'weights': weights})
    with graph(lambda: [EdgeNode(load=JudgedEdge().load)], files=files) as (probe, _):
        cloud = LateCloud(probe, lamp)
        cloud.run(lambda: len(cloud.held(10)) == 10 and probe.count('edge', 'truths') and
                  probe.diagnostics['edge']['calibration_lamp_lamp'] == 'as its weights say')
        assert not cloud.learned
    assert replayed(tmp_path)['answers_different'] == 0
