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
"""Whether plain colcon, rosdep and bloom find both packages after `make workspace`."""

import os
import shlex
import shutil
import subprocess
import sys

from catkin_pkg.packages import find_packages, verify_equal_package_versions
import pytest
from spotvlm_ros.system.host import SetupError
from spotvlm_ros.system.workspace import link, main, ROOT, source_folder, write_branch

COLCON = 'import sys; from colcon_core.command import main; sys.exit(main())'
BOTH = {'spotvlm_msgs', 'spotvlm_ros'}
FILES = ('package.xml', 'setup.py', 'setup.cfg', 'spotvlm_msgs/package.xml',
         'spotvlm_msgs/CMakeLists.txt')


def clone(folder):
    """Make a checkout with what colcon and rosdep look at."""
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def colcon_list(workspace):
    """Return what plain colcon finds in a workspace: path and type of each package."""
    environment = {**os.environ, 'COLCON_HOME': str(workspace / 'none')}
    answer = subprocess.run(
        [sys.executable, '-c', COLCON, '--log-base', '/dev/null', 'list'], cwd=workspace,
        env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert 'rror' not in answer.stderr
    lines = [line.split('\t') for line in answer.stdout.splitlines()]
    return {name: (workspace / path, kind) for name, path, kind in lines}


def assert_both_are_found(workspace, checkout):
    found = colcon_list(workspace)
    assert {name: kind for name, (_, kind) in found.items()} == {
        'spotvlm_msgs': '(ros.ament_cmake)', 'spotvlm_ros': '(ros.ament_python)'}
    assert found['spotvlm_ros'][0].samefile(checkout)
    assert found['spotvlm_msgs'][0].samefile(checkout / 'spotvlm_msgs')
    # This is how rosdep finds them; the same package twice is an error to it.
    by_rosdep = find_packages(str(workspace / 'src'))
    assert sorted(package.name for package in by_rosdep.values()) == sorted(BOTH)


def tree(folder):
    """Return all that is in a folder, with what links say."""
    return {path: os.readlink(path) if path.is_symlink() else path.is_dir()
            for path in folder.rglob('*')}


@pytest.mark.parametrize('place, links', [
    ('elsewhere', {'spotvlm_msgs', 'spotvlm_ros'}), ('ws/src/spotvlm', {'spotvlm_msgs'}),
    ('ws/src/spotvlm_ros', {'spotvlm_msgs'}), ('ws/src/perception/spotvlm', {'spotvlm_msgs'})])
def test_both_packages_are_found_wherever_the_checkout_is(tmp_path, place, links):
    checkout, workspace = clone(tmp_path / place), tmp_path / 'ws'
    source = source_folder('' if 'src' in place else str(workspace), checkout)
    assert source == workspace / 'src'
    link(source, checkout)
    assert {path.name for path in source.iterdir() if path.is_symlink()} == links
    assert_both_are_found(workspace, checkout)
    before = tree(tmp_path)
    link(source, checkout)
    assert tree(tmp_path) == before


def test_a_workspace_with_the_checkout_in_it_can_be_moved(tmp_path):
    link(tmp_path / 'ws/src', clone(tmp_path / 'ws/src/spotvlm'))
    (tmp_path / 'ws').rename(tmp_path / 'moved')
    assert_both_are_found(tmp_path / 'moved', tmp_path / 'moved/src/spotvlm')


def test_the_checkout_may_be_linked_into_the_workspace_by_hand(tmp_path):
    checkout = clone(tmp_path / 'code')
    (tmp_path / 'ws/src').mkdir(parents=True)
    (tmp_path / 'ws/src/vlm').symlink_to(checkout)
    link(tmp_path / 'ws/src', checkout)
    assert_both_are_found(tmp_path / 'ws', checkout)


def test_the_command_links_this_checkout(tmp_path, capsys):
    (tmp_path / 'src/loop').mkdir(parents=True)
    (tmp_path / 'src/loop/loop').symlink_to('..')
    assert main([str(tmp_path)]) == 0
    assert '--from-paths src --ignore-src && colcon build' in capsys.readouterr().out
    (tmp_path / 'src/loop/loop').unlink()
    assert_both_are_found(tmp_path, ROOT)


def other_clone(source):
    clone(source / 'other')


def linked_other_clone(source):
    (source / 'spotvlm_ros').symlink_to(clone(source.parent.parent / 'other'))


def folder_in_the_way(source):
    (source / 'spotvlm_msgs').mkdir()
    (source / 'spotvlm_msgs/notes.txt').write_text('mine')


def lost_checkout(source):
    (source / 'spotvlm_msgs').symlink_to('/nowhere/spotvlm_msgs')


def linked_twice(source):
    for name in ('a', 'b'):
        (source / name).symlink_to(source.parent.parent / 'checkout')


def passed_over(source):
    (source / 'COLCON_IGNORE').touch()


def passed_over_in_the_checkout(source):
    (source.parent.parent / 'checkout/spotvlm_msgs/AMENT_IGNORE').touch()


@pytest.mark.parametrize('prepare', [
    other_clone, linked_other_clone, folder_in_the_way, lost_checkout, linked_twice, passed_over,
    passed_over_in_the_checkout])
def test_nothing_is_overwritten_and_the_remedies_help(tmp_path, prepare):
    checkout, source = clone(tmp_path / 'checkout'), tmp_path / 'ws/src'
    source.mkdir(parents=True)
    prepare(source)
    remedy = ''
    for _ in range(3):
        before = tree(tmp_path)
        try:
            link(source, checkout)
            break
        except SetupError as error:
            assert str(tmp_path) in str(error)
            assert tree(tmp_path) == before
            remedy = error.remedy
            subprocess.run(shlex.split(remedy), check=True)
    assert remedy
    assert_both_are_found(tmp_path / 'ws', checkout)
    assert not (tmp_path / 'ws/src/spotvlm_msgs.old').exists() or \
        (tmp_path / 'ws/src/spotvlm_msgs.old/notes.txt').read_text() == 'mine'


@pytest.mark.parametrize('place, words', [
    ('checkout', 'within the package'), ('checkout/ws', 'within the package'),
    ('file', 'Not a directory|File exists')])
def test_places_that_are_no_workspace(tmp_path, place, words):
    checkout = clone(tmp_path / 'checkout')
    (tmp_path / 'file').touch()
    before = tree(tmp_path)
    with pytest.raises(SetupError, match=words) as raised:
        link(source_folder(str(tmp_path / place), checkout), checkout)
    assert 'make workspace WS=~/ws' in raised.value.remedy
    assert tree(tmp_path) == before


def test_a_checkout_that_is_in_no_workspace_asks_for_one(tmp_path):
    with pytest.raises(SetupError, match='not below the src/ of a workspace'):
        source_folder('', tmp_path)
    with pytest.raises(SetupError, match='not the package spotvlm_msgs of a checkout'):
        link(tmp_path / 'ws/src', tmp_path)
    assert not (tmp_path / 'ws').exists()


# --- the branch for bloom and vcs -----------------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in ('AUTHOR', 'COMMITTER'):
        monkeypatch.setenv(f'GIT_{name}_NAME', 'me')
        monkeypatch.setenv(f'GIT_{name}_EMAIL', 'me@example.org')
    checkout = clone(tmp_path / 'checkout')
    git(checkout, 'init', '--quiet')
    git(checkout, 'add', '.')
    git(checkout, 'commit', '--quiet', '--message', 'first')
    return checkout


def git(folder, *arguments):
    return subprocess.run(['git', '-C', folder, *arguments], check=True, text=True,
                          capture_output=True).stdout.strip()


def test_a_clone_of_the_branch_has_both_side_by_side(repository, tmp_path, capsys):
    (repository / 'mine.txt').touch()
    git(repository, 'add', 'mine.txt')
    state = git(repository, 'status', '--porcelain')
    write_branch('release', repository)
    first = git(repository, 'rev-parse', 'release')
    write_branch('release', repository)
    assert git(repository, 'rev-parse', 'release') == first
    assert 'up to date' in capsys.readouterr().out
    assert git(repository, 'status', '--porcelain') == state
    source = tmp_path / 'ws/src'
    git(tmp_path, 'clone', '--quiet', '--branch', 'release', repository, source / 'spotvlm')
    found = colcon_list(tmp_path / 'ws')
    assert set(found) == BOTH and found['spotvlm_msgs'][0] == source / 'spotvlm/spotvlm_msgs'
    assert not (source / 'spotvlm/spotvlm_ros/spotvlm_msgs').exists()
    # bloom looks for packages like this, and wants one version.
    assert verify_equal_package_versions(find_packages(str(source / 'spotvlm')).values())
    # The next release follows the last one.
    git(repository, 'commit', '--quiet', '--message', 'second')
    write_branch('release', repository)
    assert git(repository, 'rev-list', '--parents', '-1', 'release').split()[1:] == [
        first, git(repository, 'rev-parse', 'HEAD')]


def test_a_branch_of_another_kind_is_left_alone(repository):
    git(repository, 'branch', 'work')
    before = git(repository, 'rev-parse', 'work')
    with pytest.raises(SetupError, match='branch work of another kind'):
        write_branch('work', repository)
    assert git(repository, 'rev-parse', 'work') == before
    with pytest.raises(SetupError, match='not a valid|cannot lock|bad ref|refus'):
        write_branch('a..b', repository)
