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
"""The figures of a run, as summary.json has them and as they are printed. Needs no ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from ..cloud.bridge_statistics import percentile

Percentiles = dict[str, float]  # p50 and p95


class DelayedTruth(TypedDict):
    """
    What the cloud's late answers say about those of the edge; rates are shares of facts.

    ``help``: the edge alone was wrong, what was published right; ``harm``: the converse.
    """

    labels: int
    help: float  # noqa: A003
    harm: float


class KeyRates(Protocol):
    """What is known of a key: a `KeyState`, or its message."""

    @property
    def labels(self) -> int:
        """Return how many answers of the cloud judged it."""

    @property
    def help(self) -> float:  # noqa: A003
        """Return how often the edge alone was wrong, and what was published right."""

    @property
    def harm(self) -> float:
        """Return the converse."""


class RunSummary(TypedDict, total=False):
    """The keys of summary.json; empty where the graph did not come up."""

    answers: int
    answers_by_query: dict[str, int]
    answers_hz: float
    stamp_to_answer_ms: Percentiles
    overhead_ms: Percentiles
    frame_age_at_start_ms: Percentiles
    cloud_answers: int
    cloud_delay_s: Percentiles
    context_used_fraction: float
    focus_used_fraction: float
    calibration: dict[str, DelayedTruth]   # by query
    errors: int
    errors_by_message: dict[str, int]
    meta: dict[str, str | float]
    accuracy: Mapping[str, object]  # of spotvlm demo, see bench.demo.Accuracy


@dataclass
class RunStatistics:
    """What came by so far. ``first_s`` and ``last_s``: steady clock, of edge answers; 0: none."""

    answers: Counter[str] = field(default_factory=Counter)        # by query
    cloud_answers: Counter[str] = field(default_factory=Counter)  # by query
    errors: Counter[str] = field(default_factory=Counter)         # by message
    with_context: int = 0
    with_focus: int = 0
    latency_s: list[float] = field(default_factory=list)
    overhead_s: list[float] = field(default_factory=list)  # latency without the model
    wait_s: list[float] = field(default_factory=list)  # age of the frame when work on it began
    cloud_delay_s: list[float] = field(default_factory=list)
    calibration: dict[str, DelayedTruth] = field(default_factory=dict)  # newest, by query
    first_s: float = 0.0
    last_s: float = 0.0

    def summary(self, meta: dict[str, str | float]) -> RunSummary:
        """Return the figures."""
        count = sum(self.answers.values())
        seconds = self.last_s - self.first_s

        def percentiles(values: list[float], factor: float) -> Percentiles:
            return {p: round(percentile(values, q) * factor, 3)
                    for p, q in (('p50', 0.5), ('p95', 0.95))}
        return {
            'answers': count,
            'answers_by_query': dict(self.answers),
            'answers_hz': round((count - 1) / seconds, 2) if seconds > 0 else 0.0,
            'stamp_to_answer_ms': percentiles(self.latency_s, 1e3),
            'overhead_ms': percentiles(self.overhead_s, 1e3),
            'frame_age_at_start_ms': percentiles(self.wait_s, 1e3),
            'cloud_answers': sum(self.cloud_answers.values()),
            'cloud_delay_s': percentiles(self.cloud_delay_s, 1.0),
            'context_used_fraction': round(self.with_context / count, 3) if count else 0.0,
            'focus_used_fraction': round(self.with_focus / count, 3) if count else 0.0,
            'calibration': dict(self.calibration),
            'errors': sum(self.errors.values()),
            'errors_by_message': dict(self.errors.most_common(8)),
            'meta': meta,
        }


def print_summary(summary: RunSummary) -> None:
    """Print the figures in a few lines."""
    latency, overhead = summary['stamp_to_answer_ms'], summary['overhead_ms']
    queries = ', '.join(f'{n} {q}' for q, n in summary['answers_by_query'].items()) or 'none'
    print(f'answers: {queries} ({summary["answers_hz"]} Hz); errors: {summary["errors"]}')
    for text, count in summary['errors_by_message'].items():
        print(f'  {count} x {text}')
    if not summary['answers'] and not summary['cloud_answers']:
        return
    print(f'stamp to answer: p50 {latency["p50"]} ms, p95 {latency["p95"]} ms; overhead without '
          f'the model: p50 {overhead["p50"]} ms, p95 {overhead["p95"]} ms')
    median = summary['meta']['emulated_delay_median_s']
    note = f' (emulated delay, median {median:g} s, included)' if median else ''
    print(f'cloud answers: {summary["cloud_answers"]}, {summary["cloud_delay_s"]["p50"]} s late '
          f'at the median{note}; context used in {summary["context_used_fraction"]:.0%} of '
          'answers', flush=True)
    if summary['calibration']:
        print(f"by the cloud's late answers: {by_delayed_truth(summary['calibration'])}",
              flush=True)


def delayed_truth(keys: Sequence[KeyRates]) -> DelayedTruth:
    """Return what is known of a query by what is of its keys."""
    n = max(1, len(keys))
    return {'labels': sum(k.labels for k in keys), 'help': round(sum(k.help for k in keys) / n, 4),
            'harm': round(sum(k.harm for k in keys) / n, 4)}


def by_delayed_truth(queries: Mapping[str, DelayedTruth]) -> str:
    """Return how much the cloud helped and harmed, by query."""
    return ', '.join(f'{query} helped in {known["help"]:.0%}, harmed in {known["harm"]:.0%} (of '
                     f'{known["labels"]} facts)' for query, known in sorted(queries.items()))
