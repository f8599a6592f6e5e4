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
Two ways to learn from samples: the miniature's loop, and one for any family.

The first takes samples that workers have made, hundreds a step. The second makes them as it goes
and gives them to the model one at a time, as the engine would: slow, but nothing about a family
needs to be known but how to load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from .samples import answer_ids, Example, Sampler
from .student import Student
from ..mini.training import fit
from ..mini.training.fit import augmented, forward, IGNORED, MiniatureLearner, Mirror, Plan
from ..mini.training.rendering import SILENT

AT_ONCE = 240       # validation samples in one batch
FILLED = {'attention_mask': 1, 'token_type_ids': 0, 'mm_token_type_ids': 0}
# Half of the samples have no context; as SHARES of the miniature.
SHARES = (0.42, 0.08, 0.08, 0.42)


class Learner(fit.Learner, Protocol):
    """A model with its samples, some of them to validate on."""

    def validate(self, context: bool) -> tuple[float, float]:
        """Return loss and share of right facts on validation samples, alone or with context."""


class PlainLearner(MiniatureLearner):
    """A model of the miniature's architecture."""

    def __init__(self, student: Student, mirrors: tuple[Mirror, Mirror], plan: Plan) -> None:
        """Take mirrors of samples to train on, and of those to validate on."""
        self._pad = student.processor.tokenizer.pad_token_id or 0
        super().__init__(student.model, mirrors[0], plan, self._pad)
        self._held_out = mirrors[1]

    def validate(self, context: bool) -> tuple[float, float]:
        """Return loss and share of right facts, each token given those before it."""
        losses, right, known = [], 0, 0
        self._model.eval()
        for begin in range(0, self._held_out.n, AT_ONCE):
            numbers = np.arange(begin, min(begin + AT_ONCE, self._held_out.n))
            told = np.full(len(numbers), context)
            batch = self._held_out.gather(numbers, told, told, self._pad)
            cuda = self._device.type == 'cuda'
            with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=cuda):
                logits = forward(self._model, self._positions, batch.pixels / 127.5 - 1.0,
                                 batch.tokens, batch.places).float()
            losses.append(functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()))
            hits = right_facts(logits.argmax(-1), batch.targets, batch.slots)
            right, known = right + hits[0], known + hits[1]
        self._model.train()
        return float(torch.stack(losses).mean()), right / max(1, known)


def right_facts(said: torch.Tensor, targets: torch.Tensor, slots: torch.Tensor) -> tuple[int, int]:
    """Return how many facts are right in all of their tokens, and how many there are."""
    right = known = 0
    for slot in range(int(slots.max()) + 1):
        tokens = (slots == slot) & (targets != IGNORED)
        there = tokens.any(dim=1)
        right += int((((said == targets) | ~tokens).all(dim=1) & there).sum())
        known += int(there.sum())
    return right, known


class FamilyLearner:
    """A model of any family, one sample at a time."""

    def __init__(self, student: Student, sampler: Sampler, held_out: Sequence[Example],
                 plan: Plan, device: str) -> None:
        """Move the model to a device."""
        self._student, self._sampler, self._held_out = student, sampler, held_out
        self._plan, self._device = plan, torch.device(device)
        self._model = student.model.to(self._device).train()
        self._rng = np.random.default_rng(plan.seed + 1)
        self.samples = 0

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Return what is trained."""
        return [p for p in self._model.parameters() if p.requires_grad]

    def learn(self) -> torch.Tensor:
        """Add the gradients of one batch; return its loss."""
        total = torch.zeros((), device=self._device)
        for _ in range(self._plan.batch):
            clip, stamp = self._sampler.draw(self._rng)
            example = self._sampler.varied(clip, stamp, self._rng)
            kind = int(self._rng.choice(4, p=SHARES))
            loss = self._run(example, kind < 2, kind in (0, 2), self._rng)[0] / self._plan.batch
            loss.backward()
            total += loss.detach()
        self.samples += self._plan.batch
        return total

    def validate(self, context: bool) -> tuple[float, float]:
        """Return loss and share of right facts, each token given those before it."""
        self._model.eval()
        losses, right, known = 0.0, 0, 0
        with torch.no_grad():
            for example in self._held_out:
                loss, hits = self._run(example, context, context)
                losses, right, known = losses + float(loss), right + hits[0], known + hits[1]
        self._model.train()
        return losses / max(1, len(self._held_out)), right / max(1, known)

    def _run(self, example: Example, told: bool, shown: bool,
             rng: np.random.Generator | None = None) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the loss of one sample, and how many facts are right and known."""
        edge = self._student.edge
        given = [edge.model_inputs(example.frame, example.query, example.context if with_context
                                   else None, example.stamp_ns) for with_context in (told, shown)]
        views = given[1].images
        if rng is not None:
            pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)[None].float()
            varied = ((augmented(pixels, rng)[0] + 1.0) * 127.5).round().to(torch.uint8)
            views = list(varied.permute(0, 2, 3, 1).contiguous().numpy())
        answer, slots = answer_ids(edge, example)
        inputs = edge.inputs.process(given[0].chat, views)
        inputs['input_ids'] = torch.cat([inputs['input_ids'], torch.tensor([answer])], dim=1)
        for name, value in FILLED.items():
            if name in inputs:
                inputs[name] = functional.pad(inputs[name], (0, len(answer)), value=value)
        cuda = self._device.type == 'cuda'
        with torch.autocast(self._device.type, torch.bfloat16, enabled=cuda):
            logits = self._model(**{k: v.to(self._device) for k, v in inputs.items()}).logits
        logits = logits[:, -len(answer) - 1:-1].float()
        slot = torch.tensor([slots], device=self._device)
        targets = torch.tensor([answer], device=self._device).where(slot != SILENT,
                                                                    torch.tensor(IGNORED))
        loss = functional.cross_entropy(logits[0], targets[0])
        return loss, right_facts(logits.argmax(-1), targets, slot)
