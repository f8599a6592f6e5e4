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
"""What is known of the images without building them; hadolint, in `make lint`, does the rest."""

import os
from pathlib import Path
import re
import shlex
import subprocess

import pytest
from spotvlm_ros.system.requirements import LIBRARIES, SETUPTOOLS, TORCH

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILES = sorted((ROOT / 'docker').glob('*.Dockerfile'))


def instructions(path):
    """Return the instructions of a Dockerfile, name and the rest, without comments."""
    text = re.sub(r'^#.*\n', '', path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r'\\\n', ' ', text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def named(path, name):
    return [rest for word, rest in instructions(path) if word == name]


def test_there_is_one_for_each_distribution_and_for_the_jetson():
    assert [path.name.split('.')[0] for path in DOCKERFILES] == [
        'humble', 'jazzy', 'jetson', 'kilted']


def test_the_images_of_distributions_differ_in_its_name_only():
    kinds = {path.read_text().replace(name, 'NAME').replace(name.capitalize(), 'NAME')
             for path in DOCKERFILES for name in [path.name.split('.')[0]] if name != 'jetson'}
    assert len(kinds) == 1


@pytest.mark.parametrize('path', DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there(path):
    ignored = (ROOT / '.dockerignore').read_text().split()
    sources = [word for rest in named(path, 'COPY') for word in rest.split()[1:-1]]
    assert {'.', 'requirements.lock'} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and source.split('/')[0] not in ignored
    for script in re.findall(r'docker/[\w-]+\.sh', path.read_text()):
        assert os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize('path', DOCKERFILES, ids=lambda path: path.name)
def test_it_ends_as_a_user_who_is_not_root(path):
    words = [word for word, _ in instructions(path)]
    assert named(path, 'USER') == ['robot']
    # All that comes from the checkout is put there and run by that user.
    assert words.index('USER') < words.index('COPY')
    assert all(rest.startswith('--chown=robot ') for rest in named(path, 'COPY'))


@pytest.mark.parametrize('path', DOCKERFILES, ids=lambda path: path.name)
def test_it_has_what_the_distribution_brings_and_the_torch_that_is_tested(path):
    apt, = (rest for rest in named(path, 'RUN') if 'apt-get install' in rest)
    assert {library.rosdep for library in LIBRARIES if library.in_distribution} <= set(apt.split())
    torch, = (rest for rest in named(path, 'ARG') if rest.startswith('TORCH'))
    assert TORCH.requirement in torch or path.name == 'jetson.Dockerfile'
    build = named(path, 'RUN')[-1]
    assert 'make -C ../spotvlm workspace WS=' in build and 'python -m colcon build' in build


@pytest.mark.parametrize('version, locked', [('3.10', False), ('3.12', True)])
def test_what_pip_is_told(tmp_path, version, locked):
    """With a pip that writes down what it is given, and a Python that says which it is."""
    for name in ('requirements.lock', 'spotvlm_ros/system/requirements.py',
                 'docker/install-python.sh'):
        (tmp_path / Path(name).name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / 'bin').mkdir()
    old = int(version == '3.10')
    programs = {'pip': 'echo "$@" >> "$TOLD"',
                'python': 'case "$2" in *numpy*) echo numpy==1.26.4;; '
                          f'*version_info*) exit {old};; *) exec python3 "$@";; esac'}
    for name, text in programs.items():
        (tmp_path / 'bin' / name).write_text(f'#!/bin/sh\n{text}\n')
        (tmp_path / 'bin' / name).chmod(0o755)
    environment = {**os.environ, 'TOLD': str(tmp_path / 'told'),
                   'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}'}
    subprocess.run(['bash', str(tmp_path / 'install-python.sh'), '--find-links', 'x', 'torch==2'],
                   env=environment, check=True, timeout=30)
    told = (tmp_path / 'told').read_text().splitlines()
    common = 'install --no-cache-dir --constraint constraints.txt'
    assert told == [f'{common} --find-links x torch==2', f'{common} --requirement wanted.txt']
    constraints = (tmp_path / 'constraints.txt').read_text().split()
    names = {line.split('==')[0] for line in constraints}
    assert constraints[0] == 'numpy==1.26.4' and sum('numpy=' in line for line in constraints) == 1
    assert 'setuptools' in names and ('transformers' in names) is locked
    assert not {name for name in names if name.startswith(('ros-', 'opencv', 'torch', '#'))}
    line, = re.findall(r'^pip install (.*)$', (ROOT / 'README.md').read_text(), re.MULTILINE)
    assert {'torch', *(tmp_path / 'wanted.txt').read_text().split()} == {
        SETUPTOOLS, *shlex.split(line)}
