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
"""One stream through all systems, controls and delays, by the simulated clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import systems
from .controls import BLANK, Change, CONTROLS, OTHER
from .delays import HEADLINE, replies, Reply, Trace, TRACES
from .latencies import Latencies
from .models import Answer, Edge
from .score import Said
from .streams import Plan, Stream
from .systems import ALONE, FULL, OWN, Run, SYSTEMS
from .tally import Board, Name, Tally
from ...method.facts import Context, Turn

NOT = '-'   # delay of systems that know none


@dataclass(frozen=True)
class Extent:
    """How much is run."""

    delays: tuple[str, ...]
    ablations: bool = True                           # at the headline delay
    controls: bool = True                            # likewise
    ablation_delays: tuple[str, ...] = (HEADLINE,)


class Replay:
    """Everything about one stream."""

    def __init__(self, stream: Stream, plan: Plan, edge: Edge, turns: Mapping[int, Turn],
                 took: Latencies, majority: Mapping[str, str] | None = None) -> None:
        """Answer all frames without context, which everything is measured against."""
        self.stream, self.plan, self.edge, self.turns, self.took = stream, plan, edge, turns, took
        self.majority = ({'majority': [Said(stream.frames[0], stream.frames[0], majority)]}
                         if majority else {})
        self.end_ns = max(*stream.frames, *stream.labels)
        self.tally = Tally()
        self.board = Board(stream, self.tally)
        self.alone = systems.edge_alone(stream, edge, took)
        self.alone_grid = self.board.grid(self.alone.said)
        self.full: dict[str, Run] = {}

    def run(self, extent: Extent) -> Tally:
        """Score every system at every delay, and the controls at the headline one."""
        for delay in extent.delays:
            self._delay(TRACES[delay], extent)
        self._oracle()
        self._offline(ALONE, NOT, self.alone.answers)
        self._check_of_the_check()
        if extent.controls and HEADLINE in self.full:
            for name, change in CONTROLS.items():
                self.control(name, change, self.full[HEADLINE].contexts)
            self._steady_controls()
        return self.tally

    def arrivals(self, trace: Trace, in_flight: int | None = None) -> list[Reply]:
        """Return the replies of a trace."""
        more = {} if in_flight is None else {'max_in_flight': in_flight}
        return replies(trace, self.stream.keys, self.stream.query, self.stream.seed, self.end_ns,
                       **more)

    def transfer(self, name: str, came: Sequence[Reply]) -> Run:
        """Run Context Transfer or a part of it."""
        return systems.transfer(name, self.stream, self.edge, self.turns, came, self.took)

    def _delay(self, trace: Trace, extent: Extent) -> None:
        stream, alone, turns = self.stream, self.alone, self.turns
        came = self.arrivals(trace)
        one_by_one = self.arrivals(trace, in_flight=1)
        held = systems.hold(turns, came)
        full = self.full[trace.name] = self.transfer(FULL, came)
        own = systems.own_history(stream, self.edge, full, self.took)
        said = {
            ALONE: alone.said, OWN: own.said, 'hold': held,
            'cloud only': systems.hold(turns, one_by_one),
            'deadline': systems.deadline(stream, alone, turns, came),
            'cascade': systems.cascade(alone, turns, came, systems.UNSURE),
            'fusion': systems.fusion(alone, turns, came, systems.UNSURE),
            **self.majority, FULL: full.said}
        runs = {FULL: full, OWN: own}
        if extent.ablations and trace.name in extent.ablation_delays:
            runs |= {s.name: self.transfer(s.name, came) for s in SYSTEMS.values() if s.ablation}
        said |= {name: run.said for name, run in runs.items()}
        slices = self.board.slices(held)
        for name, published in said.items():
            grid = self.board.grid(published)
            self.board.streaming(name, trace.name, grid, self.alone_grid, slices)
            self.board.answered(name, trace.name, published)
            self.board.latency(name, trace.name, published)
        for name, run in runs.items():
            self._offline(name, trace.name, run.answers)
            self._used(name, trace.name, run)

    def _scored(self, answers: Mapping[int, Answer]) -> dict[int, Answer]:
        return {s: a for s, a in answers.items() if s >= self.stream.labels[0]}

    def _offline(self, system: str, delay: str, answers: Mapping[int, Answer]) -> None:
        """Count every answer against its own frame, no clock."""
        for stamp, answer in self._scored(answers).items():
            self._frame(Name(system, delay, 'all', 'offline'), stamp, answer.values)

    def _used(self, system: str, delay: str, run: Run) -> None:
        for stamp, answer in self._scored(run.answers).items():
            block = self.board.block_at(stamp)
            for metric, used in (('context_used', answer.used_context),
                                 ('focus_used', answer.used_focus)):
                self.tally.add(block, Name(system, delay, 'all', metric), used, 1)

    def _frame(self, name: Name, stamp: int, said: Mapping[str, str]) -> None:
        truth = self.stream.truth(stamp)
        self.tally.add(self.board.block_at(stamp), name,
                       sum(said.get(k) == v for k, v in truth.items()), len(truth))

    def _oracle(self) -> None:
        """Count the cloud about its own frames: what it would be worth without any delay."""
        for stamp, turn in self.turns.items():
            if stamp >= self.stream.labels[0]:
                self._frame(Name('cloud, zero latency (oracle)', NOT, 'all', 'offline'), stamp,
                            systems.values(turn.facts))

    def _check_of_the_check(self) -> None:
        """Score against labels of another time: a benchmark that works must notice."""
        shift = self.plan.shift_s
        name = f'labels shifted by {shift:g} s'
        everything = self.board.slices([])['all']
        truth = [Said(t, t, self.stream.truth(t)) for t in self.stream.labels]
        said = {'truth': truth, ALONE: self.alone.said, **self.majority}
        said |= {FULL: self.full[d].said for d in self.full if d == HEADLINE}
        for system, published in said.items():
            delay = HEADLINE if system == FULL else NOT
            self.board.count(Name(system, delay, name, 'accuracy'),
                             self.board.grid(published, shift), everything)

    def control(self, name: str, change: Change, contexts: Mapping[int, Context]) -> None:
        """Ask the edge again with changed contexts, on every so many-th frame."""
        for stamp in self._control_frames():
            if stamp in contexts:
                context = change(contexts[stamp], self.stream)
                answer = self.edge(stamp, context, blank=name == BLANK)
                self._control(name, stamp, answer, context)

    def _steady_controls(self) -> None:
        """Count the unchanged answers on the frames of the controls."""
        for stamp in self._control_frames():
            if stamp in self.full[HEADLINE].contexts:
                told = self.full[HEADLINE].contexts[stamp]
                self._control('full, same frames', stamp, self.full[HEADLINE].answers[stamp],
                              told)
                self._control('edge alone, same frames', stamp, self.edge(stamp), told)
                self._control('blank image, no context', stamp, self.edge(stamp, blank=True),
                              told)

    def _control_frames(self) -> list[int]:
        scored = [s for s in self.stream.edge if s >= self.stream.labels[0]]
        return scored[::self.plan.control_every]

    def _control(self, name: str, stamp: int, answer: Answer, context: Context) -> None:
        """Count right facts, and told facts that the answer repeats."""
        self._frame(Name(name, HEADLINE, 'control frames', 'offline'), stamp, answer.values)
        self.tally.add(self.board.block_at(stamp),
                       Name(name, HEADLINE, 'control frames', 'repeats_context'),
                       sum(answer.values.get(f.key) == f.value for f in context.facts),
                       len(context.facts))

    def other(self, contexts: Mapping[int, Context]) -> None:
        """Run the control that takes the contexts of another episode of the same set."""
        self.control(OTHER, lambda context, stream: context, contexts)
