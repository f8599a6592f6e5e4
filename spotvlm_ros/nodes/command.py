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
"""A node for the length of one command, which asks a running graph for something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import sys
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from ..system.signals import StopSignal


class Command:
    """The node of a command, and the time that it has."""

    def __init__(self, name: str, namespace: str, timeout_s: float, stop: StopSignal) -> None:
        """Create the node in a context that is initialised."""
        self.node = rclpy.create_node(name, namespace=namespace)
        self._executor, self._stop = SingleThreadedExecutor(), stop
        self._executor.add_node(self.node)
        self._until = time.monotonic() + timeout_s

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Spin until the condition holds, the time is over or Ctrl-C; return whether it holds."""
        while not condition() and time.monotonic() < self._until and not self._stop():
            self._executor.spin_once(timeout_sec=0.05)
        return condition()

    def allow(self, seconds: float) -> None:
        """Have so much time from now on, to end well, also after Ctrl-C."""
        self._until, self._stop.requested = time.monotonic() + seconds, False


@contextmanager
def command(name: str, namespace: str, timeout_s: float) -> Iterator[Command]:
    """Have a node until the end of the block; Ctrl-C ends what is waited for."""
    stop = StopSignal()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    running = Command(name, namespace, timeout_s, stop)
    try:
        yield running
    finally:
        running.node.destroy_node()
        rclpy.shutdown()
        stop.ignore()


def fail(text: str) -> int:
    """Print an error; return the exit code."""
    print(f'error: {text}', file=sys.stderr)
    return 1
