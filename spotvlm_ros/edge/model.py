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

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
import time
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from .accuracy import settled
from .answer import EdgeAnswer, guarded_answer, OnText
from .backends import check_backends, computed_by, make_engine
from .cpu import replace_gelu_tanh
from .engine import Ask, Decoded, Engine, Prompt
from .families import check_focus, model_family, Tensors
from .generate import generate
from .grammar import FreeText, Grammar, TemplateCompiler
from .inputs import InputProcessor
from .loading import check_folder, check_image_tokens, load_checkpoint, MAX_ERROR
from .precision import check_files_fit, n_patches, place
from .processors import set_view_size, UnusableError
from ..config.nodes import EdgeConfig
from ..method import focus, guard, prompt
from ..method.facts import Context, Fact, Query, Region
from ..method.final_answer import final_answer
from ..method.free_text import free_text
from ..method.history import compress
from ..mini.shipped import checkpoint_path

NEWLINE = frozenset('\nĊ')  # as itself, and as byte-level tokenizers write it
MAX_LAST = 64    # last answers kept: queries may come and go


class ModelInputs(NamedTuple):
    """What the model is given of a frame, before the processor."""

    context: Context | None                         # within the query's budget
    boxes: dict[str, tuple[int, int, int, int]]     # focus regions by key, x0, y0, x1, y1 [pixels]
    images: list[focus.Image]                       # views of the frame
    chat: list[prompt.Message]


@dataclass(frozen=True)
class LastAnswer:
    """The last answer to a query, and the context it was given with."""

    tokens: list[int]
    facts: tuple[Fact, ...]
    context: Context | None
    partial: bool = False


@dataclass(frozen=True)
class _Request:
    """One answer to give; ``prefix`` names what is kept from the last frame for it."""

    prefix: str
    frame: focus.Image
    query: Query
    context: Context | None
    stamp_ns: int


@dataclass(frozen=True)
class _Prepared:
    """A request with what the model is given for it."""

    request: _Request
    given: ModelInputs
    inputs: Tensors
    history: str         # what the context says, as the prompt has it
    seconds: float       # that it took


