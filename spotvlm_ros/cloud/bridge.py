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
Keyframes out, cloud answers in, however late; one asyncio thread, nobody ever waits for it.

``offer`` is called with every frame and only decides; reading pixels, encoding and HTTP happen on
threads of this module, and so does the callback with the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, TimeoutError as FutureTimeout
from dataclasses import dataclass, replace
import random
import threading

from .breaker import State
from .bridge_statistics import BridgeStatistics, percentile
from .budget import Budget, Cost
from .client import CloudServer
from .errors import CloudError
from .keyframe_encoder import EncodedKeyframe, shrink
from .parse import CloudAnswer, parse_reply
from .pool import Endpoint, EndpointPool, Request
from .reply import RawReply
from ..config.nodes import EmulatedDelayConfig, RequestConfig
from ..method.facts import NS, Query
from ..method.keyframes import is_complete, KeyframePolicy, KeyframeRequest

FIRST_BACKOFF_S = 0.2  # before a second try; doubled, with jitter, before each further one
SHOWN_S = 10.0        # a spent budget is told of for this long, or until the query is due again
LEAST_S = 0.3         # what would be useful for less than this longer is not worth a try


@dataclass(eq=False)
class _Job(KeyframeRequest):
    """A request, with how far it has come."""

    load: Callable[[], EncodedKeyframe]
    offered: float           # steady clock [s]
    keyframe: EncodedKeyframe | None = None
    tries: int = 0
    answered: bool = False
    superseded: bool = False
    again: bool = True       # without an answer the query is due again at once
    task: asyncio.Task[None] | None = None

    @property
    def useful_until(self) -> float:
        """When the last fact about the frame is forgotten, and a reply is pointless [s]."""
        keys = self.query.keys or ('default',)
        return self.offered + max(self.query.ttl_ns(k) for k in keys) / NS

    def left_s(self, now: float) -> float:
        """Return how much longer a reply is useful."""
        return self.useful_until - now


class _Skipped(Exception):
    """A frame is not sent, for a reason of ours."""


