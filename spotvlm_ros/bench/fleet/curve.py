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
"""How long a batch takes by its size: measured, kept in a file, and used in simulations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import statistics
import time

from ...serving.checkpoint import Prepared
from ...system.machine import machine

SIZES = (1, 2, 4, 8, 16, 32)
ROUNDS = 5


@dataclass(frozen=True)
class Curve:
    """Seconds of a batch of each size; ``measured_on``: where, '' for one that was made up."""

    name: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    measured_on: str = ''

    def __post_init__(self) -> None:
        """Refuse what is no curve."""
        if not self.sizes or len(self.sizes) != len(self.seconds) or \
                list(self.sizes) != sorted(set(self.sizes)) or min(self.seconds) <= 0:
            raise ValueError(f'curve {self.name}: give rising sizes, and seconds above 0 for each')

    def batch_s(self, size: int) -> float:
        """Return how long a batch takes; between two sizes, and beyond the last, on a line."""
        if size <= self.sizes[0] or len(self.sizes) == 1:
            return self.seconds[0] * max(1.0, size / self.sizes[0])
        high = next((i for i, s in enumerate(self.sizes) if s >= size), len(self.sizes) - 1)
        (a, b), (t, u) = self.sizes[high - 1:high + 1], self.seconds[high - 1:high + 1]
        return max(t, t + (u - t) * (size - a) / (b - a))

    def per_s(self, size: int) -> float:
        """Return how many replies a second batches of a size give."""
        return size / self.batch_s(size)


def read_curve(path: Path) -> Curve:
    """Read a curve. Raise ValueError with the file."""
    try:
        data = json.loads(path.read_text('utf-8'))
        return Curve(str(data['name']), tuple(data['sizes']), tuple(data['seconds']),
                     str(data.get('measured_on', '')))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is no batch curve ({error}); write one with spotvlm perf fleet '
                         '--measure') from None


def write_curve(curve: Curve, path: Path) -> None:
    """Write a curve."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(curve), indent=2) + '\n', encoding='utf-8')


def measure(name: str, answer: Callable[[Sequence[Prepared], Callable[[int], bool]], object],
            requests: Sequence[Prepared], sizes: Sequence[int] = SIZES, rounds: int = ROUNDS
            ) -> Curve:
    """Return the curve of a model; ``requests`` of one kind are computed in turn."""
    seconds = []
    for size in sizes:
        batch = [requests[i % len(requests)] for i in range(size)]
        took = []
        for number in range(rounds + 1):
            began = time.perf_counter()
            answer(batch, lambda i: False)
            if number:  # the first is slow
                took.append(time.perf_counter() - began)
        seconds.append(round(statistics.median(took), 5))
    return Curve(name, tuple(sizes), tuple(seconds), machine())
