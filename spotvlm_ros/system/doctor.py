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
Say what is here, what is missing and the command that fixes it: ``spotvlm doctor``.

Imports nothing but the standard library at the top, so that it also runs on a bare machine:
``python3 -m spotvlm_ros.system.doctor`` in a checkout.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import importlib
import importlib.metadata
import importlib.util
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from types import ModuleType
import urllib.request
import uuid
import warnings

from .cv_bridge import check_cv_bridge
from .middleware import middleware_problem
from .requirements import (extra_module, EXTRAS, LARGE_EXTRAS, LIBRARIES, ROS_OPTIONAL,
                           SETUPTOOLS, TORCH, TRANSFORMERS)

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
CHECKPOINTS = ('spot-mini-edge', 'spot-mini-edge-hri', 'spot-mini-cloud')
API_KEY = 'SPOTVLM_API_KEY'
DDS_TIMEOUT = 5.0
SERVING = f'{sys.executable} -m pip install "{TRANSFORMERS.requirement}" "{SETUPTOOLS}"'

OK, MISSING, OPTIONAL = 'ok', 'missing', 'optional'
COLOURS = {OK: '32', MISSING: '1;31', OPTIONAL: '33'}  # SGR codes


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: str
    detail: str
    remedy: str = ''


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm doctor', description=run.__doc__,
                                     epilog='example: spotvlm doctor --json')
    parser.add_argument('--json', action='store_true', help='print findings as JSON')
    return parser


def run(argv: list[str] | None = None) -> int:
    """Print all findings; return 0 if everything required is there, 1 otherwise."""
    arguments = command_parser().parse_args(argv)
    findings = []
    for check in CHECKS:
        for finding in guarded(check):
            findings.append(finding)
            if not arguments.json:
                write(finding)
    missing = [finding for finding in findings if finding.status == MISSING]
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    elif missing:
        print(f'\n{len(missing)} required, not there: '
              + ', '.join(finding.name for finding in missing))
    else:
        print('\nall that is required is here')
    return 1 if missing else 0


def guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn an error inside a check into a finding: the doctor itself must not fall ill."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield from check()
    except Exception as error:
        name = check.__name__.replace('check_', '').replace('_', ' ')
        yield Finding(name, MISSING, first_line(error), setup_command())


def write(finding: Finding) -> None:
    """Print a finding, its status in colour on a terminal."""
    status = f'{finding.status:9}'
    if sys.stdout.isatty():
        status = f'\033[{COLOURS[finding.status]}m{status}\033[0m'
    print(f'{status}{finding.name:24}{finding.detail}', flush=True)
    if finding.remedy:
        print(f'{"":33}-> {finding.remedy}', flush=True)


def first_line(error: BaseException) -> str:
    """Return an error in one line."""
    text = str(error).strip().splitlines()
    return f'{type(error).__name__}: {text[0]}' if text else type(error).__name__


def setup_command() -> str:
    """Return the command that brings what belongs into .venv."""
    if (ROOT / 'Makefile').exists():
        return f'make -C {ROOT} setup'
    return 'make setup, in the checkout of spotvlm'


