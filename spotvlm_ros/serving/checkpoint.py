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
"""A transformers checkpoint that answers several requests in one pass."""

from __future__ import annotations

import base64
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from .alone import Alone
from .chat import ChatRequest, PicturePart
from .constraints import Constrained, Constraints
from .graphed import Graphed
from ..edge.loading import load_checkpoint

MAX_TOKENS = 512        # of a reply, where a request does not say
MAX_PICTURES = 16       # of a request
MAX_PIXELS = 2**24      # of a picture
FORMATS = ('JPEG', 'PNG', 'WEBP')


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the likeliest, or with a temperature."""

    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True, eq=False)
class Prepared:
    """A request in tensors; those of one kind fit into one batch."""

    inputs: Mapping[str, torch.Tensor]
    kind: Hashable
    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    schema: str = ''


@dataclass(frozen=True)
class Reply:
    """What the model said."""

    text: str
    prompt_tokens: int
    tokens: int
    finished: bool   # it came to its end, not to that of max_tokens


class Checkpoint:
    """Model and processor; `prepare` may run beside `answer`."""

    _fast: Alone | Graphed | None = None   # what is faster than `generate`

    def __init__(self, path: Path, device: str = 'cpu') -> None:
        """Load. Raise FileNotFoundError or ValueError, with the remedy."""
        model, self._processor = load_checkpoint(path)
        self._model = model.to(device).eval()
        self._tokenizer = self._processor.tokenizer
        ends = model.generation_config.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        self._fast = Alone.of(self._model, self._ends) or Graphed.of(self._model, self._ends)
        pad = self._tokenizer.pad_token_id
        self._pad = min(self._ends) if pad is None else pad
        self._longest = int(model.config.get_text_config().max_position_embeddings)
        self._constraints = Constraints(
            self._tokenizer, model.get_output_embeddings().out_features, min(self._ends))

        if self._model.device.type != 'cpu':
            self._warm_up()

    def _warm_up(self) -> None:
        """Answer something made up: the first batch on a GPU takes seconds, and sets the pace."""
        grey = BytesIO()
        Image.new('RGB', (640, 480), 'grey').save(grey, 'JPEG')
        url = 'data:image/jpeg;base64,' + base64.b64encode(grey.getvalue()).decode('ascii')
        prepared = self.prepare(ChatRequest.model_validate({
            'model': '', 'max_tokens': 2, 'messages': [{'role': 'user', 'content': [
                {'type': 'image_url', 'image_url': {'url': url}},
                {'type': 'text', 'text': 'What is there?'}]}]}))
        for size in (1, 2):
            self.answer([prepared] * size, lambda i: False)

    def at_once(self, most: int) -> int:
        """Return how many requests it pays to compute at once."""
        return 1 if isinstance(self._fast, Alone) else most

    def prepare(self, chat: ChatRequest) -> Prepared:
        """Return a request in tensors; raise ValueError where it cannot be one."""
        n_pictures = sum(isinstance(p, PicturePart) for m in chat.messages
                         if not isinstance(m.content, str) for p in m.content)
        if n_pictures > MAX_PICTURES:
            raise ValueError(f'messages: {n_pictures} pictures; send at most {MAX_PICTURES}')
        turns = [{'role': m.role, 'content': m.content if isinstance(m.content, str) else [
            {'type': 'image', 'image': picture(p.image_url.url)} if isinstance(p, PicturePart)
            else {'type': 'text', 'text': p.text} for p in m.content]} for m in chat.messages]
        schema = chat.schema_text
        if schema:
            self._constraints.check(schema)
        try:
            inputs = dict(self._processor.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors='pt'))
        except Exception as error:  # of any type: templates run, and processors check little
            raise ValueError(f'messages: {error}; compare them with what the model takes, and '
                             'leave its special tokens out') from error
        greedy = not chat.temperature
        sampling = Sampling() if greedy else Sampling(chat.temperature or 1.0, chat.top_p or 1.0)
        shape = inputs['input_ids'].shape
        kind = sampling, tuple((name, tuple(value.shape[1:])) for name, value in inputs.items()
                               if value.shape != shape)
        stop = (chat.stop,) if isinstance(chat.stop, str) else tuple(chat.stop or ())
        room = self._longest - inputs['input_ids'].shape[1]
        if room < 1:
            raise ValueError(f'messages: {inputs["input_ids"].shape[1]} tokens, and the model '
                             f'takes {self._longest}; send less text, or fewer or smaller '
                             'pictures')
        limit = chat.max_completion_tokens or chat.max_tokens or MAX_TOKENS
        return Prepared(inputs, kind, sampling, min(limit, room), stop, schema)

    def answer(self, batch: Sequence[Prepared], gone: Callable[[int], bool]) -> list[Reply]:
        """Return the replies to a batch of one kind; what is ``gone`` need not be gone on with."""
        fast = self._fast
        if fast is None or batch[0].sampling.temperature or not all(
                fast.takes(p.inputs) for p in batch):
            return self.together(batch, gone)
        return [self._reply(p, row) for p, row in zip(batch, fast.answer(
            [p.inputs for p in batch], [p.max_tokens for p in batch],
            [self._constraints.held(p.schema) if p.schema else None for p in batch], gone))]

    def together(self, batch: Sequence[Prepared], gone: Callable[[int], bool]) -> list[Reply]:
        """Return the replies to a batch of one kind, a pass for each token of the longest."""
        inputs = self._joined([p.inputs for p in batch])
        start = inputs['input_ids'].shape[1]
        limits = [p.max_tokens for p in batch]
        sampling = batch[0].sampling
        chosen = {'do_sample': True, 'temperature': sampling.temperature,
                  'top_p': sampling.top_p} if sampling.temperature else {'do_sample': False}
        masks = LogitsProcessorList()
        if any(p.schema for p in batch):
            masks.append(Constrained([self._constraints.held(p.schema) for p in batch], start))
        with torch.inference_mode():
            output = self._model.generate(
                **inputs, **chosen, max_new_tokens=max(limits), pad_token_id=self._pad,
                logits_processor=masks,
                stopping_criteria=StoppingCriteriaList([_Ends(limits, start, gone)]))
        return [self._reply(p, row) for p, row in zip(batch, output[:, start:].tolist())]

    def _joined(self, parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Return the inputs of a batch: what has one value a token is padded on the left."""
        longest = max(part['input_ids'].shape[1] for part in parts)
        dtype = self._model.dtype if self._fast is None else self._fast.vision_dtype
        joined = {}
        for name in parts[0]:
            rows = [part[name] for part in parts]
            if rows[0].shape == parts[0]['input_ids'].shape:
                fill = self._pad if name == 'input_ids' else 0
                rows = [torch.nn.functional.pad(row, (longest - row.shape[1], 0), value=fill)
                        for row in rows]
            value = torch.cat(rows)
            joined[name] = value.to(self._model.device, dtype
                                    if value.is_floating_point() else None)
        return joined

    def _reply(self, prepared: Prepared, row: list[int]) -> Reply:
        tokens = row[:prepared.max_tokens]
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        cuts = [at for stop in prepared.stop if stop and (at := text.find(stop)) >= 0]
        return Reply(text[:min(cuts, default=None)], prepared.inputs['input_ids'].shape[1],
                     len(tokens) if end is None else end + 1, end is not None or bool(cuts))


class _Ends(StoppingCriteria):
    """Ends each row at its own limit, and at once when nobody waits for it any more."""

    def __init__(self, limits: Sequence[int], start: int, gone: Callable[[int], bool]) -> None:
        self._limits, self._start, self._gone = limits, start, gone

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor,
                 **_: object) -> torch.Tensor:
        length = input_ids.shape[1] - self._start
        return torch.tensor([length >= limit or self._gone(i)
                             for i, limit in enumerate(self._limits)], device=input_ids.device)


def picture(url: str) -> Image.Image:
    """Return the picture in a data URL; raise ValueError."""
    try:
        image = Image.open(BytesIO(base64.b64decode(url.partition(',')[2], validate=True)),
                           formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f'it has {image.width} x {image.height} pixels, send at most '
                             f'{MAX_PIXELS}')
        return image.convert('RGB')
    except Image.UnidentifiedImageError:
        raise ValueError('image_url: the picture cannot be read; send a whole JPEG, PNG or WebP '
                         'as base64') from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f'image_url: the picture cannot be read ({error}); send '
                         'another') from None
