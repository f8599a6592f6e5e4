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
Pixels of image messages: by cv_bridge where that is known to give what we would, else by us.

Run as a program it is the check of cv_bridge; `check_cv_bridge` starts it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
import importlib
import json
import sys
import threading
from typing import Any

import numpy as np
from sensor_msgs.msg import Image as ImageMsg

from ..frames.pixels import check_image, ENCODINGS, fast_bytes, Image, image_to_rgb
from ..system.cv_bridge import check_cv_bridge, Verdict

WIDTH, HEIGHT = 64, 48  # of images in the check
VIEWED = 'rgb8'  # there is nothing to convert: we give a view, cv_bridge a copy


class ImageConverter:
    """
    Converts by ourselves until cv_bridge has been checked, from the first image on; no one waits.

    What it is given then are kinds of images for which the check found equal pixels, so that
    answers do not depend on who converts.
    """

    def __init__(self, check: Callable[[], Verdict] = check_cv_bridge) -> None:
        """Do nothing before the first image; ``check`` runs in a thread then."""
        self._check, self._lock = check, threading.Lock()
        self._bridge: Any = None
        self.verdict: Verdict | None = None
        self._checker: threading.Thread | None = None

    def rgb(self, message: ImageMsg, complain: Callable[[str], object]) -> Image:
        """Return the pixels; raise FrameError. ``complain`` is told when cv_bridge fails."""
        check_image(message)
        if message.encoding == VIEWED:
            return image_to_rgb(message)
        with self._lock:
            if self._checker is None:
                self._checker = threading.Thread(target=self._load, name='cv_bridge', daemon=True)
                self._checker.start()
        bridge, verdict = self._bridge, self.verdict
        if bridge is not None and verdict is not None and kind_of(message) in verdict.kinds:
            try:
                return _bridged(bridge, message)
            except Exception as error:
                self._bridge, self.verdict = None, Verdict(why=_text(error))
                complain(f'cv_bridge failed for {kind_of(message)} images, which are converted '
                         f'without it from now on: {self.verdict.why}')
        return image_to_rgb(message)

    @property
    def name(self) -> str:
        """Return who converts, and why, for /diagnostics."""
        if self._bridge is not None:
            return 'cv_bridge'
        why = self.verdict.why if self.verdict is not None else \
            'nothing to convert yet' if self._checker is None else 'cv_bridge is being checked'
        return f'spotvlm ({why})'

    def _load(self) -> None:
        verdict = self._check()
        try:
            if verdict.kinds:
                self._bridge = _bridge()
        except Exception as error:
            verdict = Verdict(why=_text(error))
        self.verdict = verdict


CONVERTER = ImageConverter()  # of this process


def kind_of(message: ImageMsg) -> str:
    """Return what decides how an image is converted: encoding, padding of rows, byte order."""
    size, channels, _ = ENCODINGS[message.encoding]
    padding = message.step - message.width * size * channels
    rows = '' if not padding else ' ragged' if padding % (size * channels) else ' padded'
    return message.encoding + rows + ' big-endian' * bool(message.is_bigendian)


def samples() -> Iterator[ImageMsg]:
    """Yield images of every kind, but those of which we give a view; 12 bits in 16, too."""
    noise = np.random.default_rng(0)
    for encoding, (size, channels, _) in ENCODINGS.items():
        row = WIDTH * size * channels
        for step in (row, row + 2 * size * channels, row + 1) if encoding != VIEWED else ():
            for most in ((1 << 16) - 1, (1 << 12) - 1):
                wide = noise.integers(0, most, (HEIGHT, row // 2), np.uint16, endpoint=True)
                for order in '<>':
                    data = np.zeros((HEIGHT, step), np.uint8)
                    data[:, :row] = wide.astype(f'{order}u2').view(np.uint8)
                    message = ImageMsg(encoding=encoding, width=WIDTH, height=HEIGHT, step=step,
                                       is_bigendian=order == '>')
                    message.data = fast_bytes(data)
                    yield message


def compare(bridge: Any) -> Verdict:
    """Return the kinds of images of which ``bridge`` makes the same as we do."""
    kinds, unlike = set(), set()
    faults: Counter[str] = Counter()  # of those that it should manage
    for message in samples():
        kind = kind_of(message)
        kinds.add(kind)
        try:
            equal = np.array_equal(_bridged(bridge, message), image_to_rgb(message))
            fault = '' if equal else 'its pixels are not those of ours'
        except Exception as error:
            fault = _text(error)
        if fault:
            unlike.add(kind)
            faults[fault] += kind == message.encoding
    return Verdict(frozenset(kinds - unlike), faults.most_common(1)[0][0] if faults else '')


def _bridge() -> Any:
    from cv_bridge import CvBridge
    return CvBridge()


def _bridged(bridge: Any, message: ImageMsg) -> Image:
    pixels = bridge.imgmsg_to_cv2(message, 'rgb8')
    if pixels.shape != (message.height, message.width, 3) or pixels.dtype != np.uint8:
        raise TypeError(f'it gives {pixels.dtype} of shape {pixels.shape} as rgb8')
    return np.asarray(pixels)


def _text(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).strip()}'.split('\n')[0][:200]


if __name__ == '__main__':
    for library in sys.argv[1:]:
        importlib.import_module(library)
    found = compare(_bridge())
    print('\n' + json.dumps({'kinds': sorted(found.kinds), 'why': found.why}), flush=True)
