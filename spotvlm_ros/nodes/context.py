# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Context node: answers of both kinds in, context for the edge's next frame out."""

from __future__ import annotations

from typing import Any

from spotvlm_msgs.msg import Answer, Context as ContextMsg

from .base import latched, RELIABLE, SpotNode
from .convert import context_msg, turn_from_msg
from .frames import RESTART_S
from ..method.facts import NS, Query, Source
from ..method.history import History, HORIZON_S


class ContextNode(SpotNode):
    """One history per query; a late cloud answer replaces the edge's own turn of its frame."""

    def __init__(self, **kwargs: Any) -> None:
        """Create the node."""
        super().__init__('context', **kwargs)
        self._queries: dict[str, Query] = {}
        self._histories: dict[str, History] = {}
        self._newest_ns: dict[str, int] = {}  # newest frame answered by the edge, per query
        self._reset_gate: dict[str, int] = {}  # why a history is empty, until it fills again
        self._frame_id = ''
        self._contexts: Any = None
        self._replaced = 0

    def setup(self) -> None:
        """Read the queries."""
        self._queries = {q.id: q for q in self.queries()}
        self._contexts = self.advertise(ContextMsg, 'context', latched(len(self._queries)))

    def start(self) -> None:
        """Listen to both kinds of answers."""
        self._forget(ContextMsg.GATE_EMPTY)
        self.subscribe(Answer, 'answers', RELIABLE, self._on_answer)
        self.subscribe(Answer, 'cloud/answers', RELIABLE, self._on_answer)
        self.every(1.0 / self.param('rate_hz'), self._publish_all)

    def release(self) -> None:
        """Forget everything."""
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
        report: dict[str, Any] = {'turns_replaced': self._replaced}
        for query_id, history in self._histories.items():
            context = history.context(self._newest_ns[query_id])
            report[f'{query_id}.turns'] = len(history)
            report[f'{query_id}.facts'] = len(context.facts)
            if not context.empty:
                report[f'{query_id}.age_s'] = (context.stamp_ns - context.newest_ns) / NS
        return report

    def _on_answer(self, message: Answer) -> None:
        query = self._queries.get(message.query_id)
        if query is None or message.error_code != Answer.ERROR_NONE:
            return  # an ad-hoc question, or nothing to remember
        turn = turn_from_msg(message)
        newest = self._newest_ns[query.id]
        if turn.source is Source.EDGE:
            if turn.stamp_ns < newest - RESTART_S * NS:
                self._forget(ContextMsg.GATE_RESTART)
                self._publish_all()
            self._newest_ns[query.id] = max(self._newest_ns[query.id], turn.stamp_ns)
        elif newest and turn.stamp_ns > newest + HORIZON_S * NS:
            return  # asked before the stream restarted
        self._frame_id = message.header.frame_id
        if self._histories[query.id].add(turn) and turn.source is Source.CLOUD:
            self._replaced += 1
            self._reset_gate[query.id] = ContextMsg.GATE_EMPTY
            self._publish(query)

    def _publish_all(self) -> None:
        for query in self._queries.values():
            self._publish(query)

    def _publish(self, query: Query) -> None:
        """Publish the context for the newest frame that the edge or the cloud has answered."""
        history = self._histories[query.id]
        turns = history.turns
        now_ns = max(self._newest_ns[query.id], turns[-1].stamp_ns if turns else 0)
        if now_ns == 0 and self._reset_gate[query.id] == ContextMsg.GATE_EMPTY:
            return  # nothing has been seen yet
        context = history.context(now_ns)
        cloud = {f.key for t in turns if t.source is Source.CLOUD for f in t.facts}
        gate = self._reset_gate[query.id] if context.empty else ContextMsg.GATE_OPEN
        self._contexts.publish(context_msg(context, query, self._frame_id, gate,
                                           len(cloud) - len(context.facts)))

    def _forget(self, gate: int) -> None:
        self._histories = {q.id: History(q) for q in self._queries.values()}
        self._newest_ns = dict.fromkeys(self._queries, 0)
        self._reset_gate = dict.fromkeys(self._queries, gate)


def make_nodes() -> list[SpotNode]:
    """Return the node for a process of its own."""
    return [ContextNode()]