class EdgeModel:
    """A loaded checkpoint, which is an `EdgeVLM`. One inference thread per model."""

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
        check_focus(self.focus.backend, model.config.model_type, config.engine)
        self._tokenizer = processor.tokenizer
        self._view_size = set_view_size(processor, model.config, config.view_size)
        self._input_processor = InputProcessor(processor, self._view_size)
        self._engine = make_engine(model, config) if config.engine == 'fast' else None
        self._joins = self._engine is not None and self._engine.joins
        self._eos_ids = _eos_ids(model)
        self._templates = (
            TemplateCompiler(self._tokenizer, processor.chat_template, self._eos_ids)
            if config.decoding == 'constrained' and self._engine is not None else None)
        self._last_answers: dict[str, LastAnswer] = {}
        self._count_tokens = lru_cache(256)(self._token_count)

    @classmethod
    def load(cls, config: EdgeConfig, focus_config: focus.FocusConfig | None = None,
             any_format: bool = False) -> EdgeModel:
        """
        Load the checkpoint that ``config.model`` names: a shipped one, or a folder.

        Raise FileNotFoundError or ValueError with a remedy when that is not possible, or a format
        costs too much (with ``any_format`` it may). Torch may use ``config.threads`` CPU threads
        in this process from then on.
        """
        path, device = checkpoint_path(config.model), config.device
        check_folder(path)
        if device.startswith('cuda') and not torch.cuda.is_available():
            raise ValueError(f'device is {device!r} but torch {torch.__version__} finds no GPU; '
                             "use 'cpu' or install a CUDA build of torch")
        torch.set_num_threads(max(1, config.threads))
        check_files_fit(path)
        model, processor = load_checkpoint(path, device)
        check_focus(focus_config.backend if focus_config else config.focus_backend,
                    model.config.model_type, config.engine)
        try:
            config = config if any_format else settled(config, path)
            check_backends(config)
            size = set_view_size(processor, model.config, config.view_size)
            model = place(model, config, n_patches(model, size))
            if device == 'cpu' and config.engine == 'fast' and model.dtype == torch.float32:
                replace_gelu_tanh(model)
            edge = cls(model, processor, config, focus_config)
            edge._check_image()
        except UnusableError as error:
            raise ValueError(f'{path} cannot be used: {error}') from error
        except torch.OutOfMemoryError:
            raise  # is no fault of the checkpoint's
        except Exception as error:  # of any type: files hold anything, and templates run
            raise ValueError(
                f'{path} cannot be used: {type(error).__name__}: {str(error)[:MAX_ERROR]}; '
                'compare its chat template, config.json, processor_config.json, '
                'preprocessor_config.json and tokenizer_config.json with those of the '
                'checkpoint that it was made of') from error
        return edge

    @property
    def inputs(self) -> InputProcessor:
        """Return what makes the model's inputs of a chat and views."""
        return self._input_processor

    @property
    def checkpoint(self) -> PreTrainedModel:
        """Return the model of transformers."""
        return self._model

    @property
    def formats(self) -> str:
        """Return how numbers are stored, and what computes where it is not torch."""
        return computed_by(self._model, self._engine)

    @property
    def engine(self) -> Engine | None:
        """Return what computes the answers, None where `model.generate` does."""
        return self._engine

    @property
    def view_size(self) -> tuple[int, int]:
        """Return width and height of a view [pixels]."""
        return self._view_size

    def _check_image(self) -> None:
        """Raise an error where prompts have no place for each image feature."""
        family = model_family(self._model) if self._engine is None else self._engine.family
        content: list[prompt.MessagePart] = [{'type': 'image'}, {'type': 'text', 'text': 'a'}]
        chat: list[prompt.Message] = [{'role': 'user', 'content': content}]
        if family is not None:
            check_image_tokens(family, self._input_processor, chat, self._view_size)
        else:  # transformers checks it
            width, height = self._view_size
            inputs = self._to_model(chat, [np.full((height, width, 3), 127, np.uint8)])
            generate(self._model, inputs, 1, lambda: False, lambda tokens: None)

    def _to_model(self, chat: list[prompt.Message], images: list[focus.Image]) -> Tensors:
        """Return the model's inputs, where and as it takes them."""
        dtype = (self._model.dtype if self._engine is None else
                 self._engine.family.vision_dtype)
        return {k: v.to(self._model.device, dtype if v.is_floating_point() else None)
                for k, v in self._input_processor(chat, images).items()}

    def use_processor(self) -> None:
        """Have the processor prepare all inputs from now on, to compare with."""
        self._input_processor.fast = False

    def warm_up(self, queries: Iterable[Query]) -> None:
        """
        Answer each query about some made-up frames, so that the first real one is not slower.

        Call it from the thread that will answer: torch sets up its threads per caller.
        """
        noise = np.random.default_rng(0)  # views of one frame must not be the same
        frames = noise.integers(0, 256, (4, 480, 640, 3), dtype=np.uint8)
        views = focus.views(frames[0], Query('', '', 'text'), {}, self._view_size, self.focus)
        for query in queries:
            facts = tuple(Fact(k, v[0], 0) for k, v in query.choices.items())
            regions = {f.key: Region(0, 0, 200, 200) for f in facts[:1]}
            told = Context(query.id, 0, facts, text='x' * (not facts), focus=regions)
            for context in (None, told):
                self._input_processor.check(prompt.messages(query, context, 0, len(views)), views)
                for frame in frames[:2]:  # the second as most will be, with a prefix cached
                    self._answer_once(self._request(frame, query, context, 0))
            if self._joins and guard.FixedOdds(query, self._odds).guards(query):
                for frame in frames[2:]:
                    self._answer_both([self._request(frame, query, c, 0) for c in (None, told)],
                                      None)
        if self._engine is not None:
            self._engine.prepare()
        self._last_answers.clear()

    def answer(self, frame: focus.Image, query: Query, context: Context | None, stamp_ns: int,
               on_text: OnText | None = None,
               should_stop: Callable[[], bool] | None = None,
               judge: guard.Judge | None = None) -> EdgeAnswer:
        """
        Answer a query about a frame.

        `frame` is height x width x 3, RGB, acquired at `stamp_ns`. `on_text` is called with
        the answer so far and its number of tokens; `should_stop` is asked before each forward
        pass; `judge` takes the place of the guard's rule. Raise ValueError where prompt and answer
        are too long for the engine.
        """
        judge = judge or guard.FixedOdds(query, self._odds)

        def request(given: Context | None) -> _Request:
            return self._request(frame, query, given, stamp_ns)
        known: list[EdgeAnswer] = []    # without context and with it
        if self._expects_both(query, context, judge):
            known += self._answer_both([request(None), request(context)], should_stop)
        return guarded_answer(
            query, context, judge, lambda given, streamed: known.pop(0) if known else
            self._answer_once(request(given), streamed, should_stop), on_text)

    def model_inputs(self, frame: focus.Image, query: Query, context: Context | None,
                     stamp_ns: int) -> ModelInputs:
        """Return what the model is given of a frame, within its budget."""
        if context is not None:
            context = compress(context, query, stamp_ns, query.context_tokens, self._count_tokens)
        height, width = frame.shape[:2]
        boxes = focus.focus_boxes(query, context, stamp_ns, width, height, self.focus)
        images = focus.views(frame, query, boxes, self._view_size, self.focus)
        return ModelInputs(context, boxes, images,
                           prompt.messages(query, context, stamp_ns, len(images)))

    def _request(self, frame: focus.Image, query: Query, context: Context | None,
                 stamp_ns: int) -> _Request:
        """Return a request; the guard's answer without context has a prefix of its own."""
        alone = context is None and guard.FixedOdds(query, self._odds).guards(query)
        return _Request(f'{query.id} alone' if alone else query.id, frame, query, context,
                        stamp_ns)

    def _expects_both(self, query: Query, context: Context | None, judge: guard.Judge) -> bool:
        """
        Return whether the guard is likely to want two passes, which then are made as one.

        It is where the last answer leaves a doubt now and there was time for two.
        """
        if not self._joins or context is None or not context.helps or not judge.guards(query):
            return False
        told, alone = map(self._last_answers.get, (query.id, f'{query.id} alone'))
        return (told is not None and not told.partial and alone is not None
                and not judge.leaves_no_doubt(alone.facts, context))

    def _answer_both(self, requests: Sequence[_Request],
                     should_stop: Callable[[], bool] | None) -> list[EdgeAnswer]:
        """
        Return several answers to a frame, computed together; nothing where that fails.

        The first is charged with what all took.
        """
        assert self._engine is not None
        begin = time.perf_counter()
        try:
            prepared = [self._prepare(request) for request in requests]
            found = self._engine.answer_all([self._ask(each) for each in prepared],
                                            should_stop or (lambda: False))
        except Exception:  # one by one, it is told which of them fails, and why
            return []
        begin += sum(each.seconds for each in prepared)
        return [self._finish(each, decoded, None if i else begin)
                for i, (each, decoded) in enumerate(zip(prepared, found))]

    def _answer_once(self, request: _Request, on_text: OnText | None = None,
                     should_stop: Callable[[], bool] | None = None) -> EdgeAnswer:
        """Answer in one go, without the guard."""
        prepared, begin = self._prepare(request), time.perf_counter()
        stop = should_stop or (lambda: False)
        ask = self._ask(prepared, on_text)
        decoded = (self._engine.answer_all([ask], stop)[0] if self._engine is not None else
                   generate(self._model, prepared.inputs, ask.limit, stop, ask.on_token))
        return self._finish(prepared, decoded, begin)

    def _prepare(self, request: _Request) -> _Prepared:
        """Return what the model is given for a request."""
        begin, query, stamp_ns = time.perf_counter(), request.query, request.stamp_ns
        given = self.model_inputs(request.frame, query, request.context, stamp_ns)
        inputs = self._to_model(given.chat, given.images)
        history = (prompt.history_text(query, given.context, stamp_ns)
                   if given.context is not None else '')
        return _Prepared(request, given, inputs, history, time.perf_counter() - begin)

    def _ask(self, prepared: _Prepared, on_text: OnText | None = None) -> Ask:
        """Return what the engine is asked; what it says goes to ``on_text``."""
        request, query = prepared.request, prepared.request.query

        def on_token(tokens: list[int]) -> None:
            if on_text is not None:
                on_text(_readable(query, self._decode(tokens))[0], len(tokens))
        return Ask(request.prefix, self._prompt(request, prepared.given, prepared.inputs),
                   self._grammar(request, prepared.given.context), query.max_new_tokens, on_token)

    def _finish(self, prepared: _Prepared, decoded: Decoded, begin: float | None) -> EdgeAnswer:
        """Return and keep the answer that was decoded; it is charged from ``begin`` on."""
        request, given, query = prepared.request, prepared.given, prepared.request.query
        text = self._decode(decoded.tokens)
        seconds = time.perf_counter() - begin if begin is not None else 0.0
        shown, why = _readable(query, text)
        facts, rejected = prompt.parse_answer(query, final_answer(text), request.stamp_ns)
        facts = _with_confidence(facts, self._line_confidence(decoded))
        if len(self._last_answers) >= MAX_LAST and request.prefix not in self._last_answers:
            del self._last_answers[next(iter(self._last_answers))]
        self._last_answers[request.prefix] = LastAnswer(decoded.tokens, facts, given.context,
                                                        decoded.partial)
        told = bool(prepared.history) or bool(given.boxes)
        return EdgeAnswer(
            text=shown, facts=facts, rejected=(why,) if why else tuple(rejected),
            told_keys=frozenset(f.key for f in facts if told),
            used_context=bool(prepared.history), used_focus=bool(given.boxes),
            context_tokens=self._count_tokens(prepared.history),
            preprocess_s=prepared.seconds, inference_s=seconds, partial=decoded.partial,
            passes=decoded.passes, computed_tokens=decoded.computed_tokens)

    def _prompt(self, request: _Request, given: ModelInputs, inputs: Tensors) -> Prompt:
        """Return the engine's prompt, with image tokens left out or favoured."""
        ids = tuple(inputs['input_ids'][0].tolist())
        image_keys = tuple(image.tobytes() for image in given.images)
        if not given.boxes or self.focus.backend == 'crop' or self._engine is None:
            return Prompt(ids, inputs, image_keys)
        family = self._engine.family
        rows, columns = family.token_grid(inputs, len(image_keys),
                                          ids.count(family.image_token_id))
        height, width = request.frame.shape[:2]
        regions = focus.regions_of_views(request.query, given.boxes, width, height, self.focus)
        if self.focus.backend == 'tokens':
            keep = focus.tokens_to_keep(regions, rows, columns, self.focus)
            return Prompt(ids, inputs, image_keys, keep=keep)
        bias = np.concatenate([focus.token_coverage(view, rows, columns) for view in regions])
        bias *= np.float32(self.focus.bias)
        return Prompt(ids, inputs, image_keys, bias=bias)

    def _grammar(self, request: _Request, context: Context | None) -> Grammar:
        """Return what may be answered; drafted is the last answer, or news from the cloud."""
        last = self._last_answers.get(request.prefix)
        template = (self._templates.template(request.query, expected_values(last, context))
                    if self._templates is not None else None)
        return template or FreeText(self._eos_ids, last.tokens if last is not None else ())

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _token_count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)['input_ids']) if text else 0

    def _line_confidence(self, decoded: Decoded) -> list[float]:
        """Return, for each line of the answer, the product of its tokens' probabilities."""
        lines = [1.0]
        pieces = self._tokenizer.convert_ids_to_tokens(decoded.tokens)
        for piece, probability in zip(pieces, decoded.probabilities):
            if NEWLINE & set(piece or ''):  # None: an embedding of the model without a token
                lines.append(1.0)
            lines[-1] *= probability
        return lines


