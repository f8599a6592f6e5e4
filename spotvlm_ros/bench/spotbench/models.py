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
"""The two models as the benchmark asks them: every question once, answers kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
import hashlib
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from .cache import Cache, pack, PackedFact, unpack
from .streams import Stream
from ...cloud.client import CloudClient, CloudServer
from ...cloud.errors import CloudError
from ...cloud.keyframe_encoder import KeyframeEncoder
from ...cloud.parse import CloudAnswer, parse_reply
from ...cloud.wording import ask_text
from ...config.nodes import BoxScale, KeyframeConfig, ServerConfig
from ...edge.answer import EdgeVLM
from ...frames.pixels import decode_compressed, encode_jpeg, Image
from ...labels.sequences import JPEG_QUALITY
from ...method import guard
from ...method.facts import Context, Fact, Query
from ...mini.shipped import trained_reply_form

BATCH = 8               # keyframes that the cloud model is asked about at once
GREY = 127              # of a blank picture
PackedAnswer = tuple[list[PackedFact], bool, bool]   # facts, used context, used focus


@dataclass(frozen=True)
class CachedAnswer:
    """What the edge said."""

    facts: tuple[Fact, ...]
    used_context: bool
    used_focus: bool
    passes: int = 1
    partial: bool = False        # never: nothing stops the model here

    @property
    def values(self) -> dict[str, str]:
        """Key and value."""
        return {f.key: f.value for f in self.facts}


def combined(first: CachedAnswer, second: CachedAnswer | None,
             facts: tuple[Fact, ...]) -> CachedAnswer:
    """Return the answer of the guard's passes, without context and with it."""
    return replace(second or first, facts=facts, passes=1 + (second is not None))


class CachedEdge:
    """The edge model over one stream. The same input is answered once, which never shows."""

    def __init__(self, model: EdgeVLM, stream: Stream, cache: Cache[PackedAnswer],
                 odds: float = guard.ODDS) -> None:
        """Share the cache with whoever asks about the same stream; ``odds``: of the guard."""
        self._model, self._stream, self._cache, self._odds = model, stream, cache, odds
        self._blank: Image | None = None

    def __call__(self, stamp_ns: int, context: Context | None = None, blank: bool = False,
                 guarded: bool = True, judge: guard.Judge | None = None) -> CachedAnswer:
        """
        Answer about a frame, or about a blank picture in its place.

        Without the guard there is one pass; ``judge`` takes the place of its rule.
        """
        if context is not None and not context.helps:
            context = None
        return guard.guarded_answer(
            self._stream.query, context, judge or guard.FixedOdds(
                self._stream.query, self._odds if guarded else guard.OFF),
            lambda given: self._pass(stamp_ns, given, blank), combined)

    def _pass(self, stamp_ns: int, context: Context | None, blank: bool) -> CachedAnswer:
        key = _key(stamp_ns, context, blank)
        packed = self._cache.get(key)
        if packed is None:
            image = self._grey() if blank else self._stream.image(stamp_ns)
            answer = self._model.answer(image, self._stream.query, context, stamp_ns)
            packed = pack(answer.facts), answer.used_context, answer.used_focus
            self._cache.put(key, packed)
        facts, used_context, used_focus = packed
        return CachedAnswer(unpack(facts, stamp_ns), used_context, used_focus)

    def _grey(self) -> Image:
        if self._blank is None:
            width, height = self._stream.size
            self._blank = np.full((height, width, 3), GREY, np.uint8)
        return self._blank


def _key(stamp_ns: int, context: Context | None, blank: bool) -> str:
    """Name everything that an answer depends on."""
    given: object = None
    if context is not None:
        given = ([(f.key, f.value, f.stamp_ns) for f in context.facts], context.text,
                 context.text_stamp_ns, sorted((k, r.x, r.y, r.w, r.h)
                                               for k, r in context.focus.items()))
    return hashlib.blake2b(repr((stamp_ns, given, blank)).encode(), digest_size=12).hexdigest()


class Reply(NamedTuple):
    """The raw text about an image, and the size of the image sent over the frame's."""

    text: str
    sent_scale: float = 1.0


