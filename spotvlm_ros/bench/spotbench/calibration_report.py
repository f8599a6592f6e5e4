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
"""What came of learning whom to believe: tables in the terminal and in Markdown, and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes

from .calibration import BOUNDED, Chosen
from .calibration_rows import (
    bounded, CALIBRATED, FIXED_ODDS, LATER, minute, TUNED, UNTUNED, with_odds)
from .cells import CellTable
from .estimates import CLOCK, estimate_of, FRAMES, KINDS, less
from .passes import AS_IT_IS, BLIND, DISTORTIONS, LIES
from .plots import COLOURS, draw_bounds, whole
from .report import about, Rows, text
from .systems import ALONE, FULL
from ...method.guard import ODDS
from ...system.markdown import table as markdown_table

MARKS = ('<!-- calibration: made by `spotvlm bench --calibration --report --update '
         'docs/benchmark.md` -->', '<!-- end of calibration -->')
REGAINED = 0.9
MINUTES = 2          # that the share of the gain is taken over, since one is little
ALL_ODDS = tuple(sorted((*FIXED_ODDS, ODDS)))
METHODS = (FULL, CALIBRATED, *map(bounded, BOUNDED))


def report(table: CellTable, meta: Mapping[str, object], chosen: Chosen, out: Path) -> str:
    """Print the tables, draw the plot to ``out``; return the tables as Markdown."""
    from rich.console import Console
    from rich.table import Table
    console, parts = Console(width=max(170, Console().width)), [about(meta)]
    for title, note, (head, rows) in sections(table, chosen):
        shown = Table(*head, title=title)
        for row in rows:
            shown.add_row(*row, style='bold' if row[0] == CALIBRATED else '')
        console.print(shown)
        parts += [f'### {title}', note, markdown_table(head, rows)]
    draw(table, out)
    return '\n\n'.join(parts) + '\n'


def sections(table: CellTable, chosen: Chosen) -> list[tuple[str, str, tuple[list[str], Rows]]]:
    """Return every table with its title and what it means."""
    return [
        ('Calibration', 'Facts right by the clock, percent; each set is one long stream. In '
         'brackets the 95 % interval over episodes. Thresholds are those that were best in all '
         'sets together on tuning seeds.', accuracy_rows(table, chosen)),
        ('Calibration: differences', 'Points, paired on the same episodes. The best baseline is '
         'the one that was best in that set on tuning seeds.', differences(table, chosen)),
        ('Calibration: help, harm, changed facts', 'Help and harm: percent of all facts, against '
         'the edge alone, by the clock. Changed: points over the edge alone where the label is '
         "another than at the newest cloud answer's frame.", help_rows(table)),
        ('Calibration: live estimates', 'Percent of all facts. Estimated: help and harm by the '
         'later answers of the cloud, as published at the end of the stream, over the answers '
         'since the oldest of the newest 300 labels; beside it what is true of these, each about '
         'its own frame, and of the same time by the clock, the first seconds of episodes '
         'included. In brackets the 95 % interval over episodes.', estimate_rows(table)),
        ('Calibration: thresholds', 'Percent of facts right, all sets; what is bold was chosen '
         'on tuning seeds.', threshold_rows(table, chosen)),
        ('Calibration: other edges and clouds', 'Percent of facts right, all sets, from the '
         'third minute on. Regained: of the gain that the best fixed odds have over the edge '
         f'alone; after: the first minute from which on it is {100 * REGAINED:.0f} % or more '
         f'over {MINUTES} minutes. Worst set: points that the calibrated method is over the edge '
         'alone, or over holding, where that is least.', condition_rows(table))]


def accuracy_rows(table: CellTable, chosen: Chosen) -> tuple[list[str], Rows]:
    """Return accuracy by system and set."""
    names = (*UNTUNED, *(chosen[kind] for kind in TUNED), *map(with_odds, FIXED_ODDS), *METHODS)
    return ['system', *table.worlds], [
        [name, *(text(table.get(w, name, AS_IT_IS)) for w in table.worlds)] for name in names]


def differences(table: CellTable, chosen: Chosen) -> tuple[list[str], Rows]:
    """Return what the calibrated method is ahead by."""
    def over(world: str, system: str, other: str) -> str:
        return text(table.get(world, system, AS_IT_IS, metric=f'gain over {other}'), True)
    rows = [['best baseline', *(chosen[w] for w in table.worlds)]]
    for system in METHODS[1:]:
        rows += [[f'{system}, minus best baseline',
                  *(over(w, system, chosen[w]) for w in table.worlds)],
                 [f'{system}, minus guard at {ODDS:g}',
                  *(over(w, system, FULL) for w in table.worlds)]]
    return ['difference', *table.worlds], rows


def help_rows(table: CellTable) -> tuple[list[str], Rows]:
    """Return help, harm and what is gained where facts changed."""
    def percent(world: str, system: str, part: str, metric: str, signed: bool = False) -> str:
        cell = table.get(world, system, AS_IT_IS, part, metric)
        return text(cell._replace(ci95=None), signed) if cell is not None else ''
    rows = []
    for system in METHODS:
        rows += [[f'{system}: {metric}', *(percent(w, system, 'all', metric)
                                           for w in table.worlds)] for metric in KINDS]
        rows.append([f'{system}: changed', *(percent(w, system, 'changed', 'gain', True)
                                             for w in table.worlds)])
    return ['', *table.worlds], rows


def estimate_rows(table: CellTable) -> tuple[list[str], Rows]:
    """Return help and harm as published live, beside what is true of the same answers."""
    def row(system: str, metric: str, signed: bool = False) -> list[str]:
        return [f'{system}: {metric}', *(
            text(table.get(w, system, AS_IT_IS, metric=metric), signed) for w in table.worlds)]
    rows = []
    for system in METHODS[1:]:
        for kind in KINDS:
            rows.append(row(system, estimate_of(kind)))
            for metric in (FRAMES, CLOCK):
                rows += [row(system, f'{kind} {metric}'), row(system, less(kind, metric), True)]
    return ['', *table.worlds], rows


def threshold_rows(table: CellTable, chosen: Chosen) -> tuple[list[str], Rows]:
    """Return accuracy over what was tuned."""
    rows = []
    for kind, names in TUNED.items():
        for name in names:
            value = text(table.get(whole(table), name, AS_IT_IS))
            rows.append([name, f'**{value}**' if name == chosen[kind] else value])
    return ['rule', whole(table)], rows


def condition_rows(table: CellTable) -> tuple[list[str], Rows]:
    """Return how fixed odds and the calibrated method fare with other edges and clouds."""
    world, rows = whole(table), []
    for condition in (AS_IT_IS, *DISTORTIONS, *LIES):
        if table.get(world, CALIBRATED, condition, LATER) is None:
            continue
        names = (ALONE, 'hold', *map(with_odds, ALL_ODDS), CALIBRATED)
        values = [_value(table, world, name, condition, LATER) for name in names]
        worst = [min(_value(table, w, CALIBRATED, condition, LATER) -
                     _value(table, w, name, condition, LATER) for w in table.worlds)
                 for name in (ALONE, 'hold')]
        regained = _regained(table, world, condition, LATER)
        rows.append([condition, *(f'{100 * v:.1f}' for v in values),
                     '' if regained is None else f'{100 * regained:.0f} %',
                     _regained_after(table, world, condition),
                     *(f'{100 * v:+.1f}' for v in worst)])
    return ['', ALONE, 'hold', *(f'odds {o:g}' for o in ALL_ODDS), CALIBRATED, 'regained',
            'after', 'worst set: over edge alone', 'over hold'], rows


def _value(table: CellTable, world: str, system: str, condition: str, part: str) -> float:
    cell = table.get(world, system, condition, part)
    return cell.value if cell is not None else float('nan')


def _regained(table: CellTable, world: str, condition: str, *parts: str) -> float | None:
    """Return the share of the gain of the best fixed odds; None where there is none to regain."""
    def gain(system: str) -> float:
        return sum(_value(table, world, system, condition, p) -
                   _value(table, world, ALONE, condition, p) for p in parts)
    best = max(gain(with_odds(o)) for o in ALL_ODDS)
    return gain(CALIBRATED) / best if best > 0.01 * len(parts) else None


def _regained_after(table: CellTable, world: str, condition: str) -> str:
    number = 0
    while table.get(world, CALIBRATED, condition, minute(number + MINUTES - 1)) is not None:
        share = _regained(table, world, condition,
                          *(minute(number + k) for k in range(MINUTES)))
        if share is not None and share >= REGAINED:
            return f'{number} min'
        number += 1
    return ''


def draw(table: CellTable, path: Path) -> None:
    """Draw gain over the bound of harm, and how a blind edge learns to believe the cloud."""
    pyplot.switch_backend('Agg')
    figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 4.0), layout='constrained')
    draw_bounds(table, axes[0], AS_IT_IS)
    _draw_blind(table, axes[1])
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_blind(table: CellTable, axis: Axes) -> None:
    world, count = whole(table), 0
    while table.get(world, CALIBRATED, BLIND, minute(count)) is not None:
        count += 1
    for name, label, colour, style in (
            (CALIBRATED, CALIBRATED, COLOURS[FULL], 'o-'),
            ('hold', 'hold', COLOURS['hold'], 'o-'), (ALONE, ALONE, COLOURS[ALONE], '-'),
            (FULL, f'guard at {ODDS:g}', '#3f9be8', 'o:')):
        axis.plot([k + 0.5 for k in range(count)], [
            100 * _value(table, world, name, BLIND, minute(k)) for k in range(count)],
            style, markersize=4, color=colour, label=label)
    axis.set_xlabel('time of the stream [min]')
    axis.set_ylabel('% of facts right')
    axis.set_ylim(bottom=0)
    axis.set_title('an edge that always says one value, sure of it', fontsize=10)
    axis.legend(frameon=False, fontsize=8)
