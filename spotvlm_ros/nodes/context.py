# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Context node: answers of both kinds and frames in, context for the edge's next frame out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
import threading
from typing import Any

from spotvlm_msgs.msg import Answer, Context as ContextMsg

from .base import latched, RELIABLE, SpotNode
from .convert import context_msg, turn_from_msg
from .frames import Frame, FrameError, FrameHub, Mailbox, RESTART_S
from .input import FrameInput
from ..method.facts import NS, Query, Region, Source
from ..method.flow import Carrier
from ..method.history import History, HORIZON_S

IDLE_S = 0.1  # the flow thread looks up at least this often
Name = tuple[str, str]  # query and key


class ContextNode(SpotNode):
    """
    One history per query; a late cloud answer replaces the edge's own turn of its frame.

    Callbacks insert turns. One thread carries the regions of the context's facts from frame to
    frame and publishes; it alone touches the carrier. The lock guards the histories.
    """

    def __init__(self, hub: FrameHub | None = None, **kwargs: Any) -> None:
        """Create the node; ``hub`` is shared with the other nodes of this process."""
        super().__init__('context', **kwargs)
        self._hub = hub
        self._queries: dict[str, Query] = {}
        self._histories: dict[str, History] = {}
        self._newest_ns: dict[str, int] = {}  # newest frame answered by the edge, per query
        self._reset_gate: dict[str, int] = {}  # why a history is empty, until it fills again
        self._frame_id = ''
        self._contexts: Any = None
        self._replaced = 0
        self._lock = threading.RLock()
        self._carrier = Carrier()
        self._carried: dict[Name, int] = {}    # what is carried -> stamp of the fact
        self._focus: Mapping[Name, Region] = {}  # regions in the frame of _focus_ns
        self._focus_ns = 0
        self._start_over = False
        self._mailbox = Mailbox()
        self._input: FrameInput | None = None
        self._running = False
        self._thread: threading.Thread | None = None

    def setup(self) -> None:
        """Read the queries."""
        self._queries = {q.id: q for q in self.queries()}
        self._contexts = self.advertise(ContextMsg, 'context', latched(len(self._queries)))

    def start(self) -> None:
        """Listen to both kinds of answers, and to frames if regions are to be carried."""
        self._forget(ContextMsg.GATE_EMPTY)
        self.subscribe(Answer, 'answers', RELIABLE, self._on_answer)
        self.subscribe(Answer, 'cloud/answers', RELIABLE, self._on_answer)
        self.every(1.0 / self.param('rate_hz'), self._publish_all)
        if self.param('flow_hz'):
            self._running = True
            self._thread = threading.Thread(target=self._run, name='flow', daemon=True)
            self._thread.start()
            self._input = FrameInput(self, self._hub, self._mailbox.put, self._restarted)

    def stop(self) -> None:
        """End the flow thread."""
        self._running = False
        self._mailbox.wake()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None
        self._input = None

    def release(self) -> None:
        """Forget everything."""
        with self._lock:
            self._queries, self._histories = {}, {}
            if self._contexts is not None:
                self.destroy_lifecycle_publisher(self._contexts)
                self._contexts = None

    def clock_jumped(self) -> None:
        """ROS time jumped: ages mean nothing any more."""
        self._forget(ContextMsg.GATE_CLOCK_JUMP)
        if self.active:
            self._publish_all()

    def report(self) -> dict[str, Any]:
        """Return what /diagnostics shows."""
        with self._lock:
            report: dict[str, Any] = {
                'turns_replaced': self._replaced, 'regions_carried': len(self._carrier.tracks),
                'regions_lost': self._carrier.lost, 'flow_frames_dropped': self._mailbox.dropped}
            for query_id, history in self._histories.items():
                context = history.context(self._newest_ns[query_id])
                report[f'{query_id}.turns'] = len(history)
                report[f'{query_id}.facts'] = len(context.facts)
                if not context.empty:
                    report[f'{query_id}.age_s'] = (context.stamp_ns - context.newest_ns) / NS
        return report | (self._input.report() if self._input is not None else {})

    # Answers

    def _on_answer(self, message: Answer) -> None:
        query = self._queries.get(message.query_id)
        if query is None or message.error_code != Answer.ERROR_NONE:
            return  # an ad-hoc question, or nothing to remember
        turn = turn_from_msg(message)
        with self._lock:
            newest = self._newest_ns[query.id]
            if turn.source is Source.EDGE:
                if turn.stamp_ns < newest - RESTART_S * NS:
                    self._restarted()
                self._newest_ns[query.id] = max(self._newest_ns[query.id], turn.stamp_ns)
            elif newest and turn.stamp_ns > newest + HORIZON_S * NS:
                return  # asked before the stream restarted
            self._frame_id = message.header.frame_id
            if not self._histories[query.id].add(turn) or turn.source is not Source.CLOUD:
                return
            self._replaced += 1
            self._reset_gate[query.id] = ContextMsg.GATE_EMPTY
            self._publish(query)

    def _publish_all(self) -> None:
        with self._lock:
            for query in self._queries.values():
                self._publish(query)

    def _publish(self, query: Query) -> None:
        """Publish the context for the newest frame that is known of."""
        history = self._histories[query.id]
        turns = history.turns
        now_ns = max(self._newest_ns[query.id], turns[-1].stamp_ns if turns else 0,
                     self._focus_ns)
        if not turns and self._reset_gate[query.id] == ContextMsg.GATE_EMPTY:
            return  # nothing has been said yet
        context = history.context(now_ns)
        if self._running:
            focus = self._focus  # lost regions are not in it
            context = replace(context, focus={
                f.key: focus[query.id, f.key] for f in context.facts
                if (query.id, f.key) in focus})
        cloud = {f.key for t in turns if t.source is Source.CLOUD for f in t.facts}
        gate = self._reset_gate[query.id] if context.empty else ContextMsg.GATE_OPEN
        if self._contexts is not None:
            self._contexts.publish(context_msg(context, query, self._frame_id, gate,
                                               len(cloud) - len(context.facts)))

    def _forget(self, gate: int) -> None:
        with self._lock:
            self._histories = {q.id: History(q) for q in self._queries.values()}
            self._newest_ns = dict.fromkeys(self._queries, 0)
            self._reset_gate = dict.fromkeys(self._queries, gate)
            self._focus, self._focus_ns, self._start_over = {}, 0, True
            self._mailbox.clear()

    def _restarted(self) -> None:
        self._forget(ContextMsg.GATE_RESTART)
        self._publish_all()

    # Focus: the flow thread

    def _run(self) -> None:
        while self._running:
            frame = self._mailbox.get(IDLE_S)
            if frame is None or not self._running:
                continue
            try:
                self._carry(frame)
            except FrameError as error:
                self.count('bad_images', str(error))
            except Exception as error:
                self.count('flow_errors', f'{type(error).__name__}: {error}')

    def _carry(self, frame: Frame) -> None:
        """Carry all regions to a frame, take up those of new facts, publish."""
        if self._start_over:
            self._start_over = False
            self._carrier.clear()
            self._carried.clear()
        # Frames come a little early or late: half a period is tolerance enough.
        if frame.stamp_ns - self._carrier.newest_ns < 0.5 * NS / self.param('flow_hz'):
            return
        self._carrier.add(frame.stamp_ns, frame.rgb())
        with self._lock:
            wanted = {(query.id, fact.key): fact for query in self._queries.values()
                      for fact in self._histories[query.id].cloud_facts(frame.stamp_ns).values()
                      if fact.region is not None}
        self._carrier.keep(wanted.keys())
        new: dict[int, dict[Hashable, Region]] = {}
        for name, fact in wanted.items():
            if self._carried.get(name) != fact.stamp_ns and fact.region is not None:
                new.setdefault(fact.stamp_ns, {})[name] = fact.region
        for stamp_ns, regions in new.items():
            self._carrier.start(regions, stamp_ns)
        self._carried = {name: fact.stamp_ns for name, fact in wanted.items()}
        if self._start_over or not (wanted or self._focus):
            return
        self._focus = {name: region for name, region in self._carrier.regions().items()
                       if isinstance(name, tuple)}
        self._focus_ns = frame.stamp_ns
        with self._lock:
            for query_id in {query_id for query_id, _ in wanted}:
                self._publish(self._queries[query_id])


def make_nodes() -> list[SpotNode]:
    """Return the node for a process of its own."""
    return [ContextNode()]
