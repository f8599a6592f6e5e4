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
"""
A WebSocket server for Foxglove: ``--view foxglove``.

Topics and fields are named as those of ROS, so one layout shows this and a bridge to ROS. A
channel that nobody has subscribed to is given nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from pydantic import JsonValue

from .address import Address, AddressError
from .said import Json
from .stream import line, News, number, scale
from ..frames.jpeg import jpeg_size
from ..method.facts import NS

PORT = 8765    # where Foxglove looks
TOPICS = {'edge': '/answers', 'alone': '/answers/alone', 'cloud': '/cloud/answers',
          'context': '/context', 'truth': '/truth'}
STAGES = {'wait': 'wait', 'preprocess': 'preprocess', 'model': 'inference',
          'emulated': 'emulated_delay'}


class FoxgloveSink:
    """Camera, regions, answers, contexts, ages and a log, on channels."""

    def __init__(self, title: str, address: Address) -> None:
        """Listen; raise AddressError."""
        if find_spec('foxglove') is None:
            raise AddressError('--view foxglove needs foxglove-sdk: pip install foxglove-sdk')
        import foxglove
        from foxglove import channels
        self._context = foxglove.Context()
        self._images: dict[str, tuple[Any, Any]] = {}   # channels by camera
        self._said = {source: foxglove.Channel(topic, context=self._context)
                      for source, topic in TOPICS.items()}
        self._ages = foxglove.Channel('/ages', context=self._context)
        self._log = channels.LogChannel('/log', context=self._context)
        self._image_channels('')
        self._server = self._listen(title, address)
        self.url = f'ws://{address.host}:{self._server.port}'

    def _listen(self, title: str, address: Address) -> Any:
        import foxglove
        why: RuntimeError | None = None
        for port in [address.port] if address.port else [PORT, 0]:
            try:
                return foxglove.start_server(name=title, host=address.host, port=port,
                                             context=self._context)
            except RuntimeError as error:
                why = error
        raise AddressError(f'--view foxglove:{address.host}:{address.port}: {why}; name another '
                           'address or port, or none for a free one') from why

    def wanted(self) -> bool:
        """Return whether anybody has subscribed to anything."""
        return any(channel.has_sinks() for channel in (
            *self._said.values(), self._ages, self._log,
            *(c for pair in self._images.values() for c in pair)))

    def send(self, news: News) -> None:
        """Log what is new on the channels that somebody has subscribed to."""
        if news.picture is not None:
            self._send_frame(news)
        for source, said in news.new.items():
            stamp = int(str(said['stamp']))
            if self._said[source].has_sinks():
                self._said[source].log(message(news, source), log_time=stamp)
            if source in ('edge', 'cloud') and self._log.has_sinks():
                self._send_log(news.query, source, said, stamp)
        if 'edge' in news.new and self._ages.has_sinks():
            self._ages.log({'query_id': news.query, **news.ages()},
                           log_time=int(str(news.new['edge']['stamp'])))

    def close(self) -> None:
        """Let go of the port."""
        self._server.stop()

    def _image_channels(self, camera: str) -> tuple[Any, Any]:
        from foxglove import channels
        if camera not in self._images:
            before = f'/{camera}' if camera else ''
            self._images[camera] = (
                channels.CompressedImageChannel(f'{before}/image/compressed',
                                                context=self._context),
                channels.ImageAnnotationsChannel(f'{before}/focus/annotations',
                                                 context=self._context))
        return self._images[camera]

    def _send_frame(self, news: News) -> None:
        from foxglove import messages as m
        picture = news.picture
        assert picture is not None
        images, notes = self._image_channels(news.camera)
        stamp = m.Timestamp(*divmod(picture.stamp_ns, NS))
        if images.has_sinks():
            images.log(m.CompressedImage(timestamp=stamp, frame_id=news.camera, format='jpeg',
                                         data=picture.jpeg), log_time=picture.stamp_ns)
        if not notes.has_sinks():
            return
        factor = scale(picture, (jpeg_size(picture.jpeg) or (picture.width,))[0])
        green = m.Color(r=0.1, g=0.8, b=0.3, a=1.0)
        boxes, texts = [], []
        for key, box in news.focus().items():
            x, y, w, h = (v * factor for v in box)
            boxes.append(m.PointsAnnotation(
                timestamp=stamp, type=m.PointsAnnotationType.LineLoop, outline_color=green,
                thickness=2.0, points=[m.Point2(x=x + i * w, y=y + j * h)
                                       for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]))
            texts.append(m.TextAnnotation(
                timestamp=stamp, position=m.Point2(x=x, y=y), text=key, font_size=12.0,
                text_color=green))
        notes.log(m.ImageAnnotations(timestamp=stamp, points=boxes, texts=texts),
                  log_time=picture.stamp_ns)

    def _send_log(self, query: str, source: str, said: Json, stamp: int) -> None:
        from foxglove import messages as m
        level = m.LogLevel.Error if said['error'] else m.LogLevel.Info
        self._log.log(m.Log(timestamp=m.Timestamp(*divmod(stamp, NS)), level=level,
                            message=line(said), name=f'{source} {query}'), log_time=stamp)


def message(news: News, source: str) -> Json:
    """Return an answer or a context with the names that its ROS message has."""
    said = news.new[source]
    stages = said.get('stages_s')
    durations: Json = {STAGES[name]: time(number(v)) for name, v in stages.items()
                       } if isinstance(stages, dict) else {}
    sec, nsec = divmod(int(str(said['stamp'])), NS)
    if source == 'edge':
        durations['context_age'] = time(news.context_age_s())
    rest = {name: value for name, value in said.items() if name not in ('stages_s', 'stamp')}
    return {'header': {'stamp': {'sec': sec, 'nsec': nsec}}, 'query_id': news.query, **rest,
            **durations}


def time(seconds: float) -> JsonValue:
    """Return seconds as Foxglove has durations."""
    sec, nsec = divmod(round(seconds * NS), NS)
    return {'sec': sec, 'nsec': nsec}
