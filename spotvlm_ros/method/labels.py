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
"""What delayed truth has said about one key: its newest labels, counted as they come and go."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
import math
import operator
from typing import NamedTuple

from .facts import NS
from .stacking import WINDOW

RECENT = 120       # labels that tell whether the cloud is to be believed, and how fast keys change
BACK = 60          # newest labels in which the learned rule may not have been worse than another
TELLING = 8        # labels with one rule right and the other wrong, before they are compared
GAP_S = 5.0        # between two truths: whether a value stayed in between is not known
COINCIDENCE = 4.0  # minus log of the probability of one that is taken for a relation
STILL = 1.0        # likewise, where there was one before
# What keeps a slope over age near 0 where labels are few, in s^2: 0.16, the variance of what is
# mostly so or mostly not, over that of slopes, 0.1 a second.
RIDGE_S2 = 16.0


class Judged(NamedTuple):
    """What delayed truth says about one fact of one frame."""

    truth: str
    own: str
    said: str
    confidence: float     # of the edge's own value
    better: float         # right by the learned rule, less right by the guard's; see `score`
    closer: float         # likewise, less right by what was learned near the guard
    by_guard: bool        # right by the guard's rule
    by_learned: bool      # likewise, by the learned one
    answers: tuple[int, int]  # so far, of all frames: those as the edge alone, and others
    age_ms: int = 0       # of the cloud's last value, when this was answered
    aged_ms: int = 0      # so far, of all frames: the sum of those ages in others

    @property
    def kind(self) -> Kind:
        """Return what is counted of it."""
        return Kind(self.own != self.said, self.own == self.truth, self.said == self.truth,
                    self.better)


class Kind(NamedTuple):
    """What labels have in common: ``own`` is another value than ``said``, or right, and so on."""

    other: bool
    own: bool
    said: bool
    better: float


class Labels:
    """The newest `WINDOW` labels of a key, and the cloud's newest `RECENT` values."""

    def __init__(self) -> None:
        """Know nothing."""
        self.judged: deque[Judged] = deque()
        self.kinds: Counter[Kind] = Counter()
        self._ages_ms: Counter[Kind] = Counter()    # summed
        self._squares_ms2 = 0                       # of ages, of others than the edge's own
        self._truths: Counter[str] = Counter()
        self._confidence = 0.0
        self._values: deque[tuple[int, str]] = deque()   # of all frames: stamp, value
        self._changes = self._watched_ns = 0

    def __len__(self) -> int:
        """Return how many labels there are."""
        return len(self.judged)

    def add(self, newest: Judged) -> None:
        """Take a label, in the place of the oldest."""
        self.judged.append(newest)
        changed = [(newest, 1)]
        if len(self.judged) > WINDOW:
            changed.append((self.judged.popleft(), -1))
        for one, sign in changed:
            kind = one.kind
            self.kinds[kind] += sign
            self._ages_ms[kind] += sign * one.age_ms
            self._squares_ms2 += sign * one.age_ms ** 2 * kind.other
            self._truths[one.truth] += sign
            self._confidence += sign * one.confidence

    def hold(self, stamp_ns: int, value: str) -> None:
        """Take what the cloud says of a frame, judged or not."""
        self._values.append((stamp_ns, value))
        places = [(-2, 1)] * (len(self._values) > 1) + [(0, -1)] * (len(self._values) > RECENT)
        for place, sign in places:
            (before_ns, before), (after_ns, after) = self._values[place], self._values[place + 1]
            if 0 < after_ns - before_ns <= GAP_S * NS:
                self._changes += sign * (before != after)
                self._watched_ns += sign * (after_ns - before_ns)
        if len(self._values) > RECENT:
            self._values.popleft()

    @property
    def recent(self) -> list[Judged]:
        """Return the newest labels."""
        return list(self.judged)[-RECENT:]

    @property
    def agreement(self) -> float:
        """Return the share of labels where the edge alone is right, 0..1."""
        return sum(n for kind, n in self.kinds.items() if kind.own) / max(1, len(self))

    @property
    def confidence(self) -> float:
        """Return the mean of the edge's own values."""
        return self._confidence / max(1, len(self))

    @property
    def commonest(self) -> float:
        """Return the share of the cloud's commonest value."""
        return max(self._truths.values(), default=0) / max(1, len(self))

    @property
    def hazard_hz(self) -> float:
        """Return how often the cloud's value changes."""
        return self._changes * NS / self._watched_ns if self._watched_ns else 0.0

    @property
    def stays(self) -> bool:
        """Whether the cloud's values are seen to stay for a while."""
        values = [value for _, value in self._values]
        return are_related(values[1:], values[:-1])

    @property
    def newest(self) -> tuple[float, float]:
        """Of late, how often the learned rule was ahead of the guard's, and of the one near it."""
        judged = list(self.judged)[-BACK:]
        return sum([j.better for j in judged]), sum([j.closer for j in judged])

    def is_better(self, errors: float) -> bool:
        """Return whether the learned rule is so many standard errors ahead of the guard's."""
        ahead = sum(n * kind.better for kind, n in self.kinds.items())
        telling = sum(n for kind, n in self.kinds.items() if kind.better)
        spread = sum(n * kind.better ** 2 for kind, n in self.kinds.items())
        return telling >= TELLING and ahead > errors * math.sqrt(spread)

    def is_closer(self, errors: float) -> bool:
        """Return whether it is so many standard errors ahead of the one near the guard's."""
        closer = [j.closer for j in self.judged]
        return sum(closer) > errors * math.sqrt(sum([c * c for c in closer]))

    def rate(self, own: bool, said: bool, answers: Sequence[int], aged_ms: int) -> float:
        """
        Return the share of all answers where just one was right: what was said or the edge alone.

        The cloud is asked sooner where the edge is in doubt, so answers that are not those of the
        edge alone are more frequent among those judged than among all. How frequent they are among
        all is known (``answers``, as in `Judged`): of labels count those about such answers only.

        The cloud is also asked when it has just answered, so its last value is younger in frames
        that are judged. How old it is in all of those answers is known (``aged_ms``, as in
        `Judged`): the share is that of the line through the labels at that age (regression
        estimator: Cochran, Sampling Techniques, 1977, chapter 7; here with a ridge).
        """
        others = [(kind, n) for kind, n in self.kinds.items() if kind.other and n]
        if not others:
            return 0.0
        same, other = (now - then for now, then in zip(answers, self.judged[0].answers))
        if not other:
            return 0.0
        age_s = (aged_ms - self.judged[0].aged_ms) / 1e3 / other
        hits = [(n, self._ages_ms[kind]) for kind, n in others
                if (kind.own, kind.said) == (own, said)]
        n, found = sum(n for _, n in others), sum(n for n, _ in hits)
        mean_s = sum(self._ages_ms[kind] for kind, _ in others) / 1e3 / n
        slope = (sum(age for _, age in hits) / 1e3 - mean_s * found) / (
            self._squares_ms2 / 1e6 - n * mean_s ** 2 + RIDGE_S2)
        share = found / n + slope * (age_s - mean_s)
        return other / (same + other) * min(1.0, max(0.0, share))


