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
HTTP to one server, with a bound on everything: time, bytes, characters.

`httpcore`, the part of httpx that does connections and HTTP, is used as it is: nothing follows
redirects, decompresses, adds headers of its own or reads the body of an error. A stream is
complete once a finish_reason or the end mark has come; either may be missing, and so may the end.

Bytes are counted where they leave the socket, with what no body shows: headers, the frames of
chunks and their extensions, and answers 1xx, of which a server can send any number.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
import json
import math
import socket
import ssl
import time
from urllib.parse import unquote, urlsplit
import urllib.request

import httpcore2

from .certificates import explained, tls_context, tls_error
from .errors import (CloudRefused, CloudReplyError, CloudReplyTooLarge, CloudTimeout,
                     CloudUnreachable, LOOPBACK)
from .reply import loads, RawReply
from ..system.compatible import timeout

MAX_HEAD = 65_536       # bytes until a response has begun: headers, answers 1xx
MAX_BYTES = 524_288     # of a reply: framing and reasoning included
MAX_TEXT = 16_384       # characters of the text in it
LONGEST_RETRY_AFTER_S = 300.0
CONNECT_S = 3.0         # TCP and TLS; a host that does not answer in this time is down
IDLE_S = 30.0           # an unused connection is kept this long
MAX_PARTS = 64          # of a message that is a list
_REASONING = ('reasoning_content', 'reasoning')  # fields of a message: vLLM, OpenRouter
DRAIN_S = 0.1           # longest wait for the end of a body whose end mark has come
TIMEOUT_HEADER = 'X-Request-Timeout-Ms'  # a server that knows it need not compute in vain
HTTP = b'HTTP/1.'       # what a response begins with
_METER: ContextVar[_Meter] = ContextVar('meter')  # of what the present task reads


