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
The systems that are compared: what each publishes, and when, over one stream and one trace.

All of them see the same frames, cloud answers and arrival times. Those that run Context Transfer
use the very object that the context node runs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from .delays import DeliveredReply
from .latencies import Latencies
from .models import CachedAnswer, CachedEdge
from .score import PublishedAnswer
from .streams import Stream
from ...cloud.parse import CloudAnswer
from ...method.facts import Context, Fact, NS, Source, Turn
from ...method.gate import GateConfig
from ...method.transfer import Transfer, TransferConfig

Kind = Literal['edge', 'cloud', 'both', 'transfer', 'none']
FULL, ALONE, OWN_HISTORY = 'full', 'edge alone', 'own history'
UNGUARDED, NO_GATE, STILL = 'no guard', 'no gate', 'still'
SMOOTHED, UNTIL_CHANGED = 'smoothed edge', 'hold until the edge changes'
STACKED, CALIBRATED = 'stacked fusion', 'calibrated'
TUNED_ODDS = 'full, odds tuned'
BOUND = 0.02       # of harm, of the calibrated method
BOUNDS = (0.005, 0.01, BOUND, 0.03, 0.05, 0.1)   # of the curve
UNSURE = 0.8       # of the cascade and the fusion: below this the edge is not believed
OPEN_GATE = GateConfig(age_limit_s=1e9, changed_below=-1.0, cut_below=-1.0)
FOREVER = {'default': 1e6}


def bounded(harm_at_most: float, cautious: bool = False) -> str:
    """Return the name of the calibrated method with a bound."""
    return f'{CALIBRATED}, harm at most {harm_at_most:g}' + ', cautious' * cautious


@dataclass(frozen=True)
class System:
    """One system; ``name`` stands in results.json."""

    name: str
    kind: Kind
    text: str
    ablation: bool = False


SYSTEMS = {s.name: s for s in (
    System(ALONE, 'edge', 'the small model, no history'),
    System(OWN_HISTORY, 'edge', 'the edge given its own past answers, as many and as old as '
           'what the full method gives it'),
    System('hold', 'cloud', 'the newest cloud answer that has arrived'),
    System('cloud only', 'cloud', 'one request at a time, each answer stands until the next '
           'arrives'),
    System('deadline', 'both', "the cloud's answer if it comes within the query's deadline, else "
           "the edge's"),
    System('cascade', 'both', 'an answer that the edge is unsure of is not published but asked '
           'of the cloud'),
    System('fusion', 'both', 'each fact that the edge is unsure of is taken from the newest '
           'cloud answer'),
    System(SMOOTHED, 'edge', "the commonest of the edge's last few values; on own data"),
    System(UNTIL_CHANGED, 'both', "the cloud's value while the edge says what it said of the "
           "cloud's frame; on own data"),
    System(STACKED, 'both', 'whom to believe of the edge alone and the held answer, learned; on '
           'own data'),
    System('majority', 'none', 'the commonest value of each key in training episodes'),
    System('context only', 'transfer', 'history, no focus regions', ablation=True),
    System('focus only', 'transfer', 'focus regions, no history', ablation=True),
    System(NO_GATE, 'transfer', 'history and focus, nothing is ever dropped', ablation=True),
    System(STILL, 'transfer', 'the full method with regions that are not carried along',
           ablation=True),
    System(UNGUARDED, 'transfer', 'history, focus and gate, in one pass: what the edge says with '
           'them stands', ablation=True),
    System(TUNED_ODDS, 'transfer', 'the full method with guard_odds, or one pass, chosen on '
           'tuning sequences; on own data'),
    System(CALIBRATED, 'transfer', 'the full method, whom to believe learned; on own data'),
    System(bounded(BOUND), 'transfer', 'the same with a bound of harm'),
    System(bounded(BOUND, True), 'transfer', 'the same, more careful until no harm is shown'),
    System(FULL, 'transfer', 'history, focus, gate and guard'),
)}
# What the full method is measured against; the oracle is apart, and so are its own parts.
BASELINES = tuple(s.name for s in SYSTEMS.values() if s.kind != 'transfer')


