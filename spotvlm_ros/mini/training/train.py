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
as tiles at several times the resolution, and to say where it saw what. Minutes on one GPU. Reads
downward: render, encode, train, save.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
import json
import mmap
import multiprocessing as mp
from pathlib import Path
import time
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from . import dataset
from .score import evaluate, write_card
from ..hri.hands import HandBank
from ..models import add_tile_tags, build_model, build_processor, build_tokenizer
from ..models import CHAT_TEMPLATE, CLOUD, cut, EDGE, expand_images, Shape
from ..shipped import checkpoint_path
from ..worlds import NAMES
from ...system.processes import exit_with_parent

LENGTH = {EDGE.name: 224, CLOUD.name: 1024}  # longest sequence, visual tokens included
ANSWER = {EDGE.name: 48, CLOUD.name: 72}     # longest answer [tokens]
PICTURES = {EDGE.name: 3, CLOUD.name: CLOUD.images}  # stored per frame
PER_DRIVE = 40                               # frames taken from one drive
# Share of edge samples with context and focus, with context alone, with focus alone, with neither.
SHARES = (0.50, 0.10, 0.08, 0.32)
SHIFT = 2                                    # pictures are moved by up to so many pixels
Array = npt.NDArray[Any]


# -- render and encode ---------------------------------------------------------------------------

def encode(tokenizer: Any, shape: Shape, chat: Sequence[dict[str, Any]],
           answer: str) -> tuple[list[int], int]:
    """Return token ids of prompt, answer and end, and where the answer begins."""
    text = tokenizer.apply_chat_template(list(chat), chat_template=CHAT_TEMPLATE, tokenize=False,
                                         add_generation_prompt=True)
    head = tokenizer(expand_images(shape, text), add_special_tokens=False)['input_ids']
    tail = tokenizer(answer, add_special_tokens=False)['input_ids'] + [tokenizer.eos_token_id]
    if len(head) + len(tail) > LENGTH[shape.name] or len(tail) > ANSWER[shape.name]:
        raise ValueError(f'{len(head)} + {len(tail)} tokens do not fit into {shape.name}')
    return head + tail, len(head)


class Store:
    """Samples of one model in memory that forked workers share."""

    def __init__(self, shape: Shape, n: int) -> None:
        """Hold n samples; of the edge model each without and with context."""
        variants = 2 if shape is EDGE else 1
        self.shape = shape
        self.images = _shared((n, PICTURES[shape.name], shape.image, shape.image, 3), np.uint8)
        self.ids = _shared((n, variants, LENGTH[shape.name]), np.int16)
        self.start = _shared((n, variants), np.int16)
        self.length = _shared((n, variants), np.int16)

    def put(self, i: int, variant: int, ids: list[int], start: int) -> None:
        """Store one token sequence."""
        self.ids[i, variant, :len(ids)] = ids
        self.start[i, variant], self.length[i, variant] = start, len(ids)


def _shared(shape: tuple[int, ...], dtype: Any) -> Array:
    buffer = mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)


_JOB: dict[str, Any] = {}  # what forked workers inherit; large arrays cannot travel by pickle


def _start_worker() -> None:
    exit_with_parent()
    cv2.setNumThreads(1)   # the processes already fill the cores


def _render_drive(number: int) -> None:
    """Render the frames of one drive into the stores."""
    tokenizer, edge, cloud = _JOB['tokenizer'], _JOB.get(EDGE.name), _JOB.get(CLOUD.name)
    rng = np.random.default_rng([_JOB['seed'], number])
    world = dataset.drive(number, _JOB['hands'], _JOB['worlds'])
    for i in range(number * PER_DRIVE, (number + 1) * PER_DRIVE):
        item = dataset.sample(world, int(rng.integers(dataset.FIRST, dataset.LAST)), rng)
        if edge is not None:
            whole, plain = dataset.edge_views(item, None)
            edge.images[i] = whole, plain, dataset.edge_views(item, item.context)[1]
            for variant, context in enumerate((None, item.context)):
                edge.put(i, variant, *encode(tokenizer, EDGE, *dataset.edge_chat(item, context)))
        if cloud is not None:
            cloud.images[i] = cut(CLOUD, item.frame)
            cloud.put(i, 0, *encode(tokenizer, CLOUD, *dataset.cloud_chat(item)))


