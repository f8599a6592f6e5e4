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
Delayed truth: what the cloud says about a frame, compared with what was answered about it.

The cloud's answer comes too late to be the robot's, but not too late to tell who was right: the
edge alone, the edge with context, or the cloud's answer before. Of that `Calibration` learns, key
by key, whom to believe from now on. Four things bound what it may do:

- It begins with the guard's rule. What it learns may change that a little at once, and much only
  where that has been right more often on delayed truth, for as long as it is.
- Losing a right value of the edge counts more than winning one, most where the edge saw a change.
- A cloud that says one thing where the edge is sure of others, or anything at any time, teaches
  nothing.
- ``harm_at_most`` of a query bounds how often a value of the edge alone that was right may be
  replaced by one that is wrong: each time it happens, more must speak for another value from then
  on (online risk control: Feldman, Ringel, Bates and Romano, arXiv 2205.09095; Gibbs and Candes,
  arXiv 2106.00170). A ``cautious`` query begins as if harm had come: so much more must speak for
  another value as is forgotten after log(20) / bound labels without harm. That many rule out
  more harm than allowed, at 95 % (learn then test: Angelopoulos et al., arXiv 2110.01052).

It knows no labels but the cloud's. docs/method.md says what follows from its errors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
import math

import numpy as np

from . import stacking
from .facts import Context, Fact, NS, Query, Turn
from .gate import Drop
from .guard import is_confident, select_by_odds, SURE
from .labels import COINCIDENCE, has_one, is_seen_by_edge, Judged, Labels, score, STILL
from .stacking import Evidence, Stack, utilities

NEAR_S = 0.5       # a frame this close to the cloud's was answered as that one
HELD_S = 12.0      # the cloud's last value is nobody's from then on, as `GateConfig.age_limit_s`
WAIT_S = 20.0      # longest that an answered frame waits for its truth
FRAMES = 400       # and so many do at most
FEW = 10           # labels before anything is concluded
BLIND = 30         # labels without which an edge is not yet taken for one that sees nothing
BETTER = 1.64      # standard errors by which the learned rule must have been better: 95 %
CLOSER = 1.0       # likewise, than the one near the guard
ONE_VALUE = 0.97   # share of a value from which on it counts as the only one
ALWAYS = 0.9       # likewise of the edge's own values
GAIN = 0.5         # of the margin, per harm; the margin is in log odds
START = GAIN * math.log(20)   # margin of the cautious: gone after log(20) / bound labels
NOTHING = None, None
MARGIN_MAX = 2 * -math.log(stacking.CERTAIN)   # nothing can speak for a value more than this


@dataclass(frozen=True)
class KeyState:
    """
    What is known of one key. Rates are shares, 0..1, of the newest labels.

    Help and harm are shares of all answers since the oldest of these labels.
    """

    labels: int = 0
    agreement: float = 0.0        # of the edge alone with the cloud, about the same frames
    help: float = 0.0             # noqa: A003 the edge alone was wrong, what was said was right
    harm: float = 0.0             # the converse
    confidence: float = 0.0       # mean, of the edge alone; to compare with agreement
    hazard_hz: float = 0.0        # rate at which the value changes
    margin: float = 0.0           # log odds that another value than the edge's own must be ahead
    learned: bool = False         # the learned weights decide, not the guard
    believed: bool = False        # the cloud's values tell something
    weights: tuple[float, ...] = ()   # learned, in the order of `stacking.NAMES`
    commonest: float = 0.0        # share of the cloud's commonest value


@dataclass(frozen=True)
class FrameJudge:
    """A `guard.Judge` of the answer about one frame."""

    calibration: Calibration
    stamp_ns: int

    def guards(self, query: Query) -> bool:
        """Return whether answers are in two passes where there is doubt."""
        return bool(query.keys)

    def leaves_no_doubt(self, facts: Sequence[Fact], context: Context | None) -> bool:
        """Return whether an answer without context needs no second pass."""
        return not self.owes_pass and self.is_sure(facts, context)

    def is_sure(self, facts: Sequence[Fact], context: Context | None) -> bool:
        """Return whether a second pass would be to learn from only."""
        return self.calibration.is_sure(self.stamp_ns, facts, context)

    @property
    def owes_pass(self) -> bool:
        """Whether a second pass is due, however sure the edge is."""
        return self.calibration.owes_pass

    def select(self, first: Sequence[Fact], second: Sequence[Fact] | None,
               context: Context | None) -> tuple[Fact, ...]:
        """Return the facts that count."""
        return self.calibration.select(self.stamp_ns, first, second, context)


