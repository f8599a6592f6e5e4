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
from collections.abc import Callable, Iterator, Mapping, Sequence
import math
import statistics
import time

from spotvlm_msgs.msg import Answer, Calibration as CalibrationMsg, KeyCalibration
from std_msgs.msg import Header

from .base import latched, RELIABLE, Report, SpotNode
from .convert import header_msg, turn_from_msg
from .health import Trouble
from ..config.nodes import EdgeConfig
from ..config.query_changes import MAX_QUERIES
from ..method.calibration import BETTER, FEW, KeyState, ONE_VALUE
from ..method.calibrations import Calibrations
from ..method.facts import NS, Query, Source, Turn
from ..method.guard import OFF
from ..method.stacking import NAMES
from ..method.trust import trusted_turn
from ..recording.judged import NotingJudge
from ..recording.recorder import plain, Recorder

WAITING = 64    # answers of the cloud that wait for the next frame
PERIOD_S = 1.0  # between two messages about a query, at least
ENOUGH = 20     # labels that show that edge and cloud disagree
MANY = 60       # labels that show that the cloud tells nothing
HALF = 0.5      # agreement below which they do


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
        # By query; replaced, never changed:
        self._states: Mapping[str, Mapping[str, KeyState]] = {}
        self._troubles: Mapping[str, Mapping[str, Trouble]] = {}
        self._late_s: deque[float] = deque(maxlen=64)
        self._news: dict[str, Header] = {}           # of what is to be published, by query
        self._told_at: dict[str, float] = {}         # when, steady clock [s]

    def setup(self, queries: Sequence[Query], recorder: Recorder | None) -> None:
        """Begin as the guard, or as queries say."""
        config = self._node.config
        self._waiting.clear()
        self._news.clear()
        self._states, self._troubles, self._queries = {}, {}, {q.id: q for q in queries}
        self._recorder = recorder
        self._publisher = self._node.advertise(CalibrationMsg, 'calibration',
                                               latched(max(MAX_QUERIES, len(queries))))
        self._calibrations = Calibrations(queries, config.guard_odds, config.calibrate,
                                          config.calibrate_share)

    def start(self) -> None:
        """Listen to the cloud."""
        if self._node.config.guard_odds > OFF:
            self._node.subscribe(Answer, 'cloud/answers', RELIABLE, self.hear)

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
            states = {q.id: self._calibrations.state(q.id) for q in queries}
            self._states = {i: s for i, s in states.items() if any(k.labels for k in s.values())}
            self._troubles = {i: t for i, t in self._troubles.items() if i in self._states}
            self._news = {i: header for i, header in self._news.items() if i in self._states}
        self._queries = {q.id: q for q in queries}
        self._waiting.append(replace)

    def judge(self, query: Query, frame_ns: int, until: float) -> NotingJudge | None:
        """
        Return what judges the answer about a frame, all that waits taken into account.

        A second pass to learn from only is left out where twice the time of the first would end
        after ``until``, by the steady clock.
        """
        while self._waiting:
            self._waiting.popleft()(frame_ns)
        judge, began = self._calibrations.judge(query, frame_ns), time.monotonic()
        return None if judge is None else NotingJudge(judge, has_time=lambda: (
            time.monotonic() + 2.0 * (time.monotonic() - began) < until))

    def note(self, judge: NotingJudge) -> None:
        """Count the passes of an answer that were to learn from only."""
        if judge.to_learn and judge.passes is not None:
            self._counts['passes_without_time' if judge.alone else 'passes_to_learn'] += 1

    def report(self) -> Report:
        """Return what /diagnostics shows."""
        fixed = [(q.id, key) for q in self._queries.values() for key in q.weights
                 if not self._node.config.calibrate]
        return {'truths': self._counts['truths'],
                'truths_unmatched': self._counts['truths_unmatched'],
                'passes_to_learn': self._counts['passes_to_learn'],
                'passes_without_time': self._counts['passes_without_time'],
                **{f'calibration_{name}_{key}': 'as its weights say' for name, key in fixed},
                **{f'calibration_{query_id}_{key}': in_words(state)
                   for query_id, states in self._states.items() for key, state in states.items()}}

    def troubles(self) -> Iterator[Trouble]:
        """Yield where edge and cloud contradict each other, or the cloud tells nothing."""
        for troubles in self._troubles.values():
            yield from troubles.values()

    def tell(self) -> None:
        """Publish what is new, now that no answer waits."""
        now = time.monotonic()
        for query_id in tuple(self._news):
            if now - self._told_at.get(query_id, -PERIOD_S) >= PERIOD_S:
                self._told_at[query_id] = now
                self._publisher.publish(CalibrationMsg(
                    header=self._news.pop(query_id), query_id=query_id,
                    keys=[_key_msg(*known) for known in self._states[query_id].items()]))

    # Answers of the cloud

    def hear(self, message: Answer) -> None:
        """Leave an answer of the cloud for the thread of the model."""
        if message.query_id not in self._queries or message.error_code != Answer.ERROR_NONE or \
                not self._node.config.use_context:
            return
        if len(self._waiting) >= WAITING:
            self._node.count_problem('truths_lost')
            return
        now_ns = self._node.now_ns()
        self._waiting.append(lambda frame_ns: self._take(message, max(frame_ns, now_ns)))

    def _take(self, message: Answer, now_ns: int) -> None:
        query = self._queries.get(message.query_id)
        if query is None or not self._calibrations.hears(query.id):
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
        self._late_s.append((now_ns - turn.stamp_ns) / NS)
        if judged:
            self._learned(turn, message.header.frame_id)

    def _learned(self, turn: Turn, frame_id: str) -> None:
        """Take down, and say, what the calibration of a query is now."""
        query_id, log = turn.query_id, self._node.get_logger()
        before, states = self._states.get(query_id, {}), self._calibrations.state(query_id)
        for key, state in states.items():
            if state.learned != (before[key].learned if key in before else False):
                rule = 'what was learned decides' if state.learned else 'the guard decides again'
                log.info(f'{query_id}.{key}: from now on {rule} ({in_words(state)})')
        troubles = {}
        for key, state in states.items():
            for kind, text in (
                    ('edge_contradicts_cloud', _contradiction(state, self._late_s)),
                    ('cloud_tells_nothing', _emptiness(state, query_id))):
                if not text:
                    continue
                name = f'{kind} {key}'
                troubles[name] = Trouble(f'{query_id}.{key}: {text}')
                if name not in self._troubles.get(query_id, {}):
                    self._node.problem_counts[kind] += 1
                    log.warning(troubles[name].text)
        self._states = {**self._states, query_id: states}
        self._troubles = {**self._troubles, query_id: troubles}
        self._news[query_id] = header_msg(turn.stamp_ns, frame_id)

    def _record(self, event: str, **values: object) -> None:
        if self._recorder is not None:
            self._recorder.write(event, **values)


