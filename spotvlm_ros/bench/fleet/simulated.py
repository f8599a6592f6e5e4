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
Robots, servers and networks of a fleet that exists in simulated time only.

Of the real thing are: the bridge with its keyframe policy, breakers, budgets and retries, the
parser of replies, and the batcher with its queue, turns and admission. Modelled are: the model (a
measured batch curve), what makes requests ready for it (one after the other, and batches take
longer meanwhile), the network (a trace) and the router (the lesser queue of two, as Ray's).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
import json
import random

from .clock import SimulatedLoop
from .curve import Curve
from ...cloud.bridge import CloudBridge
from ...cloud.client import CloudServer, Dialect
from ...cloud.errors import CloudRefused, CloudTimeout, CloudUnreachable
from ...cloud.keyframe_encoder import EncodedKeyframe
from ...cloud.parse import CloudAnswer
from ...cloud.reply import RawReply
from ...cloud.traces import Trace
from ...config.nodes import RequestConfig, ServerConfig
from ...method.facts import NS, Query
from ...serving.batcher import Batcher
from ...serving.chat import Refused
from ...serving.meters import Meters
from ...system.compatible import timeout

CAMERA_HZ = 5.0
KEYFRAME = EncodedKeyframe(b'\xff' * 60_000, 640, 480)
CONNECT_S = 1.0   # until a robot knows that nobody is there
BROKEN_S = 5.0    # and that a connection is broken: TCP_USER_TIMEOUT of the transport


@dataclass(frozen=True)
class Network:
    """What is between robot and region: a delay both ways, and the time of the upload."""

    name: str
    delay: Trace         # of both ways together
    mbit_s: float        # upload of one robot


NETWORKS = {n.name: n for n in (
    Network('wired', Trace('wired', 'lognormal, median 10 ms', 0.01, 0.2), 100.0),
    Network('wifi', Trace('wifi', 'median 20 ms, Pareto tail of exponent 1.5, 1 connection of '
                          '1000 breaks', 0.02, tail=1.5, lost=0.001), 20.0),
    Network('mobile', Trace('mobile', 'lognormal, median 80 ms, sigma 0.5, 1 connection of 500 '
                            'breaks', 0.08, 0.5, lost=0.002), 5.0),
)}


@dataclass(frozen=True)
class _Asked:
    """A request; all fit into one batch."""

    kind: str = ''


class _Replica:
    """A process that makes requests ready and computes them."""

    def __init__(self, curve: Curve, max_batch: int) -> None:
        self.busy_s, self.under_way = 0.0, 0
        self._curve, self._readers, self._read = curve, asyncio.Lock(), 0
        self._batcher: Batcher[_Asked, None] = Batcher(self._compute, max_batch, Meters())

    async def ask(self, robot: str, until: float) -> None:
        """Return when the reply is there. Raise Refused."""
        self.under_way += 1
        try:
            self._batcher.admit(until)
            if self._curve.prepare_s:
                async with self._readers:
                    await asyncio.sleep(self._curve.prepare_s)
            self._read += 1
            await self._batcher.ask(_Asked(), robot, until)
        finally:
            self.under_way -= 1

    def close(self) -> None:
        """End."""
        self._batcher.close()

    async def _compute(self, batch: Sequence[_Asked], gone: object) -> Sequence[None]:
        read, left_s = self._read, self._curve.batch_s(len(batch))
        while left_s > 0:
            self.busy_s += left_s
            await asyncio.sleep(left_s)
            left_s, read = (self._read - read) * self._curve.slows_s, self._read
        return [None] * len(batch)


class Region:
    """Replicas of a model behind one address."""

    def __init__(self, name: str, curve: Curve, replicas: int, max_batch: int, seed: int) -> None:
        """Begin with nothing to do."""
        self.name, self.down = name, False
        self.answered = self.refused = 0
        self._random = random.Random(f'region {name} {seed}')
        self._replicas = [_Replica(curve, max_batch) for _ in range(replicas)]

    @property
    def busy_s(self) -> float:
        """Return for how long replicas have computed, all together."""
        return sum(replica.busy_s for replica in self._replicas)

    async def ask(self, robot: str, until: float) -> None:
        """Return when the reply is there. Raise CloudError."""
        if self.down:
            await asyncio.sleep(CONNECT_S)
            raise CloudUnreachable(f'{self.name} is down')
        one, other = (self._random.choice(self._replicas) for _ in range(2))
        try:
            await min(one, other, key=lambda r: r.under_way).ask(robot, until)
        except Refused as refusal:
            self.refused += 1
            raise CloudRefused(self.name, refusal.status, refusal.retry_after_s) from None
        self.answered += 1

    def close(self) -> None:
        """End."""
        for replica in self._replicas:
            replica.close()


class _Client:
    """In the place of `CloudClient`: a network and a region in the place of HTTP."""

    dialect = Dialect.PLAIN

    def __init__(self, region: Region, network: Network, robot: str, seed: int) -> None:
        self._region, self._network, self._robot, self._seed = region, network, robot, seed
        self._number = 0

    async def ask(self, jpeg: bytes, query: Query, deadline_s: float, reply: RawReply
                  ) -> RawReply:
        """Ask a region about a keyframe. Raise CloudError."""
        loop = asyncio.get_running_loop()
        began, self._number = loop.time(), self._number + 1
        both_s = self._network.delay.delay_s(self._seed, self._number)
        upload_s = 8e-6 * len(jpeg) * 4 / 3 / self._network.mbit_s
        reply.began, reply.bytes_sent = True, len(jpeg) * 4 // 3
        try:
            async with timeout(deadline_s):
                if both_s == float('inf'):
                    await asyncio.sleep(BROKEN_S)
                    raise CloudUnreachable('the connection is broken')
                await asyncio.sleep(both_s / 2 + upload_s)
                reply.sent = loop.time()
                await self._region.ask(self._robot, began + deadline_s)
                await asyncio.sleep(both_s / 2)
        except TimeoutError:
            raise CloudTimeout('no reply in time') from None
        reply.text, reply.finished, reply.received = _said(query), True, loop.time()
        reply.round_trip_s = loop.time() - began
        return reply

    async def close(self) -> None:
        """There are no connections."""


class _Bridge(CloudBridge):
    """The bridge of a robot, in the loop of all."""

    def __init__(self, robot: Robot, regions: Sequence[Region], loop: SimulatedLoop) -> None:
        self._simulated, setting = loop, robot.setting
        super().__init__(
            [CloudServer(ServerConfig(base_url=f'http://{region.name}.example.org', model='m',
                                      deadline_s=setting.deadline_s), region.name)
             for region in regions],
            setting.queries, robot.answered, RequestConfig(max_in_flight=setting.in_flight))
        self._random.seed(robot.seed)
        for endpoint, region in zip(self._pool.endpoints, regions):
            endpoint.breaker._random.seed(f'{robot.seed} {region.name}')
            client = _Client(region, setting.network, robot.name, robot.seed)
            endpoint.client = client  # type: ignore[assignment]

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        return self._simulated


@dataclass(frozen=True)
class Setting:
    """What all robots have in common."""

    queries: Sequence[Query]
    network: Network
    in_flight: int = 2
    deadline_s: float = 15.0
    urged_per_s: float = 0.1  # scenes that change, edges that are unsure: a Poisson process


@dataclass(eq=False)
class Robot:
    """A camera and a bridge; ages of its context are noted from ``since`` on."""

    seed: int
    setting: Setting
    since: float
    answers: int = 0
    ages_s: list[tuple[float, float]] = field(default_factory=list)  # when, how old
    newest: float = 0.0

    @property
    def name(self) -> str:
        """Return what servers know it by."""
        return f'robot-{self.seed}'

    def answered(self, answer: CloudAnswer) -> None:
        """Take an answer."""
        if answer.query_id == self.setting.queries[0].id:
            self.newest = max(self.newest, answer.stamp_ns / NS)
        self.answers += asyncio.get_running_loop().time() >= self.since

    async def live(self, regions: Sequence[Region], until: float) -> _Bridge:
        """Drive until a moment; return the bridge, with what it has counted."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        luck = random.Random(self.seed)
        self.newest = await self._pause(luck.random())  # they do not all begin at once
        bridge = _Bridge(self, regions, loop)
        while loop.time() < until:
            if luck.random() < self.setting.urged_per_s / CAMERA_HZ:
                bridge.urge(luck.choice(self.setting.queries).id)
            bridge.offer(round(loop.time() * NS), lambda: KEYFRAME)
            if loop.time() >= self.since:
                self.ages_s.append((loop.time(), loop.time() - self.newest))
            await asyncio.sleep(1.0 / CAMERA_HZ)
        await bridge._close()
        return bridge

    async def _pause(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return asyncio.get_running_loop().time()


def _said(query: Query) -> str:
    """Return a whole reply to a query."""
    if query.format == 'choice':
        return query.choices[query.id][0]
    return json.dumps([{'label': key, 'value': values[0]}
                       for key, values in query.choices.items()])
