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
"""Delayed truth in a running edge: the cloud's answers teach whom to believe."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from spotvlm_msgs.msg import Answer

from .base import RELIABLE, Report, SpotNode
from .convert import stamp_ns, turn_from_msg
from ..config.nodes import EdgeConfig
from ..method.calibration import KeyState
from ..method.calibrations import Calibrations
from ..method.facts import NS, Query, Source
from ..method.guard import OFF
from ..method.trust import trusted_turn
from ..recording.judged import NotingJudge
from ..recording.recorder import plain, Recorder

WAITING = 64   # answers of the cloud that wait for the next frame


class DelayedTruth:
    """
    Owns the calibrations of the standing queries.

    `judge` and `tell` are for the thread of the model: all that changes a calibration happens
    there, in the order in which a recording has it. The executor's thread only leaves it to do.
    """

    def __init__(self, node: SpotNode[EdgeConfig]) -> None:
        """Know no query."""
        self._node = node
        self._calibrations = Calibrations((), OFF)
        self._recorder: Recorder | None = None
        self._queries: dict[str, Query] = {}
        self._waiting: deque[Callable[[int], None]] = deque()   # given the stamp of a frame
        self._counts: Counter[str] = Counter()
        self._states: dict[str, dict[str, KeyState]] = {}  # by query; replaced, never changed
        self._late_s: deque[float] = deque(maxlen=64)

    def setup(self, queries: Sequence[Query], recorder: Recorder | None) -> None:
        """Begin as the guard, or as queries say."""
        config = self._node.config
        self._waiting.clear()
        self._states, self._queries = {}, {q.id: q for q in queries}
        self._recorder = recorder
        self._calibrations = Calibrations(queries, config.guard_odds if config.calibrate else OFF)

    def start(self) -> None:
        """Listen to the cloud."""
        if self._node.config.calibrate and self._node.config.guard_odds > OFF:
            self._node.subscribe(Answer, 'cloud/answers', RELIABLE, self._on_answer)

    def forget(self, camera: str | None) -> None:
        """Forget frames and answers of a camera whose stream starts over, or of all."""
        def forget(_: int) -> None:
            self._calibrations.forget(camera)
            self._record('forget', camera=camera)
        self._waiting.append(forget)

    def replace(self, queries: Sequence[Query]) -> None:
        """Have other queries from now on."""
        def replace(_: int) -> None:
            self._calibrations.replace(queries)
            self._record('queries', queries=[plain(q) for q in queries])
            self._states = {q.id: self._calibrations.state(q.id) for q in queries
                            if q.id in self._states}
        self._queries = {q.id: q for q in queries}
        self._waiting.append(replace)

    def judge(self, query: Query, frame_ns: int) -> NotingJudge | None:
        """Return what judges the answer about a frame, all that waits taken into account."""
        while self._waiting:
            self._waiting.popleft()(frame_ns)
        judge = self._calibrations.judge(query, frame_ns)
        return NotingJudge(judge) if judge is not None else None

    def report(self) -> Report:
        """Return what /diagnostics shows."""
        return {'truths': self._counts['truths'],
                'truths_unmatched': self._counts['truths_unmatched']}

    # Answers of the cloud

    def _on_answer(self, message: Answer) -> None:
        """Leave an answer of the cloud for the thread of the model."""
        if message.query_id not in self._queries or message.error_code != Answer.ERROR_NONE:
            return
        if len(self._waiting) >= WAITING:
            self._node.count_problem('truths_lost')
            return
        now_ns = self._node.now_ns()
        self._waiting.append(lambda frame_ns: self._take(message, max(frame_ns, now_ns)))

    def _take(self, message: Answer, now_ns: int) -> None:
        query = self._queries.get(message.query_id)
        if query is None:
            return
        turn, rejected = trusted_turn(turn_from_msg(message), query, Source.CLOUD, now_ns)
        for why in rejected:
            self._node.count_problem('truths_rejected', f'cloud/answers: {why}')
        if turn is None:
            return
        self._record('truth', turn=plain(turn))
        judged = self._calibrations.truth(turn)
        self._counts['truths'] += 1
        self._counts['truths_unmatched'] += not judged
        self._late_s.append((now_ns - stamp_ns(message.header.stamp)) / NS)
        if judged:
            self._states = {**self._states, query.id: self._calibrations.state(query.id)}

    def _record(self, event: str, **values: object) -> None:
        if self._recorder is not None and self._node.config.calibrate:
            self._recorder.write(event, **values)