def score(value: str, own: str, truth: str, loss: float) -> float:
    """Return how good a value is: 1 where it is right, else 0, less the loss where it harms."""
    return (value == truth) - loss * (own == truth != value)


def is_seen_by_edge(judged: Sequence[Judged], coincidence: float = COINCIDENCE) -> bool:
    """Return whether the edge's own values go with those of the cloud."""
    return are_related([j.truth for j in judged], [j.own for j in judged], coincidence)


def has_one(values: Sequence[str], share: float) -> bool:
    """Return whether more than a share of values are the same."""
    return max(values.count(v) for v in set(values)) > share * len(values)


def are_related(some: Sequence[str], others: Sequence[str],
                coincidence: float = COINCIDENCE) -> bool:
    """
    Return whether two series agree more often than those do that know nothing of each other.

    That is Cohen's kappa (1960) against its spread where they are independent (Fleiss, Cohen and
    Everitt, 1969), by Bernstein's inequality, so that rare values that coincide do not count.
    """
    n, one, other = len(some), Counter(some), Counter(others)
    if not n:
        return False
    agree = sum(map(operator.eq, some, others))
    chance = sum(one[v] * other[v] for v in one) / n
    spread = chance + chance ** 2 / n - \
        sum(one[v] * other[v] * (one[v] + other[v]) for v in one) / n ** 2
    return agree - chance > math.sqrt(2.0 * coincidence * max(0.0, spread)) + coincidence * 2 / 3
