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
The decoder back-end for a GPU: each forward pass is one CUDA graph of fixed shape.

A small batch leaves a GPU waiting for Python to launch kernels. A captured graph is launched at
once, but only ever computes the same shapes at the same addresses. So steps are padded to one of a
few lengths, keys and values live in one buffer of fixed size, and token ids, KV slots, positions
and the rows wanted are data that the graph reads. Padding is written to a last slot of the buffer
that nothing attends to. Answers that are wanted together are a batch of a graph of their own:
weights are read once for all. Without capture, as in the tests, the same computation runs on a
CPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
import warnings
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch._dynamo.exc import BackendCompilerFailed

from .ends import Ends
from .kv_cache import StaticKVCache
from .layers import (CompiledLayers, JoinedLayers, KernelError, OneTokenLayers, pad_gated_mlps,
                     PatchLinear)
from .products import MAX_ROWS
from ..engine import PrefixState, Prompt, Step
from ..families import ImageFeatures, input_shapes, ModelFamily, Tensors
from ..grammar import DraftTree, Logits
from ..torch_backend import MAX_IMAGES

LENGTHS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024,
           1280, 1536, 2048, 3072, 4096)
TEXT_ONLY = 16   # passes up to this length hold no image tokens
ROWS = 16        # most tokens of a prefix in a pass after which logits are wanted
PREFIXES = MAX_ROWS   # most of a pass: the guard asks in two ways
# Rows of what a graph reads; after them come those of the position ids, one per axis.
IDS, KV_SLOTS, IMAGE_SLOTS, LOGIT_ROWS, POSITIONS = range(5)


@dataclass
class CapturedGraph:
    """A graph, or the function itself, with its static buffers."""

    run: Callable[[], None]
    inputs: torch.Tensor             # whole numbers that the pass reads
    outputs: list[torch.Tensor]


@dataclass
class PendingPass:
    """A pass that the GPU may not have finished."""

    logits: list[torch.Tensor]       # of each prefix, rows x vocabulary
    top: torch.Tensor                # prefixes x rows x (token, probability), read by the CPU
    done: torch.cuda.Event | None    # after which it can
    begins: list[tuple[int, int]]    # slot and, once known, token that each prefix began with


