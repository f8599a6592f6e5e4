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
"""What figures were measured on, and whether it was ours meanwhile."""

from __future__ import annotations

import os
import platform

NOTICED = 0.05  # a share of the time that spoils figures


def machine(threads: int = 0) -> str:
    """Return the machine in words; ``threads`` is how many were used, 0 for any number."""
    used = f', {threads} used' if threads else ''
    return (f'{os.cpu_count()} CPU cores{used}, {platform.machine()}, '
            f'Python {platform.python_version()}')


def cpu_time() -> tuple[float, float, float]:
    """Return all time of all cores since the start, that of it idle, and that stolen [s]."""
    import psutil
    times = psutil.cpu_times()
    # The times of guests are part of user and nice already.
    total = sum(times) - getattr(times, 'guest', 0.0) - getattr(times, 'guest_nice', 0.0)
    return total, times.idle + getattr(times, 'iowait', 0.0), getattr(times, 'steal', 0.0)


class StealTime:
    """
    The share of the time in which the host of a virtual machine kept a core to itself.

    Linux counts this as steal, see proc(5): time in which a thread wanted to run and its core did
    not. No scheduling inside the machine helps. Where there is no host it stays 0.
    """

    def __init__(self) -> None:
        """Begin to count."""
        self._began = cpu_time()

    @property
    def share(self) -> float:
        """Return the share since the beginning, 0 to 1, of all cores together."""
        total, _, stolen = (b - a for a, b in zip(self._began, cpu_time()))
        return round(max(0.0, stolen) / total, 3) if total > 0 else 0.0

    @property
    def warning(self) -> str:
        """Return what is to be said about figures of this time; empty where nothing is."""
        share = self.share
        return '' if share < NOTICED else (
            f'the host of this virtual machine took {share:.0%} of the CPU time meanwhile: times '
            'and rates are worse than this machine can; measure again when the host is quiet')

    def tell(self, about: str = 'note') -> None:
        """Print the warning where there is one."""
        warning = self.warning
        if warning:
            print(f'{about}: {warning}', flush=True)
