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
A recording answered by its own clock (`spotvlm process`): every due frame, on any machine alike.

The same method, edge model, guard, keyframe policy and budgets as on a robot; only time is that of
the stamps. A frame may use what the cloud said about an earlier one if that was there by then, and
is answered however long the model takes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import hashlib
import heapq
import math
from typing import NamedTuple, Protocol

from .journal import Journal
from .judged import NotingJudge, Passes
from .recorder import plain
from ..cloud.offline import OfflineCloud
from ..cloud.parse import CloudAnswer
from ..config.nodes import CloudNodeConfig, ContextNodeConfig, EdgeConfig
from ..edge.answer import EdgeAnswer, EdgeVLM
from ..frames.frame import Frame
from ..frames.pixels import FrameError, Image
from ..frames.schedule import Schedule
from ..frames.source_frame import SourceFrame
from ..frames.stamps import StampOrder
from ..method.calibration import FrameJudge, KeyState
from ..method.calibrations import Calibrations
from ..method.ego import Matrix
from ..method.facts import Context, NS, Query, Source, Turn
from ..method.guard import Judge
from ..method.keyframes import is_unsure, SceneCutDetector
from ..method.transfer import Transfer

PRIME = 8    # answers given once more before a run goes on: what the engine keeps of them shows


@dataclass(frozen=True)
class EdgeResult:
    """What came of a query about a frame: ``answer``, or else ``error``."""

    frame: Frame
    query: Query
    context: Context | None = None
    answer: EdgeAnswer | None = None
    error: str = ''
    bad_image: bool = False   # that is the error


class Output(Protocol):
    """Where results go, in the order of time; ``log_ns`` is when, by the recorder's clock."""

    def edge(self, result: EdgeResult, log_ns: int) -> None:
        """Take an answer of the edge."""

    def cloud(self, answer: CloudAnswer, log_ns: int) -> None:
        """Take an answer of the cloud."""

    def context(self, context: Context, frame: Frame, dropped: int, log_ns: int) -> None:
        """Take the context for a frame, before the answer; ``dropped``: facts since start."""

    def restart(self, stamp_ns: int, log_ns: int) -> None:
        """Take that the stream starts over."""


class Due(NamedTuple):
    """A query to answer about a frame."""

    image: Image
    query: Query
    context: Context | None
    stamp_ns: int


class KeptEdge:
    """An edge model that is loaded, and asked, only about what the journal does not have."""

    def __init__(self, load: Callable[[], EdgeVLM], queries: Sequence[Query],
                 journal: Journal) -> None:
        """Load nothing yet."""
        self.inference_s: list[float] = []    # of the answers of this process
        self._load, self._queries, self._journal = load, queries, journal
        self._model: EdgeVLM | None = None
        self._last: deque[tuple[Due, Passes | None]] = deque(maxlen=PRIME * len(queries))

    def answer(self, index: int, due: Due, judge: FrameJudge | None = None) -> EdgeAnswer | str:
        """
        Return the answer about the frame of this index in the bag, or why there is none.

        The ``judge`` is given what it was, or is, to judge, whether the model is asked or not.
        """
        context, query = due.context, due.query
        given = hashlib.sha256(repr(plain(context) if context is not None else None).encode()
                               ).hexdigest()[:16]
        kept = self._journal.answer(index, query.id, given)
        if kept is None:
            noting = NotingJudge(judge) if judge is not None else None
            answer = self._ask(due, noting)
            self._journal.keep_answer(index, query.id, given, answer,
                                      noting.passes if noting is not None else None)
            return answer
        answer, passes = kept
        if judge is not None and passes is not None:
            judge.select(passes.first, passes.second, context)
        if self._model is None:
            self._last.append((due, passes))
        return answer

    def _ask(self, due: Due, judge: Judge | None) -> EdgeAnswer | str:
        if self._model is None:
            self._model = self._load()
            self._model.warm_up(self._queries)
            for earlier, passes in self._last:
                _answered(self._model, earlier, passes)
            self._last.clear()
        answer = _answered(self._model, due, judge)
        if not isinstance(answer, str):
            self.inference_s.append(answer.preprocess_s + answer.inference_s)
        return answer


