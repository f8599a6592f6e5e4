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
"""`spotvlm process`: bags in, bags of answers out, equal whatever happens on the way."""

from __future__ import annotations

import json
import math
from pathlib import Path
import re
import subprocess
import sys
import time

from fakes import FakeEdge, FakeServer, JudgedEdge, wait_for
import numpy as np
import pytest

pytest.importorskip('rclpy')
from geometry_msgs.msg import Quaternion  # noqa: E402, I100
from nav_msgs.msg import Odometry  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from rosbags.highlevel import AnyReader  # noqa: E402
from rosbags.rosbag2 import StoragePlugin, Writer  # noqa: E402
from rosbags.typesys import get_types_from_msg, get_typestore, Stores  # noqa: E402
from sensor_msgs.msg import CameraInfo  # noqa: E402
from spotvlm_msgs.msg import Answer, Fact  # noqa: E402

from spotvlm_ros.config.profiles import load_profile  # noqa: E402
from spotvlm_ros.frames.frame import Frame  # noqa: E402
from spotvlm_ros.frames.pixels import encode_jpeg  # noqa: E402
from spotvlm_ros.method.facts import NS  # noqa: E402
from spotvlm_ros.mini.worlds import make_world  # noqa: E402
from spotvlm_ros.nodes import calibrate, process as module  # noqa: E402
from spotvlm_ros.nodes.convert import (  # noqa: E402
    compressed_msg, fact_msg, header_msg, image_msg, stamp_ns)
from spotvlm_ros.nodes.process import INTERRUPTED, process, ProcessConfig  # noqa: E402
from spotvlm_ros.recording import process as recording  # noqa: E402
from spotvlm_ros.view.recorded import read_run  # noqa: E402
from spotvlm_ros.view.report import report  # noqa: E402

START, HZ, SECONDS = 1_700_000_000 * NS, 12, 3
ROOT = Path(__file__).resolve().parents[1]


def write_bag(path: Path, loops: int = 1, topics: tuple[str, ...] = ('image/compressed',),
              bad: tuple[int, ...] = (), seconds: int = SECONDS, motion: bool = False) -> Path:
    """Write seconds of the miniature world, with its truth; the recorder's clock goes on."""
    world = make_world('driving', 3)
    types = get_typestore(Stores.ROS2_KILTED)
    for name in ('Fact', 'Answer'):
        types.register(get_types_from_msg((ROOT / f'spotvlm_msgs/msg/{name}.msg').read_text(),
                                          f'spotvlm_msgs/msg/{name}'))
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        images = [writer.add_connection(
            f'/{t}', f'sensor_msgs/msg/{"CompressedImage" if "compressed" in t else "Image"}',
            typestore=types) for t in topics]
        truth = writer.add_connection('/truth', 'spotvlm_msgs/msg/Answer', typestore=types)
        info, odom = (writer.add_connection(name, kind, typestore=types) for name, kind in (
            ('/eye/camera_info', 'sensor_msgs/msg/CameraInfo'),
            ('/odom', 'nav_msgs/msg/Odometry')))
        focal, column, row = world.lens
        for number in range(loops * seconds * HZ):
            index = number % (SECONDS * HZ)
            stamp, log = START + index * NS // HZ, START + number * NS // HZ + 3_000_000
            frame = Frame(stamp, 'lens', pixels=np.ascontiguousarray(
                world.frame(round(index * world.fps / HZ))[::2, ::2]))
            for connection in images:
                jpeg = b'\xff\xd8 none' if index in bad else encode_jpeg(frame.rgb())
                message = compressed_msg(frame, jpeg) if 'compressed' in connection.topic \
                    else image_msg(frame)
                writer.write(connection, log, serialize_message(message))
            if motion:
                yaw = world.pose(round(index * world.fps / HZ)).yaw / 2
                writer.write(info, log, serialize_message(CameraInfo(
                    header=header_msg(stamp, 'lens'), width=640, height=480,
                    k=[focal, 0.0, column, 0.0, focal, row, 0.0, 0.0, 1.0])))
                message = Odometry(header=header_msg(stamp, 'odom'), child_frame_id='base')
                message.pose.pose.orientation = Quaternion(z=math.sin(yaw), w=math.cos(yaw))
                writer.write(odom, log + 10_000_000, serialize_message(message))
            facts = world.facts(round(index * world.fps / HZ), stamp)
            writer.write(truth, log + 1, serialize_message(Answer(
                header=header_msg(stamp, 'lens'), source=Answer.SOURCE_TRUTH,
                facts=[fact_msg(f, stamp) for f in facts])))
    return path