def _readable(query: Query, text: str) -> tuple[str, str]:
    """Return what was said for people to read, and '' or why a text cannot be read."""
    said, why = free_text(text)
    shown = '\n'.join(prompt.neutralise(line) for line in said.splitlines())
    return shown, why if query.format == 'text' else ''


def expected_values(last: LastAnswer | None, context: Context | None) -> dict[str, str]:
    """Return the values likely to be answered: the last ones, unless the cloud has new ones."""
    before = _values(last.context) if last is not None else {}
    now = _values(context)
    news = {k: v for k, v in now.items() if before.get(k) != v}
    return now | ({f.key: f.value for f in last.facts} if last is not None else {}) | news


def _values(context: Context | None) -> dict[str, str]:
    return {f.key: f.value for f in context.facts} if context is not None else {}


def _eos_ids(model: PreTrainedModel) -> frozenset[int]:
    """Return the tokens that end an answer."""
    ids = model.generation_config.eos_token_id
    return frozenset(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])


def _with_confidence(facts: Sequence[Fact], lines: Sequence[float]) -> tuple[Fact, ...]:
    """Pair facts with lines in order; an answer that left lines out keeps the lowest."""
    if len(facts) != len(lines):
        return tuple(replace(f, confidence=min(lines)) for f in facts)
    return tuple(replace(f, confidence=c) for f, c in zip(facts, lines))
