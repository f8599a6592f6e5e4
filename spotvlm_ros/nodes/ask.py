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

import sys
import time
from typing import Any

import rclpy
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from spotvlm_msgs.action import Ask

from .convert import duration_msg
from ..system.signals import StopSignal

EXTRA_S = 2.0  # transport and the end of a model step, on top of the goal's own time limit


def ask(prompt: str, query_id: str, namespace: str, timeout_s: float, max_tokens: int) -> int:
    """Ask, print the answer as it comes, return the exit code; Ctrl-C cancels the goal."""
    stop = StopSignal()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('spotvlm_ask', namespace=namespace)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    until = time.monotonic() + timeout_s + EXTRA_S

    def wait(future: Any) -> bool:
        while not future.done() and time.monotonic() < until and not stop():
            executor.spin_once(timeout_sec=0.05)
        return bool(future.done())

    try:
        client = ActionClient(node, Ask, 'ask')
        while not client.server_is_ready() and time.monotonic() < until and not stop():
            executor.spin_once(timeout_sec=0.05)
        if not client.server_is_ready():
            return _fail(f'no edge node offers {node.get_namespace().rstrip("/")}/ask; is '
                         'spotvlm run active there, with the same ROS_DOMAIN_ID?')
        goal = Ask.Goal(prompt=prompt, query_id=query_id, max_tokens=max_tokens,
                        timeout=duration_msg(timeout_s))
        shown = 0

        def feedback(message: Any) -> None:
            nonlocal shown
            text = message.feedback.text
            print(text[shown:], end='', flush=True)
            shown = len(text)
        sent = client.send_goal_async(goal, feedback_callback=feedback)
        if not wait(sent) or not sent.result().accepted:
            return _fail('the edge node did not take the question; is it active?')
        done = sent.result().get_result_async()
        if not wait(done):
            until = time.monotonic() + EXTRA_S
            canceled = sent.result().cancel_goal_async()
            stop.requested = False
            wait(canceled)
            return _fail('given up')
        result = done.result().result
        print(result.answer.text[shown:])
        return 0 if result.error_code == Ask.Result.ERROR_NONE else _fail(result.error_msg)
    finally:
        node.destroy_node()
        rclpy.shutdown()
        stop.ignore()


def _fail(text: str) -> int:
    print(f'error: {text}', file=sys.stderr)
    return 1
