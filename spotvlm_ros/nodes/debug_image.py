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
"""Topic debug_image: frames with what the edge was told about them and what it answered."""

from __future__ import annotations

from collections.abc import Iterator
import threading

import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from spotvlm_msgs.msg import Fact

from .answered import AnsweredFrame
from .base import RELIABLE, Report, SpotNode
from .convert import compressed_msg, duration_s, image_msg
from .publishers import SUFFIX
from ..config.nodes import EdgeConfig
from ..frames.annotate import annotate, Color, GREY, RED, WHITE
from ..frames.frame import Frame
from ..frames.pixels import encode_jpeg, FrameError
from ..method.facts import NS

TOPIC = 'debug_image'
ORIGINS = {Fact.ORIGIN_CONTEXT: 'with context', Fact.ORIGIN_HELD: 'of the cloud'}
NO_PICTURE = np.zeros((240, 640, 3), np.uint8)


class DebugImage:
    """
    Draws the newest answer while somebody subscribes, in a thread of its own.

    Answers that come while one is drawn are left out, so nobody waits for it.
    """

    def __init__(self, node: SpotNode[EdgeConfig]) -> None:
        """Draw nothing until `start`."""
        self._node = node
        self._waiting: AnsweredFrame | None = None
        self._changed = threading.Condition()
        self._running = False
        self._drawn = self._skipped = 0

    def setup(self) -> None:
        """Create the publishers."""
        self._raw = self._node.advertise(Image, TOPIC, RELIABLE)
        self._compressed = self._node.advertise(CompressedImage, TOPIC + SUFFIX, RELIABLE)

    def start(self) -> None:
        """Draw until the node is deactivated."""
        self._waiting, self._running = None, True
        thread = threading.Thread(target=self._run, name='debug_image', daemon=True)
        thread.start()

        def end() -> None:
            with self._changed:
                self._running = False
                self._changed.notify()
            thread.join(3.0)
        self._node.call_at_stop(end)

    def publish(self, answered: AnsweredFrame) -> None:
        """Leave an answer to be drawn, where somebody looks."""
        if self._raw.get_subscription_count() or self._compressed.get_subscription_count():
            with self._changed:
                self._skipped += self._waiting is not None
                self._waiting = answered
                self._changed.notify()

    def report(self) -> Report:
        """Return what /diagnostics shows, once somebody has looked."""
        return {'debug_images': self._drawn, 'debug_images_skipped': self._skipped} \
            if self._drawn else {}

    def _run(self) -> None:
        draw = self._node.counting_errors(self._draw)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or not self._running)
                answered, self._waiting = self._waiting, None
                if not self._running or answered is None:
                    return
            draw(answered)

    def _draw(self, answered: AnsweredFrame) -> None:
        try:
            rgb = answered.frame.rgb()
        except FrameError:
            rgb = NO_PICTURE
        context, message = answered.context, answered.message
        picture = annotate(rgb, context.focus if context is not None else {}, message.used_focus,
                           list(lines(answered)))
        frame = Frame(answered.frame.stamp_ns, answered.frame.frame_id, pixels=picture)
        self._drawn += 1
        if self._raw.get_subscription_count():
            self._raw.publish(image_msg(frame))
        if self._compressed.get_subscription_count():
            self._compressed.publish(compressed_msg(frame, encode_jpeg(picture)))


def lines(answered: AnsweredFrame) -> Iterator[tuple[str, Color]]:
    """Yield what a picture of an answer says, and in which colour."""
    message, context = answered.message, answered.context
    wait_s, model_s = duration_s(message.wait), \
        duration_s(message.preprocess) + duration_s(message.inference)
    camera = f'{answered.frame.camera}, ' * bool(answered.frame.camera)
    yield f'{message.query_id} ({camera}{message.model}): {1e3 * (wait_s + model_s):.0f} ms, ' \
        f'{1e3 * model_s:.0f} of them the model', WHITE
    if message.error_code:
        yield f'error {message.error_code}: {message.error_msg}', RED
    if message.used_context or message.used_focus:
        helped = ' and '.join(['context'] * message.used_context + ['focus'] * message.used_focus)
        age = f', newest fact {duration_s(message.context_age):.1f} s old' * message.used_context
        yield f'told: {helped} (number {message.context_sequence}){age}', WHITE
    else:
        yield 'told: no context', GREY
    cloud = {f.key: f for f in context.facts} if context is not None else {}
    for fact in message.facts:
        said = cloud.get(fact.key)
        yield f'{fact.key} = {fact.value} ({fact.confidence:.2f}, ' \
            f'{ORIGINS.get(fact.origin, "own")})' + (
                f', cloud: {said.value} {(answered.frame.stamp_ns - said.stamp_ns) / NS:.1f} s ago'
                if said is not None else ''), WHITE
    if not message.facts and message.text:
        yield message.text, WHITE
