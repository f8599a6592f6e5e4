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
Controls that could show the method up: what it tells the edge is replaced by something false.

Each takes the contexts of the full method, frame by frame, changes them, and asks the edge again.
Nothing feeds back, so the controls are compared with the full method on the same frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from .streams import Stream
from ...method.facts import Context, Fact, Region

Change = Callable[[Context, Stream], Context]
OTHER, BLANK = 'context of another episode', 'blank image + context'


def permuted(context: Context, stream: Stream) -> Context:
    """Give every fact another value of its key."""
    rng = np.random.default_rng([stream.seed, context.stamp_ns % 2 ** 32])
    return replace(context, facts=tuple(_other(f, stream, rng) for f in context.facts))


def _other(fact: Fact, stream: Stream, rng: np.random.Generator) -> Fact:
    values = [v for v in stream.query.choices[fact.key] if v != fact.value]
    return replace(fact, value=values[int(rng.integers(len(values)))])


def random_regions(context: Context, stream: Stream) -> Context:
    """Move every region to a random place."""
    rng = np.random.default_rng([stream.seed, context.stamp_ns % 2 ** 32, 1])
    width, height = stream.size
    return replace(context, focus={
        k: replace(r, x=float(rng.uniform(0, max(1.0, width - r.w))),
                   y=float(rng.uniform(0, max(1.0, height - r.h))))
        for k, r in context.focus.items()})


def centre_regions(context: Context, stream: Stream) -> Context:
    """Move every region to the middle of the frame."""
    width, height = stream.size
    return replace(context, focus={k: Region((width - r.w) / 2, (height - r.h) / 2, r.w, r.h)
                                   for k, r in context.focus.items()})


def true_regions(context: Context, stream: Stream) -> Context:
    """Put regions where things really are now; an upper bound of what focus can give."""
    return replace(context, focus=dict(stream.regions(context.stamp_ns)))


CONTROLS: Mapping[str, Change] = {
    'permuted values': permuted,
    BLANK: lambda context, stream: context,
    'random regions': random_regions,
    'centre regions': centre_regions,
    'true regions': true_regions,
}
