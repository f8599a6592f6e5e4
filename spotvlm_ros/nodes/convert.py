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
"""Messages of spotvlm_msgs to and from the plain data of method/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from builtin_interfaces.msg import Duration as DurationMsg, Time as TimeMsg
from sensor_msgs.msg import CompressedImage, Image as ImageMsg, RegionOfInterest
from spotvlm_msgs.msg import Answer, Context as ContextMsg, Fact as FactMsg
from std_msgs.msg import Header

from ..cloud.parse import CloudAnswer
from ..frames.frame import Frame
from ..frames.pixels import fast_bytes
from ..method.facts import Context, Fact, NS, Query, Region, Source, Turn
from ..method.gate import Drop
from ..method.prompt import history_text

if TYPE_CHECKING:
    from vision_msgs.msg import Detection2DArray

MAX_FACTS = 64    # bound of Answer.facts and Context.facts
MAX_FOCUS = 16    # bound of Context.focus
GATE_OF_DROP: Mapping[int, int] = {  # why all facts were dropped -> gate state
    Drop.AGE: ContextMsg.GATE_AGE, Drop.SCENE_CUT: ContextMsg.GATE_SCENE_CUT}
WORD_TOKENS = 1.4  # tokens per word of rendered history, without asking a tokenizer


def stamp_ns(stamp: TimeMsg) -> int:
    """Return a stamp in nanoseconds."""
    return int(stamp.sec) * NS + int(stamp.nanosec)


def time_msg(ns: int) -> TimeMsg:
    """Return nanoseconds as a stamp."""
    return TimeMsg(sec=ns // NS, nanosec=ns % NS)


def duration_msg(seconds: float) -> DurationMsg:
    """Return seconds as a duration."""
    ns = round(seconds * NS)
    return DurationMsg(sec=ns // NS, nanosec=ns % NS)


def duration_s(duration: DurationMsg) -> float:
    """Return a duration in seconds."""
    return float(duration.sec) + duration.nanosec / NS


def header_msg(ns: int, frame_id: str) -> Header:
    """Return the header of the frame acquired at ``ns``."""
    return Header(stamp=time_msg(ns), frame_id=frame_id)


def image_msg(frame: Frame) -> ImageMsg:
    """Return a frame as an rgb8 image."""
    pixels = frame.rgb()
    height, width = pixels.shape[:2]
    message = ImageMsg(header=header_msg(frame.stamp_ns, frame.frame_id), height=height,
                       width=width, encoding='rgb8', is_bigendian=0, step=3 * width)
    message.data = fast_bytes(pixels)
    return message


def compressed_msg(frame: Frame, jpeg: bytes) -> CompressedImage:
    """Return JPEG bytes as an image message."""
    message = CompressedImage(header=header_msg(frame.stamp_ns, frame.frame_id), format='jpeg')
    message.data = jpeg
    return message


def region_msg(region: Region) -> RegionOfInterest:
    """Return a region in whole pixels, at least one wide and high."""
    x, y = max(0, round(region.x)), max(0, round(region.y))
    return RegionOfInterest(x_offset=x, y_offset=y, width=max(1, round(region.w)),
                            height=max(1, round(region.h)))


def region_from_msg(message: RegionOfInterest) -> Region:
    """Return a region of a message."""
    return Region(message.x_offset, message.y_offset, message.width, message.height)


def fact_msg(fact: Fact, now_ns: int, origin: int = FactMsg.ORIGIN_UNKNOWN) -> FactMsg:
    """Return a fact with its age relative to the frame acquired at ``now_ns``."""
    message = FactMsg(key=fact.key, value=fact.value, confidence=float(fact.confidence),
                      stamp=time_msg(fact.stamp_ns), has_region=fact.region is not None,
                      age=duration_msg(max(0, now_ns - fact.stamp_ns) / NS), origin=origin)
    if fact.region is not None:
        message.region = region_msg(fact.region)
    return message


def fact_from_msg(message: FactMsg) -> Fact:
    """Return the fact of a message."""
    region = region_from_msg(message.region) if message.has_region else None
    return Fact(message.key, message.value, stamp_ns(message.stamp), message.confidence, region)


def turn_from_msg(message: Answer) -> Turn:
    """Return the turn that an answer is; what is held from another one is not said in it."""
    return Turn(message.query_id, stamp_ns(message.header.stamp), Source(message.source),
                tuple(fact_from_msg(f) for f in message.facts if f.origin != FactMsg.ORIGIN_HELD),
                message.text)


def cloud_answer_msg(answer: CloudAnswer, frame_id: str) -> Answer:
    """Return an answer of the cloud."""
    error = Answer.ERROR_PARSE if answer.rejected and not answer.facts else Answer.ERROR_NONE
    return Answer(
        header=header_msg(answer.stamp_ns, frame_id), query_id=answer.query_id,
        source=Answer.SOURCE_CLOUD, text=answer.text,
        facts=[fact_msg(f, answer.stamp_ns) for f in answer.facts[:MAX_FACTS]],
        wait=duration_msg(answer.wait_s), inference=duration_msg(answer.round_trip_s),
        emulated_delay=duration_msg(answer.emulated_s), model=answer.model,
        error_code=error, error_msg='; '.join(answer.rejected[:4]) if error else '')


def gate_of(context: Context, reset: int) -> int:
    """Return the state of the gate; ``reset`` tells why a history is empty."""
    if not context.empty:
        return ContextMsg.GATE_OPEN
    reasons = set(context.dropped.values())
    return GATE_OF_DROP.get(reasons.pop(), reset) if len(reasons) == 1 else reset


def context_msg(context: Context, query: Query, frame_id: str, gate: int,
                dropped: int) -> ContextMsg:
    """Return a context for the edge."""
    words = len(history_text(query, context, context.stamp_ns).split())
    return ContextMsg(
        header=header_msg(context.stamp_ns, frame_id), query_id=context.query_id,
        facts=[fact_msg(f, context.stamp_ns) for f in context.facts[:MAX_FACTS]],
        text=context.text, text_stamp=time_msg(context.text_stamp_ns),
        focus=[region_msg(r) for r in list(context.focus.values())[:MAX_FOCUS]],
        focus_keys=list(context.focus)[:MAX_FOCUS],
        dropped_keys=list(context.dropped)[:MAX_FACTS],
        dropped_reasons=list(context.dropped.values())[:MAX_FACTS],
        tokens=round(words * WORD_TOKENS), gate=gate, facts_dropped=dropped)


def context_from_msg(message: ContextMsg) -> Context:
    """Return the context of a message."""
    facts = tuple(fact_from_msg(f) for f in message.facts)
    focus = {key: region_from_msg(r) for key, r in zip(message.focus_keys, message.focus)}
    return Context(message.query_id, stamp_ns(message.header.stamp), facts, message.text,
                   stamp_ns(message.text_stamp), focus,
                   dict(zip(message.dropped_keys, message.dropped_reasons)))


def detections_msg(context: Context | None, header: Header) -> Detection2DArray:
    """Return the focus regions of a context's facts as vision_msgs, which must be installed."""
    from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose
    boxes = Detection2DArray(header=header)
    for fact in context.facts if context is not None else ():
        region = context.focus.get(fact.key) if context is not None else None
        if region is None:
            continue
        box = Detection2D(header=header, id=fact.key)
        box.bbox.center.position.x = region.x + region.w / 2
        box.bbox.center.position.y = region.y + region.h / 2
        box.bbox.size_x, box.bbox.size_y = float(region.w), float(region.h)
        result = ObjectHypothesisWithPose()
        result.hypothesis.class_id = f'{fact.key}: {fact.value}'
        result.hypothesis.score = float(fact.confidence)
        box.results = [result]
        boxes.detections.append(box)
    return boxes
