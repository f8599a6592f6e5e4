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
"""Asks a model about keyframes through the client, the parser and the budgets of the bridge."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
import math
import time

from .keyframes import Keyframe
from .replies import Replies, Reply
from .schema import LabelError
from ..cloud.budget import Budget, BURST, Cost
from ..cloud.client import CloudServer, UNKNOWN_SCHEMA
from ..cloud.errors import CloudError, CloudRefused, CloudReplyError
from ..cloud.keyframe_encoder import EncodedKeyframe, KeyframeEncoder
from ..cloud.parse import confidence
from ..cloud.patient import PatientClient, Stopped
from ..cloud.pool import Endpoint
from ..cloud.reply import RawReply
from ..config.nodes import CloudNodeConfig
from ..frames.frame import Frame
from ..method.facts import Query
from ..system.compatible import Runner

LATE = 3         # keyframes in a row without a reply in time: it is no use to go on
FIRST_LOOK = 10  # replies; where none of them can be used, no other will, nor after as many errors
PER_HOUR = {'bytes': 'budget_mb_per_hour', 'tokens': 'budget_tokens_per_hour',
            'money': 'budget_money_per_hour'}
NO_LIMIT = Cost(math.inf, math.inf, math.inf)
USELESS = ('check the model, and box_scale, max_tokens and reply_form of node cloud in the '
           'profile')


@dataclass
class Outcome:
    """What came of the keyframes of one run that have no reply."""

    late: Counter[str] = field(default_factory=Counter)  # why no reply came in time
    bad_frames: list[str] = field(default_factory=list)
    unasked: int = 0                                     # the budget was spent


@dataclass(frozen=True)
class Asked:
    """Who is asked what."""

    query: Query
    server: CloudServer
    config: CloudNodeConfig
    concurrency: int
    most: Cost = NO_LIMIT    # of all replies, those of earlier runs included

    def estimate(self, jpeg_bytes: int) -> Cost:
        """Return what a request will probably cost."""
        return Endpoint(self.server, alone=True).estimate(jpeg_bytes, self.query)


class Asking:
    """Requests under way at once; each reply is kept before the next request."""

    def __init__(self, asked: Asked, replies: Replies, outcome: Outcome,
                 stopped: Callable[[], bool]) -> None:
        """Send nothing yet."""
        config, server = asked.config, asked.server
        self.outcome = outcome
        self._asked, self._replies, self._stopped = asked, replies, stopped
        self._limits = Cost(config.budget_mb_per_hour * 1e6, config.budget_tokens_per_hour,
                            config.budget_money_per_hour)
        self._budget = Budget(self._limits, time.monotonic())
        self._plain = Endpoint(server, alone=True)
        # Probabilities are asked for until the server refuses to tell them.
        self._use(Endpoint(replace(server, extra_body={'logprobs': True} | dict(
            server.extra_body)), alone=True))
        self._spent = Cost()
        for reply in replies.by_number.values():
            self._spent += self._plain.actual(_raw(reply), self._asked.estimate(reply.bytes_sent),
                                              False)
        self._late = self._useless = self._under_way = 0
        self._proven = False      # there was a reply
        self._failure: Exception | None = None
        self._turn = asyncio.Lock()

    def run(self, frames: Iterator[tuple[Keyframe, Frame]], done: Callable[[], None]) -> None:
        """
        Ask about all frames; ``done`` counts them.

        Raise what keeps it from going on, when the replies under way have come; Stopped.
        """
        runner = Runner()
        try:
            runner.run(self._run(_encoded(frames, KeyframeEncoder(self._asked.config)), done))
        finally:
            runner.close()

    async def _run(self, keyframes: Iterator[tuple[Keyframe, EncodedKeyframe | str]],
                   done: Callable[[], None]) -> None:
        self._look()
        await asyncio.gather(*(self._work(keyframes, done)
                               for _ in range(self._asked.concurrency)))
        for endpoint in {self._endpoint, self._plain}:
            await endpoint.client.close()
        if self._failure is not None:
            raise self._failure
        if self._stopped():
            raise Stopped

    async def _work(self, keyframes: Iterator[tuple[Keyframe, EncodedKeyframe | str]],
                    done: Callable[[], None]) -> None:
        """Ask about one keyframe after the other, as long as there is a point in it."""
        loop = asyncio.get_running_loop()
        try:
            while self._failure is None and not self._stopped():
                async with self._turn:
                    item = await loop.run_in_executor(None, next, keyframes, None)
                if item is None:
                    return
                keyframe, encoded = item
                if isinstance(encoded, str):
                    self.outcome.bad_frames.append(f'{keyframe.t:g} s: {encoded}')
                else:
                    await self._one(keyframe, encoded)
                done()
        except Stopped:
            pass
        except Exception as error:    # the others end what they have begun
            self._failure = self._failure or error

    async def _one(self, keyframe: Keyframe, encoded: EncodedKeyframe) -> None:
        cost = self._asked.estimate(len(encoded.jpeg))
        self._under_way += 1
        try:
            if not await self._admitted(cost):
                self.outcome.unasked += 1
                return
            reply, failure, endpoint = await self._reply(encoded)
        finally:
            self._under_way -= 1
        actual = endpoint.actual(reply, cost, False)
        self._budget.take(actual - cost, time.monotonic())
        self._spent += actual
        if failure is not None and not isinstance(failure, CloudReplyError):
            self._late += 1
            self.outcome.late[str(failure)] += 1
            if self._late >= LATE:
                raise failure
            return
        self._late, self._proven = 0, True
        self._replies.keep(self._kept(keyframe, encoded, reply, failure))
        if len(self._replies.by_number) == FIRST_LOOK:
            self._look()
        self._useless = self._useless + 1 if failure is not None else 0
        if failure is not None and self._useless >= FIRST_LOOK:
            raise failure

    async def _reply(self, encoded: EncodedKeyframe
                     ) -> tuple[RawReply, CloudError | None, Endpoint]:
        while True:
            endpoint, patient = self._endpoint, self._patient
            try:
                reply, failure = await patient.ask(encoded.jpeg, self._asked.query)
                return reply, failure, endpoint
            except CloudRefused as error:
                if endpoint is self._plain or error.status not in UNKNOWN_SCHEMA or \
                        self._proven:
                    raise
                if self._endpoint is endpoint:
                    self._use(self._plain)

    def _use(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._patient = PatientClient(endpoint.client, self._asked.config.retries, self._stopped,
                                      finishes=True)

    async def _admitted(self, cost: Cost) -> bool:
        """Wait for the budgets of an hour; return False where all that may be spent is spent."""
        if any(getattr(self._spent, name) + self._under_way * getattr(cost, name)
               > getattr(self._asked.most, name) for name in PER_HOUR):
            return False
        while lacking := self._budget.lacking(cost, time.monotonic()):
            if getattr(cost, lacking) > BURST * getattr(self._limits, lacking):
                raise LabelError(f'{PER_HOUR[lacking]} is too little for one request of '
                                 f'{getattr(cost, lacking):g} {lacking}; raise it, or leave it '
                                 'at 0')
            await self._patient.pause(0.2)
        self._budget.take(cost, time.monotonic())
        return True

    def _kept(self, keyframe: Keyframe, encoded: EncodedKeyframe, raw: RawReply,
              failure: CloudError | None) -> Reply:
        query = self._asked.query
        reply = Reply(number=keyframe.number, t=keyframe.t, text='' if failure else raw.text,
                      error=str(failure or ''), size=(encoded.width, encoded.height),
                      scale=encoded.scale, usage=raw.usage, bytes_sent=raw.bytes_sent,
                      bytes_received=raw.bytes_received, took_s=round(raw.round_trip_s, 4))
        facts = reply.read(query, 'relative').facts if raw.tokens else ()
        return reply.model_copy(update={'confidences': {
            fact.key: round(confidence(query, fact, raw.tokens), 4) for fact in facts}})

    def _look(self) -> None:
        """Raise LabelError where the first replies are all of no use: the next are no better."""
        if len(self._replies.by_number) < FIRST_LOOK:
            return
        read = [reply.read(self._asked.query, self._asked.server.config.box_scale)
                for reply in self._replies.by_number.values()]
        if not any(answer.facts for answer in read):
            raise LabelError(f'none of the first {len(read)} replies can be used '
                             f'({read[0].rejected[0]}); {USELESS}, and remove '
                             f'{self._replies.path}')


def _encoded(frames: Iterator[tuple[Keyframe, Frame]], encoder: KeyframeEncoder
             ) -> Iterator[tuple[Keyframe, EncodedKeyframe | str]]:
    """Yield keyframes as they are sent, or why they cannot be."""
    for keyframe, frame in frames:
        try:
            yield keyframe, encoder.encode(frame.jpeg, frame.rgb)
        except ValueError as error:
            yield keyframe, str(error)


def _raw(reply: Reply) -> RawReply:
    return RawReply(usage=reply.usage, bytes_sent=reply.bytes_sent,
                    bytes_received=reply.bytes_received, began=True, finished=not reply.error)