class Transport:
    """Connections to one server; lives in one asyncio loop."""

    def __init__(self, base_url: str, api_key: str = '') -> None:
        """Connect lazily. TLS is verified; redirects, which could take the key along, are not."""
        self.base_url = base_url.rstrip('/')
        try:
            self._url = httpcore2.URL(f'{self.base_url}/chat/completions')
        except ValueError:
            raise ValueError(f'{base_url} is no address; check base_url') from None
        self._headers = [('Content-Type', 'application/json'), ('User-Agent', 'spotvlm'),
                         ('Accept', 'text/event-stream, application/json'),
                         ('Accept-Encoding', 'identity')]
        if api_key:
            self._headers.append(('Authorization', f'Bearer {api_key}'))
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls_context() if self._url.scheme == b'https' else None,
            proxy=_proxy(self.base_url), max_connections=None, max_keepalive_connections=16,
            keepalive_expiry=IDLE_S, socket_options=_socket_options(), network_backend=_Backend())

    async def complete(self, body: Mapping[str, object], deadline_s: float,
                       reply: RawReply) -> None:
        """Send a request and read the reply; raise CloudError."""
        content = json.dumps(body).encode()
        meter = _Meter(reply)
        _METER.set(meter)

        async def trace(event: str, info: object) -> None:
            if event.endswith('send_request_headers.complete'):
                reply.began = True
                reply.bytes_sent += len(content)
            elif event.endswith('send_request_body.complete'):
                reply.sent = time.monotonic()
            elif 'start_tls' in event:
                meter.shaking_hands = not event.endswith('complete')
        try:
            with _translated(self.base_url, deadline_s, reply):
                async with timeout(deadline_s), self._pool.stream(
                        'POST', self._url, headers=[*self._headers, (
                            TIMEOUT_HEADER, str(round(1e3 * deadline_s)))], content=content,
                        extensions={'timeout': {'connect': CONNECT_S}, 'trace': trace}
                        ) as response:
                    meter.left += MAX_BYTES
                    await self._read(response, reply)
        except CloudUnreachable as error:
            tls = tls_error(error)
            if tls is None and not meter.shaking_hands:
                raise
            raise await explained(tls, self._url.host.decode(), self._url.port or 443) from None
        if not reply.finished:
            raise CloudUnreachable(f'{self.base_url} broke the connection within a reply; see '
                                   'the log of the server')
        reply.received = time.monotonic()

    async def close(self) -> None:
        """Close connections."""
        await self._pool.aclose()

    async def _read(self, response: httpcore2.Response, reply: RawReply) -> None:
        headers = {name.decode('latin-1').lower(): value.decode('latin-1')
                   for name, value in response.headers}
        if response.status != 200:
            raise CloudRefused(self.base_url, response.status, retry_after_s(headers))
        if headers.get('content-encoding', 'identity') != 'identity':
            raise CloudReplyError(f'{self.base_url} compresses its replies, which was not asked '
                                  'for; turn that off')
        chunks = response.aiter_stream()
        if not headers.get('content-type', '').startswith('text/event-stream'):
            self._take(loads(b''.join([chunk async for chunk in chunks])), reply)
            reply.finished = True
            return
        whole = {'transfer-encoding', 'content-length'} & headers.keys()  # its end is known
        async for data in _events(chunks):
            if data.startswith(b'[DONE]'):
                reply.finished = bool(reply.text or reply.reasoned)
                break
            self._take(loads(data), reply)
            await asyncio.sleep(0)  # many come at once: the deadline has its turn
        else:
            reply.finished |= bool(whole and reply.text)
        with suppress(TimeoutError):  # the connection is used again if the body ends soon
            async with timeout(DRAIN_S):
                async for _ in chunks:
                    await asyncio.sleep(0)

    def _take(self, data: object, reply: RawReply) -> None:
        """Add a reply or a piece of one, whose parts may be of any type."""
        if not isinstance(data, dict) or data.get('error'):
            raise ValueError('no object, or that of an error')
        choices = data.get('choices')
        choice = choices[0] if isinstance(choices, list) and choices else None
        choice = choice if isinstance(choice, dict) else {}
        message = choice.get('delta') or choice.get('message')
        message = message if isinstance(message, dict) else {}
        reply.text += _text(message.get('content'))
        reply.tokens += _tokens(choice.get('logprobs'))
        reply.reasoned |= any(message.get(name) for name in _REASONING)
        if len(reply.text) > MAX_TEXT:
            raise _too_large(self.base_url)
        reason = choice.get('finish_reason')
        reply.finished |= isinstance(reason, str) and bool(reason)
        usage = data.get('usage')
        usage = usage if isinstance(usage, dict) else {}
        counts = [usage.get(f'{name}_tokens') for name in ('prompt', 'completion')]
        prompt, completion = (n if type(n) is int and n > 0 else None for n in counts)
        if prompt is not None and completion is not None:  # an image and an answer cost some
            reply.usage = prompt, completion


def _text(content: object) -> str:
    """Return the text of a message: a string, or the parts of type text in a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ''
    texts = [part.get('text') for part in content[:MAX_PARTS]
             if isinstance(part, dict) and part.get('type', 'text') in ('text', 'output_text')]
    return ''.join(text for text in texts if isinstance(text, str))


def _tokens(logprobs: object) -> Iterator[tuple[str, float]]:
    """Yield the tokens of a reply and their probabilities, those that are what they should be."""
    entries = logprobs.get('content') if isinstance(logprobs, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        entry = entry if isinstance(entry, dict) else {}
        token, value = entry.get('token'), entry.get('logprob')
        if isinstance(token, str) and isinstance(value, (int, float)) and value == value:  # no NaN
            yield token, math.exp(min(max(value, -1000.0), 0.0))


async def _events(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of server-sent events; one that is cut off is none."""
    pending, data = bytearray(), list[bytes]()
    async for chunk in chunks:
        pending += chunk
        if b'\n' not in chunk:
            continue
        *lines, pending = pending.split(b'\n')
        for line in lines:
            name, _, value = bytes(line).rstrip(b'\r').partition(b':')
            if name == b'data':
                data.append(value.removeprefix(b' '))
            elif not name and not value and data:
                yield b'\n'.join(data)
                data.clear()


class _Backend(httpcore2.AnyIOBackend):
    """Makes connections on which no reply can be taken for the next one."""

    async def connect_tcp(
            self, host: str, port: int, timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None
            ) -> httpcore2.AsyncNetworkStream:
        return _Stream(await super().connect_tcp(host, port, timeout, local_address,
                                                 socket_options))


class _TooManyBytes(Exception):
    """A reply has more bytes than any that is wanted."""


