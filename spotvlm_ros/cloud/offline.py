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
The cloud beside a recording: asked for real, its answers delivered by the recording's clock.

A keyframe that is due by the policy, the limits and the budgets of node cloud is sent at once and
waited for, however long that takes; its answer counts as having come when the recording is as much
further as the answer is late. So nothing depends on how fast the recording is gone through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
import math
import random
from typing import Protocol

from .bridge_statistics import BridgeStatistics
from .budget import Budget, Cost
from .client import CloudServer
from .errors import CloudError, CloudReplyError, CloudTimeout
from .keyframe_encoder import EncodedKeyframe, KeyframeEncoder
from .parse import CloudAnswer, parse_reply
from .patient import PatientClient
from .pool import EndpointPool, Request
from .reply import RawReply
from .timeline import CloudTimeline, Settled, TimedRequest
from ..config.nodes import CloudNodeConfig
from ..frames.frame import Frame
from ..method.facts import NS, Query
from ..system.compatible import Runner


@dataclass(frozen=True)
class Exchange:
    """A request and its reply, as a journal keeps them; ``took_s`` is the measured round trip."""

    query_id: str
    stamp_ns: int
    took_s: float
    text: str = ''
    usage: tuple[int, int] | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    error: str = ''     # why there is no usable reply
    kind: str = ''      # of that error

    def __post_init__(self) -> None:
        """Refuse a time that is none."""
        if not 0.0 <= self.took_s < math.inf:
            raise ValueError(f'took_s is {self.took_s}; it must be seconds')


class Journal(Protocol):
    """Exchanges that need not be repeated."""

    def exchange(self, number: int, query_id: str, stamp_ns: int) -> Exchange | None:
        """Return what came of the request of a number, None where it is still to be sent."""

    def keep(self, number: int, exchange: Exchange) -> None:
        """Keep one."""


@dataclass(frozen=True)
class Delays:
    """
    How late answers are: as measured, or emulated in the place of that or on top of it [s].

    The draws are lognormal; each depends on the number of its request only.
    """

    measured: bool = True
    median_s: float = 0.0
    sigma: float = 0.0
    seed: int = 0

    def emulated_s(self, number: int) -> float:
        """Return the emulated part of the delay of a request."""
        normal = random.Random(f'{self.seed} {number}').gauss(0.0, 1.0)
        return self.median_s * math.exp(self.sigma * normal)


@dataclass(eq=False)
class _Sent(TimedRequest):
    """A request with what came of it, which is not known to anybody before ``until_ns``."""

    request: Request
    keyframe: EncodedKeyframe
    exchange: Exchange
    at_s: float           # when it was sent, by the clock of budgets
    late_s: float
    emulated_s: float


