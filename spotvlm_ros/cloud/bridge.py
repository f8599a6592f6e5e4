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
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
import random
import statistics
import threading
import time
from typing import Any

from .breaker import State
from .budget import Budget, Cost
from .client import CloudConfig, RawReply
from .completion import Completion
from .errors import CloudError, CloudRefused
from .parse import parse_reply, Reply
from .photo import Photo, smaller
from .pool import Endpoint, Pool
from .schema import response_format
from ..method.facts import Fact, NS, Query
from ..method.keyframes import next_keyframe, target_in_flight
from ..method.prompt import cloud_question

RECENT = 64           # kept for the percentiles
FIRST_BACKOFF_S = 0.2  # before a second try; doubled, with jitter, before each further one
LEAST_S = 0.3         # what would be useful for less than this longer is not worth a try


@dataclass(frozen=True)
class CloudAnswer:
    """A reply about the frame of ``stamp_ns``."""

    query_id: str
    stamp_ns: int
    facts: tuple[Fact, ...]
    text: str
    rejected: list[str]
    wait_s: float        # offer to the request on the wire: reading and encoding the frame
    round_trip_s: float  # request to reply, emulated part included
    emulated_s: float
    endpoint: str = ''   # name of the server
    model: str = ''


def _recent() -> deque[float]:
    return deque(maxlen=RECENT)


@dataclass
class Stats:
    """Counts since start."""

    requests: int = 0
    answers: int = 0
    errors: int = 0
    skipped: int = 0
    retries: int = 0
    failovers: int = 0     # answers of another server than the preferred
    superseded: int = 0    # given up, because a newer frame's answer had come
    facts_rejected: int = 0
    injections: int = 0    # replies whose text reads like instructions
    bytes_sent: int = 0    # of images
    last_error: str = ''
    errors_by: Counter[str] = field(default_factory=Counter)   # kind
    skipped_by: Counter[str] = field(default_factory=Counter)  # reason
    round_trips_s: deque[float] = field(default_factory=_recent)
    emulated_s: deque[float] = field(default_factory=_recent)
    to_wire_s: deque[float] = field(default_factory=_recent)    # offer to the last byte sent
    to_answer_s: deque[float] = field(default_factory=_recent)  # last byte received to delivered


@dataclass(eq=False)
class _Job:
    """A query about a frame, on its way."""

    query: Query
    stamp_ns: int
    load: Callable[[], Photo]
    offered: float           # steady clock [s]
    photo: Photo | None = None
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


class _Skipped(Exception):
    """A frame is not sent, for a reason of ours."""


