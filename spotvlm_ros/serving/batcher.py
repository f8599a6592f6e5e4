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
Which requests are computed together, in whose turn, and which would come too late.

Robots take turns: one that asks often waits for itself, not the others for it (start-time fair
queueing). A request whose reply would come after it is of use is refused at once, by how long
batches took lately: what is computed in vain is taken from all others. An idle server takes any
request, so that a wrong guess mends itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from .chat import Refused
from .meters import Meters

NEW = 0.3      # weight of the newest batch in how long batches take
GAIN = 0.9     # a larger batch has to take less time per request, by this
STALE = 200    # batches after which a size is tried again
GUESS = 0.5    # a larger batch is thought to add as much of what it would add one by one
UNENDED = 1.5  # times what a batch took that was ended early, nobody waiting for it any more
STUCK_S = 120.0  # a batch that takes longer will not end


class Question(Protocol):
    """A request as the model takes it; only those of one kind are computed together."""

    @property
    def kind(self) -> Hashable:
        """Return what has to be the same within a batch."""


Q = TypeVar('Q', bound=Question)
A = TypeVar('A')
# Computes a batch; the function that it is given says whether nobody waits for one any more.
Compute = Callable[[Sequence[Q], Callable[[int], bool]], Awaitable[Sequence[A]]]


@dataclass(eq=False)
class _Job(Generic[Q, A]):
    question: Q
    began: float     # when it came, steady clock [s]
    until: float     # when a reply is of no more use
    turn: float
    reply: asyncio.Future[A] = field(repr=False)