class GraphBackend:
    """Runs families with plain causal attention at fixed shapes."""

    joins = True

    def __init__(self, family: ModelFamily, tokens: int = 2048, capture: bool | None = None,
                 compiled: bool | None = None) -> None:
        """
        Make room for ``tokens`` of prompt and answer.

        On a GPU passes are captured, and their layers compiled first, unless told otherwise.
        """
        self.family = family
        config, weight = family.text_config, family.embed_tokens.weight
        self._device = weight.device
        heads = config.num_attention_heads
        dim = getattr(config, 'head_dim', None) or config.hidden_size // heads
        self._capture_graphs = weight.is_cuda if capture is None else capture
        self._compiled = compiled or compiled is None and weight.is_cuda
        self._layers, self._vision_layers = (
            CompiledLayers(layers) for layers in (family.decoder.layers, family.vision_layers))
        self._kernels_fail = False
        self._plain_ends = Ends(family.decoder, False)
        self._ends = Ends(family.decoder, self._compiled and weight.is_cuda)
        if weight.is_cuda:
            pad_gated_mlps(family.vision_tower.modules())
            PatchLinear.replace_in(family.vision_tower.modules())
        self._tokens = tokens = next(n for n in LENGTHS if n >= min(tokens, LENGTHS[-1]))
        self._one_token_layers: CompiledLayers | OneTokenLayers = self._layers
        if OneTokenLayers.supports(family.decoder.layers):
            self._one_token_layers = one = OneTokenLayers(family.decoder.layers, tokens)
            self._layers = JoinedLayers(family.decoder.layers, one.qkv)
        self._cache = StaticKVCache((config.num_hidden_layers, PREFIXES,
                                     config.num_key_value_heads or heads, tokens, dim), weight)
        self._bias = weight.new_zeros((PREFIXES, tokens))   # per KV slot
        self._image_embeds = weight.new_zeros((PREFIXES, tokens, weight.shape[1]))
        self._slot_range = torch.arange(tokens, device=self._device)
        self._owners: list[PrefixState | None] = [None] * PREFIXES   # whose is in the cache
        self._saved: WeakKeyDictionary[PrefixState, tuple[torch.Tensor, torch.Tensor]] = (
            WeakKeyDictionary())                 # keys and values of the others
        self._features: OrderedDict[Hashable, ImageFeatures] = OrderedDict()
        # By prefixes, length and position axes.
        self._graphs: dict[tuple[int, int, int], CapturedGraph] = {}
        self._vision_graphs: dict[object, tuple[CapturedGraph, dict[str, torch.Tensor]]] = {}
        self._pool: tuple[int, int] | None = None   # memory that graphs share
        # One stream for all of them: libraries keep work space for each.
        self._side = torch.cuda.Stream() if self._capture_graphs else None

        self._looks_ahead = self._capture_graphs
        self._next: PendingPass | None = None
        on_gpu = self._device.type == 'cuda'
        self._read_buffers = [
            (torch.zeros((PREFIXES, ROWS, 2), dtype=torch.float64, pin_memory=on_gpu),
             torch.cuda.Event() if on_gpu else None) for _ in range(2)]

    @torch.inference_mode()
    def prepare(self) -> None:
        """
        Capture the passes that may follow, for to capture one takes longer than a frame.

        Those are the short ones, one of which follows whenever a draft was wrong, and any length
        between the shortest and the longest prompt that was computed so far.
        """
        for prefixes, axes in {(prefixes, axes) for prefixes, _, axes in self._graphs}:
            prompts = [n for *others, n in ((p, a, n) for p, n, a in self._graphs)
                       if others == [prefixes, axes] and n > TEXT_ONLY]
            for n in LENGTHS:
                if n <= TEXT_ONLY or prompts and min(prompts) <= n <= max(prompts):
                    self._graph(prefixes, n, axes)

    def fit_draft(self, draft: DraftTree) -> DraftTree:
        """Return the draft where it is a chain, cut to what one pass takes."""
        return DraftTree.chain(list(draft.tokens)[:ROWS - 1]) if draft.is_chain else DraftTree()

    def reserve(self, state: PrefixState, tokens: int) -> bool:
        """Return whether the prefix's keys and values are there; see `DecoderBackend`."""
        if tokens >= self._tokens:
            raise ValueError(f'prompt and answer take up to {tokens} tokens and there is room for '
                             f'{self._tokens - 1}; shorten context_tokens or max_new_tokens')
        self._next = None
        return state in self._owners or state in self._saved

    def encode_images(self, prompt: Prompt) -> ImageFeatures:
        """Return the features of a prompt's images; the vision tower runs on the new ones."""
        self.see([prompt])
        return ImageFeatures.concatenate([self._features[key] for key in prompt.image_keys])

    def see(self, prompts: Sequence[Prompt]) -> None:
        """
        Run the vision tower on all images of some prompts that are new.

        It takes as many at once as a prompt has, for other numbers were never captured.
        """
        features, count, family = self._features, len(prompts[0].image_keys), self.family
        where = {key: (prompt, i) for prompt in reversed(prompts)
                 for i, key in enumerate(prompt.image_keys)}
        new = [key for key in where if key not in features]
        for begin in range(0, len(new), count):
            keys = new[begin:begin + count]
            whole = next((p.inputs for p in prompts if p.image_keys == tuple(keys)), None)
            images = [where[key] for key in (keys + keys[-1:] * count)[:count]]
            inputs = whole or family.join_images(
                [family.select_images(prompt.inputs, [i]) for prompt, i in images])
            features.update(zip(keys, self._encode(inputs).split(count)))
        for prompt in prompts:
            for key in prompt.image_keys:
                features.move_to_end(key)
        while len(features) > MAX_IMAGES:
            features.popitem(last=False)

    def _encode(self, inputs: Tensors) -> ImageFeatures:
        """Run the vision tower on some images."""
        grid = inputs.get('image_grid_thw')
        key = input_shapes(inputs)
        if key not in self._vision_graphs:
            static = {'pixel_values': inputs['pixel_values'].clone()}
            if grid is not None:
                static['image_grid_thw'] = grid.cpu()
            self.family.encode_images(static)  # learns what depends on sizes alone
            self._vision_graphs[key] = (self._capture(
                lambda: [self.family.encode_images(static).embeddings], torch.zeros(0),
                self._vision_layers), static)
        graph, static = self._vision_graphs[key]
        static['pixel_values'].copy_(inputs['pixel_values'])
        graph.run()
        return ImageFeatures(graph.outputs[0].clone())

    def forward(self, state: PrefixState, step: Step, lookahead: bool) -> list[Logits]:
        """Compute a step; return logits after its known tokens and drafts."""
        return self.forward_all([(state, step)], lookahead)[0]

    def forward_all(self, turns: Sequence[tuple[PrefixState, Step]],
                    lookahead: bool = False) -> list[list[Logits]]:
        """Compute a step of each of some prefixes, which are a batch."""
        steps = [step for _, step in turns]
        n = max(self._length(step) for step in steps)
        axes, counts = len(steps[0].position_ids), [1 + len(s.draft.tokens) for s in steps]
        for row, (state, step) in enumerate(turns):
            self._seat(state, row)
            if step.n_known > 1:  # the prompt: the bias on it stays for the whole answer
                self._write_bias(state, row)
            self._write_image_embeds(state, step, row)

        # In free text what follows is begun before this is read. All passes are there before
        # the first of them runs, since to capture one is to run it.
        graph = self._graph(len(turns), n, axes)
        following = (self._graph(len(turns), 1, axes) if lookahead and self._looks_ahead else
                     None)
        pending, self._next = self._next, None
        begins = [(step.begin, int(step.ids[0])) for step in steps]
        if n > 1 or pending is None or pending.begins != begins:
            self._write_inputs(graph, steps)
            pending = self._launch(graph, begins, counts)
        if following is not None:
            if n > 1:  # that of one token goes on by itself
                self._write_inputs(following, [_one_token(*turn) for turn in turns])
                following.inputs[IDS].copy_(graph.outputs[1][:, 0, :1])
            self._next = self._launch(following, [(step.end, -1) for step in steps],
                                      [1] * len(turns))
        if pending.done is not None:
            pending.done.synchronize()
        found = [[Logits(values, (int(token), probability)) for values, (token, probability)
                  in zip(*each)] for each in zip(pending.logits, pending.top.tolist())]
        if self._next is not None:
            self._next.begins = [(step.end, logits[0].argmax()[0])
                                 for step, logits in zip(steps, found)]
        return found

    def _length(self, step: Step) -> int:
        """Return the least length of a pass for a step."""
        return next(size for size in LENGTHS if size >= len(step.ids)
                    and (size > TEXT_ONLY or not len(step.image_slots)))

    def _seat(self, state: PrefixState, row: int) -> None:
        """Have a prefix in a row of the cache."""
        if self._owners[row] is state:
            return
        keys, values = self._cache.keys, self._cache.values
        for at, owner in enumerate(self._owners):
            if owner is not None and (at == row or owner is state):
                n = len(owner.ids)
                self._saved[owner] = keys[:, at, :, :n].clone(), values[:, at, :, :n].clone()
                self._owners[at] = None
        for part, saved in zip((keys, values), self._saved.pop(state, ())):
            part[:, row, :, :saved.shape[2]].copy_(saved)
        self._owners[row] = state
        self._write_bias(state, row)

    def _write_bias(self, state: PrefixState, row: int) -> None:
        """Write what is added to the attention to each slot of a row."""
        self._bias[row].zero_()
        if state.bias is not None:
            self._bias[row, :len(state.bias)] = torch.from_numpy(state.bias).to(self._bias)

    def _write_image_embeds(self, state: PrefixState, step: Step, row: int) -> None:
        """Write the features of a step's image tokens."""
        count = len(step.image_slots)
        if count and state.features is not None:
            embeds = state.features.embeddings
            if count != len(embeds):
                embeds = embeds[torch.from_numpy(step.image_rows).to(self._device)]
            self._image_embeds[row, :count] = embeds

    def _write_inputs(self, graph: CapturedGraph, steps: Sequence[Step]) -> None:
        """Write what a pass is to compute to its static inputs; wait for nothing."""
        n = graph.inputs.shape[2]
        data = np.zeros(tuple(graph.inputs.shape), np.int64)
        data[KV_SLOTS] = self._tokens - 1
        data[IMAGE_SLOTS] = n
        for row, step in enumerate(steps):
            length, n_rows = len(step.ids), 1 + len(step.draft.tokens)
            data[IDS, row, :length] = step.ids
            data[KV_SLOTS, row, :length] = np.arange(step.begin, step.end)
            data[IMAGE_SLOTS, row, :len(step.image_slots)] = step.image_slots
            data[LOGIT_ROWS, row, :n_rows] = np.arange(length - n_rows, length)
            data[POSITIONS:, row, :length] = step.position_ids.numpy()
        written = torch.from_numpy(data)
        if self._device.type == 'cuda':  # from other memory it would wait for what runs
            written = written.pin_memory()
        graph.inputs.copy_(written, non_blocking=True)

    def _launch(self, graph: CapturedGraph, begins: list[tuple[int, int]],
                counts: Sequence[int]) -> PendingPass:
        """Run a pass; wait for nothing. That of one token leaves what the next one needs."""
        graph.run()
        logits, top = graph.outputs
        self._read_buffers.reverse()
        read, done = self._read_buffers[0]
        read = read[:len(counts), :top.shape[1]]
        read.copy_(top, non_blocking=True)
        if done is not None:
            done.record()
        return PendingPass([part[:n].clone() for part, n in zip(logits, counts)], read, done,
                           begins)

    def _graph(self, prefixes: int, n: int, axes: int) -> CapturedGraph:
        """Return the pass of n tokens of each prefix whose positions have so many axes."""
        key = prefixes, n, axes
        if key not in self._graphs:
            self._graphs[key] = self._make_pass(*key)
        return self._graphs[key]

    def _make_pass(self, prefixes: int, n: int, axes: int) -> CapturedGraph:
        """Capture the forward pass of n tokens of each prefix."""
        family, last = self.family, self._tokens - 1
        data = torch.zeros((POSITIONS + axes, prefixes, n), dtype=torch.int64,
                           device=self._device)
        data[KV_SLOTS] = last
        data[IMAGE_SLOTS] = n
        ids, slots, image_slots = data[IDS], data[KV_SLOTS], data[IMAGE_SLOTS]
        rows = data[LOGIT_ROWS, :, :min(n, ROWS)]
        position_ids = data[POSITIONS] if axes == 1 else data[POSITIONS:]

        def compute() -> list[torch.Tensor]:
            ends = self._ends if n == 1 and self._compiled else self._plain_ends
            embeds = family.embed_tokens(ids)
            if n > TEXT_ONLY:
                embeds = torch.stack([
                    torch.cat([each, each[:1]]).index_copy(0, to, images[:n])[:n]
                    for each, to, images in zip(embeds, image_slots, self._image_embeds)])
            mask = ends.attention_mask(self._slot_range, slots, self._bias[:prefixes])
            self._cache.slots = slots
            with ends.compiled():
                hidden = family.forward(embeds, None, None, use_cache=True,
                                        past_key_values=self._cache, position_ids=position_ids,
                                        attention_mask=mask)
            if n > 1:
                hidden = torch.stack([each[some] for each, some in zip(hidden, rows)])
            logits, top = ends.with_top(family.lm_head(hidden))
            if n == 1:  # run again as it is, the pass goes on with the likeliest token
                ends.go_on(data, top, IDS, KV_SLOTS, POSITIONS, last)
            return [logits, top]
        return self._capture(compute, data, self._layers if n > 1 else self._one_token_layers)

    def _capture(self, compute: Callable[[], list[torch.Tensor]], inputs: torch.Tensor,
                 layers: CompiledLayers | OneTokenLayers) -> CapturedGraph:
        """Return a computation as a graph, or as it is where nothing can be captured."""
        captured = CapturedGraph(lambda: None, inputs, [])

        def run_eagerly() -> None:
            captured.outputs = self._run_compiled(compute, layers)
        captured.run = run_eagerly
        side = self._side
        if side is None:
            return captured
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # kernels choose their work space on the first runs
                self._run_compiled(compute, layers)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Graphs share memory: what one left there is read or copied before the next runs.
            with torch.cuda.graph(graph, pool=self._pool):
                captured.outputs = self._run_compiled(compute, layers)
        except RuntimeError as error:
            torch.cuda.synchronize()
            warnings.warn(f'{type(self.family).__name__}: a forward pass cannot be captured as a '
                          f'CUDA graph and is slower for it: {error}', stacklevel=2)
            return captured
        self._pool = self._pool or graph.pool()
        captured.run = graph.replay
        return captured

    def _run_compiled(self, compute: Callable[[], list[torch.Tensor]],
                      layers: CompiledLayers | OneTokenLayers) -> list[torch.Tensor]:
        """Compute with compiled layers, or as the model is where they cannot be compiled."""
        if not self._compiled:
            return compute()
        if layers is self._one_token_layers and self._kernels_fail:
            layers = self._layers
        try:
            with layers.compiled():
                return compute()
        except KernelError as error:
            self._kernels_fail = True
            warnings.warn(f'{type(self.family).__name__}: no kernels for one token '
                          f'({_one_line(error)}); passes of one token are slower for it; to be '
                          'compiled, kernels need a C compiler and the headers of Python',
                          stacklevel=2)
            return self._run_compiled(compute, layers)
        except BackendCompilerFailed as error:
            self._compiled = False
            warnings.warn(f'{type(self.family).__name__}: layers cannot be compiled '
                          f'({_one_line(error.inner_exception)}) and are slower for it; install '
                          'what torch.compile needs, or start with TORCH_COMPILE_DISABLE=1 to '
                          'leave it out', stacklevel=2)
            return compute()


def _one_line(error: BaseException) -> str:
    """Return an error's text without line ends."""
    return ' '.join(str(error).split())


def _one_token(state: PrefixState, step: Step) -> Step:
    """Return the step of the token after a step, whichever it will be."""
    return Step(step.end, np.zeros(1, np.int64), DraftTree(), np.zeros(step.end + 1, np.bool_),
                np.zeros(0, np.int64), np.zeros(0, np.int64),
                state.positions_of(step.end, 1, DraftTree()))
