# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
Trains the two miniature models from scratch on the synthetic worlds (`spotvlm train`).

The edge model first, in ten minutes on one GPU. Then the cloud model, which starts from the edge
model's weights and learns to read the same picture as tiles at three times the resolution and to
say where it saw what. Its vision tower stays that of the edge model, so each frame passes through
it once, and the rest trains on a CPU if need be. Reads downward: render, encode, train, evaluate,
save.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
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
from .models import add_tile_tags, build_model, build_processor, build_tokenizer
from .models import CHAT_TEMPLATE, CLOUD, EDGE, expand_images, resolve, Shape
from .world import CONDITIONS, make_world, SCENE
from ..method.prompt import parse_answer

LENGTH = {EDGE.name: 288, CLOUD.name: 640}  # longest sequence, visual tokens included
PER_DRIVE = 40                              # frames taken from one drive
NO_CONTEXT = 0.35                           # share of edge samples trained without context
FEATURES = (CLOUD.tiles ** 2 + 1, (CLOUD.image // CLOUD.patch) ** 2, CLOUD.vision[0])
Array = npt.NDArray[Any]


# -- render and encode ---------------------------------------------------------------------------

def encode(tokenizer: Any, shape: Shape, chat: Sequence[dict[str, Any]],
           answer: str) -> tuple[list[int], int]:
    """Return token ids of prompt, answer and end, and where the answer begins."""
    text = tokenizer.apply_chat_template(list(chat), chat_template=CHAT_TEMPLATE, tokenize=False,
                                         add_generation_prompt=True)
    head = tokenizer(expand_images(shape, text), add_special_tokens=False)['input_ids']
    tail = tokenizer(answer, add_special_tokens=False)['input_ids'] + [tokenizer.eos_token_id]
    if len(head) + len(tail) > LENGTH[shape.name]:
        raise ValueError(f'{len(head) + len(tail)} tokens do not fit into {LENGTH[shape.name]}')
    return head + tail, len(head)


class Store:
    """Samples of one model in memory that forked workers share."""

    def __init__(self, shape: Shape, n: int) -> None:
        """Hold n samples; of the edge model each with and without context."""
        edge = shape is EDGE
        variants = 2 if edge else 1
        self.images = (_shared((n, 3, EDGE.image, EDGE.image, 3), np.uint8) if edge
                       else _shared((n, *FEATURES), np.float16))
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
    import torch

    cv2.setNumThreads(1)   # the processes already fill the cores
    torch.set_num_threads(1)


def _render_drive(number: int) -> None:
    """Render the frames of one drive into the store."""
    shape, tokenizer, store = _JOB['shape'], _JOB['tokenizer'], _JOB['store']
    rng = np.random.default_rng([_JOB['seed'], number])
    world = make_world('driving', dataset.TRAIN_SEEDS[number])
    for i in range(number * PER_DRIVE, (number + 1) * PER_DRIVE):
        item = dataset.sample(world, int(rng.integers(dataset.FIRST, 2400)), rng)
        if shape is EDGE:
            whole, plain = dataset.edge_views(item, None)
            store.images[i] = whole, plain, dataset.edge_views(item, item.context)[1]
            for variant, context in enumerate((None, item.context)):
                store.put(i, variant, *encode(tokenizer, EDGE, *dataset.edge_chat(item, context)))
        else:
            store.images[i] = _features(item.frame)
            store.put(i, 0, *encode(tokenizer, CLOUD, *dataset.cloud_chat(item)))


def _features(frame: npt.NDArray[np.uint8]) -> Array:
    """Return what the frozen vision tower sees, tiles x patches x hidden."""
    import torch

    pixels = _JOB['processor'].image_processor([[frame]], return_tensors='pt')['pixel_values'][0]
    mask = torch.ones((len(pixels), CLOUD.image // CLOUD.patch, CLOUD.image // CLOUD.patch),
                      dtype=torch.bool)
    with torch.inference_mode():
        out = _JOB['vision'](pixel_values=pixels, patch_attention_mask=mask)
    return out.last_hidden_state.half().numpy()


class Rendering:
    """Renders drives in other processes; training may begin before the last one is ready."""

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

    def wait(self, n: int, limit_s: float) -> None:
        """Wait until n samples are ready, or the time is over and at least one drive is."""
        begin = time.perf_counter()
        for future in self._futures[:-(-n // PER_DRIVE)]:
            try:
                future.result(max(0.0, limit_s + begin - time.perf_counter()))
            except TimeoutError:
                break
        if not self.ready():
            raise SystemExit(f'no drive was rendered within {limit_s} s; give --render-limit more')
        print(f'rendered {self.ready()} frames in {time.perf_counter() - begin:.0f} s', flush=True)

    def stop(self) -> None:
        """Give up what is not rendered yet."""
        self._pool.shutdown(wait=True, cancel_futures=True)


# -- train ---------------------------------------------------------------------------------------

def batches(ready: Callable[[], int], size: int, steps: int, seed: int) -> Iterator[Array]:
    """Yield sample numbers, every ready sample once per epoch."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(ready())])
        yield order[:size]
        order = order[size:]


def collate(shape: Shape, store: Store, images: Any, picked: Array, rng: np.random.Generator,
            pad: int) -> tuple[Any, Any, Any, Any]:
    """Return pixels or features, token ids, mask and labels of the picked samples."""
    import torch

    device = images.device
    rows = torch.from_numpy(picked).to(device)
    if shape is EDGE:
        variant = (rng.random(len(picked)) >= NO_CONTEXT).astype(np.int64)
        focus = images[rows, torch.from_numpy(variant + 1).to(device)]
        x = torch.stack([images[rows, 0], focus], dim=1).permute(0, 1, 4, 2, 3).float()
        gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(picked), 1, 1, 1, 1))).to(x)
        x = (x * gain).clamp(0, 255) / 127.5 - 1.0
    else:
        variant = np.zeros(len(picked), dtype=np.int64)
        x = images[rows].float()
    lengths = store.length[picked, variant].astype(np.int64)
    starts = store.start[picked, variant].astype(np.int64)
    columns = np.arange(lengths.max())
    real = columns < lengths[:, None]
    ids = np.where(real, store.ids[picked, variant, :lengths.max()], pad).astype(np.int64)
    labels = np.where(real & (columns >= starts[:, None]), ids, -100)
    return (x, torch.from_numpy(ids).to(device),
            torch.from_numpy(real.astype(np.int64)).to(device),
            torch.from_numpy(labels).to(device))


def hidden_states(shape: Shape, model: Any, x: Any, ids: Any, mask: Any) -> Any:
    """Return the text model's last hidden states."""
    if shape is EDGE:
        return model.model(input_ids=ids, attention_mask=mask, pixel_values=x,
                           use_cache=False).last_hidden_state
    seen = model.model.connector(x.flatten(0, 1)).flatten(0, 1)
    embeds = model.model.inputs_merger(ids, model.get_input_embeddings()(ids), seen)
    return model.model.text_model(inputs_embeds=embeds, attention_mask=mask,
                                  use_cache=False).last_hidden_state


def fit(shape: Shape, model: Any, store: Store, ready: Callable[[], int], tokenizer: Any,
        args: argparse.Namespace) -> list[dict[str, float]]:
    """Train the model in place; return the log."""
    import torch
    from torch.nn import functional

    device = torch.device(args.device)
    model.to(device).train()
    if shape is CLOUD:
        model.model.vision_model.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{'params': [p for p in trained if p.ndim >= 2], 'weight_decay': 0.05},
         {'params': [p for p in trained if p.ndim < 2], 'weight_decay': 0.0}],
        lr=args.rate, betas=(0.9, 0.98), fused=device.type == 'cuda')
    warm = min(args.warm_up, args.steps // 10 + 1)
    begin = time.perf_counter()

    def factor(step: int) -> float:
        """Warm up, then cosine over the steps or the time allowed, whichever ends first."""
        passed = max(step / args.steps, (time.perf_counter() - begin) / args.limit)
        return min((step + 1) / warm, 0.5 * (1 + np.cos(np.pi * min(1.0, passed))) + 0.01)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rng = np.random.default_rng(args.seed + 1)
    images = torch.from_numpy(store.images)
    if device.type == 'cuda':
        images = images[:ready()].to(device)  # gathering there is far faster than copying batches
    log: list[dict[str, float]] = []
    smooth = 0.0
    for step, picked in enumerate(batches(ready, args.batch, args.steps, args.seed), start=1):
        if args.threads:  # two programs on one core are slower than one after the other
            rest = 0 if ready() == len(store.images) else args.workers
            torch.set_num_threads(max(1, args.threads - rest))
        x, ids, mask, labels = collate(shape, store, images, picked, rng, tokenizer.pad_token_id)
        wanted = labels[:, 1:]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
            hidden = hidden_states(shape, model, x, ids, mask)[:, :-1]
            # Logits of the answer's tokens only: most of a sequence is image and question.
            logits = model.lm_head(hidden[wanted != -100])
        loss = functional.cross_entropy(logits.float(), wanted[wanted != -100])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        total = time.perf_counter() - begin
        last = step == args.steps or total > args.limit
        if step % 50 == 0 or last:
            smooth = 0.8 * smooth + 0.2 * loss.item() if log else loss.item()
            log.append({'step': step, 'loss': round(smooth, 5), 'samples': ready(),
                        'lr': round(schedule.get_last_lr()[0], 7), 'seconds': round(total, 1)})
            if step % 250 == 0 or len(log) == 1 or last:
                print(shape.name, json.dumps(log[-1]), flush=True)
        if last:
            break
    model.eval()
    return log


# -- evaluate ------------------------------------------------------------------------------------

def evaluate(shape: Shape, model: Any, tokenizer: Any, n: int, device: str,
             ) -> dict[str, dict[str, float]]:
    """Return accuracy per key on tuning drives, by condition of the world and of the context."""
    result: dict[str, dict[str, float]] = {}
    systems = ('alone', 'context', 'context+focus') if shape is EDGE else ('cloud',)
    for condition in CONDITIONS:
        items = []
        for k in range(n):
            rng = np.random.default_rng([3, k])
            world = make_world('driving', dataset.TUNE_SEEDS[k // 8], condition)
            items.append(dataset.sample(world, int(rng.integers(dataset.FIRST, 2400)), rng, SCENE))
        for system in systems:
            texts = _generate(shape, model, tokenizer, items, system, device)
            result[f'{condition} {system}'] = _score(shape, items, texts)
    for system in systems:
        rows = [result[f'{c} {system}'] for c in CONDITIONS]
        result[f'all {system}'] = {k: round(float(np.mean([r[k] for r in rows])), 4)
                                   for k in rows[0]}
    return result


def _generate(shape: Shape, model: Any, tokenizer: Any, items: Sequence[dataset.Sample],
              system: str, device: str) -> list[str]:
    import torch

    processor = build_processor(shape, tokenizer)
    texts: list[str] = []
    for i in range(0, len(items), 50):
        prompts, images = [], []
        for item in items[i:i + 50]:
            if shape is EDGE:
                context = None if system == 'alone' else item.context
                chat, _ = dataset.edge_chat(item, context)
                images.append(dataset.edge_views(
                    item, item.context if system == 'context+focus' else None))
            else:
                chat, _ = dataset.cloud_chat(item)
                images.append([item.frame])
            prompts.append(processor.apply_chat_template(chat, add_generation_prompt=True))
        inputs = processor(images=images, text=prompts, padding=True, return_tensors='pt')
        with torch.inference_mode():
            out = model.generate(**inputs.to(device), max_new_tokens=80)
        new = out[:, inputs['input_ids'].shape[1]:]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def _score(shape: Shape, items: Sequence[dataset.Sample], texts: Sequence[str],
           ) -> dict[str, float]:
    right = dict.fromkeys(SCENE.keys, 0)
    unreadable, boxes = 0, []
    for item, text in zip(items, texts):
        truth = {f.key: f.value for f in parse_answer(SCENE, item.answer, 0)[0]}
        if shape is EDGE:
            said = {f.key: f.value for f in parse_answer(SCENE, text, 0)[0]}
        else:
            entries = {e['label']: e for e in json.loads(item.cloud_answer)}
            try:
                replied = json.loads(text)
                said = {entry['label']: entry['value'] for entry in replied}
            except (ValueError, KeyError, TypeError):
                said, replied = {}, []
            boxes += [_centre_error(entries[e['label']]['bbox_2d'], e['bbox_2d'])
                      for e in replied if len(e.get('bbox_2d', ())) == 4
                      and 'bbox_2d' in entries.get(e['label'], {})]
        unreadable += not said
        for key in right:
            right[key] += said.get(key) == truth[key]
    score = {key: round(count / len(items), 4) for key, count in right.items()}
    score['mean'] = round(float(np.mean(list(score.values()))), 4)
    score['unreadable'] = round(unreadable / len(items), 4)
    if boxes:
        score['box_centre_within_5_percent'] = round(float(np.mean(np.array(boxes) < 50)), 4)
    return score


def _centre_error(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the distance of two boxes' centres, in thousandths of the picture's sides."""
    return float(np.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2)


# -- save ----------------------------------------------------------------------------------------

def save(shape: Shape, model: Any, tokenizer: Any, log: list[dict[str, float]],
         accuracy: dict[str, dict[str, float]], args: argparse.Namespace, folder: Path) -> None:
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
            'parameters': sum(p.numel() for p in model.parameters())}
    write_card(shape, folder, {'meta': meta, 'log': log, 'accuracy': accuracy,
                               'scored_on': args.evaluate})


def write_card(shape: Shape, folder: Path, record: dict[str, Any]) -> None:
    """Write training log and model card."""
    (folder / 'training_log.json').write_text(json.dumps(record, indent=1) + '\n')
    keys = [*SCENE.keys, 'mean']
    rows = [f'| {name} | ' + ' | '.join(f'{row[k]:.3f}' for k in keys) + ' |'
            for name, row in record['accuracy'].items()]
    meta, log = record['meta'], record['log']
    (folder / 'README.md').write_text('\n'.join([
        '---', 'license: apache-2.0', 'library_name: transformers',
        'pipeline_tag: image-text-to-text', '---', f'# {shape.name}', '',
        f'A miniature vision-language model ({meta["parameters"] / 1e6:.1f} M parameters, '
        f'Idefics3 architecture, {shape.tokens_per_image} visual tokens for each image or tile of '
        f'{shape.image}x{shape.image} pixels), trained from scratch by `spotvlm train` on '
        'rendered driving scenes. It lets the whole of spotvlm run without a download; what it '
        'says about real camera images is not meaningful.', '',
        (f'Started from {EDGE.name}, whose vision tower it keeps. ' if shape is CLOUD else '') +
        f'Trained {log[-1]["seconds"]:.0f} s ({log[-1]["step"]:.0f} steps) on {meta["device"]}; '
        'settings and losses are in `training_log.json`. Accuracy per fact on '
        f'{record["scored_on"]} frames of tuning drives per condition (rendered, never trained '
        'on), greedy decoding; the context of the edge model is that of a simulated late cloud '
        'which errs in 6 % of its facts. Reprint with `spotvlm train --score-only --device cpu '
        f'--models {"edge" if shape is EDGE else "cloud"} --evaluate {record["scored_on"]}`:', '',
        '| world and system | ' + ' | '.join(keys) + ' |',
        '|---|' + '---|' * len(keys), *rows, '']))


# -- command line --------------------------------------------------------------------------------

def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm train', description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('out/train'), help='folder to write')
    parser.add_argument('--models', nargs='+', choices=('edge', 'cloud'),
                        default=['edge', 'cloud'])
    parser.add_argument('--edge', default='',
                        help='edge checkpoint that the cloud model starts from; default: the one '
                             'trained by this run, else the shipped one')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--device', default='cuda', help='cuda or cpu')
    parser.add_argument('--threads', type=int, default=0,
                        help='CPU threads, shared with the workers; 0 = all')
    parser.add_argument('--workers', type=int, default=16, help='processes that render')
    parser.add_argument('--render-limit', type=float, default=1800.0,
                        help='begin training after this many seconds with what is rendered')
    parser.add_argument('--frames', type=int, default=80_000, help='training frames per model')
    parser.add_argument('--stream', type=int, default=0, metavar='N',
                        help='begin training when N frames are ready and render on beside it; '
                             '0 = render all first (always on a GPU)')
    parser.add_argument('--steps', type=int, default=6000)
    parser.add_argument('--batch', type=int, default=320)
    parser.add_argument('--warm-up', type=int, default=300, help='steps of rising rate')
    parser.add_argument('--rate', type=float, default=1.2e-3, help='peak learning rate')
    parser.add_argument('--limit', type=float, default=float('inf'),
                        help='stop training one model after this many seconds')
    parser.add_argument('--evaluate', type=int, default=300, help='tuning frames per condition')
    parser.add_argument('--score-only', action='store_true',
                        help='train nothing, print the accuracy of the shipped checkpoints')
    return parser.parse_args(argv)


def train_edge(args: argparse.Namespace) -> None:
    """Train the edge model from nothing."""
    import torch

    tokenizer = build_tokenizer(dataset.corpus())
    store = Store(EDGE, args.frames)
    _JOB.update(shape=EDGE, tokenizer=tokenizer, store=store, seed=args.seed)
    rendering = Rendering(args.frames, args.workers)  # forks: before CUDA starts
    rendering.wait(args.frames, args.render_limit)
    rendering.stop()
    torch.manual_seed(args.seed)
    _finish(EDGE, build_model(EDGE, tokenizer), tokenizer, store, rendering, args)


def train_cloud(args: argparse.Namespace) -> None:
    """Train the cloud model from the edge model's weights."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    folder = Path(args.edge) if args.edge else args.out / EDGE.name
    folder = folder if folder.is_dir() else resolve(EDGE.name)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    add_tile_tags(tokenizer, CLOUD.tiles)
    if len(tokenizer) > model.config.text_config.vocab_size:
        model.resize_token_embeddings(-(-len(tokenizer) // 64) * 64)
    store = Store(CLOUD, args.frames)
    _JOB.update(shape=CLOUD, tokenizer=tokenizer, store=store, seed=args.seed + 1,
                vision=model.model.vision_model, processor=build_processor(CLOUD, tokenizer))
    rendering = Rendering(args.frames, args.workers)
    stream = args.stream and args.device == 'cpu'
    rendering.wait(args.stream if stream else args.frames, args.render_limit)
    if not stream:
        rendering.stop()
    torch.manual_seed(args.seed)
    _finish(CLOUD, model, tokenizer, store, rendering, args)


def _finish(shape: Shape, model: Any, tokenizer: Any, store: Store, rendering: Rendering,
            args: argparse.Namespace) -> None:
    """Train, save, evaluate, save again with the accuracy."""
    log = fit(shape, model, store, rendering.ready, tokenizer, args)
    rendering.stop()
    folder = args.out / shape.name
    save(shape, model, tokenizer, log, {}, args, folder)
    accuracy = evaluate(shape, model, tokenizer, args.evaluate, args.device)
    for name, row in accuracy.items():
        print(shape.name, name, json.dumps(row), flush=True)
    save(shape, model, tokenizer, log, accuracy, args, folder)


def score(which: str, args: argparse.Namespace) -> None:
    """Print the accuracy of a checkpoint in --out or of the shipped one, and renew its card."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    shape = EDGE if which == 'edge' else CLOUD
    folder = args.out / shape.name
    folder = folder if folder.is_dir() else resolve(shape.name)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval().to(args.device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    accuracy = evaluate(shape, model, tokenizer, args.evaluate, args.device)
    for name, row in accuracy.items():
        print(shape.name, name, json.dumps(row), flush=True)
    record = json.loads((folder / 'training_log.json').read_text())
    write_card(shape, folder, {**record, 'accuracy': accuracy, 'scored_on': args.evaluate})


def main(argv: Sequence[str] | None = None) -> int:
    """Train or score the models, the edge model first."""
    args = arguments(argv)
    args.frames -= args.frames % PER_DRIVE
    for which in ('edge', 'cloud'):
        if which not in args.models:
            continue
        if args.score_only:
            score(which, args)
        elif which == 'edge':
            train_edge(args)
        else:
            train_cloud(args)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
