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
"""Starting and ending nodes in a process, cleanly at any moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
import os
import sys
import threading
import time
import traceback

import cv2
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from .base import SpotNode
from ..system.memory import share_arenas, trim
from ..system.middleware import free_buffers
from ..system.signals import StopSignal

TRIM_S = 2.0  # how often freed memory is given back: large messages leave holes
DRAIN_S = 5.0  # longest wait for the last answer after the last frame
JOIN_S = 5.0  # longest wait for a callback, such as a model that loads, at the end


class Graph:
    """
    Nodes, each spun by a thread of its own.

    A SingleThreadedExecutor for each node, for callbacks only enqueue: whatever happens, an
    executor looks through all that its nodes wait for, in Python, and with one executor that was
    some 90 things of four nodes. Not rclpy.experimental.EventsExecutor, though it is cheaper (see
    docs/performance.md): Humble has none, timers' callbacks are given an argument if their
    signature lets it, and in the wheels of Jazzy and Kilted (rclpy 7.1 and 9.1) ``spin()`` keeps
    its queue locked while it waits: a thread that publishes to a subscription of its own process
    waits for that queue, with the GIL, and all stands still. ``spin_once`` with a limit does not.
    """

    def __init__(self, make: Callable[[], Sequence[Node]], argv: Sequence[str] = ()) -> None:
        """Create the nodes and start them, those with autostart; `_autostart` has the order."""
        # A thread that waits for the GIL gets it after this long, not after 5 ms: an answer
        # passes several threads.
        sys.setswitchinterval(0.001)
        # OpenCV's own threads would take the cores from the model for work of a millisecond.
        cv2.setNumThreads(1)
        share_arenas()
        free_buffers(os.environ)
        # Signals are ours: rclpy's handlers would shut the context down under our feet.
        rclpy.init(args=['spotvlm', *argv], signal_handler_options=SignalHandlerOptions.NO)
        self.started = threading.Event()  # every autostart has been tried
        self.failed: list[str] = []       # names of nodes whose autostart failed
        self._stopping = False
        self.nodes: list[Node] = []
        try:
            self.nodes = list(make())
        except BaseException:
            rclpy.shutdown()
            raise
        self._executors = [SingleThreadedExecutor() for _ in self.nodes]
        for node, executor in zip(self.nodes, self._executors):
            executor.add_node(node)
        # One after another, each on its own thread: the camera must come last.
        by_haste = sorted(range(len(self.nodes)), key=lambda number: not getattr(
            self.nodes[number], 'configured_first', False))
        self._steps = deque([*((number, False) for number in by_haste),
                             *((number, True) for number in range(len(self.nodes)))])
        self._executors[by_haste[0]].create_task(self._autostart)
        self._threads = [threading.Thread(target=self._spin, args=(executor,), daemon=True,
                                          name=f'executor of {node.get_name()}')
                         for node, executor in zip(self.nodes, self._executors)]
        for thread in self._threads:
            thread.start()

    def close(self) -> bool:
        """End all nodes, last first; return False when a callback would not end in time."""
        self._stopping = True
        for node in self.nodes:
            if isinstance(node, SpotNode):
                node.closing.set()
        for executor in self._executors:
            executor.shutdown(timeout_sec=0.0)
            executor.wake()
        until = time.monotonic() + JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            return False
        for node in reversed(self.nodes):
            if isinstance(node, SpotNode):
                node.close()
            node.destroy_node()
        rclpy.shutdown()
        return True

    def _autostart(self) -> None:
        """Configure one node after another, then activate one after another."""
        number, active = self._steps.popleft()
        node = self.nodes[number]
        if isinstance(node, SpotNode) and not self._stopping and not node.last_failure and \
                not node.autostart(active):
            self.failed.append(node.get_name())
        if self._steps:
            self._executors[self._steps[0][0]].create_task(self._autostart)
        else:
            self.started.set()

    def _spin(self, executor: SingleThreadedExecutor) -> None:
        while not self._stopping and rclpy.ok():
            try:
                executor.spin_once(timeout_sec=0.2)
            except ExternalShutdownException:
                return
            except Exception:
                if not self._stopping:
                    traceback.print_exc()
                    time.sleep(0.1)


def end_process(code: int) -> None:
    """Leave at once: a thread hangs in a library, and no cleanup can be waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_nodes(make: Callable[[], Sequence[Node]], argv: Sequence[str],
              stop: StopSignal | None = None, exit_on_failure: bool = False) -> int:
    """
    Run nodes until SIGINT, SIGTERM or the end of a stream that ends the process; return 0.

    Nodes of other packages may be among them (docs/composition.md).
    """
    stop = stop or StopSignal()
    try:
        graph = Graph(make, argv)
    except Exception as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    code, trimmed = 0, time.monotonic()
    ours = [node for node in graph.nodes if isinstance(node, SpotNode)]
    while not stop.wait(0.1):  # a signal during the imports ends this at once
        if time.monotonic() - trimmed > TRIM_S:
            trim()
            trimmed = time.monotonic()
        if exit_on_failure and graph.failed:
            code = 1
        if code or any(node.ended for node in ours):
            break
    until = time.monotonic() + DRAIN_S
    while not code and not all(node.idle for node in ours) and \
            time.monotonic() < until and not stop.wait(0.05):
        pass  # the last frame is answered, too
    if any(node.failure for node in ours if node.ended):
        code = 1
    ended = graph.close()
    stop.ignore()
    if not ended:
        end_process(code)
    return code
