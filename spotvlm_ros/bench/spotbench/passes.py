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
What both passes of the edge said over an episode, for replays of rules of whom to believe.

The contexts are those of the full method with the guard: a rule that says something else would
have been told something else now and then, through the edge's own turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
import math

import numpy as np

from .delays import DeliveredReply, HEADLINE, TRACES
from .models import CachedAnswer
from .score import PublishedAnswer
from .seeds import Episode
from .systems import FULL, SystemRun
from .work import OpenEpisode
from ...cloud.parse import CloudAnswer
from ...method.facts import Context, Fact, NS, Query
from ...method.stacking import log_odds

AS_IT_IS = 'as it is'
FOCUS_ONLY = 'focus only'
Size = tuple[int, int]
Lie = Callable[[Fact, Sequence[str], Size, np.random.Generator], Fact]


def _random(share: float) -> Lie:
    """Give this share of the facts a random value."""
    return lambda fact, choices, size, rng: (
        replace(fact, value=str(rng.choice(choices))) if rng.random() < share else fact)


def _one_value(fact: Fact, choices: Sequence[str], size: Size, rng: np.random.Generator) -> Fact:
    return replace(fact, value=choices[1])


def _shifted(fact: Fact, choices: Sequence[str], size: Size, rng: np.random.Generator) -> Fact:
    """Move the region by half of the frame, both ways."""
    if fact.region is None:
        return fact
    r, (width, height) = fact.region, size
    return replace(fact, region=replace(
        r, x=(r.x + width / 2) % max(1.0, width - r.w),
        y=(r.y + height / 2) % max(1.0, height - r.h)))


# What clouds that lie make of each fact.
LIES: Mapping[str, Lie] = {
    'cloud: 20 % random values': _random(0.2), 'cloud: random values': _random(1.0),
    'cloud: always one value': _one_value, 'cloud: regions elsewhere': _shifted}


@dataclass(frozen=True)
class Heard:
    """What came of the answers of a cloud, honest or not."""

    replies: tuple[DeliveredReply, ...]
    contexts: Mapping[int, Context]        # by frame
    told: Mapping[int, CachedAnswer]       # what the edge says with them, in one pass
    focus_only: tuple[PublishedAnswer, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """One episode: what the edge says alone, and what came of each cloud."""

    episode: Episode
    alone: SystemRun
    heard: Mapping[str, Heard]


def record(episode: Episode, lies: Sequence[str]) -> Recorded:
    """Ask both models whatever the replays need to know of an episode."""
    opened = OpenEpisode(episode)
    run = opened.replay()
    inputs, heard = run.inputs, {}

    def lying(lie: Lie) -> Callable[[int], CloudAnswer | None]:
        def answer(stamp_ns: int) -> CloudAnswer | None:
            true, rng = inputs.cloud(stamp_ns), np.random.default_rng(
                [episode.seed, stamp_ns // 1_000_000 % 2 ** 32, 5])
            return true and replace(true, facts=tuple(
                lie(f, run.stream.query.choices[f.key], run.stream.size, rng)
                for f in true.facts))
        return answer
    for name in (AS_IT_IS, *lies):
        cloud = run.cloud if name == AS_IT_IS else replace(run.cloud, answer=lying(LIES[name]))
        replies = cloud.replies(TRACES[HEADLINE])
        contexts = run.transfer(FULL, replies).contexts
        told = {s: inputs.edge(s, c, guarded=False) for s, c in contexts.items()}
        focus_only = (run.transfer(FOCUS_ONLY, replies).published if name == AS_IT_IS else ())
        heard[name] = Heard(tuple(replies), contexts, told, tuple(focus_only))
    opened.save()
    return Recorded(episode, run.alone, heard)


Distortion = Callable[[Query, int, int, tuple[Fact, ...]], tuple[Fact, ...]]


def _temperature(temperature: float) -> Distortion:
    """Divide the log odds of confidences."""
    return lambda query, seed, stamp_ns, facts: tuple(
        replace(f, confidence=1.0 / (1.0 + math.exp(-log_odds(f.confidence) / temperature)))
        for f in facts)


def _blind(query: Query, seed: int, stamp_ns: int, facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """Say one value of each key, and be sure of it."""
    return tuple(Fact(k, v[-1], stamp_ns, 0.999) for k, v in query.choices.items())


def _guessing(query: Query, seed: int, stamp_ns: int, facts: tuple[Fact, ...],
              ) -> tuple[Fact, ...]:
    """Say anything, more or less sure."""
    rng = np.random.default_rng([seed, stamp_ns * 5 // NS, len(facts) and
                                 int(1e6 * facts[0].confidence)])
    return tuple(Fact(k, str(rng.choice(v)), stamp_ns, float(rng.uniform(0.3, 0.99)))
                 for k, v in query.choices.items())


BLIND = 'edge: always one value, sure'
# What else the edge could say, with context and without.
DISTORTIONS: Mapping[str, Distortion] = {
    'edge: temperature 0.3': _temperature(0.3), 'edge: temperature 3': _temperature(3.0),
    BLIND: _blind, 'edge: random values': _guessing}


def distorted(run: SystemRun, query: Query, seed: int, change: Distortion) -> SystemRun:
    """Return what an edge would have published that says something else."""
    answers = {s: replace(a, facts=change(query, seed, s, a.facts))
               for s, a in run.answers.items()}
    return SystemRun([PublishedAnswer(p.at_ns, p.stamp_ns, answers[p.stamp_ns].values)
                      for p in run.published], answers, {})
