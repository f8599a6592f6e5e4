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
"""What is chosen on the user's tuning sequences, and what is learned on all in turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from . import systems
from .calibration_rows import fixed, FIXED_ODDS, Learner, MAJORITIES, Part, THRESHOLDS
from .cells import Cell, cells, CellTable, Counts, gain
from .delays import HEADLINE, TRACES
from .passes import FOCUS_ONLY, Heard
from .replay import Replay, RunScope
from .score import PublishedAnswer
from .systems import (
    BASELINES, BOUND, bounded, BOUNDS, CALIBRATED, FULL, STACKED, Tuned, TUNED_ODDS)
from .tally import CountKey
from ...labels.schema import Label
from ...method.guard import ODDS, OFF

Published = list[PublishedAnswer]
TUNING = 'tuning sequences'
ALL_ODDS = (ODDS, *FIXED_ODDS, OFF)
ON_TUNING = RunScope((HEADLINE,), ablations=False, controls=False)


def majority_values(labels: Iterable[Label]) -> dict[str, str]:
    """Return the commonest value of each key."""
    counts: dict[str, Counter[str]] = {}
    for label in labels:
        for key, value in label.facts.items():
            counts.setdefault(key, Counter())[value] += 1
    return {key: c.most_common(1)[0][0] for key, c in counts.items()}


def tune(runs: Sequence[Replay]) -> Tuned:
    """Return the thresholds that are right most often on these."""
    held = [systems.hold(run.arrivals(TRACES[HEADLINE])) for run in runs]

    def best(choices: Sequence[float], rule: Callable[..., Published], told: bool = True) -> float:
        def right(threshold: float) -> float:
            hits = 0
            for run, answers in zip(runs, held):
                given = (run.alone, answers) if told else (run.alone,)
                grid = run.scorer.grid(rule(*given, threshold))
                hits += int((grid & run.scorer.slices([])['all']).sum())
            return hits
        return max(choices, key=right)
    return Tuned(best(THRESHOLDS, systems.fusion), best(THRESHOLDS, systems.cascade),
                 int(best(MAJORITIES, systems.smoothed, told=False)))


def run_tuning(runs: Sequence[Replay]) -> Iterator[Replay]:
    """Score the baselines on the tuning sequences; yield each when it is done."""
    for run in runs:
        run.run(ON_TUNING)
        run.score(FOCUS_ONLY, HEADLINE,
                  run.transfer(FOCUS_ONLY, run.arrivals(TRACES[HEADLINE])).published)
        yield run


def best_baseline(runs: Sequence[Replay]) -> str:
    """Return what else is right most often there: a baseline, or focus alone."""
    table = CellTable(cells({TUNING: [run.tally for run in runs]}))
    found = {name: cell.value for name in (*BASELINES, FOCUS_ONLY)
             if (cell := table.get(TUNING, name)) is not None}
    return max(found, key=lambda name: found[name])


def learned(runs: Sequence[Replay], tuning: int) -> float | None:
    """
    Score what learns whom to believe, over all sequences in turn as over one long stream.

    The first ``tuning`` of them choose the guard's odds, which are returned, None without any.
    """
    parts, query = [_part(run) for run in runs], runs[0].stream.query
    odds = _best_odds(runs[:tuning], parts) if tuning else None
    rows = [] if odds is None else [(TUNED_ODDS, fixed(parts, odds))]
    rows += [(STACKED, Learner(query, told=False).over(parts)),
             (CALIBRATED, Learner(query).over(parts))]
    rows += [(bounded(b, careful),
              Learner(replace(query, harm_at_most=b, cautious=careful)).over(parts))
             for careful, bounds in ((False, BOUNDS), (True, (BOUND,))) for b in bounds]
    for name, published in rows:
        for run, one in zip(runs, published):
            run.score(name, HEADLINE, one)
    return odds


def _best_odds(runs: Sequence[Replay], parts: Sequence[Part]) -> float:
    """Return the odds of the guard that are right most often; of as good ones, the usual."""
    def hits(odds: float) -> int:
        return sum(int((run.scorer.grid(published) & run.scorer.slices([])['all']).sum())
                   for run, published in zip(runs, fixed(parts[:len(runs)], odds)))
    return max(ALL_ODDS, key=hits)


def _part(run: Replay) -> Part:
    full = run.full[HEADLINE]
    told = {s: run.inputs.edge(s, c, guarded=False) for s, c in full.contexts.items()}
    return Part(run.stream, run.alone, Heard(tuple(run.arrivals(TRACES[HEADLINE])), full.contexts,
                                             told), run.inputs.latencies)


def gains_of_learned(world: str, runs: Sequence[Replay], best: str) -> list[Cell]:
    """Return how much the calibrated method is above the best baseline and the full method."""
    counts = Counts([run.tally for run in runs])
    found = [gain(world, CountKey(name, HEADLINE, 'all', 'accuracy'), counts, other,
                  f'gain over {other}')
             for name in (TUNED_ODDS, CALIBRATED, bounded(BOUND), bounded(BOUND, True))
             for other in dict.fromkeys((best, FULL))]
    return [cell for cell in found if cell is not None]
