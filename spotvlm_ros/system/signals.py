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
"""SIGINT and SIGTERM as a flag: nothing is ever interrupted halfway, whenever they come."""

from __future__ import annotations

import os
import select
import signal
import time
from types import FrameType


class StopSignal:
    """
    Set by SIGINT and SIGTERM, once or many times.

    A handler that raises can land inside a ``finally`` (launch forwards a second SIGINT to a
    process that got Ctrl-C already); one that takes a lock can wait for itself. This one writes
    a byte to a pipe.
    """

    def __init__(self) -> None:
        """Install the handlers; only the main thread may."""
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self.requested = False
        self.install()

    def install(self) -> None:
        """Install the handlers, again where a library has put its own in their place."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def __call__(self) -> bool:
        """Return whether a signal came."""
        return self.requested

    def wait(self, timeout_s: float) -> bool:
        """Wait for a signal; return whether one came."""
        until = time.monotonic() + timeout_s
        while not self.requested and (left := until - time.monotonic()) > 0:
            select.select([self._read], [], [], left)
        return self.requested

    def ignore(self) -> None:
        """
        Ignore both signals from now on: all work is done, only the interpreter has to end.

        While it does, Python puts back the default handlers, and a late second Ctrl-C would turn
        exit code 0 into a death by signal; it leaves ignored signals alone.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        try:
            os.write(self._write, b'x')
        except BlockingIOError:
            pass  # full: many came already
