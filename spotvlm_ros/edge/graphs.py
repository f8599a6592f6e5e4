# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
The engine on a GPU: each forward pass is one CUDA graph of fixed shape.

A small batch leaves a GPU waiting for Python to launch kernels. A captured graph is launched at
once, but only ever computes the same shapes at the same addresses. So prompts are filled up to one
of a few lengths, keys and values live in one buffer of fixed size, and where tokens are written,
seen and read from is data that the graph reads. Filling is written to a last place of the buffer
that nobody looks at. Without capture, as in the tests, the same computation runs on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
import warnings

import numpy as np
import torch
from transformers import Cache

from .engine import as_decoder_takes, Engine, Kept, Prompt, Tokens
from .families import Family, sizes, Visual
from .grammar import Guess, Row

LENGTHS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024,
           1280, 1536, 2048, 3072, 4096)
TEXT_ONLY = 16   # passes up to this length hold no image tokens
ROWS = 16        # most tokens of a pass after which logits are wanted


class FixedCache(Cache):
    """Keys and values of all layers in two tensors; ``where`` says where a pass writes."""

    def __init__(self, layers: int, heads: int, tokens: int, dim: int, like: torch.Tensor) -> None:
        """Make the buffers, zeroed: what was never written must still be a number."""
        super().__init__(layers=[])
        self.keys = like.new_zeros((layers, 1, heads, tokens, dim))
        self.values = like.new_zeros((layers, 1, heads, tokens, dim))
        self.where = torch.zeros(0, dtype=torch.int64)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int,
               *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of one layer; return the whole buffers."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys.index_copy_(2, self.where, key_states)
        values.index_copy_(2, self.where, value_states)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return nothing of use: positions and masks are given to each pass."""
        return 0


@dataclass
class Captured:
    """A graph, or the function itself, with the tensors it reads and writes."""

    run: Callable[[], None]
    data: torch.Tensor             # whole numbers that the pass reads
    out: list[torch.Tensor]


class GraphEngine(Engine):
    """The engine for families with plain causal attention, at fixed shapes."""

    def __init__(self, family: Family, tokens: int = 2048, capture: bool | None = None) -> None:
        """Make room for ``tokens`` of prompt and answer."""
        super().__init__(family)
        config, weight = family.text_config, family.embedding.weight
        heads = config.num_attention_heads
        dim = getattr(config, 'head_dim', None) or config.hidden_size // heads
        self._capture_graphs = weight.is_cuda if capture is None else capture
        self._tokens = tokens = next(n for n in LENGTHS if n >= min(tokens, LENGTHS[-1]))
        self._cache = FixedCache(config.num_hidden_layers, config.num_key_value_heads or heads,
                                 tokens, dim, weight)
        self._added = torch.zeros(tokens, dtype=self._dtype, device=self._device)  # to attention
        self._images = weight.new_zeros((tokens, weight.shape[1]))
        self._order = torch.arange(tokens, device=self._device)
        self._owner: Kept | None = None
        self._saved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._passes: dict[tuple[int, int], Captured] = {}
        self._eyes: dict[object, tuple[Captured, dict[str, torch.Tensor]]] = {}
        self._pool: Any = None

    @torch.inference_mode()
    def prepare(self) -> None:
        """Make the short passes, one of which follows whenever a guess was wrong."""
        for axes in {axes for _, axes in self._passes}:
            for n in LENGTHS[:LENGTHS.index(TEXT_ONLY) + 1]:
                self._pass(n, axes)

    def forget(self) -> None:
        """Drop what is kept between frames."""
        super().forget()
        self._saved.clear()
        self._owner = None

    def _fit(self, guess: Guess) -> Guess:
        """Return the guess where it is a line, cut to what one pass takes."""
        return Guess.line(list(guess.tokens)[:ROWS - 1]) if guess.is_line else Guess()

    def _make_room(self, kept: Kept, tokens: int) -> bool:
        """Have the query's keys and values in the buffers; return False if they are lost."""
        if tokens >= self._tokens:
            raise ValueError(f'prompt and answer take up to {tokens} tokens and there is room for '
                             f'{self._tokens - 1}; shorten context_tokens or max_new_tokens')
        if self._owner is kept:
            return True
        if self._owner is not None:
            n = len(self._owner.ids)
            self._saved[id(self._owner)] = (self._cache.keys[:, :, :, :n].clone(),
                                            self._cache.values[:, :, :, :n].clone())
        living = {id(k) for k in self._all_kept.values()}
        self._saved = {k: v for k, v in self._saved.items() if k in living}
        self._owner = kept
        saved = self._saved.get(id(kept))
        if saved is None:
            return False
        n = saved[0].shape[3]
        self._cache.keys[:, :, :, :n].copy_(saved[0])
        self._cache.values[:, :, :, :n].copy_(saved[1])
        return True

    def _look(self, prompt: Prompt) -> Visual:
        """Run the vision tower, on all images at once."""
        inputs = prompt.inputs
        grid = inputs.get('image_grid_thw')
        key = sizes(inputs)
        if key not in self._eyes:
            held = {'pixel_values': inputs['pixel_values'].clone()}
            if grid is not None:
                held['image_grid_thw'] = grid.cpu()
            self.family.visual(held)  # learns what depends on sizes alone
            self._eyes[key] = (self._captured(
                lambda: [self.family.visual(held).rows], torch.zeros(0)), held)
        eye, held = self._eyes[key]
        held['pixel_values'].copy_(inputs['pixel_values'])
        eye.run()
        return Visual(eye.out[0].clone())

    def _forward(self, kept: Kept, fed: Tokens, guess: Guess, numbers: Tokens) -> list[Row]:
        """Run the decoder on tokens that follow the cache; return rows after them."""
        begin, n_rows = len(kept.ids), 1 + len(guess.tokens)
        new = np.concatenate([fed, np.asarray(guess.tokens, np.int64)])
        kept.ids = np.concatenate([kept.ids, new])
        kept.fed = len(new)
        image = kept.ids == self.family.image_token
        image[kept.prompt:] = False
        places = np.flatnonzero(image[begin:])
        n = next(length for length in LENGTHS
                 if length >= len(new) and (length > TEXT_ONLY or not len(places)))
        positions = self._positions(kept, begin, len(fed), guess)
        if len(fed) > 1:  # the prompt: what is seen of it stays for the whole answer
            self._added.zero_()
            if kept.bias is not None:
                self._added[:len(kept.bias)] = torch.from_numpy(kept.bias).to(self._added)
        if len(places) and kept.visual is not None:
            rows = kept.visual.rows
            if len(numbers) != len(rows) or len(places) != len(rows):
                rows = rows[torch.from_numpy(numbers[-len(places):]).to(self._device)]
            self._images[:len(places)] = rows

        axes = len(positions)
        data = np.zeros((4 + axes, n), np.int64)
        data[0, :len(new)] = np.where(image[begin:], 0, new)
        data[1] = self._tokens - 1
        data[1, :len(new)] = np.arange(begin, begin + len(new))
        data[2] = n
        data[2, :len(places)] = places
        data[3, :n_rows] = np.arange(len(new) - n_rows, len(new))
        data[4:, :len(new)] = positions.numpy()
        found = self._pass(n, axes)
        found.data.copy_(torch.from_numpy(data))
        found.run()
        logits, best = found.out
        return [Row(row, (int(token), probability)) for row, (token, probability)
                in zip(logits[:n_rows], best[:n_rows].tolist())]

    def _pass(self, n: int, axes: int) -> Captured:
        if (n, axes) not in self._passes:
            self._passes[n, axes] = self._make_pass(n, axes)
        return self._passes[n, axes]

    def _make_pass(self, n: int, axes: int) -> Captured:
        """Return the forward pass of n tokens."""
        family, never = self.family, self._never
        data = torch.zeros((4 + axes, n), dtype=torch.int64, device=self._device)
        data[1] = self._tokens - 1
        data[2] = n
        ids, where, places, last = data[0], data[1], data[2], data[3, :min(n, ROWS)]
        positions = as_decoder_takes(data[4:])

        def compute() -> list[torch.Tensor]:
            embeds = family.embedding(ids)
            if n > TEXT_ONLY:
                embeds = torch.cat([embeds, embeds[:1]]).index_copy(
                    0, places, self._images[:n])[:n]
            seen = torch.where(self._order[None] <= where[:, None], self._added[None], never)
            self._cache.where = where
            hidden = family.decode(None, None, inputs_embeds=embeds[None], use_cache=True,
                                   past_key_values=self._cache, position_ids=positions,
                                   attention_mask=seen[None, None].to(self._dtype))
            logits = family.head(hidden[0, last]).float()
            best, token = logits.max(-1)
            probability = (best - logits.logsumexp(-1)).exp()
            return [logits, torch.stack([token.double(), probability.double()], 1)]
        return self._captured(compute, data)

    def _captured(self, compute: Callable[[], list[torch.Tensor]], data: torch.Tensor) -> Captured:
        """Return a computation as a graph, or as it is where nothing can be captured."""
        made = Captured(lambda: None, data, [])

        def plainly() -> None:
            made.out = compute()
        made.run = plainly
        if not self._capture_graphs:
            return made
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # kernels choose their work space on the first runs
                compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Graphs share memory: what one left there is read or copied before the next runs.
            with torch.cuda.graph(graph, pool=self._pool):
                made.out = compute()
        except RuntimeError as error:
            torch.cuda.synchronize()
            warnings.warn(f'{type(self.family).__name__}: a forward pass cannot be captured as a '
                          f'CUDA graph and is slower for it: {error}', stacklevel=2)
            return made
        self._pool = self._pool or graph.pool()
        made.run = graph.replay
        return made
