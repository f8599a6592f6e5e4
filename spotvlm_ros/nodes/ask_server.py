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
"""The server of action `ask`: keeps goals until the inference thread answers them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
import time

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.task import Future
from spotvlm_msgs.action import Ask
from spotvlm_msgs.msg import Answer

from .base import SpotNode
from .convert import duration_s
from ..config.nodes import EdgeConfig
from ..frames.frame import Frame
from ..method.facts import cameras, Query
from ..method.prompt import neutralise

RESULT_CODES = {Answer.ERROR_NONE: Ask.Result.ERROR_NONE,  # all else is ERROR_MODEL
                Answer.ERROR_TIMEOUT: Ask.Result.ERROR_TIMEOUT,
                Answer.ERROR_CANCELED: Ask.Result.ERROR_CANCELED}


@dataclass
class AskGoal:
    """A question that waits for its answer."""

    handle: ServerGoalHandle
    query: Query
    until: float    # when to give up, steady clock [s]
    done: Future[Ask.Result]

    @property
    def canceled(self) -> bool:
        """Whether the client has given up."""
        return bool(self.handle.is_cancel_requested)

    def publish_text(self, text: str, tokens: int) -> None:
        """Send the answer so far to the client."""
        self.handle.publish_feedback(Ask.Feedback(text=neutralise(text), tokens=tokens))

    def finish(self, code: int, text: str, answer: Answer | None = None) -> None:
        """Send the result to the client."""
        self.done.set_result(Ask.Result(answer=answer or Answer(), error_code=code,
                                        error_msg=text))


class AskServer:
    """Takes goals while the node is active; `serve` is called by the inference thread."""

    def __init__(self, node: SpotNode[EdgeConfig], on_goal: Callable[[], None]) -> None:
        """Call ``on_goal`` when a goal has come."""
        self._node, self._on_goal = node, on_goal
        self._queries: Mapping[str, Query] = {}
        self._goals: deque[AskGoal] = deque()

    def start(self, queries: Mapping[str, Query]) -> None:
        """Offer the action until the node is deactivated; goals may name one of ``queries``."""
        self._queries = queries
        server = ActionServer(self._node, Ask, 'ask', self._execute,
                              goal_callback=self._on_request,
                              cancel_callback=lambda goal: CancelResponse.ACCEPT)
        self._node.call_at_stop(server.destroy)

    def stop(self) -> None:
        """Cancel the goals that wait."""
        while self._goals:
            self._goals.popleft().finish(Ask.Result.ERROR_CANCELED, 'edge is deactivated')

    @property
    def waiting(self) -> AskGoal | None:
        """Return the goal that has waited longest."""
        return self._goals[0] if self._goals else None

    def serve(self, frame: Frame | None, answer: Callable[[Frame, AskGoal], Answer]) -> None:
        """Answer the goal that has waited longest, or give it up; without a frame it may wait."""
        goal = self._goals[0]
        if frame is None and not goal.canceled and time.monotonic() <= goal.until:
            return
        self._goals.popleft()
        if goal.canceled:
            goal.finish(Ask.Result.ERROR_CANCELED, 'given up on request')
        elif frame is None:
            goal.finish(Ask.Result.ERROR_NO_FRAME, 'no camera frame arrived in time; is the '
                        'camera running, and does its QoS fit?')
        else:
            message = answer(frame, goal)
            goal.finish(RESULT_CODES.get(message.error_code, Ask.Result.ERROR_MODEL),
                        message.error_msg, message)

    def _on_request(self, request: Ask.Goal) -> GoalResponse:
        return GoalResponse.ACCEPT if self._node.active else GoalResponse.REJECT

    async def _execute(self, handle: ServerGoalHandle) -> Ask.Result:
        request = handle.request
        if request.query_id and request.query_id not in self._queries:
            handle.abort()
            return Ask.Result(error_code=Ask.Result.ERROR_UNKNOWN_QUERY,
                              error_msg=f'no query {request.query_id!r} is configured; there are '
                              f'{", ".join(self._queries)}')
        timeout_s = duration_s(request.timeout) or self._node.config.ask_timeout_s
        goal = AskGoal(handle, self._query(request, timeout_s), time.monotonic() + timeout_s,
                       Future(executor=self._node.executor))
        self._goals.append(goal)
        self._on_goal()
        result = await goal.done
        if result.error_code == Ask.Result.ERROR_NONE:
            handle.succeed()
        elif goal.canceled:
            handle.canceled()
        else:
            handle.abort()
        return result

    def _query(self, request: Ask.Goal, timeout_s: float) -> Query:
        """Return the configured query, or one for this goal only about the first camera."""
        if request.query_id:
            return self._queries[request.query_id]
        return Query(id='', prompt=neutralise(request.prompt), format='text',
                     deadline_s=timeout_s, camera=cameras(self._queries.values())[0],
                     max_new_tokens=request.max_tokens or self._node.config.ask_max_tokens)
