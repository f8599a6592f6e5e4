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
The edge model on another host of the robot: the same questions, asked of a server on the LAN.

The model is shown and told what `EdgeModel` would show and tell it: two views of the frame, the
question, the context as an earlier turn of its own. Its reply is untrusted, and read as a cloud's
is. One request is under way at a time; none is made twice, and none outlives its answer's
deadline: then the connection is closed, and the next frame has its turn.

It stands here because it needs `edge` and `cloud`, which do not know each other.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
import re
import time

import numpy as np

from ..cloud.breaker import Breaker, State
from ..cloud.client import (cloud_server, CloudClient, CloudServer, Dialect, SECRET,
                            UNKNOWN_SCHEMA)
from ..cloud.errors import CloudError, CloudRefused, KEY_ENV
from ..cloud.parse import CloudAnswer, confidence, parse_reply
from ..cloud.reply import RawReply
from ..cloud.wording import values_format
from ..config.nodes import EdgeConfig, ServerConfig
from ..edge.answer import EdgeAnswer, EdgeVLM, guarded_answer, OnText
from ..frames.pixels import encode_jpeg, encode_png
from ..method import focus, guard, prompt
from ..method.facts import Context, Query
from ..method.history import compress

POLL_S = 0.004    # between two looks at whether to go on
CLOSE_S = 0.1     # longest wait for the end of a connection that is closed
LONGEST_S = 20.0  # of a request that nobody gives up before
WARM_UP_S = 5.0   # of all that warm-up asks
ALONE_S = 2.0     # longest pause of a server that fails
SCHEMA_TOKENS = 2  # times as many tokens for an object of JSON as for lines
CHARS_PER_TOKEN = 3
# What remedies of the cloud side say, and what helps here.
REMEDIES = {
    'allow_plain_key': 'remote_plain_key', 'api_key_file': 'remote_key_file',
    'base_url': 'remote_url', 'extra_body': 'remote_extra_body', KEY_ENV: f'{KEY_ENV}_EDGE',
    'lower max_image_bytes or max_side': 'lower remote_view_side',
    'raise cloud_period_s or lower the budgets': 'lower rate_hz of the queries',
    'max_tokens': 'max_new_tokens of the query',
    'temperature: -1.0 leaves that out, and max_tokens_field: max_completion_tokens is its other '
    'name': 'remote_extra_body changes what is sent'}
_REMEDIES = re.compile('|'.join(rf'\b{re.escape(r)}\b' for r in sorted(
    REMEDIES, key=len, reverse=True)))


class RemoteEdgeError(Exception):
    """The server gave no answer; the message has its address and ends in a remedy."""


@dataclass(frozen=True)
class _Asked:
    """A query about a frame, and who says when to give it up."""

    frame: focus.Image
    query: Query
    stamp_ns: int
    standing: bool    # not of action ask, which may be given up for other reasons than time
    should_stop: Callable[[], bool]


