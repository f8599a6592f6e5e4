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
"""The machine that figures were measured on, and how much of its time the host kept back."""

from __future__ import annotations

import os
import platform

NOTICEABLE = 0.05  # fraction of steal time from which on figures are spoiled


def machine(threads: int = 0) -> str:
    """Return the machine in words; ``threads`` is how many were used, 0 for any number."""
    used = f', {threads} used' if threads else ''
    return (f'{os.cpu_count()} CPU cores{used}, {platform.machine()}, '
            f'Python {platform.python_version()}')


def cpu_time() -> tuple[float, float, float]:
    """Return the CPU time of all cores since boot: all of it, idle, and steal [s]."""
    import psutil
    times = psutil.cpu_times()
    # The times of guests are part of user and nice already.
    total = sum(times) - getattr(times, 'guest', 0.0) - getattr(times, 'guest_nice', 0.0)
    return total, times.idle + getattr(times, 'iowait', 0.0), getattr(times, 'steal', 0.0)


class StealTime:
    """
    The fraction of CPU time in which the host of a virtual machine kept a core to itself.

    Linux counts it as steal, see proc(5): a thread was ready to run and its core was not there.
    Nothing inside the machine helps. Where there is no host it stays 0.
    """

    def __init__(self) -> None:
        """Begin to count."""
        self._began = cpu_time()

    @property
    def fraction(self) -> float:
        """Steal time over all CPU time since the beginning, 0 to 1, of all cores together."""
        total, _, steal = (b - a for a, b in zip(self._began, cpu_time()))
        return round(max(0.0, steal) / total, 3) if total > 0 else 0.0

    @property
    def warning(self) -> str:
        """Return what to know about figures measured meanwhile; empty with little steal time."""
        fraction = self.fraction
        return '' if fraction < NOTICEABLE else (
            f'the host of this virtual machine took {fraction:.0%} of the CPU time meanwhile: '
            'times and rates are worse than this machine can; measure again when the host is '
            'quiet')

    def print_warning(self, about: str = 'note') -> None:
        """Print the warning, if there is one, after the word it is about."""
        warning = self.warning
        if warning:
            print(f'{about}: {warning}', flush=True)
