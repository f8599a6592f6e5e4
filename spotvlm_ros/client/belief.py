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
What may be believed of a stream of answers: steady values, and none that is old. No ROS.

An edge model flickers: near a decision between two values it says now one, now the other, and its
confidence is of no help, for a value said with context and one said without come from two prompts.
So a value changes only after several equal answers, and leaves when nobody says it any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NS = 1_000_000_000


@dataclass(frozen=True)
class Hysteresis:
    """
    When another value of a key is believed.

    It must be said in ``answers`` answers in a row, the first and the last of which are about
    frames at least ``seconds`` apart; or once with a confidence of ``sure`` (above 1: never). The
    values in ``quick`` need that many answers only, and no time: what must not come late. A value
    in ``hold_s`` stands until it was not said for that long [s]: what must not go early.
    """

    answers: int = 3
    seconds: float = 0.3
    sure: float = 2.0
    quick: Mapping[str, int] = field(default_factory=dict)
    hold_s: Mapping[str, float] = field(default_factory=dict)


OFF = Hysteresis(answers=1, seconds=0.0)  # each answer is believed at once


class Belief:
    """The steady value of one key; stamps are those of the frames [ns, ROS time]."""

    def __init__(self, rule: Hysteresis, max_age_s: float) -> None:
        """Believe nothing yet; what was not said for ``max_age_s`` must be said anew."""
        self.rule, self.max_age_s = rule, max_age_s
        self.value: str | None = None
        self.since_ns = 0    # first frame of the answers that made it the value
        self.said_ns = 0     # newest frame about which it was said
        self._other = ''     # what is said in its place, since when, and how often in a row
        self._first_ns = self._last_ns = self._count = 0

    def see(self, value: str, confidence: float, stamp_ns: int) -> None:
        """Take what an answer says; answers come in the order of their frames."""
        limit_s = max(self.max_age_s, self.rule.hold_s.get(self.value or '', 0.0))
        if self.value is not None and stamp_ns - self.said_ns > limit_s * NS:
            self.value = None
        if value == self.value:
            self.said_ns, self._count = max(self.said_ns, stamp_ns), 0
            return
        if value != self._other or not self._count or \
                stamp_ns - self._last_ns > self.max_age_s * NS:
            self._other, self._first_ns, self._count = value, stamp_ns, 0
        self._last_ns = stamp_ns
        self._count += 1
        if self._is_enough(value, confidence, stamp_ns):
            self.value, self.since_ns, self.said_ns = value, self._first_ns, stamp_ns
            self._count = 0

    def is_fresh(self, now_ns: int) -> bool:
        """Return whether the value was said about a frame that is not too old."""
        return self.value is not None and now_ns - self.said_ns <= self.max_age_s * NS

    def _is_enough(self, value: str, confidence: float, stamp_ns: int) -> bool:
        rule = self.rule
        if value in rule.quick:
            return self._count >= rule.quick[value]
        if confidence < rule.sure and (
                self._count < rule.answers or stamp_ns - self._first_ns < rule.seconds * NS):
            return False
        hold_s = rule.hold_s.get(self.value or '', 0.0)
        return self.value is None or stamp_ns - self.said_ns >= hold_s * NS
