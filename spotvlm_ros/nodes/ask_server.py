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
The server of action `ask`: keeps goals until the inference thread answers them.

Standing answers come first: all goals together get a share of the model's time at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
import time

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.task import Future
from spotvlm_msgs.action import Ask
from spotvlm_msgs.msg import Answer

from .base import SpotNode
from .convert import duration_s
from ..config.nodes import EdgeConfig, MAX_ASK_S, MAX_ASK_TOKENS
from ..frames.frame import Frame
from ..method.facts import NS, Query
from ..method.prompt import neutralise, one_voice

MAX_PROMPT = 16_384  # characters of a question; a longer one is refused
RESULT_KEPT_S = 3  # for who comes late for a result; rclpy: 10 s of them, in Humble 15 minutes
MAX_WAITING = 8   # goals that may wait; further ones are refused
SLICE_S = 0.15    # first turn of a goal while standing answers wait, at least [s]
SHARE = 0.08      # of the model's time, at most, while standing answers wait for it
Newest = Callable[[str], Frame | None]   # newest frame of a camera, None before the first
RESULT_CODES = {Answer.ERROR_NONE: Ask.Result.ERROR_NONE,  # all else is ERROR_MODEL
                Answer.ERROR_TIMEOUT: Ask.Result.ERROR_TIMEOUT,
                Answer.ERROR_CANCELED: Ask.Result.ERROR_CANCELED}


@dataclass(eq=False)
class AskGoal:
    """A question that waits for its answer."""

    handle: ServerGoalHandle
    query: Query
    until: float    # when to give up, steady clock [s]
    done: Future[Ask.Result]
    max_age_s: float  # of the frame, by stamp and ROS time, when it is taken up
    slice_s: float = SLICE_S  # for how long it may hold up standing answers at a time, at present
    text: str = ''   # last feedback
    tokens: int = 0
    frame: Frame | None = None       # what it is about, from its first turn on
    answer: Answer | None = None     # as far as it has come

    @property
    def canceled(self) -> bool:
        """Whether the client has given up."""
        return bool(self.handle.is_cancel_requested)

    def publish_text(self, text: str, tokens: int) -> None:
        """Send the answer so far to the client; a later turn begins from the start again."""
        if tokens > self.tokens:
            self.text, self.tokens = text, tokens
            self.handle.publish_feedback(Ask.Feedback(text=text, tokens=tokens))

    def finish(self, code: int, text: str) -> None:
        """Send the result to the client, with the answer as far as it has come."""
        self.done.set_result(Ask.Result(answer=self.answer or Answer(), error_code=code,
                                        error_msg=text))

    def finish_with(self, answer: Answer) -> None:
        """Send an answer, which may be an error, to the client; the last feedback equals it."""
        self.answer = answer
        if answer.text != self.text:
            self.handle.publish_feedback(Ask.Feedback(text=answer.text, tokens=self.tokens))
        self.finish(RESULT_CODES.get(answer.error_code, Ask.Result.ERROR_MODEL),
                    answer.error_msg)


