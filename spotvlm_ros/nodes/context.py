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
"""Context node: answers of both kinds and frames in, context for the edge's next frame out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
import threading
import time

from spotvlm_msgs.msg import Answer, Context as ContextMsg
from typing_extensions import Unpack

from .base import latched, RELIABLE, Report, SpotNode
from .convert import context_msg, gate_of, stamp_ns, turn_from_msg
from .ego import EgoMotion
from .health import ERROR, Pulse, SILENCE_S, Trouble, WARN
from .input import FrameInput
from .parameters import NodeOptions
from .standing_queries import StandingQueries
from ..config.nodes import ContextNodeConfig, NodeConfig
from ..config.query_changes import MAX_QUERIES
from ..frames.frame import Frame
from ..frames.hub import FrameHub, HEAD_START_S, Mailbox
from ..frames.pixels import FrameError
from ..frames.stamps import RESTART_S
from ..method.facts import NS, Query, Source
from ..method.transfer import TransferConfig, Transfers
from ..method.trust import trusted_turn
from ..recording.recorder import plain, Recorder

CLOUD_S = 15.0  # without an answer of the cloud; then it is said
IDLE_S = 0.1  # the flow thread looks up at least this often


class ContextNode(SpotNode[ContextNodeConfig]):
    """
    Late cloud answers replace the edge's own turns; see `method/transfer.py` for what happens.

    Callbacks insert turns. One thread, that of the flow, carries the regions of the context's
    facts from frame to frame and publishes. ``_lock`` guards all of `Transfers` but `carry`, which
    touches what no other thread does while ``_flow_lock`` is held; who needs both takes the flow
    lock first.
    """

    def __init__(self, hub: FrameHub | None = None, **options: Unpack[NodeOptions]) -> None:
        """Create the node; ``hub`` is shared with the other nodes of this process."""
        super().__init__('context', ContextNodeConfig, **options)
        self._hub = hub
        self._queries: dict[str, Query] = {}
        self._standing = StandingQueries(self, self._take_queries)
        self._transfers = Transfers((), TransferConfig())
        self._empty_gate: dict[str, int] = {}  # why a history is empty, until it fills again
        self._frame_ids: dict[str, str] = {}   # by camera
        self._replaced = 0
        self._published: Counter[str] = Counter()  # contexts, by query
        self._lock = threading.RLock()
        self._flow_lock = threading.Lock()     # held while regions are carried
        self._tracked_ns: dict[str, int] = {}     # by camera: newest frame regions were carried to
        self._recorder: Recorder | None = None
        self._ego: EgoMotion | None = None
        self._mailbox = Mailbox()
        self._inputs: dict[str, FrameInput] = {}  # by camera
        self._running = False
        self._ending = threading.Event()
        self._pulses: dict[Source, Pulse] = {}  # of answers
        self._waits: dict[Source, float] = {}   # for them, at least, until that is said [s]
        self._thread: threading.Thread | None = None

    def setup(self) -> None:
        """Read the queries."""
        queries = self._standing.setup()
        self._queries = {q.id: q for q in queries}
        config = self.config.transfer
        self._transfers = Transfers(queries, config)
        if self.config.record_dir:
            self._recorder = Recorder(
                self.config.record_dir, 'context',
                lambda why: self.count('recording_losses', why))
            self._recorder.write('start', queries=[plain(q) for q in queries],
                                 config=plain(config))
        self._ego = EgoMotion(self) if self.config.ego_motion != 'none' \
            and self.config.flow_hz else None
        self._contexts = self.advertise(ContextMsg, 'context',
                                        latched(max(MAX_QUERIES, len(queries))))

    def start(self) -> None:
        """Listen to both kinds of answers, and to frames if regions are to be carried."""
        self._forget(ContextMsg.GATE_EMPTY)
        self._waits = {}
        self._expect()
        for topic, source in (('answers', Source.EDGE), ('cloud/answers', Source.CLOUD)):
            self.subscribe(Answer, topic, RELIABLE, partial(self._on_answer, source))
        self.call_every(1.0 / self.config.rate_hz, self._publish_all)
        if self.config.flow_hz:
            self._running = True
            if self._ego is not None:
                self._ego.start(self)
            self._ending.clear()
            self._thread = threading.Thread(target=self._run, name='flow', daemon=True)
            self._thread.start()
        self._listen()
        self._standing.start()

    def stop(self) -> None:
        """End the flow thread."""
        self._running = False
        self._ending.set()
        self._mailbox.wake()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None
        self._inputs = {}

    def release(self) -> None:
        """Forget everything."""
        self._standing.release()
        with self._lock:
            self._queries, self._transfers = {}, Transfers((), TransferConfig())
            if self._recorder is not None:
                self._recorder.close()
                self._recorder = None

    def clock_jumped(self) -> None:
        """ROS time jumped: ages mean nothing any more."""
        self._forget(ContextMsg.GATE_CLOCK_JUMP)
        if self._ego is not None:
            self._ego.clear()
        if self.active:
            self._publish_all()

    def report(self) -> Report:
        """Return what /diagnostics shows."""
        with self._lock:
            report: Report = {
                'turns_replaced': self._replaced, **self._transfers.report(),
                'flow_frames_dropped': self._mailbox.dropped}
            if self._recorder is not None:
                report['recording_dropped'] = self._recorder.dropped
            if self._ego is not None:
                report['turns_known'] = self._ego.known
            for query_id in self._queries:
                transfer = self._transfers.of_query(query_id)
                context = transfer.context(query_id)
                report[f'{query_id}.turns'] = len(transfer.turns(query_id))
                report[f'{query_id}.facts'] = len(context.facts)
                if not context.empty:
                    report[f'{query_id}.age_s'] = (context.stamp_ns - context.newest_ns) / NS
        for frames in self._inputs.values():
            report |= frames.report()
        return report

    def troubles(self) -> Iterator[Trouble]:
        """Yield what does not come: frames, else answers of the edge, answers of the cloud."""
        troubles = [trouble for frames in self._inputs.values() for trouble in frames.troubles()]
        yield from troubles
        for source, pulse in self._pulses.items():
            node, topic = ('edge', 'answers') if source is Source.EDGE else \
                ('cloud', 'cloud/answers')
            silence = pulse.silence(
                f'usable answer on {self.resolve_topic_name(topic)}',
                f'see what node {node} says, or whether it runs in this namespace',
                WARN if source is Source.CLOUD else ERROR)
            if silence is not None and not troubles:
                yield silence

    def setting(self) -> str:
        """Return the queries and how regions are carried."""
        return f'queries {", ".join(self._queries)}; regions are ' + (
            f'carried {self.config.flow_hz:g} times a second' if self.config.flow_hz else
            'not carried') + (f', ego-motion from {self.config.ego_motion}' if self._ego else '')

    def traffic(self) -> str:
        """Return where answers and frames come from, and context goes."""
        frames = ''.join(f', frames from {f.where}' for f in self._inputs.values())
        answers = ' and '.join(map(self.resolve_topic_name, ('answers', 'cloud/answers')))
        return f'answers from {answers}{frames}, context to {self._contexts.topic_name}'

    def _expect(self) -> None:
        """Begin to wait for answers of both kinds, as often as the queries ask for them."""
        rates = [q.rate_hz for q in self._queries.values()]
        periods = [q.cloud_period_s for q in self._queries.values() if q.cloud_period_s]
        waits = {Source.EDGE: max(SILENCE_S, 3.0 / max(rates))}
        if periods:
            waits[Source.CLOUD] = max(CLOUD_S, 3.0 * min(periods))
        self._pulses = {source: self._pulses[source] if self._waits.get(source) == wait_s
                        else Pulse(wait_s) for source, wait_s in waits.items()}
        self._waits = waits

    def _listen(self) -> None:
        """Listen to the frames of the cameras that queries are about."""
        for camera in self._transfers.cameras if self._running else ():
            if camera not in self._inputs:
                self._inputs[camera] = FrameInput(self, self._hub, self._mailbox.put,
                                                  partial(self._restart, camera), camera)
                if self._ego is not None:
                    self._ego.listen(self, camera)

    def _take_queries(self, queries: tuple[Query, ...]) -> None:
        """Have other queries from now on; the histories of those that stay go on."""
        with self._flow_lock, self._lock:
            self._transfers.replace(queries)
            self._queries = {q.id: q for q in queries}
            self._empty_gate = {q.id: self._empty_gate.get(q.id, int(ContextMsg.GATE_EMPTY))
                                for q in queries}
            if self._recorder is not None:
                self._recorder.write('queries', queries=[plain(q) for q in queries])
        self._expect()
        self._listen()

    # Answers

    def _on_answer(self, source: Source, message: Answer) -> None:
        """Take what is believed of an answer on the topic of a source."""
        query = self._queries.get(message.query_id)
        if query is not None and source in self._pulses and \
                message.error_code in (Answer.ERROR_NONE, Answer.ERROR_TIMEOUT):
            self._pulses[source].beat(stamp_ns(message.header.stamp))
        if query is None or message.error_code != Answer.ERROR_NONE:
            return  # an ad-hoc question, or nothing to remember
        turn, rejected = trusted_turn(turn_from_msg(message), query, source,
                                      self._now_ns(query.camera))
        for why in rejected:
            self.count_problem('answers_rejected', f'answers: {why}')
        if turn is None:
            return
        transfer = self._transfers.of_query(query.id)
        restart_ns = turn.stamp_ns + int(RESTART_S * NS)
        if turn.source is Source.EDGE and restart_ns < transfer.newest_ns(query.id) and \
                self._newest_frame_ns(query.camera) <= restart_ns:
            # Not under the lock: the flow thread takes both in the other order.
            self._restart(query.camera)
        with self._lock:
            self._frame_ids[query.camera] = message.header.frame_id
            if self._recorder is not None:
                self._recorder.write('turn', arrived_ns=self.now_ns(), turn=plain(turn))
            if not transfer.add(turn) or turn.source is not Source.CLOUD:
                return
            self._replaced += 1
            self._empty_gate[query.id] = ContextMsg.GATE_EMPTY
            self._publish(query)

    def _now_ns(self, camera: str) -> int:
        """Return ROS time, or the stamp of a camera's newest frame where that is ahead."""
        return max(self.now_ns(), self._newest_frame_ns(camera))

    def _newest_frame_ns(self, camera: str) -> int:
        frames = self._inputs.get(camera)
        return frames.order.newest_ns if frames is not None else 0

    def _publish_all(self) -> None:
        with self._lock:
            for query in self._queries.values():
                self._publish(query)

    def _publish(self, query: Query) -> None:
        """Publish the context for the newest frame that is known of."""
        gate = self._empty_gate[query.id]
        transfer = self._transfers.of_query(query.id)
        if not transfer.turns(query.id) and gate == ContextMsg.GATE_EMPTY:
            return  # there has been no answer yet
        context = transfer.context(query.id)
        if self._recorder is not None:
            self._recorder.write('context', query_id=query.id, context=plain(context))
        message = context_msg(context, query, self._frame_ids.get(query.camera, ''),
                              gate_of(context, gate), self._transfers.dropped)
        self._published[query.id] += 1
        message.sequence = self._published[query.id]
        self._contexts.publish(message)

    def _forget(self, gate: int, camera: str | None = None) -> None:
        """Forget the answers about a camera's frames, or about all."""
        with self._flow_lock, self._lock:
            for name in self._transfers.cameras if camera is None else [camera]:
                self._transfers.of_camera(name).clear()
                self._tracked_ns.pop(name, None)
            if self._recorder is not None:
                self._recorder.write('clear', gate=gate, camera=camera)
            self._empty_gate |= {q.id: gate for q in self._queries.values()
                                 if camera is None or q.camera == camera}
            self._mailbox.clear(camera)

    def _restart(self, camera: str) -> None:
        self._forget(ContextMsg.GATE_RESTART, camera)
        self._publish_all()

    # Focus: the flow thread

    def _run(self) -> None:
        while self._running:
            frame = self._mailbox.get(IDLE_S)
            if frame is None:
                continue
            self._ending.wait(frame.received + HEAD_START_S - time.monotonic())
            try:
                self._carry(frame)
            except FrameError as error:
                self.count_problem('bad_images', str(error))
            except Exception as error:
                self.count_error('flow_errors', error)

    def _carry(self, frame: Frame) -> None:
        """Carry all regions to a frame, take up those of new facts, publish."""
        # Frames come a little early or late: half a period is tolerance enough.
        camera, stamp_ns, recorder = frame.camera, frame.stamp_ns, self._recorder
        if stamp_ns - self._tracked_ns.get(camera, 0) < 0.5 * NS / self.config.flow_hz:
            return
        image = frame.rgb()
        with self._flow_lock:
            source = self._inputs.get(camera)
            if source is None or stamp_ns > source.order.newest_ns or \
                    camera not in self._transfers.cameras:
                return  # taken before the stream started over, or nothing is asked about it
            self._tracked_ns[camera] = stamp_ns
            transfer = self._transfers.of_camera(camera)
            turn = self._ego.turn(frame, transfer.carried_ns) if self._ego is not None else None
            with self._lock:
                facts = transfer.facts_to_track(stamp_ns)
                if recorder is not None:
                    recorder.write(
                        'frame', stamp_ns=stamp_ns, camera=camera, frame=recorder.frame(
                            stamp_ns, image, frame.jpeg, frame.reference, camera),
                        **({'turn': turn.ravel().tolist()} if turn is not None else {}))
            update = transfer.carry(stamp_ns, image, facts, turn)
            with self._lock:
                transfer.apply(update)
                if recorder is not None:
                    recorder.write('carried', stamp_ns=stamp_ns, camera=camera)
                for query_id in {query_id for query_id, _ in facts}:
                    self._publish(self._queries[query_id])


def make_nodes() -> list[SpotNode[NodeConfig]]:
    """Return the node for a process of its own."""
    return [ContextNode()]
