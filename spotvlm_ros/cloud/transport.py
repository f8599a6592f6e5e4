# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
HTTP to one server, with a bound on everything: time, bytes of the reply, characters of the text.

httpx is used and not a ready-made API client because those read a reply, and the body of an error,
to its end before anybody can look at its size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
import json
import math
import socket
import time
from typing import Any
from urllib.parse import urlsplit
import urllib.request

import httpx2

from .errors import (CloudRefused, CloudReplyError, CloudReplyTooLarge, CloudTimeout,
                     CloudUnreachable)

MAX_BODY = 524_288      # bytes of a reply, SSE framing and reasoning included
MAX_TEXT = 16_384       # characters of the text in it
MAX_TOKENS = 10_000_000  # a usage beyond this is no usage
LONGEST_RETRY_AFTER_S = 300.0
CONNECT_S = 3.0         # TCP and TLS; a host that does not answer in this time is down
END_S = 0.1             # a connection whose end does not come after the last event is given up
LOOPBACK = ('127.0.0.1', 'localhost', '::1')
IDLE_S = 30.0           # an unused connection is kept this long


@dataclass
class Usage:
    """What the server says the request cost [tokens]; None where it says nothing usable."""

    prompt: int | None = None
    completion: int | None = None


@dataclass
class Completion:
    """A complete reply, and when things happened (steady clock) [s]."""

    text: str = ''
    usage: Usage = field(default_factory=Usage)
    bytes_received: int = 0
    began: bool = False    # the request is, at least in part, on its way
    sent: float = 0.0      # the request's last byte went to the kernel; 0: not yet
    received: float = 0.0  # the reply's last byte came
    finished: bool = False


