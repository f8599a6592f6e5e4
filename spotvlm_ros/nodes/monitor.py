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

from collections import deque
from dataclasses import dataclass
import os
import sys
import threading
import time
from typing import IO, TYPE_CHECKING

from rclpy.node import Node
from rclpy.qos import QoSProfile
from spotvlm_msgs.msg import Answer, Calibration, CloudStatus, Context

from .base import latched
from .convert import duration_s, stamp_ns
from .summary import by_delayed_truth, delayed_truth, RunStatistics
from ..cloud.bridge_statistics import percentile
from ..config.query_changes import MAX_QUERIES
from ..method.facts import NS
from ..method.prompt import MAX_TEXT, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLUMNS = 80     # of a terminal, at least, for the table
TRUTH_S = 30.0   # between two lines about delayed truth


@dataclass(frozen=True)
class ReceivedMessage:
    """A message and when it arrived [ns, ROS time]."""

    arrived_ns: int
    message: Answer | Context


class LiveTable:
    """
    The newest answer of edge and cloud per query, drawn over itself on a terminal.

    What processes write to ``log`` stands above it.
    """

    def __init__(self, monitor: Monitor, console: Console) -> None:
        """Draw four times a second until ``stop``."""
        from rich.live import Live
        self._monitor, self._console = monitor, console
        lines, end = os.pipe()
        self.log = open(end, 'wb', buffering=0)
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=4,
                          transient=True)
        self._live.start()
        self._reader = threading.Thread(target=self._read, args=(lines,), name='log', daemon=True)
        self._reader.start()

    def stop(self) -> None:
        """Take the table off the terminal; safe to call again."""
        self._live.stop()
        self.log.close()

    def wait(self) -> None:
        """Wait for the last lines of processes that have ended, after ``stop``."""
        self._reader.join(2.0)

    def _read(self, lines: int) -> None:
        with open(lines, encoding='utf-8', errors='replace') as written:
            for line in written:
                self._console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> Table:
        from rich.markup import escape
        from rich.table import Table
        monitor, now = self._monitor, self._monitor.get_clock().now().nanoseconds
        statistics = monitor.statistics
        newest_ms = 1e3 * percentile(list(statistics.latency_s)[-100:], 0.95)
        table = Table(title=f'edge {monitor.rate_hz():.1f} Hz, p95 {newest_ms:.0f} ms after the '
                      f'frame, {sum(statistics.errors.values())} errors' if monitor.newest else
                      'waiting for the first answer',
                      caption=escape('\n'.join(filter(None, (
                          _cloud(monitor.status), by_delayed_truth(statistics.calibration))))))
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
                table.add_row(query if source == 'edge' else '', source, escape(_text(answer)),
                              f'{old:.2f} s', context)
        return table


def _live_table(monitor: Monitor) -> LiveTable | None:
    """Return the table where the terminal has room for it; elsewhere lines are printed."""
    from rich.console import Console
    console = Console()
    fits = not console.is_dumb_terminal and console.width >= COLUMNS
    return LiveTable(monitor, console) if fits else None


def _cloud(status: CloudStatus | None) -> str:
    """Return how the cloud is doing."""
    if status is None:
        return 'no word of the cloud yet'
    trouble = f'; {printable(status.last_error)}' if status.last_error else ''
    return (f'cloud: {status.requests} requests, {status.answers} answers, {status.errors} '
            f'errors, round trip {duration_s(status.round_trip_p50):.1f} s{trouble}')


