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
"""Budgets: no hour sees more than its limit."""

from hypothesis import given, settings, strategies as st

from spotvlm_ros.cloud.budget import Budget, BURST, Cost, HOUR_S

LIMIT = Cost(bytes=1000.0, tokens=500.0, money=1.0)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300), st.floats(0, 200)), max_size=100))
def test_no_hour_however_cut_sees_more_than_the_limit(requests):
    budget, now, taken = Budget(LIMIT), 0.0, []
    for pause, size, tokens in requests:
        now += pause
        cost = Cost(size, tokens, 0.01)
        if not budget.lacking(cost, now):
            budget.take(cost, now)
            taken.append((now, cost))
    for at, _ in taken:
        hour = [c for t, c in taken if at <= t < at + HOUR_S]
        for name in ('bytes', 'tokens', 'money'):
            assert sum(getattr(c, name) for c in hour) <= getattr(LIMIT, name) * (1 + 1e-9)


def test_a_spent_budget_flows_in_again():
    budget = Budget(LIMIT)
    budget.take(Cost(bytes=BURST * 1000), 0.0)
    assert budget.lacking(Cost(bytes=10), 0.0) == 'bytes'
    assert budget.lacking(Cost(tokens=10), 0.0) == ''
    assert budget.lacking(Cost(bytes=10), 60.0) == ''


def test_corrections_and_the_last_hour():
    budget = Budget(LIMIT)
    budget.take(Cost(tokens=80), 10.0)
    budget.take(Cost(tokens=-30), 20.0)  # the estimate was too high
    assert budget.spent(30.0).tokens == 50 and budget.total.tokens == 50
    assert budget.spent(2 * HOUR_S).tokens == 0 and budget.total.tokens == 50


def test_without_limits_everything_goes_and_is_counted():
    budget = Budget()
    for second in range(10_000):
        assert not budget.lacking(Cost(1e9, 1e9, 1e9), second)
        budget.take(Cost(1.0), second)
    assert HOUR_S <= budget.spent(9_999).bytes <= HOUR_S + 60
    assert len(budget._recent) <= 62
