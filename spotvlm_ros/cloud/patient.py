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
"""A server that is asked until it answers, by somebody who has the time; a robot has not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
import time

from .client import CloudClient
from .errors import CloudError, CloudRefused, CloudReplyError, CloudTimeout
from .reply import RawReply
from ..method.facts import Query

FIRST_PAUSE_S = 1.0     # before a server that refuses is asked again; doubled each time
LONGEST_PAUSE_S = 60.0
POLL_S = 0.2


class Stopped(Exception):
    """The user has asked for the end."""


@dataclass
class PatientClient:
    """
    Asks again, after a pause, a server that refuses or is not there.

    ``stopped`` says when the user wants no more. A reply that is under way is waited for all the
    same where ``finishes``: it is paid for.
    """

    client: CloudClient
    retries: int
    stopped: Callable[[], bool] = lambda: False
    finishes: bool = False
    retried: int = 0

    async def ask(self, jpeg: bytes, query: Query, deadline_s: float = 0.0
                  ) -> tuple[RawReply, CloudError | None]:
        """
        Return a reply, and why it is none that can be used.

        A server that is slow or talks nonsense does so on a robot, too: that is the result. Raise
        CloudError where it refuses or is not there in the end, Stopped.
        """
        tries = 0
        while True:
            reply, began = RawReply(), time.monotonic()
            try:
                await self._reply(jpeg, query, deadline_s, reply)
                return reply, None
            except (CloudTimeout, CloudReplyError) as error:
                reply.round_trip_s = time.monotonic() - began
                return reply, error
            except CloudError as error:
                tries += 1
                if not error.retry or tries > self.retries:
                    raise
                asked_s = error.retry_after_s if isinstance(error, CloudRefused) else 0.0
            self.retried += 1
            await self.pause(min(LONGEST_PAUSE_S,
                                 max(asked_s, FIRST_PAUSE_S * 2.0 ** (tries - 1))))

    async def pause(self, seconds: float) -> None:
        """Wait; raise Stopped as soon as the user wants no more."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self.stopped():
                raise Stopped
            await asyncio.sleep(min(POLL_S, left))

    async def _reply(self, jpeg: bytes, query: Query, deadline_s: float,
                     reply: RawReply) -> None:
        task = asyncio.create_task(self.client.ask(jpeg, query, deadline_s, reply))
        while not (await asyncio.wait([task], timeout=POLL_S))[0]:
            if self.stopped() and not self.finishes:
                task.cancel()
                raise Stopped
        await task
