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
"""From counts to results.json: one cell per world, system, delay, slice and metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import json
import math
from pathlib import Path
from typing import NamedTuple

from . import stats
from .delays import HEADLINE
from .systems import ALONE, BASELINES, FULL, SYSTEMS
from .tally import CountKey, Tally

ALL_SETS = 'all sets'
PARTS = ('all', 'changed', 'unchanged')


class Cell(NamedTuple):
    """One figure; ``ci95`` is [low, high], None where one unit gives no interval."""

    world: str
    system: str
    delay: str
    slice: str  # noqa: A003
    metric: str
    value: float
    ci95: tuple[float, float] | None
    n_episodes: int


class Counts:
    """Counts of all episodes of one world, unit by unit in a fixed order."""

    def __init__(self, tallies: Iterable[Tally]) -> None:
        """Take every block of every tally as a unit."""
        self.units = [(tally.hits[block], tally.tries[block]) for tally in tallies
                      for block in sorted(tally.hits)]

    def names(self) -> list[CountKey]:
        """Return everything that was counted."""
        return sorted({name for _, tries in self.units for name in tries})

    def of(self, name: CountKey) -> tuple[list[float], list[float]]:
        """Return hits and tries per unit."""
        return [h[name] for h, _ in self.units], [t[name] for _, t in self.units]


def cells(worlds: Mapping[str, Sequence[Tally]]) -> list[Cell]:
    """Return all cells; sets together stand under ``all sets``."""
    found = []
    together = [t for tallies in worlds.values() for t in tallies]
    both = dict(worlds) | ({ALL_SETS: together} if len(worlds) > 1 else {})
    for world, tallies in both.items():
        counts = Counts(tallies)
        names = counts.names()
        for name in names:
            found.append(_cell(world, name, counts))
        for name in names:
            if name.metric == 'accuracy' and name.slice in PARTS:
                found += _gains(world, name, counts)
    return found


def _cell(world: str, name: CountKey, counts: Counts) -> Cell:
    hits, tries = counts.of(name)
    n = sum(t > 0 for t in tries)
    value, interval = stats.share(hits, tries)
    return Cell(world, *name, round(value, 4), _rounded(interval, n), n)


def _gains(world: str, name: CountKey, counts: Counts) -> list[Cell]:
    """Return how much a system is above the edge alone, and the method above each other."""
    against = {ALONE: 'gain'} if name.system != ALONE else {}
    if name.system == FULL:
        against |= {other: f'gain over {other}' for other in SYSTEMS
                    if other not in (ALONE, FULL)}
    found = [gain(world, name, counts, other, metric) for other, metric in against.items()]
    return [cell for cell in found if cell is not None]


def gain(world: str, name: CountKey, counts: Counts, other: str, metric: str) -> Cell | None:
    """Return how much a system is above another, on the same units; None: on none."""
    hits, tries, hits_b, tries_b = _common(
        *counts.of(name), *counts.of(name._replace(system=other)))
    if not hits:
        return None
    n = sum(t > 0 for t in tries)
    value, interval = stats.difference(hits, tries, hits_b, tries_b)
    return Cell(world, name.system, name.delay, name.slice, metric, round(value, 4),
                _rounded(interval, n), n)


def _common(*columns: Sequence[float]) -> tuple[list[float], ...]:
    """Return the units that both systems were run on; tries are the second and the fourth."""
    rows = [row for row in zip(*columns) if row[1] and row[3]]
    return tuple([row[i] for row in rows] for i in range(4))


def _rounded(interval: Sequence[float], n: int) -> tuple[float, float] | None:
    if n < 2 or any(math.isnan(v) for v in interval):
        return None
    return round(interval[0], 4), round(interval[1], 4)


class CellTable:
    """Cells by what they are about."""

    def __init__(self, all_cells: Iterable[Cell], best: str = '') -> None:
        """Hold cells by world, system, delay, slice, metric; ``best``: baseline chosen before."""
        self.best = best
        self._cells = {c[:5]: c for c in all_cells}
        self.worlds = list(dict.fromkeys(c[0] for c in self._cells))
        self.delays = list(dict.fromkeys(c[2] for c in self._cells))
        self.slices = list(dict.fromkeys(c[3] for c in self._cells))

    def get(self, world: str, system: str, delay: str = HEADLINE, part: str = 'all',
            metric: str = 'accuracy') -> Cell | None:
        """Return a cell, None when it was not measured."""
        return self._cells.get((world, system, delay, part, metric))

    def best_baseline(self, world: str, delay: str = HEADLINE) -> str:
        """Return the baseline chosen before, or else the one most often right; not the oracle."""
        if self.best:
            return self.best
        found = [c for name in BASELINES if (c := self.get(world, name, delay)) is not None]
        return max(found, key=lambda c: c.value).system

    def over_best(self, world: str, system: str = FULL, delay: str = HEADLINE,
                  part: str = 'all') -> Cell | None:
        """Return how much the method is above the best baseline."""
        best = self.best_baseline(world, delay)
        return self.get(world, system, delay, part,
                        'gain' if best == ALONE else f'gain over {best}')


def write(path: Path, all_cells: Sequence[Cell], meta: Mapping[str, object]) -> None:
    """Write results.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ',\n'.join('  ' + json.dumps(c._asdict()) for c in all_cells)
    path.write_text(f'{{"meta": {json.dumps(meta, indent=1)},\n"cells": [\n{rows}\n]}}\n')


def read(path: Path) -> tuple[list[Cell], dict[str, object]]:
    """Read results.json."""
    content = json.loads(path.read_text())
    found = [Cell(**{**c, 'ci95': tuple(c['ci95']) if c['ci95'] else None})
             for c in content['cells']]
    return found, content['meta']
