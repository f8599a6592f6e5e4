# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
Keyframes out, cloud answers in, however late; one asyncio thread, nobody ever waits for it.

``offer`` is called with every frame and only decides; reading pixels, encoding and HTTP happen on
threads of this module, and so does the callback with the answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
import statistics
import threading
import time

from .breaker import Breaker, State
from .client import CloudClient, CloudConfig, CloudError
from .parse import BoxScale, parse_reply
from ..method.facts import Fact, Query
from ..method.keyframes import next_keyframe
from ..method.prompt import cloud_question

ROUND_TRIPS = 64  # kept for the percentiles


@dataclass(frozen=True)
class Photo:
    """A keyframe as it is sent; ``width`` and ``height`` are the camera's [pixels]."""

    jpeg: bytes
    width: int
    height: int
    scale: float = 1.0  # side of the image sent over the camera's


@dataclass(frozen=True)
class CloudAnswer:
    """A reply about the frame of ``stamp_ns``."""

    query_id: str
    stamp_ns: int
    facts: tuple[Fact, ...]
    text: str
    rejected: list[str]
    wait_s: float        # offer to request: reading and encoding the frame
    round_trip_s: float  # request to reply, emulated part included
    emulated_s: float


@dataclass
class Stats:
    """Counts since start."""

    requests: int = 0
    answers: int = 0
    errors: int = 0
    skipped: int = 0
    facts_rejected: int = 0
    bytes_sent: int = 0
    last_error: str = ''
    round_trips_s: deque[float] = field(default_factory=lambda: deque(maxlen=ROUND_TRIPS))
    emulated_s: deque[float] = field(default_factory=lambda: deque(maxlen=ROUND_TRIPS))


class CloudBridge:
    """Keeps at most ``max_in_flight`` questions with the cloud."""

    def __init__(self, config: CloudConfig, queries: Sequence[Query],
                 on_answer: Callable[[CloudAnswer], None], *, max_in_flight: int = 2,
                 box_scale: BoxScale = 'relative',
                 on_error: Callable[[str], None] = lambda text: None) -> None:
        """Start the thread; nothing is sent before the first offer."""
        self.config, self.max_in_flight, self.box_scale = config, max_in_flight, box_scale
        self.stats = Stats()
        self.breaker = Breaker()
        self.in_flight = 0
        self._queries = {q.id: q for q in queries}
        self._on_answer, self._on_error = on_answer, on_error
        self._last_sent: dict[str, int] = {}
        self._skip_noted: set[str] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self._loop = asyncio.new_event_loop()
        self._client = CloudClient(config)
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name='cloud', daemon=True)
        self._thread.start()

    def offer(self, stamp_ns: int, load: Callable[[], Photo]) -> str | None:
        """Send the frame if a query is due; return that query's id. Quick, from any thread."""
        with self._lock:
            due = next_keyframe(self._queries.values(), self._last_sent, stamp_ns, 0, 1)
            if due is None or self._stopped:
                return None
            if self.in_flight >= self.max_in_flight or not self.breaker.allow(time.monotonic()):
                self.stats.skipped += due not in self._skip_noted
                self._skip_noted.add(due)
                return None
            self._skip_noted.discard(due)
            self._last_sent[due] = stamp_ns
            self.in_flight += 1
        offered = time.monotonic()
        self._loop.call_soon_threadsafe(self._spawn, self._queries[due], stamp_ns, load, offered)
        return due

    def reset(self) -> None:
        """Forget when frames were sent (clock jump, stream restart)."""
        with self._lock:
            self._last_sent.clear()

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
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        self._loop.close()
        return True

    def round_trip_s(self, share: float) -> float:
        """Return a percentile (share 0..1) of the last round trips; 0 before the first."""
        return percentile(self.stats.round_trips_s, share)

    @property
    def emulated_delay_s(self) -> float:
        """Median of the delay added on purpose."""
        return statistics.median(self.stats.emulated_s) if self.stats.emulated_s else 0.0

    def _spawn(self, query: Query, stamp_ns: int, load: Callable[[], Photo],
               offered: float) -> None:
        task = self._loop.create_task(self._ask(query, stamp_ns, load, offered))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, query: Query, stamp_ns: int, load: Callable[[], Photo],
                   offered: float) -> None:
        answer, error, down = None, '', False
        try:
            photo = await asyncio.to_thread(load)
            self.stats.requests += 1
            self.stats.bytes_sent += len(photo.jpeg)
            wait = time.monotonic() - offered
            raw = await self._client.ask(photo.jpeg, cloud_question(query))
            reply = parse_reply(query, raw.text, stamp_ns, (photo.width, photo.height),
                                photo.scale, self.box_scale)
            answer = CloudAnswer(query.id, stamp_ns, reply.facts, reply.text, reply.rejected,
                                 wait, raw.round_trip_s, raw.emulated_s)
        except CloudError as failure:
            error, down = str(failure), True
        except ValueError as failure:  # the frame could not be decoded: not the server's fault
            error = str(failure)
        except Exception as failure:  # a bug of ours must not silence the cloud for good
            error = f'{type(failure).__name__}: {failure}'
        finally:
            self._settle(query.id, answer, error, down)
        if answer is not None and not self._stopped:
            self._on_answer(answer)
        elif error and not self._stopped:
            self._on_error(error)

    def _settle(self, query_id: str, answer: CloudAnswer | None, error: str, down: bool) -> None:
        with self._lock:
            self.in_flight -= 1
            if answer is not None:
                self.breaker.success()
                self.stats.answers += 1
                self.stats.facts_rejected += len(answer.rejected)
                self.stats.round_trips_s.append(answer.round_trip_s)
                self.stats.emulated_s.append(answer.emulated_s)
                self.stats.last_error = ''
                return
            if self.breaker.state is State.HALF_OPEN or down:
                self.breaker.failure(time.monotonic())
            if error:
                self.stats.errors += 1
                self.stats.last_error = error
            self._last_sent.pop(query_id, None)  # due again as soon as the breaker allows

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()


def percentile(values: Sequence[float] | deque[float], share: float) -> float:
    """Return the value below which a share (0..1) of the values lies; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
