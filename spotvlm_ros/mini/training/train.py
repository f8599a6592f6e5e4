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
Trains the two miniature models from scratch on the synthetic worlds (`spotvlm train`).

Frames of both worlds are rendered once, by other processes, and training begins beside that. The
edge model comes first. The cloud model starts from its weights and learns to read the same picture
as tiles at several times the resolution, and to say where it saw what. Minutes on one GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import dataset
from .dataset import CLOUD_REPLY_FORM
from .rendering import ANSWER, PER_DRIVE, Rendering, RenderJob, Store
from .score import evaluate, Log, Meta, Record, write_card
from ..hri.hands import HandBank
from ..models import add_tile_tags, build_model, build_processor, build_tokenizer, CLOUD, EDGE
from ..models import Shape
from ..shipped import checkpoint_path, REPLY_FORM
from ..worlds import NAMES

if TYPE_CHECKING:
    import torch
    from transformers import Idefics3ForConditionalGeneration as Model
    from transformers import PreTrainedTokenizerFast

# Share of edge samples with context and focus, with context alone, with focus alone, with neither.
SHARES = (0.50, 0.10, 0.08, 0.32)
SHIFT = 2                                    # pictures are moved by up to so many pixels
Numbers = npt.NDArray[np.int64]              # of samples


IGNORED = -100                               # a target that cross_entropy leaves out


@dataclass(frozen=True)
class Batch:
    """What one step of training takes, on the device."""

    pixels: torch.Tensor    # batch x images x 3 x side x side, -1 to 1
    tokens: torch.Tensor    # batch x LENGTH: prompt, answer and padding
    places: torch.Tensor    # batch x ANSWER: where the tokens of the answer are predicted
    targets: torch.Tensor   # batch x ANSWER: those tokens, or IGNORED


class Mirror:
    """A store on the training device, where gathering a batch is far faster than copying it."""

    def __init__(self, store: Store, rendering: Rendering, device: torch.device) -> None:
        """Make room for all samples."""
        import torch

        self.shape, self._rendering, self.n = store.shape, rendering, 0
        self._pairs = [(torch.from_numpy(a), torch.empty(a.shape, device=device,
                                                         dtype=torch.from_numpy(a[:0]).dtype))
                       for a in (store.images, store.ids, store.start, store.length)]
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
        """Return the samples of these numbers, filled up with token ``pad``."""
        import torch

        images, ids, start, length = (target for _, target in self._pairs)
        device = ids.device
        picked = torch.from_numpy(numbers).to(device)
        if self.shape is EDGE:
            kind = rng.choice(4, len(numbers), p=SHARES)
            variant = torch.from_numpy((kind < 2).astype(np.int64)).to(device)
            view = torch.from_numpy(np.where((kind == 0) | (kind == 2), 2, 1)).to(device)
            x = torch.stack([images[picked, 0], images[picked, view]], dim=1)
        else:
            variant = torch.zeros_like(picked)
            x = images[picked]
        x = _augmented(x.permute(0, 1, 4, 2, 3), rng)
        first, end = (t[picked, variant].long()[:, None] for t in (start, length))
        columns = torch.arange(ids.shape[2], device=device)
        tokens = torch.where(columns < end, ids[picked, variant].long(), pad)
        # The token at place p is predicted at place p - 1.
        places = first - 1 + torch.arange(ANSWER[self.shape.name], device=device)
        inside = places + 1 < end
        places = places.clamp(max=ids.shape[2] - 2)
        return Batch(x, tokens, places, torch.where(inside, tokens.gather(1, places + 1), IGNORED))


