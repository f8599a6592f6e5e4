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
The ``openai`` client for one server, with a bound on everything: time, bytes, characters.

The client reads a reply, and the body of an error, to its end before anybody can look at its
size. So the bounds are in the HTTP transport below it, where each piece of a body passes. The
client does not tell the end mark of a stream from the end of the connection: a stream is complete
when it has told a finish_reason.

Importing this takes most of a second: ``client`` does so when a server is first configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
import math
import socket
import time
from typing import Any
from urllib.parse import urlsplit
import urllib.request

import httpx2
import openai
from openai.types.chat import ChatCompletionChunk

from .errors import (CloudRefused, CloudReplyError, CloudReplyTooLarge, CloudTimeout,
                     CloudUnreachable, LOOPBACK)
from .reply import RawReply

MAX_BODY = 524_288      # bytes of a reply, SSE framing and reasoning included
MAX_TEXT = 16_384       # characters of the text in it
LONGEST_RETRY_AFTER_S = 300.0
CONNECT_S = 3.0         # TCP and TLS; a host that does not answer in this time is down
IDLE_S = 30.0           # an unused connection is kept this long
_PRESENT: ContextVar[RawReply] = ContextVar('completion')  # of the task's request


class Transport:
    """Connections to one server; lives in one asyncio loop."""

    def __init__(self, base_url: str, api_key: str = '') -> None:
        """Connect lazily. TLS is verified; redirects, which could take the key along, are not."""
        self.base_url = base_url.rstrip('/')
        timeout = httpx2.Timeout(None, connect=CONNECT_S)
        http = httpx2.AsyncClient(transport=_Bounded(self.base_url, api_key), trust_env=False,
                                  follow_redirects=False, timeout=timeout)
        try:
            self._client = openai.AsyncOpenAI(base_url=self.base_url, api_key=api_key or 'none',
                                              max_retries=0, timeout=timeout, http_client=http)
        except httpx2.InvalidURL:
            raise ValueError(f'{base_url} is no address; check base_url') from None
        self._create = self._client.chat.completions.with_streaming_response.create

    async def complete(self, body: Mapping[str, object], deadline_s: float,
                       done: RawReply) -> None:
        """Send a request and read the reply into ``done``; raise CloudError."""
        _PRESENT.set(done)
        with _translated(self.base_url, deadline_s, done):
            # In extra_body the client takes all as it is, which saves a millisecond; whether the
            # reply is streamed, only the reply tells.
            async with asyncio.timeout(deadline_s), self._create(
                    model='', messages=[], extra_body=body) as response:
                if response.headers.get('content-type', '').startswith('text/event-stream'):
                    async for event in openai.AsyncStream(
                            cast_to=ChatCompletionChunk, response=response.http_response,
                            client=self._client):
                        self._take(event, done)
                        await asyncio.sleep(0)  # many come at once: the deadline has its turn
                else:
                    self._take(await response.parse(), done)
                    done.finished = True
        if not done.finished:
            raise CloudUnreachable(f'{self.base_url} broke the connection within a reply; see '
                                   'the log of the server')
        done.received = time.monotonic()

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()

    def _take(self, reply: Any, done: RawReply) -> None:
        """Add a reply or a piece of one; the client does not check what type anything has."""
        choices = getattr(reply, 'choices', None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        said = getattr(choice, 'delta', None) or getattr(choice, 'message', None)
        text = getattr(said, 'content', None)
        done.text += text if isinstance(text, str) else ''
        if len(done.text) > MAX_TEXT:
            raise _too_large(self.base_url)
        done.finished |= isinstance(getattr(choice, 'finish_reason', None), str)
        usage = getattr(reply, 'usage', None)
        asked, told = (getattr(usage, f'{name}_tokens', None) for name in ('prompt', 'completion'))
        if type(asked) is int and type(told) is int and min(asked, told) >= 0:
            done.usage = (asked, told)


class _Bounded(httpx2.AsyncHTTPTransport):
    """Lets no more than MAX_BODY of a reply in, nothing of an error, and only our headers out."""

    def __init__(self, base_url: str, api_key: str) -> None:
        super().__init__(
            proxy=_proxy(base_url), socket_options=_socket_options(),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16,
                                 keepalive_expiry=IDLE_S))
        self._url = base_url
        self._headers = {'Content-Type': 'application/json', 'Accept': 'text/event-stream, '
                         'application/json', 'Accept-Encoding': 'identity',
                         'User-Agent': 'spotvlm'}
        if api_key:
            self._headers['Authorization'] = f'Bearer {api_key}'

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        done = _PRESENT.get()

        async def trace(event: str, info: Any) -> None:
            if event.endswith('send_request_headers.complete'):
                done.began = True
                done.bytes_sent += int(request.headers['Content-Length'])
            elif event.endswith('send_request_body.complete'):
                done.sent = time.monotonic()
        # The client's headers tell about this machine, and what the environment says of another
        # server (OPENAI_ORG_ID, OPENAI_CUSTOM_HEADERS).
        own = self._headers | {k: request.headers[k] for k in ('Host', 'Content-Length')}
        response = await super().handle_async_request(httpx2.Request(
            request.method, request.url, headers=own, stream=request.stream,
            extensions=request.extensions | {'trace': trace}))
        if response.status_code != 200:
            await response.aclose()
            return httpx2.Response(response.status_code, headers={
                k: v for k, v in response.headers.items() if k in ('date', 'retry-after')})
        if response.headers.get('content-encoding', 'identity') != 'identity':
            await response.aclose()
            raise CloudReplyError(f'{self._url} compresses its replies, which was not asked for; '
                                  'turn that off')
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Counted(response.stream, self._url, done)
        return response


