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
"""Delayed truth: whom to believe is learned from what the cloud says about frames long gone."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from spotvlm_ros.method import stacking
from spotvlm_ros.method.calibration import (
    BLIND, Calibration, FEW, HELD_S, MARGIN_MAX, NEAR_S, START)
from spotvlm_ros.method.calibrations import Calibrations
from spotvlm_ros.method.facts import Context, Fact, NS, Query, Source, Turn
from spotvlm_ros.method.gate import Drop
from spotvlm_ros.method.guard import FixedOdds, guarded_answer
from spotvlm_ros.method.labels import (
    are_related, COINCIDENCE, Judged, Labels, score, STILL)
from spotvlm_ros.method.stacking import Evidence, Stack, WINDOW

VALUES = ('red', 'yellow', 'green', 'none')
QUERY = Query('scene', 'What?', 'facts', {'light': VALUES})
DELAY = 2      # of the cloud, in its periods
PERIOD_NS = NS
SEED = 7


@dataclass(frozen=True)
class Pass:
    """What one pass of the model said."""

    facts: tuple[Fact, ...]
    partial: bool = False


class World:
    """A light that changes now and then, an edge that errs, a cloud that is late."""

    def __init__(self, hazard=0.15, **query):
        self.rng = np.random.default_rng(SEED)
        self.truths = [0]
        self.calibration = Calibration(replace(QUERY, **query), 4.0)
        self.values = self.calibration.query.choices['light']
        for _ in range(2000):
            other = self.truths[-1] + self.rng.integers(1, len(self.values))
            self.truths.append(int(other) % len(self.values) if self.rng.random() < hazard else
                               self.truths[-1])
        self.said, self.owns, self.dropped = {}, {}, {}

    def value(self, right, truth):
        """Return the truth with a probability, else another value."""
        wrong = (truth + self.rng.integers(1, 4)) % 4
        return VALUES[truth if self.rng.random() < right else int(wrong)]

    def run(self, begin, end, edge, cloud):
        """Answer frames; `edge` returns both passes, `cloud` what comes of a frame."""
        told = {}
        for k in range(begin, end):
            now, judge = (k + 1) * PERIOD_NS, self.calibration
            if k >= begin + DELAY:
                told = {'light': Fact('light', cloud(k - DELAY), now - DELAY * PERIOD_NS)}
                judge.truth(Turn('scene', now - DELAY * PERIOD_NS, Source.CLOUD,
                                 tuple(told.values())))
            context = Context('scene', now, tuple(told.values()), dropped=self.dropped)
            first, second = (Pass((Fact('light', v, now, p),)) for v, p in edge(k, told))
            answer = guarded_answer(judge.query, context, judge.of_frame(now),
                                    lambda given: first if given is None else second,
                                    lambda one, other, facts: replace(one, facts=facts))
            self.said[k] = answer.facts[0].value
            self.owns[k] = first.facts[0].value

    def accuracy(self, begin, end, said=None):
        """Return the share of frames with the right value."""
        said = self.said if said is None else said
        return np.mean([said[k] == self.true(k) for k in range(begin, end)])

    def harm(self, begin, end):
        """Return the share of frames where only the edge alone was right."""
        return np.mean([self.owns[k] == VALUES[self.truths[k]] != self.said[k]
                        for k in range(begin, end)])

    def true(self, k):
        """Return what a perfect cloud says."""
        return self.values[self.truths[k]]

    def usual_edge(self, k, told):
        """Right in 70 % alone and sure then, in 90 % with context."""
        truth = self.truths[k]
        own, other = self.value(0.7, truth), self.value(0.9, truth)
        return (own, 0.97 if own == VALUES[truth] else 0.5), (other, 0.9)

    def blind_edge(self, k, told):
        """Says one value, whatever it sees, and is sure."""
        return ('yellow', 0.999), ('yellow', 0.999)


def test_without_truth_answers_are_those_of_the_guard():
    rng = np.random.default_rng(SEED)
    calibration, fixed = Calibration(QUERY, 4.0), FixedOdds(QUERY, 4.0)
    for n in range(300):
        facts = [tuple(Fact('light', str(rng.choice(VALUES)), 1, float(rng.random()))
                       for _ in range(rng.integers(0, 2))) for _ in range(3)]
        context = Context('scene', n, facts[0])
        judge = calibration.of_frame(n)
        assert judge.select(facts[1], facts[2], context) == fixed.select(
            facts[1], facts[2], context)
        assert judge.leaves_no_doubt(facts[1], context) == fixed.leaves_no_doubt(
            facts[1], context)


def test_the_prior_weights_are_the_guards_rule():
    rng = np.random.default_rng(SEED)
    for _ in range(500):
        own, other = (Fact('light', str(rng.choice(VALUES)), 1, float(rng.uniform(0.01, 0.99)))
                      for _ in range(2))
        told = str(rng.choice(VALUES))
        evidence = stacking.Evidence(own, other, told)
        by_guard = FixedOdds(QUERY, 4.0).select(
            (own,), (other,), Context('scene', 1, (Fact('light', told, 1),)))
        found = stacking.utilities(evidence, stacking.prior(4.0))
        assert stacking.best(found) == by_guard[0].value


def test_an_edge_that_is_sure_and_wrong_is_outvoted_by_what_the_cloud_says():
    world = World(hazard=0.05)
    world.run(0, 300, world.blind_edge, world.true)
    held = {k: world.true(k - DELAY) for k in range(DELAY, 300)}
    assert world.accuracy(60, 300) >= world.accuracy(60, 300, held) - 0.02
    assert world.accuracy(60, 300, world.owns) < 0.5
    state = world.calibration.state()['light']
    assert state.believed and state.agreement < 0.5 < state.help


@pytest.mark.parametrize('edge', ['one value', 'anything'])
@pytest.mark.parametrize('dropped', [{}, {'light': int(Drop.SCENE_CUT)}])
def test_an_edge_that_sees_nothing_is_no_worse_than_the_clouds_last_value(edge, dropped):
    """Nor where each frame is taken for another scene."""
    world, rng = World(hazard=0.1), np.random.default_rng(SEED)
    world.dropped = dropped

    def guessing(k, told):
        return tuple((str(rng.choice(VALUES)), float(rng.uniform(0.3, 0.99))) for _ in range(2))
    world.run(0, 300, guessing if edge == 'anything' else world.blind_edge, world.true)
    held = {k: world.true(k - DELAY) for k in range(DELAY, 300)}
    assert world.accuracy(100, 300) >= world.accuracy(100, 300, held) - 0.02


def test_what_the_cloud_denied_is_not_said_again_and_what_changed_since_is_seen():
    """The edge misreads half of what it meets, for as long as that lasts, and is sure of all."""
    world, read = World(hazard=0.15), {}

    def misreading(k, told):
        same = k and world.truths[k] == world.truths[k - 1]
        read[k] = read[k - 1] if same else world.value(0.5, world.truths[k])
        return ((read[k], 0.9),) * 2
    world.run(0, 600, misreading, world.true)
    held = {k: world.true(k - DELAY) for k in range(DELAY, 600)}
    others = world.accuracy(200, 600, held), world.accuracy(200, 600, world.owns)
    assert world.accuracy(200, 600) > max(others) + 0.06
    weights = dict(zip(stacking.NAMES, world.calibration.state()['light'].weights))
    assert weights['denied'] < -1.0


@pytest.mark.parametrize('then,said', [('red', 'green'), ('green', 'red')])
def test_what_an_edge_that_sees_saw_go_is_not_said_for_the_cloud_alone(then, said):
    """Near the guard; what the cloud denied is, if the cloud's last value is mostly right."""
    world = World()
    world.run(0, 120, world.usual_edge, world.true)
    calibration, now = world.calibration, 130 * NS
    key = calibration._keys['light']
    assert key.seen and key.tells and not key.learned
    key.stack.near[stacking.HELD] = key.stack.weights[stacking.HELD] = 9.0
    calibration.of_frame(now).select((Fact('light', then, now, 0.6),), None, None)
    calibration.hold(Turn('scene', now, Source.CLOUD, (Fact('light', 'red', now),)))
    answer = calibration.of_frame(now + NS).select(
        (Fact('light', 'green', now + NS, 0.6),), None, None)
    assert answer[0].value == said


