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
"""Frames of ROS bags, read with rosbags: ROS need not be installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from heapq import merge
from pathlib import Path
from typing import Any, TYPE_CHECKING

from .pixels import image_to_rgb
from .source_frame import natural_order, RecordedClock, SourceError, SourceFrame
from ..method.facts import NS

if TYPE_CHECKING:
    from rosbags import rosbag1, rosbag2
    from rosbags.interfaces import Connection
    Reader = rosbag1.Reader | rosbag2.Reader

REMEDY = ('give the folder that holds metadata.yaml; a file that was cut off is mended by mcap '
          'recover or ros2 bag reindex')
BAG_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')


def bag(path: str, topic: str = '', rate_hz: float = 0.0) -> Iterator[SourceFrame]:
    """
    Yield the images of one topic of a rosbag2 (mcap or sqlite3) or ROS 1 bag, paced as recorded.

    ``path`` is the folder, or a file within it. All connections of the topic are read: a driver
    that was restarted while recording has a second one. Where metadata.yaml does not fit its files
    (another QoS, written by a converter), the files are read without it.
    """
    from rosbags.rosbag1 import ReaderError as Ros1Error  # slow to import
    from rosbags.rosbag2 import ReaderError as Ros2Error
    from rosbags.serde import SerdeError
    why: Exception | None = None
    for files in _bag_files(Path(path)):
        clock, index = RecordedClock(), 0
        try:
            for message, received_ns in _bag_images(files, topic):
                at_s, warning = clock.at(received_ns / NS)
                if rate_hz:
                    at_s, warning = index / rate_hz, ''
                yield _bag_frame(message, received_ns, at_s, warning)
                index += 1
        except (Ros1Error, Ros2Error, SerdeError, OSError) as error:
            if index:
                raise SourceError(f'bag {path}: nothing can be read behind frame {index}: {error}'
                                  ) from error
            why = why or error
        if index:
            return
    if why is not None:
        raise SourceError(f'bag {path}: {why}; {REMEDY}') from why
    raise SourceError(f'bag {path}: topic {topic or "of the images"} is empty')


@dataclass(frozen=True)
class BagExtent:
    """How much a bag holds of its image topic, as its index says."""

    topic: str
    images: int
    duration_s: float


def bag_extent(path: str, topic: str = '') -> BagExtent:
    """Return what is known of a bag before it is read; raise SourceError."""
    with _whole_bag(path) as readers:
        chosen = _image_connections([c for r in readers for c in r.connections], topic,
                                    Path(path))
        span_ns = max(r.end_time for r in readers) - min(r.start_time for r in readers)
        return BagExtent(chosen[0].topic, sum(c.msgcount for c in chosen), max(0, span_ns) / NS)


def bag_messages(path: str, msgtype: str, name: str) -> Iterator[tuple[Any, int]]:
    """
    Yield the messages of a type on topics that end with a name, each with its log time [ns].

    They are read as the bag itself defines them; a bag without definitions has none.
    """
    from rosbags.typesys import get_types_from_msg, get_typestore, Stores
    with _whole_bag(path) as readers:
        for reader in readers:
            for found in reader.connections:
                if found.msgtype != msgtype or found.topic.rsplit('/', 1)[-1] != name or \
                        not found.msgdef.data:
                    continue
                types = get_typestore(Stores.ROS2_KILTED)
                types.register({k: v for k, v in get_types_from_msg(
                    found.msgdef.data, msgtype).items() if k not in types.types})
                for _, log_ns, raw in reader.messages(connections=[found]):
                    yield types.deserialize_cdr(raw, msgtype), log_ns


@contextmanager
def _whole_bag(path: str) -> Iterator[list[Reader]]:
    """Open all files of a bag, without their metadata where that does not fit."""
    from rosbags.rosbag1 import ReaderError as Ros1Error
    from rosbags.rosbag2 import ReaderError as Ros2Error
    why: Exception | None = None
    for files in _bag_files(Path(path)):
        with ExitStack() as stack:
            try:
                readers = [_opened(f, stack) for f in files]
            except (Ros1Error, Ros2Error, OSError) as error:
                why = why or error
                continue
            yield readers
            return
    raise SourceError(f'bag {path}: {why}; {REMEDY}') from why


def _bag_files(path: Path) -> Iterator[list[Path]]:
    """Yield what to open as one bag: the folder, then its files without their metadata."""
    yield [path]
    if path.is_dir():
        for pattern in ('*.mcap', '*.db3', '*.bag'):
            files = sorted(path.glob(pattern), key=natural_order)
            if files:
                yield files


def _bag_images(files: Sequence[Path], topic: str) -> Iterator[tuple[Any, int]]:
    """
    Yield images of a bag in recorded order, each with its log time [ns].

    Their definition is that of ROS, not the bag's: one that cannot be read, of another topic, is
    no reason to refuse the bag.
    """
    from rosbags.typesys import get_typestore, Stores
    with ExitStack() as stack:
        readers = [_opened(f, stack) for f in files]
        connections = _image_connections([c for r in readers for c in r.connections], topic,
                                         files[0])
        if files[0].suffix == '.bag':
            deserialize = get_typestore(Stores.ROS1_NOETIC).deserialize_ros1
        else:
            deserialize = get_typestore(Stores.ROS2_KILTED).deserialize_cdr
        streams = [r.messages(connections=mine) for r in readers
                   if (mine := [c for c in connections if c in r.connections])]
        for connection, received_ns, raw in merge(*streams, key=lambda m: m[1]):
            yield deserialize(raw, connection.msgtype), received_ns


def _opened(file: Path, stack: ExitStack) -> Reader:
    from rosbags import rosbag1, rosbag2
    if file.suffix == '.bag':
        return stack.enter_context(rosbag1.Reader(file))
    return stack.enter_context(rosbag2.Reader(file))


def _bag_frame(message: Any, received_ns: int, at_s: float, warning: str) -> SourceFrame:
    stamp = message.header.stamp
    frame = SourceFrame(at_s, stamp_ns=stamp.sec * NS + stamp.nanosec, log_ns=received_ns,
                        frame_id=message.header.frame_id, warning=warning)
    if message.__msgtype__ == BAG_TYPES[1]:
        return replace(frame, jpeg=message.data.tobytes())
    return replace(frame, load=partial(image_to_rgb, message))


def _image_connections(connections: Sequence[Connection], topic: str,
                       path: Path) -> list[Connection]:
    """Return all connections of the topic; raise SourceError where there is not just one topic."""
    images = [c for c in connections if c.msgtype in BAG_TYPES]
    chosen = [c for c in images if topic in ('', c.topic)]
    if len({c.topic for c in chosen}) == 1:
        return chosen
    if not images:
        raise SourceError(f'bag {path} has no topic of type Image or CompressedImage')
    topics = sorted({c.topic for c in images})
    raise SourceError(f'bag {path}: set topic to one of {", ".join(topics)}'
                      + (f'; {topic} is not there' if topic else ''))
