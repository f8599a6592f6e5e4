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
"""What is imported, what is declared and what is installed: three lists that must agree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
import configparser
from pathlib import Path
import re
import sys
import xml.etree.ElementTree

from packaging.requirements import Requirement
import pytest

from spotvlm_ros.system.requirements import (
    BROUGHT_BY, extra_module, EXTRAS, LARGE_EXTRAS, LIBRARIES, lock_name, OPENCV, PEERS,
    project_name, requirements, ROS, ROS_OPTIONAL, ROS_WHEELS, TORCH, UV, WHEEL_DISTROS)

ROOT = Path(__file__).resolve().parents[1]
OURS = {'spotvlm_ros', 'spotvlm_msgs'}
# The modules of tests and examples, and what pytest-timeout and pytest-cov do without an import.
HELPERS = {path.stem for folder in ('test', 'examples') for path in (ROOT / folder).glob('*.py')}
PLUGINS = {'pytest-timeout', 'pytest-cov'}


def imports(folder: Path) -> dict[str, list[str]]:
    """Return the third-party modules imported below a folder, in functions too, with the files."""
    users: dict[str, list[str]] = {}
    for path in sorted(folder.rglob('*.py')):
        for name in imported_modules(ast.parse(path.read_text())):
            if name not in sys.stdlib_module_names and name not in OURS:
                users.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return users


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level name of each absolute import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split('.')[0]


def manifest(kind: str) -> set[str]:
    """Return the names that package.xml gives as one kind of dependency."""
    root = xml.etree.ElementTree.parse(ROOT / 'package.xml').getroot()
    return {str(element.text) for element in root.findall(kind)}


def readme_pip_line() -> set[str]:
    """Return the projects that README has a user of a ROS workspace install with pip."""
    line, = re.findall(r'^pip install (.*)$', (ROOT / 'README.md').read_text(), re.MULTILINE)
    return {project_name(word.strip("'")) for word in line.split()}


def test_every_import_is_in_the_list_of_requirements():
    users = {**imports(ROOT / 'spotvlm_ros'), **imports(ROOT / 'launch')}
    listed = {library.module for library in LIBRARIES} | set(BROUGHT_BY) | set(ROS)
    assert set(users) == listed | set(ROS_OPTIONAL) | {
        extra_module(name) for name in [*EXTRAS, *LARGE_EXTRAS]} | set(PEERS), users


def test_package_xml_names_what_is_imported_and_nothing_else():
    wanted = {library.rosdep for library in LIBRARIES if library.rosdep}
    assert manifest('exec_depend') == wanted | set(ROS) | set(ROS_OPTIONAL) | {'spotvlm_msgs'}


def test_the_readmes_pip_line_has_what_a_distribution_lacks():
    assert readme_pip_line() == {project_name(library.requirement)
                                 for library in LIBRARIES if not library.in_distribution}


def test_the_wheels_have_every_ros_package():
    wheels = {project_name(wheel) for wheel in ROS_WHEELS}
    assert {'ros-' + name.replace('_', '-') for name in ROS} <= wheels


def test_tests_import_only_what_is_declared():
    runtime = {library.module for library in LIBRARIES} | {*BROUGHT_BY, *ROS, *ROS_OPTIONAL}
    # These come with colcon, pytest and transformers.
    extra = set(imports(ROOT / 'test')) - runtime - HELPERS - {
        'catkin_pkg', 'packaging', 'safetensors'}
    declared = {re.sub('^python3-', '', name) for name in manifest('test_depend')}
    assert declared == extra | PLUGINS


def locked(distro: str) -> dict[str, str]:
    """Return the version of each project that is installed with a distribution."""
    lines = (ROOT / lock_name(distro)).read_text().splitlines()
    return dict(line.split('==') for line in lines if not line.startswith('#'))


@pytest.mark.parametrize('distro', WHEEL_DISTROS)
def test_the_lock_has_a_version_that_will_do_of_everything(distro):
    for text in [*requirements(distro), TORCH.requirement, UV]:
        wanted = Requirement(text)
        version = locked(distro).get(project_name(text), '')
        assert version and wanted.specifier.contains(version), f'{text}: make lock'


def test_distributions_differ_in_their_own_packages_only():
    rest = [{name: version for name, version in locked(distro).items()
             if not name.startswith('ros-')} for distro in WHEEL_DISTROS]
    assert all(other == rest[0] for other in rest), 'make lock'


def test_import_contracts_name_every_library():
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    forbidden = {name: set(config[f'importlinter:contract:{name}']['forbidden_modules'].split())
                 for name in ('ros', 'method')}
    assert forbidden['ros'] == {*ROS, 'cv_bridge', 'tf2_ros', 'vision_msgs', 'spotvlm_msgs'} - {
        'ament_index_python'}
    assert forbidden['method'] | {'numpy', 'cv2', 'triton'} == {
        *BROUGHT_BY, *(library.module for library in LIBRARIES)}


@pytest.mark.parametrize('source, modules', [
    ('def f():\n    import torch.nn as nn, os', ['torch', 'os']),
    ('from httpx2 import Timeout\nfrom . import near', ['httpx2'])])
def test_imports_in_functions_count(source, modules):
    assert list(imported_modules(ast.parse(source))) == modules


@pytest.mark.parametrize('version, admitted', [
    ('4.7.9', False), ('4.8', True), ('4.14.0.94', True), ('5.0.0', False), ('5.1', False)])
def test_bounds_of_a_requirement(version, admitted):
    assert OPENCV.admits(version) is admitted
    assert next(x for x in LIBRARIES if x.name == 'numpy').admits(version)


def test_what_is_mended_in_one_checkout_is_not_mended_in_the_cache_of_uv():
    """The second checkout on a machine got the include folders of the first."""
    from spotvlm_ros.system.bootstrap import uv_environment
    assert uv_environment({'UV_LINK_MODE': 'hardlink'})['UV_LINK_MODE'] == 'copy'
    assert uv_environment({})['UV_SYSTEM_CERTS'] == 'true'  # a network may have its own authority
    assert uv_environment({'PIP_INDEX_URL': 'https://x/simple'})['UV_DEFAULT_INDEX'] == \
        'https://x/simple'
