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
"""`spotvlm perf faults`: a few kinds on the running graph, its bars, replies without a graph."""

from dataclasses import replace
import json

from hypothesis import given, strategies as st
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from spotvlm_ros.bench.faults.chaos_faults import FAULTS  # noqa: E402, I100
from spotvlm_ros.bench.faults.intruder import ATTACKS  # noqa: E402
from spotvlm_ros.bench.faults.kills import Kill, MODES, OTHERS, SIGNS  # noqa: E402
from spotvlm_ros.bench.faults.kinds import Kind, KINDS, REPLIES, SCENES  # noqa: E402
from spotvlm_ros.bench.faults.replies import KNOWN, mutate, parse_all, Parsed, QUERY  # noqa: E402
from spotvlm_ros.bench.faults.scene import Turn  # noqa: E402
from spotvlm_ros.bench.perf import faults  # noqa: E402
from spotvlm_ros.bench.perf.faults_report import Attacked, markdown, MARKS, results  # noqa: E402
from spotvlm_ros.cloud.parse import parse_reply  # noqa: E402

FINE = Turn(Kind('forged', 'context', 'mini', 0.9), 6.0, 99, 7.0, 6.9, 0.3, 1.0, (500, 520, 510),
            (31, 31), (2, 2), 0, {}, 0.0)


@pytest.mark.alone
def test_a_few_kinds_on_the_running_graph(tmp_path):
    """The soak alone, where all processes take part; the rates are those of a busy machine."""
    page, out = tmp_path / 'page.md', tmp_path / 'results.json'
    page.write_text('\n'.join([*MARKS['each'], *MARKS['soak']]))
    code = faults.main([
        '--faults', 'whole reply: endless 1xx', 'forged: answers', 'images: compressed',
        '--seconds', '0', '--soak', '11', '--kills', '0', '--replies', '0', '--tolerance', '0.7',
        '--out', str(out), '--update', str(page)])
    rows = {row['name']: row for row in json.loads(out.read_text())}
    tried = [n['value'] for name, n in rows.items() if name.endswith('_tried')]
    assert code == 0, page.read_text()
    assert tried and min(tried) > 0
    assert rows['faults_exit_status_soak']['value'] == 0
    assert all(row['value'] == 0 for name, row in rows.items() if name.endswith('_exceptions'))
    begin, end = MARKS['soak']
    assert '| soak: ' in page.read_text().partition(begin)[2].partition(end)[0]
    assert '\n'.join(MARKS['each']) in page.read_text()


@pytest.mark.parametrize('change,named', [
    ({'hz': 5.0}, 'forged: context: edge rate 71.4%, not 90.0%'),
    ({'memory_mb': (500, 601, 500)}, 'forged: context: 601 MB, not 600'),
    ({'exceptions': 2}, 'forged: context: 2 exceptions'),
    ({'counted': {'answers_out_of_choices': 1}}, 'forged: context: answers that are no choice')])
def test_a_bar_that_is_not_met_is_named(change, named):
    assert Attacked([FINE]).failures() == []
    assert Attacked([replace(FINE, **change)]).failures() == [named]
    assert {row.name for row in results(Attacked([FINE]))} >= {
        'faults_forged_context_rate', 'faults_forged_context_memory_most'}


def test_all_of_a_kind_counts_that_was_met_again():
    lacking = replace(FINE, hz=0.97 * FINE.kind.least * FINE.clean_hz)
    assert Attacked([lacking]).failures() and Attacked([lacking, FINE]).failures() == []
    assert Attacked([replace(lacking, hz=1.0), FINE, FINE]).failures()
    [both] = Attacked([lacking, FINE]).of_kind()
    assert both.seconds == 2 * FINE.seconds and both.tried == 2 * FINE.tried


def test_other_bars_are_named():
    parsed = Parsed(0, right=10, wrong=1, exceptions=['KeyError: 1'])
    growing = Attacked(soak_mb=[500.0] * 5 + [510.0] * 5, exits={'mini': -11}, replies=parsed)
    assert growing.failures() == [
        'graph mini: exit status -11', 'soak: memory grew by 10.0 MB, not 5',
        'replies: KeyError: 1', 'replies: 1 wrong facts, 10 right']


def test_a_kill_that_costs_too_much_is_named(tmp_path):
    rates = {'camera': 12.0, 'edge': 7.0, 'cloud': 1.2, 'contexts': 10.0}
    fine = Kill('--multi-process', 'cloud', 10.0, rates, rates | {'cloud': 0.0}, 0.3, 5.0, 6.0)
    slow = replace(fine, after=rates | {'edge': 6.6})
    late = replace(fine, victim='edge', after=rates | {'edge': 3.0, 'cloud': 1.0}, context_s=8.5)
    never = replace(fine, back_s=float('inf'), context_s=float('inf'))
    assert Attacked(kills=[fine]).failures() == []
    assert Attacked(kills=[slow, late, never], exits={'run composed': 1}).failures() == [
        'cloud (multi-process): edge has 94.3% of its rate, not 95%',
        'edge (multi-process): context is back after 8.5 s, not 8',
        'cloud (multi-process): context is back after inf s, not 8',
        'graph run composed: exit status 1']
    attacked = Attacked(turns=[FINE], kills=[late, never], exits={'mini': 0, 'run composed': 0})
    json.dumps([row.value for row in results(attacked)], allow_nan=False)
    parts = attacked.parts()
    assert set(parts) == {'each', 'kills'} and parts['each'].exits == {'mini': 0}
    assert '12.00 12.00 (100.0%) | 7.00 3.00 | 1.20 1.00 (83.3%)' in markdown(parts['kills'], 0.0)
    assert {name for names in MODES.values() for name in names} == set(OTHERS) == set(SIGNS)


def test_every_kind_names_what_there_is():
    for kind in KINDS:
        assert set(kind.server.partition('?')[0].split(',')) <= set(FAULTS), kind
        assert kind.scene in SCENES and (not kind.attack or kind.attack in ATTACKS)
    assert set(FAULTS) - {'none'} == {name for names in REPLIES.values()
                                      for name in names.split(',')}, 'every fault is met'


def test_random_and_mutated_replies():
    """The command has 20,000 and 1,000 of them."""
    parsed = parse_all(800, 400, seed=3)
    assert parsed.failures() == [] and parsed.random == 800 and parsed.mutated == 400
    assert parsed.right > 0.35 * parsed.told and parsed.facts > 10 and parsed.refused > 100


@given(st.sampled_from(KNOWN), st.randoms(use_true_random=False))
def test_mutated_replies_tell_nothing_that_was_not_said(known, draw):
    text = mutate(known, draw)
    for fact in parse_reply(QUERY, text, 1, (640, 480)).facts:
        assert fact.value in text.casefold() or fact.value == 'none', text
