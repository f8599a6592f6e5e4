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
"""Figures say when the host of a virtual machine spoiled them."""

from collections import namedtuple
import gc
import weakref

import psutil
import pytest
from spotvlm_ros.system.machine import machine, StealTime
from spotvlm_ros.system.memory import settle, trim

LINUX = namedtuple('LINUX', 'user system idle steal guest')
ELSEWHERE = namedtuple('ELSEWHERE', 'user system idle')


@pytest.mark.parametrize('then, now, share, warns', [
    (LINUX(100, 50, 800, 10, 40), LINUX(104, 52, 803, 11, 41), 0.1, True),
    (LINUX(100, 50, 800, 10, 40), LINUX(150, 75, 824, 11, 90), 0.01, False),
    (LINUX(100, 50, 800, 10, 40), LINUX(100, 50, 800, 10, 40), 0.0, False),
    (ELSEWHERE(100, 50, 800), ELSEWHERE(150, 50, 800), 0.0, False)])
def test_the_share_that_the_host_took(monkeypatch, then, now, share, warns):
    monkeypatch.setattr(psutil, 'cpu_times', lambda: then)
    stolen = StealTime()
    monkeypatch.setattr(psutil, 'cpu_times', lambda: now)
    assert stolen.fraction == pytest.approx(share)
    assert ('10% of the CPU time' in stolen.warning) is warns


def test_a_machine_in_words():
    assert 'CPU cores, 3 used, ' in machine(3) and 'used' not in machine()


def test_memory_between_blocks_in_use_is_given_back():
    blocks = [bytearray(1000) for _ in range(200_000)]
    kept = blocks[::500]
    del blocks
    held = psutil.Process().memory_info().rss
    trim()
    assert held - psutil.Process().memory_info().rss > 100e6 and len(kept) == 400


class Ring:
    """Refers to itself."""

    def __init__(self):
        self.me = self


def test_garbage_is_looked_for_among_what_is_new_and_in_all_when_asked():
    try:
        early = Ring()
        settle()
        assert gc.get_freeze_count() > 1000 and gc.get_count()[2] == 0
        late = Ring()
        freed = [weakref.ref(early), weakref.ref(late)]
        del early, late
        gc.collect()
        assert freed[0]() is not None and freed[1]() is None
        settle()
        assert freed[0]() is None
    finally:
        gc.unfreeze()