@pytest.mark.parametrize('held,said', [(1.5, 'green'), (-1.5, 'red')])
def test_an_edge_that_sees_nothing_does_not_object_by_agreeing_in_doubt(held, said):
    """With context it says what the cloud says, at 0.3; without, the cloud's value would win."""
    calibration = Calibration(replace(QUERY, weights={'light': {'held': held}}), 4.0)
    cloud = Fact('light', 'green', NS)
    calibration.hold(Turn('scene', NS, Source.CLOUD, (cloud,)))
    answer = calibration.of_frame(2 * NS).select(
        (Fact('light', 'red', 2 * NS, 0.6),), (Fact('light', 'green', 2 * NS, 0.3),),
        Context('scene', 2 * NS, (cloud,)))
    assert answer[0].value == said


def fact(value, p=0.6):
    return Fact('light', value, NS, p)


@pytest.mark.parametrize('context, told, then, loss', [
    ('green', 'green', 'yellow', stacking.LOSS),            # repeats what it is told
    ('yellow', 'green', 'red', stacking.LOSS_SEEN),         # was seen
    ('green', 'green', 'green', stacking.LOSS_CHANGED),     # what the edge saw go
    (None, None, 'green', stacking.LOSS_CHANGED)])
def test_what_is_lost_with_a_right_value_depends_on_what_speaks_against_it(
        context, told, then, loss):
    evidence = Evidence(fact('red'), context and fact(context), told, fact('green'), then=then)
    assert evidence.loss == loss
    assert [score(value, 'red', truth, loss) for value, truth in (
        ('red', 'red'), ('green', 'red'), ('green', 'green'))] == [1.0, -loss, 1.0]


