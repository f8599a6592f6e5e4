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
Help and harm as a robot publishes them, against what is true over the very same stretch.

That is what is true of the answers about its frames, each about its own, and what is true by the
clock: there an answer stands until the next one comes. Scores leave the first seconds of each
episode out, where context does not help yet, and go over the whole stream; a robot goes by its
newest labels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import stats
from .cells import ALL_SETS, Cell, Counts
from .tally import CountKey, Tally
from ...method.labels import Judged, RIDGE_S2

KINDS = ('help', 'harm')
OTHER = 'another than the edge alone'    # answers about frames
AGE, JUDGED_AGE, SQUARED = 'age of those', 'age of judged', 'age of judged, squared'
JUDGED, FRAMES, CLOCK = 'judged', 'of the same answers', 'by the clock meanwhile'
Array = npt.NDArray[np.float64]


class Answer(NamedTuple):
    """What was said about a fact, and what is true, of a frame or at a time."""

    own: str
    said: str
    truth: str
    stamp_ns: int = 0
    age_s: float = 0.0      # of the cloud's last value

    @property
    def is_other(self) -> bool:
        """Whether the edge alone said something else."""
        return self.own != self.said

    def shows(self, kind: str) -> bool:
        """Return whether the edge alone was wrong and the answer right, or the converse."""
        wrong, right = (self.own, self.said) if kind == 'help' else (self.said, self.own)
        return wrong != self.truth == right


class Answered(NamedTuple):
    """All answers of an episode about one key."""

    frames: Sequence[Answer]    # each about its frame
    clock: Sequence[Answer]     # those that stand, ten times a second

    def since(self, place: int) -> Answered:
        """Return what is not before the frame of this place."""
        if place <= 0:
            return self
        begin = self.frames[place].stamp_ns if place < len(self.frames) else math.inf
        return Answered(self.frames[place:], [a for a in self.clock if a.stamp_ns >= begin])


def count(tallies: Sequence[Tally], name: CountKey, episodes: Sequence[Answered],
          judged: Sequence[Judged]) -> None:
    """
    Count, by episode, what an estimate at the end of a stream is made of, and what is true.

    ``judged`` are the newest labels: the estimate is about the answers since the oldest of these.
    """
    if not judged:
        return
    ends = np.cumsum([len(found.frames) for found in episodes]).tolist()
    begin = sum(judged[0].answers)
    labels: list[list[Answer]] = [[] for _ in episodes]
    for one in judged:
        episode = bisect_right(ends, sum(one.answers) - 1)
        labels[episode].append(Answer(one.own, one.said, one.truth, 0, one.age_ms / 1e3))
    for tally, end, found, known in zip(tallies, ends, episodes, labels):
        since = found.since(begin - end + len(found.frames))
        others, judges = ([a for a in answers if a.is_other] for answers in (since.frames, known))

        def add(metric: str, values: Iterable[float], tries: Sequence[Answer]) -> None:
            tally.add(0, name._replace(metric=metric), sum(values), len(tries))
        add(OTHER, (a.is_other for a in since.frames), since.frames)
        add(AGE, (a.age_s for a in others), others)
        add(JUDGED_AGE, (a.age_s for a in judges), judges)
        add(SQUARED, (a.age_s ** 2 for a in judges), judges)
        for kind in KINDS:
            add(f'{kind} {JUDGED}', (a.shows(kind) for a in judges), judges)
            add(f'{kind} {JUDGED_AGE}', (a.age_s * a.shows(kind) for a in judges), judges)
            for metric, counted in ((FRAMES, since.frames), (CLOCK, since.clock)):
                add(f'{kind} {metric}', (a.shows(kind) for a in counted), counted)


class _Counted:
    """The counts of a set: episodes x keys."""

    def __init__(self, tallies: Sequence[Tally], system: str, condition: str, kind: str) -> None:
        counts = Counts(tallies)
        names = [n for n in counts.names() if n[:2] == (system, condition) and n.metric == OTHER]

        def columns(metric: str) -> list[Array]:
            found = [counts.of(n._replace(metric=metric)) for n in names]
            return [np.array([column[part] for column in found], float).T for part in (0, 1)]
        self.other, self.answers = columns(OTHER)
        self.ages, self.others = columns(AGE)
        self.judged, self.labels = columns(f'{kind} {JUDGED}')
        self.judged_ages, self.squares, self.hit_ages = (columns(metric)[0] for metric in (
            JUDGED_AGE, SQUARED, f'{kind} {JUDGED_AGE}'))
        self.true = [columns(f'{kind} {metric}') for metric in (FRAMES, CLOCK)]

    def shares(self, drawn: npt.NDArray[np.int64]) -> Array:
        """Return, for each draw of episodes, what is estimated, and what is true, both ways."""
        def share(hits: Array, tries: Array) -> Array:
            return hits[drawn].sum(axis=1) / np.maximum(1.0, tries[drawn].sum(axis=1))
        mean = share(self.judged_ages, self.labels)
        judged, squares, hit_ages, labels = (
            a[drawn].sum(axis=1) for a in (self.judged, self.squares, self.hit_ages, self.labels))
        slope = (hit_ages - mean * judged) / (squares - labels * mean ** 2 + RIDGE_S2)
        right = share(self.judged, self.labels) + slope * (share(self.ages, self.others) - mean)
        found = [share(self.other, self.answers) * np.clip(right, 0.0, 1.0),
                 *(share(*counts) for counts in self.true)]
        return np.array([each.mean(axis=-1) for each in found])


def estimated_cells(worlds: Mapping[str, Sequence[Tally]], system: str, condition: str,
                    ) -> list[Cell]:
    """Return estimates, what is true of the same stretch, and how far apart they are."""
    found = []
    for kind in KINDS:
        drawn: dict[str, tuple[Array, int]] = {}
        for place, (world, tallies) in enumerate(worlds.items()):
            one = _Counted(tallies, system, condition, kind)
            if n := len(one.answers) if one.answers.size else 0:
                draws = np.random.default_rng([n, place]).integers(0, n, (stats.REPEATS, n))
                drawn[world] = one.shares(np.concatenate([[np.arange(n)], draws])), n
        if len(drawn) > 1:
            drawn[ALL_SETS] = (np.mean([shares for shares, _ in drawn.values()], axis=0),
                               sum(n for _, n in drawn.values()))
        for world, ((estimated, *true), n) in drawn.items():
            found.append(_cell(world, system, condition, estimate_of(kind), estimated, n))
            for metric, values in zip((FRAMES, CLOCK), true):
                found.append(_cell(world, system, condition, f'{kind} {metric}', values, n))
                found.append(_cell(world, system, condition, less(kind, metric),
                                   estimated - values, n))
    return found


def estimate_of(kind: str) -> str:
    """Return the metric of an estimate."""
    return f'estimated {kind}'


def less(kind: str, metric: str) -> str:
    """Return the metric of an estimate less what is true."""
    return f'estimated {kind} less {kind} {metric}'


def _cell(world: str, system: str, condition: str, metric: str, values: Array, n: int) -> Cell:
    """Return the first value with the interval of the others, which are drawn."""
    low, high = stats.interval(values[1:])
    return Cell(world, system, condition, 'all', metric, round(float(values[0]), 4),
                (round(low, 4), round(high, 4)) if n > 1 else None, n)
