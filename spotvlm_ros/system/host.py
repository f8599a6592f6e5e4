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
"""What this host has: interpreters, build tools, a ROS 2 sourced in the shell."""

from __future__ import annotations

from collections.abc import Iterable
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys
import time

from .requirements import DISTRO, WHEEL_DISTROS

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / '.venv'
# Where ROS 2 comes from.
SOURCED, WHEELS = 'sourced', 'wheels'
ROS_NEEDED = (
    'rclpy', 'std_msgs', 'sensor_msgs', 'diagnostic_msgs', 'lifecycle_msgs',
    'ament_cmake', 'rosidl_default_generators',
)
ROS_INDEX = 'share/ament_index/resource_index/packages'
WHEEL_PYTHONS = ((3, 11), (3, 12))
OLDEST = (3, 10)  # that of Humble, beside a sourced one
PATH_VARIABLES = (
    'AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH', 'COLCON_PREFIX_PATH', 'LD_LIBRARY_PATH',
    'PATH', 'PYTHONPATH',
)
ROS_VARIABLES = ('ROS_DISTRO', 'ROS_VERSION', 'ROS_PYTHON_VERSION')
# Makes the wheels' start-up hook do nothing; see bootstrap.write_environment().
WHEELS_GUARD = '_ROS_WHEELS_BOOTSTRAP_COMPLETE'
STARTED = time.monotonic()


class SetupError(Exception):
    """Something that the user has to fix, with the command that fixes it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


def say(text: str) -> None:
    """Print one line of progress with the time since the start."""
    print(f'[{time.monotonic() - STARTED:5.1f} s] {text}', flush=True)


def sourced_prefix() -> str:
    """Return where the ROS 2 sourced in this shell has rclpy, '' without one."""
    if not os.environ.get('ROS_DISTRO'):
        return ''
    return next((prefix for prefix in foreign(os.environ.get('AMENT_PREFIX_PATH', ''))
                 if (Path(prefix) / ROS_INDEX / 'rclpy').exists()), '')


def foreign(path_list: str) -> list[str]:
    """Return the entries of a path list that lie outside this checkout."""
    return [entry for entry in path_list.split(':')
            if entry and ROOT not in (Path(entry), *Path(entry).parents)]


def outer_environment(keep_ros: bool) -> dict[str, str]:
    """Return our environment without this checkout's part in it, with or without ROS."""
    environment = dict(os.environ)
    for name in (WHEELS_GUARD, 'VIRTUAL_ENV', 'PYTHONHOME', 'PIP_USER', 'PIP_TARGET'):
        environment.pop(name, None)
    for name in PATH_VARIABLES:
        entries = foreign(environment.pop(name, ''))
        if entries and (keep_ros or name == 'PATH'):
            environment[name] = ':'.join(entries)
    if not keep_ros:
        for name in ROS_VARIABLES:
            environment.pop(name, None)
    # A user's colcon defaults (merged install, other base paths) would change the layout.
    environment['COLCON_HOME'] = str(VENV / 'colcon')
    return environment


def choose_python(sourced: bool, distro: str) -> dict[str, str]:
    """Find an interpreter, beside the sourced ROS 2 if there is one that imports its rclpy."""
    if sourced:
        python = python_with_rclpy()
        if python:
            return {'mode': SOURCED, 'python': python}
        say(f'ROS 2 {distro} is sourced, but no Python here imports its rclpy: '
            'using ROS 2 from wheels instead')
    elif distro not in WHEEL_DISTROS:
        raise SetupError(
            f'ROS_DISTRO is {distro}, which is not sourced and does not come as wheels',
            f'source /opt/ros/{distro}/setup.bash, or ROS_DISTRO={DISTRO} make setup '
            f'(wheels there are of {" and ".join(WHEEL_DISTROS)})')
    return {'mode': WHEELS, 'python': python_for_wheels()}


