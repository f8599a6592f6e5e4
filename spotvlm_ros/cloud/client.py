# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
One question about one image to an OpenAI-compatible server.

What can go wrong, translated from the layers below in one place::

    CloudError
    ├── CloudTimeout       no complete reply within the deadline
    ├── CloudUnreachable   nobody listens, or the connection broke
    ├── CloudRefused       the server said no (HTTP status)
    └── CloudReplyError    a reply without usable text
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
import math
import os
from pathlib import Path
import random
import stat
import time
from typing import Any

import openai

KEY_ENV = 'SPOTVLM_API_KEY'


class CloudError(Exception):
    """A request brought no answer."""


class CloudTimeout(CloudError):
    """No complete reply within the deadline."""


class CloudUnreachable(CloudError):
    """Nobody listens at the address, or the connection broke."""


class CloudRefused(CloudError):
    """The server answered with an HTTP error."""


class CloudReplyError(CloudError):
    """A reply without usable text."""


@dataclass(frozen=True)
class CloudConfig:
    """Where the cloud model is and how long to wait for it. Times are seconds."""

    base_url: str
    model: str
    deadline_s: float = 20.0
    max_tokens: int = 256
    emulated_delay_median_s: float = 0.0  # 0 = off; added to real round trips, labelled as such
    emulated_delay_sigma: float = 0.4     # of the lognormal distribution
    seed: int = 0
    api_key: str = field(default='none', repr=False)

    def __post_init__(self) -> None:
        """Refuse what no request could use."""
        if not self.base_url.startswith(('http://', 'https://')):
            raise ValueError(f'base_url is {self.base_url!r}; give the address of an '
                             'OpenAI-compatible server such as http://127.0.0.1:8000/v1')
        if not self.model:
            raise ValueError('model is empty; give the name the server knows it by')


@dataclass(frozen=True)
class RawReply:
    """What the server said, and how long that took [s]; the emulated part is within it."""

    text: str
    round_trip_s: float
    emulated_s: float


class CloudClient:
    """Sends questions; lives in one asyncio loop."""

    def __init__(self, config: CloudConfig) -> None:
        """Connect lazily."""
        self.config = config
        self._random = random.Random(config.seed)
        self._api = openai.AsyncOpenAI(base_url=config.base_url, api_key=config.api_key,
                                       max_retries=0, timeout=config.deadline_s)

    async def ask(self, jpeg: bytes, question: str) -> RawReply:
        """Ask about an image; one deadline over connection, upload, model and delay."""
        started = time.monotonic()
        url = 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode('ascii')
        delay = self._delay()
        with _translated(self.config):
            async with asyncio.timeout(self.config.deadline_s):
                reply = await self._api.chat.completions.create(
                    model=self.config.model, max_tokens=self.config.max_tokens, temperature=0.0,
                    messages=[{'role': 'user', 'content': [
                        {'type': 'image_url', 'image_url': {'url': url}},
                        {'type': 'text', 'text': question}]}])
                if delay:
                    await asyncio.sleep(delay)
        text = _text(reply)
        if not text:
            raise CloudReplyError(f'{self.config.base_url} sent a reply without text; is '
                                  f'{self.config.model} a model that chats about images?')
        return RawReply(text, time.monotonic() - started, delay)

    async def close(self) -> None:
        """Close connections."""
        await self._api.close()

    def _delay(self) -> float:
        median = self.config.emulated_delay_median_s
        if median <= 0:
            return 0.0
        return median * math.exp(self._random.gauss(0.0, self.config.emulated_delay_sigma))


def _text(reply: Any) -> str:
    """Return the text of a reply, '' when it is of any other shape: openai does not check."""
    try:
        text = reply.choices[0].message.content
    except (AttributeError, IndexError, KeyError, TypeError):
        return ''
    return text if isinstance(text, str) else ''


@contextmanager
def _translated(config: CloudConfig) -> Iterator[None]:
    """Turn errors of openai, httpx and asyncio into ours; bugs pass through."""
    try:
        yield
    except (TimeoutError, openai.APITimeoutError) as error:
        raise CloudTimeout(f'no reply from {config.base_url} within {config.deadline_s:g} s; '
                           'raise deadline_s or use a faster model') from error
    except openai.APIConnectionError as error:
        raise CloudUnreachable(f'cannot reach {config.base_url} ({error.__cause__ or error}); '
                               'is the server running?') from error
    except openai.APIStatusError as error:
        raise CloudRefused(f'{config.base_url} said HTTP {error.status_code} '
                           f'({_REMEDIES.get(error.status_code, "see the log of the server")})'
                           ) from error
    except openai.APIError as error:
        raise CloudReplyError(f'{config.base_url} sent an unusable reply: '
                              f'{type(error).__name__}') from error
    except ValueError as error:  # JSON
        raise CloudReplyError(f'{config.base_url} sent an unusable reply: '
                              f'{type(error).__name__}; is it OpenAI-compatible?') from error


_REMEDIES = {401: f'set {KEY_ENV}', 403: f'check {KEY_ENV}', 404: 'check base_url and model',
             413: 'lower max_side', 422: 'check model', 429: 'raise cloud_period_s'}


def read_api_key(path: str = '') -> str:
    """
    Return the API key from the environment or a file that only its owner may read.

    Never a parameter: any peer on the ROS graph can read those.
    """
    if not path:
        return os.environ.get(KEY_ENV, '') or 'none'
    file = Path(path).expanduser()
    try:
        mode = file.stat().st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise ValueError(f'api_key_file {file} is readable by others; run: chmod 600 {file}')
        return file.read_text(encoding='utf-8').strip() or 'none'
    except OSError as error:
        raise ValueError(f'api_key_file {file}: {error.strerror}; give a readable file or '
                         f'set {KEY_ENV}') from error
