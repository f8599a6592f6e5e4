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
"""SpotBench: the clock, the delays, the intervals, by hand-made cases."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from spotvlm_ros.bench.spotbench import cells, report, stats, systems
from spotvlm_ros.bench.spotbench.delays import (
    DeliveredReply, HEADLINE, NEVER, SimulatedCloud, Trace, TRACES)
from spotvlm_ros.bench.spotbench.models import CachedAnswer
from spotvlm_ros.bench.spotbench.score import age_name, latest, PublishedAnswer, right, size_name
from spotvlm_ros.bench.spotbench.seeds import BASE, episodes, SETS
from spotvlm_ros.bench.spotbench.tally import CountKey, Tally
from spotvlm_ros.cloud.parse import CloudAnswer
from spotvlm_ros.method.facts import Fact, NS, Query, Source, Turn
from spotvlm_ros.mini.worlds import TEST_SEEDS, TRAIN_SEEDS, TUNE_SEEDS

QUERY = Query('scene', 'What?', 'facts', {'a': ('0', '1'), 'b': ('0', '1')}, deadline_s=0.3)
KEYS = [NS * i for i in range(10)]


def published(at: float, about: float, a: str = '0', b: str = '0') -> PublishedAnswer:
    return PublishedAnswer(int(at * NS), int(about * NS), {'a': a, 'b': b})


def reply(frame: int, at: float) -> DeliveredReply:
    facts = tuple(Fact(key, '1', KEYS[frame]) for key in ('a', 'b'))
    return DeliveredReply(Turn(QUERY.id, KEYS[frame], Source.CLOUD, facts), int(at * NS))


def answered(stamp: int) -> CloudAnswer:
    """Return a complete answer about a frame."""
    return CloudAnswer(QUERY.id, stamp, (Fact('a', '1', stamp), Fact('b', '1', stamp)))


def replies(trace: Trace, frames: list[int] = KEYS, seed: int = 1, end: int = 20 * NS,
            in_flight: int = 2, answer=answered, urgent: tuple[int, ...] = (),
            ) -> list[DeliveredReply]:
    cloud = SimulatedCloud(QUERY, frames, answer, seed, urgent, end)
    return cloud.replies(trace, in_flight)


def alone(confidence: float, stamps: list[float]) -> systems.SystemRun:
    answers = {int(s * NS): CachedAnswer((Fact('a', '0', int(s * NS), confidence),
                                          Fact('b', '0', int(s * NS), 0.99)), False, False)
               for s in stamps}
    return systems.SystemRun([published(s + 0.1, s) for s in stamps], answers, {})


def test_what_counts_is_the_latest_answer_published_by_then():
    first, second = published(1.0, 0.9), published(2.0, 1.9)
    found = latest([second, first], [int(t * NS) for t in (0.5, 0.999, 1.0, 1.999, 2.0, 9.0)])
    assert found == [None, None, first, first, second, second]


def test_a_late_answer_about_an_old_frame_counts_if_it_was_published_last():
    assert latest([published(1.0, 0.9), published(2.0, 0.1)], [3 * NS])[0].stamp_ns == NS // 10


def test_no_answer_is_a_miss_and_each_fact_counts_by_itself():
    truth = [{'a': '0', 'b': '1'}, {'a': '0', 'b': '1'}]
    assert right([None, published(0, 0)], truth, ('a', 'b')).tolist() == [
        [False, False], [True, False]]


def test_a_fact_without_a_label_is_never_right():
    assert right([published(0, 0)], [{'a': '0'}], ('a', 'b')).tolist() == [[True, False]]


def test_slices_have_names_by_their_bounds():
    assert [age_name(a) for a in (0, 0.99, 1, 5.9, 6, 50)] == [
        'age 0 to 1 s', 'age 0 to 1 s', 'age 1 to 2 s', 'age 4 to 6 s', 'age 6 to 10 s',
        'age over 10 s']
    assert [size_name(p) for p in (3, 32, 79, 80)] == [
        'size small', 'size medium', 'size medium', 'size large']


def test_hold_never_goes_back_to_an_older_frame():
    held = systems.hold([reply(2, 3), reply(1, 4), reply(3, 5)])
    assert [s.stamp_ns for s in held] == [KEYS[2], KEYS[3]]


def test_deadline_takes_the_cloud_only_when_it_is_in_time():
    run, held = alone(0.9, [1.0, 2.0]), systems.hold([reply(1, 1.25), reply(2, 2.35)])
    answers = systems.deadline(run, held, QUERY.deadline_s)
    found = latest(answers, [int(1.2 * NS), int(1.3 * NS), 3 * NS])
    assert found[0] is None                      # waited for, and in time
    assert found[1].values['a'] == '1'
    assert found[2].values['a'] == '0'           # 0.35 s: the edge's


def test_cascade_waits_for_the_cloud_and_fusion_does_not():
    held = systems.hold([reply(1, 3)])
    unsure = alone(0.5, [1.0, 2.0, 3.0])
    asked = systems.cascade(unsure, held, 0.8)
    assert [s.at_ns for s in asked] == [3 * NS]
    mixed = latest(systems.fusion(unsure, held, 0.8), [int(2.2 * NS), int(3.2 * NS)])
    assert mixed[0].values == {'a': '0', 'b': '0'}
    assert mixed[1].values == {'a': '1', 'b': '0'}   # only what the edge was unsure of
    assert len(systems.cascade(alone(0.9, [1.0, 2.0]), held, 0.8)) == 2


def test_a_slow_model_leaves_frames_out():
    stamps = [NS // 5 * i for i in range(10)]
    assert systems.paced(stamps, 0.05) == stamps
    assert systems.paced(stamps, 0.3) == stamps[::2]


@pytest.mark.parametrize('name', TRACES)
def test_delays_are_the_same_every_time_and_of_no_other_seed(name):
    trace = TRACES[name]
    first, again, other = (replies(trace, seed=seed) for seed in (5, 5, 6))
    assert first == again
    assert all(r.at_ns >= r.stamp_ns for r in first)
    assert [r.at_ns for r in first] == sorted(r.at_ns for r in first)
    if trace.sigma or trace.tail:
        assert first != other


def test_delays_do_what_they_say():
    assert replies(TRACES[NEVER]) == []
    assert [r.at_ns - r.stamp_ns for r in replies(TRACES['fixed 0.5 s'])] == [NS // 2] * len(KEYS)
    # Two in flight: at a delay of 4 s, two requests go, then none until the first is back.
    assert [r.stamp_ns // NS for r in replies(TRACES['fixed 4 s'])] == [0, 1, 4, 5, 8, 9]
    many = [NS * i for i in range(2000)]
    for trace in (TRACES[HEADLINE], TRACES['heavy tail']):
        found = [trace.delay_s(1, i) for i in range(2000)]
        assert math.isclose(float(np.median(found)), 2.0, rel_tol=0.06)
    assert 0.25 < np.mean([math.isinf(TRACES['loss'].delay_s(1, i)) for i in range(2000)]) < 0.35
    out = [r.at_ns for r in replies(TRACES['outage'], many, end=2100 * NS)]
    assert not [t for t in out if 700 * NS <= t < 1400 * NS]
    assert [t for t in out if t < 700 * NS] and [t for t in out if t >= 1400 * NS]


def test_a_complete_answer_ends_older_requests_and_an_incomplete_one_lets_them_come():
    many, end = [NS * i for i in range(2000)], 2100 * NS
    stamps = [r.stamp_ns for r in replies(TRACES['reorder'], many, end=end)]
    assert stamps == sorted(stamps) and 500 < len(stamps) < 2000

    def without_b(stamp: int) -> CloudAnswer:
        return CloudAnswer(QUERY.id, stamp, (Fact('a', '1', stamp),))
    late = [r.stamp_ns for r in replies(TRACES['reorder'], many, end=end, answer=without_b)]
    assert late != sorted(late), 'later answers overtake'


def test_the_number_under_way_follows_the_round_trips():
    """At 0.5 s one request is enough, whatever is allowed: also when every frame is urgent."""
    frames = [NS * i // 5 for i in range(100)]
    urgent = tuple(frames)
    came = replies(TRACES['fixed 0.5 s'], frames, urgent=urgent, in_flight=4)
    apart = [b.stamp_ns - a.stamp_ns for a, b in zip(came[4:], came[5:])]
    assert set(apart) == {3 * NS // 5}, 'at 0.4 s the only place is taken'
    rare = replies(TRACES['fixed 0.5 s'], frames, in_flight=4)
    assert {b.stamp_ns - a.stamp_ns for a, b in zip(rare, rare[1:])} == {NS}
    one = replies(TRACES['fixed 0.5 s'], frames, urgent=(int(5.1 * NS),))
    assert {b.stamp_ns - a.stamp_ns for a, b in zip(one, one[1:])} == {NS, 3 * NS // 5}


def test_a_lost_answer_frees_its_place_and_its_query_is_due_again():
    assert replies(Trace('all lost', '', 1.0, lost=1.0)) == []
    frames = [NS * i // 5 for i in range(1000)]
    half = replies(Trace('half', '', 0.5, lost=0.5), frames, end=300 * NS)
    assert 110 < len(half) < 160, 'half of 200 would be 100: a lost one is soon sent anew'
    assert replies(TRACES['fixed 1 s'], answer=lambda stamp: None) == [], 'no answer is no reply'


def test_the_interval_covers_what_it_should():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(150):
        p = np.clip(rng.normal(0.7, 0.1, 20), 0, 1)   # episodes differ
        hits = rng.binomial(50, p)
        value, (low, high) = stats.share(hits, [50] * 20)
        assert low <= value <= high
        covered += low <= 0.7 <= high
    assert 125 <= covered <= 149


def test_pairing_takes_away_what_episodes_have_in_common():
    rng = np.random.default_rng(1)
    base = rng.integers(20, 80, 12).astype(float)
    total = np.full(12, 100.0)
    value, (low, high) = stats.difference(base + 5, total, base, total)
    assert math.isclose(value, 0.05) and math.isclose(low, 0.05) and math.isclose(high, 0.05)
    own_low, own_high = stats.share(base, total)[1]
    assert own_high - own_low > 0.1
    assert stats.share([3], [4])[1] == [0.75, 0.75]


def tallies() -> list[Tally]:
    found = []
    for unit in range(3):
        tally = Tally()
        for system, hits in (('full', 8 + unit), ('edge alone', 6), ('hold', 5)):
            tally.add(0, CountKey(system, HEADLINE, 'all', 'accuracy'), hits, 10)
        if unit < 2:
            tally.add(0, CountKey('still', HEADLINE, 'all', 'accuracy'), 7, 10)
        found.append(tally)
    return found


def test_results_have_the_documented_form(tmp_path):
    found = cells.cells({'near': tallies(), 'far': tallies()})
    cells.write(tmp_path / 'results.json', found, {'commit': 'abc'})
    content = json.loads((tmp_path / 'results.json').read_text())
    assert set(content) == {'meta', 'cells'}
    for cell in content['cells']:
        assert list(cell) == ['world', 'system', 'delay', 'slice', 'metric', 'value', 'ci95',
                              'n_episodes']
        assert cell['ci95'] is None or cell['ci95'][0] <= cell['value'] <= cell['ci95'][1]
    assert cells.read(tmp_path / 'results.json') == (found, {'commit': 'abc'})
    table = cells.CellTable(found)
    assert table.worlds == ['near', 'far', cells.ALL_SETS]
    assert table.get('near', 'full').value == 0.9
    assert table.get(cells.ALL_SETS, 'full').n_episodes == 6
    assert table.best_baseline('near') == 'edge alone'
    assert table.over_best('near').value == 0.3
    # The part was run on two episodes of three: compared on these.
    assert table.get('near', 'full', metric='gain over still').value == 0.15
    assert table.get('near', 'full', metric='gain over still').n_episodes == 2


def test_tuning_and_test_episodes_are_apart():
    for split, seeds in (('tune', TUNE_SEEDS), ('test', TEST_SEEDS),
                         ('test-calibration', TEST_SEEDS)):
        used = [e.seed for name in SETS for e in episodes(split, name, 900)]
        assert len(set(used)) == len(used) and all(s in seeds for s in used)
    assert not set(TRAIN_SEEDS) & set(BASE.values())
    assert not {e.seed for name in SETS for e in episodes('test', name, 900)} & {
        e.seed for name in SETS for e in episodes('test-calibration', name, 900)}
    assert {e.condition for e in episodes('tune', 'driving adverse', 4)} == {'rain', 'night'}
    others = [e.seed for name in SETS for e in episodes('test-calibration', name, 900, 60_000)]
    assert not set(others) & set(used) and all(s in TEST_SEEDS for s in others)
    for beyond in (-1, 99_000):
        with pytest.raises(ValueError, match='no seeds of tune'):
            episodes('tune', 'driving day', 1, beyond)


def test_delays_are_shown_one_by_one_where_there_are_many():
    def table(delays):
        found = [cells.Cell('all sets', name, delay, 'all', metric, 0.5, (0.4, 0.6), 3)
                 for delay in delays for name, metric in (
                     ('full', 'accuracy'), ('full', 'gain'), ('full', 'harm'))]
        return report.delay_rows(cells.CellTable(found))[1]
    assert table([HEADLINE, NEVER]) == []
    rows = table(TRACES)
    assert [row[0] for row in rows] == list(TRACES)
    assert rows[0][3:] == ['50.0 [40.0, 60.0]', '+50.0 [+40.0, +60.0]', '50.0 [40.0, 60.0]']