class OfflineCloud:
    """Offers of frames in, answers out, by the stamps of frames."""

    def __init__(self, server: CloudServer, queries: Sequence[Query], config: CloudNodeConfig,
                 delays: Delays, journal: Journal) -> None:
        """Send nothing yet."""
        # What is emulated is added here, and waited for nowhere.
        server = replace(server, delay=replace(server.delay, emulated_delay_median_s=0.0))
        self.stats, self.in_flight_lost = BridgeStatistics(), 0
        self.timeline: CloudTimeline[_Sent] = CloudTimeline(
            queries, config.max_in_flight, self._answer)
        self.ready: Callable[[], None] = lambda: None    # called before a server is asked
        self.stopped: Callable[[], bool] = lambda: False
        self._delays, self._journal = delays, journal
        self._encoder = KeyframeEncoder(config)
        limits = Cost(config.budget_mb_per_hour * 1e6, config.budget_tokens_per_hour,
                      config.budget_money_per_hour)
        self._pool = EndpointPool([server], Budget(limits))
        self._patient = PatientClient(self._pool.endpoints[0].client, config.retries,
                                      lambda: self.stopped())
        self._runner = Runner()
        self._number = 0
        self._skip_noted: set[str] = set()

    def offer(self, frame: Frame, now_s: float) -> None:
        """
        Send a frame if a query about it is due.

        ``now_s`` is the clock of budgets, which never goes back. Raise CloudError where the server
        cannot be asked, Stopped where the user wants no more.
        """
        policy = self.timeline.policy
        due = policy.due(frame.stamp_ns, frame.camera)
        if due is None:
            return
        picked = self._pool.pick(now_s) if policy.has_room else 'in_flight'
        if isinstance(picked, str):
            if due.id not in self._skip_noted:
                self.stats.count_skipped(picked)
            self._skip_noted.add(due.id)
            return
        self._skip_noted.discard(due.id)
        try:
            keyframe = self._encoder.encode(frame.jpeg, frame.rgb)
        except ValueError as error:
            self.stats.count_error('frame', str(error))
            return
        life_s = max(due.ttl_ns(key) for key in due.keys or ('default',)) / NS
        request = self._pool.begin(len(keyframe.jpeg), due, life_s, now_s, ())
        if isinstance(request, str):
            self.stats.count_skipped(request)
            return
        policy.begin(self._sent(frame, due, keyframe, request, now_s))

    def price(self, query: Query, jpeg_bytes: int) -> float:
        """Return what a request will probably cost, by the prices of the parameters."""
        return self._pool.endpoints[0].estimate(jpeg_bytes, query).money

    def settle(self, now_ns: int) -> Iterator[tuple[int, CloudAnswer]]:
        """Yield the answers that have come by now, each with its moment."""
        for over in self.timeline.settle(now_ns):
            self._end(over)
            if over.answer is not None:
                yield over.request.until_ns, over.answer

    @property
    def next_ns(self) -> float:
        """Return when the next request is over."""
        return min((r.until_ns for r in self.timeline.policy.requests), default=math.inf)

    def restart(self) -> None:
        """Forget what is under way: the stream starts over."""
        policy = self.timeline.policy
        for sent in policy.reset():
            self.in_flight_lost += 1
            policy.end(sent, again=False)
            self._pool.end(sent.request, _reply(sent.exchange), None, len(sent.keyframe.jpeg),
                           sent.at_s)

    def close(self) -> None:
        """Close connections."""
        self._runner.run(self._patient.client.close())
        self._runner.close()

    def _sent(self, frame: Frame, query: Query, keyframe: EncodedKeyframe, request: Request,
              now_s: float) -> _Sent:
        number = self._number
        self._number += 1
        self.stats.requests += 1
        self.stats.bytes_sent += len(keyframe.jpeg)
        exchange = self._journal.exchange(number, query.id, frame.stamp_ns)
        if exchange is None:
            exchange = self._ask(keyframe, query, frame.stamp_ns, request.deadline_s)
            self._journal.keep(number, exchange)
        emulated_s = self._delays.emulated_s(number)
        late_s = emulated_s + exchange.took_s * self._delays.measured
        if not exchange.error and late_s > request.deadline_s:
            exchange = replace(exchange, kind='timeout', error='the answer came later than '
                               'deadline_s or the time to live of its facts; raise them')
        late_s = min(late_s, request.deadline_s)
        return _Sent(query, frame.stamp_ns, frame.stamp_ns + round(late_s * NS), request, keyframe,
                     exchange, now_s, late_s, emulated_s)

    def _answer(self, sent: _Sent) -> CloudAnswer | None:
        """Read the reply of a request that is over."""
        exchange, endpoint = sent.exchange, sent.request.endpoint
        if exchange.error:
            self.stats.count_error(exchange.kind, exchange.error)
            return None
        answer = parse_reply(sent.query, exchange.text, sent.stamp_ns,
                             (sent.keyframe.width, sent.keyframe.height), sent.keyframe.scale,
                             endpoint.config.box_scale)
        answer = replace(answer, round_trip_s=sent.late_s, emulated_s=sent.emulated_s,
                         endpoint=endpoint.server.name, model=endpoint.config.model)
        self.stats.count_answer(answer, False)
        return answer

    def _end(self, over: Settled[_Sent]) -> None:
        """Note what requests have cost, at the moment when they are over."""
        for sent in (over.request, *over.superseded):
            failure: CloudError | None = None
            if sent.exchange.error:
                failure = CloudTimeout(sent.exchange.error) if sent.exchange.kind == 'timeout' \
                    else CloudReplyError(sent.exchange.error)
            self._pool.end(sent.request, _reply(sent.exchange), failure, len(sent.keyframe.jpeg),
                           sent.at_s + over.request.until_ns / NS - sent.stamp_ns / NS)
        self.stats.superseded += len(over.superseded)

    # The server itself

    def _ask(self, keyframe: EncodedKeyframe, query: Query, stamp_ns: int,
             deadline_s: float) -> Exchange:
        """Send a keyframe and wait for the reply; raise CloudError, Stopped."""
        self.ready()
        reply, failure = self._runner.run(self._patient.ask(keyframe.jpeg, query, deadline_s))
        self.stats.retries = self._patient.retried
        return Exchange(query.id, stamp_ns, reply.round_trip_s, '' if failure else reply.text,
                        reply.usage, reply.bytes_sent, reply.bytes_received,
                        str(failure) if failure else '', failure.kind if failure else '')


def _reply(exchange: Exchange) -> RawReply:
    """Return the costs of an exchange as the pool counts them."""
    return RawReply(usage=exchange.usage, bytes_sent=exchange.bytes_sent,
                    bytes_received=exchange.bytes_received, began=True,
                    finished=not exchange.error, round_trip_s=exchange.took_s)
