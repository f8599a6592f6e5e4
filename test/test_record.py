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
"""A recorded run comes out the same again, and one that was tampered with does not."""

from collections import Counter
from dataclasses import replace
import json
import os

import cv2
from hypothesis import given, HealthCheck, settings, strategies as st
import numpy as np
import pytest

from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.method.facts import Context, Fact, NS, Region, Source, Turn
from spotvlm_ros.method.guard import OFF
from spotvlm_ros.method.transfer import Transfer, TransferConfig
from spotvlm_ros.mini import shipped
from spotvlm_ros.mini.driving.scene import SCENE
from spotvlm_ros.mini.worlds import make_world
from spotvlm_ros.recording import recorder as record, replay

FIRST = 400


def stamp(index):
    """Return the stamp of a frame."""
    return 1000 * NS + index * NS // 20


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a recording of two seconds, made of the parts that the nodes use."""
    pytest.importorskip('torch')
    from spotvlm_ros.edge.model import EdgeModel
    cv2.setNumThreads(1)
    path = tmp_path_factory.mktemp('recording')
    config = TransferConfig()
    query = replace(SCENE, camera='front')
    transfer, world = Transfer([query], config), make_world('driving', 1_000_300, 'day')
    context, edge = record.Recorder(path, 'context'), record.Recorder(path, 'edge')
    context.write('start', queries=[record.plain(query)], config=record.plain(config))
    checkpoint = str(shipped.checkpoint_path('spot-mini-edge'))
    model = EdgeModel.load(EdgeConfig(model=checkpoint, guard_odds=OFF))
    model.warm_up((SCENE,))
    edge.write('start', queries=[record.plain(SCENE)],
               load={'path': checkpoint, 'focus': record.plain(model.focus)})
    for index in range(FIRST, FIRST + 40, 2):
        now = stamp(index)
        frame = world.frame(index)
        reference = json.dumps({'world': 'driving', 'seed': 1_000_300, 'index': index,
                                'condition': 'day'}) if index % 4 else ''
        if index == FIRST + 20:
            facts = world.facts(FIRST + 2, stamp(FIRST + 2))
            turn = Turn('scene', stamp(FIRST + 2), Source.CLOUD, facts)
            context.write('turn', arrived_ns=now, turn=record.plain(turn))
            transfer.add(turn)
        facts = transfer.facts_to_track(now)
        where = context.frame(now, frame, None, reference, 'front')
        context.write('frame', stamp_ns=now, camera='front', frame=where)
        transfer.apply(transfer.carry(now, frame, facts))
        context.write('carried', stamp_ns=now, camera='front')
        told = transfer.context('scene')
        context.write('context', query_id='scene', context=record.plain(told))
        if index % 8 == 0:
            answer = model.answer(frame, SCENE, told, now)
            edge.write('answer', stamp_ns=now, query_id='scene', frame=where,
                       context=record.plain(told), text=answer.text,
                       facts=[record.plain(f) for f in answer.facts], partial=False)
    context.close()
    edge.close()
    assert not context.dropped and not edge.dropped
    return path


def test_the_replay_is_equal_to_the_run(folder, capsys):
    assert replay.main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert '20 contexts equal' in said and '5 answers equal' in said
    assert 'the replay is equal to the run' in said
    *_, last, end = [json.loads(line) for line in open(folder / 'context.jsonl')]
    assert end['event'] == 'end' and end['dropped'] == 0 and end['lines'] == 62
    assert last['context']['facts'] and last['context']['focus']


def test_another_reply_is_noticed(folder, tmp_path, capsys):
    copy = tmp_path / 'copy'
    copy.mkdir()
    (copy / 'frames').symlink_to(folder / 'frames')
    for name in ('context.jsonl', 'edge.jsonl'):
        rows = [json.loads(line) for line in open(folder / name)]
        for row in rows:
            if row['event'] == 'turn':
                row['turn']['facts'][2]['value'] = 'none'
                row['turn']['facts'][0]['region'] = {'x': 1.0, 'y': 1.0, 'w': 30.0, 'h': 30.0}
        (copy / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert replay.main([str(copy)]) == 1
    assert 'differ' in capsys.readouterr().out


@pytest.mark.parametrize('change,same', [(0.001, True), (0.1, False)])
def test_an_answer_that_was_less_sure_is_noticed(folder, tmp_path, capsys, change, same):
    rows = [json.loads(line) for line in open(folder / 'edge.jsonl')][:3]
    for fact in rows[1]['facts']:
        fact['confidence'] -= change
    (tmp_path / 'edge.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (tmp_path / 'frames').symlink_to(folder / 'frames')
    counts = replay.replay_edge(tmp_path, replay.Pictures(tmp_path))
    assert counts['confidences_different'] == (not same) and not counts['answers_different']


def test_a_missing_picture_is_counted_not_guessed(folder, tmp_path, capsys):
    copy = tmp_path / 'copy'
    copy.mkdir()
    for name in ('context.jsonl', 'edge.jsonl'):
        (copy / name).symlink_to(folder / name)
    counts = replay.replay_edge(copy, replay.Pictures(copy))
    assert counts['frames_missing'] > 0 and not counts['answers_different']
    assert replay.main([str(copy)]) == 1
    assert 'are not in the recording' in capsys.readouterr().out


def test_a_recording_with_options_that_are_no_more_is_a_clear_error(folder, tmp_path, capsys):
    for name in ('context.jsonl', 'frames'):
        (tmp_path / name).symlink_to(folder / name)
    start, *rest = (folder / 'edge.jsonl').read_text().splitlines(keepends=True)
    start = json.loads(start)
    start['load']['retired_option'] = 0.1
    (tmp_path / 'edge.jsonl').write_text(''.join([json.dumps(start) + '\n', *rest]))
    assert replay.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert 'retired_option' in said and 'of this version' in said


def test_what_is_no_recording_is_a_clear_error(tmp_path, capsys):
    assert replay.main([str(tmp_path)]) == 1
    assert 'spotvlm run --record' in capsys.readouterr().out
    with pytest.raises(ValueError, match='record_dir'):
        record.Recorder('/dev/null/x', 'edge')


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1))
def test_values_survive_exactly(x, confidence):
    region = Region(x, 0.1, 2 / 3, 4.0)
    fact = Fact('light', 'red', 2 ** 61 + 1, confidence, region)
    context = Context('scene', 5, (fact,), 'é 🚦', 7, {'light': region}, {'lead': 4})
    again = record.from_plain(Context, json.loads(json.dumps(record.plain(context))))
    assert again == context
    assert record.from_plain(type(SCENE), record.plain(SCENE)) == SCENE


def test_a_full_queue_drops_and_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(record, 'WAITING', 1)
    recorder = record.Recorder(tmp_path, 'x')
    for _ in range(400):
        recorder.frame(1, np.zeros((480, 640, 3), np.uint8), None, '')
        recorder.write('line')
    recorder.close()
    assert recorder.dropped > 0
    last = [json.loads(line) for line in open(tmp_path / 'x.jsonl')][-1]
    assert last['event'] == 'end' and last['dropped'] == recorder.dropped


def copied(folder, tmp_path, change):
    """Return a copy of a recording whose bytes of context.jsonl were changed."""
    for name in ('edge.jsonl', 'frames'):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / 'context.jsonl').write_bytes(change((folder / 'context.jsonl').read_bytes()))
    return tmp_path


@pytest.mark.parametrize('change,why', [
    (lambda data: data[:data.rindex(b'{"event": "end"')], '1 files cut off'),
    (lambda data: data[:len(data) // 2], 'files cut off'),
    (lambda data: data.replace(b'"arrived_ns": 1', b'"arrived_ns": 2'), '1 files altered'),
    (lambda data: data[:data.index(b'\n{"event": "carried"') + 9] + b'\n'
     + data[data.index(b'\n{"event": "carried"'):], '1 lines torn')])
def test_a_recording_that_is_not_whole_is_not_equal(folder, tmp_path, capsys, change, why):
    assert replay.main([str(copied(folder, tmp_path, change))]) == 1
    said = capsys.readouterr().out
    assert why in said and 'is equal to the run' not in said


def test_a_full_disk_that_is_freed_costs_one_line(tmp_path):
    """A line is written in part, the next one ends it; both are counted."""
    dropped = []
    recorder = record.Recorder(tmp_path, 'edge', dropped.append)
    full = recorder._file

    class FullOnce:
        writes = 0

        def write(self, data):
            self.writes += 1
            return full.write(data[:7] if self.writes == 2 else data)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            full.close()
    recorder._file = FullOnce()
    for number in range(4):
        recorder.write('start', number=number)
    recorder.close()
    counts = Counter()
    lines = list(replay.read_lines(tmp_path / 'edge.jsonl', counts))
    assert [line['number'] for line in lines] == [0, 2, 3]
    assert +counts == {'lines_torn': 1, 'not_recorded': 1} and recorder.dropped == 1
    assert len(dropped) == 1 and 'No space left' in dropped[0]


def test_a_folder_that_is_used_is_refused(folder):
    with pytest.raises(ValueError, match='holds a recording already'):
        record.Recorder(folder, 'context')


ODD = ('caf\xe9'.encode('latin-1'), b'\0', b'[' * 9000, b'1' + b'0' * 300, b'NaN',
       b'"\\u001b[31m"', b'null', b'{"event": "turn"}', b'-1', b'[]', b'x' * 2**21)


@given(st.data())
@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_recording_however_mangled_ends_in_a_traceback(folder, tmp_path_factory, capsys, data):
    """Values of lines are replaced by others, or bytes by what is no text."""
    lines = (folder / 'context.jsonl').read_bytes().splitlines(keepends=True)
    number = data.draw(st.integers(0, len(lines) - 1))
    line = lines[number]
    places = [i for i, byte in enumerate(line) if line[i - 1:i] in (b' ', b'[', b'{')]
    start = data.draw(st.sampled_from(places))
    end = next((i for i in range(start, len(line)) if line[i:i + 1] in (b',', b'}', b']')), start)
    lines[number] = line[:start] + data.draw(st.sampled_from(ODD)) + line[end:]
    copy = copied(folder, tmp_path_factory.mktemp('copy'), lambda old: b''.join(lines))
    counts = Counter()
    assert main_context(copy, counts) == 1, line
    assert '\x1b' not in capsys.readouterr().out


def main_context(copy, counts):
    """Replay without the edge, which needs seconds; return the exit code."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(replay, 'replay_edge', lambda *args: counts)
        return replay.main([str(copy)])


def test_a_pipe_is_no_recording(tmp_path, capsys):
    os.mkfifo(tmp_path / 'context.jsonl')
    assert replay.main([str(tmp_path)]) == 1
    assert 'context.jsonl is no file' in capsys.readouterr().out
