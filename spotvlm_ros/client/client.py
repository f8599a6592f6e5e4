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
"""The answers to one query, subscribed to by a node of yours, which you spin."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
import math
import threading

from builtin_interfaces.msg import Time as TimeMsg
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.task import Future
from rclpy.time import Time
from spotvlm_msgs.msg import Answer, Fact

from .belief import Belief, Hysteresis, NS

BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)  # fits every offer
CHECK_S = 0.05   # facts are looked through for stale ones this often
AHEAD_S = 1.0    # of the node's clock: an answer further ahead is about a frame of another clock
KEPT = 256       # answers that `AnswerClient.at` looks through


@dataclass(frozen=True)
class Rules:
    """
    What is believed. Ages are by the node's clock (ROS time), from a frame's stamp to now [s].

    ``max_age_s`` and ``hysteresis`` are for all keys that are not in ``max_age_of`` and
    ``hysteresis_of``. A value that was said with context is not taken where that context is older
    than ``max_context_age_s``. Answers with an error code are not taken, but for those in
    ``accept``, such as ERROR_TIMEOUT: facts of an answer that came late or is cut short.
    """

    max_age_s: float = 1.0
    max_age_of: Mapping[str, float] = field(default_factory=dict)
    max_context_age_s: float = math.inf
    hysteresis: Hysteresis = Hysteresis()
    hysteresis_of: Mapping[str, Hysteresis] = field(default_factory=dict)
    accept: tuple[int, ...] = ()


@dataclass(frozen=True)
class KnownFact:
    """A value that is steady and fresh. Stamps are of frames [ns, ROS time]."""

    key: str
    value: str
    since_ns: int           # it has been the value since the frame of this stamp
    age_s: float            # now minus the stamp of the newest frame about which it was said [s]
    context_age_s: float    # now minus the stamp of what the context told then; inf without [s]
    confidence: float       # then, 0..1; with context and without are two scales
    origin: int             # then, one of Fact.ORIGIN_*


class AnswerClient:
    """
    Listens to the answers to a query until `destroy`, never blocks, and never spins.

    ``on_answer`` is called with each answer about a newer frame, errors included; ``on_change``
    with the client when a fact gets another value, or none because it has become old. Both run on
    the executor that spins the node; methods may be called from any thread.
    """

    def __init__(self, node: Node, query_id: str, rules: Rules = Rules(), *,
                 on_change: Callable[[AnswerClient], object] | None = None,
                 on_answer: Callable[[Answer], object] | None = None,
                 topic: str = 'answers') -> None:
        """Subscribe to ``topic``, in the node's namespace unless it begins with a slash."""
        self.query_id, self.rules = query_id, rules
        self.counts: Counter[str] = Counter()  # of answers, by what was made of them
        self.newest: Answer | None = None      # about the newest frame, an error perhaps
        self._node, self._on_change, self._on_answer = node, on_change, on_answer
        self._lock = threading.RLock()
        self._beliefs: dict[str, Belief] = {}
        self._said: dict[str, tuple[Fact, int]] = {}  # newest with the value believed, by key
        self._answers: deque[Answer] = deque(maxlen=KEPT)
        self._shown: dict[str, str] = {}
        self._waiting: list[Callable[[Answer | None], object]] = []  # of asyncio
        self._next: Future[Answer] | None = None
        self._subscription = node.create_subscription(
            Answer, topic, self._take, BEST_EFFORT,
            qos_overriding_options=QoSOverridingOptions.with_default_policies())
        self._timer = node.create_timer(CHECK_S, self._tell_changes,
                                        clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._jumps = node.get_clock().create_jump_callback(
            JumpThreshold(min_forward=Duration(seconds=5), min_backward=Duration(nanoseconds=-1),
                          on_clock_change=True), post_callback=lambda jump: self.forget())

    def destroy(self) -> None:
        """End the subscription; what waits for an answer is canceled."""
        self._node.destroy_subscription(self._subscription)
        self._node.destroy_timer(self._timer)
        self._jumps.unregister()
        self._hand_out(None)

    def forget(self) -> None:
        """Forget all answers, as when ROS time jumps."""
        with self._lock:
            self.newest = None
            self._beliefs.clear()
            self._said.clear()
            self._answers.clear()

    # What is known

    def facts(self) -> dict[str, KnownFact]:
        """Return what is known now, by key; what is unknown or too old is missing."""
        with self._lock:
            now_ns = self._now_ns()
            return {key: self._known(key, belief, now_ns)
                    for key, belief in self._beliefs.items() if belief.is_fresh(now_ns)}

    def fact(self, key: str) -> KnownFact | None:
        """Return what is known of a key now, None where that is nothing."""
        return self.facts().get(key)

    def value(self, key: str, default: str = '') -> str:
        """Return the value of a key, ``default`` where it is unknown or too old."""
        fact = self.fact(key)
        return fact.value if fact is not None else default

    @property
    def age_s(self) -> float:
        """Return the age of the newest frame that was answered, inf before the first [s]."""
        newest = self.newest
        return math.inf if newest is None else (self._now_ns() - _stamp_ns(newest)) / NS

    def why_unknown(self, key: str) -> str:
        """Return why nothing is known of a key, '' where something is."""
        with self._lock:
            newest, belief = self.newest, self._beliefs.get(key)
            if self.fact(key) is not None:
                return ''
            if newest is None and self.counts['ahead_of_clock']:
                return "answers are ahead of this node's clock; give it the use_sim_time of the " \
                       'graph, or set the clocks of both hosts by one server'
            if newest is None:
                return f'no answer to {self.query_id!r} yet; is the graph running in the ' \
                       f'namespace of {self._subscription.topic_name}?'
            if self.age_s > self._max_age_s(key):
                return f'the newest answer is about a frame {self.age_s:.1f} s old; is the ' \
                       "graph alive, and its use_sim_time this node's?"
            if newest.error_code and newest.error_code not in self.rules.accept:
                return f'error {newest.error_code}: {newest.error_msg}'
            return f'answers to {self.query_id!r} have no fact {key!r}' if belief is None else \
                f'no value of {key!r} was said often enough'

    def at(self, stamp: TimeMsg, within_s: float = 0.1) -> Answer | None:
        """Return the answer about the frame nearest to a stamp, None where none is near [s]."""
        wanted_ns = Time.from_msg(stamp).nanoseconds
        with self._lock:
            near = min(self._answers, key=lambda a: abs(_stamp_ns(a) - wanted_ns), default=None)
        return near if near is not None and \
            abs(_stamp_ns(near) - wanted_ns) <= within_s * NS else None

    # Waiting

    def next_answer(self) -> Future[Answer]:
        """
        Return the next answer, for callbacks and coroutines of rclpy; canceled by `destroy`.

        All who ask before it comes get the same future.
        """
        with self._lock:
            if self._next is None or self._next.done():
                self._next = Future(executor=self._node.executor)
            return self._next

    async def wait(self, timeout_s: float | None = None) -> Answer:
        """
        Return the next answer, for asyncio; another thread, or another task, spins the node.

        Raise TimeoutError where none comes in time, CancelledError after `destroy`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def settle(answer: Answer | None) -> None:
            if not future.done():
                future.cancel() if answer is None else future.set_result(answer)

        def hand_over(answer: Answer | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, answer)
        with self._lock:
            self._waiting.append(hand_over)
        try:
            return await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError as error:  # before Python 3.11, another one
            raise TimeoutError(*error.args) from None
        finally:
            with self._lock:
                if hand_over in self._waiting:
                    self._waiting.remove(hand_over)

    # On the executor

    def _take(self, answer: Answer) -> None:
        if answer.query_id != self.query_id:
            return
        with self._lock:
            stamp_ns, ahead_ns = _stamp_ns(answer), _stamp_ns(answer) - self._now_ns()
            late = self.newest is not None and stamp_ns <= _stamp_ns(self.newest)
            what = 'ahead_of_clock' if ahead_ns > AHEAD_S * NS else 'out_of_order' if late else \
                f'error_{answer.error_code}' if answer.error_code else 'taken'
            self.counts[what] += 1
            if late or what == 'ahead_of_clock':
                return
            self.newest = answer
            self._answers.append(answer)
            if not answer.error_code or answer.error_code in self.rules.accept:
                for fact in answer.facts:
                    self._believe(fact, answer, stamp_ns)
        self._hand_out(answer)
        if self._on_answer is not None:
            self._on_answer(answer)
        self._tell_changes()

    def _believe(self, fact: Fact, answer: Answer, stamp_ns: int) -> None:
        # Of what is held from an earlier answer the frame is older than that of this answer.
        held = fact.origin == Fact.ORIGIN_HELD
        seen_ns = min(Time.from_msg(fact.stamp).nanoseconds, stamp_ns) if held else stamp_ns
        context_ns = seen_ns if held else answer.used_context and \
            stamp_ns - Duration.from_msg(answer.context_age).nanoseconds
        if fact.origin != Fact.ORIGIN_OWN and context_ns and \
                self._now_ns() - context_ns > self.rules.max_context_age_s * NS:
            self.counts['facts_of_old_context'] += 1
            return
        belief = self._beliefs.get(fact.key)
        if belief is None:
            rule = self.rules.hysteresis_of.get(fact.key, self.rules.hysteresis)
            belief = self._beliefs[fact.key] = Belief(rule, self._max_age_s(fact.key))
        belief.see(fact.value, fact.confidence, seen_ns)
        if fact.value == belief.value:
            self._said[fact.key] = fact, context_ns

    def _known(self, key: str, belief: Belief, now_ns: int) -> KnownFact:
        fact, context_ns = self._said[key]
        return KnownFact(
            key, fact.value, belief.since_ns, (now_ns - belief.said_ns) / NS,
            (now_ns - context_ns) / NS if context_ns else math.inf, fact.confidence, fact.origin)

    def _tell_changes(self) -> None:
        """Call ``on_change`` where what is known is another than the last time."""
        values = {key: fact.value for key, fact in self.facts().items()}
        if values != self._shown:
            self._shown = values
            if self._on_change is not None:
                self._on_change(self)

    def _hand_out(self, answer: Answer | None) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            future, self._next = self._next, None
        if future is not None and not future.done():
            future.cancel() if answer is None else future.set_result(answer)
        for give in waiting:
            give(answer)

    def _max_age_s(self, key: str) -> float:
        return self.rules.max_age_of.get(key, self.rules.max_age_s)

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)


def _stamp_ns(answer: Answer) -> int:
    return int(Time.from_msg(answer.header.stamp).nanoseconds)
