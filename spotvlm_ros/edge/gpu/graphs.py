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
from torch._dynamo.exc import BackendCompilerFailed
from transformers import Cache

from .layers import align, KernelsFail, Layers, OnePatch, OneTokenLayers
from ..engine import as_decoder_takes, Decoded, Engine, Kept, Prompt, Tokens
from ..families import Family, sizes, Visual
from ..grammar import Free, Grammar, Guess, Row

LENGTHS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024,
           1280, 1536, 2048, 3072, 4096)
TEXT_ONLY = 16   # passes up to this length hold no image tokens
ROWS = 16        # most tokens of a pass after which logits are wanted


@dataclass
class LayerCache:
    """Keys and values of one layer, of fixed size."""

    keys: torch.Tensor     # 1 x heads x tokens x dim
    values: torch.Tensor
    where: torch.Tensor    # places that the new ones are written to

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor,
               *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values; return the whole buffers."""
        self.keys.index_copy_(2, self.where, key_states)
        self.values.index_copy_(2, self.where, value_states)
        return self.keys, self.values


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
        return self.layer(layer_idx).update(key_states, value_states)

    def layer(self, index: int) -> LayerCache:
        """Return the part of one layer."""
        return LayerCache(self.keys[index], self.values[index], self.where)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return nothing of use: positions and masks are given to each pass."""
        return 0


@dataclass
class Captured:
    """A graph, or the function itself, with the tensors it reads and writes."""

    run: Callable[[], None]
    data: torch.Tensor             # whole numbers that the pass reads
    out: list[torch.Tensor]


@dataclass
class Running:
    """A pass that the GPU may not have finished."""

    begin: int                     # place of the first token
    logits: torch.Tensor           # rows x words
    best: torch.Tensor             # what is likeliest and how much, where the CPU reads them
    done: Any                      # event after which it can
    token: int = -1                # that was fed, once known


