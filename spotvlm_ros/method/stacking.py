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
combine models: stacking, Wolpert, 1992). One model per key, with ten weights:

======== ============================================================ ==========================
own      times the log odds of the edge's own value                   1
context  times the log odds of another value with context             1
seen     added to a value with context that the context does not name 0
repeats  added to a value with context that repeats it                minus log of the guard's odds
held     added to the cloud's last value, where nothing else says it  -6
age      times the age of the cloud's last value, in 5 s              0
alone    added to the edge's own value, however sure it is            0
cut      added to the cloud's last value, where the scene has changed -6
denied   added to the edge's own value that it said of the cloud's    0
         frame, too, of which the cloud said another
changed  added to the edge's own value where that was the cloud's     0
         last value about the cloud's frame, and is no more
======== ============================================================ ==========================

The last column is what is believed beforehand: with it, the rule is that of the guard.

The weights are learned twice from the same labels: `Stack.weights` may go far from those of the
guard, `Stack.near` only a little, from a fourth of its odds. Few labels tell little, and what is
near is right more often; what is far is needed where an edge means nothing by what it says.
What a right value of the edge counts, beside one that is probable, is `Evidence.loss`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .facts import Fact

NAMES = ('own', 'context', 'seen', 'repeats', 'held', 'age', 'alone', 'cut', 'denied', 'changed')
OWN, CONTEXT, SEEN, REPEATS, HELD, AGE, ALONE, CUT, DENIED, CHANGED = range(len(NAMES))
# How far from the prior weights may be before that needs much evidence: standard deviations.
SPREAD = np.array((0.75, 0.75, 1.5, 1.5, 4.5, 0.45, 1.5, 4.5, 1.5, 1.5))
# The same of `Stack.near`:
NEAR = np.array((0.125, 0.125, 0.25, 0.25, 2.0, 0.075, 0.3, 0.75, 0.25, 0.25))
NEAR_SCALE = 0.5     # besides, of own and context together, as confidences are too high or low
NEAR_ODDS = 4.0      # the prior of `near` has so many times lower odds
NEAR_CHANGED = 0.4   # and this weight
# That a right value of the edge is lost counts so much more than that a wrong one stays: where
# another repeats the context; where it was seen; where the edge has seen the fact change.
LOSS, LOSS_SEEN, LOSS_CHANGED = 0.5, 0.2, 2.0
PRIOR_HELD = -6.0
AGE_S = 5.0        # unit of ages
WINDOW = 300       # newest labels that count: with one a second, those of 5 minutes
STEADY = 50        # labels after which one tells little by itself
VALUES = 3         # different ones at most, one of each source
STEP = 2.0         # longest of a Newton step, in any weight
HALVINGS = 5       # of a step that leads to what is less probable
CERTAIN = 1e-6     # probabilities are taken as this far from 0 and 1 at least
HIGHEST = 500.0    # of utilities, that counts
SURELY = math.log((1.0 - CERTAIN) / CERTAIN)

Array = npt.NDArray[np.float64]


def prior(odds: float) -> Array:
    """Return the weights that make the rule that of the guard with these odds."""
    weights = np.zeros(len(NAMES))
    weights[[OWN, CONTEXT]] = 1.0
    weights[[HELD, CUT]] = PRIOR_HELD
    weights[REPEATS] = -math.log(max(odds, CERTAIN))
    return weights


def log_odds(probability: float) -> float:
    """Return log p / (1 - p), of 1e-6 to 1 - 1e-6."""
    if CERTAIN < probability < 1.0 - CERTAIN:
        return math.log(probability / (1.0 - probability))
    return SURELY if probability > 0.5 else -SURELY


class Evidence(NamedTuple):
    """
    What was said about one key in one frame, by whom; None where nothing was.

    ``told`` is the value that the context names, ``age_s`` how old the cloud's last value is, and
    ``cut`` whether the scene seems to be another one since. ``then`` is what the edge alone has
    said of the frame of the cloud's last value, None where that is not known.
    """

    own: Fact | None
    context: Fact | None = None
    told: str | None = None
    held: Fact | None = None
    age_s: float = 0.0
    cut: bool = False
    then: str | None = None

    @property
    def age_ms(self) -> int:
        """Return the age, in whole numbers: their sums do not depend on the order."""
        return round(1e3 * self.age_s)

    @property
    def own_value(self) -> str:
        """Return what the edge alone says, '' where that is nothing."""
        return self.own.value if self.own is not None else ''

    @property
    def has_changed(self) -> bool:
        """Whether the edge has said the cloud's last value with the cloud, and now another."""
        held = self.held
        return held is not None and held.value == self.then != self.own_value

    @property
    def is_gone(self) -> bool:
        """Whether, besides, nothing else says that value."""
        return self.has_changed and (self.context is None or self.held is None or
                                     self.context.value != self.held.value)

    @property
    def loss(self) -> float:
        """Return how much more it counts that a right value of the edge is lost."""
        if self.has_changed:
            return LOSS_CHANGED
        context = self.context
        is_seen = context is not None and context.value not in (self.own_value, self.told)
        return LOSS_SEEN if is_seen else LOSS

    def terms(self) -> dict[str, list[tuple[int, float]]]:
        """Return of each value, the edge's own first, which weights count, and how often."""
        found: dict[str, list[tuple[int, float]]] = {}
        own, context, held = self.own, self.context, self.held
        if own is not None:
            found[own.value] = terms = [(OWN, log_odds(own.confidence)), (ALONE, 1.0)]
            if held is not None and own.value != held.value:
                if self.then == own.value:
                    terms.append((DENIED, 1.0))
                elif self.then == held.value:
                    terms.append((CHANGED, 1.0))
        if context is not None and context.value not in found:
            found[context.value] = [(CONTEXT, log_odds(context.confidence)), (
                REPEATS if context.value == self.told else SEEN, 1.0)]
        if held is not None:
            terms = found.setdefault(held.value, [(HELD, 1.0)])
            terms += [(AGE, self.age_s / AGE_S), (CUT, float(self.cut))]
        return found


