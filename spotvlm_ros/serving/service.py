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
Answers HTTP requests about one model: who asks, whether in time, and the reply.

The same handlers run in one process (`App`) and on Ray Serve (`on_ray`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import json
import logging
import secrets
import time
from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Message as Event, Receive, Scope, Send

from .batcher import Batcher
from .chat import chat_request, ChatRequest, LONGEST, MAX_BODY, Refused
from .checkpoint import Prepared, Reply
from .keys import Keys, Robot
from .meters import Meters

MOST_WAITING = 256   # requests; what more would come has to wait elsewhere
READERS = 4          # threads; one gives a GPU 50 pictures a second, and no more
TIMEOUT = 'x-request-timeout-ms'  # for how long a reply is of use to who asks
TIMEOUT_S = 60.0     # where nothing is said


class Model(Protocol):
    """What answers, batch by batch."""

    def prepare(self, chat: ChatRequest) -> Prepared:
        """Return a request in tensors; raise ValueError where it cannot be one."""

    def answer(self, batch: Sequence[Prepared], gone: Callable[[int], bool]) -> list[Reply]:
        """Return the replies to a batch."""


@dataclass(frozen=True)
class Limits:
    """What is computed at once, and by what names the model goes."""

    names: tuple[str, ...]
    max_batch: int = 8


class Service:
    """Answers requests; lives in one asyncio loop."""

    def __init__(self, model: Model, keys: Keys, limits: Limits,
                 meters: Meters | None = None) -> None:
        """Begin."""
        self.meters = meters or Meters()
        self._model, self._keys, self._names = model, keys, limits.names
        self._batcher: Batcher[Prepared, Reply] = Batcher(
            self._compute, limits.max_batch, self.meters)
        self._under_way = 0
        # Pictures and prompts become tensors beside the batch that is computed.
        self._reader = ThreadPoolExecutor(READERS, 'reader')
        self._thread = ThreadPoolExecutor(1, 'model')

    @property
    def healthy(self) -> bool:
        """Whether what is asked is being computed."""
        return not self._batcher.stuck

    async def __call__(self, request: Request) -> Response:
        """Answer."""
        route = f'{request.method} {request.scope["path"]}'
        robot = self._keys.robot(request.headers.get('authorization', ''))
        if robot is None:
            return self._refused(Refused(
                401, 'Authorization: the key is missing or wrong; send Bearer and a key of the '
                'server', 'key'))
        if route == 'POST /v1/chat/completions':
            return await self._counted(request, robot)
        if route == 'GET /health':
            return JSONResponse({'status': 'ok' if self.healthy else 'stuck'},
                                200 if self.healthy else 503)
        if route == 'GET /ready':
            busy = self._under_way >= MOST_WAITING or not self.healthy
            return JSONResponse({'status': 'busy' if busy else 'ok'}, 503 if busy else 200)
        if route == 'GET /metrics':
            self._batcher.measure()
            return PlainTextResponse(self.meters.text())
        if route == 'GET /v1/models':
            return JSONResponse({'object': 'list', 'data': [
                {'id': name, 'object': 'model', 'owned_by': 'spotvlm'} for name in self._names]})
        return self._refused(Refused(
            404, f'there is no {route[:LONGEST]}; there are POST /v1/chat/completions and GET '
            '/v1/models, /health, /ready and /metrics', 'route'))

    def _refused(self, refusal: Refused) -> Response:
        """Count a refusal, and return it."""
        self.meters.add('refused_total', label=('reason', refusal.reason))
        return refusal.response()

    async def _counted(self, request: Request, robot: Robot) -> Response:
        """Answer a chat request, and count what came of it."""
        loop, status = asyncio.get_running_loop(), 500
        began = loop.time()
        self._under_way += 1
        try:
            response = await self._chat(request, robot, began)
            status = response.status_code
            self.meters.add('request_seconds_sum', loop.time() - began)
        except Refused as refusal:
            status, response = refusal.status, self._refused(refusal)
        except (asyncio.CancelledError, ClientDisconnect):
            status = 499  # as nginx has it
            self.meters.add('hung_up_total')
            raise
        except Exception as error:  # of the model, which others may ask still
            logging.getLogger('uvicorn.error').exception('a request broke the model')
            response = self._refused(Refused(
                500, f'the model failed: {str(error)[:LONGEST]}; see the log of the server',
                'failed'))
        finally:
            self._under_way -= 1
            self.meters.add('requests_total', label=('status', str(status)))
        response.headers['X-Queue-Wait-Ms'] = str(round(1e3 * self._batcher.wait_s))
        return response

    async def _chat(self, request: Request, robot: Robot, began: float) -> Response:
        """Return the reply to a chat request; raise Refused."""
        until = began + _timeout_s(request.headers.get(TIMEOUT, ''))
        kind = request.headers.get('content-type', 'application/json')
        body = await _body(request)
        if kind.partition(';')[0].strip().lower() != 'application/json':
            raise Refused(415, f'Content-Type is {kind[:LONGEST]}; send application/json',
                          'request')
        wait_s = robot.wait_s(began)
        if wait_s:
            raise Refused(429, f'{robot.name} asks more than {robot.per_s:g} times a second; ask '
                          'again later, as Retry-After says', 'quota', wait_s)
        if self._under_way > MOST_WAITING:
            raise Refused(503, 'busy: too many requests are under way', 'full', 1.0)
        self._batcher.admit(until)  # before any work
        chat = self._checked(body)
        loop = asyncio.get_running_loop()
        try:
            prepared = await loop.run_in_executor(self._reader, self._model.prepare, chat)
        except Exception as error:  # of the model's processor, about what it was given
            raise Refused(400, f'the model cannot be asked that: {error}', 'request') from error
        reply = await self._batcher.ask(prepared, robot.name, until)
        for kind, count in (('prompt', reply.prompt_tokens), ('reply', reply.tokens)):
            self.meters.add('tokens_total', count, ('kind', kind))
        return _streamed(chat, reply) if chat.stream else JSONResponse(
            _completion(chat, reply, 'message', 'chat.completion') | {'usage': _usage(reply)})

    async def _compute(self, batch: Sequence[Prepared], gone: Callable[[int], bool]
                       ) -> Sequence[Reply]:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._model.answer, batch, gone)

    def _checked(self, body: bytes) -> ChatRequest:
        """Return a request; raise Refused."""
        chat = chat_request(body)
        if chat.model not in self._names:
            raise Refused(400, f'model: there is one here; give {self._names[0]}', 'request')
        return chat


