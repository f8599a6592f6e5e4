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
What it costs node edge to learn whom to believe: its judge, and the cloud's late answers.

The largest query of the driving profile, all frames answered in two passes, and one in five by the
cloud, too, which is believed for all keys in the end. There is no model: the rest is what the node
does, from the message of the cloud to that about the calibration.
"""

from __future__ import annotations

from collections import Counter
import logging
import time
import tracemalloc
from typing import cast

import numpy as np
from spotvlm_msgs.msg import Answer

from .result import PerfResult
from ...config.nodes import EdgeConfig
from ...config.profiles import load_profile
from ...method.facts import Context, Fact, NS
from ...method.stacking import WINDOW
from ...nodes.base import SpotNode
from ...nodes.calibrating import DelayedTruth
from ...nodes.convert import fact_msg, header_msg
from ...system.machine import machine

HZ = 5                           # frames; of one in so many the cloud says something
LATE = 10                        # frames until that is there
FRAMES = HZ * (WINDOW + 100)     # all that is kept is full by then


class _Node:
    """As much of node edge as `DelayedTruth` needs, which is its own publisher."""

    def __init__(self) -> None:
        self.config, self.problem_counts = EdgeConfig(), Counter[str]()
        self.sent = 0

    def advertise(self, kind: type, topic: str, qos: object) -> _Node:
        return self

    def publish(self, message: object) -> None:
        self.sent += 1

    def get_logger(self) -> logging.Logger:
        return logging.getLogger('calibrating')

    def now_ns(self) -> int:
        return 0


class _Stream:
    """Frames, of which all that is said is made up."""

    def __init__(self) -> None:
        self.query = max(load_profile('driving').queries(), key=lambda q: len(q.keys))
        self.node, self._rng = _Node(), np.random.default_rng(1)
        self.truths = DelayedTruth(cast(SpotNode[EdgeConfig], self.node))
        self.truths.setup([self.query], None)

    def said(self, now_ns: int) -> tuple[Fact, ...]:
        """Return any values."""
        return tuple(Fact(key, str(self._rng.choice(values)), now_ns,
                          float(self._rng.uniform(0.3, 0.99)))
                     for key, values in self.query.choices.items())

    def true(self, now_ns: int) -> tuple[Fact, ...]:
        """Return values that change every 8 s: the edge, which guesses, is outvoted."""
        return tuple(Fact(key, values[now_ns // (8 * NS) % len(values)], now_ns)
                     for key, values in self.query.choices.items())

    def run(self, begin: int, end: int) -> float:
        """Answer frames; return the CPU time that it took [s]."""
        spent = 0.0
        for number in range(begin, end):
            now_ns, past_ns = (NS * (100 * HZ + n) // HZ for n in (number, number - LATE))
            first, second, told = (self.said(now_ns) for _ in range(3))
            context = Context(self.query.id, now_ns, told)
            reply = Answer(header=header_msg(past_ns, ''), query_id=self.query.id,
                           source=Answer.SOURCE_CLOUD,
                           facts=[fact_msg(f, past_ns) for f in self.true(past_ns)])
            began = time.thread_time()
            if not number % HZ:
                self.truths.hear(reply)
            judge = self.truths.judge(self.query, now_ns, 0.0)
            assert judge is not None
            judge.leaves_no_doubt(first, context)
            judge.select(first, second, context)
            self.truths.note(judge)
            self.truths.tell()
            spent += time.thread_time() - began
        return spent


def rows() -> list[PerfResult]:
    """Measure the time that it takes an answer, and what is kept at the end."""
    _Stream().run(0, 2 * FRAMES // WINDOW)   # what is loaded for it is not ours
    tracemalloc.start()
    try:
        before, stream = tracemalloc.get_traced_memory()[0], _Stream()
        stream.run(0, FRAMES)
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    spent_ms = 1e3 * stream.run(FRAMES, 2 * FRAMES) / FRAMES
    here = machine(1)
    return [PerfResult('calibration_ms', spent_ms, 'ms of CPU time per answer, with the '
                       "cloud's to one in five", '', None, here),
            PerfResult('calibration_mb', kept / 1e6, f'MB, {len(stream.query.keys)} keys', '',
                       None, here)]
