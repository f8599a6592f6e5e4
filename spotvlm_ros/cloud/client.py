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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
import json
import math
import os
from pathlib import Path
import random
import stat
import time
from urllib.parse import urlsplit

from .errors import CloudRefused, CloudReplyError, CloudTimeout, KEY_ENV, LOOPBACK
from .reply import RawReply
from .transport import Transport
from .wording import ask_text, response_format
from ..config.nodes import EmulatedDelayConfig, ServerConfig
from ..method.facts import Query
from ..mini.shipped import model_name_or_path, trained_reply_form

OUR_FIELDS = frozenset({'messages', 'model', 'stream', 'stream_options', 'response_format'})
UNKNOWN_FIELD = frozenset({400, 415, 422, 501})  # said to requests not understood
UNKNOWN_SCHEMA = UNKNOWN_FIELD | {500}  # llama-cpp-python's to a schema (ggml-org/llama.cpp#23463)
SECRET = 8         # shorter keys are placeholders such as 'none', which is a word of answers, too
REFUSED_S = 600.0  # how long a server is not asked again for what it has refused


class Dialect(IntEnum):
    """How much of the API a request uses; each is tried when the one before was refused."""

    SCHEMA = 0  # response_format with a JSON schema, streamed, with usage
    STREAM = 1  # streamed, with usage
    PLAIN = 2   # neither


Compose = Callable[[Dialect], Mapping[str, object]]  # what the body of one chat only has


