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
import fcntl
import os
from pathlib import Path
import sys

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# One ROS domain per run, so that two checkouts can be tested on one host at once, and one per
# worker of pytest-xdist.
WORKER = os.environ.get('PYTEST_XDIST_WORKER', '')
DOMAIN = int(os.environ.setdefault('ROS_DOMAIN_ID', str(20 + os.getpid() % 80)))
if WORKER:
    os.environ['ROS_DOMAIN_ID'] = str(20 + (DOMAIN - 20 + 40 * int(WORKER[2:])) % 80)
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
# Of torch. Two threads wait for each other at every step of a tiny model: on busy cores that takes
# ten times as long. Nodes and servers have parameters for theirs.
os.environ.setdefault('OMP_NUM_THREADS', '1')

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get('SPOTVLM_TEST_DATA', ROOT.parent / 'shared' / 'data'))


def alone(item: pytest.Item | None) -> bool:
    """Return whether a test wants the machine for itself."""
    return item is not None and item.get_closest_marker('alone') is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put these tests in a row, so that the workers wait for each other once."""
    if WORKER:
        items.sort(key=alone)


def enter(exclusive: bool) -> int:
    """Wait for a turn beside other workers, or for one without any; return what holds it."""
    # The locks are on what is there already: nothing to clean up, freed when a worker ends.
    queue, room = (os.open(path, os.O_RDONLY) for path in (__file__, Path(__file__).parent))
    # Whoever waits for the room to be empty holds the queue: nobody slips in.
    fcntl.flock(queue, fcntl.LOCK_EX)
    fcntl.flock(room, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
    fcntl.flock(queue, fcntl.LOCK_UN)
    os.close(queue)
    return room


def leave(room: int) -> None:
    """Let the next one in."""
    fcntl.flock(room, fcntl.LOCK_UN)  # a child may have inherited the file
    os.close(room)


TURN: list[int] = []


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Let tests that are marked ``alone`` have the machine to themselves, all in one turn."""
    if WORKER and not TURN:
        TURN.append(enter(alone(item)))
    yield
    if TURN and not (alone(item) and alone(nextitem)):
        leave(TURN.pop())


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
