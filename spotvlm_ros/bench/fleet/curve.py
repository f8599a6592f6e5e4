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
How long a batch takes by its size: measured, kept in a file, and used in simulations.

Requests are made ready by the same process that computes batches, most of the time in Python, of
which one thread runs at once. So both are measured while they go on beside each other, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
import json
import math
from pathlib import Path
import statistics
import time

from ...serving.checkpoint import Prepared
from ...system.machine import machine

SIZES = (1, 2, 4, 8, 16, 32)
ROUNDS = 5
BESIDE_S = 3.0  # for which requests are made ready beside batches


@dataclass(frozen=True)
class Curve:
    """Seconds of a batch of each size; ``measured_on``: where, '' for one that was made up."""

    name: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    measured_on: str = ''
    prepare_s: float = 0.0   # until one more request is ready, beside batches
    slows_s: float = 0.0     # by which that makes a batch longer

    def __post_init__(self) -> None:
        """Refuse what is no curve."""
        if not self.sizes or len(self.sizes) != len(self.seconds) or \
                list(self.sizes) != sorted(set(self.sizes)) or min(self.seconds) <= 0:
            raise ValueError(f'curve {self.name}: give rising sizes, and seconds above 0 for each')
        for name, value in (('prepare_s', self.prepare_s), ('slows_s', self.slows_s)):
            if not 0 <= value < math.inf:
                raise ValueError(f'curve {self.name}: {name} is {value}; give seconds from 0 on')

    def __str__(self) -> str:
        """Return what it says."""
        return '  '.join(f'{s}: {self.batch_s(s):.3f} s, {self.per_s(s):.1f}/s'
                         for s in self.sizes) + (
            f'  a request is ready after {1e3 * self.prepare_s:.1f} ms and makes a batch '
            f'{1e3 * self.slows_s:.1f} ms longer' if self.prepare_s else '')

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
                     str(data.get('measured_on', '')), float(data.get('prepare_s', 0.0)),
                     float(data.get('slows_s', 0.0)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} is no batch curve ({error}); write one with spotvlm perf fleet '
                         '--measure') from None


def write_curve(curve: Curve, path: Path) -> None:
    """Write a curve."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(curve), indent=2) + '\n', encoding='utf-8')


Answer = Callable[[Sequence[Prepared], Callable[[int], bool]], object]


def measure(name: str, answer: Answer, requests: Sequence[Prepared],
            sizes: Sequence[int] = SIZES, rounds: int = ROUNDS) -> Curve:
    """Return the curve of a model; ``requests`` of one kind are computed in turn."""
    seconds = []
    for size in sizes:
        batch = _batch(requests, size)
        took = []
        for number in range(rounds + 1):
            began = time.perf_counter()
            answer(batch, lambda i: False)
            if number:  # the first is slow
                took.append(time.perf_counter() - began)
        seconds.append(round(statistics.median(took), 5))
    return Curve(name, tuple(sizes), tuple(seconds), machine())


def beside(curve: Curve, answer: Answer, requests: Sequence[Prepared],
           ready: Callable[[], int]) -> Curve:
    """
    Return a curve with what it takes to make requests ready beside batches of middle size.

    ``ready`` says how many were made ready so far, by others, as fast as they can.
    """
    size = curve.sizes[len(curve.sizes) // 2]
    batch, batches, before, began = _batch(requests, size), 0, ready(), time.perf_counter()
    while (took_s := time.perf_counter() - began) < BESIDE_S:
        answer(batch, lambda i: False)
        batches += 1
    count = ready() - before
    if count < 1:
        raise ValueError(f'{curve.name}: no request was made ready; see what the server says')
    return replace(curve, prepare_s=round(took_s / count, 5), slows_s=round(
        max(0.0, took_s - batches * curve.batch_s(size)) / count, 5))


def _batch(requests: Sequence[Prepared], size: int) -> list[Prepared]:
    return [requests[i % len(requests)] for i in range(size)]
