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
"""Child processes that never outlive their parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
import ctypes
from functools import partial
import multiprocessing
from multiprocessing.connection import wait
import os
import signal
import subprocess
import sys
import threading
from typing import IO

PR_SET_PDEATHSIG = 1
# Starts a Python that imports nothing from the folder in which the user happens to be; before 3.11
# that cannot be said.
PYTHON = (sys.executable, *('-P',) * (sys.version_info >= (3, 11)))


class Child:
    """
    A process in a group of its own, so that Ctrl-C reaches the parent only and it decides.

    It stays in the parent's session: Linux hands out the cores to sessions first (autogroup, see
    sched(7)), and only among the processes of one does it count that one is ``idle``, that is,
    gives way at once whenever another wants to run.

    ``stop`` ends the whole group: SIGTERM, which unlike SIGINT gives no traceback in a Python that
    has only begun to start, then SIGKILL. Should the parent be killed, Linux ends the child too.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None,
                 log: IO[bytes] | None = None, idle: bool = False,
                 inherited: Sequence[int] = ()) -> None:
        """
        Start the process; its output goes to ``log``, or where ours goes.

        Besides, it has the files and sockets with the numbers ``inherited``.
        """
        self.process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, pass_fds=inherited,
            preexec_fn=partial(_prepare, idle))

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    @property
    def end(self) -> str:
        """Return how it ended, for people; '' while it runs."""
        code = self.process.poll()
        if code is None:
            return ''
        if code >= 0:
            return f'has ended with exit code {code}'
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f'signal {-code}'
        hint = ' (by hand, or by Linux for lack of memory: see dmesg)' * (-code == signal.SIGKILL)
        return f'was killed by {name}{hint}'

    @property
    def killed(self) -> bool:
        """Whether a signal has ended it."""
        return (self.process.poll() or 0) < 0

    def terminate(self) -> None:
        """Send SIGTERM to the group and do not wait; ``stop`` does."""
        self._signal(signal.SIGTERM)

    def stop(self, patience_s: float = 8.0) -> int:
        """End the group and return the exit code."""
        for number, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
            if not self._signal(number):
                break
            try:
                self.process.wait(wait_s)
            except subprocess.TimeoutExpired:
                continue
        self._signal(signal.SIGKILL)  # members of the group that the leader left behind
        return self.process.wait()

    def _signal(self, number: int) -> bool:
        try:
            os.killpg(self.process.pid, number)
            return True
        except (ProcessLookupError, PermissionError):
            return False


def exit_with_parent() -> None:
    """Make a worker of multiprocessing exit when its parent is killed: a pool's would wait on."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # this is no worker

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)
    threading.Thread(target=watch, name='parent', daemon=True).start()


def _prepare(idle: bool) -> None:
    os.setpgid(0, 0)
    if sys.platform == 'linux':
        # Who gives way would take long to end well, and slow down who takes its place.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL if idle else signal.SIGTERM)
        if idle:
            with suppress(OSError):  # a sandbox may forbid it; it is no reason not to start
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
