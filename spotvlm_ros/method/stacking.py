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
How much what is said of a fact counts, by where it comes from: weights learned from truth.

A value may be the edge's own, what the edge says when it is told the context, or what the cloud
said last. Each source adds to the utility of its value; the value of the highest utility wins, and
that none of them is right has utility 0 (a conditional logit model: McFadden, 1974; as a way to
combine models: stacking, Wolpert, 1992). One model per key, with eight weights:

======== ============================================================ ==========================
own      times the log odds of the edge's own value                   1
context  times the log odds of another value with context             1
seen     added to a value with context that the context does not name 0
repeats  added to a value with context that repeats it                minus log of the guard's odds
held     added to the cloud's last value, where nothing else says it  -6
age      times the age of the cloud's last value, in 5 s              0
alone    added to the edge's own value, however sure it is            0
cut      added to the cloud's last value, where the scene has changed -6
======== ============================================================ ==========================

The last column is what is believed beforehand: with it, the rule is that of the guard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
import math
import operator

import numpy as np
import numpy.typing as npt

from .facts import Fact

NAMES = ('own', 'context', 'seen', 'repeats', 'held', 'age', 'alone', 'cut')
# How far from the prior weights may be before that needs much evidence: standard deviations.
SPREAD = np.array((0.5, 0.5, 1.0, 1.0, 3.0, 0.3, 1.0, 3.0))
PRIOR_HELD = -6.0
AGE_S = 5.0        # unit of ages
WINDOW = 300       # newest labels that count: with one a second, those of 5 minutes
STEADY = 50        # labels after which one tells little by itself
VALUES = 3         # different ones at most, one of each source
STEP = 2.0         # longest of a Newton step, in any weight
CERTAIN = 1e-6     # probabilities are taken as this far from 0 and 1 at least

Array = npt.NDArray[np.float64]


def prior(odds: float) -> Array:
    """Return the weights that make the rule that of the guard with these odds."""
    return np.array((1.0, 1.0, 0.0, -math.log(max(odds, CERTAIN)), PRIOR_HELD, 0.0, 0.0,
                     PRIOR_HELD))


def log_odds(probability: float) -> float:
    """Return log p / (1 - p), of 1e-6 to 1 - 1e-6."""
    p = min(max(probability, CERTAIN), 1.0 - CERTAIN)
    return math.log(p / (1.0 - p))


@dataclass(frozen=True)
class Evidence:
    """
    What was said about one key in one frame, by whom; None where nothing was.

    ``told`` is the value that the context names, ``age_s`` how old the cloud's last value is, and
    ``cut`` whether the scene seems to be another one since.
    """

    own: Fact | None
    context: Fact | None = None
    told: str | None = None
    held: Fact | None = None
    age_s: float = 0.0
    cut: bool = False

    @property
    def own_value(self) -> str:
        """Return what the edge alone says, '' where that is nothing."""
        return self.own.value if self.own is not None else ''

    @cached_property
    def values(self) -> tuple[str, ...]:
        """Return the different values, that of the edge alone first."""
        return tuple(dict.fromkeys(
            f.value for f in (self.own, self.context, self.held) if f is not None))

    @cached_property
    def features(self) -> list[list[float]]:
        """Return what the weights are multiplied by, values x weights."""
        found = [[0.0] * len(NAMES) for _ in self.values]
        for row, value in zip(found, self.values):
            said = False
            if self.own is not None and value == self.own.value:
                row[0], row[6], said = log_odds(self.own.confidence), 1.0, True
            elif self.context is not None and value == self.context.value:
                row[1], said = log_odds(self.context.confidence), True
                row[3 if value == self.told else 2] = 1.0
            if self.held is not None and value == self.held.value:
                row[4] = float(not said)
                row[5], row[7] = self.age_s / AGE_S, float(self.cut)
        return found

    def utilities(self, weights: Array) -> list[float]:
        """Return the utility of each value: faster than numpy, for as few."""
        known = weights.tolist()
        return [sum(map(operator.mul, row, known)) for row in self.features]


class Stack:
    """The weights of one key, learned from the newest `WINDOW` labels."""

    def __init__(self, prior_weights: Array) -> None:
        """Start with what is believed beforehand."""
        self.prior = prior_weights
        self.weights = prior_weights.copy()
        self._precision = np.diag(SPREAD ** -2.0)
        # Of each label: features of the values and of "none of them", which is last.
        self._features = np.zeros((WINDOW, VALUES + 1, len(NAMES)))
        self._possible = np.full((WINDOW, VALUES + 1), -np.inf)
        self._right = np.zeros(WINDOW, np.int64)
        self._count = 0

    @property
    def labels(self) -> int:
        """Return how many labels count."""
        return min(self._count, WINDOW)

    def add(self, evidence: Evidence, truth: str) -> None:
        """Take a label."""
        place, values = self._count % WINDOW, evidence.values
        n = len(values)
        self._features[place] = 0.0
        self._features[place, :n] = evidence.features
        self._possible[place] = -np.inf
        self._possible[place, :n] = self._possible[place, VALUES] = 0.0
        self._right[place] = values.index(truth) if truth in values else VALUES
        self._count += 1

    def learn(self) -> None:
        """
        Go a Newton step towards the weights of the highest posterior probability.

        One label changes little where there are many: at `WINDOW`, every seventh has a step.
        """
        n = self.labels
        if not n or self._count % (1 + n // STEADY):
            return
        features, right = self._features[:n], self._right[:n]
        p = _softmax(features @ self.weights + self._possible[:n])
        weighted = features * p[:, :, None]
        mean = weighted.sum(1)
        gradient = (features[np.arange(n), right] - mean).sum(0) - \
            self._precision @ (self.weights - self.prior)
        flat = -1, len(NAMES)
        curvature = weighted.reshape(flat).T @ features.reshape(flat) - mean.T @ mean + \
            self._precision
        step = np.linalg.solve(curvature, gradient)
        self.weights = self.weights + step * min(1.0, STEP / float(np.abs(step).max() or 1.0))


def probabilities(evidence: Evidence, weights: Array) -> dict[str, float]:
    """Return how probable each value is; the rest is that none of them is right."""
    utilities = [*evidence.utilities(weights), 0.0]
    most = max(utilities)
    powers = [math.exp(u - most) for u in utilities]
    total = sum(powers)
    return dict(zip(evidence.values, (p / total for p in powers)))


def best(evidence: Evidence, weights: Array, margin: float = 0.0) -> str:
    """
    Return the value of the highest utility, '' where there is none.

    Another than the edge's own must be better by the margin; it then stands before it.
    """
    values = evidence.values
    if not values:
        return ''
    utilities = evidence.utilities(weights)
    if evidence.own is not None:
        utilities[0] += margin
    return values[utilities.index(max(utilities))]


def _softmax(utilities: Array) -> Array:
    powers = np.exp(utilities - utilities.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
