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
"""`spotvlm demo`: the real graph, real DDS, real HTTP, the shipped models; and its scoring."""

from itertools import islice
import json
import os
import signal
import subprocess

import cv2
from fakes import wait_for
import PIL.Image
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
from spotvlm_ros.bench import demo  # noqa: E402
from spotvlm_ros.frames.sources import mini  # noqa: E402
from spotvlm_ros.method.facts import Context, Fact, NS, Region, Source  # noqa: E402
from spotvlm_ros.mini.driving.scene import SCENE  # noqa: E402
from spotvlm_ros.mini.worlds import make_world  # noqa: E402
from spotvlm_ros.system.processes import PYTHON  # noqa: E402
from test_nodes_run import offspring, running, SPOTVLM  # noqa: E402


@pytest.mark.alone
def test_demo_end_to_end(tmp_path):
    """Camera, edge, cloud server and context work together, and the summary says how well."""
    # In this episode there is something to look at from the first second.
    done = subprocess.run([*SPOTVLM, 'demo', '--duration', '8', '--delay', '0.3', '--seed',
                           '1000013', '--out', str(tmp_path)], capture_output=True, text=True,
                          timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'emulated' in done.stdout and 'Traceback' not in done.stderr
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['answers'] >= 10 and summary['answers_hz'] > 1.0
    assert summary['cloud_answers'] >= 2
    assert summary['context_used_fraction'] > 0 and summary['focus_used_fraction'] > 0
    assert summary['errors'] == 0
    for name in ('stamp_to_answer_ms', 'overhead_ms', 'cloud_delay_s'):
        assert 0 < summary[name]['p50'] <= summary[name]['p95']
    for name in ('edge_alone', 'full'):
        assert 0.3 < summary['accuracy'][name] <= 1.0  # far above an untrained model's 0
    for name in ('timeline.png', 'frames.png'):
        assert cv2.imread(str(tmp_path / name)).std() > 5


def test_demo_interrupted_while_it_scores(tmp_path):
    """Ctrl-C after the live part: exit code 0, no traceback, nobody left behind."""
    process = subprocess.Popen(
        [*SPOTVLM, 'demo', '--duration', '2', '--delay', '0', '--world', 'hri', '--speed', '2',
         '--cloud', 'off@1s..2s', '--out', str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, 'PYTHONUNBUFFERED': '1'})
    for line in process.stdout:
        if line.startswith('answering the same'):
            break
    family = offspring(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert 'Traceback' not in out
    wait_for(lambda: not any(running(pid) for pid in family), 5.0)


def record():
    """Return messages as the monitor keeps them: frames at 0, 1 and 2 s, one late cloud answer."""
    from spotvlm_msgs.msg import Answer
    from spotvlm_ros.nodes.convert import context_msg, duration_msg, fact_msg, header_msg
    from spotvlm_ros.nodes.monitor import ReceivedMessage
    world = make_world('driving', 5)
    items = []
    for k in range(3):
        stamp = (1000 + k) * NS
        facts = world.facts(300 + 20 * k, stamp)
        items.append(ReceivedMessage(stamp, Answer(
            header=header_msg(stamp, 'camera'), source=Answer.SOURCE_TRUTH,
            facts=[fact_msg(f, stamp) for f in facts],
            text=json.dumps({'world': 'driving', 'seed': 5, 'index': 300 + 20 * k,
                             'condition': None}))))
        answer = Answer(header=header_msg(stamp, 'camera'), source=Answer.SOURCE_EDGE,
                        query_id='scene', facts=[fact_msg(f, stamp) for f in facts])
        if k == 2:  # with context from frame 0, wrong in its first fact
            answer.used_context, answer.context_age = True, duration_msg(2.0)
            answer.facts[0].value = 'yellow' if facts[0].value != 'yellow' else 'red'
        items.append(ReceivedMessage(stamp + NS // 10, answer))
    first = tuple(Fact(k, 'none', 1000 * NS, region=Region(300, 200, 30, 30))
                  for k in SCENE.keys)
    items.append(ReceivedMessage(1001 * NS + NS // 2, Answer(
        header=header_msg(1000 * NS, 'camera'), source=Source.CLOUD, query_id='scene',
        facts=[fact_msg(f, 1000 * NS) for f in first])))
    context = Context('scene', 1001 * NS, first, focus={f.key: f.region for f in first})
    items.append(ReceivedMessage(1001 * NS + NS // 2, context_msg(context, SCENE, 'camera', 0, 0)))
    return items


def test_rows_pair_answers_with_truth_context_and_what_the_cloud_had_said(tmp_path):
    rows, own = demo._rows(record())
    assert len(rows) == 3 and len(own) == 1
    assert [bool(r.held) for r in rows] == [False, False, True], 'it arrived after 1.5 s'
    assert rows[0].context is None and rows[2].context.newest_ns == 1000 * NS
    for row in rows:
        row.alone = dict(row.truth)
    found = demo._accuracy(rows, own)
    assert found['edge_alone'] == 1.0
    assert found['full'] == pytest.approx(11 / 12, abs=1e-4)
    assert found['harmed'] == pytest.approx(1 / 12, abs=1e-4) and found['helped'] == 0.0
    demo.draw_timeline(rows, tmp_path / 'timeline.png')
    demo.draw_frames(rows, tmp_path / 'frames.png')
    rows[1].alone['light'] = 'long ' * 30   # is broken into two lines
    demo.draw_movie(rows, tmp_path / 'movie.webp')
    with PIL.Image.open(tmp_path / 'movie.webp') as movie:
        assert movie.n_frames == 3 and movie.width == 480
    assert cv2.imread(str(tmp_path / 'timeline.png')).std() > 5
    assert cv2.imread(str(tmp_path / 'frames.png')).std() > 5


@pytest.mark.parametrize('text, pause', [
    ('off@10s..20s', (10.0, 20.0)), ('off@0.5..2', (0.5, 2.0)), ('off@20s..10s', None),
    ('off', None), ('on@1..2', None)])
def test_pauses_of_the_cloud_are_read(text, pause):
    parser = demo.command_parser()
    if pause is not None:
        assert parser.parse_args(['--cloud', text, '--cloud', 'off@30..40']).cloud == [
            pause, (30.0, 40.0)]
        return
    with pytest.raises(SystemExit):
        parser.parse_args(['--cloud', text])


def test_a_world_goes_by_faster_with_the_same_rate_of_frames():
    frames = [next(islice(mini('driving', 3, '', 10.0, speed=speed), 20, None))
              for speed in (1.0, 2.5)]
    assert [f.at_s for f in frames] == [2.0, 2.0]
    assert [json.loads(f.reference)['index'] for f in frames] == [40, 100]


def test_demo_explains_itself():
    done = subprocess.run([*PYTHON, '-m', 'spotvlm_ros.cli', 'demo', '--help'],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and '--delay' in done.stdout