@pytest.mark.parametrize('then, odds', [('yellow', 1.5), ('green', 3.0)])
@pytest.mark.parametrize('sees', [True, False])
def test_near_the_guard_another_value_must_be_ahead_by_what_is_lost_unless_the_edge_is_blind(
        then, odds, sees):
    key = Calibration(QUERY, 4.0)._keys['light']
    key.tells, key.seen = True, sees
    key.labels.judged.extend([None] * BLIND)
    key.stack.near = [1.0, 1.0, *[0.0] * 8]
    for ahead in (0.9 * odds, 1.1 * odds):
        evidence = Evidence(fact('red', 0.5), fact('green', ahead / (1.0 + ahead)), 'green',
                            fact('green'), then=then)
        assert key.best(evidence).value == ('green' if ahead > odds or not sees else 'red')


def test_an_edge_that_was_seen_to_see_is_not_taken_for_blind_by_a_few_labels():
    truths = ['red'] * 90 + ['green'] * 6
    seldom = ['red'] * 90 + ['green'] * 2 + ['red'] * 4
    assert not are_related(truths, seldom, COINCIDENCE) and are_related(truths, seldom, STILL)
    assert not are_related(truths, ['red'] * 96, STILL)


@pytest.mark.parametrize('temperature', [0.2, 1.0, 3.0])
def test_a_scale_of_confidences_is_learned_near_the_guard_as_well(temperature):
    """Weights go where they belong and stay, however sure the edge is."""
    rng, stack = np.random.default_rng(SEED), Stack(stacking.prior(4.0), stacking.near_prior(4.0))
    found = []
    for _ in range(300):
        odds = np.exp(rng.normal(1.5, 1.0))
        own = fact('red', 1.0 / (1.0 + odds ** (-1.0 / temperature)))
        stack.add(Evidence(own), 'red' if rng.random() < odds / (1.0 + odds) else 'green')
        stack.learn()
        found.append(stack.near[stacking.OWN])
    assert min(found[FEW:]) > 0.0 and np.ptp(found[200:]) < 0.2 * temperature
    assert found[-1] == pytest.approx(temperature, rel=0.35)


