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
"""Samples: a frame, what a late cloud said of earlier ones, what is true; for an edge model."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from .context import SimulatedCloud
from .copy_paste import CopyPaste, PastedObjects
from .material import Clip
from .pasting import Pasted, Patches
from ..edge.model import EdgeModel
from ..method.facts import Context, Fact, Query, Region
from ..method.prompt import answer_text
from ..mini.hri.hands import HandBank
from ..mini.training import dataset
from ..mini.training.rendering import PER_JOB, SILENT, Store

Image = npt.NDArray[np.uint8]
KEPT = 4            # decoded frames
BLURRED = 0.15      # share of frames
VARIANTS = 4        # samples made of one frame in a row: it is decoded once
TURN_DEG, ZOOM, MOVE = 4.0, (0.88, 1.25), 0.06   # of a frame that is varied by 1


@dataclass(frozen=True)
class Example:
    """One question with its answer; ``unknown`` are keys whose values are made up."""

    frame: Image
    query: Query
    context: Context
    stamp_ns: int
    facts: tuple[Fact, ...]
    unknown: frozenset[str] = frozenset()
    text: str = ''


@dataclass(frozen=True)
class Variety:
    """What is done to frames before they are learned from."""

    patches: Sequence[Patches] = ()
    pasted: float = 0.5     # share of frames that something is pasted into
    amount: float = 1.0     # of turning, moving and zooming; 0: none
    balance: float = 0.5    # of sets of values; 0: as often as they come, 1: all equally often
    copy_paste: CopyPaste | None = None
    mirrored: Mapping[str, str] | None = None   # values of mirrored frames by those of true ones


class Sampler:
    """Draws examples from clips, rare values more often than they come, see ``Variety``."""

    def __init__(self, clips: Sequence[Clip], cloud: SimulatedCloud, variety: Variety) -> None:
        """Weigh the frames: a set of values by how often it comes."""
        self.cloud, self.variety = cloud, variety
        self.frames = [(clip, stamp) for clip in clips for stamp in clip.frames]
        kinds = [(c.query.id, *sorted(c.labels[s].facts.items())) for c, s in self.frames]
        counts = Counter(kinds)
        weights = np.array([float(counts[kind]) ** -variety.balance for kind in kinds])
        self._weights = weights / weights.sum()
        self._images: OrderedDict[tuple[int, int], Image] = OrderedDict()

    def draw(self, rng: np.random.Generator) -> tuple[Clip, int]:
        """Return a frame to learn from."""
        return self.frames[int(rng.choice(len(self.frames), p=self._weights))]

    def plain(self, clip: Clip, stamp: int, rng: np.random.Generator) -> Example:
        """Return a frame as it is, with a context."""
        return self._example(clip, stamp, self._image(clip, stamp), None, rng)

    def varied(self, clip: Clip, stamp: int, rng: np.random.Generator) -> Example:
        """Return a frame that was pasted into, turned, moved, zoomed and blurred."""
        frame = self._image(clip, stamp)
        changed: Pasted | PastedObjects | None = None
        patches = [p for p in self.variety.patches if p.key in clip.query.choices]
        if patches and rng.random() < self.variety.pasted:
            one = patches[int(rng.integers(len(patches)))]
            done = one.paste(frame, clip.labels[stamp], rng)
            frame, changed = done if done is not None else (frame, None)
        elif self.variety.copy_paste is not None and rng.random() < self.variety.pasted:
            frame, changed = self.variety.copy_paste.paste(frame, rng)
        example = self._example(clip, stamp, frame, changed, rng)
        if self.variety.amount:
            example = _shaken(example, self.variety.amount, rng)
        if self.variety.mirrored is not None and rng.random() < 0.5:
            example = mirrored(example, self.variety.mirrored)
        if rng.random() < BLURRED:
            soft = cv2.GaussianBlur(example.frame, (0, 0), float(rng.uniform(0.5, 1.5)))
            example = replace(example, frame=np.asarray(soft, np.uint8))
        return example

    def _example(self, clip: Clip, stamp: int, frame: Image,
                 changed: Pasted | PastedObjects | None, rng: np.random.Generator) -> Example:
        known = dict(clip.labels[stamp].facts)
        if isinstance(changed, Pasted):
            known[changed.key] = changed.value
        elif changed is not None:
            known = changed.now(clip, stamp)
        query = clip.query
        facts = tuple(Fact(key, known.get(key) or str(rng.choice(query.choices[key])), stamp)
                      for key in query.keys)
        return Example(frame, query, self.cloud.context(clip, stamp, changed, rng), stamp, facts,
                       frozenset(set(query.keys) - set(known)))

    def _image(self, clip: Clip, stamp: int) -> Image:
        name = (id(clip.sequence), stamp)
        image = self._images.pop(name, None)
        self._images[name] = image = clip.sequence.image(stamp) if image is None else image
        if len(self._images) > KEPT:
            self._images.popitem(last=False)
        return image


def _shaken(example: Example, amount: float, rng: np.random.Generator) -> Example:
    """Turn, zoom and move a frame, and the regions of its context with it."""
    height, width = example.frame.shape[:2]
    zoom = float(np.exp(rng.uniform(*np.log(ZOOM)) * amount))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2),
                                     float(rng.uniform(-TURN_DEG, TURN_DEG)) * amount, zoom)
    matrix[:, 2] += rng.uniform(-MOVE, MOVE, 2) * amount * (width, height)
    frame = cv2.warpAffine(example.frame, matrix, (width, height), flags=cv2.INTER_LINEAR,
                           borderMode=cv2.BORDER_REFLECT_101)
    focus = {key: _through(matrix, region, zoom) for key, region in example.context.focus.items()}
    return replace(example, frame=np.asarray(frame, np.uint8),
                   context=replace(example.context, focus=focus))


def mirrored(example: Example, values: Mapping[str, str]) -> Example:
    """Return a frame with left and right exchanged, and ``values`` of facts by others."""
    width = example.frame.shape[1]
    context = replace(
        example.context, facts=_exchanged(example.context.facts, values),
        focus={key: replace(region, x=width - region.x - region.w)
               for key, region in example.context.focus.items()})
    frame = np.asarray(cv2.flip(example.frame, 1), np.uint8)
    return replace(example, frame=frame, context=context,
                   facts=_exchanged(example.facts, values))


def _exchanged(facts: Sequence[Fact], values: Mapping[str, str]) -> tuple[Fact, ...]:
    return tuple(replace(fact, value=values.get(fact.value, fact.value)) for fact in facts)


def _through(matrix: npt.NDArray[np.float64], region: Region, zoom: float) -> Region:
    x, y = matrix @ (region.x + region.w / 2, region.y + region.h / 2, 1.0)
    w, h = zoom * region.w, zoom * region.h
    return Region(float(x) - w / 2, float(y) - h / 2, w, h)


def answer_ids(edge: EdgeModel, example: Example) -> tuple[list[int], list[int]]:
    """Return the tokens of the answer with its end, and of which fact each is, see ``Store``."""
    tokenizer = edge.inputs.processor.tokenizer
    text = example.text or answer_text(example.query, example.facts)
    told = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    slots = [-1] * len(told['input_ids'])
    begin = 0
    for number, fact in enumerate(() if example.text else example.facts):
        line = text.index('\n', begin) if '\n' in text[begin:] else len(text)
        value = line - len(fact.value), line
        slot = SILENT if fact.key in example.unknown else number
        for i, (a, b) in enumerate(told['offset_mapping']):
            if a < value[1] and b > value[0]:
                slots[i] = slot
        begin = line + 1
    return [*told['input_ids'], tokenizer.eos_token_id], [*slots, -1]


@dataclass(frozen=True)
class LabelJob:
    """Makes samples in workers: of frames, and a share of rendered worlds."""

    edge: EdgeModel
    sampler: Sampler
    store: Store
    seed: int
    validation: bool = False
    rehearse: float = 0.0
    hands: HandBank | None = None

    def render(self, number: int) -> None:
        """Make the samples from number * PER_JOB on."""
        rng = np.random.default_rng([self.seed, number])
        if rng.random() < self.rehearse:
            self._rendered(number, rng)
            return
        clip, stamp = self.sampler.draw(rng)
        for i in range(number * PER_JOB, (number + 1) * PER_JOB):
            if self.validation:
                frame = spread(len(self.sampler.frames), len(self.store.start))[i]
                self.put(i, self.sampler.plain(*self.sampler.frames[frame], rng))
                continue
            if i % VARIANTS == 0:
                clip, stamp = self.sampler.draw(rng)
            self.put(i, self.sampler.varied(clip, stamp, rng))

    def _rendered(self, number: int, rng: np.random.Generator) -> None:
        world = dataset.drive(number, self.hands)
        for i in range(number * PER_JOB, (number + 1) * PER_JOB):
            item = dataset.sample(world, int(rng.integers(dataset.FIRST, dataset.LAST)), rng)
            self.put(i, Example(item.frame, item.query, item.context, item.stamp_ns, (),
                                text=item.answer))

    def put(self, i: int, example: Example) -> None:
        """Store one sample, as the edge model is given it at run time."""
        answer, slots = answer_ids(self.edge, example)
        given = [self.edge.model_inputs(example.frame, example.query, context, example.stamp_ns)
                 for context in (None, example.context)]
        self.store.images[i] = [given[0].images[0], *(one.images[1] for one in given)]
        for variant, one in enumerate(given):
            prompt = self.edge.inputs.encode(one.chat)
            self.store.put(i, variant, [*prompt, *answer], len(prompt))
        self.store.slots[i, :len(slots)] = slots


def spread(frames: int, samples: int) -> list[int]:
    """Return which frames to take samples of: all in turn, or some all over where too many."""
    return [i * frames // samples if frames > samples else i % frames for i in range(samples)]


def absent_values(clips: Sequence[Clip]) -> Mapping[str, str]:
    """Return, by key, the one value that never has a region where others have one."""
    seen: dict[str, dict[str, bool]] = {}
    for clip in clips:
        for stamp in clip.frames:
            label = clip.labels[stamp]
            for key, value in label.facts.items():
                values = seen.setdefault(key, {})
                values[value] = values.get(value, False) or key in label.regions
    found = {key: [v for v, has in values.items() if not has] for key, values in seen.items()
             if any(values.values())}
    return {key: values[0] for key, values in found.items() if len(values) == 1}
