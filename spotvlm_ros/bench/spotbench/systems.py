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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .delays import Reply
from .latencies import Latencies
from .models import Answer, Edge
from .score import Said
from .streams import Stream
from ...method.facts import Context, Fact, NS, Query, Source, Turn
from ...method.gate import GateConfig
from ...method.transfer import Transfer, TransferConfig

Kind = Literal['edge', 'cloud', 'both', 'transfer', 'none']
UNSURE = 0.8       # of the cascade and the fusion: below this the edge is not believed
OPEN_GATE = GateConfig(age_limit_s=1e9, changed_below=-1.0, cut_below=-1.0)
FOREVER = {'default': 1e6}


@dataclass(frozen=True)
class System:
    """One system; ``name`` stands in results.json."""

    name: str
    kind: Kind
    text: str
    ablation: bool = False


SYSTEMS = {s.name: s for s in (
    System('edge alone', 'edge', 'the small model, no history'),
    System('own history', 'edge', 'the edge told its own past answers, as many and as old as '
           'what the full method tells it'),
    System('hold', 'cloud', 'the newest cloud answer that has arrived'),
    System('cloud only', 'cloud', 'one request at a time, each answer stands until the next '
           'arrives'),
    System('deadline', 'both', "the cloud's answer if it comes within the query's deadline, else "
           "the edge's"),
    System('cascade', 'both', 'an answer that the edge is unsure of is not published but asked '
           'of the cloud'),
    System('fusion', 'both', 'each fact that the edge is unsure of is taken from the newest '
           'cloud answer'),
    System('majority', 'none', 'the commonest value of each key in training episodes'),
    System('context only', 'transfer', 'history, no focus regions', ablation=True),
    System('focus only', 'transfer', 'focus regions, no history', ablation=True),
    System('no gate', 'transfer', 'history and focus, nothing is ever dropped', ablation=True),
    System('still', 'transfer', 'the full method with regions that are not carried along',
           ablation=True),
    System('no guard', 'transfer', 'history, focus and gate, in one pass: what the edge says with '
           'them stands', ablation=True),
    System('full', 'transfer', 'history, focus, gate and guard'),
)}
FULL, ALONE, OWN, UNGUARDED = 'full', 'edge alone', 'own history', 'no guard'
# What the full method is measured against; the oracle is apart, and so are its own parts.
BASELINES = tuple(s.name for s in SYSTEMS.values() if s.kind != 'transfer')


@dataclass
class Run:
    """What a system said over a stream."""

    said: list[Said]
    answers: dict[int, Answer]           # of the edge, by frame
    contexts: dict[int, Context]         # what it was given, by frame


def edge_alone(stream: Stream, edge: Edge, took: Latencies) -> Run:
    """Answer every frame without context."""
    stamps = paced(stream.edge, took.alone_s)
    answers = {s: edge(s) for s in stamps}
    return Run([Said(s + int(took.alone_s * NS), s, a.values) for s, a in answers.items()],
               answers, {})


def paced(stamps: Sequence[int], seconds: float) -> list[int]:
    """Return the frames that a model is free for that takes so long for one."""
    taken: list[int] = []
    for stamp in stamps:
        if not taken or stamp - taken[-1] >= seconds * NS:
            taken.append(stamp)
    return taken


def transfer(name: str, stream: Stream, edge: Edge, turns: Mapping[int, Turn],
             replies: Sequence[Reply], took: Latencies) -> Run:
    """Run Context Transfer, or a part of it."""
    query, config = stream.query, TransferConfig()
    if name == 'no gate':
        query, config = replace(query, ttl_s=FOREVER), replace(config, gate=OPEN_GATE)
    if name == 'still':
        config = replace(config, carry=False)
    change: Callable[[Context], Context] = {
        'context only': lambda c: replace(c, focus={}),
        'focus only': lambda c: replace(c, facts=(), text='')}.get(name, lambda c: c)
    return run_transfer(Transfer([query], config), query, stream, edge, turns, replies, took,
                        change, name != UNGUARDED)


