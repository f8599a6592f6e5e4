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
"""The plots of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cells import ALL_SETS, Cell, CellTable
from .controls import BLANK, CONTROLS, OTHER
from .delays import HEADLINE, TRACES
from .systems import (
    ALONE, BOUND, bounded, BOUNDS, CALIBRATED, FULL, NO_GATE, OWN_HISTORY, SMOOTHED, STACKED,
    STILL, SYSTEMS, TUNED_ODDS, UNGUARDED, UNTIL_CHANGED)
from ...method.guard import ODDS

COLOURS = {FULL: '#0b5fa5', UNGUARDED: '#3f9be8', ALONE: '#555555', 'hold': '#d95f02',
           'fusion': '#1b9e77', OWN_HISTORY: '#9467bd', 'cloud only': '#e6a13c',
           'deadline': '#8c564b', 'cascade': '#66a61e', 'majority': '#bbbbbb',
           'context only': '#6baed6', 'focus only': '#74a9cf', NO_GATE: '#2b8cbe',
           STILL: '#a6bddb', SMOOTHED: '#888888', UNTIL_CHANGED: '#e7298a', STACKED: '#a6761d',
           CALIBRATED: '#2171b5', bounded(BOUND): '#4292c6',
           bounded(BOUND, True): '#08519c', TUNED_ODDS: '#9ecae1'}
CURVES = (FULL, ALONE, 'fusion', 'hold', OWN_HISTORY)
WIDE = (9.5, 4.2)
HARMED = '#c8443c'
SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SHOWN_WORLDS = 6


def draw_all(table: CellTable, out: Path) -> dict[str, Path]:
    """Draw everything that there are figures for; return what was drawn, by title."""
    pyplot.switch_backend('Agg')
    pyplot.rcParams.update({'font.size': 9, 'axes.spines.top': False,
                            'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.25,
                            'axes.axisbelow': True, 'legend.frameon': False})
    plots: dict[str, Callable[[CellTable], Figure | None]] = {
        'Accuracy by set': by_set, 'Accuracy over delay': over_delay,
        'Accuracy by age of the newest cloud answer': by_age, 'Help and harm': help_and_harm,
        'Latency and accuracy': pareto, 'Controls': controls,
        'Accuracy by size of the object': by_size,
        'Gain and harm over the bound of harm': over_bounds}
    drawn = {}
    for title, draw in plots.items():
        figure = draw(table)
        if figure is None:
            continue
        path = out / (draw.__name__ + '.png')
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
        drawn[title] = path
    return drawn


def whole(table: CellTable) -> str:
    """Return the world that stands for all."""
    return ALL_SETS if ALL_SETS in table.worlds else table.worlds[0]


def _error(cells: Sequence[Cell]) -> list[list[float]] | None:
    if any(c.ci95 is None for c in cells):
        return None
    return [[max(0.0, c.value - c.ci95[0]) for c in cells if c.ci95],
            [max(0.0, c.ci95[1] - c.value) for c in cells if c.ci95]]


def _points(axis: Axes, x: Sequence[float], cells: Sequence[Cell], system: str,
            linestyle: str = '-') -> None:
    strong = system == FULL
    axis.errorbar(x, [c.value for c in cells], _error(cells), color=COLOURS[system],
                  label=system, capsize=2, marker='o', markersize=5 if strong else 4,
                  linewidth=2 if strong else 1.2, zorder=3 if strong else 2, linestyle=linestyle)


def by_set(table: CellTable) -> Figure:
    """Draw streaming accuracy at the headline delay, per set."""
    names = (*CURVES, 'deadline', 'cascade', 'cloud only', 'majority')
    figure, axis = pyplot.subplots(figsize=WIDE, layout='constrained')
    for k, name in enumerate(names):
        found = [(i, c) for i, w in enumerate(table.worlds) if (c := table.get(w, name))]
        if found:
            place = (k - (len(names) - 1) / 2) * 0.075
            _points(axis, [i + place for i, _ in found], [c for _, c in found], name,
                    linestyle='none')
    axis.set_xticks(range(len(table.worlds)), table.worlds)
    axis.set_ylabel('facts right, by the clock')
    axis.grid(axis='x', visible=False)
    axis.legend(loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def over_delay(table: CellTable) -> Figure:
    """Draw streaming accuracy over the delays that were run, per set."""
    worlds = table.worlds[:SHOWN_WORLDS]
    delays = [d for d in TRACES if table.get(whole(table), FULL, d)]
    order = sorted(delays, key=lambda d: (TRACES[d].median_s or sum(TRACES[d].spread_s) / 2,
                                          TRACES[d].sigma, d))
    columns = min(3, len(worlds))
    rows = -(-len(worlds) // columns)
    size = max(9.0, 3.4 * columns + 1), 3.1 * rows + 0.6
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout='constrained', sharey=True,
                                   squeeze=False)
    for axis, world in zip(axes.flat, worlds):
        for name in CURVES:
            found = [(i, c) for i, d in enumerate(order) if (c := table.get(world, name, d))]
            _points(axis, [i + 0.04 * (CURVES.index(name) - 2.5) for i, _ in found],
                    [c for _, c in found], name)
        axis.set_title(world, fontsize=10)
        axis.set_xticks(range(len(order)), [d.removeprefix('fixed ') for d in order],
                        rotation=30 if len(order) <= 5 else 60, ha='right')
    for axis in axes[:, 0]:
        axis.set_ylabel('facts right')
    for axis in axes.flat[len(worlds):]:
        axis.set_axis_off()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside upper center',
                  ncols=len(CURVES))
    return figure


def by_age(table: CellTable) -> Figure:
    """Draw accuracy by the age of the newest cloud answer, for each delay that is telling."""
    ages = [s for s in table.slices if s.startswith('age ')]
    ages.sort(key=lambda s: float(s.split()[1]) if s.split()[1] != 'over' else 1e9)
    world = whole(table)
    shown = [d for d in (HEADLINE, 'fixed 9 s') if d in table.delays]
    figure, axes = pyplot.subplots(1, len(shown), figsize=WIDE, layout='constrained',
                                   sharey=True, squeeze=False)
    for axis, delay in zip(axes[0], shown):
        most = max((c.n_episodes for a in ages if (c := table.get(world, FULL, delay, a))),
                   default=0)
        known = [a for a in ages if (c := table.get(world, FULL, delay, a))
                 and 3 * c.n_episodes >= most]  # of fewer there is only noise to see
        for k, name in enumerate(CURVES):
            found = [(i, c) for i, a in enumerate(known)
                     if (c := table.get(world, name, delay, a))]
            if found:
                _points(axis, [i + 0.05 * (k - 2.5) for i, _ in found],
                        [c for _, c in found], name)
        axis.set_title(f'{world}, {delay}', fontsize=10)
        axis.set_xticks(range(len(known)), [a.removeprefix('age ') for a in known])
        axis.set_xlim(-0.5, max(1, len(known)) - 0.5)
        axis.set_xlabel('age of the newest cloud answer')
    axes[0][0].set_ylabel('facts right, by the clock')
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc='outside upper center',
                  ncols=len(CURVES))
    return figure


def help_and_harm(table: CellTable) -> Figure:
    """Draw the share of facts put right and put wrong, against the edge alone."""
    names = [n for n in (FULL, 'context only', 'focus only', NO_GATE, UNGUARDED, 'fusion',
                         OWN_HISTORY)
             if table.get(whole(table), n, metric='help')]
    parts = ('all', 'changed', 'unchanged')
    figure, axes = pyplot.subplots(1, len(parts), figsize=(9.5, 3.6), layout='constrained',
                                   sharey=True, sharex=True)
    for axis, part in zip(axes, parts):
        for i, name in enumerate(names):
            up = table.get(whole(table), name, part=part, metric='help')
            down = table.get(whole(table), name, part=part, metric='harm')
            if up and down:
                axis.barh(-i, 100 * up.value, color='#2c9f5c', height=0.7)
                axis.barh(-i, -100 * down.value, color=HARMED, height=0.7)
        axis.axvline(0, color='black', linewidth=0.8)
        axis.set_title(part if part == 'all' else f"{part} since the cloud's frame", fontsize=10)
        axis.set_yticks([-i for i in range(len(names))], names)
        axis.set_xlabel('% of facts: harm | help')
        axis.grid(axis='y', visible=False)
    return figure


def pareto(table: CellTable) -> Figure:
    """Draw accuracy over the time from a frame to the answer about it."""
    figure, axis = pyplot.subplots(figsize=(7.5, 4.2), layout='constrained')
    world = whole(table)
    for system in SYSTEMS.values():
        accuracy = table.get(world, system.name)
        late = table.get(world, system.name, metric='latency_s')
        if accuracy and late and system.kind != 'none' and not system.ablation:
            _points(axis, [late.value], [accuracy], system.name, linestyle='none')
    axis.set_xscale('log')
    axis.set_xticks(SECONDS, [f'{s:g}' for s in SECONDS])
    axis.set_xticks([], minor=True)
    axis.set_xlim(SECONDS[0], SECONDS[-1])
    axis.set_xlabel('from a frame to the answer about it, mean [s]')
    axis.set_ylabel('facts right, by the clock')
    axis.set_title(f'{world}, {HEADLINE}: up and to the left is better', fontsize=10)
    axis.legend(loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def controls(table: CellTable) -> Figure | None:
    """Draw what happens when the context is false."""
    world, part = whole(table), 'control frames'
    names = [n for n in ('full, same frames', 'edge alone, same frames', *CONTROLS, OTHER,
                         'blank image, no context')
             if table.get(world, n, HEADLINE, part, 'offline')]
    if not names:
        return None
    figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 3.8), layout='constrained', sharey=True)
    for axis, metric, label in zip(axes, ('offline', 'repeats_context'), (
            'facts right, frame by frame', 'told facts that the answer repeats')):
        for i, name in enumerate(names):
            cell = table.get(world, name, HEADLINE, part, metric)
            if cell is not None:
                colour = {'full, same frames': COLOURS[FULL], BLANK: HARMED}.get(
                    name, HARMED if 'permuted' in name or name == OTHER else '#555555')
                axis.errorbar([cell.value], [-i], xerr=_error([cell]), marker='o', capsize=2,
                              color=colour)
        axis.set_yticks([-i for i in range(len(names))], names)
        axis.set_xlabel(label)
        axis.set_xlim(0, 1)
    return figure


def by_size(table: CellTable) -> Figure | None:
    """Draw accuracy by the longer side of the thing."""
    sizes = [s for s in ('size absent', 'size small', 'size medium', 'size large')
             if s in table.slices]
    if len(sizes) < 2:
        return None
    figure, axis = pyplot.subplots(figsize=(7.5, 3.8), layout='constrained')
    for name in CURVES:
        found = [(i, c) for i, s in enumerate(sizes)
                 if (c := table.get(whole(table), name, HEADLINE, s))]
        _points(axis, [i for i, _ in found], [c for _, c in found], name)
    axis.set_xticks(range(len(sizes)), [{'size absent': 'nothing there,\nor no region',
                                         'size small': 'below 32 px',
                                         'size medium': '32 to 80 px',
                                         'size large': 'over 80 px'}[s] for s in sizes])
    axis.set_ylabel('facts right')
    axis.legend(loc='center left', bbox_to_anchor=(1, 0.5))
    return figure


def over_bounds(table: CellTable) -> Figure | None:
    """Draw gain and harm of the calibrated method over the bound of harm."""
    if table.get(whole(table), bounded(BOUNDS[0])) is None:
        return None
    figure, axis = pyplot.subplots(figsize=(6.0, 4.2), layout='constrained')
    draw_bounds(table, axis, HEADLINE)
    return figure


def draw_bounds(table: CellTable, axis: Axes, delay: str) -> None:
    """Draw the same to an axis; the delay is a condition where edge and cloud are others."""
    world = whole(table)
    names = [*map(bounded, BOUNDS), CALIBRATED]
    for metric, style, colour, label in (('gain', 'o-', COLOURS[FULL], 'gain over the edge alone'),
                                         ('harm', 's-', HARMED, 'harm')):
        found = [c for n in names if (c := table.get(world, n, delay, metric=metric))]
        axis.plot([100 * c.value for c in found], style, color=colour, label=label)
    axis.plot([100 * b for b in BOUNDS], color=HARMED, linestyle=':', label='harm at most')
    for name, label, style in ((FULL, f'gain of the guard at {ODDS:g}', '--'),
                               (UNGUARDED, 'gain of one pass', '-.')):
        gain = table.get(world, name, delay, metric='gain')
        if gain is not None:
            axis.axhline(100 * gain.value, color='#555555', linestyle=style, linewidth=1,
                         label=label)
    axis.set_xticks(range(len(names)), [*(f'{100 * b:g} %' for b in BOUNDS), 'none'])
    axis.set_xlabel('bound of harm')
    axis.set_ylabel('points, % of facts')
    axis.set_ylim(bottom=0)
    axis.set_title(world, fontsize=10)
    axis.legend(frameon=False, fontsize=8)