def test_a_cloud_of_many_values_is_believed_though_most_do_not_stay():
    """As before hands that show another number each second: 0.4 of the answers are the last."""
    world = World(hazard=0.6, choices={'light': tuple('0123456789')})
    held = {k: world.true(k - DELAY) for k in range(DELAY, 300)}
    world.run(0, 300, lambda k, told: (('0', 0.999), ('0', 0.999)), world.true)
    state = world.calibration.state()['light']
    assert state.believed and state.learned
    assert world.accuracy(60, 300) >= world.accuracy(60, 300, held) - 0.01
    assert world.accuracy(60, 300, held) > world.accuracy(60, 300, world.owns) + 0.03


@pytest.mark.parametrize('seed', range(3))
def test_a_cloud_that_says_anything_is_not_believed_by_an_edge_of_one_value(seed):
    world, rng = World(), np.random.default_rng(seed)
    world.truths = [0] * 2000     # the edge is right
    doubted = []

    def edge(k, told):
        doubted.append(not world.calibration.state()['light'].learned)
        return ('red', 0.9), ('red', 0.9)
    world.run(0, 400, edge, lambda k: str(rng.choice(VALUES)))
    assert np.mean(doubted) > 0.97 and world.accuracy(120, 400) > 0.99


@pytest.mark.parametrize('share', [0.0, 0.25, 1.0])
def test_a_share_of_what_the_edge_is_sure_of_is_asked_with_context_too(share):
    calibration, passes = Calibration(QUERY, 4.0, share), []
    told = Context('scene', 1, (Fact('light', 'green', 1),))
    for n in range(100):
        def once(given):
            passes.append(n if given is None else -1)
            return Pass((Fact('light', 'red', n, 0.99),))
        context = told if n < 80 else Context('scene', 1)   # that has nothing to tell
        guarded_answer(QUERY, context, calibration.of_frame(n), once,
                       lambda one, other, facts: one)
    assert passes.count(-1) == 80 * share and len(passes) == 100 + 80 * share


def test_weights_that_do_not_learn_stay_and_the_cloud_counts():
    weights = {'light': {'held': 5.0, 'own': 0.0}}
    known = Calibrations([replace(QUERY, weights=weights), replace(QUERY, id='other')], 4.0,
                         learns=False, share=1.0)
    assert known.hears('scene') and not known.hears('other')
    before, said = known.state('scene'), []
    for k in range(60):
        judge = known.judge(replace(QUERY, weights=weights), k * NS)
        assert not judge.owes_pass
        said += judge.select((Fact('light', 'red', k * NS, 0.9),), None, None)
        turn = Turn('scene', k * NS, Source.CLOUD, (Fact('light', 'green', k * NS),))
        assert known.truth(turn) == 0
    assert [f.value for f in said] == ['red'] + ['green'] * 59
    assert known.state('scene') == before


