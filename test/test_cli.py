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
"""The command `spotvlm`: its parser, its light start, and what it makes of its arguments."""

import argparse
from pathlib import Path
import re
import subprocess
from types import SimpleNamespace

import pytest
from spotvlm_ros.bench.perf.main import MEASURES, PROGRAMS
from spotvlm_ros.cli import params, run
from spotvlm_ros.cli.main import COMMANDS, ELSEWHERE, main
from spotvlm_ros.system import middleware
from spotvlm_ros.system.processes import PYTHON

SLOW = ('torch', 'transformers', 'rclpy', 'cv2', 'numpy')


def python(code):
    """Run code in a fresh interpreter and return the finished process."""
    return subprocess.run([*PYTHON, '-c', code], capture_output=True, text=True,
                          timeout=60)


def parsed(*argv):
    """Return the arguments of `spotvlm run driving` with some more."""
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return parser.parse_args(['driving', *argv])


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(['--help'])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for name in (*COMMANDS, *ELSEWHERE):
        assert re.search(rf'\n    {name}\s', text)


@pytest.mark.parametrize('name', ['', *COMMANDS])
def test_help_imports_nothing_slow(name):
    argv = [*([name] if name else []), '--help']
    done = python(f"""
import sys
from spotvlm_ros.cli.main import main
try:
    main({argv!r})
except SystemExit:
    assert not set({SLOW!r}) & set(sys.modules), set({SLOW!r}) & set(sys.modules)
""")
    assert done.returncode == 0 and 'usage: spotvlm' in done.stdout, done.stderr


@pytest.mark.parametrize('name', PROGRAMS)
def test_every_program_of_perf_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        main(['perf', name, '--help'])
    assert end.value.code == 0
    assert f'usage: spotvlm perf {name} ' in capsys.readouterr().out


def test_help_of_perf_names_its_measures_and_programs(capsys):
    with pytest.raises(SystemExit) as end:
        main(['perf', '--help'])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert all(f'\n  {name} ' in text for name in PROGRAMS)
    assert ','.join(MEASURES) in text


@pytest.mark.parametrize('argv', [['perf', '--help'], ['perf', 'edge', '--gpu', '--help'],
                                  ['train', '--help']])
def test_what_runs_on_a_machine_with_a_gpu_needs_no_ros(argv):
    done = python(f"""
import sys
missing = ('rclpy', 'spotvlm_msgs', 'psutil', 'openai', 'rosbags', 'json_repair')
sys.modules.update(dict.fromkeys(missing))  # cannot be imported
from spotvlm_ros.cli.main import main
main({argv!r})
""")
    assert done.returncode == 0 and 'usage: spotvlm' in done.stdout, done.stderr


@pytest.mark.parametrize('argv, node, values', [
    (['--video', '/a.avi'], 'camera', {'source': 'video', 'path': '/a.avi'}),
    (['--usb', '2', '--loop'], 'camera',
     {'source': 'usb', 'device': 2, 'loop': True}),
    (['--mini'], 'camera', {'source': 'mini'}),
    (['--topic'], 'camera', {'source': 'topic'}),
    (['--emulate-delay', '0'], 'cloud', {'emulated_delay_median_s': 0.0}),
    (['--record', '/r'], 'context', {'record_dir': '/r'})])
def test_arguments_of_run_become_parameters(argv, node, values):
    assert run._overrides(parsed(*argv))[node] == values


def test_params_checks_files_up_to_the_first_that_is_wrong(tmp_path, capsys):
    good, bad = Path(__file__).parents[1] / 'config' / 'driving.yaml', tmp_path / 'bad.yaml'
    bad.write_text('/**/edge:\n  ros__parameters:\n    treads: 2\n')
    parser = argparse.ArgumentParser()
    params.add_arguments(parser)
    assert params.execute(parser.parse_args([str(good)])) == 0
    assert params.execute(parser.parse_args([str(good), str(bad), str(good)])) == 1
    out, err = capsys.readouterr()
    assert out.count('fine') == 2 and 'treads' in err
    bad.write_text('/**/edge:\n  ros__parameters:\n    action: {rate_hz: 2}\n')
    assert params.execute(parser.parse_args([str(bad), '--profile', 'driving'])) == 0
    assert params.execute(parser.parse_args([str(bad)])) == 0
    assert capsys.readouterr().out.count('fine, laid over driving\n') == 2  # hri has no action
    bad.write_text('/**/edge:\n  ros__parameters:\n    nothing: {rate_hz: 2}\n')
    assert params.execute(parser.parse_args([str(bad)])) == 1
    assert '--profile NAME' in capsys.readouterr().err


