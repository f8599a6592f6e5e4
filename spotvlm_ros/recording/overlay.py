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
What `spotvlm calibrate` has found: the report, and the params file that is laid over a profile.

A key keeps its default where too little was seen, where the cloud tells nothing, or where what was
learned was no better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
import math
import textwrap

from pydantic import JsonValue
import yaml

from .. import __version__
from ..method.calibration import KeyState
from ..method.facts import Query
from ..method.prompt import printable
from ..method.stacking import NAMES

ENOUGH = 30        # labels of a key, before its weights are used
CHANGES = 5        # of a value, before it is said how fast it changes
DELAYS = 2.0       # median delays of the cloud that a value lives at least
LONGER = 4.0       # times today's that it lives at most
UNSEEN = 0.1       # probability that a value has changed since the last keyframe


@dataclass(frozen=True)
class Seen:
    """What else was seen of a key: how often rules were right, 0..1, and how values change."""

    right_by_guard: float
    right_learned: float
    changes: int
    watched_s: float      # time in which a change would have been seen
    delay_s: float        # of the cloud, at the median


@dataclass(frozen=True)
class Finding:
    """What was found about one key; ``new_ttl_s`` is the old one where that stays."""

    query_id: str
    key: str
    state: KeyState
    seen: Seen
    learned: bool
    ttl_s: float
    new_ttl_s: float
    why: str
    why_ttl: str

    @classmethod
    def of(cls, query: Query, key: str, state: KeyState, seen: Seen) -> Finding:
        """Conclude from what was seen."""
        learned, why = _rule(state, seen)
        ttl_s = query.ttl_ns(key) / 1e9
        new_ttl_s, why_ttl = _ttl(state, seen, ttl_s)
        return cls(query.id, key, state, seen, learned, ttl_s, new_ttl_s, why, why_ttl)

    @property
    def hazard_hz(self) -> float:
        """Return how often the value changes; 0 where that is not known."""
        return _hazard_hz(self.state, self.seen)


def _hazard_hz(state: KeyState, seen: Seen) -> float:
    known = state.believed and seen.changes >= CHANGES and seen.watched_s > 0.0
    return seen.changes / seen.watched_s if known else 0.0


def _rule(state: KeyState, seen: Seen) -> tuple[bool, str]:
    """Return whether the learned weights are to be used, and why."""
    if state.labels < ENOUGH:
        return False, f'{state.labels} labels, and {ENOUGH} are needed; record longer'
    if not state.believed:
        return False, ('the answers of the cloud tell nothing: it says one thing where the edge '
                       'is sure of others, or anything at any time; look at topic cloud/answers')
    rules = f'{seen.right_learned:.0%} right, and {seen.right_by_guard:.0%} by the guard'
    if not state.learned:
        return False, f'the learned rule is not surely better: {rules}'
    return True, f'the learned rule is better: {rules}'


def _ttl(state: KeyState, seen: Seen, ttl_s: float) -> tuple[float, str]:
    """Return how long a value of the cloud is to be told, and why."""
    hazard_hz = _hazard_hz(state, seen)
    if not state.believed or not hazard_hz:
        return ttl_s, f'{seen.changes} changes seen, and {CHANGES} are needed' \
            if state.believed else 'how it changes is not known'
    half_s = math.log(2.0) / hazard_hz
    low, high = DELAYS * seen.delay_s, LONGER * ttl_s
    new_s = round(max(0.1, min(high, max(low, half_s))), 1)
    why = f'in {half_s:.1f} s half of the values have changed'
    if half_s > high:
        why += f'; not above {LONGER:g} times what it was'
    elif half_s < low:
        why += f'; the cloud is {seen.delay_s:.1f} s late, and {DELAYS:g} times that is the least'
    return new_s, why


