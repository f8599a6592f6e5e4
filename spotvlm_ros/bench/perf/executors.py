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
Compares executors of rclpy for four nodes in one process (`spotvlm perf executors`).

Three nodes listen to a topic on which messages are published by another process, or by threads of
the same process, as those of a model and of a cloud bridge do. Each case runs in a process of its
own: one that no longer comes to an end is said to hang.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

from ...system.machine import machine
from ...system.markdown import table
from ...system.processes import Child, PYTHON

NODES, SENDERS, HZ = 4, 2, 20.0
PATIENCE_S = 10.0  # for a case to end, besides what it takes
EXECUTORS = {
    'single': ('rclpy.executors', 'SingleThreadedExecutor'),
    'multi': ('rclpy.executors', 'MultiThreadedExecutor'),
    'events': ('rclpy.experimental', 'EventsExecutor'),
}
Case = tuple[str, str, str, str]  # executor, 'one' or one for 'each' node, who sends, how it spins
CASES: list[Case] = [(name, each, sender, 'spin_once') for sender in ('process', 'threads')
                     for name in EXECUTORS for each in ('one', 'each')]
CASES += [('events', 'one', sender, 'spin') for sender in ('process', 'threads')]


def send(seconds: float) -> None:
    """Publish from SENDERS threads of this process, each message with the time of now."""
    import rclpy
    from std_msgs.msg import Int64

    node = rclpy.create_node(f'sender_{os.getpid()}')

    def run() -> None:
        publisher, due = node.create_publisher(Int64, 'perf', 10), time.monotonic()
        while due < end:
            publisher.publish(Int64(data=time.monotonic_ns()))
            due += 1.0 / HZ
            time.sleep(max(0.0, due - time.monotonic()))
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=run) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def listen(case: Case, seconds: float) -> None:
    """Print what came and when, and the CPU time of this process, while others publish."""
    import numpy as np
    import rclpy
    from rclpy.executors import Executor
    from rclpy.lifecycle import LifecycleNode
    from std_msgs.msg import Int64

    rclpy.init()
    delays: list[int] = []
    name, each, sender, how = case
    module, kind = EXECUTORS[name]
    make = getattr(importlib.import_module(module), kind)
    executors = [make() for _ in range(NODES if each == 'each' else 1)]
    for number in range(NODES):
        node = LifecycleNode(f'listener_{number}')
        executors[number % len(executors)].add_node(node)
        node.create_timer(0.5, lambda: None)
        if number:
            node.create_subscription(
                Int64, 'perf', lambda m: delays.append(time.monotonic_ns() - m.data), 10)

    def spin(executor: Executor) -> None:
        while how == 'spin_once':
            executor.spin_once(timeout_sec=0.2)
        executor.spin()
    for executor in executors:
        threading.Thread(target=spin, args=(executor,), daemon=True).start()
    began, spent = time.monotonic(), time.process_time()
    if sender == 'threads':
        send(seconds)
    else:
        time.sleep(seconds)
    cpu = (time.process_time() - spent) / (time.monotonic() - began)
    times = [f'{t / 1e6:.2f}' for t in np.percentile(delays, [50, 95])] if delays else [
        'nothing came', '']
    print('\n' + json.dumps([*times, f'{cpu:.1%}']), flush=True)
    os._exit(0)


def measure(case: Case, seconds: float) -> list[str]:
    """Return median and p95 [ms] from publishing to the callback, and the CPU time per time."""
    command = (*PYTHON, '-m', __spec__.name if __spec__ else __name__, '--seconds', str(seconds))
    sender = Child((*command, '--case', 'send')) if case[2] == 'process' else None
    with tempfile.TemporaryFile() as log:
        child = Child((*command, '--case', *case), log=log)
        try:
            child.process.wait(seconds + PATIENCE_S)
        except subprocess.TimeoutExpired:
            return ['hangs', '', '']
        finally:
            for process in (child, sender):
                if process is not None:
                    process.stop(1.0)
        log.seek(0)
        lines = log.read().decode(errors='replace').strip().split('\n')
    return list(json.loads(lines[-1])) if lines[-1].startswith('[') else [lines[-1], '', '']


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm perf executors', description=__doc__,
                                     epilog='example: spotvlm perf executors --seconds 2',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=8.0, help='for each case')
    parser.add_argument('--case', nargs='+', help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    args = command_parser().parse_args(argv)
    if args.case == ['send']:
        import rclpy
        from rclpy.signals import SignalHandlerOptions
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        send(args.seconds + PATIENCE_S)
    elif args.case:
        name, each, sender, how = args.case
        listen((name, each, sender, how), args.seconds)
    else:
        rows = [[f'{EXECUTORS[case[0]][1]}.{case[3]}', {'one': 'all nodes', 'each': 'each node'}[
            case[1]], case[2], *measure(case, args.seconds)] for case in CASES]
        print(f'{os.environ.get("ROS_DISTRO", "")}, {machine()}\n\n' + table(
            ('executor', 'for', f'{SENDERS * HZ:g} Hz from', 'p50 ms', 'p95 ms', 'CPU'), rows))
    return 0


if __name__ == '__main__':
    sys.exit(main())
