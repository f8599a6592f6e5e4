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
"""What ``make lint`` runs: the rules of the ament linters, mypy, XML, licence and version."""

from __future__ import annotations

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import time
from typing import Callable
import xml.etree.ElementTree

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('spotvlm_ros', 'launch', 'test', 'setup.py')
TYPED = ('spotvlm_ros/method', 'spotvlm_ros/edge', 'spotvlm_ros/cloud',
         'spotvlm_ros/system/bootstrap.py', 'spotvlm_ros/system/doctor.py')
MANIFESTS = ('package.xml', 'spotvlm_msgs/package.xml')
# ament_copyright knows a licence by its whole text only; the SPDX line is for other tools.
HEADER = '''\
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
'''
# ament_pep257 takes every rule of pydocstyle but these.
PEP257_IGNORED = 'D100,D101,D102,D103,D104,D105,D106,D107,D203,D212,D404'


def python_files() -> list[Path]:
    """Return every Python file of the project."""
    found: list[Path] = []
    for name in SOURCES:
        path = ROOT / name
        found += sorted(path.rglob('*.py')) if path.is_dir() else [path] * path.is_file()
    return found


def tool(module: str, *arguments: str) -> str:
    """Run a Python tool, return its output if it found something and '' otherwise."""
    answer = subprocess.run([sys.executable, '-m', module, *arguments], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return '' if answer.returncode == 0 else answer.stdout or f'exit code {answer.returncode}'


def flake8() -> str:
    """Run flake8 with ament_flake8's settings, which are in setup.cfg."""
    return tool('flake8', *map(str, python_files()))


def pep257() -> str:
    """Run pydocstyle as ament_pep257 does."""
    return tool('pydocstyle', f'--ignore={PEP257_IGNORED}', *map(str, python_files()))


def mypy() -> str:
    """Run mypy on what has to be fully typed; its settings are in setup.cfg."""
    present = [name for name in TYPED
               if any((ROOT / name).glob('*.py')) or (ROOT / name).is_file()]
    return tool('mypy', *present)


def xml_valid() -> str:
    """Check both package.xml: well-formed, and complete as catkin_pkg sees it."""
    from catkin_pkg.package import InvalidPackage, parse_package
    problems = []
    for name in MANIFESTS:
        if shutil.which('xmllint'):
            answer = subprocess.run(['xmllint', '--noout', name], cwd=ROOT, text=True,
                                    capture_output=True)
            problems.append(answer.stderr)
        try:
            found: list[str] = []
            parse_package(ROOT / name, warnings=found).validate(warnings=found)
            problems += found
        except (InvalidPackage, xml.etree.ElementTree.ParseError) as error:
            problems.append(f'{name}: {error}')
    return '\n'.join(filter(None, problems))


def headers() -> str:
    """Check that every source file starts with copyright and licence, as ament_copyright does."""
    return '\n'.join(f'{path.relative_to(ROOT)}: no licence header' for path in python_files()
                     if not path.read_text().startswith(HEADER))


def licence_and_version() -> str:
    """Check that all places name the same licence and the same version."""
    setup = (ROOT / 'setup.py').read_text()
    init = (ROOT / 'spotvlm_ros' / '__init__.py').read_text()
    versions = {'setup.py': one(r"version='([^']+)'", setup),
                '__init__.py': one(r"__version__ = '([^']+)'", init)}
    licences = {'setup.py': one(r"license='([^']+)'", setup)}
    if not re.match(r'\s*Apache License\s+Version 2\.0', (ROOT / 'LICENSE').read_text()):
        licences['LICENSE'] = 'not Apache-2.0'
    for name in MANIFESTS:
        manifest = xml.etree.ElementTree.parse(ROOT / name).getroot()
        versions[name] = manifest.findtext('version', '')
        licences[name] = manifest.findtext('license', '')
    problems = []
    if len(set(versions.values())) != 1:
        problems.append(f'versions differ: {versions}')
    if set(licences.values()) != {'Apache-2.0'}:
        problems.append(f'licences differ: {licences}')
    newest = re.search(r'^(\d+\.\d+\.\d+)', (ROOT / 'CHANGELOG.rst').read_text(), re.MULTILINE)
    if newest is None or newest[1] != versions['setup.py']:
        problems.append('CHANGELOG.rst does not start with the version in setup.py')
    return '\n'.join(problems)


def one(pattern: str, text: str) -> str:
    """Return the group of the first match, '' without one."""
    found = re.search(pattern, text)
    return found[1] if found else ''


CHECKS: tuple[Callable[[], str], ...] = (
    flake8, pep257, mypy, xml_valid, headers, licence_and_version)


def main() -> int:
    """Run all checks; return 0 if none found anything."""
    # The tools see what is in the checkout, not what colcon linked.
    os.environ.pop('PYTHONPATH', None)
    failed = 0
    for check in CHECKS:
        start = time.monotonic()
        problem = check().strip()
        failed += bool(problem)
        verdict = 'FAILED' if problem else 'ok'
        print(f'{check.__name__:20}{verdict:8}{time.monotonic() - start:5.1f} s', flush=True)
        if problem:
            print('\n'.join(f'    {line}' for line in problem.splitlines()), flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