class CloudBridge:
    """Keeps at most ``max_in_flight`` questions with the cloud."""

    def __init__(self, config: CloudConfig | Sequence[CloudConfig], queries: Sequence[Query],
                 on_answer: Callable[[CloudAnswer], None], *, max_in_flight: int = 2,
                 budget: Budget | None = None, retries: int = 2,
                 on_error: Callable[[str], None] = lambda text: None) -> None:
        """Start the thread; nothing is sent before the first offer."""
        self.max_in_flight, self.retries = max_in_flight, retries
        self.stats = Stats()
        self.budget = budget or Budget()
        self.in_flight = 0
        self._queries = {q.id: q for q in queries}
        self._on_answer, self._on_error = on_answer, on_error
        self._last_sent: dict[str, int] = {}
        self._urgent: set[str] = set()
        self.urged = 0                        # times that a query was brought forward
        self.wanted_in_flight = max_in_flight
        self._skip_noted: set[str] = set()
        # By camera: the newest frame, for a request that has to be made anew.
        self._newest: dict[str, tuple[int, Callable[[], Photo], float]] = {}
        self._lock = threading.Lock()
        self._stopped = False
        self._random = random.Random()
        self._pool = Pool([config] if isinstance(config, CloudConfig) else config)
        self._jobs: set[_Job] = set()
        # Threads of its own: the loop's may all hang in look-ups of names while the network is
        # down.
        self._encoder = ThreadPoolExecutor(1, 'cloud-encoder')
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name='cloud', daemon=True)
        self._thread.start()

    def offer(self, stamp_ns: int, load: Callable[[], Photo], camera: str = '') -> str | None:
        """
        Send a camera's frame if a query about it is due; return that query's id.

        Quick, from any thread.
        """
        now = time.monotonic()
        with self._lock:
            due = next_keyframe([q for q in self._queries.values() if q.camera == camera],
                                self._last_sent, stamp_ns, 0, 1, self._urgent)
            if self._jobs:
                self._newest[camera] = stamp_ns, load, now
            if due is None or self._stopped:
                return None
            self.wanted_in_flight = target_in_flight(
                self._queries.values(), self.stats.round_trips_s, self.max_in_flight)
            picked = 'in_flight' if self.in_flight >= self.wanted_in_flight else \
                self._pool.pick(self.budget, now)
            if isinstance(picked, str):
                if due not in self._skip_noted:
                    self._skip(picked)
                self._skip_noted.add(due)
                return None
            self._skip_noted.discard(due)
            self._last_sent[due] = stamp_ns
            self._urgent.discard(due)
            self.in_flight += 1
            job = _Job(self._queries[due], stamp_ns, load, now)
            self._jobs.add(job)
        self._loop.call_soon_threadsafe(self._spawn, job)
        return due

    def urge(self, query_id: str) -> None:
        """Bring a query forward: its scene has changed, or the edge is unsure."""
        with self._lock:
            if query_id in self._queries and query_id not in self._urgent:
                self._urgent.add(query_id)
                self.urged += 1

    def reset(self, camera: str = '') -> None:
        """Forget when a camera's frames were sent, give up what is asked (restart, clock jump)."""
        with self._lock:
            for query in self._queries.values():
                if query.camera == camera:
                    self._last_sent.pop(query.id, None)
            self._newest.pop(camera, None)
            jobs = [job for job in self._jobs if job.query.camera == camera]
            if not self._stopped:
                self._loop.call_soon_threadsafe(self._give_up, jobs)

    def stop(self, timeout_s: float = 3.0) -> bool:
        """Give up what is in flight and end the thread; return whether it ended in time."""
        with self._lock:
            if self._stopped:
                return True
            self._stopped = True
        done = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        try:
            done.result(timeout_s)
        except TimeoutError:
            pass
        self._encoder.shutdown(wait=False, cancel_futures=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._loop.close()
        return True

    # What there is to tell

    def round_trip_s(self, share: float) -> float:
        """Return a percentile (share 0..1) of the last round trips; 0 before the first."""
        with self._lock:
            return percentile(self.stats.round_trips_s, share)

    @property
    def emulated_delay_s(self) -> float:
        """Median of the delay added on purpose."""
        with self._lock:
            return statistics.median(self.stats.emulated_s) if self.stats.emulated_s else 0.0

    @property
    def endpoint(self) -> CloudConfig:
        """Return the server in use: it answered last."""
        return self._pool.serving.config

    @property
    def breaker_state(self) -> State:
        """Return the state of the server in best health."""
        return min(e.breaker.state for e in self._pool.endpoints)

    def report(self) -> dict[str, Any]:
        """Return all figures, flat, for diagnostics."""
        now = time.monotonic()
        with self._lock:
            stats, spent, limit = self.stats, self.budget.spent(now), self.budget.per_hour
            report: dict[str, Any] = {
                'endpoint': self.endpoint.name, 'breaker': self.breaker_state.name.lower(),
                'in_flight': self.in_flight, 'in_flight_wanted': self.wanted_in_flight,
                'brought_forward': self.urged, 'requests': stats.requests,
                'answers': stats.answers, 'errors': stats.errors, 'skipped': stats.skipped,
                'retries': stats.retries, 'failovers': stats.failovers,
                'superseded': stats.superseded, 'facts_rejected': stats.facts_rejected,
                'injections': stats.injections, 'bytes_sent': stats.bytes_sent,
                'round_trip_p50_s': percentile(stats.round_trips_s, 0.5),
                'round_trip_p95_s': percentile(stats.round_trips_s, 0.95),
                'keyframe_to_wire_p95_s': percentile(stats.to_wire_s, 0.95),
                'reply_to_answer_p95_s': percentile(stats.to_answer_s, 0.95),
                'spent_hour_mb': spent.bytes / 1e6, 'spent_hour_tokens': int(spent.tokens),
                'spent_hour_money': spent.money, 'spent_total_money': self.budget.total.money,
                'budget_mb': limit.bytes / 1e6, 'budget_tokens': int(limit.tokens),
                'budget_money': limit.money}
            report |= {f'errors.{kind}': n for kind, n in sorted(stats.errors_by.items())}
            report |= {f'skipped.{why}': n for why, n in sorted(stats.skipped_by.items())}
            for endpoint in self._pool.endpoints:
                report |= {f'{endpoint.config.name}.{key}': value for key, value in (
                    ('breaker', endpoint.breaker.state.name.lower()),
                    ('in_flight', endpoint.in_flight), ('requests', endpoint.requests),
                    ('answers', endpoint.answers), ('errors', endpoint.errors),
                    ('dialect', endpoint.client.dialect.name.lower()),
                    ('usage_missing', endpoint.usage_missing))}
        return report

    # The thread's own

    def _spawn(self, job: _Job) -> None:
        job.task = self._loop.create_task(self._run(job))
        # Not a finally in the task: one that is cancelled before its first step has none.
        job.task.add_done_callback(lambda task: self._settle(job))

    async def _run(self, job: _Job) -> None:
        """Ask until there is an answer, or no point in going on."""
        wait_s: float | None = 0.0
        while wait_s is not None:
            try:
                await self._try(job)
                return
            except _Skipped as why:
                with self._lock:
                    self._skip(str(why))
                job.again = not str(why).startswith('budget')
                return
            except CloudError as error:
                wait_s = self._pause_s(job, error)
            except ValueError as error:  # the frame cannot be sent: no server's fault
                self._note(str(error), 'frame')
                return
            except Exception as error:  # a bug of ours must not silence the cloud for good
                self._note(f'{type(error).__name__}: {error}', 'internal')
                return
            if wait_s is not None:
                await asyncio.sleep(wait_s)
                self._renew(job)

    def _settle(self, job: _Job) -> None:
        with self._lock:
            self.in_flight -= 1
            self._jobs.discard(job)
            self.stats.superseded += job.superseded
            if not self._jobs:
                self._newest.clear()
            if job.again and not (job.answered or job.superseded) and \
                    self._last_sent.get(job.query.id) == job.stamp_ns:
                del self._last_sent[job.query.id]  # due as soon as a breaker allows

    async def _try(self, job: _Job) -> None:
        """Ask one server after another; raise the last CloudError when all have failed."""
        if job.photo is None:
            job.photo = await self._loop.run_in_executor(self._encoder, job.load)
        question = cloud_question(job.query)
        failed: list[Endpoint] = []
        error: CloudError | None = None
        while True:
            now = time.monotonic()
            with self._lock:
                endpoint = self._pool.pick(self.budget, now, failed)
                if isinstance(endpoint, Endpoint):
                    cost = endpoint.estimate(len(job.photo.jpeg), question)
                    lacking = self.budget.lacking(cost, now)
                    endpoint = endpoint if not lacking else f'budget_{lacking}'
                if isinstance(endpoint, str):
                    if error is not None:
                        raise error
                    raise _Skipped(endpoint)
                endpoint.breaker.allow(now)
                # A trial holds all others up, and so does a request that another server could
                # answer.
                brief = endpoint.breaker.state is State.HALF_OPEN or isinstance(
                    self._pool.pick(self.budget, now, [*failed, endpoint]), Endpoint)
                endpoint.in_flight += 1
                endpoint.requests += 1
                self.stats.requests += 1
                self.budget.take(cost, now)
            try:
                left = job.useful_until - now
                await self._ask(job, endpoint, question, cost,
                                endpoint.patience_s(left) if brief else left)
                return
            except CloudError as failure:
                error = failure
                failed.append(endpoint)
                job.tries += 1
                self._note(str(failure), failure.kind)
            if self._stopped or job.useful_until - time.monotonic() < LEAST_S:
                raise error

    async def _ask(self, job: _Job, endpoint: Endpoint, question: str, cost: Cost,
                   deadline_s: float) -> None:
        """Ask one server; deliver its answer."""
        done, failure = Completion(), None
        raw: RawReply | None = None
        assert job.photo is not None
        photo = job.photo
        try:
            if 0 < endpoint.max_image_bytes < len(photo.jpeg):
                photo = await self._loop.run_in_executor(
                    self._encoder, smaller, photo, endpoint.max_image_bytes)
            self.stats.bytes_sent += len(photo.jpeg)
            raw = await endpoint.client.ask(
                photo.jpeg, question, response_format(job.query), deadline_s, done)
        except CloudError as error:
            failure = error
            raise
        finally:
            now = time.monotonic()
            with self._lock:
                endpoint.in_flight -= 1
                refused = isinstance(failure, CloudRefused)
                self.budget.take(endpoint.actual(done, cost, refused) - cost, now)
                if raw is not None:
                    endpoint.succeeded(raw.round_trip_s)
                elif failure is not None:
                    endpoint.failed(failure, now, len(photo.jpeg))
                else:
                    endpoint.breaker.abandon(now)
        reply = parse_reply(job.query, raw.text, job.stamp_ns, (photo.width, photo.height),
                            photo.scale, endpoint.config.box_scale)
        self._deliver(job, endpoint, raw, reply, done.sent)

    def _deliver(self, job: _Job, endpoint: Endpoint, raw: RawReply, reply: Reply,
                 sent: float) -> None:
        wait_s = max(0.0, sent - job.offered)
        with self._lock:
            job.answered = True
            stats = self.stats
            stats.answers += 1
            stats.facts_rejected += len(reply.rejected)
            stats.injections += reply.suspicious
            stats.failovers += endpoint is not self._pool.endpoints[0]
            stats.round_trips_s.append(raw.round_trip_s)
            stats.emulated_s.append(raw.emulated_s)
            stats.to_wire_s.append(wait_s)
            stats.last_error = ''
            self._pool.serving = endpoint
            older = [j for j in self._jobs if j.query is job.query and j.stamp_ns < job.stamp_ns]
        answer = CloudAnswer(job.query.id, job.stamp_ns, reply.facts, reply.text, reply.rejected,
                             wait_s, raw.round_trip_s, raw.emulated_s,
                             endpoint.config.name, endpoint.config.model)
        if self._stopped:
            return
        self._on_answer(answer)
        with self._lock:
            self.stats.to_answer_s.append(time.monotonic() - raw.received)
        if not reply.rejected and {f.key for f in reply.facts} == set(job.query.keys):
            self._give_up(older)  # an older answer could only fill what this one lacks

    def _pause_s(self, job: _Job, error: CloudError) -> float | None:
        """Return how long to wait before trying again, None when that is pointless."""
        if self._stopped or job.tries > self.retries or not error.retry:
            return None
        now = time.monotonic()
        backoff = FIRST_BACKOFF_S * 2.0 ** (job.tries - 1) * self._random.uniform(0.5, 1.5)
        with self._lock:
            wait_s = max(backoff, self._pool.next_at(now) - now + 0.001)
            if now + wait_s + LEAST_S > job.useful_until:
                return None
            self.stats.retries += 1
        return wait_s

    def _renew(self, job: _Job) -> None:
        """Ask about the newest frame instead: the answer will be true for longer."""
        with self._lock:
            newest = self._newest.get(job.query.camera)
            if newest is not None and newest[0] > job.stamp_ns and \
                    self._last_sent.get(job.query.id) == job.stamp_ns:
                job.stamp_ns, job.load, job.offered = newest
                job.photo = None
                self._last_sent[job.query.id] = job.stamp_ns

    def _give_up(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            if job.task is not None and not job.task.done():
                job.superseded = True
                job.task.cancel()

    def _skip(self, why: str) -> None:
        self.stats.skipped += 1
        self.stats.skipped_by[why] += 1

    def _note(self, error: str, kind: str) -> None:
        with self._lock:
            self.stats.errors += 1
            self.stats.errors_by[kind] += 1
            self.stats.last_error = error
        if not self._stopped:
            self._on_error(error)

    async def _close(self) -> None:
        tasks = [j.task for j in self._jobs if j.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for endpoint in self._pool.endpoints:
            await endpoint.client.close()


def percentile(values: Sequence[float] | deque[float], share: float) -> float:
    """Return the value below which a share (0..1) of the values lies; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