@dataclass
class _Meter:
    """Counts the bytes of a reply as they leave the socket."""

    reply: RawReply
    left: int = MAX_HEAD  # that may still come
    shaking_hands: bool = False  # TLS has begun

    def count(self, n_bytes: int) -> None:
        self.reply.bytes_received += n_bytes
        self.left -= n_bytes
        if self.left < 0:
            raise _TooManyBytes


@dataclass
class _Stream(httpcore2.AsyncNetworkStream):
    """
    A connection that hands over one response at a time.

    What follows a response, such as the same one again, would wait in the buffer of the parser
    and answer the next request. It stays here instead, and the pool closes a connection that has
    something to read before anything was asked.
    """

    stream: httpcore2.AsyncNetworkStream
    _rest: bytes = b''

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._rest
        if not data:
            data = await self.stream.read(max_bytes, timeout)
            _METER.get().count(len(data))
        end = data.find(HTTP, 1)
        self._rest = data[end:] if end > 0 else b''
        return data[:end] if end > 0 else data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self.stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None,
                        timeout: float | None = None) -> httpcore2.AsyncNetworkStream:
        return _Stream(await self.stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> object:
        if info == 'is_readable' and self._rest:
            return True
        return self.stream.get_extra_info(info)


@contextmanager
def _translated(url: str, deadline_s: float, reply: RawReply) -> Iterator[None]:
    """Turn errors of httpcore and asyncio into ours; nothing that the server said stays."""
    try:
        yield
    except httpcore2.TimeoutException:  # nothing else has a limit there
        raise CloudUnreachable(f'cannot reach {url} within {CONNECT_S:g} s; is the server '
                               'running, and the network up?') from None
    except (TimeoutError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.ProxyError,
            OSError) as error:
        if reply.finished:
            return  # a connection may end as it likes, or not at all
        if isinstance(error, TimeoutError):
            raise CloudTimeout(f'no reply from {url} within {deadline_s:.2g} s; raise deadline_s '
                               'or the time to live of the facts, or use a faster model') from None
        which = ', and https:// what it wants' if url.startswith('http:') else ''
        raise CloudUnreachable(f'the connection to {url} failed ({type(error).__name__}); is the '
                               f'server running, the network up{which}?') from None
    except _TooManyBytes:
        raise _too_large(url) from None
    except (ValueError, RecursionError) as error:
        raise CloudReplyError(f'{url} sent an unusable reply ({type(error).__name__}); is it '
                              'OpenAI-compatible?') from None


def _too_large(url: str) -> CloudReplyTooLarge:
    return CloudReplyTooLarge(f'{url} sent more than {MAX_TEXT} characters or {MAX_BYTES} bytes; '
                              'lower max_tokens')


def retry_after_s(headers: Mapping[str, str]) -> float:
    """
    Return how long the server wants to be left alone [s], at most five minutes; 0: unsaid.

    A date is compared with the server's own, if it sends it: its clock and ours may differ.
    """
    value = headers.get('retry-after', '')
    try:
        seconds = float(value)
    except ValueError:
        until = _date(value)
        now = _date(headers.get('date', '')) or datetime.now(timezone.utc)
        seconds = (until - now).total_seconds() if until else 0.0
    return min(seconds, LONGEST_RETRY_AFTER_S) if seconds > 0 else 0.0  # it may be no number


def _date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).replace(tzinfo=timezone.utc)  # HTTP knows no other zone
    except (ValueError, TypeError, OverflowError):
        return None


def _proxy(url: str) -> httpcore2.Proxy | None:
    """Return the proxy that the environment names for an address."""
    parts = urlsplit(url)
    host = parts.hostname or ''
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None:
        return None
    login = urlsplit(proxy)
    auth = (unquote(login.username), unquote(login.password or '')) if login.username else None
    return httpcore2.Proxy(proxy, auth)


def _socket_options() -> list[tuple[int, int, int]]:
    """Make a link that went down an error within seconds, even while the model thinks."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
               (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in (('TCP_KEEPIDLE', 2), ('TCP_KEEPINTVL', 1), ('TCP_KEEPCNT', 3),
                        ('TCP_USER_TIMEOUT', 4000)):
        if hasattr(socket, name):  # not everywhere but Linux
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
