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
Lay both packages of this checkout side by side, as colcon, rosdep, vcs and bloom want them.

None of them looks below a package, and the root of the checkout is one. Needs nothing but a
Python: ``make workspace WS=~/ws``, or ``python3 -m spotvlm_ros.system.workspace ~/ws``, puts links
into ``~/ws/src``; ``--branch release`` writes a branch that has the two as folders, with git.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import shlex
import subprocess
import sys
import tempfile
from xml.etree import ElementTree

from .host import ROOT, SetupError

# The packages, and their folders in the checkout.
FOLDERS = {'spotvlm_msgs': 'spotvlm_msgs', 'spotvlm_ros': '.'}
# colcon, rosdep and bloom pass over a folder with one of these in it.
IGNORED_BY = ('AMENT_IGNORE', 'CATKIN_IGNORE', 'COLCON_IGNORE')


def main(arguments: Sequence[str] | None = None) -> int:
    """Link the packages into a workspace, or write the branch."""
    parser = argparse.ArgumentParser(
        prog='python3 -m spotvlm_ros.system.workspace',
        description='Lay both packages side by side, where colcon, rosdep and bloom find them.')
    parser.add_argument('workspace', nargs='?', default='',
                        help='the workspace; without it, the one in whose src/ this checkout is')
    parser.add_argument('--branch', metavar='NAME', default='',
                        help='write the last commit to a branch with both packages as folders')
    given = parser.parse_args(arguments)
    try:
        if given.branch:
            write_branch(given.branch)
        else:
            link(source_folder(given.workspace))
    except SetupError as error:
        print(f'workspace: {error}\n  to fix it: {error.remedy}', file=sys.stderr)
        return 1
    return 0


# --- links ----------------------------------------------------------------------------------


def source_folder(workspace: str, root: Path = ROOT) -> Path:
    """Return the src/ of a workspace, '' for the one that the checkout is in."""
    if not workspace:
        for folder in root.parents:
            if folder.name == 'src':
                return folder
        raise SetupError(f'this checkout, {root}, is not below the src/ of a workspace',
                         'name the workspace: make workspace WS=~/ws')
    path = Path(workspace).expanduser().resolve()
    return path if path.name == 'src' else path / 'src'


def link(source: Path, root: Path = ROOT) -> None:
    """Make the links that are missing in the src/ of a workspace; touch nothing else."""
    folders = {name: (root / folder).resolve() for name, folder in FOLDERS.items()}
    check(source, folders)
    there = packages_below(source)
    missing = [name for name in folders if not is_there(name, folders[name], there, source)]
    try:
        source.mkdir(parents=True, exist_ok=True)
        for name in missing:
            inside = source.parent in folders[name].parents
            # Relative within the workspace, which then can be moved or mounted elsewhere.
            target = os.path.relpath(folders[name], source) if inside else str(folders[name])
            (source / name).symlink_to(target)
    except OSError as error:
        raise SetupError(
            f'{error.filename2 or error.filename}: {error.strerror}',
            'name a workspace that you may write to: make workspace WS=~/ws') from None
    for name, places in sorted(packages_below(source).items()):
        if name in folders:
            print(f'{name}: {places[0]}{" (new)" if name in missing else ""}')
    print(f'now: cd {shlex.quote(str(source.parent))} && rosdep install --from-paths src '
          '--ignore-src && colcon build')


def check(source: Path, folders: dict[str, Path]) -> None:
    """Check that links in this src/ would be found and lead to packages."""
    for name, folder in folders.items():
        if not (folder / 'package.xml').is_file():
            raise SetupError(f'{folder} is not the package {name} of a checkout',
                             'run this in a clone of the repository')
        if folder == source or folder in source.parents:
            raise SetupError(f'{source} is within the package {name}, where colcon does not look',
                             'name a workspace outside this checkout: make workspace WS=~/ws')
    for folder in (source.parent, source, *folders.values()):
        for name in IGNORED_BY:
            if os.path.lexists(folder / name):
                raise SetupError(f'colcon passes over {folder}: there is a {name} in it',
                                 f'rm {shlex.quote(str(folder / name))}')


