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
"""Camera node: frames from a topic, a camera, a recording or the miniature world."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import threading
import time

from rclpy.lifecycle import LifecyclePublisher
from sensor_msgs.msg import CompressedImage, Image
from spotvlm_msgs.msg import Answer
from typing_extensions import Unpack

from .base import DOUBLES_S, RELIABLE, Report, SpotNode
from .convert import compressed_msg, fact_msg, header_msg, image_msg, MAX_FACTS
from .health import ERROR, Pulse, Trouble
from .input import FrameInput
from .mini_motion import MotionPublisher
from .parameters import NodeOptions
from .publishers import frame_topic, image_topic
from ..config.nodes import CameraConfig, NodeConfig
from ..config.spec import ParameterError
from ..frames.frame import Frame
from ..frames.hub import FrameHub, HEAD_START_S
from ..frames.pace import Pace
from ..frames.pixels import encode_jpeg
from ..frames.source_frame import SourceError, SourceFrame
from ..frames.sources import open_source
from ..frames.streams import shown_address


class CameraNode(SpotNode[CameraConfig]):
    """
    Stamps frames when they are acquired and hands them to the hub and to subscribers.

    With source topic it hands on what it receives, to the other nodes of its process only.
    """

    def __init__(self, hub: FrameHub | None = None, **options: Unpack[NodeOptions]) -> None:
        """Create the node; ``hub`` is shared with the other nodes of this process."""
        super().__init__('camera', CameraConfig, **options)
        self.hub = hub or FrameHub()
        self._shared = hub is not None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pace = Pace(on_error=lambda why: self.count_problem('bad_images', why))
        self._inputs: list[FrameInput] = []
        self._name = ''
        self._truth: LifecyclePublisher | None = None
        self._motion: MotionPublisher | None = None
        self._stream: Iterator[SourceFrame] | None = None
        self._sent = 0
        self._lost = ''  # why a stream gives nothing
        self._pulse = Pulse()
        self._listened = threading.Event()
        self.finished = self.hub.finished

    def setup(self) -> None:
        """Open the source, so that a wrong path fails here."""
        names = self.config.cameras or ('',)
        if self.config.source == 'topic':
            return
        if len(names) > 1:
            raise ParameterError(
                f'cameras names {", ".join(names)}, but source {self.config.source} is one '
                'camera; name one, and start a camera node for each of the others')
        self._name = names[0]
        self._stop.clear()
        self._stream = self._open()
        self._image = self.advertise(Image, image_topic(self._name), RELIABLE)
        self._compressed = self.advertise(
            CompressedImage, frame_topic(self, self._name, 'compressed'), RELIABLE)
        if self.config.source == 'mini':
            self._truth = self.advertise(Answer, 'truth', RELIABLE)
            if self.config.publish_motion:
                self._motion = MotionPublisher(self, self._name)

    def start(self) -> None:
        """Let frames flow."""
        self.finished.clear()
        if self.config.source == 'topic':
            if self._shared:
                self._inputs = [FrameInput(self, None, self.hub.publish, camera=name)
                                for name in self.config.cameras or ('',)]
            return
        self._stop.clear()
        self._lost = ''
        self._listened.clear()
        self.call_every(DOUBLES_S, lambda: self.look_for_publishers(self._image.topic_name))
        self._thread = threading.Thread(target=self._run, name='camera', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the stream."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(3.0)
            self._thread = None

    def release(self) -> None:
        """Close the source."""
        self._stream = None
        self._truth = self._motion = None

    def report(self) -> Report:
        """Return what /diagnostics shows."""
        values: Report = {
            'source': self.config.source, 'frames': self._sent,
            'late_frames_skipped': self._pace.skipped, 'bad_frames': self._pace.failed,
            'finished': self.finished.is_set()}
        for frames in self._inputs:
            values |= frames.report()
        return values

    def troubles(self) -> Iterable[Trouble]:
        """Return why no frames flow, or too few."""
        config = self.config
        if self._inputs:
            return [trouble for frames in self._inputs for trouble in frames.troubles()]
        if config.source == 'topic':
            return ()  # in a process of its own there is nothing to do
        if self.finished.is_set():
            return [Trouble(f'{config.source}: end of stream after {self._sent} frames; set loop, '
                            'or start the node again')]
        if not self._listened.is_set():
            return [Trouble('the first frame waits for node edge to listen, at most '
                            f'{config.wait_for_listener_s:g} s (wait_for_listener_s)')]
        if self._lost:
            return [Trouble(self._lost, ERROR)]
        if silence := self._pulse.silence(f'frame from source {config.source}', {
                'usb': 'is the camera connected? see dmesg',
                'stream': f'{shown_address(config.path)} is connected anew after timeout_s'}.get(
                    config.source,
                    f'can {config.path or "it"} be read, and is the machine overloaded?')):
            return [silence]
        if slow_hz := self._pulse.slow_hz(config.rate_hz):
            return [Trouble(f'{config.source} gives {slow_hz:.1f} frames per second, and rate_hz '
                            f'is {config.rate_hz:g}: lower it, or see what else takes the cores')]
        return ()

    def setting(self) -> str:
        """Return where frames come from."""
        config = self.config
        what = {'mini': f'world {config.world}', 'stream': shown_address(config.path),
                'usb': config.path or f'device {config.device}'}
        rate = f', {config.rate_hz:g} Hz' if config.rate_hz else ''
        return f'source {config.source} {what.get(config.source, config.path)}'.rstrip() + rate

    def traffic(self) -> str:
        """Return where frames go."""
        if self._inputs:
            return f'frames from {", ".join(f.where for f in self._inputs)} to this process'
        return 'nothing to do: the nodes subscribe to the topic themselves' \
            if self.config.source == 'topic' else f'images to {self._image.topic_name}'

    @property
    def ended(self) -> bool:
        """Whether the source has no more frames and the process is to end then."""
        return self.config.exit_when_finished and self.finished.is_set()

    def _open(self) -> Iterator[SourceFrame]:
        return open_source(self.config, self._stop.is_set, self._on_lost)

    def _on_lost(self, why: str) -> None:
        """Count that a stream has to be connected again; '': it gives pictures."""
        self._lost = why
        if why:
            self.count_problem('reconnects', why)

    def _run(self) -> None:
        try:
            self._wait_for_listener()
            self._listened.set()
            self._pulse = Pulse()
            while not self._stop.is_set():
                frames = self._stream or self._open()
                self._stream = None
                self._pace.run(frames, self._acquire, self._stop)
                if not self.config.loop:
                    break
        except SourceError as error:
            self.failure = str(error)
            self.count_problem('source_errors', str(error))
        except Exception as error:
            self.failure = self.count_error('source_errors', error)
        if not self._stop.is_set():
            if not self._sent and not self.failure:
                self.failure = (f'{self.config.source}: none of {self._pace.failed} frames could '
                                f'be used: {self._pace.last_error}')
                self.count_problem('source_errors', self.failure)
            self.get_logger().info(f'{self.config.source}: end of stream after {self._sent} '
                                   f'frames, {self._pace.skipped} skipped as late')
            self.finished.set()

    def _wait_for_listener(self) -> None:
        until = time.monotonic() + self.config.wait_for_listener_s
        while not self._edge_listens() and time.monotonic() < until and not self._stop.wait(0.02):
            pass

    def _edge_listens(self) -> bool:
        """Return whether node edge takes frames yet: its model takes seconds to load."""
        if self.hub.listeners:
            return True
        topics = (self._image.topic_name, self._compressed.topic_name)
        # A composed process that takes frames from topics does so by its camera node.
        return any(info.node_name in ('edge', 'camera') for topic in topics
                   for info in self.get_subscriptions_info_by_topic(topic))

    def _acquire(self, recorded: SourceFrame) -> None:
        """Stamp one frame and hand it out."""
        if recorded.warning:
            self.count_problem('recorded_time_jumps', recorded.warning)
        pixels = recorded.load() if recorded.load is not None else None
        keep = self.config.keep_stamps and recorded.stamp_ns
        stamp = recorded.stamp_ns if keep else self.now_ns()
        if stamp == 0:
            self.count_problem('no_sim_time', 'use_sim_time is set but no /clock came yet')
            return
        frame = Frame(stamp, self.config.frame_id, pixels=pixels, jpeg=recorded.jpeg,
                      reference=recorded.reference, camera=self._name)
        self._sent += 1
        self._pulse.beat(stamp)
        if self._motion is not None and recorded.pose is not None:
            self._motion.publish(frame, recorded.pose())
        self.hub.publish(frame)
        shared = bool(self.hub.listeners)
        if not shared:
            self._publish(frame)
        if self._truth is not None and recorded.truth is not None:
            self._stop.wait(HEAD_START_S)
            facts = recorded.truth(stamp)
            self._truth.publish(Answer(
                header=header_msg(stamp, frame.frame_id), source=Answer.SOURCE_TRUTH,
                text=recorded.reference, facts=[fact_msg(f, stamp) for f in facts[:MAX_FACTS]]))
        if shared:  # those in this process have it, the others can wait
            self._publish(frame)

    def _publish(self, frame: Frame) -> None:
        wanted = self.config.publish_image
        if wanted == 'never':
            return
        if wanted == 'always' or self._image.get_subscription_count():
            self._image.publish(image_msg(frame))
        if self._compressed.get_subscription_count():
            jpeg = frame.jpeg or encode_jpeg(frame.rgb())
            self._compressed.publish(compressed_msg(frame, jpeg))


def make_nodes() -> list[SpotNode[NodeConfig]]:
    """Return the node for a process of its own."""
    return [CameraNode()]
