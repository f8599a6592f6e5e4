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
How answers of the cloud may be late. All traces are synthetic.

A delay is the whole time from the acquisition of a frame to the arrival of the answer about it:
network and model together.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np

NEVER_S = 1e9


@dataclass(frozen=True)
class Trace:
    """How answers are late. Times are seconds."""

    name: str
    text: str
    median_s: float = 0.0
    sigma: float = 0.0                # of the lognormal distribution; 0: fixed
    tail: float = 0.0                 # exponent of a Pareto tail in its place
    lost: float = 0.0                 # share of answers that are errors in the end
    spread_s: tuple[float, float] = (0.0, 0.0)       # uniform between these
    outage: tuple[float, float] = (0.0, 0.0)         # share of the episode without any answer

    def delay_s(self, seed: int, number: int) -> float:
        """Return the delay of the answer about keyframe ``number``."""
        rng = np.random.default_rng([seed, number, 77])
        normal, uniform, survives = rng.normal(), rng.random(), rng.random() >= self.lost
        if not survives:
            return math.inf
        if self.spread_s[1]:
            return self.spread_s[0] + float(uniform) * (self.spread_s[1] - self.spread_s[0])
        if self.tail:  # median_s at uniform = 0.5
            return min(30.0, 0.5 * self.median_s * (2.0 - 2.0 * uniform) ** (-1 / self.tail)
                       + 0.5 * self.median_s)
        return self.median_s * math.exp(self.sigma * float(normal))


def _fixed(seconds: float) -> Trace:
    return Trace(f'fixed {seconds:g} s', f'always {seconds:g} s', seconds)


HEADLINE = 'jitter 2 s'
NEVER = 'never'
TRACES = {trace.name: trace for trace in (
    *(_fixed(s) for s in (0.0, 0.5, 1.0, 2.0, 4.0, 9.0)),
    Trace(NEVER, 'the cloud is gone for good', NEVER_S),
    Trace(HEADLINE, 'lognormal, median 2 s, sigma 0.4', 2.0, 0.4),
    Trace('heavy tail', 'median 2 s, Pareto tail of exponent 1.2, at most 30 s', 2.0, tail=1.2),
    Trace('loss', 'as jitter 2 s, and 3 of 10 answers are errors', 2.0, 0.4, lost=0.3),
    Trace('outage', 'as jitter 2 s, no answer in the middle third', 2.0, 0.4,
          outage=(1 / 3, 2 / 3)),
    Trace('reorder', 'uniform 0.5 to 5 s: later answers overtake', spread_s=(0.5, 5.0)),
)}
