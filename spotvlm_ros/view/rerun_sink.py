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
"""Rerun: ``--view rerun`` starts its viewer, ``rerun:FILE.rrd`` writes a file of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .address import AddressError
from .stream import line, News, scale
from ..frames.jpeg import jpeg_size

GREEN = (30, 200, 80)


class RerunSink:
    """Camera with regions, answers as texts, ages and latencies as series, by the frames' time."""

    def __init__(self, title: str, where: str) -> None:
        """
        Start a viewer, write the file or go to the address in ``where``; raise AddressError.

        An address is that of a viewer, as ``rerun+http://127.0.0.1:9876/proxy``.
        """
        if find_spec('rerun') is None:
            raise AddressError('--view rerun needs rerun-sdk: pip install rerun-sdk')
        import rerun
        self._stream = rerun.RecordingStream(title)
        self.url = f'rerun {where}'.rstrip()
        try:
            if '://' in where:
                self._stream.connect_grpc(where)
            elif where:
                Path(where).parent.mkdir(parents=True, exist_ok=True)
                self._stream.save(where)
            else:
                self._stream.spawn()
        except (OSError, RuntimeError, ValueError) as error:
            raise AddressError(f'--view rerun:{where}: {error}; name a file, as rerun:drive.rrd, '
                               'or a viewer, as rerun:rerun+http://127.0.0.1:9876/proxy'
                               ) from error

    def wanted(self) -> bool:
        """Return that it is: a file and a viewer take all."""
        return True

    def send(self, news: News) -> None:
        """Log what is new."""
        import rerun
        if news.picture is not None:
            self._send_frame(news)
        for source, said in news.new.items():
            self._at(int(str(said['stamp'])))
            self._stream.log(f'{source}/{news.query}', rerun.TextLog(
                line(said), level='ERROR' if said.get('error') else 'INFO'))
        if 'edge' in news.new:
            self._at(int(str(news.new['edge']['stamp'])))
            for name, value in news.ages().items():
                self._stream.log(f'ages/{news.query}/{name}', rerun.Scalars(value))

    def close(self) -> None:
        """Write what is left."""
        self._stream.flush()
        self._stream.disconnect()

    def _at(self, stamp_ns: int) -> None:
        self._stream.set_time('frame', timestamp=np.datetime64(stamp_ns, 'ns'))

    def _send_frame(self, news: News) -> None:
        import rerun
        picture, path = news.picture, f'camera/{news.camera}'.rstrip('/')
        assert picture is not None
        self._at(picture.stamp_ns)
        self._stream.log(path, rerun.EncodedImage(contents=picture.jpeg, media_type='image/jpeg'))
        factor = scale(picture, (jpeg_size(picture.jpeg) or (picture.width,))[0])
        focus = news.focus()
        self._stream.log(f'{path}/focus', rerun.Boxes2D(
            array=np.array([*focus.values()], np.float32).reshape(-1, 4) * factor,
            array_format=rerun.Box2DFormat.XYWH, labels=[*focus], colors=[GREEN] * len(focus)))