@dataclass(frozen=True)
class Tuned:
    """What is chosen on tuning data; the defaults are those of the worlds."""

    fusion: float = UNSURE
    cascade: float = UNSURE
    smoothed: int = 0          # last answers of the smoothed edge; 0: none of the later baselines


class AskedCloud(Protocol):
    """What is said about frames, and by that who was asked about which."""

    answers: dict[int, CloudAnswer | None]

    def __call__(self, stamp_ns: int) -> CloudAnswer | None:
        """Return what is said about a frame, whenever that arrives; None: nothing."""


@dataclass(frozen=True)
class Inputs:
    """What all systems are given over one stream."""

    stream: Stream
    edge: CachedEdge
    cloud: AskedCloud
    latencies: Latencies


@dataclass
class SystemRun:
    """What a system said over a stream."""

    published: list[PublishedAnswer]
    answers: dict[int, CachedAnswer]     # of the edge, by frame
    contexts: dict[int, Context]         # what it was given, by frame


def edge_alone(inputs: Inputs) -> SystemRun:
    """Answer every frame without context."""
    seconds = inputs.latencies.alone_s
    answers = {s: inputs.edge(s) for s in paced(inputs.stream.edge, seconds)}
    return SystemRun([PublishedAnswer(s + int(seconds * NS), s, a.values)
                      for s, a in answers.items()], answers, {})


def paced(stamps: Sequence[int], seconds: float) -> list[int]:
    """Return the frames that a model is free for that takes so long for one."""
    taken: list[int] = []
    for stamp in stamps:
        if not taken or stamp - taken[-1] >= seconds * NS:
            taken.append(stamp)
    return taken


# Parts of the method that differ in what of a context the edge is given.
CONTEXT_PARTS: Mapping[str, Callable[[Context], Context]] = {
    'context only': lambda context: replace(context, focus={}),
    'focus only': lambda context: replace(context, facts=(), text='')}


def transfer(name: str, inputs: Inputs, replies: Sequence[DeliveredReply]) -> SystemRun:
    """Run Context Transfer, or the part of it that ``name`` says, in the order of time."""
    query = inputs.stream.query
    part = CONTEXT_PARTS.get(name, lambda context: context)
    method = Transfer([replace(query, ttl_s=FOREVER) if name == NO_GATE else query],
                      TransferConfig(gate=OPEN_GATE if name == NO_GATE else GateConfig(),
                                     carry=name != STILL))
    run = SystemRun([], {}, {})
    due = [(r.at_ns, r.turn) for r in replies]
    answered, free_ns = set(inputs.stream.edge), 0
    for now in inputs.stream.frames:
        for at, turn in [d for d in due if d[0] <= now]:
            method.add(turn)
            due.remove((at, turn))
        method.frame(now, inputs.stream.image(now))
        if now in answered and now >= free_ns:
            context = part(method.context(query.id, now))
            answer = inputs.edge(now, context, guarded=name != UNGUARDED)
            at = free_ns = now + int(charged_s(answer, inputs.latencies) * NS)
            run.contexts[now], run.answers[now] = context, answer
            run.published.append(PublishedAnswer(at, now, answer.values))
            due.append((at, Turn(query.id, now, Source.EDGE, answer.facts)))
    return run


def charged_s(answer: CachedAnswer, latencies: Latencies) -> float:
    """Return what an answer with Context Transfer takes."""
    if answer.passes > 1:
        return latencies.both_s
    return latencies.context_s if answer.used_context or answer.used_focus else latencies.alone_s