@dataclass(frozen=True)
class CloudServer:
    """One server to ask: its parameters, and what is not a parameter."""

    config: ServerConfig
    name: str = 'primary'
    api_key: str = field(default='', repr=False)
    extra_body: Mapping[str, object] = field(default_factory=dict)  # parsed
    delay: EmulatedDelayConfig = EmulatedDelayConfig()
    # Returns False while it is known that it cannot answer.
    up: Callable[[], bool] = field(default=lambda: True, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what no request could use, and what would give the key away."""
        parts = urlsplit(self.config.base_url)
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise ValueError(f'base_url of {self.name} is no http or https address; give that of '
                             'an OpenAI-compatible server such as http://127.0.0.1:8000/v1')
        if parts.username is not None or parts.password is not None or parts.query:
            raise ValueError(f'base_url of {self.name} holds credentials, which every peer on the '
                             f'ROS graph could read; use {KEY_ENV} or api_key_file')
        taken = sorted(OUR_FIELDS & self.extra_body.keys())
        if taken:
            raise ValueError(f'extra_body of {self.name} holds {", ".join(taken)}, which spotvlm '
                             'fills in itself; leave it out')
        if not self.config.model:
            raise ValueError(f'model of {self.name} is empty; give the name the server knows it '
                             'by')
        if self.api_key and parts.scheme == 'http' and parts.hostname not in LOOPBACK and \
                not self.config.allow_plain_key:
            raise ValueError(f'the API key of {self.name} would go over the network unencrypted; '
                             'use https, or set allow_plain_key on a network you trust')


def cloud_server(config: ServerConfig, name: str = '',
                 delay: EmulatedDelayConfig = EmulatedDelayConfig()) -> CloudServer:
    """
    Return the server that parameters describe; ``name`` is that of a fallback, '' the preferred.

    The key is read from where they say; a checkpoint on this machine goes as its path, and is
    asked as it was trained to be. Raise ValueError that names the parameter.
    """
    try:
        extra_body = json.loads(config.extra_body or '{}')
    except (ValueError, RecursionError):
        extra_body = None
    if not isinstance(extra_body, dict):
        raise ValueError(f'extra_body of {name or "primary"} is no JSON object; write one such as '
                         """'{"seed": 1}'""")
    variable = KEY_ENV + (f'_{name.upper()}' if name else '')
    return CloudServer(
        replace(config, model=model_name_or_path(config.model),
                reply_form=config.reply_form or trained_reply_form(config.model)),
        name or 'primary', read_api_key(config.api_key_file, variable), extra_body, delay)


class CloudClient:
    """Sends questions to one server; lives in one asyncio loop."""

    def __init__(self, server: CloudServer) -> None:
        """Connect lazily."""
        self.server = server
        self.delay = server.delay  # may be changed at any time
        self._random = random.Random(server.delay.emulated_delay_seed)
        self._transport = Transport(server.config.base_url, server.api_key)
        # A form of the owner's stands alone: a schema of ours could contradict it.
        schema = server.config.structured_output and not server.config.reply_form
        self._best = Dialect.SCHEMA if schema else Dialect.STREAM
        self._dialect, self._dialect_until = self._best, math.inf
        self._proven: set[Dialect] = set()

    async def ask(self, jpeg: bytes, query: Query, deadline_s: float = 0.0,
                  reply: RawReply | None = None) -> RawReply:
        """
        Ask a query about an image; one deadline over connection, upload, model and delay.

        ``reply`` is filled as it comes, and returned. Raise CloudError.
        """
        reply = reply if reply is not None else RawReply()
        longest_s = self.server.config.deadline_s
        image = 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode('ascii')
        await self.chat(partial(self._question, image, query), query.format != 'text',
                        min(deadline_s or longest_s, longest_s), reply)
        return reply

    async def chat(self, compose: Compose, structured: bool, deadline_s: float,
                   reply: RawReply) -> None:
        """
        Get the reply to a chat in the first dialect that the server accepts.

        ``compose`` returns the messages, and what else belongs to the body of this chat only;
        ``structured``: its reply may have a schema. Raise CloudError.
        """
        started = time.monotonic()
        until = started + deadline_s
        reply.emulated_s = self._delay_s()
        await self._complete(compose, structured, until, reply)
        if reply.emulated_s:
            await self._wait(reply.emulated_s, until - time.monotonic())
            reply.received = time.monotonic()
        if not reply.text.strip() and reply.reasoned:
            raise CloudReplyError(f'{self.server.config.base_url} sent nothing but reasoning; '
                                  'raise max_tokens, or turn reasoning off (extra_body)')
        if not reply.text.strip():
            raise CloudReplyError(f'{self.server.config.base_url} sent a reply without text; is '
                                  f'{self.server.config.model} a model that chats about images?')
        if len(self.server.api_key) >= SECRET:  # one that is echoed must not be published
            reply.text = reply.text.replace(self.server.api_key, '(key)')
        reply.round_trip_s = time.monotonic() - started

    async def close(self) -> None:
        """Close connections."""
        await self._transport.close()

    @property
    def dialect(self) -> Dialect:
        """How requests are put at present."""
        return self._dialect

    async def _complete(self, compose: Compose, structured: bool, until: float,
                        reply: RawReply) -> None:
        """
        Get a reply in the first dialect that the server accepts, until a moment (steady clock).

        What it refuses is not used again for ten minutes.
        """
        if time.monotonic() > self._dialect_until:
            self._dialect, self._dialect_until = self._best, math.inf
            self._proven.clear()
        refused: CloudRefused | None = None
        first = self._dialect if structured else max(self._dialect, Dialect.STREAM)
        for dialect in tuple(Dialect)[first:]:
            body = self._body(dialect, compose(dialect))
            try:
                await self._transport.complete(body, max(0.001, until - time.monotonic()), reply)
                break
            except CloudRefused as error:
                refused = refused or error
                unknown = UNKNOWN_SCHEMA if dialect is Dialect.SCHEMA else UNKNOWN_FIELD
                if error.status not in unknown or dialect in self._proven or \
                        dialect is Dialect.PLAIN:
                    raise refused from None
        self._proven.add(dialect)
        if dialect > first:
            self._dialect, self._dialect_until = dialect, time.monotonic() + REFUSED_S

    def _question(self, image: str, query: Query, dialect: Dialect) -> dict[str, object]:
        """Return what a body asks about an image."""
        config = self.server.config
        text = ask_text(query, config, dialect is Dialect.SCHEMA)
        messages: list[dict[str, object]] = [{'role': 'user', 'content': [
            {'type': 'image_url', 'image_url': {'url': image}}, {'type': 'text', 'text': text}]}]
        if config.system_prompt:
            messages.insert(0, {'role': 'system', 'content': config.system_prompt})
        schema = {'response_format': response_format(query)} if dialect is Dialect.SCHEMA else {}
        return {'messages': messages, **schema}

    def _body(self, dialect: Dialect, asked: Mapping[str, object]) -> dict[str, object]:
        config = self.server.config
        body: dict[str, object] = {'model': config.model,
                                   config.max_tokens_field: config.max_tokens}
        if config.temperature >= 0:
            body['temperature'] = config.temperature
        if dialect is not Dialect.PLAIN and config.stream:
            body |= {'stream': True, 'stream_options': {'include_usage': True}}
        return body | dict(asked) | dict(self.server.extra_body)

    async def _wait(self, delay_s: float, left_s: float) -> None:
        await asyncio.sleep(max(0.0, min(delay_s, left_s)))
        if delay_s > left_s:
            raise CloudTimeout(f'no reply from {self.server.config.base_url} in time: the '
                               'emulated delay is longer than deadline_s or the time to live of '
                               'the facts; raise them or lower emulated_delay_median_s')

    def _delay_s(self) -> float:
        delay = self.delay
        if delay.emulated_delay_median_s <= 0:
            return 0.0
        return delay.emulated_delay_median_s * math.exp(
            self._random.gauss(0.0, delay.emulated_delay_sigma))


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