class CloudBridge:
    """
    Asks the cloud about a few of the frames that it is offered.

    The way of a keyframe: `offer` decides, `_run` tries until there is an answer, `_try` asks one
    server after another, `_ask` sends and reads the reply, `_deliver` hands the answer over.
    """

    def __init__(self, servers: Sequence[CloudServer], queries: Sequence[Query],
                 on_answer: Callable[[CloudAnswer], None],
                 config: RequestConfig | None = None, *, budget: Budget | None = None,
                 on_error: Callable[[str], None] = lambda text: None) -> None:
        """Start the thread; nothing is sent before the first offer."""
        config = config or RequestConfig()
        self.retries = config.retries
        self.policy: KeyframePolicy[_Job] = KeyframePolicy(queries, config.max_in_flight)
        self.stats = BridgeStatistics()
        self.budget = budget or Budget()
        self._on_answer, self._on_error = on_answer, on_error
        self._skip_noted: set[str] = set()
        self._due_at: float | None = None  # when a keyframe was due first since the last answer
        self._short = ('', 0.0)            # of what budget, and how long to tell of it
        # By camera: the newest frame, for a request that has to be made anew.
        self._newest: dict[str, tuple[int, Callable[[], EncodedKeyframe], float]] = {}
        self._lock = threading.Lock()
        self._stopped = False
        self._random = random.Random()
        self._pool = EndpointPool(servers, self.budget)
        # Threads of its own: the loop's may all hang in look-ups of names while the network is
        # down.
        self._encoder = ThreadPoolExecutor(1, 'cloud-encoder')
        self._loop = self._new_loop()

    # The way of a keyframe; all but offer run in the loop of the thread

    def offer(self, stamp_ns: int, load: Callable[[], EncodedKeyframe], camera: str = ''
              ) -> str | None:
        """
        Send a camera's frame if a query about it is due; return that query's id.

        Quick, from any thread; ``load`` is called by another.
        """
        now = self._now
        with self._lock:
            due = self.policy.due(stamp_ns, camera)
            if due is not None and self._due_at is None:
                self._due_at = now
            if self.policy.requests:
                self._newest[camera] = stamp_ns, load, now
            if due is None or self._stopped or not self._may_send(due, now):
                return None
            job = _Job(due, stamp_ns, load, now)
            self.policy.begin(job)
        self._loop.call_soon_threadsafe(self._spawn, job)
        return due.id

    async def _run(self, job: _Job) -> None:
        """Ask until there is an answer, or no point in going on."""
        wait_s: float | None = 0.0
        while wait_s is not None:
            try:
                await self._try(job)
                return
            except _Skipped as why:
                with self._lock:
                    self.stats.count_skipped(str(why))
                    self._note_budget(job.query, str(why), self._now)
                job.again = not str(why).startswith('budget')
                return
            except CloudError as error:
                wait_s = self._pause_s(job, error)
            except ValueError as error:  # the frame cannot be sent: no server's fault
                self._count_error('frame', str(error))
                return
            except Exception as error:  # a bug of ours must not silence the cloud for good
                self._count_error('internal', f'{type(error).__name__}: {error}')
                return
            if wait_s is not None:
                await asyncio.sleep(wait_s)
                with self._lock:
                    self._renew(job)

    async def _try(self, job: _Job) -> None:
        """Ask one server after another; raise the last CloudError when all have failed."""
        if job.keyframe is None:
            job.keyframe = await self._loop.run_in_executor(self._encoder, job.load)
        failed: list[Endpoint] = []
        error: CloudError | None = None
        while error is None or not self._stopped and job.left_s(self._now) >= LEAST_S:
            with self._lock:
                now = self._now
                request = self._pool.begin(len(job.keyframe.jpeg), job.query, job.left_s(now),
                                           now, failed)
                self.stats.requests += isinstance(request, Request)
            if isinstance(request, str):
                raise error or _Skipped(request)
            try:
                answer = await self._ask(job, job.keyframe, request)
            except CloudError as failure:
                error = failure
                failed.append(request.endpoint)
                job.tries += 1
                pause = request.endpoint.pause(self._now)
                self._count_error(failure.kind, f'{failure}; it has asked for a pause, until '
                                  f'{pause}' if pause else str(failure))
            else:
                self._deliver(job, request.endpoint, answer)
                return
        raise error

    async def _ask(self, job: _Job, keyframe: EncodedKeyframe, request: Request) -> CloudAnswer:
        """Ask one server."""
        endpoint, reply = request.endpoint, RawReply()
        failure: CloudError | None = None
        try:
            if 0 < endpoint.max_image_bytes < len(keyframe.jpeg):
                keyframe = await self._loop.run_in_executor(
                    self._encoder, shrink, keyframe, endpoint.max_image_bytes)
            self.stats.bytes_sent += len(keyframe.jpeg)
            await endpoint.client.ask(keyframe.jpeg, job.query, request.deadline_s, reply)
        except CloudError as error:
            failure = error
            raise
        finally:
            with self._lock:
                self._pool.end(request, reply, failure, len(keyframe.jpeg), self._now)
        answer = parse_reply(job.query, reply.text, job.stamp_ns,
                             (keyframe.width, keyframe.height), keyframe.scale,
                             endpoint.config.box_scale)
        return replace(answer, wait_s=max(0.0, reply.sent - job.offered),
                       round_trip_s=reply.round_trip_s, emulated_s=reply.emulated_s,
                       received=reply.received, endpoint=endpoint.server.name,
                       model=endpoint.config.model)

    def _deliver(self, job: _Job, endpoint: Endpoint, answer: CloudAnswer) -> None:
        with self._lock:
            job.answered, self._due_at = True, None
            self.stats.count_answer(answer, endpoint is not self._pool.endpoints[0])
            self._pool.serving = endpoint
            superseded = self.policy.answered(
                job, answer.round_trip_s, is_complete(job.query, answer.facts, answer.rejected))
        if self._stopped:
            return
        self._on_answer(answer)
        with self._lock:
            self.stats.to_answer_s.append(self._now - answer.received)
        self._give_up(superseded)

    # From outside

    def urge(self, query_id: str) -> None:
        """Bring a query forward: its scene has changed, or the edge is unsure."""
        with self._lock:
            self.policy.urge(query_id)

    def replace(self, queries: Sequence[Query]) -> None:
        """Ask other queries from now on; what is under way about one that is no more is ended."""
        with self._lock:
            jobs = self.policy.replace(queries)
            if not self._stopped:
                self._loop.call_soon_threadsafe(self._give_up, jobs)

    def emulate(self, delay: EmulatedDelayConfig) -> None:
        """Add another delay to replies from now on."""
        for endpoint in self._pool.endpoints:
            endpoint.client.delay = delay

    def rest(self) -> None:
        """Expect no answer: nothing is offered for now."""
        self._due_at = None

    def reset(self, camera: str = '') -> None:
        """Forget when a camera's frames were sent, give up what is asked (restart, clock jump)."""
        with self._lock:
            jobs = self.policy.reset(camera)
            self._newest.pop(camera, None)
            self._due_at = None
            if not self._stopped:
                self._loop.call_soon_threadsafe(self._give_up, jobs)

    def stop(self, timeout_s: float = 3.0) -> bool:
        """Give up what is in flight and end the thread; return whether it ended in time."""
        with self._lock:
            if self._stopped:
                return True
            self._stopped = True
        closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        try:
            closing.result(timeout_s)
        except FutureTimeout:
            pass
        self._encoder.shutdown(wait=False, cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._loop.close()
        return True

    # For diagnostics

    @property
    def in_flight(self) -> int:
        """Return the number of requests under way."""
        return len(self.policy.requests)

    def round_trip_s(self, share: float) -> float:
        """Return a percentile (share 0..1) of the last round trips; 0 before the first."""
        with self._lock:
            return percentile(self.stats.round_trips_s, share)

    @property
    def emulated_delay_s(self) -> float:
        """Median of the delay added on purpose."""
        with self._lock:
            return self.stats.emulated_delay_s

    @property
    def pauses(self) -> str:
        """Return which servers have asked to be left alone, and until when."""
        return self._pool.pauses(self._now)

    @property
    def unanswered_s(self) -> float:
        """Return for how long keyframes have been due, or under way, without an answer."""
        due_at = self._due_at
        return 0.0 if due_at is None else self._now - due_at

    @property
    def usual_s(self) -> float:
        """Return how long an answer takes, mostly; before the first, at most."""
        usual_s = self.round_trip_s(0.95) or max(
            e.config.deadline_s for e in self._pool.endpoints)
        return usual_s + self.emulated_delay_s

    @property
    def short_of(self) -> str:
        """Return which budget, budget_bytes for one, has kept keyframes back lately."""
        why, until = self._short
        return why if self._now < until else ''

    @property
    def failing(self) -> list[str]:
        """Return the addresses of the servers that fail."""
        return self._pool.failing

    def spent_hour(self) -> Cost:
        """Return what the last hour cost."""
        with self._lock:
            return self.budget.spent(self._now)

    @property
    def server(self) -> CloudServer:
        """Return the server in use: it answered last."""
        return self._pool.serving.server

    @property
    def breaker_state(self) -> State:
        """Return the state of the server in best health."""
        return min(e.breaker.state for e in self._pool.endpoints)

    def report(self) -> dict[str, str | float]:
        """Return all figures, flat, for diagnostics."""
        with self._lock:
            return {'endpoint': self.server.name, 'breaker': self.breaker_state.name.lower(),
                    'in_flight': self.in_flight,
                    'in_flight_wanted': self.policy.target_in_flight,
                    'brought_forward': self.policy.urged, **self.stats.report(),
                    **self._pool.report(self._now)}

    # What the flow is made of

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that everything happens in, and whose clock counts; a thread runs it."""
        loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name='cloud', daemon=True)
        self._thread.start()
        return loop

    @property
    def _now(self) -> float:
        """Steady clock [s]; asyncio's own is the same as `time.monotonic`."""
        return self._loop.time()

    def _may_send(self, due: Query, now: float) -> bool:
        """Return whether a request may go now; count a keyframe once that may not."""
        picked = self._pool.pick(now) if self.policy.has_room else 'in_flight'
        if isinstance(picked, str):
            self._note_budget(due, picked, now)
            if due.id not in self._skip_noted:
                self.stats.count_skipped(picked)
            self._skip_noted.add(due.id)
            return False
        self._skip_noted.discard(due.id)
        return True

    def _note_budget(self, query: Query, why: str, now: float) -> None:
        if why.startswith('budget_'):
            self._due_at = None  # no fault of the server's
            self._short = why, now + max(SHOWN_S, 1.5 * query.cloud_period_s)

    def _renew(self, job: _Job) -> None:
        """Ask about the newest frame instead: the answer will be true for longer."""
        newest = self._newest.get(job.query.camera)
        if newest is not None and self.policy.renew(job, newest[0]):
            _, job.load, job.offered = newest
            job.keyframe = None

    def _spawn(self, job: _Job) -> None:
        job.task = self._loop.create_task(self._run(job))
        # Not a finally in the task: one that is cancelled before its first step has none.
        job.task.add_done_callback(lambda task: self._settle(job))

    def _settle(self, job: _Job) -> None:
        with self._lock:
            self.policy.end(job, job.again and not (job.answered or job.superseded))
            self.stats.superseded += job.superseded
            if not self.policy.requests:
                self._newest.clear()

    def _pause_s(self, job: _Job, error: CloudError) -> float | None:
        """Return how long to wait before trying again, None when that is pointless."""
        if self._stopped or job.tries > self.retries or not error.retry:
            return None
        now = self._now
        backoff = FIRST_BACKOFF_S * 2.0 ** (job.tries - 1) * self._random.uniform(0.5, 1.5)
        with self._lock:
            wait_s = max(backoff, self._pool.next_at(now) - now + 0.001)
            if now + wait_s + LEAST_S > job.useful_until:
                return None
            self.stats.retries += 1
        return wait_s

    def _give_up(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            if job.task is not None and not job.task.done():
                job.superseded = True
                job.task.cancel()

    def _count_error(self, kind: str, message: str) -> None:
        with self._lock:
            self.stats.count_error(kind, message)
        if not self._stopped:
            self._on_error(message)

    async def _close(self) -> None:
        tasks = [j.task for j in self.policy.requests if j.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self._pool.endpoints:
            await endpoint.client.close()