class Cloud(Protocol):
    """A model that is asked about keyframes."""

    def replies(self, query: Query, images: Sequence[Image]) -> list[Reply | None]:
        """Return what is said about each image, None where there was no reply."""


class LocalCloud:
    """A checkpoint in this process, on what is left of a frame after JPEG."""

    def __init__(self, path: Path) -> None:
        """Load a checkpoint folder."""
        from transformers import AutoModelForImageTextToText, AutoProcessor
        self._model = AutoModelForImageTextToText.from_pretrained(
            path, local_files_only=True).eval()
        self._config = ServerConfig(reply_form=trained_reply_form(str(path)))
        self._processor = AutoProcessor.from_pretrained(path, local_files_only=True)

    def replies(self, query: Query, images: Sequence[Image]) -> list[Reply | None]:
        """Return what is said about each image."""
        import torch
        chat = [{'role': 'user', 'content': [
            {'type': 'image'}, {'type': 'text', 'text': ask_text(query, self._config, False)}]}]
        text = self._processor.apply_chat_template(chat, add_generation_prompt=True)
        found: list[Reply | None] = []
        for i in range(0, len(images), BATCH):
            part = [[decode_compressed(encode_jpeg(image, JPEG_QUALITY))]
                    for image in images[i:i + BATCH]]
            inputs = self._processor(images=part, text=[text] * len(part), padding=True,
                                     return_tensors='pt')
            with torch.inference_mode():
                out = self._model.generate(**inputs, max_new_tokens=256, do_sample=False)
            found += map(Reply, self._processor.tokenizer.batch_decode(
                out[:, inputs['input_ids'].shape[1]:], skip_special_tokens=True))
        return found


class RemoteCloud:
    """A server asked as the cloud node asks it; round trips are measured, failures counted."""

    def __init__(self, server: CloudServer, keyframes: KeyframeConfig | None = None) -> None:
        """Name the server; nothing is sent yet."""
        self.server, self._encoder = server, KeyframeEncoder(keyframes)
        self.round_trips_s: list[float] = []
        self.errors: list[str] = []

    def replies(self, query: Query, images: Sequence[Image]) -> list[Reply | None]:
        """Ask one after the other."""
        async def ask() -> list[Reply | None]:
            client = CloudClient(self.server)
            found: list[Reply | None] = []
            try:
                for image in images:
                    keyframe = self._encoder.encode(None, image.view)
                    try:
                        reply = await client.ask(keyframe.jpeg, query)
                        self.round_trips_s.append(reply.round_trip_s)
                        found.append(Reply(reply.text, keyframe.scale))
                    except CloudError as error:
                        self.errors.append(str(error))
                        found.append(None)
            finally:
                await client.close()
            return found
        return asyncio.run(ask())


class CachedCloud:
    """The cloud model over one stream. Each frame is asked about once, when it is first sent."""

    def __init__(self, cloud: Cloud | None, stream: Stream, cache: Cache[str],
                 box_scale: BoxScale = 'relative') -> None:
        """Take what the cache has; without a ``cloud`` there is nothing else."""
        self._cloud, self._stream, self._cache, self._scale = cloud, stream, cache, box_scale
        self.answers: dict[int, CloudAnswer | None] = {}    # by frame, of those asked about

    def __call__(self, stamp_ns: int) -> CloudAnswer | None:
        """Return what the cloud says about a frame, whenever that arrives; None: nothing."""
        if stamp_ns not in self.answers:
            known, query = self._cache.get(str(stamp_ns)), self._stream.query
            scale = float(self._cache.get(f'{stamp_ns} scale') or 1.0)
            reply = Reply(known, scale) if known is not None else None
            if reply is None and self._cloud is not None:
                reply = self._cloud.replies(query, [self._stream.image(stamp_ns)])[0]
                if reply is not None:
                    self._cache.put(str(stamp_ns), reply.text)
                    if reply.sent_scale != 1.0:
                        self._cache.put(f'{stamp_ns} scale', str(reply.sent_scale))
            self.answers[stamp_ns] = None if reply is None else parse_reply(
                query, reply.text, stamp_ns, self._stream.size, reply.sent_scale, self._scale)
        return self.answers[stamp_ns]
