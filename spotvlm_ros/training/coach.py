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
"""Watches a training: tells how it goes, validates, keeps the best, saves where it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
import sys
import time
from typing import TYPE_CHECKING

import torch

from .learners import Learner
from ..mini.training.fit import Plan, State

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from ..mini.training.fit import Progress

STATE = 'training_state.pt'
TELL_S = 30.0         # between lines where there is no terminal
VALIDATIONS = 40      # over the whole training, at most
SMOOTH = 3            # validations of which the mean is to be as high as possible: each is noisy
SHARE = 0.2           # of the time that validating may take


@dataclass
class Point:
    """One validation: loss and share of right facts, alone and with context."""

    step: int
    seconds: float
    loss: dict[str, float]
    accuracy: dict[str, float]

    @property
    def worth(self) -> float:
        """Return how good it was; of equals the loss decides."""
        return sum(self.accuracy.values()) - 1e-3 * sum(self.loss.values())


@dataclass
class Coach:
    """Called after each step; says when to stop."""

    learner: Learner
    plan: Plan
    out: Path
    model: torch.nn.Module
    save_s: float = 60.0
    patience: int = 12                      # validations without a better one, then stop
    curve: list[Point] = field(default_factory=list)
    stopped_early: bool = False
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    _bar: Bar | None = None
    _last: Progress | None = None
    _told_s: float = field(default_factory=time.monotonic)
    _saved_s: float = field(default_factory=time.monotonic)
    _judged: float = 0.0                    # share of the plan done at the last validation
    _judging_s: float = 0.0                 # spent validating

    def __call__(self, progress: Progress) -> bool:
        """Take note of a step; return whether to stop."""
        self._last = progress
        part = max(progress.step / self.plan.steps, progress.seconds / self.plan.limit)
        due = progress.logged and part - self._judged >= 1 / VALIDATIONS
        if progress.last or due and self._judging_s <= SHARE * progress.seconds:
            self._judged = part
            self._validate(progress)
        behind = len(self.curve) - 1 - self._best_place()
        self.stopped_early = behind >= self.patience and not progress.last
        self._tell(progress, part)
        if self.stopped_early or progress.last or \
                time.monotonic() - self._saved_s > self.save_s:
            self.save(progress.state())
        return self.stopped_early

    def resume(self) -> State | None:
        """Load weights and return where an earlier run stopped, None where nothing was saved."""
        path = self.out / STATE
        if not path.is_file():
            return None
        try:
            saved = torch.load(path, map_location='cpu', weights_only=True)
        except Exception as error:  # of any type: a file of somebody else
            first = str(error).splitlines()[0][:200]
            raise ValueError(f'{path} cannot be read: {first}; remove the folder to start over'
                             ) from error
        self.model.load_state_dict(saved['weights'], strict=False)
        self.best = saved['best']
        self.curve = [Point(**point) for point in saved['curve']]
        state: State = saved['state']
        return state

    def save(self, state: State) -> None:
        """Write all that ``resume`` needs."""
        self._saved_s = time.monotonic()
        path = self.out / STATE
        torch.save({'state': state, 'weights': self._weights(), 'best': self.best,
                    'curve': [vars(point) for point in self.curve]}, path.with_suffix('.new'))
        path.with_suffix('.new').replace(path)

    def load_best(self) -> Point:
        """Give the model the weights that did best; return how well they did."""
        self.model.load_state_dict(self.best, strict=False)
        return self.curve[self._best_place()]

    def interrupted(self) -> None:
        """Save where the training was stopped."""
        if self._last is not None:
            self.save(self._last.state())

    def close(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().cpu().clone()
                for name, weight in self.model.named_parameters() if weight.requires_grad}

    def _best_place(self) -> int:
        first = min(SMOOTH, len(self.curve))    # the mean of fewer says less
        worth = [sum(point.worth for point in self.curve[end - first:end])
                 for end in range(first, len(self.curve) + 1)]
        return first - 1 + worth.index(max(worth))

    def _validate(self, progress: Progress) -> None:
        begin = time.monotonic()
        found = {name: self.learner.validate(name == 'context') for name in ('alone', 'context')}
        self.curve.append(Point(progress.step, progress.seconds,
                                {name: round(loss, 5) for name, (loss, _) in found.items()},
                                {name: round(share, 4) for name, (_, share) in found.items()}))
        if self._best_place() == len(self.curve) - 1:
            self.best = self._weights()
        self._judging_s += time.monotonic() - begin

    def _tell(self, progress: Progress, part: float) -> None:
        loss = f'loss {progress.log[-1]["loss"]:.3f}' if progress.log else ''
        if self.curve:
            right = self.curve[-1].accuracy
            loss += f', right alone {right["alone"]:.3f}, with context {right["context"]:.3f}'
        if sys.stderr.isatty():
            from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn
            if self._bar is None:
                self._bar = Bar(TextColumn('{task.description}'), BarColumn(),
                                TimeRemainingColumn())
                self._bar.add_task('', total=1.0)
                self._bar.start()
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=part, description=f'step {progress.step}: {loss}')
        elif progress.last or self.stopped_early or time.monotonic() - self._told_s >= TELL_S:
            self._told_s = time.monotonic()
            print(f'step {progress.step} of {self.plan.steps}, {progress.seconds:.0f} s: {loss}',
                  flush=True)
