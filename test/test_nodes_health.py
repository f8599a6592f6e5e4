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
"""`/diagnostics` is at OK only while the node does its job, and else says what to do."""

from fakes import FakeEdge, wait_for
import pytest

pytest.importorskip('rclpy')
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402, I100
from spotvlm_msgs.msg import Answer  # noqa: E402
from spotvlm_ros.frames.frame import Frame  # noqa: E402
from spotvlm_ros.nodes.convert import image_msg  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from test_nodes_graph import graph, GREY, keep_sending, overlay  # noqa: E402


def send_to(probe):
    """Return what sends a grey frame with a given stamp."""
    return lambda stamp: probe.image.publish(image_msg(Frame(stamp, 'eye', pixels=GREY)))


class DeafEdge(FakeEdge):
    """Its one pass cannot be interrupted, and its answer is complete."""

    def answer(self, rgb, query, context, stamp_ns, on_text=None, should_stop=None):
        return super().answer(rgb, query, context, stamp_ns)


def test_an_answer_after_its_deadline_says_so_in_every_format(tmp_path):
    """One of 1.24 s had error_code 0 at a deadline of 0.3 s."""
    edge = DeafEdge(0.1)
    late = {'rate_hz': 5.0, 'deadline_s': 0.05}
    over = overlay(tmp_path, edge={'scene': late, 'action': late, 'queries': ['scene', 'action']})
    with graph(lambda: [EdgeNode(load=edge.load)], files=('driving', over)) as (probe, _):
        keep_sending(probe, send_to(probe),
                     lambda: {m.query_id for m in probe.answers} == {'scene', 'action'}
                     and probe.count('edge', 'late_answers'))
        for message in probe.answers:
            assert message.error_code == Answer.ERROR_TIMEOUT and message.facts
            assert 'later than 0.05 s' in message.error_msg and 'raise' in message.error_msg
        wait_for(lambda: probe.health['edge'][0] == DiagnosticStatus.WARN)
        assert '.deadline_s' in probe.health['edge'][1]
