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
"""One question about one image to an OpenAI-compatible server, in the dialect that it accepts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
import math
import os
from pathlib import Path
import random
import stat
import time
from typing import Any, Literal
from urllib.parse import urlsplit

from .completion import Completion
from .errors import CloudRefused, CloudReplyError, CloudTimeout, KEY_ENV, LOOPBACK
from .parse import BoxScale

UNKNOWN_FIELD = frozenset({400, 415, 422, 501})  # said to requests not understood
SECRET = 8         # shorter keys are placeholders such as 'none', which is a word of answers, too
REFUSED_S = 600.0  # how long a server is not asked again for what it has refused


class Dialect(IntEnum):
    """How much of the API a request uses; each is tried when the one before was refused."""

    SCHEMA = 0  # response_format with a JSON schema, streamed, with usage
    STREAM = 1  # streamed, with usage
    PLAIN = 2   # neither


@dataclass(frozen=True)
class CloudConfig:
    """One server: where it is, what it costs, how long to wait for it. Times are seconds."""

    base_url: str
    model: str
    name: str = 'primary'
    deadline_s: float = 20.0
    max_tokens: int = 256
    max_tokens_field: Literal['max_tokens', 'max_completion_tokens'] = 'max_tokens'
    temperature: float = 0.0      # below 0: not sent
    structured_output: bool = True
    stream: bool = True           # read the reply as it is written; False: once, and cheaper
    box_scale: BoxScale = 'relative'
    concurrency: int = 0          # requests under way at once; 0: as many as the bridge sends
    price_input: float = 0.0      # per million tokens
    price_output: float = 0.0     # per million tokens
    price_request: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)  # added to the body of requests
    emulated_delay_median_s: float = 0.0  # 0 = off; added to real round trips, labelled as such
    emulated_delay_sigma: float = 0.4     # of the lognormal distribution
    seed: int = 0
    plain_key: bool = False       # the key may go over http to another host
    api_key: str = field(default='', repr=False)

    def __post_init__(self) -> None:
        """Refuse what no request could use, and what would give the key away."""
        parts = urlsplit(self.base_url)
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise ValueError(f'base_url of {self.name} is no http or https address; give that of '
                             'an OpenAI-compatible server such as http://127.0.0.1:8000/v1')
        if parts.username is not None or parts.password is not None or parts.query:
            raise ValueError(f'base_url of {self.name} holds credentials, which every peer on the '
                             f'ROS graph could read; use {KEY_ENV} or api_key_file')
        if not self.model:
            raise ValueError(f'model of {self.name} is empty; give the name the server knows it '
                             'by')
        if self.api_key and parts.scheme == 'http' and parts.hostname not in LOOPBACK and \
                not self.plain_key:
            raise ValueError(f'the API key of {self.name} would go over the network unencrypted; '
                             'use https, or set allow_plain_key on a network you trust')


@dataclass(frozen=True)
class RawReply:
    """What the server said, and how long that took [s]; the emulated part is within it."""

    text: str
    round_trip_s: float
    emulated_s: float
    received: float  # steady clock, emulated delay included


class CloudClient:
    """Sends questions to one server; lives in one asyncio loop."""

    def __init__(self, config: CloudConfig) -> None:
        """Connect lazily."""
        from .transport import Transport
        self.config = config
        self._random = random.Random(config.seed)
        self._transport = Transport(config.base_url, config.api_key)
        self._best = Dialect.SCHEMA if config.structured_output else Dialect.STREAM
        self._dialect, self._dialect_until = self._best, math.inf
        self._proven: set[Dialect] = set()

    async def ask(self, jpeg: bytes, question: str, schema: Mapping[str, Any] | None = None,
                  deadline_s: float = 0.0, done: Completion | None = None) -> RawReply:
        """
        Ask about an image; one deadline over connection, upload, model and delay.

        Raise CloudError. A dialect that the server refuses is not used again for ten minutes.
        """
        done = done if done is not None else Completion()
        deadline_s = min(deadline_s or self.config.deadline_s, self.config.deadline_s)
        started = time.monotonic()
        if started > self._dialect_until:
            self._dialect, self._dialect_until = self._best, math.inf
            self._proven.clear()
        image = 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode('ascii')
        delay = self._delay()
        refused: CloudRefused | None = None
        first = self._dialect if schema is not None else max(self._dialect, Dialect.STREAM)
        for dialect in tuple(Dialect)[first:]:
            body = self._body(dialect, image, question, schema)
            left = max(0.001, deadline_s - (time.monotonic() - started))
            try:
                await self._transport.complete(body, left, done)
            except CloudRefused as error:
                refused = refused or error
                if error.status not in UNKNOWN_FIELD or dialect in self._proven or \
                        dialect is Dialect.PLAIN:
                    raise refused from None
                continue
            break
        self._proven.add(dialect)
        if dialect > first:
            self._dialect, self._dialect_until = dialect, time.monotonic() + REFUSED_S
        if delay:
            await self._wait(delay, deadline_s - (time.monotonic() - started))
        text = done.text
        if not text.strip():
            raise CloudReplyError(f'{self.config.base_url} sent a reply without text; is '
                                  f'{self.config.model} a model that chats about images?')
        if len(self.config.api_key) >= SECRET:  # one that is echoed must not be published
            text = text.replace(self.config.api_key, '(key)')
        now = time.monotonic()
        return RawReply(text, now - started, delay, now if delay else done.received)

    async def close(self) -> None:
        """Close connections."""
        await self._transport.close()

    @property
    def dialect(self) -> Dialect:
        """How requests are put at present."""
        return self._dialect

    def _body(self, dialect: Dialect, image: str, question: str,
              schema: Mapping[str, Any] | None) -> dict[str, Any]:
        config = self.config
        body: dict[str, Any] = {
            'model': config.model, config.max_tokens_field: config.max_tokens,
            'messages': [{'role': 'user', 'content': [
                {'type': 'image_url', 'image_url': {'url': image}},
                {'type': 'text', 'text': question}]}]}
        if config.temperature >= 0:
            body['temperature'] = config.temperature
        if dialect is not Dialect.PLAIN and config.stream:
            body |= {'stream': True, 'stream_options': {'include_usage': True}}
        if dialect is Dialect.SCHEMA:
            body['response_format'] = schema
        return body | dict(config.extra)

    async def _wait(self, delay: float, left: float) -> None:
        await asyncio.sleep(max(0.0, min(delay, left)))
        if delay > left:
            raise CloudTimeout(f'no reply from {self.config.base_url} in time: the emulated delay '
                               'is longer than deadline_s or the time to live of the facts; '
                               'raise them or lower emulated_delay_median_s')

    def _delay(self) -> float:
        median = self.config.emulated_delay_median_s
        if median <= 0:
            return 0.0
        return median * math.exp(self._random.gauss(0.0, self.config.emulated_delay_sigma))


def read_api_key(path: str = '', variable: str = KEY_ENV) -> str:
    """
    Return the API key from a file that only its owner may read, or from the environment.

    Never a parameter: any peer on the ROS graph can read those. '' where there is none.
    """
    key = os.environ.get(variable, '')
    if path:
        file = Path(path).expanduser()
        try:
            mode = file.stat().st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise ValueError(f'api_key_file {file} is readable by others; run: chmod 600 '
                                 f'{file}')
            key = file.read_text(encoding='utf-8')
        except OSError as error:
            raise ValueError(f'api_key_file {file}: {error.strerror}; give a readable file or '
                             f'set {variable}') from error
        except UnicodeDecodeError:
            raise ValueError(f'api_key_file {file} is no text; give one line with the '
                             'key') from None
    key = key.strip()
    if any(not '!' <= c <= '~' for c in key):
        # An HTTP library that refuses such a header prints it.
        raise ValueError('the API key holds blanks, line ends or characters beyond ASCII; give '
                         'one line with the key and nothing else')
    return key
