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
Edge node: newest frame and newest context in, answers out. Waits for nothing but a frame.

One thread runs the model, for standing queries and for action `ask` alike; the executor only
enqueues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
import statistics
import threading
import time

from spotvlm_msgs.msg import Answer, Context as ContextMsg
from typing_extensions import Unpack

from .answered import AnsweredFrame
from .ask_server import AskGoal, AskServer
from .audit import ContextAudit
from .base import latched, RELIABLE, Report, SpotNode
from .calibrating import DelayedTruth
from .context_inbox import ContextInbox
from .debug_image import DebugImage
from .detections import FocusDetections
from .health import Pulse, SILENCE_S, Trouble
from .input import FrameInput
from .own_answers import OwnAnswers
from .parameters import NodeOptions
from .remote_edge import load_edge_model, RemoteEdge
from .standing_queries import QueryDoor
from ..config.nodes import EdgeConfig, NodeConfig
from ..edge.answer import EdgeVLM
from ..frames.frame import Frame
from ..frames.hub import FrameHub, Mailbox
from ..frames.pixels import FrameError
from ..frames.schedule import Schedule
from ..method.facts import cameras, NS, Query
from ..recording.recorder import plain, recorded_load, Recorder
from ..system.memory import give_back, settle

IDLE_S = 0.1   # the inference thread looks up at least this often
QUIET_S = 0.5  # without a frame for this long, none is expected
Load = Callable[[EdgeConfig], EdgeVLM]


