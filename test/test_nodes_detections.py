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
"""Topics focus/detections and audit of node edge; stand-ins take the place of vision_msgs."""

import sys
from types import ModuleType, SimpleNamespace

from fakes import FakeEdge, wait_for
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from spotvlm_msgs.msg import Answer  # noqa: E402, I100
from spotvlm_msgs.msg import Context as ContextMsg  # noqa: E402
from spotvlm_ros.frames.frame import Frame  # noqa: E402
from spotvlm_ros.method.facts import Context, Fact, Query, Region  # noqa: E402
from spotvlm_ros.nodes.base import latched  # noqa: E402
from spotvlm_ros.nodes.convert import (  # noqa: E402
    context_msg, fact_msg, header_msg, image_msg, stamp_ns)
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from test_nodes_graph import graph, GREY, keep_sending  # noqa: E402

SCENE = Query('scene', 'What is on the road?', 'facts', {'light': ('red', 'green')})


class Detection(SimpleNamespace):
    """A message of vision_msgs, as far as it is filled."""

    def __init__(self, **fields):
        super().__init__(**fields, detections=[], hypothesis=SimpleNamespace(),
                         bbox=SimpleNamespace(center=SimpleNamespace(position=SimpleNamespace())))


class Collector:
    """A publisher that keeps what it is given, and has a subscriber."""

    def __init__(self):
        self.messages = []
        self.publish = self.messages.append

    def get_subscription_count(self):
        return 1


class FailsAtLast(FakeEdge):
    """Answers a few times, then never again."""

    def answer(self, *args, **kwargs):
        if sum(c is not None for _, c in self.seen) >= 3:
            raise RuntimeError('out of memory')
        return super().answer(*args, **kwargs)


def test_regions_are_those_that_this_very_answer_was_given(monkeypatch):
    """An answer that ends early with an error once had the boxes of the answer before."""
    stand_in, collector = ModuleType('vision_msgs.msg'), Collector()
    for name in ('Detection2D', 'Detection2DArray', 'ObjectHypothesisWithPose'):
        setattr(stand_in, name, Detection)
    monkeypatch.setitem(sys.modules, 'vision_msgs', ModuleType('vision_msgs'))
    monkeypatch.setitem(sys.modules, 'vision_msgs.msg', stand_in)
    advertise, destroy = EdgeNode.advertise, EdgeNode.destroy_lifecycle_publisher
    monkeypatch.setattr(EdgeNode, 'advertise', lambda self, kind, *args: collector
                        if kind is Detection else advertise(self, kind, *args))
    monkeypatch.setattr(EdgeNode, 'destroy_lifecycle_publisher', lambda self, publisher:
                        publisher is collector or destroy(self, publisher))
    with graph(lambda: [EdgeNode(load=FailsAtLast().load)]) as (probe, _):
        contexts = probe.create_publisher(ContextMsg, 'context', latched(8))

        def send(stamp):
            earlier = stamp - 10_000_000  # the frame that regions were last carried to
            context = Context('scene', earlier, (Fact('light', 'red', earlier),),
                              focus={'light': Region(8, 4, 16, 20)})
            contexts.publish(context_msg(context, SCENE, 'another', ContextMsg.GATE_OPEN, 0))
            probe.image.publish(image_msg(Frame(stamp, 'eye', pixels=GREY)))
        keep_sending(probe, send, lambda: sum(
            a.error_code == Answer.ERROR_MODEL for a in probe.answers) >= 3)
    boxes = {stamp_ns(m.header.stamp): m.detections for m in collector.messages}
    answers = {stamp_ns(a.header.stamp): a for a in probe.answers}
    assert any(a.used_context for a in answers.values())
    for stamp, answer in answers.items():
        assert [b.id for b in boxes[stamp]] == (['light'] if answer.used_context else [])
    # The frame whose pixels were cut out there.
    assert {m.header.frame_id for m in collector.messages} == {'eye'}
    assert all(b.header == m.header for m in collector.messages for b in m.detections)
    box = next(b for found in boxes.values() for b in found)
    assert (box.bbox.center.position.x, box.bbox.center.position.y) == (16, 14)
    assert (box.bbox.size_x, box.bbox.size_y) == (16, 20)


def test_the_audit_answers_once_more_without_context():
    """The fake edge says the same with and without: that agrees, copies nothing, harms nothing."""
    edge, audited = FakeEdge(), []
    with graph(lambda: [EdgeNode(load=edge.load)], 'audit_share:=1.0',
               'audit_truth:=true') as (probe, _):
        contexts = probe.create_publisher(ContextMsg, 'context', latched(8))
        truth = probe.create_publisher(Answer, 'truth', 10)
        probe.create_subscription(Answer, 'audit', audited.append, 10)

        def send(stamp):
            context = Context('scene', stamp, (Fact('light', 'red', stamp),))
            contexts.publish(context_msg(context, SCENE, 'eye', ContextMsg.GATE_OPEN, 0))
            facts = [fact_msg(Fact('light', 'green', stamp), stamp)]
            truth.publish(Answer(header=header_msg(stamp, 'eye'), facts=facts))
            probe.image.publish(image_msg(Frame(stamp, 'eye', pixels=GREY)))
        keep_sending(probe, send, lambda: len(audited) >= 3 and
                     'audit_harm_rate' in probe.diagnostics.get('edge', {}))
        figures = probe.diagnostics['edge']
        wait_for(lambda: {stamp_ns(a.header.stamp) for a in audited} <= {
            stamp_ns(a.header.stamp) for a in probe.answers if a.used_context})
    assert not any(a.used_context for a in audited)
    assert [f.value for f in audited[0].facts][:1] == ['none']  # the fake's first choice
    assert figures['audit_agreement_rate'] == '1' and figures['audit_harm_rate'] == '0'
    assert figures['audit_copy_rate'] == '0'
