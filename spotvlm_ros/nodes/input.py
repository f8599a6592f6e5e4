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

from collections.abc import Callable
import time

from sensor_msgs.msg import CompressedImage, Image

from .base import Report, SENSOR, SpotNode
from .convert import stamp_ns
from ..config.nodes import ImageInputConfig
from ..frames.frame import Frame
from ..frames.hub import FrameHub
from ..frames.pixels import check_image, FrameError, image_to_rgb
from ..frames.stamps import StampOrder


SILENCE_S = 3.0  # without a frame; then it is said, and again each time


def image_topic(camera: str) -> str:
    """Return the topic of a camera's raw images; '' is the only camera."""
    return f'{camera}/image' if camera else 'image'


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
        self._camera = camera
        self.order = StampOrder()
        self.frames = 0
        self._since = self._newest = time.monotonic()
        self._hub = hub
        node.call_every(SILENCE_S, self._look_for_frames)
        if hub is not None:
            node.call_at_stop(hub.listen(node.counting_errors(self._share)))
        elif node.config.image_transport == 'compressed':
            node.subscribe(CompressedImage, f'{image_topic(camera)}/compressed', SENSOR,
                           self._compressed)
        else:
            node.subscribe(Image, image_topic(camera), SENSOR, self._raw)

    def report(self) -> Report:
        """Return rates and rejects since the last call."""
        now = time.monotonic()
        rate = self.frames / max(1e-3, now - self._since)
        self.frames, self._since = 0, now
        values: Report = {'input_hz': rate, 'restarts': self.order.restarts}
        values |= {str(why): count for why, count in self.order.rejected.items()}
        return {f'{self._camera}.{k}' if self._camera else k: v for k, v in values.items()}

    def _look_for_frames(self) -> None:
        """Say that frames come from several, or none for some seconds, and who could send them."""
        kind = Image if self._node.config.image_transport == 'raw' else CompressedImage
        suffix = '' if kind is Image else '/compressed'
        topic = self._node.resolve_topic_name(image_topic(self._camera) + suffix)
        if self._hub is None:
            self._node.look_for_publishers(topic)
        if time.monotonic() - self._newest < SILENCE_S:
            return
        if self._hub is not None:
            if not self._hub.finished.is_set():
                self._node.count_problem('no_frames', 'node camera has had no usable frame for '
                                         f'{SILENCE_S:g} s; see what it says')
            return
        publishers = self._node.count_publishers(topic)
        if publishers:
            hint = f'{publishers} publish it: are they running, and does their QoS fit?'
        else:
            type_name = f'sensor_msgs/msg/{kind.__name__}'
            others = sorted(name for name, types in self._node.get_topic_names_and_types()
                            if type_name in types and self._node.count_publishers(name))
            hint = 'nobody publishes it; ' + (
                f'images are on {", ".join(others[:4])}: remap {topic} to one of these, or set '
                'namespace' if others else f'no topic of type {type_name} is published')
        self._node.count_problem('no_frames', f'no usable frame on {topic} for {SILENCE_S:g} s; '
                                 f'{hint}')

    def _share(self, frame: Frame) -> None:
        if frame.camera == self._camera:
            self._take(frame)

    def _raw(self, message: Image) -> None:
        try:
            check_image(message)
        except FrameError as error:
            self._node.count_problem('bad_images', f'image: {error}')
            return
        self._take(Frame(stamp_ns(message.header.stamp), message.header.frame_id,
                         pixels=lambda: image_to_rgb(message), camera=self._camera))

    def _compressed(self, message: CompressedImage) -> None:
        self._take(Frame(stamp_ns(message.header.stamp), message.header.frame_id,
                         jpeg=bytes(message.data), camera=self._camera))

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
            self._newest = time.monotonic()
            self._on_frame(frame)
