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
"""`spotvlm ask`: a client of action `ask`."""

from __future__ import annotations

from dataclasses import dataclass
import sys

from rclpy.action import ActionClient
from spotvlm_msgs.action import Ask

from .command import Command, command, fail
from .convert import duration_msg
from ..method.prompt import printable
from ..mini.shipped import beyond_miniature

EXTRA_S = 2.0  # transport and the end of a model step, on top of the goal's own time limit


@dataclass(frozen=True)
class Question:
    """What is asked; empty and 0 are the node's defaults."""

    prompt: str = ''
    query_id: str = ''
    camera: str = ''
    max_tokens: int = 0
    max_age_s: float = 0.0  # of the frame


def ask(question: Question, namespace: str, timeout_s: float) -> int:
    """Ask, print the answer as it comes, return the exit code; Ctrl-C cancels the goal."""
    goal = Ask.Goal(prompt=question.prompt, query_id=question.query_id, camera=question.camera,
                    max_tokens=question.max_tokens, timeout=duration_msg(timeout_s),
                    max_frame_age=duration_msg(question.max_age_s))
    with command('spotvlm_ask', namespace, timeout_s + EXTRA_S) as running:
        return _ask(running, goal)


def _ask(running: Command, goal: Ask.Goal) -> int:
    client = ActionClient(running.node, Ask, 'ask')
    printed = ''

    def on_feedback(message: Ask.Impl.FeedbackMessage) -> None:
        nonlocal printed
        text = printable(message.feedback.text)
        if text.startswith(printed):  # else it is printed as a whole at the end
            print(text[len(printed):], end='', flush=True)
            printed = text
    if not running.wait(client.server_is_ready):
        return fail(f'no edge node offers {running.node.get_namespace().rstrip("/")}/ask; is '
                    'spotvlm run active there, with the same ROS_DOMAIN_ID?')
    sent = client.send_goal_async(goal, feedback_callback=on_feedback)
    if not running.wait(sent.done) or not sent.result().accepted:
        return fail('the edge node did not take the question; is it active?')
    done = sent.result().get_result_async()
    if not running.wait(done.done):
        canceled = sent.result().cancel_goal_async()
        running.allow(EXTRA_S)
        running.wait(canceled.done)
        return fail('given up')
    result = done.result().result
    text = printable(result.answer.text)
    print(text[len(printed):] if text.startswith(printed) else f'\n{text}')
    beyond = beyond_miniature(result.answer.model, goal.prompt) if goal.prompt else ''
    if beyond:
        print(f'note: {beyond}', file=sys.stderr)
    return 0 if result.error_code == Ask.Result.ERROR_NONE else fail(result.error_msg)
