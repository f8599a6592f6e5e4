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
Rules of whom to believe, replayed over a set of episodes as over one long stream.

What a rule learns is carried from episode to episode, as a robot carries it from street to street.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from . import estimates, systems
from .latencies import Latencies
from .models import CachedAnswer, combined
from .passes import AS_IT_IS, distorted, DISTORTIONS, FOCUS_ONLY, Heard, LIES, Recorded
from .score import Grid, latest, PublishedAnswer
from .streams import Stream
from .systems import (
    ALONE, bounded, BOUNDS, CALIBRATED, FULL, smoothed, STACKED, SystemRun, UNTIL_CHANGED,
    until_changed)
from .tally import CountKey, StreamScorer, Tally
from .work import OpenEpisode
from ...method.calibration import Calibration, HELD_S
from ...method.facts import Context, NS, Query, Turn
from ...method.guard import FixedOdds, guarded_answer, Judge, ODDS

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)   # of fusion and cascade
MAJORITIES = (3, 5, 9, 15)                               # answers, five a second
FIXED_ODDS = (1.0, 2.0, 16.0)
SETTLED_S = 120.0
LATER = 'after 2 min'
Published = Sequence[PublishedAnswer]
Row = tuple[str, Sequence[Published]]     # of each episode


def fusion(threshold: float) -> str:
    """Return the name of the fusion at a threshold."""
    return f'fusion at {threshold:g}'


def cascade(threshold: float) -> str:
    """Return the name of the cascade at a threshold."""
    return f'cascade at {threshold:g}'


def majority_of(n: int) -> str:
    """Return the name of the edge alone smoothed over time."""
    return f'edge alone, majority of {n}'


def with_odds(odds: float) -> str:
    """Return the name of the full method with other odds."""
    return FULL if odds == ODDS else f'odds {odds:g}'


# Of each kind, one is chosen on tuning seeds.
TUNED: Mapping[str, Sequence[str]] = {
    'fusion': [fusion(t) for t in THRESHOLDS], 'cascade': [cascade(t) for t in THRESHOLDS],
    'smoothed edge': [majority_of(n) for n in MAJORITIES]}
UNTUNED = (ALONE, 'hold', STACKED, UNTIL_CHANGED, FOCUS_ONLY)


@dataclass(frozen=True)
class Part:
    """An episode of the long stream, of one edge and one cloud."""

    stream: Stream
    alone: SystemRun
    heard: Heard
    latencies: Latencies

    def said(self, stamp_ns: int, context: Context | None) -> CachedAnswer:
        """Return what a pass of the edge says of a frame."""
        return (self.alone.answers if context is None else self.heard.told)[stamp_ns]

    def judged(self, judge: Callable[[int], Judge], told: bool = True,
               hear: Callable[[Turn], object] | None = None) -> list[PublishedAnswer]:
        """Publish what a judge of each frame lets count; let it hear the cloud when it comes."""
        published, due = [], deque(sorted(self.heard.replies, key=lambda r: r.at_ns))
        for now in sorted(self.alone.answers):
            while hear is not None and due and due[0].at_ns <= now:
                hear(due.popleft().turn)
            answer = guarded_answer(
                self.stream.query, self.heard.contexts.get(now) if told else None, judge(now),
                partial(self.said, now), combined)
            at = now + int(systems.charged_s(answer, self.latencies) * NS)
            published.append(PublishedAnswer(at, now, answer.values))
        return published

    def age_s(self, key: str, now_ns: int) -> float:
        """Return how old the cloud's last value of a key is, 0 where there is none."""
        stamps = [f.stamp_ns for r in self.heard.replies if r.at_ns <= now_ns
                  for f in r.turn.facts if f.key == key]
        age_s = (now_ns - max(stamps)) / NS if stamps else 0.0
        return age_s if age_s <= HELD_S else 0.0

    def answers(self, key: str, published: Published) -> estimates.Answered:
        """Return what was said of a key, and what was true, by frames and by the clock."""
        def one(stamp_ns: int, own: PublishedAnswer | None, said: PublishedAnswer | None,
                age_s: float = 0.0) -> estimates.Answer:
            return estimates.Answer('' if own is None else own.values.get(key, ''),
                                    '' if said is None else said.values.get(key, ''),
                                    self.stream.truth(stamp_ns).get(key, ''), stamp_ns, age_s)
        alone, times = {p.stamp_ns: p for p in self.alone.published}, self.stream.frames
        return estimates.Answered(
            [one(p.stamp_ns, alone[p.stamp_ns], p, self.age_s(key, p.stamp_ns))
             for p in published],
            [one(*found) for found in zip(
                times, latest(self.alone.published, times), latest(published, times))])


def parts(opened: Sequence[tuple[Stream, Recorded]], latencies: Latencies, condition: str,
          ) -> list[Part]:
    """Return the long stream of a condition: the edge distorted, the cloud a liar, or neither."""
    found = []
    for stream, recorded in opened:
        cloud = condition if condition in LIES else AS_IT_IS
        if cloud not in recorded.heard:
            continue   # not recorded of every episode
        alone, heard = recorded.alone, recorded.heard[cloud]
        if condition in DISTORTIONS:
            change = DISTORTIONS[condition]
            told = SystemRun([], dict(heard.told), {})
            alone, told = (distorted(run, stream.query, recorded.episode.seed, change)
                           for run in (alone, told))
            heard = replace(heard, told=told.answers)
        found.append(Part(stream, alone, heard, latencies))
    return found


