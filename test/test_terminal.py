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
"""What long commands show: a screen on a terminal, lines that fit and keep coming elsewhere."""

import io
import subprocess
import time
from types import SimpleNamespace

from fakes import wait_for
import pytest
from spotvlm_ros.bench.perf.result import PerfResult, print_results
from spotvlm_ros.system import bootstrap, progress
from spotvlm_ros.system.processes import Child, PYTHON


def test_a_long_command_says_where_it_is_though_nothing_comes_of_it(monkeypatch, capsys):
    """`make bench` in a log said nothing for five minutes."""
    monkeypatch.setattr(progress, 'SILENT_S', 0.05)
    printed = ''

    def said(words):
        nonlocal printed
        printed += capsys.readouterr().out
        return words in printed
    with progress.progress('episodes', 4, every_s=0.0) as done:
        wait_for(lambda: said('0 of 4 episodes, 0 s so far'), 5.0)
        done()
        wait_for(lambda: said('1 of 4 episodes, 0 s so far'), 5.0)
    monkeypatch.setattr(progress, 'SILENT_S', 1e6)
    with progress.progress('episodes', 2, every_s=0.0) as done:
        done()  # long after it was said that there is none yet
        done()
    assert said('2 of 2 episodes, 0 s to go')
    monkeypatch.setattr(progress, 'SILENT_S', 0.05)
    with progress.working('measuring edge'):
        wait_for(lambda: said('measuring edge, 0 s so far'), 5.0)
    assert printed.count('measuring edge ...') == 1 and '\r' not in printed


def test_progress_goes_where_it_is_told_and_is_quiet_where_it_is_told(monkeypatch, capsys):
    out = io.StringIO()
    assert list(progress.tracked('abc', 'letters', 3, out)) == ['a', 'b', 'c']
    monkeypatch.setattr(progress, 'SILENT_S', 0.01)
    with progress.progress('letters', 3, quiet=True):
        time.sleep(0.05)   # in which it would have said something
    assert capsys.readouterr().out == ''


def test_figures_fit_80_columns(capsys):
    """A row of the table was broken into four lines."""
    print_results([
        PerfResult('frame_age_at_start_multiprocess_p95_ms', 7.262, 'ms', 'camera period, 83.3 ms',
                   0.087, 'here'),
        PerfResult('edge_cpu_speedup_over_serve', 3.976, 'times', 'transformers serve on loopback,'
                   ' same prompt, unchanged scene, the same again and again', 3.976, 'here'),
        PerfResult('memory_multiprocess_mb', 891, 'MB resident, all node processes', '', None,
                   'here')])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1] == '    0.087 of: camera period, 83.3 ms' and len(lines) == 6


def test_the_screen_is_for_terminals_with_room_and_has_lines_of_processes_above(monkeypatch):
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    from rich.console import Console
    from spotvlm_ros.nodes import monitor
    node = SimpleNamespace(
        newest={}, cloud={}, status=None, statistics=monitor.RunStatistics(),
        rate_hz=lambda: 0.0, get_clock=lambda: SimpleNamespace(
            now=lambda: SimpleNamespace(nanoseconds=0)))
    shown = io.StringIO()

    def console(**options):
        return Console(file=shown, force_terminal=True, **options)
    for narrow in ({'width': 79}, {'width': 100, '_environ': {'TERM': 'dumb'}}):
        monkeypatch.setattr('rich.console.Console', lambda: console(**narrow))
        assert monitor._live_table(node) is None
    monkeypatch.setattr('rich.console.Console', lambda: console(width=100, height=20))
    table = monitor._live_table(node)
    child = Child([*PYTHON, '-c', 'import sys; print("[warn] low"); sys.stderr.write("bad\\n")'],
                  log=table.log)
    child.process.wait(20)
    table.stop()
    table.wait()
    assert 'waiting for the first answer' in shown.getvalue()
    assert '[warn] low\n' in shown.getvalue() and 'bad\n' in shown.getvalue()


# -- what make setup says ------------------------------------------------------------------------

def test_torch_with_cuda_is_told_where_its_small_build_cannot_be_had(monkeypatch, capsys):
    """It was 5.5 GB in the place of 1.8, without a word."""
    def none(address, timeout):
        raise OSError('no route')
    monkeypatch.setattr(bootstrap.shutil, 'which', lambda name: None)
    monkeypatch.setattr(bootstrap.urllib.request, 'urlopen', none)
    if bootstrap.Path('/dev/nvidia0').exists():
        pytest.skip('has a GPU')
    assert bootstrap.torch_source() == []
    said = capsys.readouterr().out
    assert 'no route' in said and 'CUDA' in said and 'PIP_FIND_LINKS' in said


def test_a_command_that_wheels_do_not_have_is_named(monkeypatch, tmp_path):
    venv = tmp_path / '.venv'
    (venv / 'bin').mkdir(parents=True)
    (venv / 'ros_env.sh').touch()
    monkeypatch.setattr(bootstrap, 'VENV', venv)
    monkeypatch.setattr(bootstrap, 'is_old', lambda: False)
    bootstrap.write_wrappers()
    wrapper = str(venv / 'bin' / 'ros-env')
    lacking = subprocess.run([wrapper, 'ros2', 'topic', 'list'], capture_output=True, text=True,
                             env={'PATH': '/usr/bin:/bin'})
    assert lacking.returncode == 127
    assert 'no command ros2' in lacking.stderr and 'spotvlm run' in lacking.stderr
    assert subprocess.run([wrapper, 'echo', 'a'], capture_output=True).stdout == b'a\n'
