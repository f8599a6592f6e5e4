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
Serves the live page.

A page asks for what is newest, is answered as soon as there is something newer than what it has,
and asks again when it has drawn that: nothing queues up, however slow a browser is, and a server
that was restarted is found again by the next question. While nobody asks, ``look`` is told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
import hmac
import json
import os
from pathlib import Path
import secrets
import socket
import threading
import time
from typing import Protocol
from urllib.parse import urlsplit

from pydantic import JsonValue
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
import uvicorn

from .address import Address, HERE, listen, MAX_ASKING
from .state import LiveState

WEB = Path(__file__).with_name('web')
STATIC = ('/view.css', '/parts.js', '/view.js')
KINDS = {'.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript'}
TOKEN_ENV = 'SPOTVLM_VIEW_TOKEN'
PERIOD_S = 0.1         # a page gets something new this often, at most
PATIENCE_S = 10.0      # and something old after this long
AWAY_S = 3.0           # nobody looks when nobody has asked for this long
MAX_BODY = 64 << 10    # of a change [bytes]
CHANGE_S = 8.0         # longest wait for one
HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    'Referrer-Policy': 'no-referrer', 'X-Content-Type-Options': 'nosniff',
    'Cache-Control': 'no-store', 'Cross-Origin-Resource-Policy': 'same-origin'}

Endpoint = Callable[[Request], Awaitable[Response]]


class Controls(Protocol):
    """What can be changed from the page; each returns a text of what came of it."""

    def set_query(self, query_id: str, definition: str) -> Future[str]:
        """Change a standing query; ``definition`` is YAML of its fields."""

    def set_cloud(self, name: str, value: bool | float) -> Future[str]:
        """Change a parameter of node cloud."""


class ViewServer:
    """The live page, served by a thread of its own until `close`."""

    def __init__(self, state: LiveState, controls: Controls, address: Address,
                 look: Callable[[bool], object]) -> None:
        """Listen; raise AddressError. ``look`` is told whether anybody looks."""
        self.looking = False
        self._state, self._controls, self._look = state, controls, look
        self._asked_at = 0.0
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket = listen(address)
        self._host, self._port = address.host, int(self._socket.getsockname()[1])
        self._token = '' if address.is_here else \
            os.environ.get(TOKEN_ENV) or secrets.token_urlsafe(16)
        state.changed = self._tell
        app = Starlette(routes=[
            *(Route(path, self._guarded(self._page)) for path in ('/', *STATIC)),
            Route('/next', self._guarded(self._next)),
            Route('/change', self._guarded(self._change), methods=['POST'])],
            lifespan=self._lifespan)
        self._server = uvicorn.Server(uvicorn.Config(
            app, log_config=None, access_log=False, limit_concurrency=MAX_ASKING,
            timeout_graceful_shutdown=1, ws='none'))
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name='view', daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Return the address of the page, with its token."""
        host = {'0.0.0.0': socket.gethostname(), '::': socket.gethostname()}.get(  # noqa: S104
            self._host, self._host)
        host = f'[{host}]' if ':' in host else host
        return f'http://{host}:{self._port}/' + (f'?token={self._token}' if self._token else '')

    def close(self) -> None:
        """End, and let go of the port."""
        self._server.should_exit = True
        if self._loop is not None:
            self._tell()
        self._thread.join(3.0)
        self._socket.close()

    def _tell(self) -> None:
        """Say that something is new; called by any thread."""
        if self._loop is not None and self.looking:
            try:
                self._loop.call_soon_threadsafe(self._news.set)
            except RuntimeError:
                pass  # it has just ended

    # In the loop

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        yield
        if self.looking:
            self._set_looking(False)

    def _guarded(self, call: Endpoint) -> Endpoint:
        """Refuse who does not know the token, and pages of other sites."""
        async def guarded(request: Request) -> Response:
            why = self._refusal(request)
            response = await call(request) if not why else JSONResponse({'error': why}, 403)
            response.headers.update(HEADERS)
            return response
        return guarded

    def _refusal(self, request: Request) -> str:
        host = request.headers.get('host', '')
        if self._token:
            if not hmac.compare_digest(request.query_params.get('token', '').encode(),
                                       self._token.encode()) and \
                    request.url.path not in STATIC:
                return 'the address lacks the token; use the one that spotvlm run has printed'
        elif _host(f'//{host}') not in HERE:
            return f'this page is served to {", ".join(HERE)} only'
        origin = request.headers.get('origin', '')
        if origin and origin.partition('://')[2] != host:
            return 'a page of another site asks'
        return ''

    async def _page(self, request: Request) -> Response:
        file = WEB / (request.url.path.strip('/') or 'view.html')
        return Response(file.read_bytes(), media_type=KINDS[file.suffix])

    async def _next(self, request: Request) -> Response:
        """Return what is newer than what a page has, or the same after a while."""
        asked = request.query_params
        self._asked_at = time.monotonic()
        if not self.looking:
            self._set_looking(True)
            self._leave = asyncio.create_task(self._watch())
        until = self._asked_at + PATIENCE_S
        while asked.get('version') == self._state.version and time.monotonic() < until:
            self._asked_at = time.monotonic()
            if self._server.should_exit or await request.is_disconnected():
                return Response(status_code=503)
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), 0.5)
            except asyncio.TimeoutError:
                pass
        await asyncio.sleep(PERIOD_S)
        self._asked_at = time.monotonic()
        values, pictures = self._state.view(asked.get('query', ''))
        new = [name for name, p in pictures.items() if asked.get(name) != str(p.stamp_ns)]
        head = json.dumps(values | {'sent': new}).encode()
        return Response(b''.join((len(head).to_bytes(4, 'big'), head,
                                  *(pictures[name].jpeg for name in new))),
                        media_type='application/octet-stream')

    async def _watch(self) -> None:
        """Notice that nobody looks any more."""
        while time.monotonic() - self._asked_at < AWAY_S:
            await asyncio.sleep(0.5)
        self._set_looking(False)

    def _set_looking(self, looking: bool) -> None:
        self.looking = looking
        self._look(looking)

    async def _change(self, request: Request) -> Response:
        """Change the question, the cloud, or its delay."""
        try:
            body = b''
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    raise ValueError(f'it has more than {MAX_BODY} bytes')
            if request.headers.get('content-type') != 'application/json':
                raise ValueError('its type is not application/json')
            asked = self._asked(json.loads(body))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            return JSONResponse({'error': f'no change that is known: {error}'}, 400)
        try:
            return JSONResponse({'done': await asyncio.wait_for(
                asyncio.wrap_future(asked), CHANGE_S)})
        except asyncio.TimeoutError:
            return JSONResponse({'error': 'no reply in time; is the node active? the log of '
                                 'spotvlm run says'}, 504)
        except RuntimeError as error:
            return JSONResponse({'error': str(error)}, 409)

    def _asked(self, change: Mapping[str, JsonValue]) -> Future[str]:
        match dict(change):
            case {'query': str(query_id), 'definition': str(definition)}:
                return self._controls.set_query(query_id, definition)
            case {'paused': bool(paused)}:
                return self._controls.set_cloud('paused', paused)
            case {'delay_s': int(delay_s) | float(delay_s)} if type(delay_s) is not bool:
                return self._controls.set_cloud('emulated_delay_median_s', float(delay_s))
        raise ValueError('it names neither query and definition, nor paused, nor delay_s')


def _host(url: str) -> str:
    """Return the host of an address, '' where there is none."""
    try:
        return urlsplit(url).hostname or ''
    except ValueError:
        return ''
