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
"""What came of all attacks: bars, the table on the terminal, rows of results.json, the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
import datetime
import math
import re
import statistics
import sys

from .result import PerfResult
from ..faults.kills import Kill, OTHERS
from ..faults.kinds import Kind, SOAK_SCENE
from ..faults.replies import Parsed
from ..faults.scene import Turn
from ...system.machine import machine
from ...system.markdown import table

MOST_MB = 600.0   # of the composed graph, at any time
GROWTH_MB = 5.0   # that a soak may take
PARTS = ('each', 'soak', 'kills', 'replies')  # of the page; others stay as they are
MARKS = {part: (f'<!-- {part}: made by `spotvlm perf faults --update docs/reliability.md` -->',
                f'<!-- end of {part} -->') for part in PARTS}
HEAD = ('attack', 'tried', 'edge [Hz]', 'of undisturbed', 'lost', 'gap [s]', 'back [s]',
        'memory [MB]', 'threads', 'sockets', 'exceptions')
KILLS_HEAD = ('killed', 'camera [Hz]', 'edge [Hz]', 'cloud [Hz]', 'gap [s]', 'back [s]',
              'context [s]', 'others [cores]')
WIDTH = 160  # of the table where the output is no terminal


@dataclass
class Attacked:
    """What came of all attacks."""

    turns: list[Turn] = field(default_factory=list)      # each kind by itself, repeats too
    soaked: list[Turn] = field(default_factory=list)
    first_mb: list[float] = field(default_factory=list)  # memory after the first turn of each kind
    soak_mb: list[float] = field(default_factory=list)   # memory after each turn of the soak
    broken: list[str] = field(default_factory=list)      # by what graphs were, in words
    exits: dict[str, int | None] = field(default_factory=dict)  # of graphs, by scene
    kills: list[Kill] = field(default_factory=list)
    replies: Parsed | None = None

    def of_kind(self) -> list[Turn]:
        """Return one turn for each kind: all that there were, added up."""
        by_kind: dict[Kind, list[Turn]] = {}
        for turn in self.turns:
            by_kind.setdefault(turn.kind, []).append(turn)
        return [_sum(kind, met) for kind, met in by_kind.items()]

    @property
    def growth_mb(self) -> float:
        """Return what the soak has taken: the median of its last fifth over that of its first."""
        fifth = len(self.soak_mb) // 5
        return statistics.median(self.soak_mb[-fifth:]) - statistics.median(
            self.soak_mb[:fifth]) if fifth else 0.0

    def parts(self) -> dict[str, Attacked]:
        """Return what was done by itself, of PARTS."""
        exits: dict[str, dict[str, int | None]] = {part: {} for part in PARTS}
        for name, code in self.exits.items():
            exits[name if name == 'soak' else 'kills' if name.startswith('run ') else 'each'][
                name] = code
        done = {
            'each': Attacked(turns=self.turns, broken=self.broken, exits=exits['each']),
            'soak': Attacked(soaked=self.soaked, first_mb=self.first_mb, soak_mb=self.soak_mb,
                             broken=self.broken, exits=exits['soak']),
            'kills': Attacked(kills=self.kills, exits=exits['kills']),
            'replies': Attacked(replies=self.replies)}
        return {name: part for name, part in done.items()
                if part.turns or part.soaked or part.kills or part.replies is not None}

    def _soak_marks(self) -> list[float]:
        return [*self.first_mb[:1], *self.first_mb[-1:], self.soak_mb[-1]]

    def failures(self) -> list[str]:
        """Return which bars were not met, in words."""
        found = [f'{t.kind.title}: edge rate {t.ratio:.1%}, not {t.kind.least:.1%}'
                 for t in [*self.of_kind(), *groups(self.soaked)]
                 if t.kind.least is not None and t.ratio < t.kind.least]
        for turn in self.turns + self.soaked:
            if turn.memory_mb[1] > MOST_MB:
                found.append(f'{turn.kind.title}: {turn.memory_mb[1]:.0f} MB, not {MOST_MB:.0f}')
            if turn.exceptions:
                found.append(f'{turn.kind.title}: {turn.exceptions} exceptions')
            if turn.counted.get('answers_out_of_choices'):
                found.append(f'{turn.kind.title}: answers that are no choice')
        found += [text for kill in self.kills for text in kill.failures()]
        found += self.broken
        found += [f'graph {name}: exit status {code}' for name, code in self.exits.items() if code]
        if self.growth_mb > GROWTH_MB:
            found.append(f'soak: memory grew by {self.growth_mb:.1f} MB, not {GROWTH_MB:g}')
        if self.replies is not None:
            found += self.replies.failures()
        return list(dict.fromkeys(found))

    def remarks(self) -> list[str]:
        """Return what no table has: the soak as a whole, exits, replies, what was lost."""
        lines = [f'Exit status of the graph of {name}: {code}.' for name, code in
                 self.exits.items()]
        if self.soak_mb:
            lines.append(
                f'Memory after the first turn of all, after one of each kind, at the end of the '
                f'soak: {", ".join(f"{mb:.0f}" for mb in self._soak_marks())} MB; its last fifth '
                f'over its first: {self.growth_mb:+.1f} MB, {len(self.soak_mb)} turns.')
        if self.replies is not None:
            lines.append(f'{self.replies}.')
        for turn in self.of_kind():
            if turn.counted:
                counts = ', '.join(f'{n:,} {key}' for key, n in turn.counted.items() if n)
                lines.append(f'Counted under {turn.kind.title}: {counts}.')
        return [*lines, *(f'**Bar not met**: {text}.' for text in self.failures())]


def groups(turns: Sequence[Turn]) -> list[Turn]:
    """Return turns of a soak added up by group."""
    by_group: dict[str, list[Turn]] = {}
    for turn in turns:
        by_group.setdefault(turn.kind.group, []).append(turn)
    return [_sum(Kind('soak', group, SOAK_SCENE, min(
        (t.kind.least for t in met if t.kind.least), default=None)), met)
        for group, met in by_group.items()]


def _sum(kind: Kind, met: Sequence[Turn]) -> Turn:
    seconds = sum(t.seconds for t in met)
    return Turn(
        kind, seconds, sum(t.tried for t in met),
        sum(t.clean_hz * t.seconds for t in met) / seconds,
        sum(t.hz * t.seconds for t in met) / seconds, max(t.gap_s for t in met),
        max(t.back_s for t in met),
        (met[0].memory_mb[0], max(t.memory_mb[1] for t in met), met[-1].memory_mb[2]),
        (met[0].threads[0], met[-1].threads[1]), (met[0].sockets[0], met[-1].sockets[1]),
        sum(t.exceptions for t in met),
        {k: sum(t.counted.get(k, 0) for t in met) for t in met for k in t.counted},
        max(t.others for t in met))


def cells(turn: Turn) -> list[str]:
    """Return a line of the table."""
    back = 'restarted' if math.isinf(turn.back_s) else f'{turn.back_s:.1f}'
    return [turn.kind.title, f'{turn.tried:,}', f'{turn.hz:.2f}',
            f'{turn.ratio:.1%}' + (f' (bar {turn.kind.least:.3g})' if turn.kind.least else ''),
            str(turn.lost), f'{turn.gap_s:.2f}', back,
            ' '.join(f'{mb:.0f}' for mb in turn.memory_mb),
            '{} {}'.format(*turn.threads), '{} {}'.format(*turn.sockets), str(turn.exceptions)]


def kill_cells(kill: Kill) -> list[str]:
    """Return a line of the table of kills: rates before and after, the judged ones in percent."""
    rates = [f'{kill.before[name]:.2f} {kill.after[name]:.2f}'
             + f' ({kill.ratio(name):.1%})' * (name in OTHERS[kill.victim])
             for name in ('camera', 'edge', 'cloud')]
    return [kill.title, *rates, f'{kill.gap_s:.2f}', f'{kill.back_s:.1f}',
            f'{kill.context_s:.1f}', f'{kill.others:.1f}']


def print_table(attacked: Attacked) -> None:
    """Print what came of it on the terminal."""
    from rich.console import Console
    from rich.table import Table
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for head, rows in (
            (HEAD, [cells(t) for t in (*attacked.of_kind(), *groups(attacked.soaked))]),
            (KILLS_HEAD, [kill_cells(kill) for kill in attacked.kills])):
        shown = Table(*head)
        for row in rows:
            shown.add_row(*row)
        if rows:
            console.print(shown)
    for line in attacked.remarks():
        print(line)


def results(attacked: Attacked) -> list[PerfResult]:
    """Return the rows of results.json."""
    rows = [row for turn in (*attacked.of_kind(), *groups(attacked.soaked))
            for row in _rows(turn)]
    here = machine()
    for kill in attacked.kills:
        rows += _kill_rows(kill)
    if attacked.soak_mb:
        rows.append(PerfResult('faults_soak_growth_mb', attacked.growth_mb, 'MB',
                               f'what is allowed, {GROWTH_MB:g} MB',
                               attacked.growth_mb / GROWTH_MB, here))
    for scene, code in attacked.exits.items():
        rows.append(PerfResult(f'faults_exit_status_{_word(scene)}', code or 0, 'exit status', '',
                               None, here))
    parsed = attacked.replies
    if parsed is not None:
        for name in ('random', 'mutated', 'told', 'right', 'wrong', 'rejected'):
            rows.append(PerfResult(f'faults_replies_{name}', getattr(parsed, name), 'count', '',
                                   None, here))
        rows.append(PerfResult('faults_replies_exceptions', len(parsed.exceptions), 'count', '',
                               None, here))
    return rows


def _word(title: str) -> str:
    return re.sub(r'\W+', '_', title.casefold()).strip('_')


def _kill_rows(kill: Kill) -> Iterator[PerfResult]:
    name = f'faults_kill_{_word(kill.title)}'
    for who in OTHERS[kill.victim]:
        yield PerfResult(f'{name}_{who}_rate', kill.after[who], 'Hz',
                         f'before, {kill.before[who]:.2f} Hz', kill.ratio(who), machine())
    for figure, value in (('gap', kill.gap_s), ('back', kill.back_s),
                          ('context_back', kill.context_s)):
        if math.isfinite(value):
            yield PerfResult(f'{name}_{figure}', value, 's', '', None, machine())


def _rows(turn: Turn) -> Iterator[PerfResult]:
    name = f'faults_{_word(turn.kind.title)}'
    before, most, after = turn.memory_mb
    yield PerfResult(f'{name}_rate', turn.hz, 'Hz', f'undisturbed, {turn.clean_hz:.2f} Hz',
                     turn.ratio, machine())
    for figure, value, unit, base in (
            ('tried', turn.tried, 'count', None), ('lost', turn.lost, 'answers', None),
            ('gap', turn.gap_s, 's', None),
            *([('context_back', turn.back_s, 's', None)] if math.isfinite(turn.back_s) else []),
            ('memory_most', most, 'MB', before),
            ('memory_after', after, 'MB', before),
            ('threads_after', turn.threads[1], 'count', turn.threads[0]),
            ('sockets_after', turn.sockets[1], 'count', turn.sockets[0]),
            ('exceptions', turn.exceptions, 'count', None)):
        yield PerfResult(f'{name}_{figure}', value, unit, f'before, {base:.0f}' if base else '',
                         value / base if base else None, machine())


def markdown(part: Attacked, stolen: float) -> str:
    """Return what stands in docs/reliability.md about one part."""
    today = datetime.date.today().isoformat()
    others = max([t.others for t in part.turns + part.soaked]
                 + [kill.others for kill in part.kills], default=0.0)
    parts = [f'{today}, {machine()}; the host took {stolen:.0%} of the CPU time, other processes '
             f'and the host together at most {others:.1f} cores within one attack.']
    if part.turns:
        parts.append(table(HEAD, [cells(turn) for turn in part.of_kind()]))
    if part.kills:
        parts.append(table(KILLS_HEAD, [kill_cells(kill) for kill in part.kills]))
    if part.soaked:
        parts += [f'All kinds in random turns, {sum(t.seconds for t in part.soaked):.0f} s '
                  'under attack and about as long between:',
                  table(HEAD, [cells(turn) for turn in groups(part.soaked)])]
    parts += ['\n'.join(f'- {line}' for line in part.remarks())]
    return '\n\n'.join(parts)
