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
"""How the camera of a bag turned, by the camera_info and the odometry in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from .ego import EgoMotion, OdometryTurns
from ..config.nodes import ContextNodeConfig
from ..config.spec import ParameterError
from ..frames.bags import bag_messages
from ..frames.frame import Frame
from ..frames.source_frame import SourceError
from ..method.ego import Matrix
from ..method.facts import NS

LATER_S = 0.5   # odometry is read this far ahead of a frame, by the recorder's clock


class BagMotion:
    """Tells how the camera turned, frame by frame, with the odometry around each."""

    def __init__(self, path: str, config: ContextNodeConfig) -> None:
        """Raise ParameterError for what cannot be had from a bag."""
        if config.ego_motion == 'tf':
            raise ParameterError('ego_motion is tf, and process reads odometry only; set '
                                 'context.ego_motion to odometry or none')
        self.config, self._path = config, path
        self.counts: Counter[str] = Counter()
        self.newest = ''   # why something was counted
        self._turns = OdometryTurns(self)
        self._ego = EgoMotion(self, self._turns)
        self._calibrated: set[str] = set()   # optical frames that were looked for
        self._odometry = self._messages('nav_msgs/msg/Odometry', 'odom')
        self._next = next(self._odometry, None)

    def count_problem(self, kind: str, text: str) -> None:
        """Count something that went wrong."""
        self.counts[kind] += 1
        self.newest = text

    def resolve_topic_name(self, topic: str) -> str:
        """Return how a topic is called in messages."""
        return topic

    def turn(self, frame: Frame, log_ns: int, before_ns: int) -> Matrix | None:
        """Return the homography from the frame of ``before_ns`` to this one, None if unknown."""
        if frame.frame_id not in self._calibrated:
            self._calibrated.add(frame.frame_id)
            for message, _ in self._messages('sensor_msgs/msg/CameraInfo', 'camera_info'):
                if message.header.frame_id == frame.frame_id:
                    self._ego.take(message)
                    break
        while self._next is not None and self._next[1] <= log_ns + LATER_S * NS:
            self._turns.take(self._next[0])
            self._next = next(self._odometry, None)
        turn = self._ego.turn(frame, before_ns)
        self.counts['turns_known'] = self._ego.known
        return turn

    def _messages(self, kind: str, name: str) -> Iterator[tuple[Any, int]]:
        """Yield messages of a bag, as far as it can be read."""
        from rosbags.rosbag2 import ReaderError
        from rosbags.serde import SerdeError
        try:
            yield from bag_messages(self._path, kind, name)
        except (ReaderError, SerdeError, SourceError, OSError) as error:
            self.count_problem('unreadable', f'{name}: {error}')
