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
"""SpotBench finds its files wherever it is installed, and nobody else's."""

from __future__ import annotations

import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from spotvlm_ros.bench.spotbench import main

ROOT = Path(__file__).resolve().parents[1]


def test_a_profile_is_found_where_the_package_is_installed_without_symlinks(tmp_path):
    """`spotvlm bench --bag` looked the profile up beside the source, where setup.py puts none."""
    pytest.importorskip('ament_index_python')
    site, share = tmp_path / 'site-packages', tmp_path / 'share'
    shutil.copytree(ROOT / 'spotvlm_ros', site / 'spotvlm_ros',
                    ignore=shutil.ignore_patterns('*.safetensors', '__pycache__'))
    shutil.copytree(ROOT / 'config', share / 'spotvlm_ros' / 'config')
    index = share / 'ament_index' / 'resource_index' / 'packages'
    index.mkdir(parents=True)
    (index / 'spotvlm_ros').touch()
    code = ('import spotvlm_ros\n'
            'from spotvlm_ros.bench.spotbench.own_data import facts_query\n'
            'print(spotvlm_ros.__file__, facts_query("driving").id)')
    found = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=100,
        env=os.environ | {'PYTHONPATH': f'{site}:{os.environ.get("PYTHONPATH", "")}',
                          'AMENT_PREFIX_PATH': str(tmp_path)})
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(site / 'spotvlm_ros' / '__init__.py'), 'scene']


def test_photographs_are_only_taken_from_where_the_user_says(monkeypatch):
    """A folder of the developer's own machine was taken where it existed."""
    monkeypatch.setattr(Path, 'is_dir', lambda self: True)
    monkeypatch.delenv(main.HANDS_ENV, raising=False)
    assert main.hands_folder(None) is None
    monkeypatch.setenv(main.HANDS_ENV, '/from/environment')
    assert main.hands_folder(None) == Path('/from/environment')
    assert main.hands_folder(Path('/named')) == Path('/named')