class App:
    """The service as an ASGI app; what somebody has hung up on is given up."""

    def __init__(self, service: Service) -> None:
        """Serve."""
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope['type'] != 'http':  # uvicorn is told that there is no lifespan
            return
        whole = asyncio.Event()

        async def body() -> Event:
            event = await receive()
            if not event.get('more_body'):
                whole.set()
            return event

        async def hung_up() -> None:
            await whole.wait()
            while (await receive())['type'] != 'http.disconnect':
                pass
        work = asyncio.ensure_future(self._service(Request(scope, body)))
        gone = asyncio.ensure_future(hung_up())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work.result()(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            gone.cancel()
            work.cancel()


def _timeout_s(text: str) -> float:
    if not text:
        return TIMEOUT_S
    if not text.isascii() or not text.isdigit() or not 0 < len(text) < 10:
        raise Refused(400, f'{TIMEOUT}: give whole milliseconds', 'request')
    return int(text) / 1e3


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Refused(413, f'the body has more than {MAX_BODY} bytes; send smaller pictures',
                          'request')
    return bytes(body)


def _usage(reply: Reply) -> dict[str, int]:
    return {'prompt_tokens': reply.prompt_tokens, 'completion_tokens': reply.tokens,
            'total_tokens': reply.prompt_tokens + reply.tokens}


def _completion(chat: ChatRequest, reply: Reply, part: str, kind: str) -> dict[str, object]:
    """Return a reply as OpenAI puts it; ``part`` is what the text is in."""
    return {'id': f'chatcmpl-{secrets.token_hex(8)}', 'object': kind, 'created': int(time.time()),
            'model': chat.model, 'choices': [{
                'index': 0, 'finish_reason': 'stop' if reply.finished else 'length',
                part: {'role': 'assistant', 'content': reply.text}}]}


def _streamed(chat: ChatRequest, reply: Reply) -> Response:
    """Return a reply as a stream; it is whole when its batch is, so it comes in one piece."""
    chunk = _completion(chat, reply, 'delta', 'chat.completion.chunk')
    events = [chunk]
    if chat.stream_options is not None and chat.stream_options.include_usage:
        events.append(chunk | {'choices': [], 'usage': _usage(reply)})
    text = ''.join(f'data: {json.dumps(event)}\n\n' for event in events) + 'data: [DONE]\n\n'
    return Response(text, media_type='text/event-stream')
