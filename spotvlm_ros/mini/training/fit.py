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
"""The training loop of the miniature architecture, whatever its samples show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
import math
import time
from typing import Protocol, TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt

from .rendering import Rendering, SILENT, Store

if TYPE_CHECKING:
    import torch
    from transformers import Idefics3ForConditionalGeneration as Model

# Share of edge samples with context and focus, with context alone, with focus alone, with neither.
SHARES = (0.50, 0.10, 0.08, 0.32)
SHIFT = 2                                    # pictures are moved by up to so many pixels
Numbers = npt.NDArray[np.int64]              # of samples
Mask = npt.NDArray[np.bool_]
Log = list[dict[str, float]]                 # now and then: step, loss, samples, lr, seconds

IGNORED = -100                               # a target that cross_entropy leaves out


@dataclass(frozen=True)
class Batch:
    """What one step of training takes, on the device."""

    pixels: torch.Tensor    # batch x images x 3 x side x side, 0 to 255, or varied -1 to 1
    tokens: torch.Tensor    # batch x LENGTH: prompt, answer and padding
    places: torch.Tensor    # batch x ANSWER: where the tokens of the answer are predicted
    targets: torch.Tensor   # batch x ANSWER: those tokens, or IGNORED
    slots: torch.Tensor     # batch x ANSWER: which fact a token is of, see ``Store``


class Mirror:
    """A store on the training device, where gathering a batch is far faster than copying it."""

    def __init__(self, store: Store, rendering: Rendering, device: torch.device,
                 shares: tuple[float, ...] = SHARES) -> None:
        """Make room for all samples; ``shares`` as SHARES, for samples of two variants."""
        import torch

        self.room, self.device, self.n = store.room, device, 0
        self._rendering, self._shares = rendering, shares
        self._pairs = [(torch.from_numpy(a), torch.empty(a.shape, device=device,
                                                         dtype=torch.from_numpy(a[:0]).dtype))
                       for a in (store.images, store.ids, store.start, store.length,
                                 store.slots)]
        self.refresh()

    def refresh(self) -> int:
        """Copy what has been rendered since; return how many samples there are."""
        ready = self._rendering.ready()
        for source, target in self._pairs:
            if ready > self.n:
                target[self.n:ready] = source[self.n:ready].to(target.device)
        self.n = ready
        return ready

    def batch(self, numbers: Numbers, rng: np.random.Generator, pad: int) -> Batch:
        """Return the samples of these numbers, varied, filled up with token ``pad``."""
        kind = rng.choice(4, len(numbers), p=self._shares)
        batch = self.gather(numbers, kind < 2, (kind == 0) | (kind == 2), pad)
        return replace(batch, pixels=augmented(batch.pixels, rng))

    def gather(self, numbers: Numbers, told: Mask, shown: Mask, pad: int) -> Batch:
        """
        Return samples as they are, with context where ``told``, with focus where ``shown``.

        Both count for samples of two variants only. Pixels are 0 to 255.
        """
        import torch

        images, ids, start, length, slots = (target for _, target in self._pairs)
        device = ids.device
        picked = torch.from_numpy(numbers).to(device)
        if self.room.variants == 2:
            variant = torch.from_numpy(told.astype(np.int64)).to(device)
            view = torch.from_numpy(np.where(shown, 2, 1)).to(device)
            x = torch.stack([images[picked, 0], images[picked, view]], dim=1)
        else:
            variant = torch.zeros_like(picked)
            x = images[picked]
        first, end = (t[picked, variant].long()[:, None] for t in (start, length))
        columns = torch.arange(ids.shape[2], device=device)
        tokens = torch.where(columns < end, ids[picked, variant].long(), pad)
        # The token at place p is predicted at place p - 1.
        places = first - 1 + torch.arange(self.room.answer, device=device)
        learnt = (places + 1 < end) & (slots[picked] != SILENT)
        places = places.clamp(max=ids.shape[2] - 2)
        targets = torch.where(learnt, tokens.gather(1, places + 1), IGNORED)
        return Batch(x.permute(0, 1, 4, 2, 3), tokens, places, targets, slots[picked])


def augmented(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """
    Vary light, noise and place of pictures.

    Takes batch x n x 3 x side x side, 0 to 255, and returns the same from -1 to 1.
    """
    import torch
    from torch.nn import functional

    n, side = len(x), x.shape[-1]
    gain = rng.uniform(0.8, 1.2, (n, 1, 1, 1, 1)) * rng.uniform(0.93, 1.07, (n, 1, 3, 1, 1))
    x = x * torch.from_numpy(gain.astype(np.float32)).to(x.device)
    noise = torch.from_numpy(rng.uniform(0, 6, (n, 1, 1, 1, 1)).astype(np.float32)).to(x.device)
    x = (x + noise * torch.randn_like(x)).clamp(0, 255) / 127.5 - 1.0
    x = functional.pad(x.flatten(0, 1), [SHIFT] * 4, mode='replicate')
    dx, dy = (int(v) for v in rng.integers(0, 2 * SHIFT + 1, 2))
    return x[..., dy:dy + side, dx:dx + side].unflatten(0, (n, -1))


def batches(mirror: Mirror, plan: Plan) -> Iterator[Numbers]:
    """Yield the numbers of each step's samples, every ready one once per epoch."""
    rng = np.random.default_rng(plan.seed)
    order = np.empty(0, dtype=np.int64)
    while True:
        while len(order) < plan.batch:
            order = np.concatenate([order, rng.permutation(mirror.refresh())])
        yield order[:plan.batch]
        order = order[plan.batch:]