class AskServer:
    """Takes goals while the node is active; the inference thread takes and answers them."""

    def __init__(self, node: SpotNode[EdgeConfig], on_goal: Callable[[], None]) -> None:
        """Call ``on_goal`` when a goal has come."""
        self._node, self._on_goal = node, on_goal
        self._queries: Mapping[str, Query] = {}
        self._cameras: Sequence[str] = ()
        self._goals: deque[AskGoal] = deque()
        self._paused_until = 0.0   # steady clock [s]

    def start(self, queries: Mapping[str, Query], cameras: Sequence[str]) -> None:
        """Offer the action until the node is deactivated; goals may name what is given here."""
        self._queries, self._cameras = queries, cameras
        server = ActionServer(self._node, Ask, 'ask', self._execute,
                              goal_callback=self._on_request,
                              cancel_callback=lambda goal: CancelResponse.ACCEPT,
                              result_timeout=RESULT_KEPT_S)
        self._node.call_at_stop(server.destroy)

    def know(self, queries: Mapping[str, Query]) -> None:
        """Let goals name other queries from now on."""
        self._queries = queries

    def stop(self) -> None:
        """Cancel the goals that wait."""
        while self._goals:
            self._goals.popleft().finish(Ask.Result.ERROR_CANCELED, 'edge is deactivated')

    def take(self, newest: Newest) -> tuple[AskGoal, Frame] | None:
        """
        Take the goal that has waited longest of those about a camera with a frame of now.

        None where there is none, or standing answers come first. Goals that were given up or ran
        out of time are finished.
        """
        now = time.monotonic()
        for goal in self._goals.copy():
            frame = goal.frame or newest(goal.query.camera)
            lacking = '' if goal.frame is not None else self._why_no_frame(goal, frame)
            if goal.canceled:
                self._finish(goal, Ask.Result.ERROR_CANCELED, 'given up on request')
            elif now > goal.until and lacking:
                self._node.count_problem('asks_without_frame', lacking)
                self._finish(goal, Ask.Result.ERROR_NO_FRAME, lacking)
            elif now > goal.until:
                self._finish(goal, Ask.Result.ERROR_TIMEOUT, 'its turn did not come in time: '
                             'standing answers come first; ask less often or with more time')
            elif frame is not None and not lacking and now >= self._paused_until:
                self._goals.remove(goal)
                return goal, frame
        return None

    def put_back(self, goal: AskGoal, frame: Frame, answer: Answer) -> None:
        """Let other goals and standing answers go first; the next turn is twice as long."""
        goal.frame, goal.answer = frame, answer
        goal.slice_s *= 2.0
        self._goals.append(goal)

    def pause(self, seconds: float) -> None:
        """Let standing answers, held up for this long by an answer to a goal, come first."""
        self._paused_until = time.monotonic() + seconds * (1.0 - SHARE) / SHARE

    def _why_no_frame(self, goal: AskGoal, frame: Frame | None) -> str:
        """Return '' for a frame that a goal may be answered about, else what is wrong."""
        camera = f'camera {goal.query.camera!r}' if goal.query.camera else 'the camera'
        if frame is None:
            return f'no frame of {camera} arrived in time; is it running, and does its QoS fit?'
        age_s = (self._node.now_ns() - frame.stamp_ns) / NS
        return '' if age_s <= goal.max_age_s else (
            f'the newest frame of {camera} is {age_s:.1f} s old, and max_frame_age is '
            f'{goal.max_age_s:g} s; is it running, and is its clock that of the robot (a bag: '
            'use_sim_time with --clock)? else allow an older one')

    def _finish(self, goal: AskGoal, code: int, text: str) -> None:
        self._goals.remove(goal)
        goal.finish(code, text)

    def _on_request(self, request: Ask.Goal) -> GoalResponse:
        if len(request.prompt) + len(request.query_id) > MAX_PROMPT:  # rclpy would keep it
            self._node.count_problem('asks_refused', f'a question of {len(request.prompt)} '
                                     f'characters was refused; ask in at most {MAX_PROMPT}')
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT if self._node.active else GoalResponse.REJECT

    async def _execute(self, handle: ServerGoalHandle) -> Ask.Result:
        request = handle.request
        refused = self._why_refused(request)
        if refused is not None:
            self._node.count_problem('asks_refused', refused.error_msg)
            handle.abort()
            return refused
        config = self._node.config
        timeout_s = min(duration_s(request.timeout) or config.ask_timeout_s, MAX_ASK_S)
        goal = AskGoal(handle, self._query(request, timeout_s), time.monotonic() + timeout_s,
                       Future(executor=self._node.executor),
                       duration_s(request.max_frame_age) or config.ask_max_frame_age_s)
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

    def _why_refused(self, request: Ask.Goal) -> Ask.Result | None:
        if request.query_id and request.query_id not in self._queries:
            return Ask.Result(error_code=Ask.Result.ERROR_UNKNOWN_QUERY,
                              error_msg=f'no query {neutralise(request.query_id, 40)!r} is '
                              f'configured; there are {", ".join(self._queries)}')
        if not request.query_id and not neutralise(request.prompt):
            return Ask.Result(error_code=Ask.Result.ERROR_UNKNOWN_QUERY,
                              error_msg='nothing is asked; give a prompt, or the query_id of '
                              f'one of {", ".join(self._queries)}')
        if min(duration_s(request.timeout), duration_s(request.max_frame_age)) < 0.0:
            return Ask.Result(error_code=Ask.Result.ERROR_TIMEOUT, error_msg='timeout or '
                              "max_frame_age is below 0; give 0 for the node's default")
        if request.camera and request.camera not in self._cameras:
            known = ', '.join(filter(None, self._cameras)) or 'one without a name: name none'
            return Ask.Result(error_code=Ask.Result.ERROR_UNKNOWN_QUERY,
                              error_msg=f'no camera {neutralise(request.camera, 40)!r} is known; '
                              f'there is {known} (queries and parameter cameras of node edge)')
        if len(self._goals) >= MAX_WAITING:
            return Ask.Result(error_code=Ask.Result.ERROR_TIMEOUT,
                              error_msg=f'{MAX_WAITING} questions wait already; ask again later')
        return None

    def _query(self, request: Ask.Goal, timeout_s: float) -> Query:
        """Return the configured query, or one for this goal only; of the camera that it names."""
        if request.query_id:
            query = self._queries[request.query_id]
            return replace(query, camera=request.camera or query.camera)
        tokens = request.max_tokens or self._node.config.ask_max_tokens
        return Query(id='', prompt=one_voice(neutralise(request.prompt)), format='text',
                     deadline_s=timeout_s, camera=request.camera or self._cameras[0],
                     max_new_tokens=min(tokens, MAX_ASK_TOKENS))
