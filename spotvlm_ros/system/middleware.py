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
Whether the middleware (RMW) that the environment names is installed.

rcl compares the names when it is loaded, and ends the process with code 102 (ros2/ros2#908).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

VARIABLE = 'RMW_IMPLEMENTATION'
REMEDY = f'unset {VARIABLE}'


def missing_middleware(environment: Mapping[str, str]) -> str:
    """Return what is wrong with the middleware that the environment names, '' where nothing is."""
    name = environment.get(VARIABLE, '')
    folders = [Path(f) for f in environment.get('LD_LIBRARY_PATH', '').split(':') if f]
    folders += [Path(f) / 'lib' for f in environment.get('AMENT_PREFIX_PATH', '').split(':') if f]
    if not name or any((folder / f'lib{name}.so').exists() for folder in folders):
        return ''
    there = sorted({path.stem.removeprefix('lib') for folder in folders
                    for path in folder.glob('librmw_*_cpp.so')})
    return (f'{VARIABLE} is {name}, which is not installed'
            + (f' (there is {", ".join(there)})' if there else ''))
