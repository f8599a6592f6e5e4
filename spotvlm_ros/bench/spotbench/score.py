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
The streaming clock: at every label time the latest answer published counts, right or wrong.

As in "Towards Streaming Perception" (Li et al., ECCV 2020). No answer yet is a miss.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = Mapping[str, str]
Grid = npt.NDArray[np.bool_]     # label times x keys

AGES_S = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 10.0)         # lower ends of the slices by age
SIZES_PX = {'small': 0.0, 'medium': 32.0, 'large': 80.0}   # lower ends, longer side


@dataclass(frozen=True)
class PublishedAnswer:
    """An answer about the frame of ``stamp_ns``, published at ``at_ns``."""

    at_ns: int
    stamp_ns: int
    values: Values


def latest(published: Sequence[PublishedAnswer], times_ns: Sequence[int],
           ) -> list[PublishedAnswer | None]:
    """Return, per time, the answer published last at or before it."""
    order = sorted(published, key=lambda s: s.at_ns)  # stable: of two at once, the later listed
    at = [s.at_ns for s in order]
    places = (bisect_right(at, t) for t in times_ns)
    return [order[i - 1] if i else None for i in places]


def right(answers: Sequence[PublishedAnswer | None], truth: Sequence[Values],
          keys: Sequence[str]) -> Grid:
    """Return which facts are right."""
    return np.array([[a is not None and k in t and a.values.get(k) == t[k] for k in keys]
                     for a, t in zip(answers, truth)], dtype=bool).reshape(len(truth), len(keys))


def age_name(age_s: float) -> str:
    """Return the slice of an age."""
    low = max((a for a in AGES_S if a <= age_s), default=AGES_S[0])
    above = [a for a in AGES_S if a > low]
    return f'age {low:g} to {above[0]:g} s' if above else f'age over {low:g} s'


def size_name(side_px: float) -> str:
    """Return the slice of an object by its longer side."""
    return 'size ' + max((low, name) for name, low in SIZES_PX.items() if low <= side_px)[1]
