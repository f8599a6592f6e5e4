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
"""Whom to believe, learned on the stream, against every rule that is tuned beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from . import stats
from .calibration_rows import (
    bounded, CALIBRATED, replay_set, TUNED, UNTUNED)
from .cells import ALL_SETS, Cell, cells, CellTable, Counts
from .estimates import estimated_cells
from .passes import AS_IT_IS, LIES, record, Recorded
from .plots import whole
from .seeds import Episode
from .systems import FULL
from .tally import CountKey, Tally
from .work import Setup, WorkerPool
from ...system.progress import progress

LIED_TO = 12     # episodes of each set, the first, in which clouds lie, too
BOUNDED = (0.02, 0.01)
Chosen = dict[str, str]


def replayed(setup: Setup, jobs: int, episodes: Mapping[str, Sequence[Episode]],
             ) -> dict[str, list[Tally]]:
    """Return the counts of every episode, by set."""
    # Those that take longest first.
    todo = sorted((e for found in episodes.values() for e in found), key=lambda e: e.number)
    pool, recorded, tallies = WorkerPool(setup, jobs), {}, {}
    try:
        found: Recorded
        with progress('episodes: both passes', len(todo)) as done:
            for i, found in pool.run([partial(record, e, tuple(LIES) * (e.number < LIED_TO))
                                      for e in todo]):
                recorded[todo[i]] = found
                done()
        names = list(episodes)
        counts: list[Tally]
        with progress('sets: all rules', len(names)) as done:
            for i, counts in pool.run([
                    partial(replay_set, [recorded[e] for e in episodes[name]], setup.latencies)
                    for name in names]):
                tallies[names[i]] = counts
                done()
    finally:
        pool.close()
    return {name: tallies[name] for name in names}


def choose(table: CellTable) -> Chosen:
    """
    Return what is chosen, on tuning seeds: a threshold of each kind, and of each set the best.

    Thresholds are those of the highest accuracy in all sets together, as the method's are.
    """
    def accuracy(world: str, system: str) -> float:
        cell = table.get(world, system, AS_IT_IS)
        return cell.value if cell is not None else 0.0
    together = whole(table)
    chosen = {kind: max(names, key=lambda n: accuracy(together, n))
              for kind, names in TUNED.items()}
    compared = (*UNTUNED, *chosen.values())
    return chosen | {world: max(compared, key=lambda n: accuracy(world, n))
                     for world in table.worlds}


def all_cells(worlds: Mapping[str, Sequence[Tally]], chosen: Chosen | None) -> tuple[
        list[Cell], Chosen]:
    """Return all figures; without anything chosen before, that is chosen by them."""
    found = cells(worlds)
    chosen = chosen or choose(CellTable(found))
    for system in (CALIBRATED, *map(bounded, BOUNDED)):
        found += estimated_cells(worlds, system, AS_IT_IS)
    together = [t for tallies in worlds.values() for t in tallies]
    for world, tallies in (*worlds.items(), (ALL_SETS, together)):
        if world in chosen:
            counts = Counts(tallies)
            for system in (CALIBRATED, *map(bounded, BOUNDED)):
                found += [_over(world, system, other, counts)
                          for other in dict.fromkeys((chosen[world], FULL))]
    return found, chosen


def _over(world: str, system: str, other: str, counts: Counts) -> Cell:
    name = CountKey(system, AS_IT_IS, 'all', 'accuracy')
    pair = (*counts.of(name), *counts.of(name._replace(system=other)))
    value, (low, high) = stats.difference(*pair)
    return Cell(world, system, AS_IT_IS, 'all', f'gain over {other}', round(value, 4),
                (round(low, 4), round(high, 4)), len(pair[0]))
