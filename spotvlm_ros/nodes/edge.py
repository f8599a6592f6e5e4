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
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
import threading
import time
import traceback
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.task import Future
from spotvlm_msgs.action import Ask
from spotvlm_msgs.msg import Answer, Context as ContextMsg

from .base import latched, RELIABLE, SpotNode
from .convert import context_from_msg, duration_msg, duration_s, fact_from_msg, fact_msg
from .convert import header_msg, MAX_FACTS, stamp_ns
from .input import FrameInput
from ..config.nodes import EdgeConfig, NodeConfig
from ..edge.answer import EdgeAnswer, EdgeVLM
from ..frames.frame import Frame
from ..frames.hub import FrameHub, Mailbox
from ..frames.pixels import FrameError
from ..frames.schedule import Schedule
from ..method.audit import Audit
from ..method.facts import cameras, Context, NS, Query
from ..method.history import unexpired
from ..method.prompt import neutralise
from ..recording.recorder import plain, recorded_load, Recorder

IDLE_S = 0.1  # the inference thread looks up at least this often
TRUTHS = 64   # frames whose labels are kept for the audit
Load = Callable[[EdgeConfig], EdgeVLM]


def load_edge_model(config: EdgeConfig) -> EdgeVLM:
    """Load the model; torch is imported here, not when the node is created."""
    from ..edge.model import EdgeModel
    return EdgeModel.load(config)


@dataclass
class Job:
    """One goal of action `ask`."""

    goal: Any
    query: Query
    until: float    # steady time when to give up [s]
    done: Future[Any]
    text: str = ''
    canceled: Callable[[], bool] = field(default=lambda: False)


