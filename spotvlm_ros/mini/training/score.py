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
"""Accuracy of the miniature models on tuning seeds, fact by fact, and their model cards."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from . import dataset
from .fit import Log
from ..hri.hands import HandBank
from ..models import build_processor, CLOUD, EDGE, Shape
from ..worlds import make_world, TUNE_SEEDS
from ...method.prompt import parse_answer

if TYPE_CHECKING:
    from transformers import Idefics3ForConditionalGeneration as Model
    from transformers import PreTrainedTokenizerFast

SETS = (('driving', 'day'), ('driving', 'rain'), ('driving', 'night'),
        ('hri', 'near'), ('hri', 'far'), ('hri', 'real'))
SYSTEMS = {EDGE.name: ('alone', 'context', 'context+focus'), CLOUD.name: ('cloud',)}
PER_DRIVE = 5   # frames scored of one drive
BATCH = 50
Scores = dict[str, dict[str, float]]   # shares of right answers by set and system, then by key


class Meta(TypedDict):
    """How a model came to be."""

    arguments: dict[str, str]
    device: str
    torch: str           # version
    transformers: str    # version
    parameters: int
    started_from: str    # in words; empty: from random weights


class Record(TypedDict):
    """What training_log.json holds."""

    meta: Meta
    log: Log
    accuracy: Scores
    scored_on: int       # frames per set


def evaluate(shape: Shape, model: Model, tokenizer: PreTrainedTokenizerFast, n: int, device: str,
             hands: HandBank | None = None) -> Scores:
    """
    Return accuracy per key for each world, condition and system, on n frames each.

    The set with photographs of hands is left out where there are none.
    """
    result: Scores = {}
    for name, condition in SETS:
        if condition == 'real' and hands is None:
            continue
        items = []
        for k in range(n):
            rng = np.random.default_rng([3, k])
            world = make_world(name, TUNE_SEEDS[k // PER_DRIVE], condition, hands)
            index = int(rng.integers(dataset.FIRST, dataset.LAST))
            items.append(dataset.sample(world, index, rng, world.queries[0]))
        for system in SYSTEMS[shape.name]:
            texts = _generate(shape, model, tokenizer, items, system, device)
            result[f'{name} {condition} {system}'] = _score(shape, items, texts)
    for system in SYSTEMS[shape.name]:
        rows = [row for name, row in result.items() if name.endswith(f' {system}')]
        result[f'mean {system}'] = {'mean': round(float(np.mean([r['mean'] for r in rows])), 4)}
    return result


def _generate(shape: Shape, model: Model, tokenizer: PreTrainedTokenizerFast,
              items: Sequence[dataset.Sample], system: str, device: str) -> list[str]:
    import torch

    processor = build_processor(shape, tokenizer)
    texts: list[str] = []
    for i in range(0, len(items), BATCH):
        prompts, images = [], []
        for item in items[i:i + BATCH]:
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
            out = model.generate(**inputs.to(device), max_new_tokens=100)
        new = out[:, inputs['input_ids'].shape[1]:]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def _score(shape: Shape, items: Sequence[dataset.Sample], texts: Sequence[str],
           ) -> dict[str, float]:
    query = items[0].query
    right = dict.fromkeys(query.keys, 0)
    unreadable, boxes = 0, []
    for item, text in zip(items, texts):
        truth = {f.key: f.value for f in parse_answer(query, item.answer, 0)[0]}
        if shape is EDGE:
            answer = {f.key: f.value for f in parse_answer(query, text, 0)[0]}
        else:
            true_entries = {e['label']: e for e in json.loads(item.cloud_answer)}
            try:
                entries = json.loads(text)
                answer = {entry['label']: entry['value'] for entry in entries}
            except (ValueError, KeyError, TypeError):
                answer, entries = {}, []
            boxes += [_centre_error(true_entries[e['label']]['bbox_2d'], e['bbox_2d'])
                      for e in entries if len(e.get('bbox_2d', ())) == 4
                      and 'bbox_2d' in true_entries.get(e['label'], {})]
        unreadable += not answer
        for key in right:
            right[key] += answer.get(key) == truth[key]
    score = {key: round(count / len(items), 4) for key, count in right.items()}
    score['mean'] = round(float(np.mean(list(score.values()))), 4)
    score['unreadable'] = round(unreadable / len(items), 4)
    if boxes:
        score['box_centre_within_5_percent'] = round(float(np.mean(np.array(boxes) < 50)), 4)
    return score


def _centre_error(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the distance of two boxes' centres, in thousandths of the picture's sides."""
    return float(np.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2)


def write_card(shape: Shape, folder: Path, record: Record) -> None:
    """Write training_log.json and the model card README.md."""
    (folder / 'training_log.json').write_text(json.dumps(record, indent=1) + '\n')
    rows = [f'| {name} | {row["mean"]:.3f} | ' + ', '.join(
        f'{k.replace("_", " ")} {v:.2f}' for k, v in row.items() if k != 'mean') + ' |'
        for name, row in record['accuracy'].items()]
    meta, log = record['meta'], record['log']
    (folder / 'README.md').write_text('\n'.join([
        '---', 'license: apache-2.0', 'library_name: transformers',
        'pipeline_tag: image-text-to-text', '---', f'# {shape.name}', '',
        f'A miniature vision-language model ({meta["parameters"] / 1e6:.1f} M parameters, '
        f'Idefics3 architecture, {shape.tokens_per_image} visual tokens for each image or tile of '
        f'{shape.image}x{shape.image} pixels), trained from scratch by `spotvlm train` on '
        'rendered scenes of a driving and a human-robot-interaction world. It lets the whole of '
        'spotvlm run without a download; what it says about real camera images is not '
        'meaningful. Hands in the set `hri real` are photographs from '
        'ardamavi/Sign-Language-Digits-Dataset (Apache-2.0; Mavi 2020), people kept apart between '
        'training, tuning and test.', '',
        (f'Started from the weights of {meta["started_from"]}. ' if meta['started_from'] else '') +
        f'Trained {log[-1]["seconds"]:.0f} s ({log[-1]["step"]:.0f} steps) on {meta["device"]}; '
        'settings and losses are in `training_log.json`. Accuracy per fact on '
        f'{record["scored_on"]} frames of tuning seeds per condition (rendered, never trained '
        'on), greedy decoding; the context of the edge model is that of a simulated late cloud '
        'which errs in 5 % of its facts. Reprint with `spotvlm train --score-only --device cpu '
        f'--models {"edge" if shape is EDGE else "cloud"} --evaluate {record["scored_on"]} '
        '--hands FOLDER`:', '',
        '| set and system | mean | per key |', '|---|---|---|', *rows, '']))
