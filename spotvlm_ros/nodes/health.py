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
"""How a node is, for /diagnostics: what is wrong, how much so, and what comes how often."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
import time

from diagnostic_msgs.msg import DiagnosticStatus

from ..method.facts import NS

WARN, ERROR = DiagnosticStatus.WARN, DiagnosticStatus.ERROR
SILENCE_S = 3.0   # without what should come; then it is said
RECENT_S = 10.0   # a problem is shown for this long after it happened last
REPEAT_S = 5.0    # and logged again at most this often
WINDOW_S = 5.0    # over which a rate is measured, or
WINDOW = 10       # of these, where that takes longer
GAP_S = 20.0      # between two, at most; three times the last gap is no silence
SHARE = 0.9       # of the wanted rate is enough
# What node cloud says while it is paused.
PAUSED = 'no keyframes are sent: parameter paused is true; set it to false to go on'


@dataclass(frozen=True)
class Trouble:
    """What is wrong, with its remedy. WARN: the job is done badly; ERROR: not at all."""

    text: str
    level: bytes = WARN


class Pulse:
    """
    What should come again and again: for how long it has not, and how often it does.

    The rate is that of the stamps, so a bag may be played at any speed. Stamps that go back, and
    a pause, begin a new measurement.
    """

    def __init__(self, patience_s: float = SILENCE_S) -> None:
        """Wait for the first; nothing is late before ``patience_s`` are over."""
        self._patience_s = patience_s
        self._stamps: deque[int] = deque(maxlen=512)
        self._at = time.monotonic()
        self._gap_s = 0.0  # between the last two
        self._came = False

    def beat(self, stamp_ns: int) -> None:
        """Note that it came."""
        now, stamps = time.monotonic(), self._stamps
        if self.late_s or stamps and stamp_ns <= stamps[-1]:
            stamps.clear()
        if self._came:
            self._gap_s = min(now - self._at, GAP_S)
        stamps.append(stamp_ns)
        self._at, self._came = now, True

    @property
    def late_s(self) -> float:
        """Return for how long nothing came, 0 where that is not too long; gaps are tolerated."""
        silent_s = time.monotonic() - self._at
        return silent_s if silent_s > max(self._patience_s, 3.0 * self._gap_s) else 0.0

    def slow_hz(self, wanted_hz: float) -> float:
        """Return the rate where it is known and below the wanted one, else 0."""
        stamps = tuple(self._stamps)[-max(WINDOW, int(wanted_hz * WINDOW_S)):]
        span_s = (stamps[-1] - stamps[0]) / NS if len(stamps) > 1 else 0.0
        if not wanted_hz or span_s < SHARE * max(WINDOW_S, WINDOW / wanted_hz):
            return 0.0
        rate_hz = (len(stamps) - 1) / span_s
        return rate_hz if rate_hz < SHARE * wanted_hz else 0.0

    def silence(self, what: str, remedy: str = '', worst: bytes = ERROR) -> Trouble | None:
        """
        Return what is wrong where it does not come.

        WARN before the first, ERROR where that takes long or nothing comes any more.
        """
        late_s = self.late_s
        if self._came and not late_s:
            return None
        long = self._came or late_s > 3.0 * self._patience_s
        text = f'no {what} ' + (f'for {late_s:.0f} s' if late_s else 'yet')
        return Trouble(f'{text}; {remedy}' if remedy else text, worst if long else WARN)


class Problems:
    """What went wrong, counted by kind, logged, and shown while it is recent or goes on."""

    def __init__(self, log: Callable[[str], object]) -> None:
        """Start without any; ``log`` is given each text once in a while."""
        self._log = log
        self.counts: Counter[str] = Counter()
        self.newest = ''
        self._recent: dict[str, tuple[str, float]] = {}  # by kind, and when, steady clock [s]
        self._logged: dict[str, float] = {}              # by kind, when
        self._standing: dict[tuple[str, str], str] = {}

    def count(self, kind: str, text: str = '') -> None:
        """Count something that went wrong; ``text`` is shown for a while and logged."""
        self.counts[kind] += 1
        if not text:
            return
        now = time.monotonic()
        another = self._recent.get(kind, ('', 0.0))[0] != text
        if now - self._logged.get(kind, -REPEAT_S) >= (1.0 if another else REPEAT_S):
            self._logged[kind] = now
            self._log(text)
        self.newest = text
        self._recent[kind] = text, now

    def hold(self, kind: str, text: str, about: str = '') -> None:
        """Log a problem once, and show it until it is held with '': it is over."""
        before = self._standing.pop((kind, about), '')
        if text:
            self._standing[kind, about] = text
            self.counts[kind] += 1
            if text != before:
                self._log(text)

    def end_standing(self) -> None:
        """Forget what goes on: the node is deactivated."""
        self._standing.clear()

    def troubles(self) -> Iterator[Trouble]:
        """Yield what is wrong now."""
        now = time.monotonic()
        recent = [text for text, at in tuple(self._recent.values()) if now - at < RECENT_S]
        for text in dict.fromkeys([*tuple(self._standing.values()), *reversed(recent)]):
            yield Trouble(text)