class EdgeNode(SpotNode[EdgeConfig]):
    """Answers the standing queries about the newest frame, each at its own rate."""

    def __init__(self, hub: FrameHub | None = None, load: Load = load_edge_model,
                 **options: Unpack[NodeOptions]) -> None:
        """Create the node; ``hub`` is shared with the other nodes of this process."""
        super().__init__('edge', EdgeConfig, **options)
        self._hub, self._load = hub, load
        self._model: EdgeVLM | None = None
        self._queries: dict[str, Query] = {}
        self._recorded: dict[str, Query] = {}  # as the recording knows them
        self._schedule = Schedule(())
        self._contexts = ContextInbox(self)
        self._mailbox = Mailbox()
        self._last: dict[str, Frame] = {}  # newest that was looked at, by camera
        self._inputs: list[FrameInput] = []
        self._ask = AskServer(self, self._mailbox.wake)
        self._door = QueryDoor(self, self._take_queries,
                               lambda: [f.camera for f in self._inputs], self._mailbox.wake)
        self._audit, self._truths = ContextAudit(self), DelayedTruth(self)
        self._detections, self._debug = FocusDetections(self), DebugImage(self)
        self._own = OwnAnswers(self)
        self._recorder: Recorder | None = None
        self._running = self._busy = False
        self._thread: threading.Thread | None = None
        self._published = 0
        self._pulses: dict[str, Pulse] = {}  # of answers that are no error but late, by query
        self._latency_s: deque[float] = deque(maxlen=256)
        self._inference_s: deque[float] = deque(maxlen=256)

    @property
    def model(self) -> EdgeVLM:
        """Return the model, which is there between configure and cleanup."""
        assert self._model is not None
        return self._model

    @property
    def _remote(self) -> RemoteEdge | None:
        return self._model if isinstance(self._model, RemoteEdge) else None

    def setup(self) -> None:
        """Load the model."""
        self._queries = self._recorded = {q.id: q for q in self._door.setup()}
        self._schedule = Schedule(tuple(self._queries.values()))
        self._model = self._load(self.config)
        if self.config.record_dir:
            self._recorder = Recorder(self.config.record_dir, 'edge',
                                      lambda why: self.count('recording_losses', why))
            self._recorder.write(
                'start', queries=[plain(q) for q in self._queries.values()],
                load=recorded_load(self.config))
        self._truths.setup(tuple(self._queries.values()), self._recorder)
        self._audit.setup()
        self._own.setup()
        self._answers = self.advertise(Answer, 'answers', RELIABLE)
        self._detections.setup()
        self._debug.setup()

    def start(self) -> None:
        """Warm up, listen, answer."""
        self._forget()
        self._pulses = {q.id: _pulse(q) for q in self._queries.values()}
        self._running = True
        warm = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(warm,), name='edge', daemon=True)
        self._thread.start()
        while not warm.wait(0.1) and self._thread.is_alive():
            pass  # frames are of no use before
        settle()
        self._inputs = [
            FrameInput(self, self._hub, self._mailbox.put, partial(self._forget, camera), camera)
            for camera in self._cameras()]
        self.subscribe(ContextMsg, 'context', latched(16), self._on_context)
        self._audit.start()
        self._truths.start()
        self._debug.start()
        self._ask.start(self._queries, self._cameras())
        self._door.start()

    def stop(self) -> None:
        """End the inference thread; a model call under way is asked to stop early."""
        self._running = False
        self._mailbox.wake()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None
        self._ask.stop()
        self._door.stop()

    def release(self) -> None:
        """Free the model."""
        self._door.release()
        if self._model is not None:
            if self._remote is not None:
                self._remote.close()
            self._model = None
            give_back()
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def clock_jumped(self) -> None:
        """Forget the frame that waits and all context: they are of another time."""
        self._forget()

    def report(self) -> Report:
        """Return what /diagnostics shows."""
        values: Report = {
            'queries': ', '.join(self._queries),
            'answers': self._published, 'frames_dropped': self._mailbox.dropped,
            'stamp_to_answer_p50_s': _median(self._latency_s),
            'inference_p50_s': _median(self._inference_s),
            'model': self._model.name if self._model is not None else '',
            'formats': getattr(self._model, 'formats', ''),
            **self._audit.report(), **self._truths.report(), **self._debug.report(),
            **(self._remote.report() if self._remote is not None else {})}
        if self._recorder is not None:
            values['recording_dropped'] = self._recorder.dropped
        for frames in self._inputs:
            values |= frames.report()
        return values

    def troubles(self) -> Iterator[Trouble]:
        """Yield what is wrong with the frames; where they are well, with the answers."""
        if self._remote is not None and self._remote.trouble:
            yield Trouble(self._remote.trouble)
        for frames in self._inputs:
            queries = [q for q in self._queries.values() if q.camera == frames.camera]
            troubles = tuple(frames.troubles(sum(q.rate_hz for q in queries)))
            yield from troubles
            for query in () if troubles else queries:
                yield from self._troubles_with(query)
        yield from self._truths.troubles()

    def _troubles_with(self, query: Query) -> Iterator[Trouble]:
        pulse = self._pulses[query.id]
        silence = pulse.silence(f'good answer to {query.id}', self.newest_problem)
        if silence is not None:
            yield silence
        elif slow_hz := pulse.slow_hz(query.rate_hz):
            yield Trouble(
                f'{query.id} is answered {slow_hz:.2g} times a second, and {query.rate_hz:g} are '
                f'wanted; an answer takes the model {_median(self._inference_s):.2g} s: use a '
                f'faster device, more threads or a smaller model, or lower {query.id}.rate_hz')

    def setting(self) -> str:
        """Return model, device and queries."""
        where = self.config.remote_url or \
            f'{self.config.device} ({self.config.threads} threads)'
        return f'model {self.model.name} on {where}, queries ' + \
            ', '.join(f'{q.id} ({q.rate_hz:g} Hz)' for q in self._queries.values())

    def traffic(self) -> str:
        """Return where frames come from and answers go."""
        return f'frames from {", ".join(f.where for f in self._inputs)}, answers to ' \
            f'{self._answers.topic_name}'

    @property
    def idle(self) -> bool:
        """Whether no frame is being answered, nor came in the last half second."""
        newest = max((f.received for f in tuple(self._last.values())), default=0.0)
        return not self._busy and time.monotonic() - newest > QUIET_S

    def _on_context(self, message: ContextMsg) -> None:
        if message.query_id in self._queries:
            self._contexts.put(message)

    def _forget(self, camera: str | None = None) -> None:
        """Forget what is of another time: of a camera whose stream starts over, or all."""
        self._mailbox.clear(camera)
        self._schedule.clear(camera)
        self._truths.forget(camera)
        for name in tuple(self._last) if camera is None else (camera,):
            self._last.pop(name, None)
        for query in self._queries.values():
            if camera is None or query.camera == camera:
                self._contexts.forget(query.id)

    def _take_queries(self, queries: Sequence[Query]) -> None:
        """Answer other queries from now on; those that stay go on undisturbed."""
        before, self._queries = self._queries, {q.id: q for q in queries}
        self._pulses = {q.id: self._pulses[q.id] if before.get(q.id) is q else _pulse(q)
                        for q in queries}
        self._truths.replace(queries)
        self._schedule.replace(queries)
        self._ask.know(self._queries)
        for query in before.values():
            if not query.asks_as(self._queries.get(query.id)):
                self._contexts.forget(query.id)

    def _cameras(self) -> list[str]:
        return list(dict.fromkeys([*cameras(self._queries.values()), *self.config.cameras]))

    # The inference thread

    def _run(self, warm: threading.Event) -> None:
        try:
            self.model.warm_up(tuple(self._queries.values()))
        except Exception as error:
            self.count_problem('model_errors', f'warm-up: {type(error).__name__}: {error}')
        warm.set()
        while self._running:
            try:
                asked = self._ask.take(self._newest_frame)
                if asked is not None:
                    self._answer_goal(*asked)
                self._door.run_trial(self.model, self._standing_wait)
                self._answer_next_frame(IDLE_S if asked is None else 0.0)
            except Exception as error:
                self.count_error('errors', error)

    def _newest_frame(self, camera: str) -> Frame | None:
        return next((f for f in self._mailbox.waiting() if f.camera == camera),
                    self._last.get(camera))

    def _answer_goal(self, goal: AskGoal, frame: Frame) -> None:
        """Answer a question of action `ask`; the frame remains for the standing queries."""
        began = time.monotonic()
        goal.slice_s = max(goal.slice_s, 2.0 * _median(self._inference_s))
        answered = self._answer(frame, goal.query, goal.until, goal)
        if answered.interrupted:
            self._ask.put_back(goal, frame, answered.message)
        else:
            goal.finish_with(answered.message)
        if self._standing_wait():
            self._ask.pause(time.monotonic() - began)

    def _standing_wait(self) -> bool:
        """Return whether a standing query is due about a frame that waits."""
        return any(self._schedule.due(f.stamp_ns, f.camera) for f in self._mailbox.waiting())

    def _answer_next_frame(self, timeout_s: float) -> None:
        """
        Answer one due query about a frame that has just arrived.

        Without time to wait, the newest frame will do: a question of action `ask` held it up.
        """
        frame = self._mailbox.get(timeout_s)
        if frame is None:
            return
        if timeout_s and len(self._inputs) == 1 and \
                time.monotonic() - frame.received > self.config.max_start_age_s:
            # It came while the model was busy. The next one is fresher and about to come; where
            # none does (slow camera, end of the clip) this one is still the newest. With several
            # cameras the model has no time to wait.
            frame = self._mailbox.get(self.config.patience_s) or frame
        self._last[frame.camera] = frame
        query = self._schedule.take(frame.stamp_ns, frame.camera)
        if query is None or not self._running:
            return
        self._busy = True
        try:
            answered = self._answer(frame, query, frame.received + query.deadline_s)
            if not query.asks_as(self._queries.get(query.id)):
                self.count_problem('answers_of_old_queries')
            elif self._running:
                self._publish(answered)
            until = time.monotonic() + query.deadline_s
            self._audit.check(answered, self.model,
                              lambda: not self._running or time.monotonic() > until)
        finally:
            self._busy = False

    def _answer(self, frame: Frame, query: Query, until: float,
                goal: AskGoal | None = None) -> AnsweredFrame:
        """Answer until a moment of the steady clock; errors are in the answer, never raised."""
        answered = AnsweredFrame.unanswered(frame, query, self.model.name, self.now_ns())
        context, sequence = None, 0
        if goal is None and self.config.use_context:
            answered.judge = self._truths.judge(query, frame.stamp_ns, until)
        if self.config.use_context and query.camera == self._queries.get(query.id, query).camera:
            context, sequence = self._contexts.get(query, frame.stamp_ns)
        longest_s = self.config.ask_timeout_s
        held_until = time.monotonic() + min(goal.slice_s if goal is not None else 0.0, longest_s)

        def should_stop() -> bool:
            now = time.monotonic()
            return not self._running or now > until or (goal is not None and (
                goal.canceled or now > held_until and self._standing_wait()))
        try:
            result = self.model.answer(
                frame.rgb(), query, context, frame.stamp_ns, should_stop=should_stop,
                on_text=goal.publish_text if goal is not None else None, judge=answered.judge)
        except FrameError as error:
            self.count_problem('bad_images', str(error))
            answered.fail(Answer.ERROR_IMAGE, str(error))
            return answered
        except Exception as error:
            answered.fail(Answer.ERROR_MODEL, self.count_error('model_errors', error))
            return answered
        answered.complete(context, result, sequence)
        if answered.judge is not None:
            self._truths.note(answered.judge)
        if result.partial and goal is not None and goal.slice_s < longest_s and \
                self._running and not goal.canceled and time.monotonic() < until:
            answered.interrupted = True
            return answered
        if result.context_error:
            self.count_problem('context_errors', f'with context: {result.context_error}')
        self._inference_s.append(result.inference_s)
        if self._recorder is not None:
            self._record(self._recorder, answered)
        self._note_errors(answered, until, goal)
        return answered

    def _note_errors(self, answered: AnsweredFrame, until: float, goal: AskGoal | None) -> None:
        """Say in an answer that it is late, cut short or unreadable; its facts stay in it."""
        query, result = answered.query, answered.result
        assert result is not None
        if result.partial and goal is not None and goal.canceled:
            answered.fail(Answer.ERROR_CANCELED, 'given up on request')
            self.count_problem('late_answers')
        elif time.monotonic() > until:  # a pass of the model under way is not interrupted
            knobs = 'device, threads' if self._remote is None else 'server, network'
            how = 'cut short' if result.partial else 'complete only later than'
            if goal is not None:
                answered.fail(Answer.ERROR_TIMEOUT, f"{how} the goal's timeout; raise it")
                self.count_problem('late_answers')
                return
            answered.fail(Answer.ERROR_TIMEOUT, f'{how} {query.deadline_s:g} s after the frame '
                          'came; raise the deadline or use a faster model')
            self.count_problem('late_answers', f'{query.id}: {answered.message.error_msg} '
                               f'({query.id}.deadline_s, {knobs})')
        elif result.partial:
            answered.fail(Answer.ERROR_TIMEOUT, f'cut short after {self.config.ask_timeout_s:g} '
                          's: standing answers wait; lower max_tokens, or raise ask_timeout_s')
            self.count_problem('asks_cut_short')
        elif answered.fail_unread():
            self.count_problem('parse_errors', answered.message.error_msg)

    def _publish(self, answered: AnsweredFrame) -> None:
        self._own.publish(answered)
        self._answers.publish(answered.message)
        self._published += 1
        if answered.message.error_code in (Answer.ERROR_NONE, Answer.ERROR_TIMEOUT):
            pulse = self._pulses.get(answered.query.id)
            if pulse is not None:
                pulse.beat(answered.frame.stamp_ns)
        self._latency_s.append((self.now_ns() - answered.frame.stamp_ns) / NS)
        self._detections.publish(answered)
        self._debug.publish(answered)
        self._truths.tell()

    def _record(self, recorder: Recorder, answered: AnsweredFrame) -> None:
        """Record an answer and what it was made of."""
        frame, query = answered.frame, answered.query
        context, result = answered.context, answered.result
        assert result is not None
        recorder.write(
            'answer', stamp_ns=frame.stamp_ns, query_id=query.id,
            **({} if query == self._recorded.get(query.id) else {'query': plain(query)}),
            frame=recorder.frame(frame.stamp_ns, frame.rgb(), frame.jpeg, frame.reference,
                                 frame.camera),
            context=plain(context) if context is not None else None, text=result.text,
            facts=[plain(f) for f in result.facts], partial=result.partial,
            judged=answered.judge is not None,
            alone=answered.judge is not None and answered.judge.alone,
            own=[plain(f) for f in answered.own])


def _pulse(query: Query) -> Pulse:
    return Pulse(max(SILENCE_S, 3.0 / query.rate_hz))


def _median(values: deque[float]) -> float:
    return statistics.median_high(values) if values else 0.0


def make_nodes() -> list[SpotNode[NodeConfig]]:
    """Return the node for a process of its own."""
    return [EdgeNode()]
