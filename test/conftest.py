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
"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path
import sys

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# One ROS domain per run, so that two checkouts can be tested on one host at once.
os.environ.setdefault('ROS_DOMAIN_ID', str(20 + os.getpid() % 80))
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get('SPOTVLM_TEST_DATA', ROOT.parent / 'shared' / 'data'))


@pytest.fixture
def highway() -> Path:
    """Return the path of a dashcam clip."""
    path = DATA / 'highway.mp4'
    if not path.is_file():
        pytest.skip(f'{path} is missing; set SPOTVLM_TEST_DATA to a folder that holds it')
    return path


@pytest.fixture
def server() -> Iterator[object]:
    """Return a chat completions server with canned replies."""
    from fakes import FakeServer
    fake = FakeServer()
    yield fake
    fake.stop()