def positions_of(model: Model, side: int) -> torch.Tensor:
    """Return the position ids that the vision tower gives to the patches of one image."""
    import torch

    positions: list[torch.Tensor] = []
    tower = model.model.vision_model
    hook = tower.embeddings.position_embedding.register_forward_pre_hook(
        lambda _, inputs: positions.append(inputs[0][0]))
    with torch.no_grad():
        tower(pixel_values=torch.zeros(1, 3, side, side, device=model.device))
    hook.remove()
    return positions[0]


def forward(model: Model, positions: torch.Tensor, x: torch.Tensor, tokens: torch.Tensor,
            places: torch.Tensor) -> torch.Tensor:
    """
    Return the logits at the places where the answer is predicted; see ``Batch``.

    The model's own parts, put together without masks: all images are whole, and padding comes
    after everything that counts. That makes shapes constant and lets fast kernels run.
    """
    tower = model.model.vision_model
    patches = tower.embeddings.patch_embedding(x.flatten(0, 1)).flatten(2).transpose(1, 2)
    patches = patches + tower.embeddings.position_embedding(positions)
    features = tower.post_layernorm(tower.encoder(inputs_embeds=patches,
                                                  attention_mask=None).last_hidden_state)
    embeds = model.get_input_embeddings()(tokens)
    visual = (tokens == model.config.image_token_id).unsqueeze(-1).expand_as(embeds)
    embeds = embeds.masked_scatter(visual, model.model.connector(features).to(embeds.dtype))
    hidden = model.model.text_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return model.lm_head(hidden.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])))