class RemoteEdge:
    """
    A model behind a server, which is an `EdgeVLM`. One inference thread per model.

    Where the server tells no probabilities, there is nothing that the guard could compare: then
    an answer is given in one pass, with context where there is any, and its confidence is 1.
    """

    def __init__(self, config: EdgeConfig) -> None:
        """Connect lazily. Raise ValueError that names the parameter."""
        if config.focus_backend != 'crop':
            raise ValueError(f'focus_backend is {config.focus_backend!r}, which needs the model '
                             'in this process; use crop, or leave remote_url empty')
        self.url, self.name = config.remote_url, Path(config.model).name
        self._config, self._odds = config, config.guard_odds
        self._client = CloudClient(edge_server(config))
        self._loop = asyncio.new_event_loop()  # runs while an answer is waited for
        self._breaker = Breaker(longest_s=ALONE_S)
        self._probabilities: bool | None = None  # whether the server tells any; None: unknown
        self._failure = ''
        self._requests = self._late = self._errors = self._rejected = 0

    def warm_up(self, queries: Iterable[Query]) -> None:
        """
        Ask each query about a grey frame, to learn what the server takes.

        Raise RemoteEdgeError where it does not answer; it may do so later.
        """
        until = time.monotonic() + WARM_UP_S
        grey = np.full((480, 640, 3), 127, np.uint8)
        for query in queries:
            asked = _Asked(grey, query, 0, False, lambda: time.monotonic() > until)
            if self._answer_once(asked, None, None).partial:
                raise RemoteEdgeError(f'no reply from {self.url} within {WARM_UP_S:g} s; is the '
                                      'model loaded there, and the network fast?')

    def answer(self, frame: focus.Image, query: Query, context: Context | None, stamp_ns: int,
               on_text: OnText | None = None,
               should_stop: Callable[[], bool] | None = None,
               judge: guard.Judge | None = None) -> EdgeAnswer:
        """
        Answer a query about a frame; see `EdgeVLM`. Raise RemoteEdgeError.

        A reply that is not complete when ``should_stop`` says so has no facts: of a value that is
        cut off nobody knows how it ends.
        """
        asked = _Asked(frame, query, stamp_ns, on_text is None, should_stop or (lambda: False))
        if judge is None or self._probabilities is False:
            odds = guard.OFF if self._probabilities is False else self._odds
            judge = guard.FixedOdds(query, odds)
        return guarded_answer(query, context, judge,
                              lambda given, streamed: self._answer_once(asked, given, streamed),
                              on_text)

    @property
    def trouble(self) -> str:
        """Return why some frames are not sent at present, and what to do; '' where all are."""
        return '' if self._breaker.state is State.CLOSED else \
            f'the edge model at {self.url} is asked about a frame now and then only: ' \
            f'{self._failure}'

    def report(self) -> dict[str, str | float]:
        """Return what /diagnostics shows."""
        known = {None: 'unknown', True: 'yes', False: 'no: one pass, without the guard'}
        return {f'remote.{key}': value for key, value in (
            ('url', self.url), ('breaker', self._breaker.state.name.lower()),
            ('requests', self._requests), ('late', self._late), ('errors', self._errors),
            ('rejected', self._rejected), ('dialect', self._client.dialect.name.lower()),
            ('probabilities', known[self._probabilities]))}

    def close(self) -> None:
        """Close the connections."""
        if not self._loop.is_running():  # a thread that could not be joined
            self._loop.run_until_complete(self._client.close())
            self._loop.close()

    def _answer_once(self, asked: _Asked, context: Context | None,
                     on_text: OnText | None) -> EdgeAnswer:
        """Answer with one request."""
        begin = time.perf_counter()
        query, stamp_ns = asked.query, asked.stamp_ns
        if not self._breaker.ready(time.monotonic()):
            raise RemoteEdgeError(self.trouble)
        if context is not None:
            context = compress(context, query, stamp_ns, query.context_tokens, _token_guess)
        (height, width), config = asked.frame.shape[:2], focus.FocusConfig()
        side = self._config.remote_view_side
        boxes = focus.focus_boxes(query, context, stamp_ns, width, height, config)
        views = focus.views(asked.frame, query, boxes, (side, side), config)
        history = prompt.history_text(query, context, stamp_ns) if context is not None else ''
        chat = self._messages(prompt.messages(query, context, stamp_ns, len(views)), views)
        ready = time.perf_counter()
        reply = RawReply()
        complete = self._reply(asked, chat, on_text, reply)
        said = _read(query, reply, stamp_ns) if complete else CloudAnswer(
            query.id, stamp_ns, text=self._so_far(query, reply), rejected=['reply: cut short'])
        self._rejected += len(said.rejected) * complete
        told = bool(history) or bool(boxes)
        return EdgeAnswer(
            text=said.text, facts=said.facts, rejected=tuple(said.rejected),
            told_keys=frozenset(f.key for f in said.facts if told),
            used_context=bool(history), used_focus=bool(boxes),
            context_tokens=_token_guess(history), preprocess_s=ready - begin,
            inference_s=time.perf_counter() - ready, partial=not complete,
            computed_tokens=sum(reply.usage or ()))

    def _messages(self, chat: Sequence[prompt.Message], views: Sequence[focus.Image],
                  ) -> list[dict[str, object]]:
        """Return a chat as servers take it, with the views in the places of images."""
        images = iter(views)

        def part(given: prompt.MessagePart) -> dict[str, object]:
            if given['type'] == 'text':
                return {'type': 'text', 'text': given['text']}
            return {'type': 'image_url', 'image_url': {'url': self._data_url(next(images))}}
        return [{'role': m['role'], 'content': [part(p) for p in m['content']]
                 if m['role'] == 'user' else m['content'][0]['text']} for m in chat]

    def _data_url(self, view: focus.Image) -> str:
        quality = self._config.remote_view_quality
        kind, data = ('jpeg', encode_jpeg(view, quality)) if quality else ('png', encode_png(view))
        return f'data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}'

    def _reply(self, asked: _Asked, chat: list[dict[str, object]], on_text: OnText | None,
               reply: RawReply) -> bool:
        """Send a request; return whether its reply is complete. Raise RemoteEdgeError."""
        self._requests += 1
        self._breaker.allow(time.monotonic())
        try:
            complete = self._loop.run_until_complete(self._wait(asked, chat, on_text, reply))
        except CloudError as error:
            self._errors += 1
            self._failed(with_our_names(str(error)), error)
            raise RemoteEdgeError(self._failure) from None
        except BaseException:
            self._breaker.abandon(time.monotonic())
            raise
        if complete:
            self._breaker.success()
            self._probabilities = bool(reply.tokens)
        elif asked.standing:
            self._late += 1
            self._failed(f'no reply within the deadline of {asked.query.id}; raise '
                         f'{asked.query.id}.deadline_s, or use a faster server, model or network')
        else:
            self._breaker.abandon(time.monotonic())
        return complete

    def _failed(self, why: str, error: CloudError | None = None) -> None:
        self._failure, now = why, time.monotonic()
        if isinstance(error, CloudRefused) and error.retry_after_s:
            self._breaker.open_for(now, error.retry_after_s)
        else:
            self._breaker.failure(now)
        if self._breaker.state is State.OPEN:
            self._probabilities = None  # another server may be there next time

    async def _wait(self, asked: _Asked, chat: list[dict[str, object]], on_text: OnText | None,
                    reply: RawReply) -> bool:
        """Wait for a reply for as long as it is wanted; return whether it is complete."""
        task, shown = asyncio.ensure_future(self._ask(asked.query, chat, reply)), 0
        while not task.done():
            await asyncio.wait({task}, timeout=POLL_S)
            if on_text is not None and len(reply.text) > shown:
                shown = len(reply.text)
                on_text(self._so_far(asked.query, reply),
                        len(reply.tokens) or _token_guess(reply.text))
            if not task.done() and asked.should_stop():
                task.cancel()
                await asyncio.wait({task}, timeout=CLOSE_S)
                with suppress(asyncio.CancelledError, asyncio.InvalidStateError):
                    task.exception()  # it has been looked at
                return False
        task.result()
        return True

    async def _ask(self, query: Query, chat: list[dict[str, object]], reply: RawReply) -> None:
        """Ask with probabilities where the server may have them, else, or if refused, without."""
        async def ask(probabilities: bool) -> None:
            def compose(dialect: Dialect) -> dict[str, object]:
                schema = dialect is Dialect.SCHEMA
                return {'messages': chat,
                        'max_tokens': query.max_new_tokens * (SCHEMA_TOKENS if schema else 1),
                        **({'logprobs': True} if probabilities else {}),
                        **({'response_format': values_format(query)} if schema else {})}
            await self._client.chat(compose, query.format != 'text', LONGEST_S, reply)
        try:
            await ask(self._probabilities is not False)
        except CloudRefused as error:
            if self._probabilities is not None or error.status not in UNKNOWN_SCHEMA:
                raise
            await ask(False)

    def _so_far(self, query: Query, reply: RawReply) -> str:
        """Return what may be shown of a reply that is not complete: of free text, no key."""
        text, key = reply.text, self._client.server.api_key
        if len(key) >= SECRET:  # the end may be its beginning
            text = text.replace(key, '(key)')[:1 - len(key)]
        return parse_reply(query, text, 0, (1, 1)).text if query.format == 'text' else ''


