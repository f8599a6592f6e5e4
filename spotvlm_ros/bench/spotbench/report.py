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
"""What the benchmark found: a table in the terminal, plots, and one page that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
import html
import json
from pathlib import Path

from .cells import ALL_SETS, Cell, CellTable
from .cloud_said import HEAD
from .controls import CONTROLS, OTHER
from .delays import HEADLINE, NEVER, TRACES
from .plots import draw_all, whole
from .systems import ALONE, BOUND, bounded, CALIBRATED, FULL, SYSTEMS, TUNED_ODDS
from ...system.markdown import table as markdown_table
from ...view.parts import document, heading, note as html_note, table as html_table

Rows = list[list[str]]
FEW_DELAYS = 4  # are not shown one by one
SHOWN = 6       # sequences of own data that stand in the tables one by one
ORACLE = 'cloud, zero latency (oracle)'
MARKS = ('<!-- results: made by `spotvlm bench --report --update docs/benchmark.md` -->',
         '<!-- end of results -->')


def report(cells: Sequence[Cell], meta: Mapping[str, object], out: Path) -> None:
    """Print the table, draw the plots, write the page."""
    chosen = meta.get('chosen')
    table = CellTable(cells, chosen['best_baseline'] if isinstance(chosen, Mapping) else '')
    if len(table.worlds) > SHOWN + 1 and meta.get('sequences'):
        table = CellTable((c for c in cells if c.world == ALL_SETS), table.best)
    _print(table, meta)
    drawn = draw_all(table, out)
    (out / 'report.html').write_text(page(table, meta, drawn))
    (out / 'report.md').write_text(markdown(table, meta))
    print(f'wrote results.json, report.html, report.md and {len(drawn)} plots to {out}/')


def text(cell: Cell | None, signed: bool = False) -> str:
    """Return a figure in percent or points with its interval."""
    if cell is None:
        return ''
    number = f'{100 * cell.value:+.1f}' if signed else f'{100 * cell.value:.1f}'
    if cell.ci95 is None:
        return number
    low, high = (f'{100 * v:+.1f}' if signed else f'{100 * v:.1f}' for v in cell.ci95)
    return f'{number} [{low}, {high}]'


def headline(table: CellTable) -> tuple[list[str], Rows]:
    """Return streaming accuracy per system and set."""
    names = [s for s in SYSTEMS if s not in (FULL,) and any(
        table.get(w, s) for w in table.worlds) and not SYSTEMS[s].ablation]
    rows = [[name, *(text(table.get(w, name)) for w in table.worlds)] for name in (*names, FULL)]
    rows.append([ORACLE, *(text(table.get(w, ORACLE, '-', metric='offline'))
                           for w in table.worlds)])
    return ['system', *table.worlds], rows


def verdicts(table: CellTable) -> tuple[list[str], Rows]:
    """Return the method's gains, per set, in points of a hundred."""
    rows = [
        ['best baseline', *(table.best_baseline(w) for w in table.worlds)],
        ['full minus best baseline',
         *(text(table.over_best(w), True) for w in table.worlds)]]
    for name in (TUNED_ODDS, CALIBRATED, bounded(BOUND), bounded(BOUND, True)):
        if any(table.get(w, name) for w in table.worlds):
            rows.append([f'{name}, minus best baseline',
                         *(text(table.over_best(w, name), True) for w in table.worlds)])
            rows += [[f'{name}: {metric}',
                      *(text(table.get(w, name, metric=metric)) for w in table.worlds)]
                     for metric in ('help', 'harm')]
    for label, part in (('full minus edge alone', 'all'),
                        ('the same, changed facts', 'changed'),
                        ('the same, unchanged facts', 'unchanged')):
        rows.append([label, *(text(table.get(w, FULL, HEADLINE, part, 'gain'), True)
                              for w in table.worlds)])
    for label, metric in (('help: wrong to right', 'help'), ('harm: right to wrong', 'harm')):
        rows.append([label, *(text(table.get(w, FULL, metric=metric)) for w in table.worlds)])
    for delay in ('fixed 9 s', NEVER):
        rows.append([f'full minus edge alone, {delay}', *(
            text(table.get(w, FULL, delay, 'all', 'gain'), True) for w in table.worlds)])
    return [FULL, *table.worlds], rows