@dataclass
class _Counted(httpx2.AsyncByteStream):
    """The body of a reply, up to MAX_BODY."""

    stream: httpx2.AsyncByteStream
    url: str
    done: RawReply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self.stream:
            self.done.bytes_received += len(chunk)
            if self.done.bytes_received > MAX_BODY:
                raise _too_large(self.url)
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()


@contextmanager
def _translated(url: str, deadline_s: float, done: RawReply) -> Iterator[None]:
    """Turn errors of the client and asyncio into ours; nothing that the server said stays."""
    try:
        yield
    except openai.APITimeoutError:  # nothing else has a limit there
        raise CloudUnreachable(f'cannot reach {url} within {CONNECT_S:g} s; is the server '
                               'running, and the network up?') from None
    except TimeoutError:
        raise CloudTimeout(f'no reply from {url} within {deadline_s:.2g} s; raise deadline_s or '
                           'the time to live of the facts, or use a faster model') from None
    except (openai.APIConnectionError, httpx2.TransportError, OSError) as error:
        if done.finished:
            return  # a connection may end as it likes
        why = type(error.__cause__ or error).__name__
        raise CloudUnreachable(f'the connection to {url} failed ({why}); is the server running, '
                               'and the network up?') from None
    except openai.APIStatusError as error:
        raise CloudRefused(url, error.status_code,
                           retry_after_s(error.response.headers)) from None
    except (openai.APIError, ValueError, RecursionError) as error:
        raise CloudReplyError(f'{url} sent an unusable reply ({type(error).__name__}); is it '
                              'OpenAI-compatible?') from None


def _too_large(url: str) -> CloudReplyTooLarge:
    return CloudReplyTooLarge(f'{url} sent more than {MAX_TEXT} characters or {MAX_BODY} bytes; '
                              'lower max_tokens')


def retry_after_s(headers: httpx2.Headers) -> float:
    """
    Return how long the server wants to be left alone [s], at most five minutes; 0: unsaid.

    A date is compared with the server's own: its clock and ours may differ.
    """
    value = headers.get('retry-after', '')
    try:
        seconds = float(value)
    except ValueError:
        try:
            now = parsedate_to_datetime(headers.get('date', ''))
            seconds = (parsedate_to_datetime(value) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S) if math.isfinite(seconds) else 0.0


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for an address."""
    parts = urlsplit(url)
    host = parts.hostname or ''
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def _socket_options() -> list[tuple[int, int, int]]:
    """Make a link that went down an error within seconds, even while the model thinks."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
               (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in (('TCP_KEEPIDLE', 2), ('TCP_KEEPINTVL', 1), ('TCP_KEEPCNT', 3),
                        ('TCP_USER_TIMEOUT', 4000)):
        if hasattr(socket, name):  # not everywhere but Linux
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
