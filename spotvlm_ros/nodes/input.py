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
"""Frames for a node: from the shared hub in one process, from an image topic otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
import time

from sensor_msgs.msg import CompressedImage, Image

from .base import Report, SpotNode
from .convert import stamp_ns
from .health import Pulse, SILENCE_S, Trouble
from .image_converter import CONVERTER
from .image_topic import ImageTopic
from .publishers import frame_topic, image_topic, who_publishes
from ..config.nodes import ImageInputConfig
from ..frames.frame import Frame
from ..frames.hub import FrameHub
from ..frames.pixels import check_image, FrameError, image_to_rgb
from ..frames.stamps import StampOrder


class FrameInput:
    """
    Gives each good frame to ``on_frame``; bad ones are counted, never raised.

    ``on_restart`` is called before the first frame of a stream that has started over. Both run on
    the thread of the executor, or on that of the camera where frames come from a hub.
    """

    def __init__(self, node: SpotNode[ImageInputConfig], hub: FrameHub | None,
                 on_frame: Callable[[Frame], None], on_restart: Callable[[], None] = lambda: None,
                 camera: str = '') -> None:
        """Listen to a camera until the node is deactivated."""
        self._node, self._on_frame, self._on_restart = node, on_frame, on_restart
        self.camera = camera
        self.topic = frame_topic(node, camera, node.config.image_transport)
        self.pulse = Pulse()
        self.order = StampOrder()
        self.frames = 0
        self._since = time.monotonic()
        self._hub, self._hint = hub, ''
        self._images: ImageTopic | None = None
        node.call_every(SILENCE_S, self._look_for_frames)
        if hub is not None:
            node.call_at_stop(hub.listen(node.counting_errors(self._share)))
        elif node.config.image_transport == 'compressed':
            self._images = ImageTopic(node, CompressedImage, self.topic, self._compressed)
        else:
            self._images = ImageTopic(node, Image, image_topic(camera), self._raw)

    def report(self) -> Report:
        """Return rates and rejects since the last call."""
        now = time.monotonic()
        rate = self.frames / max(1e-3, now - self._since)
        self.frames, self._since = 0, now
        values: Report = {'input_hz': rate, 'restarts': self.order.restarts}
        values |= {str(why): count for why, count in self.order.rejected.items()}
        if self._images is not None and self._images.raw:
            values['converter'] = CONVERTER.name if self._node.config.use_cv_bridge else \
                'spotvlm (use_cv_bridge is false)'
        return {f'{self.camera}.{k}' if self.camera else k: v for k, v in values.items()}

    @property
    def where(self) -> str:
        """Return where frames come from."""
        return self.topic if self._hub is None else f'node camera {self.camera}'.rstrip()

    def troubles(self, wanted_hz: float = 0.0) -> Iterator[Trouble]:
        """Yield what is wrong with the frames, ``wanted_hz`` of which are made use of."""
        if self._hub is not None and self._hub.finished.is_set():
            yield Trouble('the source of node camera has ended; see what it says')
        elif silence := self.pulse.silence(f'usable frame from {self.where}', self._hint):
            yield silence
        elif slow_hz := self.pulse.slow_hz(wanted_hz):
            lost = self._node.problem_counts['messages_lost']
            yield Trouble(
                f'frames of {self.where} come at {slow_hz:.1f} Hz, and {wanted_hz:g} Hz are '
                'wanted: raise the rate of the camera, lower rate_hz of the queries, or, where '
                f'frames are lost on the way ({lost} messages are known to be), '
                f'{self._images.remedy if self._images else "see node camera"}')

    def _look_for_frames(self) -> None:
        """Say that frames come from several, or none for some seconds, and who could send them."""
        if self._images is not None:
            self._images.look()
            self._node.look_for_publishers(self.topic)
        if not self.pulse.late_s or self._hub is not None and self._hub.finished.is_set():
            self._hint = ''
            return
        self._node.problem_counts['no_frames'] += 1
        hint = 'see what it says' if self._hub is not None else \
            who_publishes(self._node, self.topic, self._node.config.image_transport)
        if hint != self._hint and self._hub is None:
            self._node.get_logger().warning(f'no usable frame from {self.topic}; {hint}')
        self._hint = hint

    def _share(self, frame: Frame) -> None:
        if frame.camera == self.camera:
            self._take(frame)

    def _raw(self, message: Image) -> None:
        try:
            check_image(message)
        except FrameError as error:
            self._node.count_problem('bad_images', f'image: {error}')
            return
        pixels = partial(CONVERTER.rgb, message, partial(self._node.count_problem, 'cv_bridge')) \
            if self._node.config.use_cv_bridge else partial(image_to_rgb, message)
        self._take(Frame(stamp_ns(message.header.stamp), message.header.frame_id,
                         pixels=pixels, camera=self.camera))

    def _compressed(self, message: CompressedImage) -> None:
        self._take(Frame(stamp_ns(message.header.stamp), message.header.frame_id,
                         jpeg=bytes(message.data), camera=self.camera))

    def _take(self, frame: Frame) -> None:
        if self._node.now_ns() == 0:
            self._node.count_problem(
                'no_sim_time', 'use_sim_time is set but no /clock came yet; start the simulation '
                'or ros2 bag play --clock')
            return
        verdict = self.order.admit(frame.stamp_ns)
        if verdict == 'zero_stamp':
            self._node.count_problem(
                'zero_stamps', 'image without stamp; the driver must fill header.stamp with the '
                'time of acquisition')
        elif verdict == 'restart':
            self._on_restart()
        if verdict in ('ok', 'restart'):
            self.frames += 1
            self.pulse.beat(frame.stamp_ns)
            self._on_frame(frame)
