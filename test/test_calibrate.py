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
"""A params file is learned from a recording, and says of each key why it is as it is."""

from dataclasses import replace
import json
import random
import re

import numpy as np
import pytest

pytest.importorskip('torch')
from spotvlm_ros.cli.main import main  # noqa: E402
from spotvlm_ros.config.nodes import EdgeConfig  # noqa: E402
from spotvlm_ros.config.profiles import load_profile  # noqa: E402
from spotvlm_ros.config.spec import ParameterError  # noqa: E402
from spotvlm_ros.edge.answer import EdgeAnswer, guarded_answer  # noqa: E402
from spotvlm_ros.method.facts import Fact, NS, Source, Turn  # noqa: E402
from spotvlm_ros.method.stacking import NAMES  # noqa: E402
from spotvlm_ros.recording import calibrate as module  # noqa: E402
from spotvlm_ros.recording.recorder import plain, recorded_load, Recorder  # noqa: E402

START, SECONDS, PERIOD_S, DELAY_S = 1_700_000_000 * NS, 60, 0.5, 1.0
SCENE, ACTION = load_profile('driving').queries()


def true_value(key: str, stamp: int) -> str:
    """Return what is true: lights change every 4 s, limits are what the cloud throws dice for."""
    if key == 'light':
        return ('red', 'green')[(stamp - START) // (4 * NS) % 2]
    if key == 'limit':
        return random.Random(stamp).choice(SCENE.choices[key])
    return 'cruising' if key == 'lead' and (stamp - START) // (9 * NS) % 2 else 'none'


class SureEdge:
    """Is sure of yellow lights, and right about lead vehicles."""

    name = 'sure'

    def warm_up(self, queries):
        """Do nothing."""

    def answer(self, frame, query, context, stamp_ns, judge=None, **_):
        values = {'light': 'yellow', 'limit': true_value('limit', stamp_ns + 1),
                  'lead': true_value('lead', stamp_ns), 'pedestrian': 'none', 'action': 'stop'}
        facts = tuple(Fact(key, values[key], stamp_ns, 0.99) for key in query.keys)
        answer = EdgeAnswer('', facts, (), False, False, 0, 0.0, 0.0, False)
        return answer if judge is None else guarded_answer(
            query, context, judge, lambda given, on_text: answer)


@pytest.fixture(autouse=True)
def sure_edge(monkeypatch):
    monkeypatch.setattr(module.EdgeModel, 'load', lambda *config: SureEdge())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a recording, as node context and edge write one; one answer is heard by nobody."""
    path = tmp_path_factory.mktemp('calibrate')
    context, edge = Recorder(path, 'context'), Recorder(path, 'edge')
    context.write('start', queries=[plain(SCENE)], config={})
    learned = replace(SCENE, weights={'lead': dict.fromkeys(NAMES, 9.0)})  # of an earlier time
    edge.write('start', queries=[plain(learned), plain(ACTION)],
               load=recorded_load(EdgeConfig(model='sure')))
    image, model = np.zeros((8, 8, 3), np.uint8), SureEdge()
    reference = json.dumps({'world': 'driving', 'seed': 1, 'index': 0})
    for step in range(int(SECONDS / PERIOD_S)):
        now = START + round(step * PERIOD_S * NS)
        for query in (SCENE, ACTION) if step < 30 else (SCENE,):
            cloud = tuple(Fact(key, true_value(key, now) if query is SCENE else 'go', now)
                          for key in query.keys)
            answer = model.answer(image, query, None, now)
            edge.write('answer', stamp_ns=now, query_id=query.id, context=None, text='',
                       frame=edge.frame(now, image, None, reference if step % 2 else ''),
                       facts=[plain(f) for f in answer.facts], partial=step == 7)
            past = now - round(DELAY_S * NS)
            told = [Turn(query.id, now, Source.EDGE, answer.facts)] * (step != 7)
            told += [Turn(query.id, past, Source.CLOUD, tuple(
                replace(f, stamp_ns=past, value=true_value(f.key, past)
                        if query is SCENE else 'go') for f in cloud))] * (step > 2)
            for turn in told:
                context.write('turn', arrived_ns=now, turn=plain(turn))
                if turn.source == Source.CLOUD:
                    edge.write('truth', turn=plain(turn))
        while edge._queue.qsize() + context._queue.qsize() > 100:
            pass
    context.close()
    edge.close()
    assert not context.dropped and not edge.dropped
    return path


def test_what_is_learned_loads_and_the_report_says_why(folder, tmp_path, capsys):
    out = tmp_path / 'calibration.yaml'
    assert main(['calibrate', str(folder), '--out', str(out), '--json', '--period']) == 0
    report = json.loads(capsys.readouterr().out)
    found = {f['key']: f for f in report['findings']}
    assert {key for key, f in found.items() if f['learned']} == {'light'}
    light, limit, lead = found['light'], found['limit'], found['lead']
    assert light['state']['labels'] > 110 and light['state']['agreement'] == 0.0
    assert light['seen']['right_learned'] > 0.5 > light['seen']['right_by_guard'] == 0.0
    assert light['new_ttl_s'] == pytest.approx(2.8, abs=0.2) and light['ttl_s'] == 6.0
    assert 'tell nothing' in limit['why'] and limit['new_ttl_s'] == limit['ttl_s']
    assert 'not surely better: 100% right, and 100%' in lead['why']
    assert lead['new_ttl_s'] == pytest.approx(6.7, abs=0.9)
    assert found['action']['why'].startswith('27 labels, and 30 are needed')
    plain_profile, profile = (load_profile('driving', files) for files in ([], [out]))
    for node in ('edge', 'context', 'cloud'):
        before, after = plain_profile.queries(node)[0], profile.queries(node)[0]
        assert after.weights == {'light': pytest.approx(
            dict(zip(NAMES, light['state']['weights'])), abs=1e-4)}
        assert after.ttl_s['light'] == light['new_ttl_s'] and after.ttl_s['limit'] == 9.0
        assert after.cloud_period_s == pytest.approx(0.42, abs=0.03)
        assert replace(after, weights={}, ttl_s={}, cloud_period_s=0) == \
            replace(before, weights={}, ttl_s={}, cloud_period_s=0)
    text = out.read_text()
    assert '2023-11-14' in text and str(folder) in text and 'scene.lead (' in text
    out.write_text(text.replace('own: ', 'owl: '))
    with pytest.raises(ParameterError, match="weights.light holds 'owl: .*own, context"):
        load_profile('driving', [out])
    for path, why in (out, '--force'), (tmp_path / 'none' / 'c.yaml', 'is no folder; make it'):
        assert main(['calibrate', str(folder), '--out', str(path)]) == 1
        assert why in capsys.readouterr().err
    assert 'owl' in out.read_text()
    assert main(['calibrate', str(folder), '--out', str(out), '--force', '--every', '8']) == 0
    said = capsys.readouterr().out
    assert 'scene.light: guard with odds 4, as ' in said and 'ttl_s' in out.read_text()
    assert 'weights' not in out.read_text() and 'cloud_period_s: 1 s; with ' in said


def test_a_recording_of_an_edge_that_did_not_learn_is_put_in_order(folder, tmp_path):
    learned = module.learn_from_recording(folder, 1)
    for name in ('context.jsonl', 'frames'):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / 'edge.jsonl').write_text(''.join(
        line for line in open(folder / 'edge.jsonl') if '"event": "truth"' not in line))
    again = module.learn_from_recording(tmp_path, 1)
    assert again.counts.pop('files_altered') == 1 and again.counts == learned.counts
    assert [(f.learned, f.new_ttl_s) for f in again.findings()] == \
        [(f.learned, f.new_ttl_s) for f in learned.findings()]


@pytest.mark.parametrize('name,change,why', [
    ('edge', lambda data: b'caf\xe9\n' + data, 'edge.jsonl begins with what is no JSON'),
    ('edge', lambda data: data.replace(b'"odds"', b'"retired"'), 'no option retired'),
    ('edge', lambda data: data.replace(b'"stamp_ns": 17', b'"stamp_ns": {}, "x": 17'), 'cannot'),
    ('edge', lambda data: b'', 'cannot be used'),
    ('context', lambda data: data.replace(b'"arrived_ns"', b'"\\u001b[31m"'), 'arrived_ns'),
    ('edge', lambda data: data[:data.index(b'\n') + 40],
     'none of the 144 answers of the cloud.* 0 frames .*1 lines torn, 1 files cut off')])
def test_what_is_no_recording_is_a_clear_error(folder, tmp_path, capsys, name, change, why):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / f'{name}.jsonl').unlink()
    (tmp_path / f'{name}.jsonl').write_bytes(change((folder / f'{name}.jsonl').read_bytes()))
    out = tmp_path / 'out.yaml'
    assert main(['calibrate', str(tmp_path), '--out', str(out), '--every', '20']) == 1
    said = capsys.readouterr().err
    assert re.search(why, said.replace('\n', ' ')), said
    assert 'error: ' in said and '; ' in said and '\x1b[31m' not in said and not out.exists()


def test_what_is_no_folder_of_ours_names_the_command_that_makes_one(tmp_path, capsys):
    assert main(['calibrate', str(tmp_path)]) == 1
    assert 'spotvlm process PROFILE --bag' in capsys.readouterr().err
    (tmp_path / 'journal.jsonl').write_bytes(b'\xff\n')
    assert main(['calibrate', str(tmp_path)]) == 1
    assert 'is no journal' in capsys.readouterr().err