def test_params_takes_every_file_that_the_project_has_and_shows(tmp_path, capsys):
    """Files that are laid over a profile were refused, those of the README among them."""
    root = Path(__file__).parents[1]
    files = [*(root / 'config').rglob('*.yaml')]
    for document in [root / 'README.md', *(root / 'docs').glob('*.md')]:
        blocks = re.findall(r'^```yaml\n(.*?)^```', document.read_text(), re.M | re.S)
        for n, text in enumerate(blocks):
            if 'ros__parameters' in text:
                files.append(tmp_path / f'{document.stem}-{n}.yaml')
                files[-1].write_text(text)
    files = [f for f in files if 'ros__parameters' in f.read_text()]
    parser = argparse.ArgumentParser()
    params.add_arguments(parser)
    assert params.execute(parser.parse_args([str(f) for f in files])) == 0, capsys.readouterr()
    assert capsys.readouterr().out.count(': fine') == len(files) > 8


@pytest.mark.parametrize('argv', [['doctor'], ['run', 'driving'], ['ask', 'What?'],
                                  ['node', 'camera']])
def test_a_middleware_that_is_not_installed_is_named(argv, monkeypatch):
    """The process ended with code 102 and a line of rcl (ros2/ros2#908)."""
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_none_cpp')
    done = python(f"""
import sys
from spotvlm_ros.cli.main import main
sys.exit(main({argv!r}))
""")
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert 'RMW_IMPLEMENTATION is rmw_none_cpp, which is not installed' in said
    assert 'unset RMW_IMPLEMENTATION' in said
    assert argv != ['doctor'] or 'required, not there: ROS 2' in said  # and it went on


@pytest.mark.parametrize('argv', [['doctor'], ['run', 'driving'], ['ask', 'What?'],
                                  ['node', 'camera']])
def test_a_full_shared_memory_is_told_before_it_ends_the_process(argv):
    """The process died of SIGBUS; on a small one that is really full."""
    fill = 'mount -t tmpfs -o size=100k none /dev/shm && (cat /dev/zero > /dev/shm/fill; "$@")'
    own = ['unshare', '-m', 'sh', '-c']
    if subprocess.run([*own, 'mount -t tmpfs none /dev/shm'], capture_output=True).returncode:
        pytest.skip('may not mount a file system of its own')
    done = subprocess.run(
        [*own, fill, 'sh', *PYTHON, '-m', 'spotvlm_ros.cli', *argv],
        capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert '/dev/shm is full: 0 kB are free' in said and '--shm-size' in said


@pytest.mark.parametrize('free, environment, needed', [
    (0, {}, '1049'), (10**6, {}, '1049'), (2**20, {}, ''),
    (10**6, {'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4'}, ''),
    (10**6, {'FASTDDS_BUILTIN_TRANSPORTS': 'LARGE_DATA'}, '1049'),
    (10**4, {'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4'}, '16')])
def test_shared_memory_that_will_do(monkeypatch, free, environment, needed):
    monkeypatch.setattr(middleware.shutil, 'disk_usage', lambda path: SimpleNamespace(free=free))
    problem = middleware.middleware_problem(environment)
    assert bool(problem) == bool(needed)
    assert problem is None or f'of the {needed} kB' in problem[0]
    assert problem is None or ('UDPv4' in problem[1]) == (free >= 10**6)


def test_without_shared_memory_there_is_another_way(monkeypatch, tmp_path):
    monkeypatch.setattr(middleware, 'SHARED_MEMORY', tmp_path / 'none')
    assert middleware.middleware_problem({}) is None