class GraphEngine(Engine):
    """The engine for families with plain causal attention, at fixed shapes."""

    def __init__(self, family: Family, tokens: int = 2048, capture: bool | None = None,
                 compiled: bool | None = None) -> None:
        """
        Make room for ``tokens`` of prompt and answer.

        On a GPU passes are captured, and their layers compiled first, unless told otherwise.
        """
        super().__init__(family)
        config, weight = family.text_config, family.embedding.weight
        heads = config.num_attention_heads
        dim = getattr(config, 'head_dim', None) or config.hidden_size // heads
        self._capture_graphs = weight.is_cuda if capture is None else capture
        self._compiled = compiled or compiled is None and weight.is_cuda
        self._layers, self._vision_layers = (
            Layers(layers) for layers in (family.decoder.layers, family.vision_layers))
        self._kernels_fail = False
        if weight.is_cuda:
            align(family.tower.modules())
            OnePatch.use(family.tower.modules())
        self._tokens = tokens = next(n for n in LENGTHS if n >= min(tokens, LENGTHS[-1]))
        self._one_token_layers = (OneTokenLayers(family.decoder.layers, tokens)
                                  if OneTokenLayers.can_be(family.decoder.layers)
                                  else self._layers)
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

        self._ahead = self._capture_graphs  # is the next token begun before this one is read?
        self._free, self._end = False, 0    # of the present answer: any token; place of its last
        self._next: Running | None = None
        on_gpu = self._device.type == 'cuda'
        self._read = [(torch.zeros((ROWS, 2), dtype=torch.float64, pin_memory=on_gpu),
                       torch.cuda.Event() if on_gpu else None) for _ in range(2)]

    def answer(self, query: str, prompt: Prompt, grammar: Grammar, limit: int,
               stop: Callable[[], bool] = lambda: False,
               on_token: Callable[[list[int]], None] = lambda tokens: None) -> Decoded:
        """Return the greedy answer to a prompt; see `Engine`."""
        self._free, self._next = isinstance(grammar, Free), None
        self._end = len(prompt.ids) + limit
        return super().answer(query, prompt, grammar, limit, stop, on_token)

    @torch.inference_mode()
    def prepare(self) -> None:
        """
        Make the passes that may follow, for to make one takes longer than a frame.

        Those are the short ones, one of which follows whenever a guess was wrong, and any length
        between the shortest and the longest prompt that was fed so far.
        """
        for axes in {axes for _, axes in self._passes}:
            fed = [n for n, other in self._passes if other == axes and n > TEXT_ONLY]
            for n in LENGTHS:
                if n <= TEXT_ONLY or fed and min(fed) <= n <= max(fed):
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
                lambda: [self.family.visual(held).rows], torch.zeros(0), self._vision_layers),
                held)
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

        # In free text what follows is begun before this is read. All passes are there before
        # the first of them runs, since to make one is to run it.
        ahead = self._ahead and self._free and n_rows == 1 and len(kept.ids) + 1 < self._end
        found = self._pass(n, len(positions))
        following = self._pass(1, len(positions)) if ahead else None
        running, self._next = self._next, None
        if n > 1 or running is None or (running.begin, running.token) != (begin, new[0]):
            self._send(found, begin, np.where(image[begin:], 0, new), positions, n_rows, places)
            running = self._started(found, begin, n_rows)
        if following is not None:
            if n > 1:  # that of one token goes on by itself
                self._send(following, len(kept.ids), np.zeros(1, np.int64),
                           self._positions(kept, len(kept.ids), 1, Guess()))
                following.data[0].copy_(found.out[1][0, :1])
            self._next = self._started(following, len(kept.ids))
        if running.done is not None:
            running.done.synchronize()
        rows = [Row(row, (int(token), probability)) for row, (token, probability)
                in zip(running.logits, running.best.tolist())]
        if self._next is not None:
            self._next.token = rows[0].best()[0]
        return rows

    def _send(self, found: Captured, begin: int, ids: Tokens, positions: torch.Tensor,
              n_rows: int = 1, places: Tokens | tuple[()] = ()) -> None:
        """Say what a pass is to compute; wait for nothing."""
        n = found.data.shape[1]
        data = np.zeros(tuple(found.data.shape), np.int64)
        data[0, :len(ids)] = ids
        data[1] = self._tokens - 1
        data[1, :len(ids)] = np.arange(begin, begin + len(ids))
        data[2] = n
        data[2, :len(places)] = places
        data[3, :n_rows] = np.arange(len(ids) - n_rows, len(ids))
        data[4:, :len(ids)] = positions.numpy()
        sent = torch.from_numpy(data)
        if self._device.type == 'cuda':  # from other memory it would wait for what runs
            sent = sent.pin_memory()
        found.data.copy_(sent, non_blocking=True)

    def _started(self, found: Captured, begin: int, n_rows: int = 1) -> Running:
        """Run a pass; wait for nothing. That of one token leaves what the next one needs."""
        found.run()
        logits, best = found.out
        self._read.reverse()
        here, done = self._read[0]
        here[:n_rows].copy_(best[:n_rows], non_blocking=True)
        if done is not None:
            done.record()
        return Running(begin, logits[:n_rows].clone(), here[:n_rows], done)

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
            logits, best = likeliest(family.head(hidden[0, last]))
            if n == 1:  # run again as it is, the pass goes on with the likeliest token
                ids.copy_(best[:, 0])
                where.copy_((where + 1).clamp(max=self._tokens - 1))
                data[4:].add_(1)
            return [logits, best]
        return self._captured(compute, data, self._layers if n > 1 else self._one_token_layers)

    def _captured(self, compute: Callable[[], list[torch.Tensor]], data: torch.Tensor,
                  layers: Layers | OneTokenLayers) -> Captured:
        """Return a computation as a graph, or as it is where nothing can be captured."""
        made = Captured(lambda: None, data, [])

        def plainly() -> None:
            made.out = self._fast(compute, layers)
        made.run = plainly
        if not self._capture_graphs:
            return made
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # kernels choose their work space on the first runs
                self._fast(compute, layers)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Graphs share memory: what one left there is read or copied before the next runs.
            with torch.cuda.graph(graph, pool=self._pool):
                made.out = self._fast(compute, layers)
        except RuntimeError as error:
            torch.cuda.synchronize()
            warnings.warn(f'{type(self.family).__name__}: a forward pass cannot be captured as a '
                          f'CUDA graph and is slower for it: {error}', stacklevel=2)
            return made
        self._pool = self._pool or graph.pool()
        made.run = graph.replay
        return made

    def _fast(self, compute: Callable[[], list[torch.Tensor]],
              layers: Layers | OneTokenLayers) -> list[torch.Tensor]:
        """Compute with compiled layers, or as the model is where they cannot be compiled."""
        if not self._compiled:
            return compute()
        if layers is self._one_token_layers and self._kernels_fail:
            layers = self._layers
        try:
            with layers.fast():
                return compute()
        except KernelsFail as error:
            self._kernels_fail = True
            warnings.warn(f'{type(self.family).__name__}: no kernels for one token '
                          f'({one_line(error)}); passes of one token are slower for it; kernels '
                          'need a C compiler and the headers of Python', stacklevel=2)
            return self._fast(compute, layers)
        except BackendCompilerFailed as error:
            self._compiled = False
            warnings.warn(f'{type(self.family).__name__}: layers cannot be compiled '
                          f'({one_line(error.inner_exception)}) and are slower for it; install '
                          'what torch.compile needs, or start with TORCH_COMPILE_DISABLE=1 to '
                          'leave it out', stacklevel=2)
            return compute()


def one_line(error: BaseException) -> str:
    """Return an error's text without line ends."""
    return ' '.join(str(error).split())


def likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits, rows x words, and of each row the likeliest token and its probability."""
    logits = logits.float()
    best, token = logits.max(-1)
    probability = 1 / (logits - best[:, None]).exp().sum(-1)
    return logits, torch.stack([token.double(), probability.double()], 1)