def own_history(inputs: Inputs, full: SystemRun) -> SystemRun:
    """Give the edge its own answers where the full method gives it what the cloud said."""
    run, free_ns, latencies = SystemRun([], {}, {}), 0, inputs.latencies
    for now in inputs.stream.edge:
        if now < free_ns:
            continue
        cloud_context = full.contexts.get(now)
        facts = []
        for fact in cloud_context.facts if cloud_context is not None else ():
            then = max((s for s in run.answers if s <= min(fact.stamp_ns, now - 1)), default=None)
            if then is not None:
                facts += [Fact(f.key, f.value, fact.stamp_ns) for f in run.answers[then].facts
                          if f.key == fact.key]
        context = Context(inputs.stream.query.id, now, tuple(facts))
        answer = inputs.edge(now, context, guarded=False)
        run.answers[now], run.contexts[now] = answer, context
        seconds = latencies.own_history_s if answer.used_context else latencies.alone_s
        free_ns = now + int(seconds * NS)
        run.published.append(PublishedAnswer(free_ns, now, answer.values))
    return run


def hold(replies: Sequence[DeliveredReply]) -> list[PublishedAnswer]:
    """Publish each cloud answer that is newer than those before."""
    published: list[PublishedAnswer] = []
    for reply in replies:
        stamp = reply.stamp_ns
        if all(p.stamp_ns < stamp for p in published):
            published.append(PublishedAnswer(reply.at_ns, stamp, values(reply.turn.facts)))
    return published


def deadline(alone: SystemRun, held: Sequence[PublishedAnswer], deadline_s: float,
             ) -> list[PublishedAnswer]:
    """Publish the cloud's answer in the place of the edge's where it comes in time."""
    in_time = [h for h in held if h.at_ns - h.stamp_ns <= deadline_s * NS]
    instead = {h.stamp_ns for h in in_time}
    return [p for p in alone.published if p.stamp_ns not in instead] + in_time


def cascade(alone: SystemRun, held: Sequence[PublishedAnswer], unsure: float,
            ) -> list[PublishedAnswer]:
    """Publish sure answers of the edge, and what the cloud says about frames it was unsure of."""
    sure = [p for p in alone.published
            if min((f.confidence for f in alone.answers[p.stamp_ns].facts), default=0) >= unsure]
    stamps = {p.stamp_ns for p in sure}
    return sure + [h for h in held if h.stamp_ns not in stamps]


def fusion(alone: SystemRun, held: Sequence[PublishedAnswer], unsure: float,
           ) -> list[PublishedAnswer]:
    """Publish the edge's answer, unsure facts replaced by the newest that the cloud has said."""
    published = []
    for one in alone.published:
        cloud = next((h.values for h in reversed(held) if h.at_ns <= one.at_ns), {})
        published.append(PublishedAnswer(one.at_ns, one.stamp_ns, {
            f.key: f.value if f.confidence >= unsure else cloud.get(f.key, f.value)
            for f in alone.answers[one.stamp_ns].facts}))
    return published


def until_changed(alone: SystemRun, held: Sequence[PublishedAnswer],
                  ) -> list[PublishedAnswer]:
    """Hold each fact of the cloud while the edge says what it said of the cloud's frame."""
    published = []
    for one in alone.published:
        cloud = next((h for h in reversed(held) if h.at_ns <= one.at_ns), None)
        then = alone.answers.get(cloud.stamp_ns) if cloud is not None else None
        same = then.values.items() & one.values.items() if then is not None else ()
        published.append(replace(one, values={
            **one.values, **{k: cloud.values.get(k, v) for k, v in same if cloud is not None}}))
    return published


def smoothed(alone: SystemRun, n: int) -> list[PublishedAnswer]:
    """Publish the commonest of the edge's last n values of each key; of two, the newer."""
    recent: deque[PublishedAnswer] = deque(maxlen=n)
    published = []
    for one in alone.published:
        recent.appendleft(one)
        published.append(replace(one, values={
            key: Counter(r.values[key] for r in recent if key in r.values).most_common(1)[0][0]
            for key in one.values}))
    return published


def values(facts: Sequence[Fact]) -> dict[str, str]:
    """Return key and value."""
    return {f.key: f.value for f in facts}
