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
"""The guard: context counts only where it makes the edge much surer."""

from dataclasses import dataclass, replace

from hypothesis import given, strategies as st
import pytest

from spotvlm_ros.method.facts import Context, Fact, Query
from spotvlm_ros.method.guard import (FixedOdds, guarded_answer, is_confident, OFF,
                                      select_by_odds, SURE)

SCENE = Query('scene', 'q', 'facts', {'light': ('red', 'green'), 'lead': ('none', 'braking')})
CONFIDENCE = st.floats(0.0, 1.0)


@st.composite
def answers(draw):
    """Draw an answer, possibly without one of its facts."""
    keys = draw(st.lists(st.sampled_from(SCENE.keys), unique=True))
    return tuple(Fact(k, draw(st.sampled_from(SCENE.choices[k])), 5, draw(CONFIDENCE))
                 for k in keys)


def odds_of(fact):
    """Return p / (1 - p)."""
    return fact.confidence / (1 - fact.confidence) if fact.confidence < 1 else float('inf')


@given(answers(), answers(), answers(), st.floats(1.0, 100.0))
def test_a_value_is_replaced_only_by_a_much_surer_one(own, other, told, odds):
    before, given_, said = ({f.key: f for f in facts} for facts in (own, other, told))
    after = {f.key: f for f in select_by_odds(SCENE, own, other, Context('scene', 6, told), odds)}
    assert list(after) == [k for k in SCENE.keys if k in before or k in given_]
    for key, fact in after.items():
        if key in before and fact.value != before[key].value:
            assert fact is given_[key] and fact.confidence > before[key].confidence
            if key in said and said[key].value == fact.value:
                assert odds_of(fact) >= 0.999 * odds * odds_of(before[key])
        else:
            assert fact is before.get(key, given_.get(key))


@given(answers())
def test_a_doubt_is_a_fact_that_is_missing_or_unsure(own):
    sure = {f.key for f in own if f.confidence >= SURE}
    assert is_confident(SCENE, own) == (sure == set(SCENE.keys))


@pytest.mark.parametrize('own, told, value', [
    (0.5, 0.79, 'red'), (0.5, 0.81, 'green'), (0.9, 0.97, 'red'), (0.9, 0.98, 'green'),
    (0.2, 0.1, 'red'), (1.0, 1.0, 'red'), (0.0, 0.1, 'green')])
def test_by_hand(own, told, value):
    before, after = (Fact('light', v, 0, c) for v, c in (('red', own), ('green', told)))
    context = Context('scene', 1, (Fact('light', 'green', 0), Fact('lead', 'none', 0)))
    assert select_by_odds(SCENE, [before], [after], context, 4.0)[0].value == value


@pytest.mark.parametrize('confidence, value', [(0.59, 'red'), (0.61, 'green')])
def test_what_was_not_told_must_only_be_surer(confidence, value):
    own, seen = Fact('light', 'red', 0, 0.6), Fact('light', 'green', 0, confidence)
    context = Context('scene', 1, (Fact('light', 'red', 0),))
    assert select_by_odds(SCENE, [own], [seen], context, 100.0)[0].value == value


@dataclass(frozen=True)
class Answer:
    """An answer of a model that is as sure as it is told to be."""

    facts: tuple = ()
    partial: bool = False


CONTEXT = Context('scene', 1, (Fact('light', 'green', 0),))
DOUBT = Answer((Fact('light', 'red', 0, 0.5), Fact('lead', 'none', 0, 0.5)))
SURER = Answer((Fact('light', 'green', 0, 0.9), Fact('lead', 'none', 0, 0.6)))


@pytest.mark.parametrize('query, context, odds, alone, informed, passes, light', [
    (SCENE, CONTEXT, 4.0, DOUBT, SURER, [None, CONTEXT], 'green'),
    (SCENE, CONTEXT, 40.0, DOUBT, SURER, [None, CONTEXT], 'red'),
    (SCENE, CONTEXT, 4.0, replace(DOUBT, partial=True), SURER, [None], 'red'),
    (SCENE, CONTEXT, 4.0, DOUBT, replace(SURER, partial=True), [None, CONTEXT], 'red'),
    (SCENE, CONTEXT, 4.0, Answer(tuple(replace(f, confidence=1.0) for f in DOUBT.facts)), SURER,
     [None], 'red'),
    (SCENE, None, 4.0, DOUBT, SURER, [None], 'red'),
    (SCENE, Context('scene', 1), 4.0, DOUBT, SURER, [None], 'red'),
    (SCENE, CONTEXT, OFF, DOUBT, SURER, [CONTEXT], 'green'),
    (Query('light', 'q', 'text'), CONTEXT, 4.0, DOUBT, SURER, [CONTEXT], 'green')])
def test_a_second_pass_is_made_where_it_can_count(query, context, odds, alone, informed, passes,
                                                  light):
    """Robot and benchmark share this; here the model is two answers."""
    asked = []

    def pass_(given):
        asked.append(given)
        return alone if given is None else informed
    answer = guarded_answer(query, context, FixedOdds(query, odds), pass_,
                            lambda first, second, facts: replace(second, facts=facts))
    assert asked == passes and answer.facts[0].value == light


@pytest.mark.parametrize('query, odds', [
    (SCENE, 4.0), (SCENE, OFF), (Query('x', 'q', 'text'), 4.0)])
def test_where_the_pass_with_context_raises_the_answer_without_it_stands(query, odds):
    def pass_(given):
        if given is not None:
            raise error
        return DOUBT
    error, errors = RuntimeError('prompt too long'), []
    judge = FixedOdds(query, odds)
    assert guarded_answer(query, CONTEXT, judge, pass_, None, errors.append) is DOUBT
    assert errors == [error]
    with pytest.raises(RuntimeError, match='too long'):
        guarded_answer(query, CONTEXT, judge, pass_, None)


def test_an_error_without_context_is_raised():
    def pass_(given):
        raise RuntimeError('no memory')
    for odds in (4.0, OFF):
        for context in (None, CONTEXT):
            with pytest.raises(RuntimeError, match='no memory'):
                guarded_answer(SCENE, context, FixedOdds(SCENE, odds), pass_, None,
                               lambda error: None)