def is_there(name: str, folder: Path, there: dict[str, list[Path]], source: Path) -> bool:
    """Return whether colcon finds a package in a src/ already, False if a link can be made."""
    for path in there.get(name, []):
        if path.resolve() != folder:
            raise SetupError(f'{path} is another {name}', pass_over(path))
    # rosdep takes the same folder by two ways for two packages.
    if len(there.get(name, [])) > 1:
        path = min(there[name], key=lambda path: not path.is_symlink())
        raise SetupError(f'{name} is there {len(there[name])} times: '
                         f'{", ".join(map(str, there[name]))}', pass_over(path))
    path = source / name
    if name not in there and os.path.lexists(path):
        remedy = f'mv {shlex.quote(str(path))} {shlex.quote(f"{path}.old")}'
        raise SetupError(f'{path} is in the way, and is not the package {name}',
                         remedy if os.path.exists(path) else pass_over(path))
    return name in there


def pass_over(path: Path) -> str:
    """Return the command that keeps colcon from a folder, or takes a link to it away."""
    return (f'rm {shlex.quote(str(path))}' if path.is_symlink() else
            f'touch {shlex.quote(str(path / "COLCON_IGNORE"))}')


def packages_below(source: Path) -> dict[str, list[Path]]:
    """Return where colcon and rosdep find packages below a folder, by name."""
    packages: dict[str, list[Path]] = {}
    seen: set[str] = set()
    for name, folders, files in os.walk(source, followlinks=True):
        real = os.path.realpath(name)
        if real in seen or set(IGNORED_BY) & {*folders, *files}:
            folders.clear()
        elif 'package.xml' in files:
            folders.clear()
            packages.setdefault(package_name(Path(name)), []).append(Path(name))
        else:
            seen.add(real)
            folders[:] = sorted(folder for folder in folders if not folder.startswith('.'))
    return packages


def package_name(folder: Path) -> str:
    """Return the name of the package in a folder, '' if its package.xml cannot be read."""
    try:
        return (ElementTree.parse(folder / 'package.xml').findtext('name') or '').strip()
    except (OSError, ElementTree.ParseError):
        return ''


# --- branch ---------------------------------------------------------------------------------


def write_branch(branch: str, root: Path = ROOT) -> None:
    """Put the last commit on a branch, packages as folders; what is checked out stays as it is."""
    before = git(root, 'for-each-ref', '--format=%(objectname)', f'refs/heads/{branch}')
    if before and top_of(root, before) != sorted(FOLDERS):
        raise SetupError(f'there is a branch {branch} of another kind',
                         'name another one: --branch release')
    head = git(root, 'rev-parse', 'HEAD')
    with tempfile.TemporaryDirectory() as folder:
        index = f'{folder}/index'
        git(root, 'read-tree', '--prefix=spotvlm_ros/', head, index=index)
        git(root, 'rm', '-rfq', '--cached', 'spotvlm_ros/spotvlm_msgs', index=index)
        git(root, 'read-tree', '--prefix=spotvlm_msgs/', f'{head}:spotvlm_msgs', index=index)
        tree = git(root, 'write-tree', index=index)
    if before and git(root, 'rev-parse', f'{before}^{{tree}}') == tree:
        print(f'branch {branch} is up to date')
        return
    parents = [word for parent in (before, head) if parent for word in ('-p', parent)]
    commit = git(root, 'commit-tree', tree, *parents, '-m',
                 f'Both packages side by side, as of {head[:12]}')
    git(root, 'update-ref', f'refs/heads/{branch}', commit, before or '0' * 40)
    print(f'branch {branch} is at {commit[:12]}: git push origin {branch}')


def top_of(root: Path, commit: str) -> list[str]:
    """Return the names of what a commit has in its root."""
    return sorted(git(root, 'ls-tree', '--name-only', commit).splitlines())


def git(root: Path, *arguments: str, index: str = '') -> str:
    """Return what git prints, with an index of its own if named."""
    environment = {**os.environ, **({'GIT_INDEX_FILE': index} if index else {})}
    try:
        answer = subprocess.run(['git', '-C', str(root), *arguments], env=environment, text=True,
                                capture_output=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise SetupError('git is not installed', 'sudo apt-get install -y git') from None
    if answer.returncode != 0:
        raise SetupError(f'git {shlex.join(arguments)}: {answer.stderr.strip()}',
                         'run this in a clone with git, with user.name and user.email set')
    return answer.stdout.strip()


if __name__ == '__main__':
    sys.exit(main())
