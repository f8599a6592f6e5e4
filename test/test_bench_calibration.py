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
"""Rules of whom to believe over one long stream, on made-up answers."""

from __future__ import annotations

from spotvlm_ros.bench.spotbench import (
    calibration, calibration_report, cells, estimates, systems)
from spotvlm_ros.bench.spotbench.calibration_rows import (
    BOUNDS, CALIBRATED, LATER, Learner, majority_of, minute, parts, SetReplay, smoothed,
    UNTIL_CHANGED, until_changed)
from spotvlm_ros.bench.spotbench.delays import DeliveredReply
from spotvlm_ros.bench.spotbench.latencies import Latencies
from spotvlm_ros.bench.spotbench.models import CachedAnswer
from spotvlm_ros.bench.spotbench.passes import AS_IT_IS, BLIND, Heard, LIES, Recorded
from spotvlm_ros.bench.spotbench.score import PublishedAnswer
from spotvlm_ros.bench.spotbench.seeds import episodes
from spotvlm_ros.bench.spotbench.systems import ALONE, FULL, SystemRun
from spotvlm_ros.bench.spotbench.tally import CountKey, Tally
from spotvlm_ros.method.facts import Context, Fact, NS, Query, Source, Turn
from spotvlm_ros.method.labels import Judged
from spotvlm_ros.method.stacking import WINDOW

QUERY = Query('scene', 'What?', 'facts', {'a': ('0', '1', '2')})
TOOK = Latencies(0.004, 0.03, 0.035, 0.06, 0.004, 0.6, 'none', 'a test')
SECONDS = 45
LIE = next(iter(LIES))


