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
Several servers in order of preference: the first that is well and has room gets the request.

A server that fails is left alone by its breaker; when its pause is over, one request tries it,
and when that is answered, all go there again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
import statistics

from .breaker import Breaker, State
from .budget import Budget, Cost, NAMES
from .client import CloudClient, CloudServer
from .errors import CloudError, CloudRefused, CloudTimeout, PASSING
from .reply import RawReply
from .wording import ask_text
from ..method.facts import Query

ALONE_S = 2.0    # longest pause of a breaker where there is no other server
BESIDE_S = 15.0  # and where another serves meanwhile
DENIED_S = 10.0  # pause after a refusal that only a person can mend (key, address, model)
IMAGE_TOKENS = 1000  # guess of what an image costs, until a server reports it
CHARS_PER_TOKEN = 3
IMPLAUSIBLE = 100    # times the guess
PATIENCE = 3.0    # times the usual round trip
LEAST_PATIENCE_S = 1.0
SHRINK = 0.6     # after HTTP 413
LEAST_BYTES = 8192  # a server that finds this too large takes no images


class Endpoint:
    """A server, and what is known of it."""

    def __init__(self, server: CloudServer, alone: bool) -> None:
        """Connect lazily."""
        self.server, self.config = server, server.config
        self.client = CloudClient(server)
        self.breaker = Breaker(longest_s=ALONE_S) if alone else \
            Breaker(threshold=2, longest_s=BESIDE_S)
        self.in_flight = 0
        self.requests = self.answers = self.errors = self.usage_missing = 0
        self.paused_until = 0.0   # as the server has asked for, steady clock [s]
        self.max_image_bytes = 0  # what it found too large is not sent again
        self._costs: deque[Cost] = deque(maxlen=16)
        self._late = 0            # requests in a row without a reply in time
        self._round_trips_s: deque[float] = deque(maxlen=16)

    @property
    def room(self) -> bool:
        """Whether one more request may be under way."""
        return not self.config.concurrency or self.in_flight < self.config.concurrency

    @property
    def expected(self) -> Cost:
        """Return what the next request will probably cost, by the plausible ones before it."""
        costs = self._costs or (self._guess(0, 0),)
        return Cost(*(statistics.median(getattr(c, name) for c in costs) for name in NAMES))

    def estimate(self, jpeg_bytes: int, query: Query) -> Cost:
        """Return what a request will probably cost."""
        said = len(self.config.system_prompt) + len(ask_text(query, self.config, True))
        guess = self._guess(jpeg_bytes * 4 // 3 + said + 400, said)
        expected = self.expected if self._costs else guess
        return Cost(guess.bytes, expected.tokens, expected.money)

    def actual(self, reply: RawReply, estimate: Cost, refused: bool) -> Cost:
        """Return what a request has cost: as the server says, else as guessed."""
        if not reply.began:
            return Cost()
        size = float(reply.bytes_sent + reply.bytes_received)
        if refused:
            return Cost(size)
        if reply.usage is None or sum(reply.usage) > IMPLAUSIBLE * self._guess(0, 0).tokens:
            self.usage_missing += reply.finished
            return Cost(size, estimate.tokens, estimate.money)
        cost = Cost(size, sum(reply.usage), self._money(*reply.usage))
        self._costs.append(cost)
        return cost

    def patience_s(self, left_s: float) -> float:
        """
        Return how long to wait where waiting longer would keep another request from going [s].

        Doubled after each time it was too short: a server may have become slow for good.
        """
        usual = left_s / 2
        if self._round_trips_s:
            usual = max(LEAST_PATIENCE_S, PATIENCE * statistics.median(self._round_trips_s))
        return min(left_s, usual * 2.0 ** min(self._late, 8))

    def pause(self, now: float) -> str:
        """Return until when the server is left alone because it asked for it, '' if it is not."""
        left_s = self.paused_until - now
        if left_s <= 0:
            return ''
        end = datetime.now(timezone.utc) + timedelta(seconds=left_s)
        return f'{end:%Y-%m-%d %H:%M:%S} UTC'

    def succeeded(self, round_trip_s: float, now: float) -> None:
        """Note an answer."""
        self.answers += 1
        self._late = 0
        self._round_trips_s.append(round_trip_s)
        if now >= self.paused_until:
            self.breaker.success()

    def failed(self, error: CloudError, now: float, jpeg_bytes: int) -> None:
        """Note a request without an answer."""
        self.errors += 1
        self._late += isinstance(error, CloudTimeout)
        if not isinstance(error, CloudRefused):
            self.breaker.failure(now)
        elif error.status == 413 and jpeg_bytes > LEAST_BYTES:  # the server is well
            self.breaker.success()
            self.max_image_bytes = max(LEAST_BYTES, int(SHRINK * jpeg_bytes))
        elif error.retry_after_s:
            self.breaker.open_for(now, error.retry_after_s)
            self.paused_until = self.breaker.retry_at
        elif error.status not in PASSING and self.breaker.state is not State.CLOSED:
            self.breaker.open_for(now, DENIED_S)
        else:
            self.breaker.failure(now)

    def report(self, now: float) -> dict[str, str | float]:
        """Return how the server is, for diagnostics."""
        return {f'{self.server.name}.{key}': value for key, value in (
            ('breaker', self.breaker.state.name.lower()), ('paused_until', self.pause(now)),
            ('in_flight', self.in_flight),
            ('requests', self.requests), ('answers', self.answers), ('errors', self.errors),
            ('dialect', self.client.dialect.name.lower()),
            ('usage_missing', self.usage_missing))}

    def _guess(self, size: int, question: int) -> Cost:
        prompt = IMAGE_TOKENS + question // CHARS_PER_TOKEN
        completion = self.config.max_tokens
        return Cost(size, prompt + completion, self._money(prompt, completion))

    def _money(self, prompt: int, completion: int) -> float:
        config = self.config
        return config.price_request + 1e-6 * (
            prompt * config.price_input + completion * config.price_output)


@dataclass(frozen=True)
class Request:
    """A request that a server is about to get."""

    endpoint: Endpoint
    cost: Cost          # as estimated; taken from the budget until the real one is known
    deadline_s: float


class EndpointPool:
    """Picks the server for a request. Not thread-safe: the bridge holds its lock."""

    def __init__(self, servers: Sequence[CloudServer], budget: Budget) -> None:
        """Keep the servers in order of preference."""
        if not servers:
            raise ValueError('no server is named; set base_url')
        names = [s.name for s in servers]
        if len(set(names)) != len(names):
            raise ValueError(f'two servers have one name: {names}; name each once')
        self.endpoints = [Endpoint(s, len(servers) == 1) for s in servers]
        self.serving = self.endpoints[0]  # answered last
        self.budget = budget

    def pick(self, now: float, without: Collection[Endpoint] = ()) -> Endpoint | str:
        """Return the server for the next request, or why there is none."""
        why = 'breaker'
        for endpoint in self.endpoints:
            if endpoint in without or not (endpoint.breaker.ready(now) and endpoint.server.up()):
                continue
            if not endpoint.room:
                why = 'busy'
                continue
            lacking = self.budget.lacking(endpoint.expected, now)
            if not lacking:
                return endpoint
            why = f'budget_{lacking}'
        return why

    def begin(self, jpeg_bytes: int, query: Query, left_s: float, now: float,
              without: Collection[Endpoint]) -> Request | str:
        """
        Take a server and the budget for a request that is useful for ``left_s`` longer.

        Return why that cannot be where it cannot.
        """
        endpoint = self.pick(now, without)
        if isinstance(endpoint, str):
            return endpoint
        cost = endpoint.estimate(jpeg_bytes, query)
        lacking = self.budget.lacking(cost, now)
        if lacking:
            return f'budget_{lacking}'
        endpoint.breaker.allow(now)
        # A trial holds all others up, and so does a request that another server could answer.
        brief = endpoint.breaker.state is State.HALF_OPEN or isinstance(
            self.pick(now, [*without, endpoint]), Endpoint)
        endpoint.in_flight += 1
        endpoint.requests += 1
        self.budget.take(cost, now)
        return Request(endpoint, cost, endpoint.patience_s(left_s) if brief else left_s)

    def end(self, request: Request, reply: RawReply, failure: CloudError | None,
            jpeg_bytes: int, now: float) -> None:
        """Note what a request cost and how it ended; without reply or failure it was given up."""
        endpoint = request.endpoint
        endpoint.in_flight -= 1
        refused = isinstance(failure, CloudRefused)
        self.budget.take(endpoint.actual(reply, request.cost, refused) - request.cost, now)
        if failure is not None:
            endpoint.failed(failure, now, jpeg_bytes)
        elif reply.round_trip_s:
            endpoint.succeeded(reply.round_trip_s, now)
        else:
            endpoint.breaker.abandon(now)

    def next_at(self, now: float) -> float:
        """Return when a server may be asked again."""
        return min(now if e.breaker.ready(now) else e.breaker.retry_at for e in self.endpoints)

    def pauses(self, now: float) -> str:
        """Return which servers have asked to be left alone, and until when; '' for none."""
        return '; '.join(
            f'{e.config.base_url} has asked for a pause (Retry-After) and is left alone until '
            f'{end}; raise cloud_period_s, or name a fallback'
            for e in self.endpoints if (end := e.pause(now)))

    @property
    def failing(self) -> list[str]:
        """Return the addresses of the servers that are left alone or on trial."""
        return [e.config.base_url for e in self.endpoints if e.breaker.state is not State.CLOSED]

    def report(self, now: float) -> dict[str, str | float]:
        """Return what was spent and how the servers are, flat, for diagnostics."""
        spent, limit = self.budget.spent(now), self.budget.per_hour
        report: dict[str, str | float] = {
            'spent_hour_mb': spent.bytes / 1e6, 'spent_hour_tokens': int(spent.tokens),
            'spent_hour_money': spent.money, 'spent_total_money': self.budget.total.money,
            'budget_mb': limit.bytes / 1e6, 'budget_tokens': int(limit.tokens),
            'budget_money': limit.money}
        for endpoint in self.endpoints:
            report |= endpoint.report(now)
        return report