def check_tools() -> None:
    """Check for a usable folder, the compiler and the build tools."""
    if re.search(r'[\s:;"$]', str(ROOT)):
        raise SetupError(f'colcon cannot work in a path like {str(ROOT)!r}',
                         f'mv {shlex.quote(str(ROOT))} ~/spotvlm, and make setup there')
    for tool, package in (('make', 'make'), ('g++', 'g++'), ('cmake', 'cmake'),
                          ('bash', 'bash')):
        if shutil.which(tool) is None:
            raise SetupError(f'{tool} is not installed', f'sudo apt-get install -y {package}')
    answer = subprocess.run(['cmake', '--version'], capture_output=True, text=True).stdout
    version = re.search(r'(\d+)\.(\d+)', answer)
    if version is None or (int(version[1]), int(version[2])) < (3, 20):
        raise SetupError(f'cmake 3.20 or later is needed, not {version[0] if version else "this"}',
                         'python3 -m pip install --user cmake, with ~/.local/bin first in PATH')


def ask_python(python: str, code: str, environment: dict[str, str]) -> str | None:
    """Return what a line of Python prints under an interpreter, None if that fails."""
    try:
        answer = subprocess.run([python, '-c', code], env=environment, capture_output=True,
                                text=True, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def candidates() -> Iterable[str]:
    """Return the interpreters to look at: the running one first."""
    # Inside a virtual environment, the interpreter that it was made from.
    yield getattr(sys, '_base_executable', sys.executable)
    for name in ('python3', 'python3.12', 'python3.11'):
        path = shutil.which(name, path=outer_environment(keep_ros=True).get('PATH'))
        if path:
            yield path


def python_for_wheels() -> str:
    """Find an interpreter that the ROS wheels are used with, able to build extensions."""
    environment = outer_environment(keep_ros=False)
    for python in candidates():
        version = ask_python(python, 'import sys; print(*sys.version_info[:2])', environment)
        if version is None or tuple(map(int, version.split())) not in WHEEL_PYTHONS:
            continue
        check_python(python, version.replace(' ', '.'), environment)
        return python
    raise SetupError('Python 3.11 or 3.12 is needed and neither is on PATH',
                     'sudo apt-get install -y python3.11 python3.11-dev python3.11-venv '
                     '(or: pyenv install 3.11)')


def python_with_rclpy() -> str | None:
    """Find an interpreter that imports the sourced ROS 2."""
    environment = outer_environment(keep_ros=True)
    # With ROS sourced, its own idea of python3 comes before the one that runs this.
    for python in [*list(candidates())[1:], *list(candidates())[:1]]:
        code = 'import sys, rclpy; print(*sys.version_info[:2])'
        version = ask_python(python, code, environment)
        if version is None:
            continue
        if tuple(map(int, version.split())) < OLDEST:
            raise SetupError(
                f'the sourced ROS 2 {os.environ["ROS_DISTRO"]} uses Python '
                f'{version.replace(" ", ".")}; spotvlm needs 3.10 or later',
                'source ROS 2 Humble or later, or run `env -u ROS_DISTRO make setup` '
                'to use ROS 2 from wheels')
        check_python(python, version.replace(' ', '.'), environment)
        return python
    return None


def check_python(python: str, version: str, environment: dict[str, str]) -> None:
    """Check that an interpreter can make virtual environments and build extensions."""
    install = f'sudo apt-get install -y python{version}-'
    if ask_python(python, 'import ensurepip, venv', environment) is None:
        raise SetupError(f'{python} has no venv module', install + 'venv')
    code = 'import sysconfig; print(sysconfig.get_path("include"))'
    include = ask_python(python, code, environment)
    if include is None or not (Path(include) / 'Python.h').exists():
        raise SetupError(f'{python} has no header files (Python.h)', install + 'dev')


def check_ros_packages() -> None:
    """Check that the sourced ROS 2 has the packages that pip does not bring."""
    sourced = foreign(os.environ['AMENT_PREFIX_PATH'])
    missing = [name for name in ROS_NEEDED
               if not any((Path(prefix) / ROS_INDEX / name).exists() for prefix in sourced)]
    if missing:
        distro = os.environ.get('ROS_DISTRO', '$ROS_DISTRO')
        names = ' '.join(f'ros-{distro}-{name.replace("_", "-")}' for name in missing)
        raise SetupError(f'the sourced ROS 2 lacks {", ".join(missing)}',
                         f'sudo apt-get install -y {names}')
