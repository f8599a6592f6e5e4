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
Intervals: the unit is the episode, since facts of one episode are not independent.

Paired cluster bootstrap: every system is scored on the same resampled episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Numbers = Sequence[float] | npt.NDArray[np.float64]
REPEATS = 2000
LEVEL = 0.95


def share(right: Numbers, total: Numbers) -> tuple[float, list[float]]:
    """Return the pooled share and its interval, from counts per episode."""
    r, t = np.asarray(right, float), np.asarray(total, float)
    return _ratio(r.sum(), t.sum()), interval(_ratios(r, t, _drawn(len(r))))


def difference(right: Numbers, total: Numbers, right_b: Numbers, total_b: Numbers,
               ) -> tuple[float, list[float]]:
    """Return how much the pooled share of one exceeds that of the other, and its interval."""
    r, t = np.asarray(right, float), np.asarray(total, float)
    rb, tb = np.asarray(right_b, float), np.asarray(total_b, float)
    drawn = _drawn(len(r))
    return (_ratio(r.sum(), t.sum()) - _ratio(rb.sum(), tb.sum()),
            interval(_ratios(r, t, drawn) - _ratios(rb, tb, drawn)))


def interval(values: npt.NDArray[np.float64]) -> list[float]:
    """Return the interval of draws."""
    known = values[~np.isnan(values)]
    if not len(known):
        return [float('nan'), float('nan')]
    tail = 50 * (1 - LEVEL)
    return [float(v) for v in np.percentile(known, [tail, 100 - tail])]


@lru_cache(maxsize=64)
def _drawn(n: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([n, 1]).integers(0, n, (REPEATS, n))


def _ratio(right: float, total: float) -> float:
    return float(right / total) if total else float('nan')


def _ratios(right: npt.NDArray[np.float64], total: npt.NDArray[np.float64],
            drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    totals = total[drawn].sum(axis=1)
    return np.divide(right[drawn].sum(axis=1), totals, where=totals > 0,
                     out=np.full(len(drawn), np.nan))
