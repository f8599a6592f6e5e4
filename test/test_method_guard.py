# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The guard: context counts only where it makes the edge surer."""

from hypothesis import given, strategies as st
import pytest

from spotvlm_ros.method.facts import Fact, Query
from spotvlm_ros.method.guard import settled, surer

SCENE = Query('scene', 'q', 'facts', {'light': ('red', 'green'), 'lead': ('none', 'braking')})
CONFIDENCE = st.floats(0.0, 1.0)


@st.composite
def answers(draw):
    """Draw an answer, possibly without one of its facts."""
    keys = draw(st.lists(st.sampled_from(SCENE.keys), unique=True))
    return tuple(Fact(k, draw(st.sampled_from(SCENE.choices[k])), 5, draw(CONFIDENCE))
                 for k in keys)


@given(answers(), answers(), CONFIDENCE)
def test_a_value_is_replaced_only_by_a_surer_one(own, told, margin):
    before, given_ = ({f.key: f for f in facts} for facts in (own, told))
    after = {f.key: f for f in surer(SCENE, own, told, margin)}
    assert list(after) == [k for k in SCENE.keys if k in before or k in given_]
    for key, fact in after.items():
        if key in before and fact.value != before[key].value:
            assert fact is given_[key] and fact.confidence > before[key].confidence + margin
        else:
            assert fact is before.get(key, given_.get(key))


@given(answers(), answers(), CONFIDENCE)
def test_what_is_settled_needs_no_second_answer(own, told, margin):
    if settled(SCENE, own, margin):
        assert {f.key: f.value for f in surer(SCENE, own, told, margin)} \
            == {f.key: f.value for f in own}


@pytest.mark.parametrize('own, told, value', [
    (0.5, 0.55, 'red'), (0.5, 0.65, 'green'), (0.95, 1.0, 'red'), (0.2, 0.1, 'red')])
def test_by_hand(own, told, value):
    before, after = (Fact('light', v, 0, c) for v, c in (('red', own), ('green', told)))
    assert surer(SCENE, [before], [after], 0.1)[0].value == value
