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

Needs nothing but a Python: ``make setup``, or ``python3 -m spotvlm_ros.system.bootstrap`` in the
checkout. With a ROS 2 sourced, that one is used; otherwise ROS 2 comes as wheels from PyPI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
import urllib.request

from .host import (ask_python, check_ros_packages, check_tools, choose_python, outer_environment,
                   PATH_VARIABLES, ROOT, ROS_VARIABLES, say, SetupError, SOURCED, sourced_prefix,
                   VENV, WHEELS_GUARD)
from .requirements import (DISTRO, lock_name, OPENCV, project_name, requirements, SETUPTOOLS,
                           TORCH, UV, WHEEL_DISTROS)

VENV_PYTHON = VENV / 'bin' / 'python'
LOG = VENV / 'setup.log'
STATE = VENV / 'spotvlm.json'
MARKER = VENV / 'created-by-spotvlm'
LOCKS = {distro: ROOT / lock_name(distro) for distro in WHEEL_DISTROS}
LOCK = LOCKS[DISTRO]
PACKAGES = ('spotvlm_msgs', 'spotvlm_ros')
# What decides how this is done; a change of it does it again.
SOURCES = [Path(__file__).with_name(name) for name in (
    'bootstrap.py', 'host.py', 'requirements.py')]

# With a sourced ROS these stay as the distribution has them: its compiled packages
# (cv_bridge), generators and launch_testing are built for those versions.
KEPT_FROM_ROS = (
    'catkin-pkg', 'empy', 'lark', 'lark-parser', 'numpy', 'pytest', 'pyyaml',
)
TORCH_CPU = 'https://download.pytorch.org/whl/cpu/torch/'
NOT_THERE = """command -v "${1-}" >/dev/null || {
  echo "ros-env: there is no command ${1-} here. ROS 2 from wheels has no ros2: spotvlm run," \\
    "ask, query and doctor do without, or source an installed one before make setup" >&2
  exit 127
}
"""
NO_NETWORK = 'check the network (or PIP_INDEX_URL), then make setup again'


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
    distro = wanted_distro(state)
    wanted = {'root': str(ROOT), 'packages': packages_key(), 'build': build_key()}
    # A shell without ROS goes on using the ROS that an earlier run found sourced.
    same_ros = state.get('sourced') == sourced or (
        not sourced and Path(state.get('sourced', '')).is_dir())
    usable = (state.get('root') == str(ROOT) and state.get('distro', DISTRO) == distro
              and same_ros and VENV_PYTHON.exists())
    if usable and all(state.get(key) == wanted[key] for key in wanted) and is_built():
        say('setup is up to date')
        return

    check_tools()
    if not usable:
        state = {'root': str(ROOT), 'sourced': sourced, 'distro': distro,
                 **choose_python(bool(sourced), distro)}
        create_venv(state['python'], with_system=state['mode'] == SOURCED)
    beside = state['mode'] == SOURCED
    if beside and not sourced:
        raise SetupError(f'.venv was made for the ROS 2 in {state["sourced"]}',
                         f'source {state["sourced"]}/setup.bash, then make setup '
                         '(or: rm -rf .venv, to use ROS 2 from wheels)')
    if state.get('packages') != wanted['packages']:
        # Until this step is through, there is no state: an interrupted run starts over.
        STATE.unlink(missing_ok=True)
        install_packages(state['python'], beside, distro)
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


def wanted_distro(state: Mapping[str, str]) -> str:
    """Return the distribution that is asked for, or else the one that there is."""
    return os.environ.get('ROS_DISTRO') or state.get('distro', DISTRO)


# --- state ----------------------------------------------------------------------------------


def read_state() -> dict[str, str]:
    """Return what the last complete step wrote, empty when there is nothing to trust."""
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(state, dict) and {'root', 'sourced', 'mode', 'python'} <= set(state)
    return state if whole else {}


def write_state(state: dict[str, str]) -> None:
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
    return key_of([*SOURCES, *LOCKS.values()])


def build_key() -> str:
    """Return a hash of all that needs a colcon build; Python sources are only linked."""
    files = [path for path in (ROOT / 'spotvlm_msgs').rglob('*') if path.is_file()]
    files += [ROOT / name for name in ('package.xml', 'setup.py', 'setup.cfg')]
    links = [path for folder in ('launch', 'config', 'resource')
             for path in (ROOT / folder).rglob('*') if path.is_file()]
    return key_of([*files, *SOURCES, *LOCKS.values()], links)


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


