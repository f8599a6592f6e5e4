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
The gate: what of the history may not be given to the edge model, and why.

A fact is dropped when it has outlived its time, when its frame belongs to another scene, or when
the pixels where it was seen no longer look as they did: something has changed there, and the value
may have. The place is then still worth looking at, so its focus region stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from .facts import Fact, NS, Query


class Drop(IntEnum):
    """Why a fact is left out of the context; the numbers are those of spotvlm_msgs/Context."""

    LIFETIME = 1    # older than the time to live of its key
    AGE = 2         # older than the age limit of all facts
    SCENE_CUT = 3   # its frame is from before a scene cut
    CHANGED = 4     # where it was seen, the pixels have changed


@dataclass(frozen=True)
class GateConfig:
    """When facts are dropped. Similarities are correlations, -1 to 1."""

    age_limit_s: float = 12.0    # for every fact, whatever its time to live
    changed_below: float = 0.0   # a region that correlates less with itself has changed; -1: never
    cut_below: float = 0.4       # a frame that correlates less with the last is another scene


def why_dropped(fact: Fact, query: Query, now_ns: int, config: GateConfig, cut_ns: int = 0,
                similarity: float | None = None) -> Drop | None:
    """
    Return why a fact is left out for the frame acquired at ``now_ns``, None if it may.

    ``cut_ns`` is the stamp of the first frame of the present scene; ``similarity`` how much the
    fact's region still looks as it did, None when that is not known.
    """
    if fact.stamp_ns < cut_ns:
        return Drop.SCENE_CUT
    age_ns = now_ns - fact.stamp_ns
    if age_ns > query.ttl_ns(fact.key):
        return Drop.LIFETIME
    if age_ns > config.age_limit_s * NS:
        return Drop.AGE
    if similarity is not None and similarity < config.changed_below:
        return Drop.CHANGED
    return None