def _answered(model: EdgeVLM, due: Due, judge: Judge | None) -> EdgeAnswer | str:
    try:
        return model.answer(due.image, due.query, due.context, due.stamp_ns, judge=judge)
    except Exception as error:    # as node edge: it goes on with the next frame
        return f'{type(error).__name__}: {error}'


@dataclass(frozen=True)
class Rules:
    """The parameters that decide; ``edge_latency_s`` is frame to answer, by the stamps' clock."""

    edge: EdgeConfig
    cloud: CloudNodeConfig
    context: ContextNodeConfig
    edge_latency_s: float = 0.0


class Process:
    """All nodes over one stream of frames."""

    def __init__(self, queries: Sequence[Query], rules: Rules, edge: KeptEdge,
                 cloud: OfflineCloud, output: Output) -> None:
        """Start before the first frame."""
        self.counts: Counter[str] = Counter()
        self._queries, self._rules = queries, rules
        self._edge, self._cloud, self._output = edge, cloud, output
        self._schedules = {q.id: Schedule((q,)) for q in queries}
        self._method = Transfer(queries, rules.context.transfer)
        self._calibrations = Calibrations(queries, rules.edge.guard_odds, rules.edge.calibrate,
                                          rules.edge.calibrate_share)
        self._order, self._cuts = StampOrder(), SceneCutDetector()
        self._carried_ns = self._log_after_ns = self._logged_ns = 0
        # frame, log time, stamp of the frame before -> how the camera's turn moves pixels
        self.turn: Callable[[Frame, int, int], Matrix | None] = lambda frame, log, before: None
        self._under_way: list[tuple[int, int, EdgeResult]] = []   # answers, by their moment

    @property
    def calibration(self) -> dict[str, list[KeyState]]:
        """Return what the cloud's answers have taught about the keys, by query."""
        states = {q.id: list(self._calibrations.state(q.id).values()) for q in self._queries}
        return {query_id: keys for query_id, keys in states.items() if keys}

    @property
    def newest_ns(self) -> int:
        """Return the stamp of the newest frame."""
        return self._order.newest_ns

    def take(self, index: int, source: SourceFrame) -> None:
        """Take the next frame of the recording, the one of this index."""
        self.counts['frames'] += 1
        self.counts['time_jumps'] += bool(source.warning)
        stamp_ns = source.stamp_ns or source.log_ns
        verdict = self._order.admit(stamp_ns)
        if verdict == 'restart':
            self._restart(stamp_ns, source.log_ns)
        elif verdict != 'ok':
            self.counts[f'frames_{verdict}'] += 1
            return
        self._log_after_ns = source.log_ns - stamp_ns
        frame = Frame(stamp_ns, source.frame_id, pixels=source.load, jpeg=source.jpeg)
        due = [q for q in self._queries if self._schedules[q.id].take(stamp_ns) is not None]
        self.counts['due'] += len(due)
        self._advance(stamp_ns)
        image, error = self._decoded(frame, bool(due))
        self._cloud.offer(frame, source.at_s)
        self._advance(stamp_ns)  # an answer may take no time
        if image is not None and self._rules.context.flow_hz:
            self._carried_ns = stamp_ns
            turn = self.turn(frame, source.log_ns, self._method.carried_ns)
            self._method.frame(stamp_ns, image, turn)
        for query in due:
            result = self._answered(index, frame, query) if image is not None else \
                EdgeResult(frame, query, error=error, bad_image=True)
            self.counts['answers'] += 1
            heapq.heappush(self._under_way, (stamp_ns + round(self._rules.edge_latency_s * NS),
                                             self.counts['answers'], result))
        self._advance(stamp_ns)

    def finish(self) -> None:
        """Publish the answers that are under way; nobody waits for the cloud any more."""
        self._publish_all()
        self._cloud.restart()

    # One frame

    def _decoded(self, frame: Frame, due: bool) -> tuple[Image | None, str]:
        """Return the pixels of a frame that is needed, None and why where there are none."""
        flow_hz = self._rules.context.flow_hz
        if not due and (not flow_hz or frame.stamp_ns - self._carried_ns < 0.5 * NS / flow_hz):
            return None, ''
        try:
            image = frame.rgb()
        except FrameError as error:
            self.counts['frames_bad'] += 1
            return None, str(error)
        if self._cuts.is_due(frame.stamp_ns) and self._cuts.update(
                frame.stamp_ns, image, self._rules.cloud.cut_below):
            self.counts['scene_cuts'] += 1
            for query in self._queries:
                self._cloud.timeline.policy.urge(query.id)
        return image, ''

    def _answered(self, index: int, frame: Frame, query: Query) -> EdgeResult:
        """Answer a query about a frame, with what was there when it was acquired."""
        stamp_ns, context = frame.stamp_ns, None
        if self._rules.edge.use_context and self._method.turns(query.id):
            context = self._method.context(query.id, stamp_ns)
            self._output.context(context, frame, sum(self._method.dropped.values()),
                                 self._log_ns(stamp_ns))
        judge = self._calibrations.judge(query, stamp_ns) if self._rules.edge.use_context else None
        answer = self._edge.answer(index, Due(frame.rgb(), query, context, stamp_ns), judge)
        if isinstance(answer, str):
            return EdgeResult(frame, query, context, error=answer)
        return EdgeResult(frame, query, context, answer)

    # The clock

    def _advance(self, now_ns: int) -> None:
        """Let happen what happens up to a moment, in the order of time."""
        while True:
            edge_ns = self._under_way[0][0] if self._under_way else math.inf
            cloud_ns = self._cloud.next_ns
            if min(edge_ns, cloud_ns) > now_ns:
                return
            if edge_ns < cloud_ns:
                self._publish(*heapq.heappop(self._under_way))
                continue
            for at_ns, answer in self._cloud.settle(int(cloud_ns)):
                self._output.cloud(answer, self._log_ns(at_ns))
                self._method.add(answer.turn)
                self._calibrations.truth(answer.turn)

    def _publish(self, at_ns: int, number: int, result: EdgeResult) -> None:
        """Publish an answer of the edge, and take it into the history."""
        self._output.edge(result, self._log_ns(at_ns))
        answer, query = result.answer, result.query
        if answer is None:
            self.counts['errors'] += 1
        elif answer.rejected and not answer.facts:
            self.counts['errors'] += 1
        else:
            seen = tuple(f for f in answer.facts if f.key not in answer.held_keys)
            self._method.add(Turn(query.id, result.frame.stamp_ns, Source.EDGE, seen,
                                  answer.text))
        if answer is not None and is_unsure((f.confidence for f in answer.facts),
                                            self._rules.cloud.unsure_below):
            self._cloud.timeline.policy.urge(query.id)

    def _publish_all(self) -> None:
        while self._under_way:
            self._publish(*heapq.heappop(self._under_way))

    def _restart(self, stamp_ns: int, log_ns: int) -> None:
        """Forget all that is of another time: the stream starts over (a bag that was looped)."""
        self._publish_all()
        self.counts['restarts'] += 1
        self._cloud.restart()
        self._method.clear()
        self._calibrations.forget()
        self._cuts, self._carried_ns = SceneCutDetector(), 0
        for schedule in self._schedules.values():
            schedule.clear()
        self._log_after_ns = log_ns - stamp_ns
        self._output.restart(stamp_ns, self._log_ns(stamp_ns))

    def _log_ns(self, at_ns: int) -> int:
        """Return a moment by the recorder's clock, never before the last one."""
        self._logged_ns = max(self._logged_ns, at_ns + self._log_after_ns)
        return self._logged_ns
