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
"""Topic debug_image: drawn while somebody looks, at nobody's cost, whatever texts say."""

import threading

import cv2
from fakes import FakeEdge, wait_for
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy')
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402, I100
from spotvlm_msgs.msg import Answer, Fact as FactMsg  # noqa: E402
from spotvlm_ros.frames import annotate as drawing  # noqa: E402
from spotvlm_ros.frames.frame import Frame  # noqa: E402
from spotvlm_ros.method.facts import Context, Fact, NS, Query, Region  # noqa: E402
from spotvlm_ros.nodes import debug_image  # noqa: E402
from spotvlm_ros.nodes.answered import AnsweredFrame  # noqa: E402
from spotvlm_ros.nodes.convert import duration_msg, stamp_ns  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from test_nodes_graph import graph, GREY, keep_sending, send_to  # noqa: E402

SCENE = Query('scene', 'What?', 'facts', {'light': ('red', 'green'), 'lead': ('car', 'none')})


def test_nothing_is_drawn_until_somebody_subscribes_and_after(monkeypatch):
    drawn, seen = [], []
    draw = drawing.annotate
    monkeypatch.setattr(debug_image, 'annotate', lambda *a: drawn.append(1) or draw(*a))
    edge = FakeEdge()
    with graph(lambda: [EdgeNode(load=edge.load)]) as (probe, running):
        send = send_to(probe.image)
        keep_sending(probe, send, lambda: len(probe.answers) >= 5)
        assert not drawn and 'debug_images' not in probe.diagnostics.get('edge', {})
        raw = probe.create_subscription(Image, 'debug_image', seen.append, 5)
        packed = probe.create_subscription(CompressedImage, 'debug_image/compressed',
                                           seen.append, 5)
        keep_sending(probe, send, lambda: {type(m) for m in seen} == {Image, CompressedImage}
                     and probe.count('edge', 'debug_images'))
        stamps = {stamp_ns(a.header.stamp) for a in probe.answers}
        image = next(m for m in seen if isinstance(m, Image))
        assert stamp_ns(image.header.stamp) in stamps and image.header.frame_id == 'eye'
        assert image.encoding == 'rgb8' and image.width == 640 and image.height > 480
        jpeg = next(m for m in seen if isinstance(m, CompressedImage))
        assert cv2.imdecode(np.frombuffer(jpeg.data, np.uint8), 1).shape[1] == 640
        for subscription in (raw, packed):
            probe.destroy_subscription(subscription)
        node = running.nodes[-1]
        wait_for(lambda: not node.count_subscribers('debug_image')
                 + node.count_subscribers('debug_image/compressed'))
        drawn.clear()
        mark = len(probe.answers)
        keep_sending(probe, send, lambda: len(probe.answers) >= mark + 5)
        assert len(drawn) <= 1  # one may have been under way


def test_answers_do_not_wait_for_a_picture_that_takes_long(monkeypatch):
    begun, finish = threading.Event(), threading.Event()

    def slow(*args):
        begun.set()
        finish.wait(30.0)
        return GREY
    monkeypatch.setattr(debug_image, 'annotate', slow)
    edge = FakeEdge()
    with graph(lambda: [EdgeNode(load=edge.load)]) as (probe, running):
        probe.create_subscription(Image, 'debug_image', lambda m: None, 5)
        send = send_to(probe.image)
        keep_sending(probe, send, begun.is_set)
        mark = len(probe.answers)
        keep_sending(probe, send, lambda: len(probe.answers) >= mark + 10)
        finish.set()
        keep_sending(probe, send, lambda: probe.count('edge', 'debug_images_skipped') >= 5)


def test_a_picture_that_fails_is_counted_and_answers_go_on(monkeypatch):
    def fails(*args):
        raise RuntimeError('no font')
    monkeypatch.setattr(debug_image, 'annotate', fails)
    edge = FakeEdge()
    with graph(lambda: [EdgeNode(load=edge.load)]) as (probe, running):
        probe.create_subscription(Image, 'debug_image', lambda m: None, 5)
        keep_sending(probe, send_to(probe.image),
                     lambda: probe.count('edge', 'callback_errors') >= 2)
        mark = len(probe.answers)
        keep_sending(probe, send_to(probe.image), lambda: len(probe.answers) > mark)


def answered(**fields):
    """Return an answer with context about a frame."""
    context = Context('scene', 5 * NS, (Fact('light', 'red', 3 * NS),),
                      focus={'light': Region(8, 4, 16, 20)})
    message = Answer(query_id='scene', model='eye-model', used_context=True, used_focus=True,
                     context_sequence=12, context_age=duration_msg(2.0),
                     wait=duration_msg(0.01), inference=duration_msg(0.03), facts=[
                         FactMsg(key='light', value='red', confidence=0.93, origin=2),
                         FactMsg(key='lead', value='car', confidence=0.5, origin=1)])
    for name, value in fields.items():
        setattr(message, name, value)
    return AnsweredFrame(Frame(5 * NS, 'eye', pixels=GREY), SCENE, message, context)


def test_the_lines_say_answer_age_of_context_and_what_helped():
    said = [text for text, _ in debug_image.lines(answered())]
    assert said == [
        'scene (eye-model): 40 ms, 30 of them the model',
        'told: context and focus (number 12), newest fact 2.0 s old',
        'light = red (0.93, with context), cloud: red 2.0 s ago',
        'lead = car (0.50, own)']
    failed = [text for text, _ in debug_image.lines(answered(
        used_context=False, used_focus=False, facts=[], error_code=3, error_msg='out of memory'))]
    assert failed[1:] == ['error 3: out of memory', 'told: no context']


@pytest.mark.parametrize('shape', [(48, 64), (1, 5000), (5000, 1), (2160, 3840), (1, 1)])
def test_pictures_of_any_shape_and_texts_of_anybody_are_drawn_within_bounds(shape):
    frame = np.full((*shape, 3), 90, np.uint8)
    focus = {f'key {i} \x1b[2J ä 红 {"x" * 500}': Region(-1e9, -5, 2e9, 1e9) for i in range(99)}
    focus['beside'] = Region(1e6, 1e6, 1, 1)
    texts = [('\x1b[31m <|im_start|>system\n' + 'long words ' * 5000, drawing.WHITE)] * 500
    picture = drawing.annotate(frame, focus, True, texts)
    assert picture.shape[0] <= 1280 + 500 and 640 <= picture.shape[1] <= 1280
    assert (frame == 90).all()


def test_text_is_plain():
    assert drawing.plain('Grün \x1b[2J\n<|eot|> 红') == 'Grun (2J (/eot/) ?'


def test_regions_are_drawn_where_they_are():
    frame = np.full((480, 640, 3), 90, np.uint8)
    shown = drawing.annotate(frame, {'light': Region(100, 200, 50, 60)}, True, [])
    changed = (shown[:480] != 90).any(axis=2)
    assert changed[230, 99:102].any() and changed[258:262, 120].any()
    assert not changed[230, 110:140].any() and not changed[300:, :].any()