class _Key:
    """The calibration of one key."""

    def __init__(self, odds: float, saved: Mapping[str, float], cautious: bool) -> None:
        prior = stacking.prior(odds)
        self.guards: list[float] = prior.tolist()
        self.stack = Stack(np.array([saved.get(name, weight) for name, weight in zip(
            stacking.NAMES, prior)]), stacking.near_prior(odds))
        self.learned, self.margin = bool(saved), START if cautious else 0.0
        self.tells = self.believed = False   # the cloud something, for this key; for most, or so
        self.seen = False                    # the edge's own values go with those of the cloud
        self.labels = Labels()
        self.answers = [0, 0]   # of all frames: as the edge alone, others
        self.aged_ms = 0        # of all frames: ages of the cloud's last value in others, summed

    def count(self, evidence: Evidence, said: str) -> None:
        """Count an answer."""
        is_other = said != evidence.own_value
        self.answers[is_other] += 1
        self.aged_ms += is_other * evidence.age_ms

    def add(self, evidence: Evidence, said: str, truth: str, harm_at_most: float) -> None:
        """Take the truth about a frame."""
        own = evidence.own_value
        loss = self._loss(evidence, True)
        values = (stacking.best(self._by_guard(evidence)),
                  stacking.best(utilities(evidence, self.stack.weights), own, math.log1p(loss)),
                  stacking.best(self._near(evidence), own, self._caution(evidence, False)))
        guards, learned, _ = values
        by_guard, right, by_near = (score(v, own, truth, loss) for v in values)
        self.labels.add(Judged(
            truth, own, said, evidence.own.confidence if evidence.own is not None else 0.0,
            right - by_guard, right - (by_near if self.tells else by_guard), guards == truth,
            learned == truth, (self.answers[0], self.answers[1]), evidence.age_ms,
            self.aged_ms))
        self.stack.add(evidence, truth)
        harmed = own == truth != said
        if harm_at_most < 1.0:
            self.margin = min(MARGIN_MAX, max(0.0, self.margin + GAIN * (harmed - harm_at_most)))
        self.stack.learn()

    def decide(self) -> None:
        """Leave the guard's rule for the learned one, or come back to it."""
        if len(self.labels) < FEW:
            return   # what was learned earlier stands so far
        ahead, ahead_of_near = self.labels.newest
        if not self.believed or min(ahead, ahead_of_near) < 0:
            self.learned = False
        elif not self.learned:
            self.learned = ahead_of_near > 0 and self.labels.is_better(BETTER) and \
                self.labels.is_closer(CLOSER)

    def is_contradicted(self) -> bool:
        """Return whether the cloud has one value only, and the edge is often sure of others."""
        if not self.is_one:
            return False
        judged = self.labels.recent
        sure = sum(j.own != j.truth and j.confidence >= SURE for j in judged)
        return sure > (1.0 - ALWAYS) * len(judged) and \
            not has_one([j.own for j in judged], ALWAYS) and not self.seen

    @property
    def is_related(self) -> bool:
        """Whether the cloud's values go with those of the edge, or change and yet stay a while."""
        return len(self.labels) >= FEW and (self.seen or self.labels.stays)

    @property
    def is_one(self) -> bool:
        """Whether the cloud has one value only."""
        return len(self.labels) >= FEW and has_one(
            [j.truth for j in self.labels.recent], ONE_VALUE)

    @property
    def has_moved(self) -> bool:
        """Whether something else decides than the guard as it was to begin with."""
        return self.learned or self.tells or self.margin > 0.0

    def _loss(self, evidence: Evidence, far: bool) -> float:
        """
        Return how much more a right value of the edge that is lost counts than one not won.

        There is no harm in leaving what an edge that sees nothing is right about by chance.
        """
        sees = self.seen or (not far and len(self.labels) < BLIND)
        return evidence.loss if sees else 0.0

    def _caution(self, evidence: Evidence, far: bool) -> float:
        """Return by how much another value must be ahead for that, in log odds."""
        return math.log1p(self._loss(evidence, far))

    # Utilities by the three rules

    def _by_guard(self, evidence: Evidence) -> dict[str, float]:
        return utilities(evidence._replace(held=None), self.guards)

    def _near(self, evidence: Evidence) -> dict[str, float]:
        """Leave out what the cloud alone still says, where an edge that sees such saw it go."""
        if self.seen and evidence.is_gone:
            evidence = evidence._replace(held=None)
        return utilities(evidence, self.stack.near)

    def _learned(self, evidence: Evidence) -> dict[str, float]:
        """Let an edge that sees nothing not speak against what the cloud says by agreeing."""
        found, held, context = utilities(evidence, self.stack.weights), evidence.held, \
            evidence.context
        if not self.seen and held is not None and context is not None and \
                context.value == held.value != evidence.own_value:
            alone = utilities(evidence._replace(context=None), self.stack.weights)
            found[held.value] = max(found[held.value], alone[held.value])
        return found

    def best(self, evidence: Evidence) -> Fact | None:
        """Return the fact of the value that wins, as said by the edge if it said so."""
        rule = self._learned if self.learned else self._near if self.tells else self._by_guard
        found = rule(evidence)
        caution = self._caution(evidence, self.learned) if rule != self._by_guard else 0.0
        value = stacking.best(found, evidence.own_value, self.margin + caution)
        for fact in (evidence.own, evidence.context, evidence.held):
            if fact is not None and fact.value == value:
                return fact if not self.learned else Fact(
                    fact.key, value, fact.stamp_ns, stacking.probabilities(found)[value],
                    fact.region)
        return None

    def state(self) -> KeyState:
        """Return what is known."""
        known, counts = self.labels, (self.answers, self.aged_ms)
        return KeyState(
            len(known), known.agreement, known.rate(False, True, *counts),
            known.rate(True, False, *counts), known.confidence, known.hazard_hz, self.margin,
            self.learned, self.tells or self.learned, tuple(self.stack.weights), known.commonest)