@dataclass
class Learner:
    """The calibrated method over a long stream; ``told``: with context."""

    query: Query
    told: bool = True

    def __post_init__(self) -> None:
        """Begin with the guard."""
        self.calibration = Calibration(self.query, ODDS)

    def over(self, stream: Sequence[Part]) -> list[Published]:
        """Publish answers to every episode in turn."""
        return [self._part(part) for part in stream]

    def _part(self, part: Part) -> Published:
        self.calibration.forget()
        return part.judged(self.calibration.of_frame, self.told, self.calibration.truth)


def baselines(stream: Sequence[Part]) -> Iterator[Row]:
    """Yield everything that the method is compared with."""
    held = [systems.hold(p.heard.replies) for p in stream]
    yield ALONE, [p.alone.published for p in stream]
    yield 'hold', held
    yield FOCUS_ONLY, [p.heard.focus_only for p in stream]
    for threshold in THRESHOLDS:
        for name, rule in ((fusion, systems.fusion), (cascade, systems.cascade)):
            yield name(threshold), [rule(p.alone, h, threshold) for p, h in zip(stream, held)]
    yield UNTIL_CHANGED, [until_changed(p.alone, h) for p, h in zip(stream, held)]
    for n in MAJORITIES:
        yield majority_of(n), [smoothed(p.alone, n) for p in stream]
    yield STACKED, Learner(stream[0].stream.query, told=False).over(stream)


def fixed(stream: Sequence[Part], odds: float) -> list[Published]:
    """Run the full method with odds that stay."""
    judge = FixedOdds(stream[0].stream.query, odds)
    return [p.judged(lambda stamp: judge) for p in stream]


class SetReplay:
    """All rows over one set, counted."""

    def __init__(self, opened: Sequence[tuple[Stream, Recorded]], latencies: Latencies) -> None:
        """Take the episodes in order."""
        self.opened, self.latencies = opened, latencies
        self.tallies = [Tally() for _ in opened]
        self.scorers = [StreamScorer(stream, tally)
                        for (stream, _), tally in zip(opened, self.tallies)]
        self.slices = [self._slices(i) for i in range(len(opened))]

    def run(self) -> list[Tally]:
        """Replay every condition."""
        stream = parts(self.opened, self.latencies, AS_IT_IS)
        self._count(AS_IT_IS, stream, baselines(stream))
        self._method(AS_IT_IS, stream, (1.0, *BOUNDS))
        for condition in (*DISTORTIONS, *LIES):
            stream = parts(self.opened, self.latencies, condition)
            if stream:
                self._count(condition, stream, (
                    (ALONE, [p.alone.published for p in stream]),
                    ('hold', [systems.hold(p.heard.replies) for p in stream])))
                self._method(condition, stream, (1.0,))
        return self.tallies

    def _method(self, condition: str, stream: Sequence[Part], bounds: Sequence[float]) -> None:
        self._count(condition, stream, ((with_odds(o), fixed(stream, o))
                                        for o in (ODDS, *FIXED_ODDS)))
        for bound in bounds:
            learner = Learner(replace(stream[0].stream.query, harm_at_most=bound))
            name = CALIBRATED if bound == 1.0 else bounded(bound)
            published = learner.over(stream)
            self._count(condition, stream, ((name, published),))
            for key in learner.query.keys:
                estimates.count(self.tallies, CountKey(name, condition, f'key {key}', ''), [
                    part.answers(key, answers) for part, answers in zip(stream, published)],
                    learner.calibration.judged(key))

    def _count(self, condition: str, stream: Sequence[Part], rows: Iterable[Row]) -> None:
        """Count every row; the condition stands where delays do elsewhere."""
        alone = [scorer.grid(part.alone.published)
                 for scorer, part in zip(self.scorers, stream)]
        for name, episodes in rows:
            for scorer, published, base, slices in zip(
                    self.scorers, episodes, alone, self.slices):
                scorer.streaming(name, condition, scorer.grid(published), base, slices)

    def _slices(self, place: int) -> dict[str, Grid]:
        """Return facts by place in the long stream, and those that changed since the cloud's."""
        stream, recorded = self.opened[place]
        known = self.scorers[place].slices(systems.hold(recorded.heard[AS_IT_IS].replies))
        seconds = (stream.frames[-1] - stream.frames[0]) / NS
        begin_s = place * round(seconds)
        found = {'all': known['all'], 'changed': known['changed'],
                 minute(int(begin_s // 60)): known['all']}
        if begin_s >= SETTLED_S:
            found[LATER] = known['all']
        return found


def minute(number: int) -> str:
    """Return the slice of a minute of the long stream, from 0 on."""
    return f'minute {number}'


def replay_set(recorded: Sequence[Recorded], latencies: Latencies) -> list[Tally]:
    """Replay everything over the episodes of a set; return the counts of each."""
    return SetReplay([(OpenEpisode(r.episode).stream, r) for r in recorded], latencies).run()