def test_a_cloud_that_sees_no_change_is_believed_unless_the_edge_is_sure_of_one():
    for p, believed in ((0.8, True), (0.99, False)):
        world = World()
        world.run(0, 120, lambda k, told: ((VALUES[k // 5 % 4], p),) * 2, lambda k: 'red')
        state = world.calibration.state()['light']
        assert state.believed is believed and (state.help > 0.5) is believed


def test_confidences_that_mean_something_else_are_learned():
    """Here all probabilities are near a half: fixed odds of 4 are never met."""
    world = World()

    def timid(k, told):
        (own, p), (other, q) = world.usual_edge(k, told)
        return (own, 0.55 if p > 0.6 else 0.5), (other, 0.56)
    world.run(0, 400, timid, world.true)
    assert world.accuracy(180, 400) > world.accuracy(180, 400, world.owns) + 0.1


@pytest.mark.parametrize('lie', ['one value', 'anything'])
def test_a_cloud_that_tells_nothing_teaches_nothing(lie):
    world = World()
    rng = np.random.default_rng(SEED)

    def liar(k):
        return 'yellow' if lie == 'one value' else str(rng.choice(VALUES))
    world.run(0, 400, world.usual_edge, liar)
    state = world.calibration.state()['light']
    assert state.labels > FEW and not state.believed and not state.learned
    assert world.accuracy(120, 400) >= world.accuracy(120, 400, world.owns) - 0.01


@pytest.mark.parametrize('bound', [0.02, 0.04])
def test_harm_stays_below_what_is_allowed(bound):
    """With context the edge is right more often, and often where it is not alone."""
    def bold(k, told):
        truth = world.truths[k]
        return (world.value(0.5, truth), 0.6), (world.value(0.7, truth), 0.95)
    world = World(harm_at_most=bound)
    world.run(0, 1200, bold, world.true)
    free = World()
    free.run(0, 1200, bold, free.true)
    assert free.harm(600, 1200) > 0.05
    # The bound of the proof: what is allowed, and the range of the margin over its gain and time.
    assert world.harm(0, 1200) <= bound + MARGIN_MAX / (0.5 * 1200)
    assert world.harm(600, 1200) <= bound + 0.02


@pytest.mark.parametrize('cautious', [False, True])
def test_a_cautious_query_believes_the_edge_more_until_harm_is_ruled_out(cautious):
    """Answers with context are right and those alone wrong, by odds that the guard just takes."""
    def told_so(k, told):
        right = world.true(k)
        wrong = VALUES[(world.truths[k] + 1) % 4]
        return ((wrong, 0.55), (right, 0.93)) if told else ((wrong, 0.55), (wrong, 0.55))
    world = World(hazard=0.3, harm_at_most=0.05, cautious=cautious)
    assert World(cautious=True).calibration.state()['light'].margin == 0.0, 'no bound, no margin'
    assert world.calibration.state()['light'].margin == (START if cautious else 0.0)
    world.run(0, 8, told_so, world.true)
    alone = [world.said[k] == world.owns[k] for k in range(DELAY, 8)]
    assert all(alone) == cautious and any(alone) == cautious
    world.run(8, 100, told_so, world.true)
    state = world.calibration.state()['light']
    assert state.labels > 60 and state.margin == 0.0, 'log(20) / 0.05 = 60 labels without harm'
    assert world.accuracy(80, 100) == 1.0


def test_when_the_model_changes_it_is_learned_anew():
    world = World(hazard=0.05)
    world.run(0, 200, world.blind_edge, world.true)
    assert world.accuracy(60, 200) > world.accuracy(60, 200, world.owns) + 0.5

    def good(k, told):
        own = world.value(0.97, world.truths[k])
        return (own, 0.97), (own, 0.97)
    world.run(200, 500, good, world.true)
    assert world.accuracy(320, 500) > 0.93


def test_truth_is_about_the_frame_that_it_names_and_counts_once():
    calibration = Calibration(QUERY, 4.0)
    for second in (1, 3, 5):
        calibration.select(second * NS, (Fact('light', 'red', second * NS, 0.9),), None, None)

    def truth(stamp_ns):
        return calibration.truth(Turn('scene', int(stamp_ns), Source.CLOUD,
                                      (Fact('light', 'red', int(stamp_ns)),)))
    assert truth(3 * NS) == 1 and truth(3 * NS) == 0
    assert truth((5 + NEAR_S * 0.9) * NS) == 1      # the nearest frame that was answered
    assert truth((1 + NEAR_S * 1.1) * NS) == 0
    calibration.forget()
    assert truth(1 * NS) == 0
    assert calibration.state()['light'].labels == 2


@pytest.mark.parametrize('age_s, dropped, counts', [
    (1.0, {}, True), (HELD_S + 1.0, {}, False), (-1.0, {}, False),
    (1.0, {'light': int(Drop.SCENE_CUT)}, False)])
def test_the_clouds_last_value_counts_while_it_can_be_true(age_s, dropped, counts):
    weights = {'light': {'held': 5.0, 'own': 0.0}}
    calibration = Calibration(replace(QUERY, weights=weights), 4.0)
    now = 100 * NS
    seen = now - int(age_s * NS)
    calibration.truth(Turn('scene', seen, Source.CLOUD, (Fact('light', 'green', seen),)))
    fact, = calibration.select(now, (Fact('light', 'red', now, 0.9),), None,
                               Context('scene', now, dropped=dropped))
    assert fact.value == ('green' if counts else 'red')
    if counts:
        assert fact.stamp_ns == seen and 0.9 < fact.confidence < 1.0
        truth = Turn('scene', now, Source.CLOUD, (Fact('light', 'green', now),))
        assert calibration.truth(truth) == 1 and calibration.state()['light'].learned


def test_help_and_harm_are_shares_of_all_answers_whichever_of_them_the_cloud_judges():
    """Of ten frames two are helped and one is harmed; the cloud is asked about those, mostly."""
    calibration = Calibration(QUERY, 4.0)
    for n in range(400):
        own, other = ('red', 'green') if n % 10 < 3 else ('red', 'red')
        calibration.select(n * NS, (Fact('light', own, n * NS, 0.5),),
                           (Fact('light', other, n * NS, 0.99),), Context('scene', n * NS))
        if n % 10 < 3 or n % 10 == 9:
            calibration.truth(Turn('scene', n * NS, Source.CLOUD, (
                Fact('light', 'red' if n % 10 == 2 else 'green', n * NS),)))
    state = calibration.state()['light']
    assert (state.help, state.harm) == (pytest.approx(0.2, abs=0.01), pytest.approx(0.1, abs=0.01))


def test_what_changes_often_is_known_to():
    fast, slow = World(hazard=0.5), World(hazard=0.02)
    for world in (fast, slow):
        world.run(0, 130, world.usual_edge, world.true)
    hazards = [w.calibration.state()['light'].hazard_hz for w in (fast, slow)]
    assert 0.35 < hazards[0] < 0.65 and hazards[1] < 0.06


def test_the_same_calls_give_the_same_answers():
    one, two = World(), World()
    for world in (one, two):
        world.run(0, 200, world.usual_edge, world.true)
    assert one.said == two.said and one.calibration.state() == two.calibration.state()


def test_help_is_that_at_the_age_of_all_answers_not_of_those_judged():
    """The cloud is asked when its last value is 1 s old on average, and it is 2 s old in all."""
    def rates(labels: int) -> tuple[float, float]:
        known, aged_ms = Labels(), 0
        for n in range(labels):
            age_ms, right = 500 * (n % 5), n // 5 % 10 >= n % 5   # 100 to 60 %
            truth = 'new' if right else 'own'
            known.add(Judged(truth, 'own', 'new', 0.5, 0, 0, False, right, (0, n), age_ms,
                             aged_ms))
            aged_ms += 2000
        return tuple(known.rate(own, said, (0, labels), aged_ms)
                     for own, said in ((False, True), (True, False)))
    assert rates(WINDOW) == (pytest.approx(0.6, abs=0.03), pytest.approx(0.4, abs=0.03))
    # Few labels tell little of how it depends on the age.
    assert rates(50) == (pytest.approx(0.68, abs=0.01), pytest.approx(0.32, abs=0.01))
    assert Labels().rate(False, True, (3, 4), 0) == 0.0
