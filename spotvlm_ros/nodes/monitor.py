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
"""Watches a running graph: newest answers on the terminal, figures at the end."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
import sys
import time
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from spotvlm_msgs.msg import Answer, CloudStatus, Context

from .base import latched
from .convert import duration_s, stamp_ns
from ..cloud.bridge_statistics import percentile
from ..method.facts import NS


@dataclass
class Summary:
    """What came by; times are seconds."""

    answers: Counter[str] = field(default_factory=Counter)
    cloud: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    with_context: int = 0
    with_focus: int = 0
    latency_s: list[float] = field(default_factory=list)
    overhead_s: list[float] = field(default_factory=list)
    wait_s: list[float] = field(default_factory=list)  # age of the frame when work on it began
    cloud_delay_s: list[float] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the figures under the names that summary.json has."""
        count = sum(self.answers.values())
        seconds = self.last - self.first

        def share(values: list[float], factor: float) -> dict[str, float]:
            return {p: round(percentile(values, q) * factor, 3)
                    for p, q in (('p50', 0.5), ('p95', 0.95))}
        return {
            'answers': count,
            'answers_by_query': dict(self.answers),
            'answers_hz': round((count - 1) / seconds, 2) if seconds > 0 else 0.0,
            'stamp_to_answer_ms': share(self.latency_s, 1e3),
            'overhead_ms': share(self.overhead_s, 1e3),
            'frame_age_at_start_ms': share(self.wait_s, 1e3),
            'cloud_answers': sum(self.cloud.values()),
            'cloud_delay_s': share(self.cloud_delay_s, 1.0),
            'context_used_fraction': round(self.with_context / count, 3) if count else 0.0,
            'focus_used_fraction': round(self.with_focus / count, 3) if count else 0.0,
            'errors': sum(self.errors.values()),
            'errors_by_message': dict(self.errors.most_common(8)),
        }


@dataclass(frozen=True)
class Record:
    """A message and when it arrived [ns, ROS time]."""

    arrived_ns: int
    message: Any


class LiveTable:
    """The newest answer of edge and cloud per query, drawn over itself on a terminal."""

    def __init__(self, monitor: Monitor) -> None:
        """Draw four times a second until ``stop``."""
        from rich.live import Live
        self._monitor = monitor
        self._live = Live(get_renderable=self._draw, refresh_per_second=4, transient=True)
        self._live.start()

    def stop(self) -> None:
        """Take the table off the terminal; safe to call again."""
        self._live.stop()

    def _draw(self) -> Any:
        from rich.table import Table
        monitor, now = self._monitor, self._monitor.get_clock().now().nanoseconds
        table = Table(title=f'edge {monitor.rate_hz():.1f} Hz, '
                      f'{sum(monitor.summary.errors.values())} errors')
        for heading in ('query', 'source', 'answer', 'frame is old', 'context'):
            table.add_column(heading)
        for query, message in sorted(monitor.newest.items()):
            for source, answer in (('edge', message), ('cloud', monitor.cloud.get(query))):
                if answer is None:
                    continue
                old = (now - stamp_ns(answer.header.stamp)) / NS
                context = '-'
                if answer.used_context:
                    context = f'{duration_s(answer.context_age):.1f} s old'
                    context += ', focus' if answer.used_focus else ''
                table.add_row(query if source == 'edge' else '', source, _said(answer),
                              f'{old:.2f} s', context)
        return table


class Monitor(Node):
    """Subscribes to what planners and people would."""

    def __init__(self, show: bool = True, record: bool = False, **kwargs: Any) -> None:
        """Watch; print when ``show``, keep all messages when ``record``."""
        super().__init__('spotvlm_monitor', **kwargs)
        self.summary = Summary()
        self.record: list[Record] = []
        self.newest: dict[str, Answer] = {}  # from the edge, per query
        self.cloud: dict[str, Answer] = {}   # from the cloud, per query
        self.quiet_since = time.monotonic()
        self.status: CloudStatus | None = None
        self.table = LiveTable(self) if show and sys.stdout.isatty() else None
        self._show, self._shown_at = show, 0.0
        self._keep = record
        self._recent: deque[float] = deque(maxlen=64)
        self.create_subscription(Answer, 'answers', self._on_answer, QoSProfile(depth=50))
        self.create_subscription(Answer, 'cloud/answers', self._on_cloud, QoSProfile(depth=50))
        self.create_subscription(CloudStatus, 'cloud/status', self._on_status, latched(1))
        if record:
            self.create_subscription(Answer, 'truth', self._store, QoSProfile(depth=50))
            self.create_subscription(Context, 'context', self._store, latched(16))

    def _store(self, message: Any) -> None:
        self.record.append(Record(self.get_clock().now().nanoseconds, message))

    def _on_answer(self, message: Answer) -> None:
        delay = (self.get_clock().now().nanoseconds - stamp_ns(message.header.stamp)) / NS
        now = time.monotonic()
        if self._keep:
            self._store(message)
        summary = self.summary
        summary.first = summary.first or now
        summary.last = self.quiet_since = now
        summary.answers[message.query_id] += 1
        summary.with_context += message.used_context
        summary.with_focus += message.used_focus
        summary.latency_s.append(delay)
        model = duration_s(message.preprocess) + duration_s(message.inference)
        summary.overhead_s.append(delay - model)
        summary.wait_s.append(duration_s(message.wait))
        if message.error_code:
            summary.errors[message.error_msg] += 1
        self.newest[message.query_id] = message
        self._recent.append(now)
        if self._show and self.table is None and now - self._shown_at >= 1.0:
            self._shown_at = now
            print(self._line(), flush=True)

    def _on_cloud(self, message: Answer) -> None:
        delay = (self.get_clock().now().nanoseconds - stamp_ns(message.header.stamp)) / NS
        if self._keep:
            self._store(message)
        self.cloud[message.query_id] = message
        self.summary.cloud[message.query_id] += 1
        self.summary.cloud_delay_s.append(delay)
        if self._show and self.table is None:
            emulated = duration_s(message.emulated_delay)
            note = f', {emulated:.2f} s of it emulated' if emulated else ''
            print(f'  cloud  {message.query_id}: {_said(message)}  ({delay:.2f} s late{note})',
                  flush=True)

    def _on_status(self, message: CloudStatus) -> None:
        if self._show and self.table is None and message.last_error and (
                self.status is None or message.last_error != self.status.last_error):
            print(f'  cloud  {message.last_error}', flush=True)
        self.status = message

    def rate_hz(self) -> float:
        """Return the edge's answers per second over the last two seconds."""
        now = time.monotonic()
        recent = [t for t in tuple(self._recent) if now - t < 2.0]
        return (len(recent) - 1) / max(1e-3, recent[-1] - recent[0]) if len(recent) > 1 else 0.0

    def _line(self) -> str:
        said = '  '.join(f'{q}: {_said(m)}' for q, m in sorted(self.newest.items()))
        helped = [duration_s(m.context_age) for m in self.newest.values() if m.used_context]
        context = f'context {min(helped):.1f} s old' if helped else 'no context'
        return f'edge {self.rate_hz():4.1f} Hz  {said}  [{context}]'


def _said(message: Answer) -> str:
    if message.error_code:
        return f'error: {message.error_msg}'
    if message.facts:
        return ' '.join(f.value if f.key == message.query_id else f'{f.key}={f.value}'
                        for f in message.facts)
    return str(message.text)
