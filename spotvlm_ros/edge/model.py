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
The edge model: one frame, one query and its context in; an answer out.

Any checkpoint that `AutoModelForImageTextToText` and `AutoProcessor` can load will do. Decoding is
greedy, so the same input always gives the same answer, whatever was answered before. Architectures
that the engine does not know are run by `model.generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers import PreTrainedModel, ProcessorMixin, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .answer import EdgeAnswer
from .cpu import quicken
from .engine import Decoded, Engine, Prompt
from .families import check_focus, FAMILIES, Family, family_of, use_masks
from .gpu.graphs import GraphEngine
from .grammar import Free, Grammar, Templates
from .inputs import Inputs
from ..config.nodes import EdgeConfig
from ..method import focus, guard, prompt
from ..method.facts import Context, Fact, Query, Region
from ..method.history import compress
from ..mini.shipped import checkpoint_path

NEWLINE = frozenset('\nĊ')  # as itself, and as byte-level tokenizers write it
SIDE = 384  # of a view where the processor takes any size [pixels]


class EdgeModel:
    """A loaded checkpoint. Not thread-safe: one inference thread per model."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, config: EdgeConfig,
                 focus_config: focus.FocusConfig | None = None) -> None:
        """
        Wrap a model and its processor; `load` is the usual way in.

        ``config`` says how to answer; ``focus_config``, where given, takes the place of its
        ``focus_backend``. Raise ValueError where a focus back-end does not suit the model.
        """
        self.name, self._odds = Path(config.model).name, config.guard_odds
        self.focus = focus_config or focus.FocusConfig(backend=config.focus_backend)
        self._model = model.eval().requires_grad_(False)
        fast, kind = config.engine == 'fast', model.config.model_type
        if fast and kind in FAMILIES:
            use_masks(model)
        self._tokenizer = processor.tokenizer
        check_focus(self.focus.backend, kind, config.engine)
        self._view_size = _view_size(processor)
        self._inputs = Inputs(processor, self._view_size)
        family = family_of(model) if fast else None
        self._engine = _engine(family) if family is not None else None
        self._ends = _ends(model)
        self._templates = (Templates(self._tokenizer, processor.chat_template, self._ends)
                           if config.decoding == 'constrained' and self._engine is not None
                           else None)
        self._drafts: dict[str, _Draft] = {}
        self._count = lru_cache(256)(self._count_tokens)

    @classmethod
    def load(cls, config: EdgeConfig, focus_config: focus.FocusConfig | None = None) -> EdgeModel:
        """
        Load the checkpoint that ``config.model`` names: a shipped one, or a folder.

        Raise FileNotFoundError or ValueError with a remedy when that is not possible. Torch may
        use ``config.threads`` CPU threads in this process from then on.
        """
        path, device = checkpoint_path(config.model), config.device
        if not (path / 'config.json').is_file():
            raise FileNotFoundError(
                f'{path} is no checkpoint: it has no config.json; name a folder written by '
                'save_pretrained, or a model that ships with spotvlm (spot-mini-edge)')
        if device.startswith('cuda') and not torch.cuda.is_available():
            raise ValueError(f'device is {device!r} but torch {torch.__version__} finds no GPU; '
                             "use 'cpu' or install a CUDA build of torch")
        torch.set_num_threads(max(1, config.threads))
        try:
            processor = AutoProcessor.from_pretrained(path, local_files_only=True)
            model = AutoModelForImageTextToText.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ValueError(f'{path} cannot be loaded: {error}; see `spotvlm doctor` for what '
                             'this installation lacks') from error
        if device == 'cpu' and config.engine == 'fast':
            quicken(model)
        return cls(model.to(device), processor, config, focus_config)

    def use_processor(self) -> None:
        """Have the processor prepare all inputs from now on, to compare with."""
        self._inputs.fast = False

    def warm_up(self, queries: Iterable[Query]) -> None:
        """
        Answer each query about two grey frames, so that the first real one is not slower.

        Call it from the thread that will answer: torch sets up its threads per caller.
        """
        frames = [np.full((480, 640, 3), grey, dtype=np.uint8) for grey in (127, 128)]
        views = focus.views(frames[0], Query('', '', 'text'), {}, self._view_size, self.focus)
        for query in queries:
            told = tuple(Fact(k, v[0], 0) for k, v in query.choices.items())
            focus_on = {f.key: Region(0, 0, 200, 200) for f in told[:1]}
            for context in (None, Context(query.id, 0, told, text='x' * (not told),
                                          focus=focus_on)):
                self._inputs.check(prompt.messages(query, context, 0, len(views)), views)
                for frame in frames:  # the second as most will be, with what was kept
                    alone = context is None and guard.is_guarded(query, self._odds)
                    self._pass(_alone(query) if alone else query.id, frame, query, context, 0)
        if self._engine is not None:
            self._engine.prepare()
        self._drafts.clear()

    def answer(self, frame: focus.Image, query: Query, context: Context | None, stamp_ns: int,
               on_text: Callable[[str, int], None] | None = None,
               should_stop: Callable[[], bool] | None = None) -> EdgeAnswer:
        """
        Answer a query about a frame.

        `frame` is height x width x 3, RGB, acquired at `stamp_ns`. `on_text` is called with
        the answer so far and its number of tokens; `should_stop` is asked before each forward
        pass. An answer without context that is complete stands when there is no time for more.
        """
        guarded = guard.is_guarded(query, self._odds)

        def pass_(given: Context | None) -> EdgeAnswer:
            name = _alone(query) if guarded and given is None else query.id
            streamed = on_text if given is None or not guarded else None
            return self._pass(name, frame, query, given, stamp_ns, streamed, should_stop)
        return guard.guarded_answer(query, context, self._odds, pass_, partial(_combined, query))

    def shown(self, frame: focus.Image, query: Query, context: Context | None, stamp_ns: int,
              ) -> Shown:
        """Return what the model is given for a frame: within its budget, before the processor."""
        if context is not None:
            context = compress(context, query, stamp_ns, query.context_tokens, self._count)
        height, width = frame.shape[:2]
        boxes = focus.focus_boxes(query, context, stamp_ns, width, height, self.focus)
        images = focus.views(frame, query, boxes, self._view_size, self.focus)
        return Shown(context, boxes, images,
                     prompt.messages(query, context, stamp_ns, len(images)))

    def _pass(self, name: str, frame: focus.Image, query: Query, context: Context | None,
              stamp_ns: int, on_text: Callable[[str, int], None] | None = None,
              should_stop: Callable[[], bool] | None = None) -> EdgeAnswer:
        """Answer once; what is kept between frames goes by ``name``."""
        begin = time.perf_counter()
        context, boxes, images, chat = self.shown(frame, query, context, stamp_ns)
        inputs = {k: v.to(self._model.device, self._model.dtype if v.is_floating_point() else None)
                  for k, v in self._inputs(chat, images).items()}
        history = prompt.history_text(query, context, stamp_ns) if context is not None else ''
        ready = time.perf_counter()

        def on_token(tokens: list[int]) -> None:
            if on_text is not None:
                on_text(prompt.neutralise(self._decode(tokens)), len(tokens))
        stop = should_stop or (lambda: False)
        if self._engine is not None:
            height, width = frame.shape[:2]
            asked = self._prompt(inputs, images, query, boxes, width, height)
            decoded = self._engine.answer(name, asked, self._grammar(name, query, context),
                                          query.max_new_tokens, stop, on_token)
        else:
            decoded = self._generate(inputs, query.max_new_tokens, stop, on_token)
        said = self._decode(decoded.tokens)
        done = time.perf_counter()

        lines = [prompt.neutralise(line) for line in said.strip().splitlines()]
        facts, rejected = prompt.parse_answer(query, said, stamp_ns)
        facts = _with_confidence(facts, self._line_confidence(decoded))
        self._drafts[name] = _Draft(decoded.tokens, facts, context)
        return EdgeAnswer(
            text='\n'.join(lines), facts=facts, rejected=tuple(rejected),
            used_context=bool(history), used_focus=bool(boxes),
            context_tokens=self._count(history),
            preprocess_s=ready - begin, inference_s=done - ready, partial=decoded.partial,
            passes=decoded.passes, computed_tokens=decoded.computed)

    def _prompt(self, inputs: Mapping[str, Any], images: Sequence[focus.Image], query: Query,
                boxes: Mapping[str, Sequence[int]], width: int, height: int) -> Prompt:
        """Return what the engine is asked, with image tokens left out or favoured."""
        ids = tuple(inputs['input_ids'][0].tolist())
        seen = tuple(image.tobytes() for image in images)
        if not boxes or self.focus.backend == 'crop' or self._engine is None:
            return Prompt(ids, inputs, seen)
        family = self._engine.family
        rows, columns = family.grid(inputs, len(images), ids.count(family.image_token))
        regions = focus.regions_of_views(query, boxes, width, height, self.focus)
        if self.focus.backend == 'tokens':
            keep = focus.tokens_to_keep(regions, rows, columns, self.focus)
            return Prompt(ids, inputs, seen, keep=keep)
        bias = np.concatenate([focus.token_coverage(view, rows, columns) for view in regions])
        bias *= np.float32(self.focus.bias)
        return Prompt(ids, inputs, seen, bias=bias)

    def _grammar(self, name: str, query: Query, context: Context | None) -> Grammar:
        """Return what may be answered; the guess is the last answer, or news from the cloud."""
        draft = self._drafts.get(name)
        template = (self._templates.start(query, _draft_values(draft, context))
                    if self._templates is not None else None)
        return template or Free(self._ends, draft.tokens if draft is not None else ())

    def _generate(self, inputs: Mapping[str, Any], limit: int, should_stop: Callable[[], bool],
                  on_token: Callable[[list[int]], None]) -> Decoded:
        """Answer with `model.generate`."""
        stop = _Stop(should_stop)
        start = inputs['input_ids'].shape[1]
        with torch.inference_mode():
            out = self._model.generate(
                **inputs, do_sample=False, max_new_tokens=limit, return_dict_in_generate=True,
                output_logits=True, stopping_criteria=StoppingCriteriaList([stop]),
                streamer=_Streamer(on_token))
        tokens = out.sequences[0, start:].tolist()
        rows = torch.cat([row[:1] for row in out.logits]).float().softmax(-1)
        chosen = rows[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
        return Decoded(tokens, chosen, stop.stopped, len(tokens), 0, start + len(tokens) - 1)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self._tokenizer(text, add_special_tokens=False)['input_ids']) if text else 0

    def _line_confidence(self, decoded: Decoded) -> list[float]:
        """Return, for each line of the answer, the product of its tokens' probabilities."""
        lines = [1.0]
        pieces = self._tokenizer.convert_ids_to_tokens(decoded.tokens)
        for piece, probability in zip(pieces, decoded.probabilities):
            if NEWLINE & set(piece or ''):  # None: a row of the model without a token
                lines.append(1.0)
            lines[-1] *= probability
        return lines


class Shown(NamedTuple):
    """What the model is given: context, regions [pixels], views of the frame, chat."""

    context: Context | None
    boxes: dict[str, tuple[int, int, int, int]]
    images: list[focus.Image]
    chat: list[prompt.Message]


@dataclass(frozen=True)
class _Draft:
    """The last answer to a query, and the context it was given with."""

    tokens: list[int]
    facts: tuple[Fact, ...]
    context: Context | None


def _combined(query: Query, first: EdgeAnswer, second: EdgeAnswer,
              facts: tuple[Fact, ...]) -> EdgeAnswer:
    """Return the answer of the guard's two passes."""
    return replace(
        second, facts=facts, text=prompt.answer_text(query, facts) if facts else second.text,
        preprocess_s=first.preprocess_s + second.preprocess_s,
        inference_s=first.inference_s + second.inference_s, passes=first.passes + second.passes,
        computed_tokens=first.computed_tokens + second.computed_tokens)


def _alone(query: Query) -> str:
    """Return the name by which the guard's pass without context is kept."""
    return f'{query.id} alone'


def _draft_values(last: _Draft | None, context: Context | None) -> dict[str, str]:
    """Return the values likely to be answered: the last ones, unless the cloud says new ones."""
    before = _values(last.context) if last is not None else {}
    told = _values(context)
    news = {k: v for k, v in told.items() if before.get(k) != v}
    return told | ({f.key: f.value for f in last.facts} if last is not None else {}) | news


def _values(context: Context | None) -> dict[str, str]:
    return {f.key: f.value for f in context.facts} if context is not None else {}


def _engine(family: Family) -> Engine:
    """Return the engine that suits a model and where it runs."""
    on_gpu = family.embedding.weight.is_cuda
    return GraphEngine(family) if on_gpu and family.fixed_shapes else Engine(family)


def _ends(model: Any) -> frozenset[int]:
    """Return the tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])


def _with_confidence(facts: Sequence[Fact], lines: Sequence[float]) -> tuple[Fact, ...]:
    """Pair facts with lines in order; an answer that left lines out keeps the lowest."""
    if len(facts) != len(lines):
        return tuple(replace(f, confidence=min(lines)) for f in facts)
    return tuple(replace(f, confidence=c) for f, c in zip(facts, lines))


def _view_size(processor: Any) -> tuple[int, int]:
    """Return width and height at which the processor takes an image without resizing it."""
    images = processor.image_processor
    if getattr(images, 'do_image_splitting', False):
        images.do_image_splitting = False  # two views are the budget; tiles would multiply it
    size = dict(getattr(images, 'size', None) or {})
    longest = dict(getattr(images, 'max_image_size', None) or {}).get('longest_edge')
    if longest:
        return int(longest), int(longest)
    if size.get('height') and size.get('width'):
        return int(size['width']), int(size['height'])
    merge = getattr(images, 'merge_size', None)
    if merge:  # Qwen takes any multiple of this, up to a number of pixels
        step = int(images.patch_size) * int(merge)
        most = int(size.get('longest_edge') or SIDE ** 2) ** 0.5
        side = max(step, min(round(SIDE / step), int(most / step)) * step)
        return side, side
    side = int(size.get('shortest_edge') or SIDE)
    return side, side


class _Stop(StoppingCriteria):
    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked, self.stopped = asked, False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.stopped = self.stopped or self._asked()
        return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)


class _Streamer(BaseStreamer):
    def __init__(self, on_token: Callable[[list[int]], None]) -> None:
        self._on_token = on_token
        self._tokens: list[int] | None = None  # the first call brings the prompt

    def put(self, value: Any) -> None:
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += value.flatten().tolist()
        self._on_token(self._tokens)

    def end(self) -> None:
        """Nothing is left to say."""
