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
Training samples: a frame, what a late cloud said about an earlier one, and the truth.

The context goes through the same history, focus and prompt code that runs on the robot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
import json

import cv2
import numpy as np
import numpy.typing as npt

from ..hri.hands import HandBank
from ..models import EDGE, Shape
from ..worlds import make_world, NAMES, TRAIN_SEEDS, World
from ...method import focus, prompt
from ...method.facts import Context, Fact, NS, Query, Region, Source, Turn
from ...method.history import History

FOCUS = focus.FocusConfig()
SHARES = (0.80, 0.12, 0.08)     # of the samples, per query of a world
CLOUD_REPLY_FORM = (            # shipped beside the weights, as reply_form.txt
    'Reply as a JSON list with one object per key: '
    '{"label": key, "bbox_2d": [x1, y1, x2, y2], "value": value}. '
    'Leave bbox_2d out when nothing is there.')
BOX_STEP = 20                   # boxes are written in thousandths, rounded to this
VIEWS = 2                       # images that the edge model is given: the whole and the focus
FPS = 20.0                      # of every world
FIRST, LAST = 240, 2400         # frames used of an episode: there is a past to have context from
GONE_LOST = 0.6                 # share of regions whose thing has left that the flow gives up
LOST, STUCK = 0.12, 0.08        # share of the others that it loses, or leaves where they were


@dataclass(frozen=True)
class Sample:
    """One frame with its questions and answers, for both models."""

    frame: npt.NDArray[np.uint8]            # height x width x 3, RGB, after JPEG
    query: Query
    context: Context                        # what a late cloud answered; may be empty
    stamp_ns: int
    answer: str                             # what the edge model should write
    cloud_answer: str                       # what the cloud model should write


def cloud_text(query: Query, facts: Sequence[Fact], text: str, size: tuple[int, int]) -> str:
    """Return the answer of the cloud model: Qwen-style JSON for facts, boxes in thousandths."""
    if query.format == 'text':
        return text
    if query.format == 'choice':
        return facts[0].value
    items: list[dict[str, str | list[int]]] = []
    for fact in facts:
        item: dict[str, str | list[int]] = {'label': fact.key}
        if fact.region is not None:
            item['bbox_2d'] = _thousandths(fact.region, size)
        items.append({**item, 'value': fact.value})
    return json.dumps(items)


def _thousandths(region: Region, size: tuple[int, int]) -> list[int]:
    width, height = size
    scaled = (region.x / width, region.y / height,
              (region.x + region.w) / width, (region.y + region.h) / height)
    x0, y0, x1, y1 = (int(round(1000 * v / BOX_STEP)) * BOX_STEP for v in scaled)
    return [x0, y0, max(x1, x0 + BOX_STEP), max(y1, y0 + BOX_STEP)]


def late_context(world: World, query: Query, index: int, rng: np.random.Generator) -> Context:
    """
    Return the context that late cloud answers would have left for frame ``index``.

    The cloud errs: a fact is missing in 5 %, wrong in 5 %, its box off by a few pixels. Its
    regions have been carried to the frame about as well as sparse flow does.
    """
    now = index * NS // int(FPS)
    history = History(query)
    delay = float(np.clip(rng.lognormal(np.log(2.2), 0.5), 0.4, 8.0))
    for back in (delay, delay + float(rng.uniform(0.8, 3.0))):
        past = index - int(back * FPS)
        if past < 0:
            continue
        stamp = past * NS // int(FPS)
        facts, text = world.answers(past, stamp)[query.id]
        answered = tuple(_blunder(query, fact, rng) for fact in facts if rng.random() >= 0.05)
        history.add(Turn(query.id, stamp, Source.CLOUD, answered, text))
    carried: dict[str, Region] = {}
    for key, fact in history.cloud_facts(now).items():
        if fact.region is not None:
            now_at = world.follow(fact.stamp_ns * int(FPS) // NS, index).get(key)
            region = carried_by_flow(fact.region, now_at, rng)
            if region is not None:
                carried[key] = region
    return history.context(now, carried)


def carried_by_flow(before: Region, now: Region | None, rng: np.random.Generator,
                    ) -> Region | None:
    """Return where flow may say that a region is, given where it truly is, None where it left."""
    if now is None:
        return None if rng.random() < GONE_LOST else before
    fate = rng.random()
    if fate < LOST + STUCK:
        return None if fate < LOST else before
    dx, dy = (float(v) for v in rng.normal(0, 0.12 * max(now.w, now.h), 2))
    grow = float(rng.uniform(0.8, 1.25))
    return Region(now.x + dx, now.y + dy, now.w * grow, now.h * grow)


def _blunder(query: Query, fact: Fact, rng: np.random.Generator) -> Fact:
    region = fact.region
    if region is not None:
        dx, dy = (float(v) for v in rng.normal(0, 3, 2))
        grow = float(rng.uniform(0.85, 1.2))
        region = Region(region.x + dx, region.y + dy, region.w * grow, region.h * grow)
    if rng.random() < 0.05:
        wrong = [v for v in query.choices[fact.key] if v != fact.value]
        return replace(fact, value=str(rng.choice(wrong)), region=region)
    return replace(fact, region=region)


def through_jpeg(frame: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    """Return the frame as it looks after the network or a compressed topic."""
    ok, data = cv2.imencode('.jpg', frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f'OpenCV cannot encode a frame of shape {frame.shape} as JPEG')
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1])