@pytest.fixture(scope='module')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(tmp_path_factory.mktemp('bags') / 'drive')


class Runs:
    """Runs of one profile whose cloud is a fake server."""

    def __init__(self, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.profile = load_profile('driving').overlaid(
            'cloud', {'base_url': server.url, 'retries': 0})
        self.edge, self.server = FakeEdge(0.0), server
        monkeypatch.setattr(module, 'load_edge', lambda config: self.edge)

    def __call__(self, bag: Path, out: Path, stop=lambda: False, delay_s=1.0, **options) -> int:
        return process(ProcessConfig(bag, out, delay_s=delay_s, quiet=True, **options),
                       self.profile, stop)


@pytest.fixture
def runs(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(server, monkeypatch)


def read(out: Path, topic: str) -> list[tuple[int, object]]:
    """Return the messages of a topic, read with no definition but the bag's own."""
    with AnyReader([out]) as reader:
        return [(log_ns, reader.deserialize(raw, connection.msgtype))
                for connection, log_ns, raw in reader.messages()
                if connection.topic == f'/{topic}']


def written(out: Path) -> tuple[bytes, bytes]:
    return (out / 'answers.mcap').read_bytes(), (out / 'metadata.yaml').read_bytes()


def test_all_due_frames_are_answered_and_the_bags_are_equal_at_any_speed(bag, tmp_path, runs):
    assert runs(bag, tmp_path / 'fast') == 0
    seen = runs.edge.seen
    runs.edge, fine = FakeEdge(0.01), runs.server.fine

    def slow(request):
        time.sleep(0.1)
        return fine(request)
    runs.server.reply = slow
    assert runs(bag, tmp_path / 'slow') == 0
    assert written(tmp_path / 'fast') == written(tmp_path / 'slow')
    assert seen == runs.edge.seen and len(seen) == SECONDS * 6 + SECONDS * 1
    for stamp, context in seen:  # nothing is known before it can be
        assert stamp == START if context is None else all(
            stamp - f.stamp_ns >= NS for f in context.facts)
    summary = json.loads((tmp_path / 'fast' / 'summary.json').read_text())
    assert summary['answers'] == summary['due'] == len(seen) and not summary['errors']
    assert summary['frames'] == summary['messages']['truth'] == SECONDS * HZ
    assert summary['cloud']['delay_s'] == {'p50': 1.0, 'p95': 1.0}
    assert 0.0 < summary['accuracy']['scene'] < 1.0
    answers = read(tmp_path / 'fast', 'answers')
    contexts = {m.sequence: m for _, m in read(tmp_path / 'fast', 'context')
                if m.query_id == 'scene'}
    told = [m for _, m in answers if m.used_context and m.query_id == 'scene']
    assert told and all(stamp_ns(contexts[m.context_sequence].header.stamp) ==
                        stamp_ns(m.header.stamp) for m in told)
    assert {m.header.frame_id for _, m in answers} == {'lens'}


def test_the_bag_becomes_a_page(bag, tmp_path, runs):
    assert runs(bag, tmp_path / 'out') == 0
    run = read_run(tmp_path / 'out')
    assert len(run.steps) == SECONDS * 7 and run.query_ids == ['scene', 'action']
    assert {round(c.delay_s, 3) for c in run.clouds} == {1.0}
    later = [s for s in run.steps if s.query_id == 'scene'][-1]
    assert set(later.truth) >= {'light', 'lead'} and later.cloud.values['light'] == 'red'
    assert later.told is not None and later.told.stamp_ns == later.said.stamp_ns
    assert len(list(run.images(s.said.stamp_ns for s in run.steps))) == SECONDS * 6
    assert '"url": "data:image/jpeg' in report(run)


def test_an_answer_of_the_cloud_is_told_from_the_frame_on_at_which_it_is_there(
        bag, tmp_path, runs):
    assert runs(bag, tmp_path / 'out', delay_s=0.5, edge_latency_s=0.2) == 0
    for log_ns, message in read(tmp_path / 'out', 'cloud/answers'):
        assert log_ns - stamp_ns(message.header.stamp) == NS // 2 + 3_000_000
    for log_ns, message in read(tmp_path / 'out', 'answers'):
        assert log_ns - stamp_ns(message.header.stamp) == NS // 5 + 3_000_000
    first = next(stamp for stamp, context in runs.edge.seen if context and context.facts)
    assert first == START + NS // 2


def test_a_run_that_was_interrupted_goes_on_where_it_was(bag, tmp_path, runs, capsys,
                                                         monkeypatch):
    monkeypatch.setattr(recording, 'PRIME', 1)
    assert runs(bag, tmp_path / 'whole') == 0
    asked, requests = len(runs.edge.seen), len(runs.server.requests)
    out, left = tmp_path / 'part', iter(range(20))
    assert runs(bag, out, stop=lambda: next(left, None) is None) == INTERRUPTED
    assert 'goes on with' in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ['journal.jsonl']
    with open(out / 'journal.jsonl', 'ab') as file:
        file.write(b'{"event": "edge", "fra')  # as a crash leaves it
    runs.edge = FakeEdge(0.0)
    assert runs(bag, out) == 0 and written(out) == written(tmp_path / 'whole')
    assert asked // 3 < len(runs.edge.seen) < 2 * asked // 3
    assert len(runs.server.requests) == 2 * requests
    for change, why in ({}, 'finished'), ({'delay_s': 2.0}, 'another run .*delays'):
        assert runs(bag, out, **change) == 1
        assert re.search(why, capsys.readouterr().err)
    mangled = tmp_path / 'mangled'
    mangled.mkdir()
    lines = (out / 'journal.jsonl').read_bytes().splitlines(keepends=True)
    lines[9:12] = [b'{"event": "edge"}\n', b'[7]\n', b'null\n']
    (mangled / 'journal.jsonl').write_bytes(b''.join(lines))
    assert runs(bag, mangled) == 0 and written(mangled) == written(out)
    foreign = tmp_path / 'foreign'
    foreign.mkdir()
    (foreign / 'thesis.tex').touch()
    assert runs(bag, foreign) == 1 and 'not empty' in capsys.readouterr().err
    assert [p.name for p in foreign.iterdir()] == ['thesis.tex']


def test_what_the_cloud_teaches_is_the_same_in_each_run_and_after_an_interruption(
        bag, tmp_path, runs):
    runs.profile = runs.profile.with_values([
        'scene.weights.light:=["own: 0.0", "held: 6.0"]', 'scene.cloud_period_s:=0.25'])
    outs = [tmp_path / name for name in ('whole', 'again', 'part')]
    for out in outs:
        runs.edge, left = JudgedEdge(0.0, 0.9), iter(range(24))
        if out.name == 'part':
            assert runs(bag, out, stop=lambda: next(left, None) is None) == INTERRUPTED
        assert runs(bag, out) == 0
    assert written(outs[0]) == written(outs[1]) == written(outs[2])
    lights = [(f.origin, f.value, stamp_ns(m.header.stamp) - stamp_ns(f.stamp))
              for _, m in read(outs[0], 'answers') for f in m.facts if f.key == 'light']
    held = [(value, age_ns) for origin, value, age_ns in lights if origin == Fact.ORIGIN_HELD]
    assert {value for value, _ in held} == {'red'} and all(age >= NS for _, age in held)
    assert lights[0] == (Fact.ORIGIN_OWN, 'none', 0) and len(held) > 5
    summary = json.loads((outs[0] / 'summary.json').read_text())
    known = summary['calibration']['scene']
    assert known['labels'] > 4 and 0.0 < known['help'] < 1.0


def test_measured_delays_hold_again(bag, tmp_path, runs):
    def late(request):
        time.sleep(0.3)
        return runs.server.fine(request)
    runs.server.reply = late
    assert runs(bag, tmp_path / 'first', delay_s=None) == 0
    delays = [log_ns - stamp_ns(m.header.stamp)
              for log_ns, m in read(tmp_path / 'first', 'cloud/answers')]
    assert delays and all(0.3 < d / NS - 0.003 < 1.0 for d in delays)
    runs.server.stop()
    assert runs(bag, tmp_path / 'again', delay_s=None,
                delays=tmp_path / 'first' / 'journal.jsonl') == 0
    assert written(tmp_path / 'first') == written(tmp_path / 'again')


def test_nothing_crosses_the_loop_of_a_bag(tmp_path, runs):
    bag = write_bag(tmp_path / 'loops', loops=3)
    assert runs(bag, tmp_path / 'out') == 0
    loop = [START + 3_000_000 + n * SECONDS * NS for n in range(4)]
    told = 0
    for begin, end in zip(loop, loop[1:]):
        arrived = {stamp_ns(m.header.stamp) for log_ns, m in read(tmp_path / 'out',
                   'cloud/answers') if begin <= log_ns < end}
        contexts = [m for log_ns, m in read(tmp_path / 'out', 'context') if begin <= log_ns < end]
        stamps = {stamp_ns(f.stamp) for m in contexts for f in m.facts}
        assert stamps and stamps <= arrived
        early = [m for m in contexts if stamp_ns(m.header.stamp) < START + NS]
        assert early and not any(m.facts for m in early)
        told += len(stamps)
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert summary['restarts'] == 2 and summary['answers'] == 3 * SECONDS * 7 and told >= 3


def test_frames_that_cannot_be_decoded_are_answered_with_an_error(tmp_path, runs):
    bag = write_bag(tmp_path / 'torn', bad=(0, 6))
    assert runs(bag, tmp_path / 'out') == 0
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert summary['frames_rejected'] == {'bad': 2} and summary['errors'] == 3
    assert summary['answers'] == summary['due'] == SECONDS * 7
    errors = [m for _, m in read(tmp_path / 'out', 'answers') if m.error_code]
    assert [m.error_code for m in errors] == 3 * [Answer.ERROR_IMAGE]


def test_what_cannot_be_processed_is_refused_with_a_remedy(bag, tmp_path, runs, capsys):
    def error(*arguments, **options) -> str:
        assert runs(*arguments, **options) == 1
        return capsys.readouterr().err
    two = write_bag(tmp_path / 'two', topics=('left/image', 'right/image/compressed'))
    assert 'set topic to one of /left/image, /right' in error(two, tmp_path / 'a')
    assert runs(two, tmp_path / 'left', topic='/left/image', from_s=1.0, to_s=2.0) == 0
    assert {stamp_ns(m.header.stamp) // NS for _, m in read(tmp_path / 'left', 'truth')} == {
        START // NS + 1, START // NS + 2}
    assert '/no is not there' in error(bag, tmp_path / 'b', topic='/no')
    assert 'no topic of type' in error(write_bag(tmp_path / 'none', topics=()), tmp_path / 'c')
    assert 'metadata.yaml' in error(tmp_path / 'missing', tmp_path / 'd')
    empty = write_bag(tmp_path / 'empty', seconds=0)
    assert 'is empty' in error(empty, tmp_path / 'f')
    torn = tmp_path / 'torn.mcap'
    torn.write_bytes((bag / 'drive.mcap').read_bytes()[:200_000])
    assert 'torn.mcap' in error(torn, tmp_path / 'g')
    journal = tmp_path / 'left' / 'summary.json'
    assert 'no journal' in error(bag, tmp_path / 'h', delays=journal)
    runs.server.reply = lambda request: (401, b'')
    assert 'SPOTVLM_API_KEY' in error(bag, tmp_path / 'e')
    runs.server.reply = runs.server.fine
    assert runs(bag, tmp_path / 'e') == 0


def test_a_bag_tells_how_its_camera_turned(bag, tmp_path, runs, capsys):
    def motion(path) -> dict[str, object]:
        assert runs(path, tmp_path / f'{path.name}-out') == 0
        return json.loads((tmp_path / f'{path.name}-out' / 'summary.json').read_text())[
            'ego_motion']
    plain = runs.profile
    runs.profile = plain.overlaid('context', {'ego_motion': 'odometry'})
    known = motion(write_bag(tmp_path / 'known', motion=True))
    assert known['turns_known'] >= SECONDS * 5 and 'turns_unknown' not in known
    unknown = motion(bag)
    assert unknown['turns_unknown'] == known['turns_known'] and not unknown['turns_known']
    assert 'no usable message on camera_info' in unknown['newest']
    runs.profile = plain.overlaid('context', {'ego_motion': 'tf'})
    assert runs(bag, tmp_path / 'tf') == 1
    assert 'process reads odometry only' in capsys.readouterr().err


def test_several_cameras_are_refused_and_fallbacks_are_left_out_aloud(
        bag, tmp_path, runs, capsys):
    one = runs.profile
    runs.profile = one.with_values(['scene.camera:=left', 'action.camera:=right'])
    assert runs(bag, tmp_path / 'out') == 1
    assert re.search('cameras left, right; .*leave camera .*empty, and run once for each',
                     capsys.readouterr().err)
    runs.profile = one.with_values([
        'cloud.fallbacks:=[b]', 'cloud.fallback.b.base_url:=http://127.0.0.1:9/v1',
        'cloud.fallback.b.model:=m'])
    assert runs(bag, tmp_path / 'out', to_s=0.5) == 0 and runs.server.requests
    assert 'fallbacks of node cloud (b) are not asked' in capsys.readouterr().out


class TellingEdge(FakeEdge):
    """Tells its judge what it has answered, in one pass."""

    def answer(self, rgb, query, context, stamp_ns, judge=None, **_):
        answer = super().answer(rgb, query, context, stamp_ns)
        if judge is not None:
            judge.select(answer.facts, None, context)
        return answer


def test_what_it_wrote_is_learned_from_with_the_same_contexts_and_no_server(
        bag, tmp_path, runs, monkeypatch):
    out, again = tmp_path / 'out', TellingEdge(0.0)
    monkeypatch.setattr(calibrate, 'load_edge', lambda config: again)
    assert runs(bag, out, stop=lambda left=iter(range(20)): next(left, None) is None)
    with pytest.raises(ValueError, match='not finished; go on with the same command'):
        calibrate.learn_from_process(out, 1)
    assert runs(bag, out) == 0
    requests, runs.edge = len(runs.server.requests), TellingEdge(0.0)
    assert runs(bag, tmp_path / 'judged') == 0
    learner = calibrate.learn_from_process(out, 1)
    assert again.seen == runs.edge.seen and len(runs.server.requests) == 2 * requests
    assert learner.counts['answers'] == len(again.seen) and learner.counts['cloud_answers'] > 1
    found = {f.key: f for f in learner.findings()}
    assert found['light'].state.labels > 1 and found['light'].seen.delay_s == 1.0
    judged = calibrate.learn_from_process(tmp_path / 'judged', 1)
    assert len(again.seen) == judged.counts['answers']   # its journal has what passes said
    assert judged.findings() == learner.findings()
    (out / 'journal.jsonl').write_bytes((out / 'journal.jsonl').read_bytes()[:-9])
    with pytest.raises(ValueError, match='lacks an answer about frame .*another --out'):
        calibrate.learn_from_process(out, 1)


def test_the_command_survives_a_kill(bag, tmp_path, server, capsys):
    overlay = tmp_path / 'cloud.yaml'
    overlay.write_text(f'/**/cloud:\n  ros__parameters:\n    base_url: {server.url}\n')
    command = [sys.executable, '-m', 'spotvlm_ros.cli', 'process', 'driving', '--bag', str(bag),
               '--params-file', str(overlay), '--delay', '0.7', '--out']
    journal = tmp_path / 'killed' / 'journal.jsonl'
    child = subprocess.Popen([*command, str(tmp_path / 'killed')])
    try:
        wait_for(lambda: journal.is_file() and journal.read_bytes().count(b'\n') > 8, 90.0)
    finally:
        child.kill()
        child.wait()
    profile = load_profile('driving', [overlay])
    for out in ('killed', 'whole'):
        assert process(ProcessConfig(bag, tmp_path / out, delay_s=0.7), profile, bool) == 0
        said = capsys.readouterr().out
        assert ' kB, ' in said and ('going on' in said) == (out == 'killed')
    assert written(tmp_path / 'killed') == written(tmp_path / 'whole')
