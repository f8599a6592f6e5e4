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
"""The checkpoint that learns: opened, grown, frozen or given adapters, checked, and saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
import json
from pathlib import Path
import shutil
from typing import Any, TYPE_CHECKING

import torch

from ..config.nodes import EdgeConfig
from ..edge.loading import check_folder, load_checkpoint
from ..edge.model import EdgeModel
from ..method.facts import Context, Fact, NS, Query
from ..method.guard import OFF
from ..method.prompt import answer_text
from ..mini.models import build_processor, EDGE
from ..mini.shipped import checkpoint_path
from ..mini.training.rendering import Room
from ..mini.training.train import grown, save_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

VISION = ('visual', 'vision_model', 'vision_tower')    # what families call their eyes
PLAIN = ('idefics3', 'smolvlm')     # families that the loop of the miniature knows
OWN = ('*.safetensors', '*.bin', '*.index.json', 'config.json', 'README.md', 'training_log.json',
       '*.png')      # files that are of a checkpoint's own weights
RANK = 16            # of adapters
ROOM_STEP = 32       # lengths are rounded up to this [tokens]
SPARE = 8            # tokens of a prompt that ages and such may need beyond the longest one tried


@dataclass
class Student:
    """A checkpoint that learns; ``edge`` makes its inputs as node edge does."""

    name: str
    start: Path
    model: PreTrainedModel
    processor: ProcessorMixin
    edge: EdgeModel
    dtype: torch.dtype                # that the checkpoint runs in; it learns in float32
    fresh_processor: bool = False     # it is another than that of the checkpoint at the start
    adapters: Any = None              # of peft

    @property
    def is_plain(self) -> bool:
        """Whether the loop of the miniature can train it."""
        images = self.processor.image_processor
        half = [0.5] * 3
        return (self.model.config.model_type in PLAIN and self.edge.inputs.fast
                and list(images.image_mean) == half == list(images.image_std))

    def merged(self) -> PreTrainedModel:
        """Return the model with its adapters worked into its weights."""
        if self.adapters is not None:
            self.model = self.adapters.merge_and_unload()
            self.adapters = None
        return self.model

    def save(self, folder: Path) -> None:
        """Write a checkpoint that the engine loads, adapters merged."""
        self.merged()
        folder.mkdir(parents=True, exist_ok=True)
        if self.model.config.model_type in PLAIN and self.dtype is torch.float32:
            save_weights(self.model, folder)
        else:
            self.model.to(self.dtype).save_pretrained(folder)
        if self.fresh_processor:
            self.processor.save_pretrained(folder)
        elif self.start.is_dir():
            for file in self.start.iterdir():
                if file.is_file() and not any(file.match(pattern) for pattern in OWN):
                    shutil.copy(file, folder / file.name)


def open_student(start: str, side: int = 0) -> Student:
    """Load a checkpoint to train, with views of another size where ``side`` says so."""
    path = checkpoint_path(start)
    check_folder(path)
    model, processor = load_checkpoint(path)
    fresh = bool(side) and side != getattr(model.config.vision_config, 'image_size', 0)
    if fresh:
        _check_shape(path, model)
        shape = replace(EDGE, image=side)
        model = grown(model, shape, processor.tokenizer)
        processor = build_processor(shape, processor.tokenizer)
    return made_student(path, model, processor, fresh)


def made_student(start: Path, model: PreTrainedModel, processor: ProcessorMixin,
                 fresh: bool = False) -> Student:
    """Return a student of a model in memory."""
    config = EdgeConfig(model=str(start), engine='generate', decoding='free', guard_odds=OFF)
    edge, dtype = EdgeModel(model, processor, config), model.dtype
    model.float().requires_grad_(True)
    return Student(start.name, start, model, processor, edge, dtype, fresh)


def _check_shape(path: Path, model: PreTrainedModel) -> None:
    text, vision = model.config.get_text_config(), model.config.vision_config
    if (model.config.model_type != 'idefics3' or text.hidden_size != EDGE.text[0]
            or vision.hidden_size != EDGE.vision[0]):
        raise ValueError(f'--size is for checkpoints of the shape of {EDGE.name}, {path} is of '
                         'another; leave --size out: its processor says how large views are')


def freeze(student: Student, vision: bool) -> None:
    """Keep the eyes of a model as they are."""
    for name, weight in student.model.named_parameters():
        if vision and any(part in name.split('.') for part in VISION):
            weight.requires_grad_(False)


def add_adapters(student: Student, vision: bool) -> None:
    """Train adapters (LoRA) in place of the weights, of the eyes too unless ``vision``."""
    try:
        import peft
    except ImportError as error:
        raise ValueError('--lora needs peft, which is not installed; run `python -m pip install '
                         'peft`, or train without --lora') from error
    names = [name for name, module in student.model.named_modules()
             if isinstance(module, torch.nn.Linear) and not name.endswith('lm_head')
             and not (vision and any(part in name.split('.') for part in VISION))]
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=names)
    student.adapters = peft.get_peft_model(student.model, config)


def room_for(student: Student, queries: Iterable[Query], least: Room | None = None) -> Room:
    """
    Return how much room prompts and answers take at most.

    Raise ValueError where the tokenizer cannot write a value, or answers are too long.
    """
    edge, answer, length = student.edge, 0, 0
    for query in queries:
        for key, values in query.choices.items():
            for value in values:
                _check_spelling(student, query, key, value)
        facts = tuple(max((Fact(key, value, 0) for value in values), key=lambda fact: _count(
            edge, answer_text(query, [fact]))) for key, values in query.choices.items())
        tokens = _count(edge, answer_text(query, facts)) + 1
        if tokens > query.max_new_tokens:
            raise ValueError(
                f'an answer to query {query.id} takes up to {tokens} tokens of {student.name}, '
                f'max_new_tokens is {query.max_new_tokens}; raise it in the profile, or shorten '
                'values')
        answer = max(answer, tokens)
        blank = torch.zeros((64, 64, 3), dtype=torch.uint8).numpy()
        for context in (None, Context(query.id, 0, facts)):
            given = edge.model_inputs(blank, query, context, 10 * NS)
            length = max(length, len(edge.inputs.encode(given.chat)))
    length = -(-(length + answer + SPARE) // ROOM_STEP) * ROOM_STEP
    longest = student.model.config.get_text_config().max_position_embeddings
    if length > longest:
        raise ValueError(f'a prompt takes up to {length} tokens, {student.name} reads {longest}; '
                         'shorten the prompt and the choices of the query')
    side = edge.view_size[0]
    if least is None:
        return Room(3, side, 2, length, answer)
    return Room(3, side, 2, max(length, least.length), max(answer, least.answer))


def _count(edge: EdgeModel, text: str) -> int:
    return len(edge.inputs.processor.tokenizer(text, add_special_tokens=False)['input_ids'])


def _check_spelling(student: Student, query: Query, key: str, value: str) -> None:
    """Raise ValueError where a value does not come back from the tokenizer as it was."""
    tokenizer = student.processor.tokenizer
    ids = tokenizer(value, add_special_tokens=False)['input_ids']
    back = tokenizer.decode(ids, skip_special_tokens=True)
    if back.strip() != value.strip():
        raise ValueError(f'query {query.id}: {key}: the tokenizer of {student.name} cannot write '
                         f'{value!r}, it makes {back!r} of it; choose another word for it')


def settings(folder: Path) -> dict[str, object]:
    """Return what the training log of a checkpoint says, {} where it has none."""
    try:
        found = json.loads((folder / 'training_log.json').read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