def run_transfer(method: Transfer, query: Query, stream: Stream, edge: Edge,
                 turns: Mapping[int, Turn], replies: Sequence[Reply], took: Latencies,
                 change: Callable[[Context], Context] = lambda c: c,
                 guarded: bool = True) -> Run:
    """Feed an instance of the method in the order of time."""
    run = Run([], {}, {})
    due: list[tuple[int, Turn]] = [(r.at_ns, turns[r.stamp_ns]) for r in replies
                                   if r.stamp_ns in turns]
    ticks, free_ns = set(stream.edge), 0
    for now in stream.frames:
        for at, turn in [d for d in due if d[0] <= now]:
            method.add(turn)
            due.remove((at, turn))
        method.frame(now, stream.image(now))
        if now in ticks and now >= free_ns:
            context = change(method.context(query.id, now))
            answer = edge(now, context, guarded=guarded)
            helped = answer.used_context or answer.used_focus
            seconds = took.both_s if answer.passes > 1 else \
                took.context_s if helped else took.alone_s
            at = free_ns = now + int(seconds * NS)
            run.contexts[now], run.answers[now] = context, answer
            run.said.append(Said(at, now, answer.values))
            due.append((at, Turn(query.id, now, Source.EDGE, answer.facts)))
    return run


def own_history(stream: Stream, edge: Edge, full: Run, took: Latencies) -> Run:
    """Tell the edge its own answers where the full method tells what the cloud said."""
    run, free_ns = Run([], {}, {}), 0
    for now in stream.edge:
        if now < free_ns:
            continue
        told = full.contexts.get(now)
        facts = []
        for fact in told.facts if told is not None else ():
            then = max((s for s in run.answers if s <= min(fact.stamp_ns, now - 1)), default=None)
            if then is not None:
                facts += [Fact(f.key, f.value, fact.stamp_ns) for f in run.answers[then].facts
                          if f.key == fact.key]
        context = Context(stream.query.id, now, tuple(facts))
        answer = edge(now, context, guarded=False)
        run.answers[now], run.contexts[now] = answer, context
        seconds = took.told_s if answer.used_context else took.alone_s
        free_ns = now + int(seconds * NS)
        run.said.append(Said(free_ns, now, answer.values))
    return run


def hold(turns: Mapping[int, Turn], replies: Sequence[Reply]) -> list[Said]:
    """Publish each cloud answer that is newer than those before."""
    said: list[Said] = []
    for reply in replies:
        if reply.stamp_ns in turns and all(s.stamp_ns < reply.stamp_ns for s in said):
            said.append(Said(reply.at_ns, reply.stamp_ns, values(turns[reply.stamp_ns].facts)))
    return said


def deadline(stream: Stream, alone: Run, turns: Mapping[int, Turn], replies: Sequence[Reply],
             ) -> list[Said]:
    """Publish the cloud's answer in the place of the edge's where it comes in time."""
    in_time = [s for s in hold(turns, replies)
               if s.at_ns - s.stamp_ns <= stream.query.deadline_s * NS]
    instead = {s.stamp_ns for s in in_time}
    return [s for s in alone.said if s.stamp_ns not in instead] + in_time


def cascade(alone: Run, turns: Mapping[int, Turn], replies: Sequence[Reply], unsure: float,
            ) -> list[Said]:
    """Publish sure answers of the edge, and what the cloud says about frames it was unsure of."""
    sure = [s for s in alone.said
            if min((f.confidence for f in alone.answers[s.stamp_ns].facts), default=0) >= unsure]
    known = {s.stamp_ns for s in sure}
    return sure + [s for s in hold(turns, replies) if s.stamp_ns not in known]


def fusion(alone: Run, turns: Mapping[int, Turn], replies: Sequence[Reply], unsure: float,
           ) -> list[Said]:
    """Publish the edge's answer, unsure facts replaced by the newest that the cloud has said."""
    held = hold(turns, replies)
    said = []
    for one in alone.said:
        cloud = next((h.values for h in reversed(held) if h.at_ns <= one.at_ns), {})
        said.append(Said(one.at_ns, one.stamp_ns, {
            f.key: f.value if f.confidence >= unsure else cloud.get(f.key, f.value)
            for f in alone.answers[one.stamp_ns].facts}))
    return said


def values(facts: Sequence[Fact]) -> dict[str, str]:
    """Return key and value."""
    return {f.key: f.value for f in facts}