def drive(number: int, hands: HandBank | None = None, names: Sequence[str] = NAMES) -> World:
    """Return the training world of this number; the named worlds take turns."""
    return make_world(names[number % len(names)], TRAIN_SEEDS[number], hands=hands)


def sample(world: World, index: int, rng: np.random.Generator,
           query: Query | None = None) -> Sample:
    """Return one sample for frame ``index`` of a world."""
    if query is None:
        query = world.queries[int(rng.choice(len(world.queries), p=SHARES))]
    stamp = index * NS // int(FPS)
    facts, text = world.answers(index, stamp)[query.id]
    frame = world.frame(index)
    if rng.random() < 0.4:
        frame = through_jpeg(frame, int(rng.integers(75, 96)))
    answer = text if query.format == 'text' else prompt.answer_text(query, facts)
    return Sample(frame, query, late_context(world, query, index, rng), stamp, answer,
                  cloud_text(query, facts, text, world.size))


def edge_views(item: Sample, context: Context | None,
               shape: Shape = EDGE) -> list[npt.NDArray[np.uint8]]:
    """Return the images that the edge model is given."""
    height, width = item.frame.shape[:2]
    boxes = focus.focus_boxes(item.query, context, item.stamp_ns, width, height, FOCUS)
    return focus.views(item.frame, item.query, boxes, (shape.image, shape.image), FOCUS)


def edge_chat(item: Sample, context: Context | None) -> tuple[list[prompt.Message], str]:
    """Return chat and expected answer of the edge model."""
    return prompt.messages(item.query, context, item.stamp_ns, VIEWS), item.answer


def cloud_chat(item: Sample) -> tuple[list[prompt.Message], str]:
    """Return chat and expected answer of the cloud model."""
    content: list[prompt.MessagePart] = [
        {'type': 'image'}, {'type': 'text', 'text': prompt.cloud_question(
            item.query, CLOUD_REPLY_FORM if item.query.format == 'facts' else '')}]
    return [{'role': 'user', 'content': content}], item.cloud_answer


def corpus(n: int = 120) -> list[str]:
    """Return the texts that the tokenizer learns its pieces from."""
    rng = np.random.default_rng(1)
    texts = [f'{a}, {a}' for a in range(0, 1001, BOX_STEP)] * 2
    texts += [f' ({k / 2:.1f} s ago)' for k in range(40)] * 3
    for number in range(n):
        world = drive(number)
        for query in world.queries:
            index = int(rng.integers(FIRST, LAST))
            facts, text = world.answers(index, 0)[query.id]
            blank = Sample(np.zeros((1, 1, 3), np.uint8), query,
                           late_context(world, query, index, rng), index * NS // int(FPS),
                           text or prompt.answer_text(query, facts),
                           cloud_text(query, facts, text, world.size))
            for chat, answer in (edge_chat(blank, None), edge_chat(blank, blank.context),
                                 cloud_chat(blank)):
                texts += [part['text'] for m in chat for part in m['content'] if 'text' in part]
                texts.append(answer)
    return texts