class Monitor(Node):
    """Subscribes to what planners and people would."""

    def __init__(self, show: bool = True, keep: bool = False) -> None:
        """Print when ``show``; ``keep`` all messages, truth and context too, when wanted."""
        super().__init__('spotvlm_monitor')
        self.statistics = RunStatistics()
        self.received: list[ReceivedMessage] = []  # filled only where they are kept
        self.newest: dict[str, Answer] = {}  # from the edge, per query
        self.cloud: dict[str, Answer] = {}   # from the cloud, per query
        self.quiet_since = time.monotonic()
        self.status: CloudStatus | None = None
        self._show, self._shown_at = show, 0.0
        self._truth_shown_at = time.monotonic()
        self._keep = keep
        self._recent: deque[float] = deque(maxlen=64)
        self.create_subscription(Answer, 'answers', self._on_answer, QoSProfile(depth=50))
        self.create_subscription(Answer, 'cloud/answers', self._on_cloud, QoSProfile(depth=50))
        self.create_subscription(CloudStatus, 'cloud/status', self._on_status, latched(1))
        self.create_subscription(Calibration, 'calibration', self._on_calibration,
                                 latched(MAX_QUERIES))
        if keep:
            self.create_subscription(Answer, 'truth', self._store, QoSProfile(depth=50))
            self.create_subscription(Context, 'context', self._store, latched(16))
        # Last: it draws what is above from a thread of its own, at once.
        self.table = _live_table(self) if show and sys.stdout.isatty() else None

    @property
    def log(self) -> IO[bytes] | None:
        """Return where processes write to, None where their output may go where ours goes."""
        return self.table.log if self.table is not None else None

    def end_screen(self) -> None:
        """Take the table off the terminal; safe to call again."""
        if self.table is not None:
            self.table.stop()

    def wait_for_log(self) -> None:
        """Show the last lines of processes that have ended, after ``end_screen``."""
        if self.table is not None:
            self.table.wait()

    def _store(self, message: Answer | Context) -> None:
        self.received.append(ReceivedMessage(self.get_clock().now().nanoseconds, message))

    def _on_answer(self, message: Answer) -> None:
        delay = (self.get_clock().now().nanoseconds - stamp_ns(message.header.stamp)) / NS
        now = time.monotonic()
        if self._keep:
            self._store(message)
        statistics = self.statistics
        statistics.first_s = statistics.first_s or now
        statistics.last_s = self.quiet_since = now
        statistics.answers[message.query_id] += 1
        statistics.with_context += message.used_context
        statistics.with_focus += message.used_focus
        statistics.latency_s.append(delay)
        model = duration_s(message.preprocess) + duration_s(message.inference)
        statistics.overhead_s.append(delay - model)
        statistics.wait_s.append(duration_s(message.wait))
        if message.error_code:
            statistics.errors[message.error_msg] += 1
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
        self.statistics.cloud_answers[message.query_id] += 1
        self.statistics.cloud_delay_s.append(delay)
        if self._show and self.table is None:
            emulated = duration_s(message.emulated_delay)
            note = f', {emulated:.2f} s of it emulated' if emulated else ''
            print(f'  cloud  {message.query_id}: {_text(message)}  ({delay:.2f} s late{note})',
                  flush=True)

    def _on_status(self, message: CloudStatus) -> None:
        if self._show and self.table is None and message.last_error and (
                self.status is None or message.last_error != self.status.last_error):
            print(f'  cloud  {message.last_error}', flush=True)
        self.status = message

    def _on_calibration(self, message: Calibration) -> None:
        known, now = self.statistics.calibration, time.monotonic()
        known[message.query_id] = delayed_truth(message.keys)
        if self._show and self.table is None and now - self._truth_shown_at >= TRUTH_S:
            self._truth_shown_at = now
            print(printable(f'  cloud  by its late answers: {by_delayed_truth(known)}'),
                  flush=True)

    def rate_hz(self) -> float:
        """Return the edge's answers per second over the last two seconds."""
        now = time.monotonic()
        recent = [t for t in tuple(self._recent) if now - t < 2.0]
        return (len(recent) - 1) / max(1e-3, recent[-1] - recent[0]) if len(recent) > 1 else 0.0

    def _line(self) -> str:
        answers = '  '.join(f'{q}: {_text(m)}' for q, m in sorted(self.newest.items()))
        ages = [duration_s(m.context_age) for m in self.newest.values() if m.used_context]
        context = f'context {min(ages):.1f} s old' if ages else 'no context'
        return f'edge {self.rate_hz():4.1f} Hz  {answers}  [{context}]'


def _text(message: Answer) -> str:
    if message.error_code:
        return printable(f'error: {message.error_msg}')
    if message.facts:
        return printable(' '.join(f.value if f.key == message.query_id else f'{f.key}={f.value}'
                                  for f in message.facts))
    return printable(' '.join(message.text[:MAX_TEXT].split()))
