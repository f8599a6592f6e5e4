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
"""`spotvlm run` as a process: to the end of a clip, and interrupted at any moment."""

from contextlib import ExitStack
from functools import partial
import json
import os
from pathlib import Path
import signal
import subprocess
import time
from types import SimpleNamespace

import cv2
from fakes import wait_for
import numpy as np
import pytest

from spotvlm_ros.system.processes import PYTHON
from test_process import write_bag

pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
SPOTVLM = [*PYTHON, '-m', 'spotvlm_ros.cli']


@pytest.fixture(scope='session')
def clip(tmp_path_factory):
    """Return a video of two seconds."""
    path = tmp_path_factory.mktemp('clip') / 'clip.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 25.0, (320, 240))
    for i in range(50):
        writer.write(np.full((240, 320, 3), 4 * i, np.uint8))
    writer.release()
    return path


def start(*arguments):
    """Start spotvlm run in a process group, as a terminal would."""
    return subprocess.Popen(
        [*SPOTVLM, 'run', 'driving', *arguments], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, 'PYTHONUNBUFFERED': '1'})


def offspring(pid):
    """Return the processes that descend from this one, or have its arguments."""
    found = []
    for entry in Path('/proc').iterdir():
        try:
            fields = (entry / 'stat').read_text().rpartition(')')[2].split()
        except OSError:
            continue
        if entry.name.isdigit() and fields[0] != 'Z' and int(fields[1]) == pid:
            found += [int(entry.name), *offspring(int(entry.name))]
    return found


def running(pid):
    """Return whether a process is there and no zombie."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


@pytest.mark.parametrize('source, mode', [('--video', ()), ('--bag', ('--multi-process',))])
def test_to_the_end_of_the_recording(clip, server, source, mode, tmp_path):
    path = clip if source == '--video' else write_bag(tmp_path / 'drive')
    process = start(source, str(path), '-p', f'cloud.base_url:={server.url}',
                    '--out', str(tmp_path), *mode)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 0, out
    assert 'Traceback' not in out and 'not meaningful' in out
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['answers'] >= 4 and summary['cloud_answers'] >= 1
    # On a busy machine an answer may miss its deadline; nothing else may go wrong.
    assert all('deadline' in text for text in summary['errors_by_message'])


@pytest.mark.parametrize('moment', [0.2, 0.5, 1.0, 2.0, 4.0, 'server', 'answer'])
@pytest.mark.parametrize('mode', [(), ('--multi-process',)])
def test_ctrl_c_at_any_moment(mode, moment):
    """Twice, as launch does; exit code 0, no traceback, nobody left behind."""
    process = start('--mini', *mode)
    if isinstance(moment, float):
        time.sleep(moment)  # the moment is what is tested
    else:
        word = {'server': 'starting', 'answer': 'edge '}[moment]
        for line in process.stdout:
            if line.startswith(word):
                break
    family = offspring(process.pid)
    for _ in range(2):
        try:
            os.killpg(process.pid, signal.SIGINT)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0, out
    assert 'Traceback' not in out and 'KeyboardInterrupt' not in out
    wait_for(lambda: not any(running(pid) for pid in family), 5.0)


@pytest.mark.parametrize('arguments,word', [
    (('run', 'nowhere'), 'driving, hri'),
    (('run', 'driving', '-p', 'edge.thread:=1'), 'did you mean threads'),
    (('run', 'driving', '-p', 'edge.threads'), ':='),
    (('run', 'driving', '-p', 'cloud.model:=no/such'), 'base_url'),
    (('run', 'driving', '-p', 'camera.cameras:=[front]'), "scene.camera is ''"),
    (('run', 'driving', '--video', 'none.mp4', '-p', 'cloud.base_url:=http://127.0.0.1:9/v1'),
     'none.mp4'),
    (('serve', '--model', 'none'), 'neither')])
def test_mistakes_get_one_clear_line(arguments, word):
    done = subprocess.run([*SPOTVLM, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert word in done.stdout + done.stderr and 'Traceback' not in done.stderr


def test_a_killed_node_is_named_and_started_again():
    """The run ended with "the lines above say why", and there was no line."""
    process = start('--mini', '--multi-process', '-p', 'cloud.base_url:=http://127.0.0.1:9/v1')
    try:
        for line in process.stdout:
            if line.startswith('edge '):
                break
        victims = [pid for pid in offspring(process.pid)
                   if b'context' in Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')]
        os.kill(victims[0], signal.SIGKILL)
        said = next(line for line in process.stdout if 'SIGKILL' in line)
        assert said.startswith('context was killed by') and 'started again (1 of 5' in said
        assert any('context' in line and 'activated' in line for line in process.stdout)
        environments = [Path(f'/proc/{pid}/environ').read_bytes() for pid in offspring(process.pid)
                        if b'context' in Path(f'/proc/{pid}/cmdline').read_bytes().split(b'\0')]
        fast_dds = os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp') == 'rmw_fastrtps_cpp'
        assert not fast_dds or b'/fastdds-' in environments[0]  # ports of its own
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_process_is_started_again_until_it_ends_again_and_again(monkeypatch, capsys):
    from spotvlm_ros.config.profiles import load_profile
    from spotvlm_ros.nodes import family as module
    clock, made = [0.0], []
    monkeypatch.setattr(module.time, 'monotonic', lambda: clock[0])

    def process(code, env):
        made.append(SimpleNamespace(
            alive=False, killed=code < 0, end=f'has ended with {code}', stop=lambda: None,
            process=SimpleNamespace(returncode=code)))
        return made[-1]
    for code, lives_s, starts in (-9, 59.0, 6), (-11, 0.0, 6), (1, 0.0, 1), (-9, 61.0, 40):
        with ExitStack() as stack:
            family, why = module.Family(load_profile('driving'), stack), ''
            made.clear()
            family.start('edge', partial(process, code))
            family.start('camera', lambda env: SimpleNamespace(alive=True, stop=lambda: None))
            while not why and len(made) < 40:
                clock[0] += lives_s
                why = family.tend()
        assert len(made) == starts and bool(why) == (starts < 40), code
        assert not why or f'edge has ended with {code}' in why
    assert 'started again (5 of 5 times)' in capsys.readouterr().out


def test_a_node_that_cannot_start_ends_a_run_of_several_processes(server):
    process = start('--video', 'none.mp4', '--multi-process', '-p',
                    f'cloud.base_url:={server.url}')
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and 'started again' not in out
    assert 'camera has ended with exit code 1; the lines above' in out and 'none.mp4' in out


def test_a_run_on_a_topic_says_what_it_waits_for():
    process = start('--topic', '-r', 'image:=/nobody/image', '-p',
                    'cloud.base_url:=http://127.0.0.1:9/v1')
    try:
        said = next(line for line in process.stdout if 'waiting for' in line)
        assert 'frames on /nobody/image: nobody publishes it; ' in said
        # Tests beside this one may publish images, which are then what is named.
        assert '?' in said or 'images are on /' in said
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