def _augmented(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
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


def batches(mirror: Mirror, size: int, steps: int, seed: int) -> Iterator[Numbers]:
    """Yield the numbers of each step's samples, every ready one once per epoch."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(mirror.refresh())])
        yield order[:size]
        order = order[size:]


def _positions(model: Model, side: int) -> torch.Tensor:
    """Return the position ids that the vision tower gives to the patches of one image."""
    import torch

    positions: list[torch.Tensor] = []
    tower = model.model.vision_model
    hook = tower.embeddings.position_embedding.register_forward_pre_hook(
        lambda _, inputs: positions.append(inputs[0][0]))
    with torch.no_grad():
        tower(pixel_values=torch.zeros(1, 3, side, side))
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
    rate: float      # peak learning rate
    limit: float     # [s]
    warm_up: int     # steps of rising rate

    @classmethod
    def of(cls, args: argparse.Namespace, shape: Shape) -> Plan:
        """Return the plan of the command line for the edge or the cloud model."""
        if shape is EDGE:
            return cls(args.batch_edge, args.steps_edge, args.rate_edge, args.limit_edge,
                       args.warm_up)
        return cls(args.batch_cloud, args.steps_cloud, args.rate_cloud, args.limit_cloud,
                   args.warm_up)

    def factor(self, step: int, seconds: float) -> float:
        """Warm up, then cosine over the steps or the time allowed, whichever ends first."""
        warm = min(self.warm_up, self.steps // 10 + 1)
        passed = max(step / self.steps, seconds / self.limit)
        return min((step + 1) / warm, 0.5 * (1 + np.cos(np.pi * min(1.0, passed))) + 0.01)


def fit(model: Model, mirror: Mirror, plan: Plan, pad: int, args: argparse.Namespace) -> Log:
    """Train the model in place, on the device of the mirror; return the log."""
    import torch
    from torch.nn import functional

    device, shape = torch.device(args.device), mirror.shape
    positions = _positions(model, shape.image).to(device)
    model.to(device).train()
    run = torch.compile(forward) if args.compile else forward
    optimizer = torch.optim.AdamW(
        [{'params': [p for p in model.parameters() if p.ndim >= 2], 'weight_decay': 0.1},
         {'params': [p for p in model.parameters() if p.ndim < 2], 'weight_decay': 0.0}],
        lr=plan.rate, betas=(0.9, 0.98), fused=device.type == 'cuda')
    begin = time.perf_counter()
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: plan.factor(step, time.perf_counter() - begin))
    rng = np.random.default_rng(args.seed + 1)
    log: Log = []
    for step, numbers in enumerate(batches(mirror, plan.batch, plan.steps, args.seed), start=1):
        batch = mirror.batch(numbers, rng, pad)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
            logits = run(model, positions, batch.pixels, batch.tokens, batch.places)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds = time.perf_counter() - begin
        last = step == plan.steps or seconds > plan.limit
        if step % 50 == 0 or last:
            smooth = 0.8 * log[-1]['loss'] + 0.2 * loss.item() if log else loss.item()
            log.append({'step': step, 'loss': round(smooth, 5), 'samples': mirror.n,
                        'lr': round(schedule.get_last_lr()[0], 7), 'seconds': round(seconds, 1)})
            if step % 250 == 0 or len(log) == 1 or last:
                print(shape.name, json.dumps(log[-1]), flush=True)
        if last:
            break
    model.eval()
    return log


def save(model: Model, shape: Shape, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write checkpoint and processor. Weights are kept as bfloat16, run as float32."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    weights.pop('lm_head.weight')  # tied to the embedding
    model.save_pretrained(folder, state_dict=weights, max_shard_size='12MB')
    config = json.loads((folder / 'config.json').read_text())
    for part in (config, config['text_config'], config['vision_config']):
        part.pop('torch_dtype', None)
        part['dtype'] = 'float32'
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
    build_processor(shape, tokenizer).save_pretrained(folder)
    if shape is CLOUD:
        (folder / REPLY_FORM).write_text(CLOUD_REPLY_FORM + '\n')
    for file in folder.iterdir():
        file.chmod(0o644)


def _meta(model: Model, started_from: str, args: argparse.Namespace) -> Meta:
    """Return what the training log says of how a model came to be."""
    import torch
    import transformers

    cuda = args.device.startswith('cuda')
    return {'arguments': {k: str(v) for k, v in vars(args).items()},
            'device': torch.cuda.get_device_name() if cuda else args.device,
            'torch': torch.__version__, 'transformers': transformers.__version__,
            'parameters': sum(p.numel() for p in model.parameters()),
            'started_from': started_from}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm train', description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('out/train'), help='folder to write')
    parser.add_argument('--models', nargs='+', choices=('edge', 'cloud'),
                        default=['edge', 'cloud'])
    parser.add_argument('--start', default='',
                        help='checkpoint that the cloud model starts from, of either model; '
                             'default: the edge model trained by this run, else the shipped one')
    parser.add_argument('--worlds', nargs='+', choices=NAMES, default=list(NAMES),
                        help='worlds of the training drives, which take turns')
    parser.add_argument('--hands', type=Path,
                        help='folder with the hand photographs (see docs/benchmark.md); without '
                             'it hands are drawn only')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--device', default='cuda', help='cuda or cpu')
    parser.add_argument('--compile', action='store_true', help='use torch.compile')
    parser.add_argument('--workers', type=int, default=15, help='processes that render')
    parser.add_argument('--frames', type=int, default=90_000, help='training frames')
    parser.add_argument('--first', type=int, default=10_000,
                        help='begin training when so many frames are ready')
    parser.add_argument('--warm-up', type=int, default=300, help='steps of rising rate')
    for name, steps, batch, rate in (('edge', 9000, 320, 1.2e-3), ('cloud', 7000, 128, 8e-4)):
        parser.add_argument(f'--steps-{name}', type=int, default=steps)
        parser.add_argument(f'--batch-{name}', type=int, default=batch)
        parser.add_argument(f'--rate-{name}', type=float, default=rate, help='peak learning rate')
        parser.add_argument(f'--limit-{name}', type=float, default=float('inf'),
                            help='stop training this model after so many seconds')
    parser.add_argument('--evaluate', type=int, default=100,
                        help='tuning frames per world and condition; 0: do not score')
    parser.add_argument('--score-only', action='store_true',
                        help='train nothing, print the accuracy of the shipped checkpoints')
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> None:
    """Render, then train one model after the other."""
    import torch
    from transformers import AutoTokenizer

    wanted = [shape for name, shape in (('edge', EDGE), ('cloud', CLOUD)) if name in args.models]
    hands = HandBank(args.hands) if args.hands else None
    if EDGE in wanted:
        tokenizer = build_tokenizer(dataset.corpus())
        add_tile_tags(tokenizer, CLOUD)
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.start or checkpoint_path(EDGE.name))
    frames = args.frames - args.frames % PER_DRIVE
    stores = {shape.name: Store(shape, frames) for shape in wanted}
    job = RenderJob(tokenizer, hands, args.worlds, args.seed, stores.get(EDGE.name),
                    stores.get(CLOUD.name))
    rendering = Rendering(job, frames, args.workers)  # forks: before CUDA starts
    try:
        rendering.wait(min(args.first, frames))
        folder = Path(args.start or checkpoint_path(EDGE.name))
        for shape in wanted:
            torch.manual_seed(args.seed)
            model, started_from = _begun(shape, tokenizer, folder)
            mirror = Mirror(stores[shape.name], rendering, torch.device(args.device))
            log = fit(model, mirror, Plan.of(args, shape), tokenizer.pad_token_id, args)
            folder = args.out / shape.name
            save(model, shape, tokenizer, folder)
            write_card(shape, folder, {'meta': _meta(model, started_from, args), 'log': log,
                                       'accuracy': {}, 'scored_on': args.evaluate})
    finally:
        rendering.stop()


def _begun(shape: Shape, tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[Model, str]:
    """Return a model to train, and what it starts from, in words; the edge model from nothing."""
    if shape is EDGE:
        return build_model(EDGE, tokenizer), ''
    start = _load(folder)
    return (_grown(start, CLOUD, tokenizer),
            f'{folder.name}, {start.config.vision_config.image_size} pixels a side')


def _load(folder: str | Path) -> Model:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def _grown(small: Model, shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Model:
    """Return a model of another shape with the weights of a small one, positions interpolated."""
    from torch.nn import functional

    weights = small.state_dict()
    model = build_model(shape, tokenizer)
    name = 'model.vision_model.embeddings.position_embedding.weight'
    side, wanted = (round(len(m.state_dict()[name]) ** 0.5) for m in (small, model))
    grid = weights[name].T.reshape(1, -1, side, side)
    grid = functional.interpolate(grid, (wanted, wanted), mode='bilinear', align_corners=False)
    weights[name] = grid.flatten(2)[0].T
    model.load_state_dict(weights)
    return model


def score(shape: Shape, args: argparse.Namespace) -> None:
    """Print the accuracy of a checkpoint in --out or of the shipped one, and renew its card."""
    from transformers import AutoTokenizer

    folder = args.out / shape.name
    folder = folder if folder.is_dir() else checkpoint_path(shape.name)
    hands = HandBank(args.hands) if args.hands else None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    accuracy = evaluate(shape, _load(folder).to(args.device), tokenizer, args.evaluate,
                        args.device, hands)
    for name, row in accuracy.items():
        print(shape.name, name, json.dumps(row), flush=True)
    record: Record = json.loads((folder / 'training_log.json').read_text())
    record |= {'accuracy': accuracy, 'scored_on': args.evaluate}
    write_card(shape, folder, record)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, then score the models."""
    args = arguments(argv)
    if not args.score_only:
        train(args)
    for name, shape in (('edge', EDGE), ('cloud', CLOUD)):
        if name in args.models and args.evaluate:
            score(shape, args)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