def ablations(table: CellTable) -> tuple[list[str], Rows]:
    """Return what the full method has over each of its parts, on the same episodes."""
    rows = [[f'full minus {s.name}', *(
        text(table.get(w, FULL, HEADLINE, 'all', f'gain over {s.name}'), True)
        for w in table.worlds)] for s in SYSTEMS.values() if s.ablation]
    return ['points, same episodes', *table.worlds], [r for r in rows if any(r[1:])]


def control_rows(table: CellTable) -> tuple[list[str], Rows]:
    """Return facts right, and told facts repeated, under each control."""
    names = ('full, same frames', 'edge alone, same frames', *CONTROLS, OTHER,
             'blank image, no context')
    cell = {(n, m): table.get(whole(table), n, HEADLINE, 'control frames', m) for n in names
            for m in ('offline', 'repeats_context')}
    rows = [[n, text(cell[n, 'offline']), text(cell[n, 'repeats_context'])] for n in names]
    return ['control', 'facts right', 'told facts repeated'], [r for r in rows if any(r[1:])]


def check_rows(table: CellTable) -> tuple[list[str], Rows]:
    """Return the check of the check: labels of another time."""
    part = next((s for s in table.slices if s.startswith('labels shifted')), '')
    rows = []
    for name, delay in ((FULL, HEADLINE), (ALONE, '-'), ('truth', '-'), ('majority', '-')):
        label = {'truth': 'the truth itself, as an answer', 'majority': 'majority (chance)'}
        rows.append([label.get(name, name), *(text(table.get(w, name, delay, part))
                                              for w in table.worlds)])
    return [part or 'labels shifted', *table.worlds], [r for r in rows if any(r[1:])]


def slice_rows(table: CellTable, prefix: str) -> tuple[list[str], Rows]:
    """Return accuracy by task or key, the edge alone beside the full method."""
    parts = sorted(s for s in table.slices if s.startswith(prefix))
    rows = [[part.removeprefix(prefix), *(
        text(table.get(whole(table), name, HEADLINE, part)) for name in (ALONE, FULL))]
        for part in parts]
    return [prefix.strip(), ALONE, FULL], rows


def delay_rows(table: CellTable) -> tuple[list[str], Rows]:
    """Return what the full method gains under each delay, where there are more than a few."""
    rows = [[delay, *(text(table.get(whole(table), name, delay))
                      for name in ('hold', 'fusion', FULL)),
             text(table.get(whole(table), FULL, delay, 'all', 'gain'), True),
             text(table.get(whole(table), FULL, delay, metric='harm'))] for delay in TRACES]
    found = [row for row in rows if row[3]]
    return ['delay', 'hold', 'fusion', FULL, 'full minus edge alone', 'harm'], (
        found if len(found) > FEW_DELAYS else [])


def said_rows(meta: Mapping[str, object]) -> tuple[list[str], Rows]:
    """Return what the cloud said of its own frames, where the run kept that."""
    said = meta.get('cloud_said')
    rows = said.get('said_of_true') if isinstance(said, Mapping) else None
    return HEAD, rows if isinstance(rows, list) else []