class Pace:
    """How long batches take, by their size."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._seconds: dict[int, float] = {}
        self._tried: dict[int, int] = {}  # number of the last batch of each size
        self._batches = 0

    def took(self, size: int, seconds: float) -> None:
        """Note how long a batch took."""
        old = self._seconds.get(size, seconds)
        self._seconds[size] = old + NEW * (seconds - old)
        self._batches += 1
        self._tried[size] = self._batches

    def expected_s(self, size: int) -> float:
        """
        Return how long a batch will take; 0 before the first, and a guess beyond the largest.

        A guess in proportion would have larger ones seem too late for ever, and never be tried.
        """
        sizes = sorted(self._seconds)
        if not sizes or not size:
            return 0.0
        larger = next((s for s in sizes if s >= size), None)
        if larger is None:
            return self._seconds[sizes[-1]] * (1.0 + GUESS * (size / sizes[-1] - 1.0))
        return self._seconds[larger]

    def best(self, waiting: int) -> int:
        """
        Return how many of those that wait to compute at once: as many as pays.

        On a GPU a batch takes little longer than one request; on a CPU it takes as long as they
        take one by one, and all would wait for the last. Each size is tried now and then.
        """
        if not self._seconds:
            return 1
        if self._batches - self._tried.get(waiting, -STALE) >= STALE:
            return waiting
        best = 1
        for size in sorted(self._seconds):
            if size <= waiting and self.expected_s(size) / size < \
                    GAIN * self.expected_s(best) / best:
                best = size
        return best

    def all_s(self, requests: int, most: int) -> float:
        """Return how long so many requests will take, in batches of the best size."""
        sizes = {size for size in self._seconds if size <= most} | {min(requests, most)}
        return min(requests // size * self.expected_s(size) + self.expected_s(requests % size)
                   for size in sizes)


class Batcher(Generic[Q, A]):
    """Has a model compute what robots ask; lives in one asyncio loop, whose clock is its own."""

    def __init__(self, compute: Compute[Q, A], max_batch: int, meters: Meters) -> None:
        """Compute nothing yet."""
        self.pace = Pace()
        self._compute, self._max_batch, self._meters = compute, max_batch, meters
        self._waiting: list[_Job[Q, A]] = []
        self._computed: list[_Job[Q, A]] = []
        self._began = 0.0
        self._turn = 0.0                     # of the request that was taken last
        self._turns: dict[str, float] = {}   # of the last request of each robot
        self._arrived = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    @property
    def wait_s(self) -> float:
        """Return how long a request that comes now would take."""
        left_s = 0.0
        if self._computed:
            left_s = max(0.0, self._began + self.pace.expected_s(len(self._computed))
                         - _now())
        return left_s + self.pace.all_s(len(self._waiting) + 1, self._max_batch)

    @property
    def under_way(self) -> int:
        """Return how many requests wait or are computed."""
        return len(self._waiting) + len(self._computed)

    @property
    def stuck(self) -> bool:
        """Whether a batch takes so long that it will not end."""
        return bool(self._computed) and _now() - self._began > STUCK_S

    def admit(self, until: float) -> None:
        """Raise Refused where a reply would come after ``until`` (steady clock)."""
        wait_s = self.wait_s
        late_s = _now() + wait_s - until
        if late_s > 0 and (self._waiting or self._computed):
            raise Refused(503, f'busy: a reply would take {wait_s:.1f} s, which is {late_s:.1f} s '
                          'too late', 'busy', self._room_s(late_s))

    async def ask(self, question: Q, robot: str, until: float) -> A:
        """Return the reply; raise Refused where it would come too late, and what broke it."""
        self.admit(until)
        turn = self._turns[robot] = max(self._turns.get(robot, 0.0), self._turn) + 1.0
        loop = asyncio.get_running_loop()
        job = _Job(question, loop.time(), until, turn, loop.create_future())
        self._waiting.append(job)
        self._arrived.set()
        if self._loop is None:
            self._loop = loop.create_task(self._run())
        try:
            return await job.reply
        finally:
            if job in self._waiting:
                self._waiting.remove(job)

    def measure(self) -> None:
        """Bring the gauges up to date."""
        self._meters.set({'waiting': len(self._waiting), 'computed': len(self._computed),
                          'wait_seconds': self.wait_s})

    def close(self) -> None:
        """Compute no more."""
        if self._loop is not None:
            self._loop.cancel()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._refuse_the_late()
            batch = self._take()
            if batch:
                await self._answer(batch)
            else:
                self._arrived.clear()

    def _take(self) -> list[_Job[Q, A]]:
        """Return the next batch: who is first, and those after it that are of its kind."""
        self._waiting.sort(key=lambda job: job.turn)  # stable: else in the order of their coming
        batch = [job for job in self._waiting
                 if job.question.kind == self._waiting[0].question.kind][:self._max_batch]
        if batch:
            size = self.pace.best(len(batch))
            while size > 1 and _now() + self.pace.expected_s(size) > min(
                    job.until for job in batch[:size]):
                size -= 1  # a larger one would come too late for somebody
            batch = batch[:size]
            self._waiting = [job for job in self._waiting if job not in batch]
            self._turn = batch[-1].turn
            self._turns = {robot: turn for robot, turn in self._turns.items()
                           if turn > self._turn}
        return batch

    def _room_s(self, late_s: float) -> float:
        """Return when to ask again what is too late by so much: what waits is gone some time."""
        gone_s = max((job.until for job in self._waiting), default=0.0) - _now()
        return max(1.0, min(late_s, gone_s))

    def _refuse_the_late(self) -> None:
        # One that is alone has found an idle server.
        soonest = _now() + (self.pace.expected_s(1) if len(self._waiting) > 1 else 0.0)
        for job in self._waiting:
            if job.until < soonest and not job.reply.done():
                job.reply.set_exception(Refused(
                    503, 'busy: it has waited for too long', 'late',
                    self._room_s(self.wait_s - (job.until - job.began))))
        self._waiting = [job for job in self._waiting if not job.reply.done()]

    async def _answer(self, batch: list[_Job[Q, A]]) -> None:
        """Compute a batch; where that fails, each by itself: one may break what the others ask."""
        self._computed, self._began = batch, _now()
        try:
            answers = await self._compute([job.question for job in batch],
                                          lambda i: batch[i].reply.done())
        except Exception as error:
            self._computed = []
            for job in batch:
                if len(batch) > 1 and not job.reply.done():
                    await self._answer([job])
                elif not job.reply.done():
                    job.reply.set_exception(error)
            return
        took_s = _now() - self._began
        self._computed = []
        unended = all(job.reply.done() for job in batch)
        self.pace.took(len(batch), took_s * (UNENDED if unended else 1.0))
        self._meters.add('batches_total')
        self._meters.add('batched_requests_total', len(batch))
        self._meters.add('batch_seconds_sum', took_s)
        for job, answer in zip(batch, answers):
            if not job.reply.done():
                job.reply.set_result(answer)


def _now() -> float:
    return asyncio.get_running_loop().time()
