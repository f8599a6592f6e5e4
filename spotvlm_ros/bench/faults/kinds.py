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
"""What the attack tries: each kind is a row of data, one loop meets all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

LEAST = 0.966      # of the undisturbed rate of the edge's answers, under any reply
LEAST_FORGED = 0.9  # under forged messages and images, which the nodes have to read
LEAST_ASKED = 0.8  # under 50 questions a second

# What the server does, one of several for each request; `chaos_faults` has them.
REPLIES: Mapping[str, str] = MappingProxyType({
    'refusals': 'http_400,http_401,http_404,http_413,http_500,redirect,html',
    'told to wait': 'http_429,http_503,retry_nonsense',
    'told to wait for years': 'retry_in_years',
    'broken connections': 'reset,reset_in_body,truncated,no_end,not_http',
    'silence': 'hang,hang_after_headers', 'slow drip': 'drip',
    'late, out of order': 'delay,jitter,reordered',
    'endless body': 'endless,comments', 'endless headers': 'endless_headers',
    'endless 1xx': 'endless_1xx', 'chunk extensions': 'chunk_extensions',
    'wrong lengths': 'odd_length', 'duplicated responses': 'duplicated,duplicate_ids',
    'compressed bomb': 'bomb', 'wrong content type': 'wrong_type',
    'malformed JSON': 'wrong_json,no_choices,odd_choices,huge_number,not_utf8,no_text',
    'deep JSON': 'deep_json', '170,000 choices': 'many_choices',
    '170,000 tool calls': 'tool_calls', 'logprobs': 'logprobs', 'huge text': 'huge_text',
    'no finish, odd usage': 'no_finish,clock_skew', 'thinking': 'thinking', 'other forms': 'forms',
    'wrong boxes': 'nan_boxes,outside,boxes', 'escapes': 'escapes',
    'instructions': 'tokens,injection,prose,echo_key'})

# The graphs that are attacked: parameters laid over the driving profile, by node.
SCENES: Mapping[str, Mapping[str, Mapping[str, object]]] = MappingProxyType({
    'mini': {},
    'compressed': {'camera': {'source': 'topic', 'image_transport': 'compressed'}},
    'raw': {'camera': {'source': 'topic'}},
    'folder': {'camera': {'source': 'images', 'loop': True}},
    'bag': {'camera': {'source': 'bag', 'loop': True, 'rate_hz': 0.0}}})


@dataclass(frozen=True)
class Kind:
    """A kind of attack."""

    group: str
    name: str
    scene: str             # of SCENES
    least: float | None    # of the undisturbed rate; None: the attack stops the edge itself
    server: str = 'none'   # what the server does meanwhile
    attack: str = ''       # of `intruder.ATTACKS`
    longer: float = 1.0    # how many times longer than others it takes to tell

    @property
    def title(self) -> str:
        """Return what it is called in tables."""
        return f'{self.group}: {self.name}'


KINDS: tuple[Kind, ...] = (
    *(Kind(f'{form} reply', name, 'mini', LEAST, server=f'{faults}?{form}')
      for form in ('whole', 'streamed') for name, faults in REPLIES.items()),
    Kind('forged', 'context', 'mini', LEAST_FORGED, attack='context'),
    Kind('forged', 'cloud/answers', 'mini', LEAST_FORGED, attack='cloud answers'),
    Kind('forged', 'answers', 'mini', LEAST_FORGED, attack='answers'),
    Kind('forged', 'parameters', 'mini', LEAST_FORGED, attack='parameters'),
    Kind('asks', '50 a second', 'mini', LEAST_ASKED, attack='asks', longer=5.0),
    Kind('lifecycle', 'any transition', 'mini', None, attack='transitions'),
    Kind('images', 'compressed topic', 'compressed', LEAST_FORGED, attack='compressed images'),
    Kind('images', 'stamps of other times', 'compressed', LEAST_FORGED,
         attack='images of other times'),
    Kind('images', 'raw topic', 'raw', LEAST_FORGED, attack='raw images'),
    Kind('images', 'folder', 'folder', LEAST_FORGED),
    Kind('images', 'bag', 'bag', LEAST_FORGED))
SOAK_SCENE = 'compressed'  # where all kinds but those of other scenes' inputs can be met
