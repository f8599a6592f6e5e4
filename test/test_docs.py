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
"""What the documents name is there: files, folders, modules, commands, make targets."""

from pathlib import Path
import re

import pytest
from spotvlm_ros.bench.perf.main import PROGRAMS
from spotvlm_ros.cli.main import COMMANDS, ELSEWHERE
from spotvlm_ros.config.profiles import check_cameras, check_file, load_profile
from spotvlm_ros.config.spec import ParameterError

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')])
TOP = {path.name for path in ROOT.iterdir()}
# Made by the commands that the text around them names.
MADE = {'out', '.venv', 'build', 'install', 'log'}


def code(text: str) -> list[str]:
    """Return what a document has in backticks, in blocks and in links to files."""
    blocks = re.findall(r'^```\w*\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    text = re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r'\]\((?!https?:|#)([^)#]+)[^)]*\)', text)
    return [*blocks, *re.findall(r'`([^`]+)`', text), *links]


def paths(text: str) -> set[str]:
    """Return the paths of this repository that a document names, and its Python files."""
    words = {word.strip('.,;:()\'"') for part in code(text) for word in part.split()}
    return {word for word in words if re.fullmatch(r'\w[\w./]*\.py', word) or (
        '/' in word and word.split('/')[0] in TOP - MADE)}


def exists(path: str) -> bool:
    """Return whether there is such a file or folder, or an interface of that type."""
    interface = path.replace('/', '/msg/') + '.msg' if path.count('/') == 1 else path
    return any(any(ROOT.glob(name)) for name in (path.rstrip('/'), interface, f'{path}.srv')) or (
        path.endswith('.py') and any(
            any((ROOT / folder).rglob(path)) for folder in ('spotvlm_ros', 'launch')))


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_every_path_exists(document):
    assert [path for path in sorted(paths(document.read_text())) if not exists(path)] == []


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document):
    links = re.findall(r'\]\((?!https?:|#|mailto:)([^)#]+)', document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_every_module_exists(document):
    modules = set(re.findall(r'python3? -m (spotvlm_ros[\w.]*)', document.read_text()))
    missing = [name for name in sorted(modules)
               if not list(ROOT.glob(name.replace('.', '/') + '*'))]
    assert not missing


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_exists(document):
    targets = set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    named = {target for part in code(document.read_text())
             for words in re.findall(r'^make((?: [a-z]+)+)', part, re.MULTILINE)
             for target in words.split()}
    assert named <= targets


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_every_command_exists(document):
    command = re.compile(r'(?:^|bin/)spotvlm ((?:perf )?[a-z][\w-]*)', re.MULTILINE)
    named = {words for part in code(document.read_text()) for words in command.findall(part)}
    known = {*COMMANDS, *ELSEWHERE, *(f'perf {name}' for name in PROGRAMS)}
    assert named <= known


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_every_test_named_exists(document):
    tests = '\n'.join(path.read_text() for path in (ROOT / 'test').glob('test_*.py'))
    named = set(re.findall(r'`(test_\w+)`', document.read_text()))
    assert [name for name in sorted(named) if f'def {name}(' not in tests] == []


def test_the_params_files_of_the_readme_run_as_it_says(tmp_path):
    """Laid over a profile whose queries one of them replaces: what the nodes are given is good."""
    given = re.findall(r'^```yaml\n# [^\n]*spotvlm run (\w+) [^\n]*\n(.*?)^```',
                       (ROOT / 'README.md').read_text(), re.MULTILINE | re.DOTALL)
    assert len(given) == 2
    queries = set()
    for number, (name, text) in enumerate(given):
        path, whole = tmp_path / f'{number}.yaml', tmp_path / f'{number}-whole.yaml'
        path.write_text(text)
        profile = load_profile(name, [path])
        whole.write_text(profile.params_file())
        assert check_file(whole)['edge']['model'] == profile.edge.model
        queries |= {q.id for q in profile.queries()}
        profile = profile.with_values(['camera.source:=topic'])
        check_cameras(profile)
        with pytest.raises(ParameterError, match="edge.cameras is 'side', and cameras of node"):
            check_cameras(profile.with_values(['edge.cameras:=[side]']))
    assert queries == {'scene', 'action', 'ahead', 'behind'}


def test_paths_are_found_in_text_blocks_and_links():
    text = 'See `test/lint.py`, [it](docs/none.md).\n```\nls config/none.yaml  # out/x\n```\n'
    assert paths(text) == {'test/lint.py', 'docs/none.md', 'config/none.yaml'}