class Transport:
    """Connections to one server; lives in one asyncio loop."""

    def __init__(self, base_url: str, api_key: str = '') -> None:
        """Connect lazily. TLS is verified; redirects, which could take the key along, are not."""
        self.base_url = base_url.rstrip('/')
        headers = {'Content-Type': 'application/json', 'Accept': 'text/event-stream, '
                   'application/json', 'Accept-Encoding': 'identity', 'User-Agent': 'spotvlm'}
        if api_key:
            headers['Authorization'] = f'Bearer {api_key}'
        self._http = httpx2.AsyncClient(
            headers=headers, follow_redirects=False, trust_env=False,
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            transport=httpx2.AsyncHTTPTransport(
                proxy=_proxy(base_url), socket_options=_socket_options(),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16,
                                     keepalive_expiry=IDLE_S)))

    async def post(self, path: str, body: bytes, deadline_s: float,
                   done: Completion) -> None:
        """Send a request and read the reply into ``done``; raise CloudError."""
        async def trace(event: str, info: Any) -> None:
            done.began |= event.endswith('send_request_headers.complete')
            if event.endswith('send_request_body.complete'):
                done.sent = time.monotonic()
        with _translated(self.base_url, deadline_s):
            async with asyncio.timeout(deadline_s), self._http.stream(
                    'POST', f'{self.base_url}/{path}', content=body,
                    extensions={'trace': trace}) as response:
                if response.status_code != 200:
                    raise CloudRefused(self.base_url, response.status_code,
                                       retry_after_s(response.headers))
                if response.headers.get('content-encoding', 'identity') != 'identity':
                    raise CloudReplyError(f'{self.base_url} compresses its replies, which was '
                                          'not asked for; turn that off')
                await self._read(response, done)
        done.received = time.monotonic()

    async def close(self) -> None:
        """Close connections."""
        await self._http.aclose()

    async def _read(self, response: httpx2.Response, done: Completion) -> None:
        streamed = response.headers.get('content-type', '').startswith('text/event-stream')
        pieces, rest = [], b''
        try:
            async with asyncio.timeout(None) as patience:
                async for chunk in response.aiter_raw():
                    done.bytes_received += len(chunk)
                    if done.bytes_received > MAX_BODY:
                        raise self._too_large()
                    if not streamed:
                        pieces.append(chunk)
                        continue
                    *lines, rest = (rest + chunk).split(b'\n')
                    for line in lines:
                        if self._event(line, done):  # nothing but the end is to come
                            patience.reschedule(asyncio.get_running_loop().time() + END_S)
        except (TimeoutError, httpx2.TransportError):
            if not done.finished:
                raise
        if streamed:
            self._event(rest, done)
        else:
            self._whole(b''.join(pieces), done)
        if not done.finished:
            raise CloudUnreachable(f'{self.base_url} broke the connection within a reply; see '
                                   'the log of the server')

    def _event(self, line: bytes, done: Completion) -> bool:
        """Read one line of a stream of server-sent events; return whether it was the last."""
        name, _, value = line.rstrip(b'\r').partition(b':')
        if name != b'data':
            return False
        if value.strip() == b'[DONE]':
            done.finished = True
            return True
        event = self._object(value)
        choice = _first(event.get('choices'))
        delta = choice.get('delta')
        piece = delta.get('content') if isinstance(delta, dict) else None
        if isinstance(piece, str):
            done.text += piece
        if len(done.text) > MAX_TEXT:
            raise self._too_large()
        done.finished |= isinstance(choice.get('finish_reason'), str)
        if 'usage' in event:
            done.usage = _usage(event['usage'])
        return False

    def _whole(self, body: bytes, done: Completion) -> None:
        """Read a reply that came in one piece."""
        reply = self._object(body)
        message = _first(reply.get('choices')).get('message')
        text = message.get('content') if isinstance(message, dict) else None
        done.text = text if isinstance(text, str) else ''
        if len(done.text) > MAX_TEXT:
            raise self._too_large()
        done.usage = _usage(reply.get('usage'))
        done.finished = True

    def _object(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._unusable(type(error).__name__) from None
        if not isinstance(value, dict) or 'error' in value and not value.get('choices'):
            raise self._unusable('no chat completion')
        return value

    def _unusable(self, why: str) -> CloudReplyError:
        return CloudReplyError(f'{self.base_url} sent an unusable reply ({why}); is it '
                               'OpenAI-compatible?')

    def _too_large(self) -> CloudReplyTooLarge:
        return CloudReplyTooLarge(f'{self.base_url} sent more than {MAX_TEXT} characters or '
                                  f'{MAX_BODY} bytes; lower max_tokens')


@contextmanager
def _translated(url: str, deadline_s: float) -> Iterator[None]:
    """Turn errors of httpx and asyncio into ours; bugs pass through."""
    try:
        yield
    except httpx2.ConnectTimeout:
        raise CloudUnreachable(f'cannot reach {url} within {CONNECT_S:g} s; is the server '
                               'running, and the network up?') from None
    except (TimeoutError, httpx2.TimeoutException):
        raise CloudTimeout(f'no reply from {url} within {deadline_s:.2g} s; raise deadline_s or '
                           'the time to live of the facts, or use a faster model') from None
    except (httpx2.TransportError, OSError) as error:
        raise CloudUnreachable(f'the connection to {url} failed ({type(error).__name__}); is the '
                               'server running, and the network up?') from None
    except (httpx2.InvalidURL, httpx2.StreamError) as error:
        raise CloudReplyError(f'{url} cannot be used ({type(error).__name__}); check '
                              'base_url') from None


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


def _first(choices: Any) -> dict[str, Any]:
    """Return the first choice of a reply, an empty one where the reply has another shape."""
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    return {}


def _usage(raw: Any) -> Usage:
    if not isinstance(raw, dict):
        return Usage()
    counts = [raw.get(name) for name in ('prompt_tokens', 'completion_tokens')]
    if not all(type(n) is int and 0 <= n <= MAX_TOKENS for n in counts):
        return Usage()
    return Usage(*counts)


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