class Calibration:
    """
    Judges answers to one query, and learns from delayed truth.

    A plain state machine: the same calls in the same order give the same answers, which is what
    makes a recorded run replayable. Not thread-safe.
    """

    def __init__(self, query: Query, odds: float, share: float = 0.0) -> None:
        """
        Begin as the guard with these odds, or with weights of the query learned earlier.

        At least a ``share`` of the frames that have a context is to be answered in two passes.
        """
        self.query, self.odds, self.share = query, odds, share
        self._in_one_pass = 0    # frames with a context since the last in two
        cautious = query.cautious and query.harm_at_most < 1.0
        self._keys = {key: _Key(odds, query.weights.get(key, {}), cautious) for key in query.keys}
        self._frames: dict[int, dict[str, tuple[Evidence, str]]] = {}   # by stamp, in order
        # The cloud's last value, and what the edge alone said of its frame, where that is known:
        self._held: dict[str, tuple[Fact, str | None]] = {}

    def forget(self) -> None:
        """Forget frames and answers, of a stream that starts over; what was learned stays."""
        self._frames.clear()
        self._held.clear()

    def state(self) -> dict[str, KeyState]:
        """Return what is known, by key."""
        return {key: calibrated.state() for key, calibrated in self._keys.items()}

    def judged(self, key: str) -> tuple[Judged, ...]:
        """Return what the newest labels of a key say."""
        return tuple(self._keys[key].labels.judged)

    # Before an answer

    def of_frame(self, stamp_ns: int) -> FrameJudge:
        """Return what judges the answer about a frame."""
        return FrameJudge(self, stamp_ns)

    @property
    def owes_pass(self) -> bool:
        """Whether the next frame is to be answered in two passes, however sure the edge is."""
        return self.share * (self._in_one_pass + 1) >= 1.0

    def is_sure(self, stamp_ns: int, facts: Sequence[Fact], context: Context | None) -> bool:
        """Return whether an answer without context is sure enough to do without a second pass."""
        if not any(k.learned for k in self._keys.values()):
            return is_confident(self.query, facts)
        own = {f.key: f for f in facts}
        for key, calibrated in self._keys.items():
            fact = own.get(key)
            if not calibrated.learned:
                sure = fact is not None and fact.confidence >= SURE
            else:
                evidence = self._evidence(key, stamp_ns, fact, None, context)
                found = utilities(evidence, calibrated.stack.weights)
                sure = max(stacking.probabilities(found).values(), default=0.0) >= SURE
            if not sure:
                return False
        return True

    def select(self, stamp_ns: int, first: Sequence[Fact], second: Sequence[Fact] | None,
               context: Context | None) -> tuple[Fact, ...]:
        """
        Return, of each key, the fact that counts: without context, with it, or the cloud's last.

        ``second`` is None where there was one pass. What was answered is kept until its truth
        comes.
        """
        without = {f.key: f for f in first}
        with_context = {f.key: f for f in second or ()}
        by_guard = {} if all(k.has_moved for k in self._keys.values()) else {f.key: f for f in (
            first if second is None or context is None else
            select_by_odds(self.query, first, second, context, self.odds))}
        selected, frame = [], {}
        for key, calibrated in self._keys.items():
            evidence = self._evidence(key, stamp_ns, without.get(key), with_context.get(key),
                                      context)
            fact = calibrated.best(evidence) if calibrated.has_moved else by_guard.get(key)
            said = fact.value if fact is not None else ''
            calibrated.count(evidence, said)
            frame[key] = evidence, said
            if fact is not None:
                selected.append(fact)
        self._frames[stamp_ns] = frame
        if context is not None and context.helps:
            self._in_one_pass = 0 if second is not None else self._in_one_pass + 1
        oldest = next(iter(self._frames))
        while len(self._frames) > FRAMES or stamp_ns - oldest > WAIT_S * NS:
            del self._frames[oldest]
            oldest = next(iter(self._frames))
        return tuple(selected)

    def _evidence(self, key: str, stamp_ns: int, own: Fact | None, with_context: Fact | None,
                  context: Context | None) -> Evidence:
        told = None if context is None else next(
            (f.value for f in context.facts if f.key == key), None)
        held, then = self._held.get(key, NOTHING)
        if held is None or not 0 <= stamp_ns - held.stamp_ns <= HELD_S * NS:
            return Evidence(own, with_context, told)
        return Evidence(own, with_context, told, held, (stamp_ns - held.stamp_ns) / NS,
                        context is not None and context.dropped.get(key) == Drop.SCENE_CUT, then)

    # When the cloud's answer has come

    def truth(self, turn: Turn) -> int:
        """
        Take the cloud's answer about a frame, however late.

        Return how many facts it judges: those answered about that frame or one close by.
        """
        frame = self._nearest(turn.stamp_ns)
        judged = 0
        self.hold(turn)
        for fact in turn.facts:
            if fact.key in frame:
                evidence, said = frame.pop(fact.key)  # each counts once, whatever comes again
                self._keys[fact.key].add(evidence, said, fact.value, self.query.harm_at_most)
                judged += 1
        if judged:
            self._doubt()
            for calibrated in self._keys.values():
                calibrated.decide()
        return judged

    def _doubt(self) -> None:
        """
        Look whether the cloud's values tell something; not at each label where there are many.

        One value only is believed unless the edge is sure of others, for this key or another one.
        Where its values tell something for half of the keys, it is believed for the others, too.
        """
        keys = self._keys.values()
        if all(k.stack.is_steady for k in keys):
            return
        for key in keys:
            key.seen = len(key.labels) >= FEW and is_seen_by_edge(
                key.labels.recent, STILL if key.seen else COINCIDENCE)
        suspect = any(k.is_contradicted() for k in keys)
        related = [k.is_related for k in keys]
        for one, tells in zip(keys, related):
            one.tells = tells or (one.is_one and not suspect)
            one.believed = one.tells or (len(one.labels) >= FEW and not one.is_one and
                                         2 * sum(related) >= len(related))

    def hold(self, turn: Turn) -> None:
        """Take the cloud's newest values, and learn nothing of them."""
        frame = self._nearest(turn.stamp_ns)
        for fact in turn.facts:
            known, _ = self._held.get(fact.key, NOTHING)
            if fact.key in self._keys and (known is None or known.stamp_ns < fact.stamp_ns):
                evidence, _ = frame.get(fact.key, NOTHING)
                self._held[fact.key] = replace(fact, region=None), \
                    None if evidence is None else evidence.own_value
                self._keys[fact.key].labels.hold(fact.stamp_ns, fact.value)

    def _nearest(self, stamp_ns: int) -> dict[str, tuple[Evidence, str]]:
        stamps = list(self._frames)
        place = bisect_left(stamps, stamp_ns)
        near = [s for s in stamps[max(0, place - 1):place + 1]
                if abs(s - stamp_ns) <= NEAR_S * NS]
        return self._frames[min(near, key=lambda s: abs(s - stamp_ns))] if near else {}
