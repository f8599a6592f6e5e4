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
"""SpotBench with the shipped checkpoints, on seconds of an episode."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from spotvlm_ros.bench.spotbench import main, work
from spotvlm_ros.bench.spotbench.cache import Cache
from spotvlm_ros.bench.spotbench.calibration_rows import fixed, Part
from spotvlm_ros.bench.spotbench.controls import (
    BLANK, CONTROLS, permuted, random_regions, true_regions)
from spotvlm_ros.bench.spotbench.delays import (
    DeliveredReply, HEADLINE, NEVER, SimulatedCloud, TRACES)
from spotvlm_ros.bench.spotbench.latencies import Latencies
from spotvlm_ros.bench.spotbench.models import CachedCloud, CachedEdge
from spotvlm_ros.bench.spotbench.passes import Heard
from spotvlm_ros.bench.spotbench.replay import Replay, RunScope, urgent_times
from spotvlm_ros.bench.spotbench.seeds import episodes
from spotvlm_ros.bench.spotbench.streams import Sampling, START_NS, WorldStream
from spotvlm_ros.bench.spotbench.systems import edge_alone, Inputs, transfer
from spotvlm_ros.bench.spotbench.wallclock import real_time
from spotvlm_ros.cloud.parse import CloudAnswer
from spotvlm_ros.config.nodes import CloudNodeConfig, EdgeConfig
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.method.facts import Context, Fact, NS, Region
from spotvlm_ros.method.guard import ODDS, OFF
from spotvlm_ros.mini.shipped import checkpoint_path

SAMPLING = Sampling(seconds=2.0, scored_from_s=0.5)
TOOK = Latencies(0.004, 0.03, 0.035, 0.06, 0.004, 0.6, 'spot-mini-edge', 'a test')
EPISODE = episodes('tune', 'driving day', 1)[0]


@pytest.fixture(scope='module')
def setup() -> work.Setup:
    found = work.Setup(checkpoint_path('spot-mini-edge'), checkpoint_path('spot-mini-cloud'),
                       None, None, SAMPLING,
                       TOOK)
    work.begin(found)
    return found


def true_answer(stream: WorldStream, stamp: int) -> CloudAnswer:
    """Return what a cloud without errors would say."""
    return CloudAnswer(stream.query.id, stamp, tuple(
        Fact(k, v, stamp, region=stream.regions(stamp).get(k))
        for k, v in stream.truth(stamp).items()))


def true_replies(stream: WorldStream) -> list[DeliveredReply]:
    """Return the replies of a cloud without errors, half a second late."""
    cloud = SimulatedCloud(stream.query, stream.edge, lambda stamp: true_answer(stream, stamp),
                           seed=1, end_ns=stream.frames[-1])
    return cloud.replies(TRACES['fixed 0.5 s'])


def inputs_of(stream: WorldStream, cloud=None) -> Inputs:
    edge = CachedEdge(work.edge_model(), stream, Cache(None, ''))
    return Inputs(stream, edge, CachedCloud(cloud, stream, Cache(None, '')), TOOK)


def counts(result: work.Result) -> tuple[dict, dict]:
    return result.tally.hits, result.tally.tries


def test_two_replays_are_identical(setup):
    scope = RunScope(('fixed 0.5 s', NEVER), ablations=False, controls=False)
    first = work.replay(EPISODE, scope, {'light': 'none'})
    again = work.replay(EPISODE, scope, {'light': 'none'})
    assert counts(first) == counts(again) and first.tally.hits[0]
    systems = {name.system for name in first.tally.hits[0]}
    assert {'full', 'edge alone', 'own history', 'hold', 'fusion', 'majority'} <= systems


def test_without_a_cloud_the_method_says_what_the_edge_alone_says(setup):
    stream = WorldStream(EPISODE, SAMPLING)
    inputs = inputs_of(stream)
    alone = edge_alone(inputs)
    without = transfer('full', inputs, [])
    assert without.published == alone.published and without.answers == alone.answers
    assert transfer('full', inputs, true_replies(stream)).published != alone.published


def test_a_replay_of_both_passes_is_the_full_method(setup):
    stream = WorldStream(EPISODE, SAMPLING)
    inputs, replies = inputs_of(stream), true_replies(stream)
    full = transfer('full', inputs, replies)
    told = {s: inputs.edge(s, c, guarded=False) for s, c in full.contexts.items()}
    part = Part(stream, edge_alone(inputs), Heard(tuple(replies), full.contexts, told), TOOK)
    assert fixed([part], ODDS) == [full.published]
    assert any(p.at_ns - p.stamp_ns == int(TOOK.both_s * NS) for p in full.published)


def test_all_systems_meet_the_same_replies_and_a_frame_is_asked_about_once(setup):
    class Cloud:
        asked = 0

        def replies(self, query, images):
            self.asked += len(images)
            return work.cloud_model().replies(query, images)
    cloud = Cloud()
    run = Replay(inputs_of(WorldStream(EPISODE, SAMPLING), cloud), SAMPLING)
    run.run(RunScope(('fixed 0.5 s', 'fixed 0 s'), ablations=False, controls=False))
    asked = cloud.asked
    assert asked == len(run.inputs.cloud.answers) == 2, 'two seconds, two delays'
    assert run.arrivals(TRACES['fixed 0.5 s']) == run.arrivals(TRACES['fixed 0.5 s'])
    assert cloud.asked == asked


def test_scene_cuts_and_unsure_answers_bring_keyframes_forward(setup):
    stream = WorldStream(EPISODE, SAMPLING)
    alone = edge_alone(inputs_of(stream))
    unsure = {p.at_ns for p in alone.published if any(
        f.confidence < CloudNodeConfig().unsure_below for f in alone.answers[p.stamp_ns].facts)}
    assert set(urgent_times(stream, alone)) == unsure
    cut, image = stream.edge[4], stream.image
    stream.image = lambda s: image(s) if s < cut else 255 - image(s)
    assert set(urgent_times(stream, alone)) == unsure | {cut}


def test_kept_answers_are_those_of_the_model(setup, tmp_path):
    stream = WorldStream(EPISODE, SAMPLING)
    cache = Cache(tmp_path, 'edge')
    first = CachedEdge(work.edge_model(), stream, cache)
    context = Context(stream.query.id, START_NS, (Fact('light', 'red', START_NS),))
    asked = ((START_NS,), (START_NS, context, False, OFF), (START_NS, None, True))
    said = [first(*each) for each in asked]
    cache.save()
    kept = CachedEdge(None, stream, Cache(tmp_path, 'edge'))  # no model: everything must be known
    assert [kept(*each) for each in asked] == said
    assert said[1].used_context and not said[0].used_context


def test_the_guard_is_that_of_the_edge_model_and_both_passes_are_charged(setup):
    stream = WorldStream(EPISODE, SAMPLING)
    inputs = inputs_of(stream)
    guarded = EdgeModel.load(EdgeConfig(model=str(setup.edge), guard_odds=ODDS))
    run = transfer('full', inputs,
                   [DeliveredReply(true_answer(stream, START_NS).turn, START_NS)])
    twice = 0
    for said in run.published:
        context, answer = run.contexts[said.stamp_ns], run.answers[said.stamp_ns]
        same = guarded.answer(stream.image(said.stamp_ns), stream.query, context, said.stamp_ns)
        assert {f.key: f.value for f in same.facts} == said.values
        assert (same.used_context, same.used_focus) == (answer.used_context, answer.used_focus)
        twice += answer.passes == 2
        took = TOOK.both_s if answer.passes == 2 else TOOK.alone_s
        assert said.at_ns == said.stamp_ns + int(took * NS)
    assert twice


def test_shifted_labels_lower_the_score_of_the_truth(setup):
    stream = WorldStream(episodes('tune', 'driving day', 2)[1], Sampling(seconds=16.0))
    stream.edge = stream.edge[:5]
    run = Replay(inputs_of(stream), Sampling(), {'light': 'none'})
    run.run(RunScope((), controls=False))
    hits, tries = run.tally.hits[0], run.tally.tries[0]
    shifted = {n.system: hits[n] / tries[n] for n in tries if n.slice.startswith('labels')}
    assert shifted['truth'] < 0.9


def test_controls_change_only_what_they_say(setup):
    stream = WorldStream(EPISODE, SAMPLING)
    stamp = stream.edge[4]
    told = true_answer(stream, START_NS).facts
    context = Context(stream.query.id, stamp, told,
                      focus={f.key: Region(10, 10, 30, 20) for f in told})
    other = permuted(context, stream)
    assert all(a.value != b.value and a.key == b.key for a, b in zip(told, other.facts))
    assert other.focus == context.focus and permuted(context, stream) == other
    moved = random_regions(context, stream)
    assert moved.facts == told and all(r.w == 30 and r.h == 20 for r in moved.focus.values())
    assert true_regions(context, stream).focus == stream.regions(stamp)


def test_a_blank_picture_is_answered_with_the_context(setup):
    """The guard answers it without: the control said what the one without context says."""
    answers = []

    class Edge(CachedEdge):
        def __call__(self, *args, **more):
            answers.append(super().__call__(*args, **more))
            return answers[-1]
    stream = WorldStream(EPISODE, SAMPLING)
    told = true_answer(stream, START_NS).facts
    inputs = replace(inputs_of(stream), edge=Edge(work.edge_model(), stream, Cache(None, '')))
    contexts = {s: Context(stream.query.id, s, told) for s in stream.edge}
    replay = Replay(inputs, SAMPLING, None)
    answers.clear()  # of the edge alone
    replay.control(BLANK, CONTROLS[BLANK], contexts)
    assert answers and all(a.used_context and a.passes == 1 for a in answers)


@pytest.mark.alone
def test_real_time_publishes_after_each_frame(setup):
    stream = WorldStream(EPISODE, SAMPLING)
    said = real_time(stream, work.edge_model(), true_replies(stream))
    assert len(said) >= len(stream.edge) // 3   # the machine may be busy
    assert all(s.at_ns > s.stamp_ns and s.stamp_ns in stream.edge for s in said)
    assert [s.stamp_ns for s in said] == sorted(s.stamp_ns for s in said)


def write_video(path: Path, stream: WorldStream) -> None:
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10.0, stream.size)
    for stamp in stream.frames:
        out.write(np.ascontiguousarray(stream.image(stamp)[:, :, ::-1]))
    out.release()


def test_a_video_with_labels_is_scored(tmp_path, capsys):
    stream = WorldStream(EPISODE, Sampling(seconds=2.5, scored_from_s=0.5))
    write_video(tmp_path / 'drive.mp4', stream)
    labels = [json.dumps({'t': (s - START_NS) / NS, 'facts': dict(stream.truth(s))})
              for s in stream.labels]
    (tmp_path / 'labels.jsonl').write_text('\n'.join(labels))
    code = main.main(['--video', str(tmp_path / 'drive.mp4'), '--labels',
                      str(tmp_path / 'labels.jsonl'), '--out', str(tmp_path / 'out')])
    assert code == 0, capsys.readouterr().out
    content = json.loads((tmp_path / 'out' / 'results.json').read_text())
    found = {(c['system'], c['delay'], c['metric']): c for c in content['cells']
             if c['slice'] == 'all'}
    assert found['full', HEADLINE, 'accuracy']['value'] > 0.3
    assert found['edge alone', NEVER, 'accuracy']['value'] == \
        found['full', NEVER, 'accuracy']['value']
    assert 'not meaningful' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'report.html').read_text().count('data:image/png') >= 4


def test_wrong_use_ends_in_an_action(tmp_path, capsys):
    assert main.main(['--video', str(tmp_path / 'none.mp4')]) == 1
    assert '--labels is missing; name a file' in capsys.readouterr().out
    (tmp_path / 'l.jsonl').write_text('{"t": 0, "facts": {"light": "red"}}')
    assert main.main(['--video', str(tmp_path / 'none.mp4'), '--labels',
                      str(tmp_path / 'l.jsonl')]) == 1
    assert 'give the path of a file such as clip.mp4' in capsys.readouterr().out
    assert main.main(['--report', '--out', str(tmp_path)]) == 1