@dataclass(frozen=True)
class Plan:
    """How long and how fast one model learns."""

    batch: int
    steps: int
    rate: float             # peak learning rate
    limit: float            # [s]
    warm_up: int            # steps of rising rate
    seed: int = 1
    compile: bool = False   # noqa: A003

    def factor(self, step: int, seconds: float) -> float:
        """Warm up, then cosine over the steps or the time allowed, whichever ends first."""
        warm = min(self.warm_up, self.steps // 10 + 1)
        passed = max(step / self.steps, seconds / self.limit)
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(1.0, passed))) + 0.01)

    def logs(self, step: int) -> bool:
        """Whether a line of the log is due after so many steps."""
        return step % min(50, max(1, self.steps // 20)) == 0


class Learner(Protocol):
    """A model with its samples."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Return what is trained."""

    @property
    def samples(self) -> int:
        """Return how many samples there are by now."""

    def learn(self) -> torch.Tensor:
        """Add the gradients of one batch; return its loss."""


class MiniatureLearner:
    """A model of the miniature's architecture, and a mirror of its samples."""

    def __init__(self, model: Model, mirror: Mirror, plan: Plan, pad: int) -> None:
        """Move the model to the device of the mirror."""
        import torch

        self._mirror, self._pad, self._device = mirror, pad, mirror.device
        self._positions = positions_of(model, mirror.room.side).to(mirror.device)
        self._model = model.to(mirror.device).train()
        self._run = torch.compile(forward) if plan.compile else forward
        self._rng = np.random.default_rng(plan.seed + 1)
        self._numbers = batches(mirror, plan)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Return what is trained."""
        return [p for p in self._model.parameters() if p.requires_grad]

    @property
    def samples(self) -> int:
        """Return how many samples there are by now."""
        return self._mirror.n

    def learn(self) -> torch.Tensor:
        """Add the gradients of one batch; return its loss."""
        import torch
        from torch.nn import functional

        batch = self._mirror.batch(next(self._numbers), self._rng, self._pad)
        cuda = self._device.type == 'cuda'
        with torch.autocast(self._device.type, torch.bfloat16, enabled=cuda):
            logits = self._run(self._model, self._positions, batch.pixels, batch.tokens,
                               batch.places)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())
        loss.backward()
        return loss.detach()


class State(TypedDict):
    """What a training goes on from, beside the weights."""

    step: int
    seconds: float
    log: Log
    optimizer: dict[str, object]


@dataclass(frozen=True)
class Progress:
    """Where a training is after a step."""

    step: int
    seconds: float
    log: Log
    logged: bool                    # whether the log has a line for this step
    last: bool                      # whether the plan ends here
    state: Callable[[], State] = field(repr=False)


Watch = Callable[[Progress], bool]  # called after each step; True: stop


def _state(step: int, seconds: float, log: Log, optimizer: torch.optim.Optimizer) -> State:
    return {'step': step, 'seconds': seconds, 'log': log, 'optimizer': optimizer.state_dict()}


def fit(learner: Learner, plan: Plan, watch: Watch, begun: State | None = None) -> Log:
    """Train the model in place; return the log. ``begun``: where an earlier run stopped."""
    import torch

    parameters = learner.parameters
    optimizer = torch.optim.AdamW(
        [{'params': [p for p in parameters if p.ndim >= 2], 'weight_decay': 0.1},
         {'params': [p for p in parameters if p.ndim < 2], 'weight_decay': 0.0}],
        lr=plan.rate, betas=(0.9, 0.98), fused=parameters[0].is_cuda)
    log: Log = list(begun['log']) if begun else []
    first, earlier = (begun['step'], begun['seconds']) if begun else (0, 0.0)
    if begun:
        optimizer.load_state_dict(begun['optimizer'])
    begin = time.perf_counter() - earlier
    for step in range(first + 1, plan.steps + 1):
        rate = plan.rate * plan.factor(step - 1, time.perf_counter() - begin)
        for group in optimizer.param_groups:
            group['lr'] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = learner.learn()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        seconds = time.perf_counter() - begin
        last = step == plan.steps or seconds > plan.limit
        logged = plan.logs(step) or last
        if logged:
            smooth = 0.8 * log[-1]['loss'] + 0.2 * loss.item() if log else loss.item()
            log.append({'step': step, 'loss': round(smooth, 5), 'samples': learner.samples,
                        'lr': round(rate, 7), 'seconds': round(seconds, 1)})
        state = partial(_state, step, seconds, log, optimizer)
        if watch(Progress(step, seconds, log, logged, last, state)) or last:
            break
    return log