def in_words(state: KeyState) -> str:
    """Return what is known of a key, in one line."""
    changes = f'changes every {1.0 / state.hazard_hz:.2g} s' if state.hazard_hz else \
        'no change seen'
    doubted = ', cloud not believed' * (state.labels >= FEW and not state.believed)
    return f'labels {state.labels}, agreement {state.agreement:.2f}, help {state.help:.2f}, ' \
        f'harm {state.harm:.2f}, {"learned" if state.learned else "guard"}, ' \
        f'margin {state.margin:.2g}, {changes}{doubted}'


def _contradiction(state: KeyState, late_s: Sequence[float]) -> str:
    """Return what is wrong where the edge is worse than chance, or than always the same value."""
    n, agreement = state.labels, state.agreement
    error = math.sqrt(agreement * (1.0 - agreement) / max(1, n))
    if n < ENOUGH or not state.believed or \
            agreement + BETTER * error >= max(HALF, state.commonest):
        return ''
    answers = f'answers are mostly what the cloud said {statistics.median(late_s):.1f} s ago' \
        if state.learned else 'answers are those of the guard'
    return f'the edge model agrees with the cloud about {100 * agreement:.0f} of 100 frames; ' \
        f'{answers}; teach the edge this question, or name another model'


def _emptiness(state: KeyState, query_id: str) -> str:
    """Return what is wrong where the cloud cannot be believed."""
    if state.labels < MANY or state.believed:
        return ''
    what = 'are always the same, whatever the edge sees' if state.commonest > ONE_VALUE else \
        'fit neither one another nor what the edge sees'
    return f"the cloud's answers {what}: nothing is learned from them; check the model of node " \
        f'cloud, {query_id}.cloud_prompt and {query_id}.choices'


def _key_msg(key: str, state: KeyState) -> KeyCalibration:
    return KeyCalibration(
        key=key, labels=state.labels, agreement=state.agreement, help=state.help, harm=state.harm,
        confidence=state.confidence, hazard_hz=state.hazard_hz, margin=state.margin,
        learned=state.learned, believed=state.believed, weight_names=list(NAMES),
        weights=list(state.weights))
