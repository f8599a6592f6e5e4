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
from collections.abc import Sequence
import json
from pathlib import Path
from typing import TYPE_CHECKING

from . import dataset
from .dataset import CLOUD_REPLY_FORM
from .fit import fit, MiniatureLearner, Mirror, Plan, Progress
from .rendering import PER_JOB, Rendering, RenderJob, ROOMS, Store
from .score import evaluate, Meta, Record, write_card
from ..hri.hands import HandBank
from ..models import add_tile_tags, build_model, build_processor, build_tokenizer, CLOUD, EDGE
from ..models import Shape
from ..shipped import checkpoint_path, REPLY_FORM
from ..worlds import NAMES

if TYPE_CHECKING:
    from transformers import Idefics3ForConditionalGeneration as Model
    from transformers import PreTrainedTokenizerFast


def save_weights(model: Model, folder: Path) -> None:
    """Write weights, which are kept as bfloat16 and run as float32, and config.json."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        weights.pop('lm_head.weight')
    model.save_pretrained(folder, state_dict=weights, max_shard_size='12MB')
    config = json.loads((folder / 'config.json').read_text())
    for part in (config, config['text_config'], config['vision_config']):
        part.pop('torch_dtype', None)
        part['dtype'] = 'float32'
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')


def save(model: Model, shape: Shape, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write checkpoint and processor."""
    save_weights(model, folder)
    build_processor(shape, tokenizer).save_pretrained(folder)
    if shape.images > 1:
        (folder / REPLY_FORM).write_text(CLOUD_REPLY_FORM + '\n')
    for file in folder.iterdir():
        file.chmod(0o644)


def meta_of(model: Model, started_from: str, args: argparse.Namespace) -> Meta:
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
    frames = args.frames - args.frames % PER_JOB
    stores = {shape.name: Store(ROOMS[shape.name], frames) for shape in wanted}
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
            plan = _plan(args, shape)
            learner = MiniatureLearner(model, mirror, plan, tokenizer.pad_token_id)
            log = fit(learner, plan, lambda progress: _tell(shape, progress))
            model.eval()
            folder = args.out / shape.name
            save(model, shape, tokenizer, folder)
            write_card(shape, folder, {'meta': meta_of(model, started_from, args), 'log': log,
                                       'accuracy': {}, 'scored_on': args.evaluate})
    finally:
        rendering.stop()


def _plan(args: argparse.Namespace, shape: Shape) -> Plan:
    """Return the plan of the command line for the edge or the cloud model."""
    steps, batch, rate, limit = (
        (args.steps_edge, args.batch_edge, args.rate_edge, args.limit_edge) if shape is EDGE else
        (args.steps_cloud, args.batch_cloud, args.rate_cloud, args.limit_cloud))
    return Plan(batch, steps, rate, limit, args.warm_up, args.seed, args.compile)


def _tell(shape: Shape, progress: Progress) -> bool:
    if progress.last or progress.logged and len(progress.log) % 5 == 1:
        print(shape.name, json.dumps(progress.log[-1]), flush=True)
    return False


def _begun(shape: Shape, tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[Model, str]:
    """Return a model to train, and what it starts from, in words; the edge model from nothing."""
    if shape is EDGE:
        return build_model(EDGE, tokenizer), ''
    start = _load(folder)
    return (grown(start, CLOUD, tokenizer),
            f'{folder.name}, {start.config.vision_config.image_size} pixels a side')


def _load(folder: str | Path) -> Model:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def grown(small: Model, shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Model:
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
