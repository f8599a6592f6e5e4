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
from functools import cached_property

from . import systems
from .controls import BLANK, Change, CONTROLS, OTHER
from .delays import DeliveredReply, HEADLINE, MAX_IN_FLIGHT, SimulatedCloud, Trace, TRACES
from .models import CachedAnswer
from .score import Grid, PublishedAnswer
from .streams import Sampling, Stream
from .systems import ALONE, FULL, Inputs, OWN_HISTORY, SystemRun, SYSTEMS, Tuned
from .tally import CountKey, StreamScorer, Tally
from ...config.nodes import CloudNodeConfig
from ...method.facts import Context
from ...method.keyframes import is_unsure, SceneCutDetector

NO_DELAY = '-'   # delay of systems that know none


@dataclass(frozen=True)
class RunScope:
    """How much is run."""

    delays: tuple[str, ...]
    ablations: bool = True                           # at the headline delay
    controls: bool = True                            # likewise
    ablation_delays: tuple[str, ...] = (HEADLINE,)


class Replay:
    """Everything about one stream."""

    def __init__(self, inputs: Inputs, sampling: Sampling,
                 majority: Mapping[str, str] | None = None) -> None:
        """Answer all frames without context, which everything is measured against."""
        self.inputs, self.stream, self.sampling = inputs, inputs.stream, sampling
        self.tuned = Tuned()
        begin_ns = self.stream.frames[0]
        self.majority = ({'majority': [PublishedAnswer(begin_ns, begin_ns, majority)]}
                         if majority else {})
        self.end_ns = max(*self.stream.frames, *self.stream.labels)
        self.tally = Tally()
        self.scorer = StreamScorer(self.stream, self.tally)
        self.alone = systems.edge_alone(inputs)
        self.alone_grid = self.scorer.grid(self.alone.published)
        self.full: dict[str, SystemRun] = {}
        self._slices: dict[str, dict[str, Grid]] = {}

    def run(self, scope: RunScope) -> Tally:
        """Score every system at every delay, and the controls at the headline one."""
        for delay in scope.delays:
            self._delay(TRACES[delay], scope)
        self._oracle()
        self._offline(ALONE, NO_DELAY, self.alone.answers)
        self._check_of_the_check()
        if scope.controls and HEADLINE in self.full:
            for name, change in CONTROLS.items():
                self.control(name, change, self.full[HEADLINE].contexts)
            self._steady_controls()
        return self.tally

    @cached_property
    def cloud(self) -> SimulatedCloud:
        """Return the cloud over this stream, before any trace."""
        return SimulatedCloud(
            self.stream.query, self.stream.edge, self.inputs.cloud, self.stream.seed,
            urgent_times(self.stream, self.alone), self.end_ns)

    def arrivals(self, trace: Trace, in_flight: int = MAX_IN_FLIGHT) -> list[DeliveredReply]:
        """Return the replies of a trace."""
        return self.cloud.replies(trace, in_flight)

    def transfer(self, name: str, replies: Sequence[DeliveredReply]) -> SystemRun:
        """Run Context Transfer or a part of it."""
        return systems.transfer(name, self.inputs, replies)

    def _delay(self, trace: Trace, scope: RunScope) -> None:
        alone, replies = self.alone, self.arrivals(trace)
        held = systems.hold(replies)
        full = self.full[trace.name] = self.transfer(FULL, replies)
        runs = {FULL: full, OWN_HISTORY: systems.own_history(self.inputs, full)}
        if scope.ablations and trace.name in scope.ablation_delays:
            runs |= {s.name: self.transfer(s.name, replies)
                     for s in SYSTEMS.values() if s.ablation}
        published = {
            ALONE: alone.published, 'hold': held,
            'cloud only': systems.hold(self.arrivals(trace, in_flight=1)),
            'deadline': systems.deadline(alone, held, self.stream.query.deadline_s),
            'cascade': systems.cascade(alone, held, self.tuned.cascade),
            'fusion': systems.fusion(alone, held, self.tuned.fusion), **self.majority,
            **{name: run.published for name, run in runs.items()}}
        if self.tuned.smoothed:
            published |= {systems.SMOOTHED: systems.smoothed(alone, self.tuned.smoothed),
                          systems.UNTIL_CHANGED: systems.until_changed(alone, held)}
        self._slices[trace.name] = self.scorer.slices(held)
        for name, answers in published.items():
            self.score(name, trace.name, answers)
        for name, run in runs.items():
            self._offline(name, trace.name, run.answers)
            self._used(name, trace.name, run)

    def score(self, name: str, delay: str, published: Sequence[PublishedAnswer]) -> None:
        """Count what a system published at a delay that has been run."""
        self.scorer.streaming(name, delay, self.scorer.grid(published), self.alone_grid,
                              self._slices[delay])
        self.scorer.answered(name, delay, published)
        self.scorer.latency(name, delay, published)

    def _scored(self, answers: Mapping[int, CachedAnswer]) -> dict[int, CachedAnswer]:
        return {s: a for s, a in answers.items() if s >= self.stream.labels[0]}

    def _offline(self, system: str, delay: str, answers: Mapping[int, CachedAnswer]) -> None:
        """Count every answer against its own frame, no clock."""
        for stamp, answer in self._scored(answers).items():
            self._frame(CountKey(system, delay, 'all', 'offline'), stamp, answer.values)

    def _used(self, system: str, delay: str, run: SystemRun) -> None:
        for stamp, answer in self._scored(run.answers).items():
            block = self.scorer.block_at(stamp)
            for metric, used in (('context_used', answer.used_context),
                                 ('focus_used', answer.used_focus)):
                self.tally.add(block, CountKey(system, delay, 'all', metric), used, 1)

    def _frame(self, name: CountKey, stamp: int, values: Mapping[str, str]) -> None:
        truth = self.stream.truth(stamp)
        self.tally.add(self.scorer.block_at(stamp), name,
                       sum(values.get(k) == v for k, v in truth.items()), len(truth))

    def _oracle(self) -> None:
        """Count the cloud about its own frames: what it would be worth without any delay."""
        name = CountKey('cloud, zero latency (oracle)', NO_DELAY, 'all', 'offline')
        for stamp, answer in sorted(self.inputs.cloud.answers.items()):
            if answer is not None and stamp >= self.stream.labels[0]:
                self._frame(name, stamp, systems.values(answer.facts))

    def _check_of_the_check(self) -> None:
        """Score against labels of another time: a benchmark that works must notice."""
        seconds = self.sampling.shift_s
        shifted = self.scorer.shifted(seconds)
        name = f'labels shifted by {f"{seconds:g} s" if seconds else "half of them"}'
        everything = self.scorer.slices([])['all']
        truth = [PublishedAnswer(t, t, self.stream.truth(t)) for t in self.stream.labels]
        published = {'truth': truth, ALONE: self.alone.published, **self.majority}
        if HEADLINE in self.full:
            published[FULL] = self.full[HEADLINE].published
        for system, answers in published.items():
            delay = HEADLINE if system == FULL else NO_DELAY
            self.scorer.count(CountKey(system, delay, name, 'accuracy'),
                              self.scorer.grid(answers, shifted), everything)

    def control(self, name: str, change: Change, contexts: Mapping[int, Context]) -> None:
        """Ask the edge again with changed contexts, on every so many-th frame."""
        for stamp in self._control_frames():
            if stamp in contexts:
                context = change(contexts[stamp], self.stream)
                # The guard would answer a blank picture without context.
                answer = self.inputs.edge(stamp, context, blank=name == BLANK,
                                          guarded=name != BLANK)
                self._control(name, stamp, answer, context)

    def _steady_controls(self) -> None:
        """Count the unchanged answers on the frames of the controls."""
        full, edge = self.full[HEADLINE], self.inputs.edge
        for stamp in self._control_frames():
            if stamp in full.contexts:
                context = full.contexts[stamp]
                for name, answer in (('full, same frames', full.answers[stamp]),
                                     ('edge alone, same frames', edge(stamp)),
                                     ('blank image, no context', edge(stamp, blank=True))):
                    self._control(name, stamp, answer, context)

    def _control_frames(self) -> list[int]:
        scored = [s for s in self.stream.edge if s >= self.stream.labels[0]]
        return scored[::self.sampling.control_every]

    def _control(self, name: str, stamp: int, answer: CachedAnswer, context: Context) -> None:
        """Count right facts, and facts of the context that the answer repeats."""
        self._frame(CountKey(name, HEADLINE, 'control frames', 'offline'), stamp, answer.values)
        self.tally.add(self.scorer.block_at(stamp),
                       CountKey(name, HEADLINE, 'control frames', 'repeats_context'),
                       sum(answer.values.get(f.key) == f.value for f in context.facts),
                       len(context.facts))

    def other(self, contexts: Mapping[int, Context]) -> None:
        """Run the control that takes the contexts of another episode of the same set."""
        self.control(OTHER, lambda context, stream: context, contexts)


def urgent_times(stream: Stream, alone: SystemRun) -> list[int]:
    """Return when scene cuts, and unsure answers of the edge alone, ask for a keyframe."""
    rules, detector, times = CloudNodeConfig(), SceneCutDetector(), []
    for stamp in stream.edge:
        if detector.is_due(stamp) and detector.update(stamp, stream.image(stamp),
                                                      rules.cut_below):
            times.append(stamp)
    for one in alone.published:
        confidences = [f.confidence for f in alone.answers[one.stamp_ns].facts]
        if is_unsure(confidences, rules.unsure_below):
            times.append(one.at_ns)
    return sorted(times)
