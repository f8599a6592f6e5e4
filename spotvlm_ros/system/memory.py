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
Memory that is free is given back to the system.

Python frees what refers to itself when it gets round to it, and glibc keeps what is freed, in an
arena for each of many threads: a model that was loaded and dropped a few times stayed as often.

When Python gets round to it depends on how much there is: beside torch and transformers, with half
a million objects, after some 100,000 new ones, and then it looks through all for 0.2 s.
"""

from __future__ import annotations

import ctypes
import gc
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
ARENAS = 2
LARGE = 1 << 20   # bytes: a block that is larger, as a picture of 1 megapixel, is a mapping of its
# own, and goes back at once. By itself glibc moves this limit up to 32 MiB, and large blocks leave
# holes in heaps. A frame of 640x480 is just below: a new mapping for each would cost time.
SPARE = 1 << 23   # bytes that the end of a heap may have free; by itself glibc keeps up to 64 MiB


def share_arenas() -> None:
    """Have all threads allocate from a few arenas, unless the environment says how many."""
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # Linux only; a no-op in musl
    if mallopt is None:
        return
    if 'MALLOC_ARENA_MAX' not in os.environ:
        mallopt(M_ARENA_MAX, ARENAS)
    mallopt(M_MMAP_THRESHOLD, LARGE)
    mallopt(M_TRIM_THRESHOLD, SPARE)


def settle() -> None:
    """Free what nobody can reach, 0.2 s, and look for more among what comes from now on only."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Free what nobody can reach and return free memory to the system, in a fifth of a second."""
    settle()
    trim()


def trim() -> None:
    """Return free memory to the system, that between blocks in use too, in about 1 ms."""
    malloc_trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc only
    if malloc_trim is not None:
        malloc_trim(0)
