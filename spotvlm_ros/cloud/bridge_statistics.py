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
"""What the bridge has done so far, in figures."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
import statistics

from .parse import CloudAnswer

RECENT = 64  # kept for the percentiles


def _recent() -> deque[float]:
    return deque(maxlen=RECENT)


@dataclass
class BridgeStatistics:
    """Counts since start, and durations of the last answers [s]. Not thread-safe."""

    requests: int = 0
    answers: int = 0
    errors: int = 0
    skipped: int = 0
    retries: int = 0
    failovers: int = 0     # answers of another server than the preferred
    superseded: int = 0    # given up, because a newer frame's answer had come
    facts_rejected: int = 0
    injections: int = 0    # replies whose text has what carries instructions
    bytes_sent: int = 0    # of images
    last_error: str = ''
    errors_by: Counter[str] = field(default_factory=Counter)   # kind
    skipped_by: Counter[str] = field(default_factory=Counter)  # reason
    round_trips_s: deque[float] = field(default_factory=_recent)
    emulated_s: deque[float] = field(default_factory=_recent)
    to_wire_s: deque[float] = field(default_factory=_recent)    # offer to the last byte sent
    to_answer_s: deque[float] = field(default_factory=_recent)  # last byte received to delivered

    def count_answer(self, answer: CloudAnswer, failover: bool) -> None:
        """Count an answer; ``failover``: it is not of the preferred server."""
        self.answers += 1
        self.facts_rejected += len(answer.rejected)
        self.injections += answer.suspicious
        self.failovers += failover
        self.round_trips_s.append(answer.round_trip_s)
        self.emulated_s.append(answer.emulated_s)
        self.to_wire_s.append(answer.wait_s)
        self.last_error = ''

    def count_error(self, kind: str, message: str) -> None:
        """Count a request without an answer."""
        self.errors += 1
        self.errors_by[kind] += 1
        self.last_error = message

    def count_skipped(self, reason: str) -> None:
        """Count a keyframe that was due and not sent."""
        self.skipped += 1
        self.skipped_by[reason] += 1

    @property
    def emulated_delay_s(self) -> float:
        """Median of the delay added on purpose."""
        return statistics.median(self.emulated_s) if self.emulated_s else 0.0

    def report(self) -> dict[str, str | float]:
        """Return all figures, flat, for diagnostics."""
        counts = ('requests', 'answers', 'errors', 'skipped', 'retries', 'failovers',
                  'superseded', 'facts_rejected', 'injections', 'bytes_sent')
        return {
            **{name: getattr(self, name) for name in counts},
            'round_trip_p50_s': percentile(self.round_trips_s, 0.5),
            'round_trip_p95_s': percentile(self.round_trips_s, 0.95),
            'keyframe_to_wire_p95_s': percentile(self.to_wire_s, 0.95),
            'reply_to_answer_p95_s': percentile(self.to_answer_s, 0.95),
            **{f'errors.{kind}': n for kind, n in sorted(self.errors_by.items())},
            **{f'skipped.{reason}': n for reason, n in sorted(self.skipped_by.items())}}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share (0..1) of the values lies; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