def version_of(module: ModuleType, distribution: str) -> str:
    """Return the version of an imported module."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(module, '__version__', 'unknown version'))


def is_installed(module: str) -> bool:
    """Return whether a module can be found, without importing it."""
    spec = importlib.util.find_spec(module)
    # A mere folder of that name, such as launch/ here, is found without an origin.
    return spec is not None and spec.origin is not None


# --- checks ---------------------------------------------------------------------------------


def check_python() -> Iterator[Finding]:
    """Look at the interpreter."""
    found = f'{sys.version.split()[0]} ({sys.executable})'
    wrapper = ROOT / '.venv' / 'bin' / 'spotvlm'
    if wrapper.exists() and Path(sys.prefix) != ROOT / '.venv':
        yield Finding('environment', OPTIONAL, 'this Python is not the one of make setup',
                      f'{wrapper} doctor')
    if sys.version_info >= (3, 10):  # noqa: UP036
        yield Finding('Python', OK, found)
    else:
        yield Finding('Python', MISSING, f'{found}; 3.10 or later is needed',
                      'sudo apt-get install -y python3.11 python3.11-dev python3.11-venv')


def check_build_tools() -> Iterator[Finding]:
    """Look for what the messages are built with; not needed once they are."""
    status = OPTIONAL if is_installed('spotvlm_msgs') else MISSING
    for tool in ('g++', 'cmake', 'make'):
        path = shutil.which(tool)
        if path is None:
            yield Finding(tool, status, 'not found, needed to build spotvlm_msgs',
                          f'sudo apt-get install -y {tool}')
            continue
        answer = subprocess.run([path, '--version'], capture_output=True, text=True, timeout=10)
        found = re.search(r'(\d+)\.(\d+)(\.\d+)?', answer.stdout)
        text = found[0] if found else 'unknown version'
        if tool == 'cmake' and found and (int(found[1]), int(found[2])) < (3, 20):
            yield Finding(tool, status, f'{text}; 3.20 or later is needed',
                          'python3 -m pip install --user cmake')
        else:
            yield Finding(tool, OK, f'{text} ({path})')
    version = f'{sys.version_info[0]}.{sys.version_info[1]}'
    if (Path(sysconfig.get_path('include')) / 'Python.h').exists():
        yield Finding('Python headers', OK, sysconfig.get_path('include'))
    else:
        yield Finding('Python headers', status, 'no Python.h, needed to build spotvlm_msgs',
                      f'sudo apt-get install -y python{version}-dev')


def check_ros() -> Iterator[Finding]:
    """Look for ROS 2, where it comes from, and our messages."""
    problem = middleware_problem(os.environ)
    if problem:
        yield Finding('ROS 2', MISSING, *problem)
        return
    try:
        import rclpy
        import rclpy.utilities
        middleware = rclpy.utilities.get_rmw_implementation_identifier()
    except Exception as error:
        # A half-sourced environment raises more than ImportError here.
        yield Finding('ROS 2', MISSING, f'rclpy: {first_line(error)}', setup_command())
        return
    distro = os.environ.get('ROS_DISTRO', 'unknown distribution')
    try:
        version = importlib.metadata.version('ros-rclpy')
        origin = 'from wheels'
    except importlib.metadata.PackageNotFoundError:
        version = version_of(rclpy, 'rclpy')
        origin = 'sourced'
    yield Finding('ROS 2', OK, f'{distro} {origin}, rclpy {version}, {middleware}')
    try:
        message = importlib.import_module('spotvlm_msgs.msg').Answer
        # Also loads the compiled part.
        message.__class__.__import_type_support__()
    except Exception as error:
        yield Finding('spotvlm_msgs', MISSING, f'not built: {first_line(error)}',
                      setup_command())
        return
    yield Finding('spotvlm_msgs', OK, str(Path(sys.modules['spotvlm_msgs'].__file__ or '')
                                          .parent))


def check_torch() -> Iterator[Finding]:
    """Look for torch and what it computes on."""
    if not is_installed('torch'):
        yield Finding('torch', MISSING, 'not installed', setup_command())
        return
    import torch
    if torch.cuda.is_available():
        device = ', '.join(torch.cuda.get_device_name(index)
                           for index in range(torch.cuda.device_count()))
    else:
        device = 'no GPU (the shipped models do not need one)'
    yield Finding('torch', OK, f'{torch.__version__}, {torch.get_num_threads()} threads, '
                               f'{device}')


def check_transformers() -> Iterator[Finding]:
    """Look for transformers, and for what `transformers serve` needs."""
    if not is_installed('transformers'):
        yield Finding('transformers', MISSING, 'not installed', setup_command())
        return
    import transformers
    version = transformers.__version__
    if [int(n) for n in re.findall(r'\d+', version)[:2]] < [5, 18]:
        yield Finding('transformers', MISSING, f'{version}; 5.18 or later is needed: before, '
                      'processors of images want torchvision', SERVING)
        return
    yield Finding('transformers', OK, version)
    lacking = [name for name in ('fastapi', 'uvicorn', 'starlette', 'rich')
               if not is_installed(name)]
    if lacking:
        yield Finding('transformers serve', MISSING, f'{", ".join(lacking)} not installed',
                      SERVING)
    else:
        yield Finding('transformers serve', OK, 'its packages are installed')


def check_torchvision() -> Iterator[Finding]:
    """Look whether torchvision is absent or works: a broken one breaks transformers."""
    if not is_installed('torchvision'):
        yield Finding('torchvision', OPTIONAL, 'not installed; only the processors of '
                                               'Qwen-VL checkpoints need it')
        return
    try:
        module = importlib.import_module('torchvision')
    except Exception as error:
        yield Finding('torchvision', MISSING, f'breaks transformers: {first_line(error)}',
                      f'{sys.executable} -m pip uninstall -y torchvision')
        return
    yield Finding('torchvision', OK, version_of(module, 'torchvision'))


def check_libraries() -> Iterator[Finding]:
    """Import the other Python packages and compare their versions with what is required."""
    for library in LIBRARIES:
        if library in (TORCH, TRANSFORMERS):
            continue
        try:
            version = version_of(importlib.import_module(library.module), library.name)
        except Exception as error:
            yield Finding(library.name, MISSING, first_line(error), setup_command())
            continue
        if library.admits(version):
            yield Finding(library.name, OK, version)
        else:
            yield Finding(library.name, MISSING, f'{version}; {library.requirement} is needed',
                          f'{sys.executable} -m pip install "{library.requirement}"')
    for name, without in (EXTRAS | LARGE_EXTRAS).items():
        yield (Finding(name, OK, 'installed') if is_installed(extra_module(name)) else
               Finding(name, OPTIONAL, f'not installed: {without}',
                       f'{sys.executable} -m pip install "{name}"'))


def check_ros_extras() -> Iterator[Finding]:
    """Look for the ROS packages that are used where they are installed, and work."""
    for name, without in ROS_OPTIONAL.items():
        if is_installed(name):
            yield cv_bridge() if name == 'cv_bridge' else Finding(name, OK, 'installed')
            continue
        distro = os.environ.get('ROS_DISTRO', '')
        # On PyPI these names are other projects, and there is no wheel of them.
        remedy = ''
        if distro and not is_installed('ros_wheels_bootstrapper'):
            remedy = f'sudo apt-get install -y ros-{distro}-{name.replace("_", "-")}'
        yield Finding(name, OPTIONAL, f'not installed: {without}', remedy)


def cv_bridge() -> Finding:
    """Return whether cv_bridge converts images, and why it does not."""
    verdict = check_cv_bridge()
    if not verdict.kinds:
        return Finding('cv_bridge', OPTIONAL, f'installed, not used: {verdict.why}; '
                                              f'{ROS_OPTIONAL["cv_bridge"]}')
    return Finding('cv_bridge', OK, f'converts {", ".join(verdict.encodings)} as spotvlm does, '
                                    'which converts all others')


def check_checkpoints() -> Iterator[Finding]:
    """Look for the two shipped models."""
    for name in CHECKPOINTS:
        folder = PACKAGE / 'mini' / 'checkpoints' / name
        weights = list(folder.glob('*.safetensors'))
        if weights and (folder / 'config.json').exists():
            size = sum(path.stat().st_size for path in weights) / 1e6
            yield Finding(name, OK, f'{size:.1f} MB')
        else:
            yield Finding(name, MISSING, f'no checkpoint in {folder}',
                          f'git -C {ROOT} checkout -- {folder.relative_to(ROOT)} '
                          '(or make one: spotvlm train)')


def check_api_key() -> Iterator[Finding]:
    """Look whether there is a key for a cloud server; its value is never shown."""
    if os.environ.get(API_KEY):
        yield Finding(API_KEY, OK, 'is set')
    else:
        yield Finding(API_KEY, OPTIONAL, 'not set; servers that ask for a key need it',
                      f'export {API_KEY}=...')


def check_dds() -> Iterator[Finding]:
    """Send one message through ROS 2 and receive it."""
    if not (is_installed('rclpy') and is_installed('std_msgs')) or \
            middleware_problem(os.environ):
        return
    import rclpy
    from rclpy.context import Context
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String
    domain = os.environ.get('ROS_DOMAIN_ID') or '0'
    name = 'doctor_' + uuid.uuid4().hex[:8]
    # Two contexts are two DDS participants, which have to discover each other through the
    # network stack. Names of their own: nothing of a running graph is touched.
    sender, receiver = Context(), Context()
    received: list[object] = []
    try:
        start = time.monotonic()
        nodes = []
        for role, context in (('sender', sender), ('receiver', receiver)):
            rclpy.init(args=[], context=context)
            nodes.append(rclpy.create_node(f'{name}_{role}', context=context,
                                           enable_rosout=False, start_parameter_services=False))
        publisher = nodes[0].create_publisher(String, f'{name}/ping', 1)
        nodes[1].create_subscription(String, f'{name}/ping', received.append, 1)
        executor = SingleThreadedExecutor(context=receiver)
        executor.add_node(nodes[1])
        while not received and time.monotonic() < start + DDS_TIMEOUT:
            publisher.publish(String(data='ping'))
            executor.spin_once(timeout_sec=0.05)
        took = time.monotonic() - start
        executor.shutdown()
        for node in nodes:
            node.destroy_node()
    finally:
        sender.try_shutdown()
        receiver.try_shutdown()
    if received:
        yield Finding('DDS loopback', OK, f'{took * 1e3:.0f} ms with discovery, domain {domain}')
    else:
        yield Finding('DDS loopback', MISSING, f'no message within {DDS_TIMEOUT:.0f} s in '
                                               f'domain {domain}',
                      'export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST (and let the firewall '
                      'pass UDP on lo)')


def check_http() -> Iterator[Finding]:
    """Serve a page on a free port of this host and read it."""
    class Hello(BaseHTTPRequestHandler):
        """Answers everything with 204."""

        def do_GET(self) -> None:
            """Answer."""
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Keep quiet."""

    server = ThreadingHTTPServer(('127.0.0.1', 0), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        # Through the proxy settings, as the cloud client goes.
        with urllib.request.urlopen(f'http://127.0.0.1:{server.server_port}/',
                                    timeout=3) as reply:
            works = reply.status == 204
    except OSError:
        works = False
    finally:
        server.shutdown()
        server.server_close()
    if works:
        yield Finding('HTTP loopback', OK, f'port {server.server_port} was free')
    else:
        yield Finding('HTTP loopback', MISSING, 'a server on 127.0.0.1 cannot be reached',
                      'export NO_PROXY=127.0.0.1,localhost no_proxy=127.0.0.1,localhost')


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python, check_build_tools, check_ros, check_dds, check_torch, check_transformers,
    check_torchvision, check_libraries, check_ros_extras, check_checkpoints,
    check_api_key, check_http,
)


if __name__ == '__main__':
    sys.exit(run())
