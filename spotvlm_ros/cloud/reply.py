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
"""What a server sent in return for a request."""

from __future__ import annotations

from dataclasses import dataclass, field
import json

import numpy as np

LONG = 65_536     # bytes of JSON; what is longer is shortened before objects are made of it
MAX_ITEMS = 8192  # of a list within a message, such as the probabilities of tokens


@dataclass
class RawReply:
    """
    A reply as far as it has come, what it cost, and when things happened (steady clock) [s].

    The caller owns it, so that the costs are known where the request fails or is cancelled, too.
    """

    text: str = ''
    # Each with its probability; empty where that was not asked for, or is not given.
    tokens: list[tuple[str, float]] = field(default_factory=list)
    usage: tuple[int, int] | None = None  # tokens of prompt and reply; None: nothing usable said
    bytes_sent: int = 0    # bodies of all requests that it took
    bytes_received: int = 0  # off the socket, headers and framing included
    began: bool = False    # the request is, at least in part, on its way
    sent: float = 0.0      # the request's last byte went to the kernel; 0: not yet
    received: float = 0.0  # the reply's last byte came; with an emulated delay the end of that
    finished: bool = False
    reasoned: bool = False  # reasoning came apart from the text
    round_trip_s: float = 0.0  # request to reply, emulated part included
    emulated_s: float = 0.0


def loads(data: bytes) -> object:
    """
    Return the value of the JSON of a reply; raise ValueError or RecursionError.

    Of a long one the first choice is looked at only, and the beginning of long lists in it: Python
    would need 25 times the memory of 170,000 empty objects, and seldom gets to giving it back.
    """
    return json.loads(_shortened(data) if len(data) > LONG else data)


def _shortened(data: bytes) -> bytes:
    """Return JSON of which lists in the outermost object have one item, those in messages some."""
    raw = np.frombuffer(data, np.uint8)
    text = np.frombuffer(data.replace(rb'\\', b'__').replace(rb'\"', b'__'), np.uint8)
    outside = ~np.logical_xor.accumulate(text == ord('"'))  # of strings
    steps = _STEPS[text] * outside
    depth = np.cumsum(steps, dtype=np.int32)
    kept = np.ones(len(raw), bool)
    for level, most in ((2, 1), (5, MAX_ITEMS)):
        here = depth == level
        commas = here & outside & (text == ord(','))
        if np.count_nonzero(commas) >= most:
            begins = np.flatnonzero(here & (steps > 0))
            begin = begins[np.cumsum(here & (steps > 0), dtype=np.int32) - 1]
            count = np.cumsum(commas, dtype=np.int32)
            kept &= (depth < level) | (text[begin] != ord('[')) | (count - count[begin] < most)
    return raw[kept].tobytes()


_STEPS = np.zeros(256, np.int8)  # deeper or back, by character
_STEPS[[ord(c) for c in '[{']], _STEPS[[ord(c) for c in ']}']] = 1, -1