@dataclass(frozen=True)
class Overlay:
    """All findings, and what is to be written of them; ``data`` says what they are about."""

    data: str
    findings: Sequence[Finding]
    queries: Mapping[str, Query]
    odds: float
    with_period: bool = False

    @property
    def parameters(self) -> dict[str, dict[str, JsonValue]]:
        """Return the parameters of each query that are to be others."""
        found: dict[str, dict[str, JsonValue]] = {}
        for query_id in self.queries:
            mine = [f for f in self.findings if f.query_id == query_id]
            values: dict[str, JsonValue] = {
                'weights': {f.key: [f'{name}: {weight:.4f}' for name, weight in
                                    zip(NAMES, f.state.weights)] for f in mine if f.learned},
                'ttl_s': {f.key: f.new_ttl_s for f in mine if f.new_ttl_s != f.ttl_s},
                'cloud_period_s': self._periods().get(query_id) if self.with_period else None}
            if any(values.values()):
                found[query_id] = {name: value for name, value in values.items() if value}
        return found

    def _periods(self) -> dict[str, float]:
        """Return what is recommended as the period of each query whose changes were seen."""
        hazard_hz = {query_id: max((f.hazard_hz for f in self.findings
                                    if f.query_id == query_id), default=0.0)
                     for query_id, query in self.queries.items() if query.cloud_period_s}
        return {query_id: min(3600.0, max(0.1, float(f'{-math.log1p(-UNSEEN) / hz:.2g}')))
                for query_id, hz in hazard_hz.items() if hz}

    def text(self) -> str:
        """Return the params file."""
        head = [f'Written by spotvlm calibrate {__version__} from {self.data}; lay it over the '
                'profile with --params-file. Truth is what the cloud said, which may be wrong.']
        head += [f'{f.query_id}.{f.key} ({f.state.labels} labels): {f.why}; time to live: '
                 f'{f.why_ttl}' for f in self.findings]
        tree = {'/**': {'ros__parameters': self.parameters}}
        return ''.join(f'# {line}\n' for part in head for line in textwrap.wrap(
            printable(part), 97)) + yaml.safe_dump(tree, sort_keys=False, width=99)

    def plain(self) -> dict[str, JsonValue]:
        """Return all of it for JSON."""
        return {'data': self.data, 'truth': 'answers of the cloud', 'parameters': {
            name: dict(values) for name, values in self.parameters.items()},
            'cloud_period_s': dict(self._periods()), 'findings': [
                {**asdict(f), 'hazard_hz': f.hazard_hz} for f in self.findings]}

    def show(self) -> None:
        """Print it."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Column, Table
        console = Console(width=max(120, Console().width))
        table = Table(*(Column(name, no_wrap=not index) for index, name in enumerate((
            'key', 'labels', 'edge alone', 'confidence', 'help', 'harm', 'guard', 'learned',
            'changes every', 'lives [s]'))))
        for f in self.findings:
            shares = (f.state.agreement, f.state.confidence, f.state.help, f.state.harm,
                      f.seen.right_by_guard, f.seen.right_learned)
            table.add_row(
                escape(f'{f.query_id}.{f.key}'), str(f.state.labels),
                *(f'{share:.1%}' for share in shares),
                f'{1 / f.hazard_hz:.1f} s' if f.hazard_hz else '?',
                f'{f.ttl_s:g}' + (f' -> {f.new_ttl_s:g}' if f.new_ttl_s != f.ttl_s else ''))
        console.print(table)
        print(printable(f'from {self.data}'))
        print('shares are of labels; truth is what the cloud said about the same frames later, '
              'which may be wrong')
        for f in self.findings:
            rule = 'learned weights' if f.learned else f'guard with odds {self.odds:g}'
            print(printable(f'{f.query_id}.{f.key}: {rule}, as {f.why}; time to live '
                            f'{f.new_ttl_s:g} s, as {f.why_ttl}'))
        for query_id, period_s in self._periods().items():
            print(printable(
                f'{query_id}.cloud_period_s: {self.queries[query_id].cloud_period_s:g} s; with '
                f'{period_s:g} s, {UNSEEN:.0%} of the values of its fastest key change between '
                f'two keyframes' + ('' if self.with_period else
                                    ' (--period writes it; asking more costs more)')))