def install_packages(python: str, beside: bool, distro: str) -> None:
    """Install everything that comes from PyPI, beside a sourced ROS 2 or with ROS 2."""
    # A sourced one without wheels, and no Python for it.
    distro = distro if distro in WHEEL_DISTROS else DISTRO
    lock = str(LOCKS[distro])
    environment = outer_environment(keep_ros=beside)
    pip = [str(VENV_PYTHON), '-m', 'pip', 'install', '--no-input', '--progress-bar=off',
           '--disable-pip-version-check']
    if beside:
        check_ros_packages()
        link_rclpy(python, environment)
        pip += ['--constraint', str(constraints_beside_ros(environment))]
    else:
        pip += ['--constraint', lock]
    # pip for torch: uv does not know pip's --find-links and the settings around it.
    run('installing torch', [*pip, *torch_source(), SETUPTOOLS, TORCH.requirement, UV],
        environment, NO_NETWORK)
    if beside:
        # pip here, too: uv would not see what the distribution has installed.
        code = 'import cv2; print(cv2.__version__)'
        opencv = ask_python(str(VENV_PYTHON), code, environment) or '5'
        wanted = [name for name in requirements()
                  if name != OPENCV.requirement or opencv >= '5']
        run('installing Python packages (a few minutes the first time)', [*pip, *wanted],
            environment, NO_NETWORK)
    else:
        run(f'installing ROS 2 {distro.capitalize()} and Python packages',
            [str(VENV / 'bin' / 'uv'), 'pip', 'install', '--python', str(VENV_PYTHON),
             '--no-deps', '--compile-bytecode', '--no-progress', '--requirement', lock],
            uv_environment(environment), NO_NETWORK)
        fix_wheels(environment, distro)


def uv_environment(environment: dict[str, str]) -> dict[str, str]:
    """
    Return the environment of uv: it goes where pip has been told to go, and trusts what pip does.

    It copies files out of its cache. Linked ones would be mended there too, with the paths of
    this checkout, and the next one would get them.
    """
    same = {'UV_DEFAULT_INDEX': 'PIP_INDEX_URL', 'SSL_CERT_FILE': 'PIP_CERT'}
    return {**{uv: environment[pip] for uv, pip in same.items() if environment.get(pip)},
            'UV_SYSTEM_CERTS': 'true', **environment, 'UV_LINK_MODE': 'copy'}


def torch_source() -> list[str]:
    """Return the pip options that prefer torch's CPU build where there is no NVIDIA GPU."""
    # PyPI's build brings several GB of CUDA. As a link page and not as an extra index, the
    # address cannot supply any other package. pip prefers 2.13.0+cpu to 2.13.0.
    if shutil.which('nvidia-smi') or Path('/dev/nvidia0').exists():
        return []
    for _ in range(2):
        try:
            urllib.request.urlopen(TORCH_CPU, timeout=5).close()
            return ['--find-links', TORCH_CPU]
        except (OSError, ValueError) as error:
            problem = error
    say(f'{TORCH_CPU} does not answer ({problem}): torch comes from where pip takes packages; '
        'PyPI has the build for CUDA only, 5.5 GB instead of 1.8. For the small one: Ctrl-C, and '
        'make setup when the address answers, or with PIP_FIND_LINKS=FOLDER that has its wheel')
    return []


def link_rclpy(python: str, environment: dict[str, str]) -> None:
    """Let .venv find the sourced rclpy even where only the shell's PYTHONPATH names it."""
    code = 'import rclpy, os; print(os.path.dirname(os.path.dirname(rclpy.__file__)))'
    folder = ask_python(python, code, environment)
    if folder:
        (site_packages() / 'spotvlm_sourced_ros.pth').write_text(folder + '\n')


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
    # Half of the versions are not for the Python of Humble.
    lines = [line for line in LOCK.read_text().splitlines()
             if project_name(line) not in kept and not is_old()] or [SETUPTOOLS]
    lines += [f'numpy=={numpy}'] if numpy else []
    path = VENV / 'constraints.txt'
    path.write_text('\n'.join(lines) + '\n')
    return path


def is_old() -> bool:
    """Return whether .venv has the Python of Humble, 3.10."""
    return site_packages().parent.name == 'python3.10'


def site_packages() -> Path:
    """Return the folder that pip installs into."""
    return next((VENV / 'lib').glob('python3.*/site-packages'))


def fix_wheels(environment: dict[str, str], distro: str) -> None:
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
    lines += [f'export ROS_DISTRO={distro} ROS_VERSION=2 ROS_PYTHON_VERSION=3',
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
    python = shlex.quote(str(VENV_PYTHON)) + ' -P' * (not is_old())
    for name, command in (('spotvlm', f'{python} -m spotvlm_ros.cli "$@"'),
                          ('ros-env', '"$@"')):
        path = VENV / 'bin' / name
        path.write_text(f'{head}{NOT_THERE * (name == "ros-env")}exec {command}\n')
        path.chmod(0o755)


def verify() -> None:
    """Check that what was built can be imported together."""
    code = ('import rclpy, spotvlm_ros, spotvlm_msgs.msg, spotvlm_msgs.action; '
            'spotvlm_msgs.msg.Answer.__class__.__import_type_support__()')
    run('checking', [str(VENV / 'bin' / 'ros-env'), 'python', '-c', code],
        outer_environment(keep_ros=False), 'make clean && make setup')


if __name__ == '__main__':
    sys.exit(main())
