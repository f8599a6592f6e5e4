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
"""Launch files: read as source everywhere, started for real where launch is installed."""

import ast
import importlib.util
from pathlib import Path
import signal
import subprocess
import sys

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
ARGUMENTS = {'namespace', 'use_sim_time', 'params_file', 'autostart', 'use_respawn', 'log_level',
             'composed', 'embedded_cloud', 'image'}


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.name)
def test_is_a_launch_file(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert 'generate_launch_description' in {
        n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def test_arguments_are_declared_and_described():
    tree = ast.parse((ROOT / 'launch' / 'spotvlm.launch.py').read_text())
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    declared = {c.args[0].value: c for c in calls if getattr(c.func, 'id', '') == 'declared'}
    used = {c.args[0].value for c in calls if getattr(c.func, 'id', '') == 'LaunchConfiguration'}
    assert set(declared) == ARGUMENTS == used
    assert all(isinstance(c.args[2], (ast.Constant, ast.BinOp)) for c in declared.values())


def test_node_cloud_starts_the_embedded_server_itself():
    config = yaml.safe_load((ROOT / 'config' / 'embedded_cloud.yaml').read_text())
    values = config['/**/cloud']['ros__parameters']
    assert values['base_url'] == '' and values['embedded_threads'] >= 1


@pytest.mark.skipif(importlib.util.find_spec('launch_ros') is None,
                    reason='launch is not on PyPI; it comes with an installed ROS')
@pytest.mark.parametrize('composed', ['true', 'false'])
def test_starts_and_ends_cleanly(composed, tmp_path):
    log = tmp_path / 'log'
    with log.open('w') as out:
        process = subprocess.Popen(
            [sys.executable, '-m', 'ros2cli.cli', 'launch', 'spotvlm_ros', 'driving.launch.py',
             f'composed:={composed}', 'embedded_cloud:=false', 'autostart:=false'],
            stdout=out, stderr=out, start_new_session=True)
        try:
            process.wait(8.0)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        assert process.wait(15.0) == 0
    text = log.read_text()
    assert 'process started' in text and 'Traceback' not in text and 'has died' not in text
