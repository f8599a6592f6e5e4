# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
The edge model: one frame, one query and its context in; an answer out.

Any checkpoint that `AutoModelForImageTextToText` and `AutoProcessor` can load will do. Decoding is
greedy, so the same input always gives the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .inputs import Inputs
from ..method import focus, prompt
from ..method.facts import Context, Fact, Query
from ..method.history import compress

NEWLINE = frozenset('\nĊ')  # as itself, and as byte-level tokenizers write it


@dataclass(frozen=True)
class EdgeAnswer:
    """What the model said about one frame, and what it took. Durations in seconds."""

    text: str
    facts: tuple[Fact, ...]
    rejected: tuple[str, ...]    # what could not be read as an answer, and why
    used_context: bool
    used_focus: bool
    context_tokens: int
    preprocess_s: float
    inference_s: float
    partial: bool                # stopped before the model was done


class EdgeModel:
    """A loaded checkpoint. Not thread-safe: one inference thread per model."""

    def __init__(self, name: str, model: Any, processor: Any, focus_config: focus.FocusConfig,
                 ) -> None:
        """Wrap a model and its processor; `load` is the usual way in."""
        self.name = name
        self.focus = focus_config
        self._model = model.eval()
        self._tokenizer = processor.tokenizer
        self._view_size = _view_size(processor)
        self._inputs = Inputs(processor, self._view_size)

    @classmethod
    def load(cls, path: str | Path, device: str = 'cpu', threads: int = 1,
             focus_config: focus.FocusConfig | None = None) -> EdgeModel:
        """
        Load a checkpoint folder.

        Raise FileNotFoundError or ValueError with a remedy when that is not possible.
        `threads` is the number of CPU threads torch may use in this process.
        """
        path = Path(path)
        if not (path / 'config.json').is_file():
            raise FileNotFoundError(
                f'{path} is no checkpoint: it has no config.json; name a folder written by '
                'save_pretrained, or a model that ships with spotvlm (spot-mini-edge)')
        if device.startswith('cuda') and not torch.cuda.is_available():
            raise ValueError(f'device is {device!r} but torch {torch.__version__} finds no GPU; '
                             "use 'cpu' or install a CUDA build of torch")
        torch.set_num_threads(max(1, threads))
        try:
            processor = AutoProcessor.from_pretrained(path, local_files_only=True)
            model = AutoModelForImageTextToText.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ValueError(f'{path} cannot be loaded: {error}; see `spotvlm doctor` for what '
                             'this installation lacks') from error
        return cls(path.name, model.to(device), processor, focus_config or focus.FocusConfig())

    def warm_up(self, queries: Iterable[Query]) -> None:
        """
        Answer each query about a grey frame, so that the first real one is not slower.

        Call it from the thread that will answer: torch sets up its threads per caller.
        """
        frame = np.full((480, 640, 3), 127, dtype=np.uint8)
        views = focus.views(frame, Query('', '', 'text'), {}, self._view_size, self.focus)
        for query in queries:
            told = tuple(Fact(k, v[0], 0) for k, v in query.choices.items())
            for context in (None, Context(query.id, 0, told, text='x' * (not told))):
                self._inputs.check(prompt.messages(query, context, 0, len(views)), views)
                self.answer(frame, query, context, 0)

    def answer(self, frame: focus.Image, query: Query, context: Context | None, stamp_ns: int,
               on_text: Callable[[str, int], None] | None = None,
               should_stop: Callable[[], bool] | None = None) -> EdgeAnswer:
        """
        Answer a query about a frame.

        `frame` is height x width x 3, RGB, acquired at `stamp_ns`. `on_text` is called with
        the answer so far and its number of tokens; `should_stop` is asked before each token.
        """
        begin = time.perf_counter()
        height, width = frame.shape[:2]
        if context is not None:
            context = compress(context, query, stamp_ns, query.context_tokens, self._count)
        boxes = focus.focus_boxes(query, context, stamp_ns, width, height, self.focus)
        images = focus.views(frame, query, boxes, self._view_size, self.focus)
        chat = prompt.messages(query, context, stamp_ns, len(images))
        inputs = {k: v.to(self._model.device, self._model.dtype if v.is_floating_point() else None)
                  for k, v in self._inputs(chat, images).items()}
        history = prompt.history_text(query, context, stamp_ns) if context is not None else ''
        ready = time.perf_counter()

        stop = _Stop(should_stop)
        start = inputs['input_ids'].shape[1]
        with torch.inference_mode():
            out = self._model.generate(
                **inputs, do_sample=False, max_new_tokens=query.max_new_tokens,
                return_dict_in_generate=True, output_logits=True,
                stopping_criteria=StoppingCriteriaList([stop]),
                streamer=_Streamer(self._tokenizer, on_text) if on_text else None)
        tokens = out.sequences[0, start:].tolist()
        said = self._tokenizer.decode(tokens, skip_special_tokens=True)
        done = time.perf_counter()

        lines = [prompt.neutralise(line) for line in said.strip().splitlines()]
        facts, rejected = prompt.parse_answer(query, said, stamp_ns)
        facts = _with_confidence(facts, self._line_confidence(tokens, out.logits))
        return EdgeAnswer(
            text='\n'.join(lines), facts=facts, rejected=tuple(rejected),
            used_context=bool(history), used_focus=bool(boxes),
            context_tokens=self._count(history),
            preprocess_s=ready - begin, inference_s=done - ready, partial=stop.stopped)

    def _count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self._tokenizer(text, add_special_tokens=False)['input_ids']) if text else 0

    def _line_confidence(self, tokens: Sequence[int], logits: Sequence[Any]) -> list[float]:
        """Return, for each line of the answer, the product of its tokens' probabilities."""
        rows = torch.cat([row[:1] for row in logits]).float().softmax(-1)
        chosen = rows[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
        lines = [1.0]
        for piece, probability in zip(self._tokenizer.convert_ids_to_tokens(tokens), chosen):
            if NEWLINE & set(piece):
                lines.append(1.0)
            lines[-1] *= probability
        return lines


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
    longest = dict(getattr(images, 'max_image_size', None) or {}).get('longest_edge')
    if longest:
        return int(longest), int(longest)
    size = dict(getattr(images, 'size', None) or {})
    if size.get('height') and size.get('width'):
        return int(size['width']), int(size['height'])
    side = int(size.get('shortest_edge') or 384)
    return (side, side) if side <= 1024 else (384, 384)  # Qwen gives a number of pixels there


class _Stop(StoppingCriteria):
    def __init__(self, asked: Callable[[], bool] | None) -> None:
        self._asked, self.stopped = asked, False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        if self._asked is not None and self._asked():
            self.stopped = True
        return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)


class _Streamer(BaseStreamer):
    def __init__(self, tokenizer: Any, on_text: Callable[[str, int], None]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._tokens: list[int] | None = None  # the first call brings the prompt

    def put(self, value: Any) -> None:
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += value.flatten().tolist()
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        self._on_text(prompt.neutralise(text), len(self._tokens))

    def end(self) -> None:
        """Nothing is left to say."""