def sections(table: CellTable, meta: Mapping[str, object],
             ) -> list[tuple[str, str, tuple[list[str], Rows]]]:
    """Return every table with its title and what it means."""
    return [
        ('What the cloud said', 'Of its own frames, against the labels of their time.',
         said_rows(meta)),
        ('Headline', f'Facts right at label times, percent, {HEADLINE} (synthetic): at each time '
         'the latest answer published counts. In brackets the 95 % interval over episodes '
         '(cluster bootstrap). The oracle is the cloud about its own frame, as if it took no '
         'time.', headline(table)),
        ('The full method', 'Differences in points, paired on the same episodes. Changed: the '
         "label is another than at the newest cloud answer's frame. Help and harm: percent of "
         'all facts, against the edge alone.', verdicts(table)),
        ('Parts', 'What the full method has over itself without a part. Positive: the part '
         'helps.', ablations(table)),
        ('Controls', 'The edge is told something else than the full method tells it, frame by '
         'frame. A model that looks at its frame is not led astray by permuted values, and does '
         'not repeat what it is told.', control_rows(table)),
        ('Tasks', 'Percent of facts right, all sets.', slice_rows(table, 'task ')),
        ('Keys', 'Percent of facts right, all sets.', slice_rows(table, 'key ')),
        ('Delays', 'Percent of facts right, all sets; differences in points, paired. Harm: facts '
         'that were right without the cloud.', delay_rows(table)),
        ('Check of the check', 'Scored against labels of another time every system must fall to '
         'chance. Beside: the truth of the right time scored so, and the majority class.',
         check_rows(table))]


def _print(table: CellTable, meta: Mapping[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table
    console = Console(width=max(150, Console().width))
    for title, _, (head, rows) in sections(table, meta)[:6]:
        if not rows:
            continue
        shown = Table(*head, title=title)
        for row in rows:
            shown.add_row(*row, style='bold' if row[0] == FULL else '')
        console.print(shown)
    agreement = meta.get('wall_clock')
    if agreement:
        console.print(f'wall clock minus replay, points: {agreement}')


def markdown(table: CellTable, meta: Mapping[str, object]) -> str:
    """Return the tables for docs/benchmark.md."""
    parts = [about(meta)]
    for title, note, (head, rows) in sections(table, meta):
        if rows:
            parts += [f'### {title}', note, markdown_table(head, rows)]
    return '\n\n'.join(parts) + '\n'


def about(meta: Mapping[str, object]) -> str:
    """Return what was run, and where."""
    def entry(*path: str) -> object:
        value: object = meta
        for name in path:
            value = value.get(name, '?') if isinstance(value, Mapping) else '?'
        return value
    edge, cloud = (f'{entry("models", name, "name")} ({entry("models", name, "hash")})'
                   for name in ('edge', 'cloud'))
    return (f'{entry("extent")} set, {entry("split")} seeds, commit {entry("commit")}, edge '
            f'{edge}, cloud {cloud}, replay with latencies of '
            f'{entry("latencies_charged", "machine")}; took {entry("run", "took_s")} s, '
            f'{entry("run", "cpu_s")} s of CPU time, on {entry("run", "machine")}. '
            f'{entry("synthetic")}.')


def page(table: CellTable, meta: Mapping[str, object], drawn: Mapping[str, Path]) -> str:
    """Return the whole page."""
    body = [html_note(about(meta))]
    plots = {title: base64.b64encode(path.read_bytes()).decode() for title, path in drawn.items()}
    after = {'Headline': ('Accuracy by set', 'Accuracy over delay', 'Latency and accuracy'),
             'The full method': ('Help and harm', 'Gain and harm over the bound of harm',
                                 'Accuracy by age of the newest cloud answer'),
             'Controls': ('Controls',), 'Tasks': ('Accuracy by size of the object',)}
    for title, note, (head, rows) in sections(table, meta):
        if not rows:
            continue
        body += [heading(title), html_note(note), html_table(head, rows, marked=FULL, cell=_cell)]
        body += [f'{heading(plot)}<img alt="{plot}" src="data:image/png;base64,{plots[plot]}">'
                 for plot in after.get(title, ()) if plot in plots]
    body.append(f'{heading("Run")}<pre>{html.escape(json.dumps(dict(meta), indent=1))}</pre>')
    return document('SpotBench', body)


def _cell(value: str) -> str:
    number, _, interval = value.partition(' [')
    return html.escape(number) + (
        f' <span class="ci">[{html.escape(interval)}</span>' if interval else '')