class MadeUp:
    """A value that changes every nine seconds."""

    name, seed, query, size = 'driving day', 1, QUERY, (640, 480)
    frames = edge = [i * NS // 2 for i in range(2 * SECONDS)]
    labels = [s + NS // 4 for s in edge if s >= 4 * NS]
    blocks = [0] * len(labels)

    def truth(self, stamp_ns: int) -> dict[str, str]:
        return {'a': str(stamp_ns // NS // 9 % 3)}

    def scored(self, stamp_ns: int) -> tuple[str, ...]:
        return ('a',)

    def regions(self, stamp_ns: int) -> dict[str, object]:
        return {}


def run_of(said: dict[int, str], confidence: float) -> SystemRun:
    answers = {s: CachedAnswer((Fact('a', v, s, confidence),), False, False)
               for s, v in said.items()}
    return SystemRun([PublishedAnswer(s + NS // 100, s, a.values) for s, a in answers.items()],
                     answers, {})


def recorded(number: int) -> tuple[MadeUp, Recorded]:
    """Return an edge that says 0 and is sure of it, told or not; the cloud is right, 2 s late."""
    stream = MadeUp()
    alone = run_of(dict.fromkeys(stream.edge, '0'), 0.99)
    replies = tuple(DeliveredReply(Turn(QUERY.id, s, Source.CLOUD, (
        Fact('a', stream.truth(s)['a'], s),)), s + 2 * NS) for s in stream.edge[::2])
    contexts = {s: Context(QUERY.id, s, (Fact('a', stream.truth(s - 2 * NS)['a'], s - 2 * NS),))
                for s in stream.edge if s >= 2 * NS}
    heard = {AS_IT_IS: Heard(replies, contexts, alone.answers, tuple(alone.published))}
    if number == 0:
        heard[LIE] = heard[AS_IT_IS]
    return stream, Recorded(episodes('tune', 'driving day', 9)[number], alone, heard)


def test_a_long_stream_is_learned_from_and_the_best_rule_is_chosen_once(tmp_path):
    worlds = {'driving day': SetReplay([recorded(n) for n in range(4)], TOOK).run()}
    found, chosen = calibration.all_cells(worlds, None)
    table = cells.CellTable(found)

    def right(system: str, condition: str = AS_IT_IS, part: str = 'all') -> float:
        return table.get('driving day', system, condition, part).value
    # The guard believes an edge that is sure; what is learned in an episode holds in the next.
    assert right(FULL) == right(ALONE) < 0.5 < right('hold')
    assert right(CALIBRATED, part=minute(0)) < right('hold', part=minute(0)) - 0.05
    assert right(CALIBRATED, part=minute(1)) == right('hold', part=minute(1))
    assert right(CALIBRATED, part=minute(2)) == right(CALIBRATED, BLIND, minute(2)) > 0.7
    # Cut off where the long stream of an other condition is shorter.
    assert table.get('driving day', ALONE, LIE, minute(0)) is not None
    assert table.get('driving day', ALONE, LIE, minute(1)) is None
    # What is chosen is the best; on test seeds it is taken as it is.
    assert right(chosen['driving day']) == max(right(n) for n in (
        *calibration.UNTUNED, *(n for names in calibration.TUNED.values() for n in names)))
    again, kept = calibration.all_cells(worlds, chosen | {'driving day': ALONE})
    over = {c.metric: c.value for c in again if c.system == CALIBRATED and c.ci95 is not None
            and c.metric.startswith('gain over')}
    assert kept['driving day'] == ALONE and over == {
        f'gain over {ALONE}': over[f'gain over {FULL}'], f'gain over {FULL}': over[
            f'gain over {FULL}']}
    # By the cloud's later answers: help as it is, and nothing is harmed where the edge is wrong.
    true = table.get('driving day', CALIBRATED, AS_IT_IS, LATER).value
    estimated = table.get('driving day', CALIBRATED, AS_IT_IS, metric='estimated help').value
    assert abs(estimated - (true - right(ALONE, part=LATER))) < 0.15
    page = calibration_report.report(table, {}, chosen, tmp_path / 'plot.png')
    assert f'| {CALIBRATED}, harm at most {BOUNDS[1]:g} |' in page
    assert f'| {BLIND} |' in page and (tmp_path / 'plot.png').stat().st_size > 1000


def test_an_edge_that_sees_no_change_leaves_the_clouds_value():
    alone = run_of({0: '0', NS: '0', 2 * NS: '1', 3 * NS: '0'}, 0.9)
    held = systems.hold([DeliveredReply(
        Turn(QUERY.id, 0, Source.CLOUD, (Fact('a', '2', 0),)), NS)])
    assert [p.values['a'] for p in until_changed(alone, held)] == ['0', '2', '1', '2']
    assert UNTIL_CHANGED in calibration.UNTUNED


def test_of_the_last_values_the_commonest_and_of_two_the_newer():
    alone = run_of({i * NS: v for i, v in enumerate('0110022')}, 0.9)
    assert ''.join(p.values['a'] for p in smoothed(alone, 3)) == '0111002'
    assert majority_of(3) in calibration.TUNED['smoothed edge']


def test_estimates_are_compared_with_what_is_true_of_the_same_answers():
    learner = Learner(QUERY)
    stream = parts([recorded(n) for n in range(8)], TOOK, AS_IT_IS)
    published = learner.over(stream)
    tallies = [Tally() for _ in stream]
    name = CountKey(CALIBRATED, AS_IT_IS, 'key a', '')
    judged = learner.calibration.judged('a')
    assert len(judged) == WINDOW, 'older labels are forgotten'
    answers = [part.answers('a', said) for part, said in zip(stream, published)]
    estimates.count(tallies, name, answers, judged)
    found = {c.metric: c for c in estimates.estimated_cells(
        {'driving day': tallies}, CALIBRATED, AS_IT_IS)}
    state = learner.calibration.state()['a']
    assert found['estimated help'].value == round(state.help, 4) > 0.4
    assert found['estimated harm'].value == round(state.harm, 4)
    since = [a for found in answers for a in found.frames][sum(judged[0].answers):]
    assert len(since) < sum(len(a.frames) for a in answers), 'what was before is left out'
    helped = sum(a.own != a.truth == a.said for a in since) / len(since)
    assert found['help of the same answers'].value == round(helped, 4)
    less = found[estimates.less('help', estimates.FRAMES)]
    assert less.value == round(state.help - helped, 4) and less.ci95 is not None
    assert less.ci95[0] <= less.value <= less.ci95[1] and abs(less.value) < 0.01
    # By the clock, an answer comes 10 ms after its frame: what stands is about the one before.
    by_clock = found['help by the clock meanwhile'].value
    assert by_clock < helped and abs(by_clock - helped) < 0.1


def test_an_estimate_misses_what_the_cloud_has_wrong():
    def judged(truth: str, answers: tuple[int, int]) -> Judged:
        return Judged(truth, '0', '1', 0.5, 0.0, 0.0, False, True, answers)
    # Four answers, all another than the edge's own, which is right once; two are judged.
    answers = [estimates.Answered(found, found) for found in (
        [estimates.Answer('0', '1', truth) for truth in values] for values in ('11', '10'))]
    tallies = [Tally(), Tally()]
    estimates.count(tallies, CountKey(CALIBRATED, AS_IT_IS, 'key a', ''), answers,
                    [judged('1', (0, 0)), judged('0', (0, 3))])
    found = {c.metric: c.value for c in estimates.estimated_cells(
        {'one': tallies, 'other': tallies}, CALIBRATED, AS_IT_IS) if c.world == 'all sets'}
    assert found == {estimates.estimate_of(kind): 0.5 for kind in estimates.KINDS} | {
        f'{kind} {metric}': true for kind, true in (('help', 0.75), ('harm', 0.25))
        for metric in (estimates.FRAMES, estimates.CLOCK)} | {
        estimates.less(kind, metric): off for kind, off in (('help', -0.25), ('harm', 0.25))
        for metric in (estimates.FRAMES, estimates.CLOCK)}
    nothing = [Tally()]
    estimates.count(nothing, CountKey(CALIBRATED, AS_IT_IS, 'key a', ''),
                    [estimates.Answered([], [])], ())
    assert not nothing[0].tries and estimates.estimated_cells(
        {'one': nothing}, CALIBRATED, AS_IT_IS) == []
