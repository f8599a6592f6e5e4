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
The process of the embedded server: `transformers serve`, with one door and one key.

It gets a socket that listens already, so that nobody else can have had its port first, and a key
in its environment. Of what `transformers serve` offers, chat completions of the one model are
left: no other model is loaded, no address or file named in a request is read.
"""

from __future__ import annotations

from collections.abc import Sequence
import gc
import hmac
import logging
import os
from pathlib import Path
import socket
import sys

from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message as Event, Receive, Scope, Send
import uvicorn

from .chat import MAX_BODY, Message, Strict
from .errors import KEY_ENV


class _ChatRequest(Strict):
    model: str
    messages: list[Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    # Taken and ignored, as by the server itself.
    stream_options: object = Field(None, exclude=True)
    response_format: object = Field(None, exclude=True)


class Door:
    """Lets through to an app what is asked with the key about its one model."""

    def __init__(self, app: ASGIApp, model: str, key: str) -> None:
        """Know the model by its path and by the name of its folder."""
        self._app, self._model = app, model
        self._key = f'Bearer {key}'.encode('latin-1')

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope['type'] == 'lifespan':
            await self._app(scope, receive, send)
        if scope['type'] != 'http':
            return
        request = Request(scope, receive)
        given = request.headers.get('authorization', '').encode('latin-1')
        route = f'{request.method} {scope["path"]}'
        if not hmac.compare_digest(given, self._key):
            response = _refusal(401, 'the key is missing or wrong')
        elif route == 'GET /health':
            response = JSONResponse({'status': 'ok'})
        elif route == 'GET /v1/models':
            response = JSONResponse({'object': 'list', 'data': [
                {'id': self._model, 'object': 'model', 'owned_by': 'spotvlm'}]})
        elif route != 'POST /v1/chat/completions':
            response = _refusal(404, 'there are chat completions only')
        else:
            try:
                body = self._checked(await _body(request))
            except ValidationError as error:
                problem = error.errors(include_url=False, include_input=False)[0]
                where = '.'.join(map(str, problem['loc']))
                response = _refusal(422, f'{where}: {problem["msg"]}')
            except ValueError as error:
                response = _refusal(400, str(error))
            else:
                await self._app(scope, _replay(body, receive), send)
                return
        await response(scope, receive, send)

    def _checked(self, body: bytes) -> bytes:
        """Return a request as the app may have it; raise ValueError."""
        request = _ChatRequest.model_validate_json(body)
        if request.model not in (self._model, Path(self._model).name):
            raise ValueError(f'there is one model here, {self._model}')
        request.model = self._model
        return request.model_dump_json(exclude_none=True).encode()


def _refusal(status: int, text: str) -> JSONResponse:
    return JSONResponse({'error': {'message': text}}, status)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise ValueError(f'more than {MAX_BODY} bytes')
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a channel that has the body first, and then what else comes: the end."""
    events: list[Event] = [{'type': 'http.request', 'body': body, 'more_body': False}]

    async def replay() -> Event:
        return events.pop() if events else await receive()
    return replay


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a checkpoint folder on a socket that was inherited, by its number."""
    gc.disable()  # nothing of what is imported and loaded becomes garbage
    from ..system.lean import check_without_sympy, import_transformers, Layout
    import_transformers()  # a killed server is back two seconds earlier
    check_without_sympy()
    from transformers.cli.serve import Serve
    model, number = sys.argv[1:] if argv is None else argv
    key = os.environ.pop(KEY_ENV)

    class Server(uvicorn.Server):
        """Serves behind the door, on our socket."""

        def run(self, sockets: list[socket.socket] | None = None) -> None:
            self.config.app = Door(self.config.app, model, key)  # type: ignore[arg-type]
            for name in ('uvicorn.access', 'uvicorn.error'):
                logging.getLogger(name).setLevel(logging.WARNING)
            gc.freeze()
            gc.enable()
            super().run([socket.socket(fileno=int(number))])
    uvicorn.Server = Server  # type: ignore[misc]
    with Layout():
        Serve(force_model=model, device='cpu', dtype='float32', log_level='error')


if __name__ == '__main__':
    main()