def _read(query: Query, reply: RawReply, stamp_ns: int) -> CloudAnswer:
    """Return what a complete reply says, with confidences; nobody asks the edge for boxes."""
    said = parse_reply(query, reply.text, stamp_ns, (1, 1))
    return replace(said, facts=tuple(
        replace(f, region=None, confidence=confidence(query, f, reply.tokens))
        for f in said.facts))


def edge_server(config: EdgeConfig) -> CloudServer:
    """Return the server that parameters describe; raise ValueError that names the parameter."""
    try:
        server = cloud_server(ServerConfig(
            base_url=config.remote_url, api_key_file=config.remote_key_file, model=config.model,
            allow_plain_key=config.remote_plain_key, structured_output=config.remote_schema,
            extra_body=config.remote_extra_body), 'edge')
    except ValueError as error:
        raise ValueError(with_our_names(str(error))) from None
    # The model is on another host: what it is called there, and no form of reply, counts.
    return replace(server, config=replace(server.config, model=config.model, reply_form=''))


def with_our_names(text: str) -> str:
    """Return an error of the cloud side with a remedy that there is here."""
    return _REMEDIES.sub(lambda found: REMEDIES[found[0]], text)


def load_edge_model(config: EdgeConfig) -> EdgeVLM:
    """Return the model on another host, or load it; torch is imported here, not before."""
    if config.remote_url:
        return RemoteEdge(config)
    from ..system.lean import import_transformers
    import_transformers()
    from ..edge.model import EdgeModel
    return EdgeModel.load(config)


def _token_guess(text: str) -> int:
    return -(-len(text) // CHARS_PER_TOKEN)