class EdgeNode(SpotNode[EdgeConfig]):
    """Answers the standing queries about the newest frame, each at its own rate."""

    def __init__(self, hub: FrameHub | None = None, load: Load = load_edge_model,
                 **kwargs: Any) -> None:
        """Create the node; ``hub`` is shared with the other nodes of this process."""
        super().__init__('edge', EdgeConfig, **kwargs)
        self._hub, self._load = hub, load
        self._model: EdgeVLM | None = None
        self._queries: dict[str, Query] = {}
        self._schedule = Schedule(())
        self._contexts: dict[str, ContextMsg] = {}  # read when used: more come than are needed
        self._mailbox = Mailbox()
        self._last: dict[str, Frame] = {}  # newest that was looked at, by camera
        self._jobs: deque[Job] = deque()
        self._running = False
        self._busy = False
        self._thread: threading.Thread | None = None
        self._inputs: list[FrameInput] = []
        self._answers: Any = None
        self._audits: Any = None
        self._detections: Any = None
        self._audit = Audit(0.0)
        self._truth: dict[int, dict[str, str]] = {}  # facts by stamp, of the miniature world
        self._recorder: Recorder | None = None
        self._published = 0
        self._used: Context | None = None  # what the last answer was given
        self._latency_s: deque[float] = deque(maxlen=256)
        self._inference_s: deque[float] = deque(maxlen=256)

    @property
    def model(self) -> EdgeVLM:
        """Return the model, which is there between configure and cleanup."""
        assert self._model is not None
        return self._model

    def setup(self) -> None:
        """Load the model."""
        self._queries = {q.id: q for q in self.queries(self.config)}
        self._schedule = Schedule(tuple(self._queries.values()))
        self._model = self._load(self.config)
        if self.config.record_dir:
            self._recorder = Recorder(self.config.record_dir, 'edge')
            self._recorder.write(
                'start', queries=[plain(q) for q in self._queries.values()],
                load=recorded_load(self.config))
        self._audits = self.advertise(Answer, 'audit', RELIABLE)
        self._answers = self.advertise(Answer, 'answers', RELIABLE)
        try:
            from vision_msgs.msg import Detection2DArray
            self._detections = self.advertise(Detection2DArray, 'focus/detections', RELIABLE)
        except ImportError:
            self._detections = None  # optional, and not on PyPI

    def start(self) -> None:
        """Warm up, listen, answer."""
        self._forget()
        self._running = True
        warm = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(warm,), name='edge', daemon=True)
        self._thread.start()
        while not warm.wait(0.1) and self._thread.is_alive():
            pass  # frames are of no use before
        self._inputs = [
            FrameInput(self, self._hub, self._mailbox.put, partial(self._forget, camera), camera)
            for camera in cameras(self._queries.values())]
        self.subscribe(ContextMsg, 'context', latched(16), self._on_context)
        self._audit = Audit(self.config.audit_share)
        if self._audit.share and self.config.audit_truth:
            self.subscribe(Answer, 'truth', RELIABLE, self._on_truth)
        server = ActionServer(self, Ask, 'ask', self._execute, goal_callback=self._on_goal,
                              cancel_callback=lambda goal: CancelResponse.ACCEPT)
        self.own(server.destroy)

    def stop(self) -> None:
        """End the inference thread; a model call under way is told to stop early."""
        self._running = False
        self._mailbox.wake()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None
        while self._jobs:
            self._finish(self._jobs.popleft(), Ask.Result.ERROR_CANCELED, 'edge is deactivated')

    def release(self) -> None:
        """Free the model."""
        self._model = None
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
        for publisher in (self._answers, self._audits, self._detections):
            if publisher is not None:
                self.destroy_lifecycle_publisher(publisher)
        self._answers = self._audits = self._detections = None

    def clock_jumped(self) -> None:
        """ROS time jumped: the frame that waits and all context are of another time."""
        self._forget()

    def report(self) -> dict[str, Any]:
        """Return what /diagnostics shows."""
        def median(values: deque[float]) -> float:
            return sorted(values)[len(values) // 2] if values else 0.0
        own = {'answers': self._published, 'frames_dropped': self._mailbox.dropped,
               'stamp_to_answer_p50_s': median(self._latency_s),
               'inference_p50_s': median(self._inference_s),
               'model': self._model.name if self._model is not None else '',
               **self._audit.report()}
        if self._recorder is not None:
            own['recording_dropped'] = self._recorder.dropped
        for one in self._inputs:
            own |= one.report()
        return own

    @property
    def idle(self) -> bool:
        """Whether no frame is being answered, nor came in the last half second."""
        newest = max((f.received for f in tuple(self._last.values())), default=0.0)
        return not self._busy and time.monotonic() - newest > 0.5

    # Callbacks: enqueue only

    def _on_context(self, message: ContextMsg) -> None:
        if message.query_id in self._queries:
            self._contexts[message.query_id] = message

    def _on_truth(self, message: Answer) -> None:
        """Keep the exact labels of the last frames, for the audit."""
        self._truth[stamp_ns(message.header.stamp)] = {f.key: f.value for f in message.facts}
        while len(self._truth) > TRUTHS:
            del self._truth[min(self._truth)]

    def _on_goal(self, request: Ask.Goal) -> GoalResponse:
        return GoalResponse.ACCEPT if self.active else GoalResponse.REJECT

    async def _execute(self, goal: Any) -> Ask.Result:
        request = goal.request
        timeout = duration_s(request.timeout) or self.config.ask_timeout_s
        query = self._queries.get(request.query_id)
        if query is None and request.query_id:
            goal.abort()
            return Ask.Result(error_code=Ask.Result.ERROR_UNKNOWN_QUERY,
                              error_msg=f'no query {request.query_id!r} is configured; there are '
                              f'{", ".join(self._queries)}')
        if query is None:
            tokens = request.max_tokens or self.config.ask_max_tokens
            camera = cameras(self._queries.values())[0]
            query = Query(id='', prompt=neutralise(request.prompt), format='text',
                          deadline_s=timeout, max_new_tokens=tokens, camera=camera)
        job = Job(goal, query, time.monotonic() + timeout, Future(executor=self.executor),
                  canceled=lambda: bool(goal.is_cancel_requested))
        self._jobs.append(job)
        self._mailbox.wake()
        result: Ask.Result = await job.done
        if result.error_code == Ask.Result.ERROR_NONE:
            goal.succeed()
        elif goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        return result

    # The inference thread

    def _run(self, warm: threading.Event) -> None:
        try:
            self.model.warm_up(tuple(self._queries.values()))
        except Exception as error:
            self.count('model_errors', f'warm-up: {type(error).__name__}: {error}')
        warm.set()
        while self._running:
            try:
                if self._jobs:
                    self._ask(self._jobs[0])
                else:
                    self._next_frame()
            except Exception as error:
                self.count('errors', f'{type(error).__name__}: {error}')
                self.get_logger().debug(traceback.format_exc())

    def _next_frame(self) -> None:
        """Answer one due query about a frame that has just arrived."""
        frame = self._mailbox.get(IDLE_S)
        if frame is None:
            return
        if len(self._inputs) == 1 and \
                time.monotonic() - frame.received > self.config.max_start_age_s:
            # It came while the model was busy. The next one is fresher and about to come; where
            # none does (slow camera, end of the clip) this one is still the newest. With several
            # cameras the model has no time to wait.
            frame = self._mailbox.get(self.config.patience_s) or frame
        self._last[frame.camera] = frame
        query = self._schedule.take(frame.stamp_ns, frame.camera)
        if query is not None and self._running:
            started_ns = self.now_ns()
            self._busy = True
            try:
                message = self._answer(frame, query, started_ns,
                                       frame.received + query.deadline_s, None, lambda: False)
                self._publish(message)
                if message.used_context and not message.error_code and self._audit.due():
                    self._compare(frame, query, message)
            finally:
                self._busy = False

    def _answer(self, frame: Frame, query: Query, started_ns: int, until: float,
                on_text: Callable[[str, int], None] | None,
                canceled: Callable[[], bool]) -> Answer:
        """Return the answer to a query about a frame; errors are in it, never raised."""
        message = Answer(header=header_msg(frame.stamp_ns, frame.frame_id), query_id=query.id,
                         source=Answer.SOURCE_EDGE, model=self.model.name,
                         wait=duration_msg(max(0, started_ns - frame.stamp_ns) / NS))
        context = None
        if self.config.use_context and query.id in self._contexts:
            context = unexpired(context_from_msg(self._contexts[query.id]), query, frame.stamp_ns)
        try:
            rgb = frame.rgb()
        except FrameError as error:
            self.count('bad_images', str(error))
            message.error_code, message.error_msg = Answer.ERROR_IMAGE, str(error)
            return message
        try:
            result = self.model.answer(
                rgb, query, context, frame.stamp_ns, on_text=on_text,
                should_stop=lambda: (not self._running or canceled()
                                     or time.monotonic() > until))
        except Exception as error:
            self.count('model_errors', f'{type(error).__name__}: {error}')
            self.get_logger().debug(traceback.format_exc())
            message.error_code = Answer.ERROR_MODEL
            message.error_msg = f'{type(error).__name__}: {error}'
            return message
        self._used = context
        if self._recorder is not None:
            self._note(frame, rgb, query, context, result)
        message.text = result.text
        message.facts = [fact_msg(f, frame.stamp_ns) for f in result.facts[:MAX_FACTS]]
        message.used_context, message.used_focus = result.used_context, result.used_focus
        message.context_tokens = result.context_tokens
        if result.used_context and context is not None:
            message.context_age = duration_msg((frame.stamp_ns - context.newest_ns) / NS)
        message.preprocess = duration_msg(result.preprocess_s)
        message.inference = duration_msg(result.inference_s)
        self._inference_s.append(result.inference_s)
        if result.partial:
            message.error_code = Answer.ERROR_CANCELED if canceled() else Answer.ERROR_TIMEOUT
            message.error_msg = ('given up on request' if canceled() else
                                 f'cut short {query.deadline_s:g} s after the frame came; raise '
                                 'the deadline or use a faster model')
            self.count('late_answers')
        elif result.rejected and not result.facts:
            message.error_code = Answer.ERROR_PARSE
            message.error_msg = '; '.join(result.rejected[:4])
            self.count('parse_errors', message.error_msg)
        return message

    def _note(self, frame: Frame, rgb: Any, query: Query, context: Context | None,
              result: EdgeAnswer) -> None:
        """Record an answer and what it was made of."""
        assert self._recorder is not None
        own = {} if query.id in self._queries else {'query': plain(query)}
        self._recorder.write(
            'answer', stamp_ns=frame.stamp_ns, query_id=query.id, **own,
            frame=self._recorder.frame(frame.stamp_ns, rgb, frame.jpeg, frame.reference,
                                       frame.camera),
            context=plain(context) if context is not None else None, text=result.text,
            facts=[plain(f) for f in result.facts], partial=result.partial)

    def _compare(self, frame: Frame, query: Query, given: Answer) -> None:
        """Answer a frame once more, without context, and count what context did."""
        context = self._used
        alone = self.model.answer(frame.rgb(), query, None, frame.stamp_ns,
                                  should_stop=lambda: not self._running)
        self._audit.add([fact_from_msg(f) for f in given.facts], alone.facts,
                        context.facts if context is not None else (),
                        self._truth.get(frame.stamp_ns) if query.format == 'facts' else None)
        if self._audits is not None and self._running:
            self._audits.publish(Answer(
                header=given.header, query_id=query.id, source=Answer.SOURCE_EDGE,
                text=alone.text, facts=[fact_msg(f, frame.stamp_ns) for f in alone.facts],
                inference=duration_msg(alone.inference_s), model=self.model.name))

    def _publish(self, message: Answer) -> None:
        publisher = self._answers
        if publisher is None or not self._running:
            return
        publisher.publish(message)
        self._published += 1
        stamp = message.header.stamp
        self._latency_s.append((self.now_ns() - stamp.sec * NS - stamp.nanosec) / NS)
        if self._detections is not None and self._detections.get_subscription_count():
            self._detections.publish(self._boxes(message))

    def _boxes(self, message: Answer) -> Any:
        """Return the regions that the model was told to look at as vision_msgs."""
        from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose
        boxes = Detection2DArray(header=message.header)
        context = self._used
        for fact in context.facts if context is not None else ():
            region = context.focus.get(fact.key) if context is not None else None
            if region is None:
                continue
            box = Detection2D(header=message.header, id=fact.key)
            box.bbox.center.position.x = region.x + region.w / 2
            box.bbox.center.position.y = region.y + region.h / 2
            box.bbox.size_x, box.bbox.size_y = float(region.w), float(region.h)
            seen = ObjectHypothesisWithPose()
            seen.hypothesis.class_id = f'{fact.key}: {fact.value}'
            seen.hypothesis.score = float(fact.confidence)
            box.results = [seen]
            boxes.detections.append(box)
        return boxes

    # Action ask

    def _ask(self, job: Job) -> None:
        """Answer a goal about the newest frame."""
        camera = job.query.camera
        frame = self._mailbox.get(IDLE_S, camera) or self._last.get(camera)
        if job.canceled():
            self._jobs.popleft()
            self._finish(job, Ask.Result.ERROR_CANCELED, 'given up on request')
        elif frame is not None:
            self._jobs.popleft()
            self._last[camera] = frame
            self._answer_job(job, frame)
        elif time.monotonic() > job.until:
            self._jobs.popleft()
            self._finish(job, Ask.Result.ERROR_NO_FRAME, 'no camera frame arrived in time; is '
                         'the camera running, and does its QoS fit?')

    def _answer_job(self, job: Job, frame: Frame) -> None:
        def on_text(text: str, tokens: int) -> None:
            job.goal.publish_feedback(Ask.Feedback(text=neutralise(text), tokens=tokens))
        answer = self._answer(frame, job.query, self.now_ns(), job.until, on_text, job.canceled)
        codes = {Answer.ERROR_NONE: Ask.Result.ERROR_NONE,
                 Answer.ERROR_TIMEOUT: Ask.Result.ERROR_TIMEOUT,
                 Answer.ERROR_CANCELED: Ask.Result.ERROR_CANCELED}
        self._finish(job, codes.get(answer.error_code, Ask.Result.ERROR_MODEL), answer.error_msg,
                     answer)

    @staticmethod
    def _finish(job: Job, code: int, message: str, answer: Answer | None = None) -> None:
        job.done.set_result(Ask.Result(answer=answer or Answer(), error_code=code,
                                       error_msg=message))

    def _forget(self, camera: str | None = None) -> None:
        """Forget what is of another time: of a camera whose stream starts over, or all."""
        self._mailbox.clear(camera)
        self._schedule.clear(camera)
        for query in self._queries.values():
            if camera is None or query.camera == camera:
                self._last.pop(query.camera, None)
                self._contexts.pop(query.id, None)


def make_nodes() -> list[SpotNode[NodeConfig]]:
    """Return the node for a process of its own."""
    return [EdgeNode()]
