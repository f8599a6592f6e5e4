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
"""The frames of a recording that are labelled: at a rate, and where the scene changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from .schema import LabelError
from ..cloud.patient import Stopped
from ..frames.bags import bag, bag_extent
from ..frames.frame import Frame
from ..frames.pixels import FrameError
from ..frames.source_frame import SourceError, SourceFrame
from ..frames.sources import image_files, images, video
from ..method.facts import NS, Query
from ..method.keyframes import KeyframePolicy, KeyframeRequest, SceneCutDetector

START_NS = 1000 * NS    # stamp of t = 0
SLACK = 0.95            # of the period: cameras do not keep theirs exactly
IMAGES_HZ = 10.0        # of a folder of images, where nothing else is said


@dataclass(frozen=True)
class Recording:
    """What is labelled."""

    kind: Literal['bag', 'video', 'images']
    path: Path
    topic: str = ''           # image topic of a bag; '': the only one
    fps: float = IMAGES_HZ    # of a folder of images

    def frames(self) -> Iterator[SourceFrame]:
        """Yield all frames; raise SourceError."""
        if self.kind == 'bag':
            return bag(str(self.path), self.topic)
        return video(str(self.path)) if self.kind == 'video' else images(str(self.path), self.fps)

    def with_topic(self) -> Recording:
        """Return it with the topic that a bag is read from; raise SourceError."""
        if self.kind != 'bag':
            return self
        return replace(self, topic=bag_extent(str(self.path), self.topic).topic)

    def files(self) -> Sequence[Path]:
        """Return the files of its frames, where each has one."""
        return image_files(self.path) if self.kind == 'images' else ()


class Keyframe(NamedTuple):
    """A frame to ask about."""

    number: int   # among the frames of the recording
    t: float      # after the first frame [s]


@dataclass(frozen=True)
class Chosen:
    """What a look through a recording has found."""

    keyframes: tuple[Keyframe, ...]
    frames: int
    duration_s: float
    cuts: int             # keyframes that came early, because the scene had changed
    cut_off: str = ''     # why the recording ends early

    def evenly(self, most: int) -> Chosen:
        """Return at most so many of the keyframes, from the whole length."""
        n = len(self.keyframes)
        if most >= n:
            return self
        return replace(self, keyframes=tuple(
            self.keyframes[round(i * (n - 1) / max(1, most - 1))] for i in range(most)))


def choose(recording: Recording, query: Query, rate_hz: float, cut_below: float,
           stopped: Callable[[], bool] = lambda: False) -> Chosen:
    """Return the frames that a robot would ask about at this rate; raise SourceError, Stopped."""
    query = replace(query, camera='', cloud_period_s=SLACK / rate_hz)
    policy: KeyframePolicy[KeyframeRequest] = KeyframePolicy([query], 1)
    keyframes: list[Keyframe] = []
    cuts, number, at_s, cut_off = SceneCutDetector(), -1, 0.0, ''
    try:
        for number, source in enumerate(recording.frames()):
            if stopped():
                raise Stopped
            at_s = source.at_s
            stamp_ns = START_NS + round(at_s * NS)
            if cut_below > -1.0 and cuts.is_due(stamp_ns) and \
                    _is_cut(cuts, source, stamp_ns, cut_below):
                policy.urge(query.id)
            if policy.due(stamp_ns) is None or keyframes and at_s <= keyframes[-1].t:
                continue
            request = KeyframeRequest(query, stamp_ns)
            policy.begin(request)
            policy.end(request, again=False)
            keyframes.append(Keyframe(number, at_s))
    except SourceError as error:
        if not keyframes:
            raise
        cut_off = str(error)
    if not keyframes:
        raise LabelError(f'{recording.path} holds no frame; name a recording that has some')
    return Chosen(tuple(keyframes), number + 1, at_s, policy.urged, cut_off)


def _is_cut(cuts: SceneCutDetector, source: SourceFrame, stamp_ns: int,
            cut_below: float) -> bool:
    try:
        return cuts.update(stamp_ns, _frame(source, stamp_ns).rgb(), cut_below)
    except FrameError:
        return False    # it is told of where it is to be asked about


def _frame(source: SourceFrame, stamp_ns: int) -> Frame:
    return Frame(stamp_ns, '', pixels=source.load, jpeg=source.jpeg)


def frames_at(recording: Recording, keyframes: Collection[Keyframe],
              stopped: Callable[[], bool] = lambda: False) -> Iterator[tuple[Keyframe, Frame]]:
    """Yield the frames of these, in order; raise Stopped."""
    wanted = {keyframe.number: keyframe for keyframe in keyframes}
    last = max(wanted, default=-1)
    if last < 0:
        return
    for number, source in enumerate(recording.frames()):
        if stopped():
            raise Stopped
        if number in wanted:
            yield wanted[number], _frame(source, START_NS + round(wanted[number].t * NS))
        if number == last:
            return
