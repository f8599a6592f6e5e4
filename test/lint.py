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
"""
What ``make lint`` runs: the linters of ament, ruff, mypy, imports, sizes, manifests, licence.

``python test/lint.py NAME ...`` runs some of the checks only, by the names it prints.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
import io
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'spotvlm_ros'
SOURCES = ('spotvlm_ros', 'examples', 'launch', 'test', 'docs', 'setup.py')
MANIFESTS = ('package.xml', 'spotvlm_msgs/package.xml')

# The house is kept small on purpose; ruff.toml has the limit for parameters. Lines count from the
# end of the licence header.
FUNCTION_LINES = 50
FILE_LINES = 450
PACKAGE_LINES = 50_700
ANY_LINES = 80


def python_files() -> list[Path]:
    """Return every Python file of the project."""
    files: list[Path] = []
    for name in SOURCES:
        path = ROOT / name
        files += sorted(path.rglob('*.py')) if path.is_dir() else [path] * path.is_file()
    return files


def tool(*command: str) -> str:
    """Run a tool of this environment; return its output if it found something, '' otherwise."""
    program = Path(sys.executable).with_name(command[0])
    answer = subprocess.run([str(program), *command[1:]], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # The linters of ament also list the files they have read.
    text = re.sub(r'^(checking |\* |Checked files).*\n', '', answer.stdout, flags=re.MULTILINE)
    return '' if answer.returncode == 0 else text or f'exit code {answer.returncode}'


def ament_flake8() -> str:
    """Check layout, quotes and the order of imports."""
    return tool('ament_flake8', '--linelength', '99', *SOURCES)


def ament_pep257() -> str:
    """Check docstrings."""
    return tool('ament_pep257', *SOURCES)


def ruff() -> str:
    """Look for mistakes, old idioms and long lists of parameters; ruff.toml has the rules."""
    return tool('ruff', 'check', '--quiet', '--output-format=concise', '.')


def mypy() -> str:
    """Check the types of package and examples; setup.cfg has the settings."""
    return tool('mypy', 'spotvlm_ros', 'examples')


def imports() -> str:
    """Check that imports point down, have no circles, and load what is for a GPU on one only."""
    problems = [tool('lint-imports')]
    for path in sorted((PACKAGE / 'edge').glob('*.py')):
        problems += [f'{path.relative_to(ROOT)}:{node.lineno}: gpu is not imported in a function'
                     for node in ast.parse(path.read_text()).body
                     if isinstance(node, ast.ImportFrom)
                     and 'gpu' in f'{node.module}.{node.names[0].name}'.split('.')]
    return '\n'.join(filter(None, problems))


def sizes() -> str:
    """Check the lengths of functions, files and the package, and how often it says Any."""
    problems: list[str] = []
    lines_of_all = any_lines = 0
    for path in sorted(PACKAGE.rglob('*.py')):
        text, name = path.read_text(), path.relative_to(ROOT)
        lines = text.removeprefix(licence_header()).splitlines()
        lines_of_all += len(lines)
        any_lines += sum(bool(re.search(r'\bAny\b', line)) for line in lines)
        if len(lines) > FILE_LINES:
            problems.append(f'{name}: {len(lines)} lines, more than {FILE_LINES}')
        problems += [f'{name}:{function.lineno}: {function.name}() has {length} lines, '
                     f'more than {FUNCTION_LINES}'
                     for function, length in functions(text) if length > FUNCTION_LINES]
    if lines_of_all > PACKAGE_LINES:
        problems.append(f'{lines_of_all} lines in the package, more than {PACKAGE_LINES}')
    if any_lines >= ANY_LINES:
        problems.append(f'{any_lines} lines with Any in the package, not below {ANY_LINES}')
    return '\n'.join(problems)


def functions(text: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Yield each function of a source, methods too, with its number of lines."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node, (node.end_lineno or node.lineno) - node.lineno + 1


def licence_header() -> str:
    """Return the header that every source file has: that of this one."""
    # The whole text of the licence, as ament_copyright knows it by nothing less.
    return Path(__file__).read_text().partition('"""')[0]


def headers() -> str:
    """Check that every source file starts with copyright and licence."""
    return '\n'.join(f'{path.relative_to(ROOT)}: no licence header' for path in python_files()
                     if not path.read_text().startswith(licence_header()))


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
            warnings: list[str] = []
            parse_package(ROOT / name, warnings=warnings).validate(warnings=warnings)
            problems += warnings
        except (InvalidPackage, xml.etree.ElementTree.ParseError) as error:
            problems.append(f'{name}: {error}')
    return '\n'.join(filter(None, problems))


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
    return '\n'.join(problems)


def changelogs() -> str:
    """Check that bloom can read the changelog of each package, and knows all of its versions."""
    from catkin_pkg.changelog import DuplicateVersionsException, get_changelog_from_path
    problems: list[str] = []
    for name in MANIFESTS:
        path = (ROOT / name).with_name('CHANGELOG.rst')
        manifest = xml.etree.ElementTree.parse(ROOT / name).getroot()
        package, version = manifest.findtext('name', ''), manifest.findtext('version', '')
        noise = io.StringIO()
        try:
            text = path.read_text()
            with redirect_stderr(noise):
                log = get_changelog_from_path(path)
        except (OSError, DuplicateVersionsException) as error:
            problems.append(f'{path.relative_to(ROOT)}: {error or "a version twice"}')
            continue
        title, *sections = re.findall(r'^(\S.*)\n[-^]{3,}$', text, re.MULTILINE) or ['']
        said = [words.split()[0] for words in sections]
        if said[:1] == ['Forthcoming']:
            del said[0]
        read = [number for number, _, _ in log.foreach_version(reverse=True)]
        wrong = {'title': title != f'Changelog for package {package}',
                 f'version (date) of one of {said}': said != read,
                 f'{version} is not the newest': read[:1] != [version]}
        problems += [f'{path.relative_to(ROOT)}: {what}' for what in wrong if wrong[what]]
        problems += noise.getvalue().splitlines()
    return '\n'.join(problems)


def dockerfiles() -> str:
    """Check the Dockerfiles, and the shell in them."""
    return tool('hadolint', *(str(path) for path in sorted(ROOT.glob('docker/*.Dockerfile'))))


def one(pattern: str, text: str) -> str:
    """Return the group of the first match, '' without one."""
    match = re.search(pattern, text)
    return match[1] if match else ''


CHECKS: tuple[Callable[[], str], ...] = (
    ruff, ament_flake8, ament_pep257, mypy, imports, sizes, xml_valid, headers,
    licence_and_version, changelogs, dockerfiles)


def main(names: list[str]) -> int:
    """Run all checks or those named; return 0 if none found anything."""
    # The tools see what is in the checkout, not what colcon linked.
    os.environ.pop('PYTHONPATH', None)
    failed = 0
    for check in [c for c in CHECKS if not names or c.__name__ in names]:
        start = time.monotonic()
        problem = check().strip()
        failed += bool(problem)
        verdict = 'FAILED' if problem else 'ok'
        print(f'{check.__name__:20}{verdict:8}{time.monotonic() - start:5.1f} s', flush=True)
        if problem:
            print('\n'.join(f'    {line}' for line in problem.splitlines()), flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