class Rendering:
    """Renders drives in other processes; training begins before the last one is ready."""

    def __init__(self, n: int, workers: int) -> None:
        """Start; `_JOB` must be complete."""
        self._pool = ProcessPoolExecutor(workers, mp.get_context('fork'), _start_worker)
        self._futures: list[Future[None]] = [
            self._pool.submit(_render_drive, k) for k in range(n // PER_DRIVE)]
        self._done = 0

    def ready(self) -> int:
        """Return how many samples, from the first, are complete; raise what a worker raised."""
        while self._done < len(self._futures) and self._futures[self._done].done():
            self._futures[self._done].result()
            self._done += 1
        return self._done * PER_DRIVE

    def wait(self, n: int) -> None:
        """Wait until n samples are ready."""
        begin = time.perf_counter()
        for future in self._futures[:-(-n // PER_DRIVE)]:
            future.result()
        print(f'rendered {self.ready()} frames in {time.perf_counter() - begin:.0f} s', flush=True)

    def stop(self) -> None:
        """Give up what is not rendered yet."""
        self._pool.shutdown(wait=True, cancel_futures=True)


# -- train ---------------------------------------------------------------------------------------

class Mirror:
    """A store on the training device, where gathering a batch is far faster than copying it."""

    def __init__(self, store: Store, rendering: Rendering, device: Any) -> None:
        """Make room for all samples."""
        import torch

        self._store, self._rendering, self.n = store, rendering, 0
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

    def batch(self, rows: Array, rng: np.random.Generator, pad: int) -> tuple[Any, Any, Any, Any]:
        """Return pixels, token ids, where answers are written, and what is written there."""
        import torch

        images, ids, start, length = (target for _, target in self._pairs)
        device, shape = ids.device, self._store.shape
        picked = torch.from_numpy(rows).to(device)
        if shape is EDGE:
            kind = rng.choice(4, len(rows), p=SHARES)
            told = torch.from_numpy((kind < 2).astype(np.int64)).to(device)
            view = torch.from_numpy(np.where((kind == 0) | (kind == 2), 2, 1)).to(device)
            x = torch.stack([images[picked, 0], images[picked, view]], dim=1)
        else:
            told = torch.zeros_like(picked)
            x = images[picked]
        x = _varied(x.permute(0, 1, 4, 2, 3), rng)
        first, end = (t[picked, told].long()[:, None] for t in (start, length))
        columns = torch.arange(ids.shape[2], device=device)
        tokens = torch.where(columns < end, ids[picked, told].long(), pad)
        # The token at place p is predicted at place p - 1.
        places = first - 1 + torch.arange(ANSWER[shape.name], device=device)
        inside = places + 1 < end
        places = places.clamp(max=ids.shape[2] - 2)
        return x, tokens, places, torch.where(inside, tokens.gather(1, places + 1), -100)


def _varied(x: Any, rng: np.random.Generator) -> Any:
    """Return pictures (batch x n x 3 x side x side, 0 to 255) as -1 to 1: light, noise, place."""
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


def batches(mirror: Mirror, size: int, steps: int, seed: int) -> Iterator[Array]:
    """Yield sample numbers, every ready sample once per epoch."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(mirror.refresh())])
        yield order[:size]
        order = order[size:]


def _positions(model: Any, side: int) -> Any:
    """Return the position ids that the vision tower gives to the patches of one image."""
    import torch

    seen: list[Any] = []
    tower = model.model.vision_model
    hook = tower.embeddings.position_embedding.register_forward_pre_hook(
        lambda _, given: seen.append(given[0][0]))
    with torch.no_grad():
        tower(pixel_values=torch.zeros(1, 3, side, side))
    hook.remove()
    return seen[0]


def forward(model: Any, image_token: int, positions: Any, x: Any, tokens: Any, places: Any) -> Any:
    """
    Return the logits at the places where the answer is written.

    The model's own parts, put together without masks: all images are whole, and padding comes
    after everything that counts. That makes shapes constant and lets fast kernels run.
    """
    tower = model.model.vision_model
    patches = tower.embeddings.patch_embedding(x.flatten(0, 1)).flatten(2).transpose(1, 2)
    patches = patches + tower.embeddings.position_embedding(positions)
    seen = tower.post_layernorm(tower.encoder(inputs_embeds=patches,
                                              attention_mask=None).last_hidden_state)
    embeds = model.get_input_embeddings()(tokens)
    visual = (tokens == image_token).unsqueeze(-1).expand_as(embeds)
    embeds = embeds.masked_scatter(visual, model.model.connector(seen).to(embeds.dtype))
    hidden = model.model.text_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    return model.lm_head(hidden.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])))


def fit(shape: Shape, model: Any, store: Store, rendering: Rendering, tokenizer: Any,
        args: argparse.Namespace) -> list[dict[str, float]]:
    """Train the model in place; return the log."""
    import torch
    from torch.nn import functional

    batch, steps, rate, limit = (getattr(args, f'{name}_{"edge" if shape is EDGE else "cloud"}')
                                 for name in ('batch', 'steps', 'rate', 'limit'))
    device = torch.device(args.device)
    positions = _positions(model, shape.image).to(device)
    model.to(device).train()
    image_token = tokenizer.convert_tokens_to_ids('<image>')
    run = torch.compile(forward) if args.compile else forward
    optimizer = torch.optim.AdamW(
        [{'params': [p for p in model.parameters() if p.ndim >= 2], 'weight_decay': 0.1},
         {'params': [p for p in model.parameters() if p.ndim < 2], 'weight_decay': 0.0}],
        lr=rate, betas=(0.9, 0.98), fused=device.type == 'cuda')
    mirror = Mirror(store, rendering, device)
    warm = min(args.warm_up, steps // 10 + 1)
    begin = time.perf_counter()

    def factor(step: int) -> float:
        """Warm up, then cosine over the steps or the time allowed, whichever ends first."""
        passed = max(step / steps, (time.perf_counter() - begin) / limit)
        return min((step + 1) / warm, 0.5 * (1 + np.cos(np.pi * min(1.0, passed))) + 0.01)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rng = np.random.default_rng(args.seed + 1)
    log: list[dict[str, float]] = []
    for step, rows in enumerate(batches(mirror, batch, steps, args.seed), start=1):
        x, tokens, places, wanted = mirror.batch(rows, rng, tokenizer.pad_token_id)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
            logits = run(model, image_token, positions, x, tokens, places)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total = time.perf_counter() - begin
        last = step == steps or total > limit
        if step % 50 == 0 or last:
            smooth = 0.8 * log[-1]['loss'] + 0.2 * loss.item() if log else loss.item()
            log.append({'step': step, 'loss': round(smooth, 5), 'samples': mirror.n,
                        'lr': round(schedule.get_last_lr()[0], 7), 'seconds': round(total, 1)})
            if step % 250 == 0 or len(log) == 1 or last:
                print(shape.name, json.dumps(log[-1]), flush=True)
        if last:
            break
    model.eval()
    return log


# -- save ----------------------------------------------------------------------------------------

def save(shape: Shape, model: Any, tokenizer: Any, log: list[dict[str, float]],
         started_from: str, args: argparse.Namespace, folder: Path) -> None:
    """Write checkpoint, processor, card and log. Weights are kept as bfloat16, run as float32."""
    import torch
    import transformers

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
    for file in folder.iterdir():
        file.chmod(0o644)
    cuda = args.device.startswith('cuda')
    meta = {'arguments': {k: str(v) for k, v in vars(args).items()},
            'device': torch.cuda.get_device_name() if cuda else args.device,
            'torch': torch.__version__, 'transformers': transformers.__version__,
            'parameters': sum(p.numel() for p in model.parameters()),
            'started_from': started_from}
    write_card(shape, folder, {'meta': meta, 'log': log, 'accuracy': {},
                               'scored_on': args.evaluate})


# -- command line --------------------------------------------------------------------------------

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
    _JOB.update(tokenizer=tokenizer, hands=hands, seed=args.seed, worlds=args.worlds, **stores)
    rendering = Rendering(frames, args.workers)  # forks: before CUDA starts
    try:
        rendering.wait(min(args.first, frames))
        folder = args.start or str(checkpoint_path(EDGE.name))
        for shape in wanted:
            torch.manual_seed(args.seed)
            started_from = ''
            if shape is EDGE:
                model = build_model(EDGE, tokenizer)
            else:
                start = _load(folder)
                started_from = (f'{Path(folder).name}, '
                                f'{start.config.vision_config.image_size} pixels a side')
                model = _grown(start, CLOUD, tokenizer)
            log = fit(shape, model, stores[shape.name], rendering, tokenizer, args)
            folder = folder if shape is CLOUD else str(args.out / shape.name)
            save(shape, model, tokenizer, log, started_from, args, args.out / shape.name)
    finally:
        rendering.stop()


def _load(folder: str | Path) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def _grown(small: Any, shape: Shape, tokenizer: Any) -> Any:
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
    record = json.loads((folder / 'training_log.json').read_text())
    write_card(shape, folder, {**record, 'accuracy': accuracy, 'scored_on': args.evaluate})


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