def near_prior(odds: float) -> Array:
    """Return what `Stack.near` begins with."""
    weights = prior(odds / NEAR_ODDS)
    weights[CHANGED] = NEAR_CHANGED
    return weights


class Stack:
    """The weights of one key, learned from the newest `WINDOW` labels."""

    def __init__(self, prior_weights: Array, near_weights: Array) -> None:
        """Start with what is believed beforehand."""
        near: Array = np.diag(NEAR ** 2.0)
        near[np.ix_((OWN, CONTEXT), (OWN, CONTEXT))] += NEAR_SCALE ** 2.0
        self._priors = ((prior_weights, np.diag(SPREAD ** -2.0)),
                        (near_weights, np.asarray(np.linalg.inv(near), np.float64)))
        self.weights: list[float] = prior_weights.tolist()
        self.near: list[float] = near_weights.tolist()
        # Of each label: features of the values and of "none of them", which is last.
        self._features = np.zeros((WINDOW, VALUES + 1, len(NAMES)))
        self._possible = np.full((WINDOW, VALUES + 1), -np.inf)
        self._right = np.zeros(WINDOW, np.int64)
        self._count = 0

    @property
    def is_steady(self) -> bool:
        """Whether the newest label is passed over, as it tells little by itself."""
        return self._count % (1 + min(self._count, WINDOW) // STEADY) > 0

    def add(self, evidence: Evidence, truth: str) -> None:
        """Take a label."""
        place, terms = self._count % WINDOW, evidence.terms()
        features, possible = self._features[place], self._possible[place]
        features[:], possible[:-1] = 0.0, -np.inf
        for i, found in enumerate(terms.values()):
            possible[i] = 0.0
            for name, times in found:
                features[i, name] = times
        possible[VALUES] = 0.0
        self._right[place] = list(terms).index(truth) if truth in terms else VALUES
        self._count += 1

    def learn(self) -> None:
        """
        Go a Newton step towards the weights of the highest posterior probability.

        One label changes little where there are many: at `WINDOW`, every seventh has a step.
        """
        if self._count and not self.is_steady:
            self.weights, self.near = (self._step(np.array(weights), *beforehand) for
                                       weights, beforehand in zip((self.weights, self.near),
                                                                  self._priors))

    def _step(self, weights: Array, prior_weights: Array, precision: Array) -> list[float]:
        n = min(self._count, WINDOW)
        features, right = self._features[:n], self._right[:n]
        found = features @ weights + self._possible[:n]
        each, off = np.arange(n), weights - prior_weights
        p, before = _softmax(found), _surprise(found, right, off, precision)
        weighted = features * p[:, :, None]
        mean = weighted.sum(1)
        gradient = (features[each, right] - mean).sum(0) - precision @ off
        flat = -1, len(NAMES)
        curvature = weighted.reshape(flat).T @ features.reshape(flat) - mean.T @ mean + precision
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, STEP / float(np.abs(step).max() or 1.0))
        ahead = features @ step
        for _ in range(HALVINGS):
            if _surprise(found + ahead, right, off + step, precision) <= before:
                break
            step, ahead = step / 2.0, ahead / 2.0
        return (weights + step).tolist()


def utilities(evidence: Evidence, weights: Sequence[float]) -> dict[str, float]:
    """Return the utility of each value, that of the edge alone first."""
    found = {}
    for value, terms in evidence.terms().items():
        utility = 0.0
        for name, times in terms:   # faster than sum(), of which an answer would need dozens
            utility += weights[name] * times
        found[value] = utility
    return found


def probabilities(found: Mapping[str, float]) -> dict[str, float]:
    """Return how probable each value is, by utilities; the rest is that none of them is right."""
    powers = {value: math.exp(min(u, HIGHEST)) for value, u in found.items()}
    total = sum(powers.values()) + 1.0
    return {value: p / total for value, p in powers.items()}


def best(found: Mapping[str, float], own: str = '', margin: float = 0.0) -> str:
    """
    Return the value of the highest utility, '' where there is none.

    Another than the edge's own must be better by the margin; it then stands before it.
    """
    if margin and own in found:
        found = {**found, own: found[own] + margin}
    return max(found, key=found.__getitem__, default='')


def _surprise(found: Array, right: npt.NDArray[np.int64], off: Array, precision: Array) -> float:
    """Return minus log of the posterior probability of weights, up to a constant."""
    powers = np.exp(np.minimum(found, HIGHEST)).sum(-1)
    return float(np.log(powers).sum() - found[np.arange(len(found)), right].sum()
                 + off @ precision @ off / 2.0)


def _softmax(utilities: Array) -> Array:
    powers = np.exp(utilities - utilities.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))
