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
What may be asked of the server, and how it says no.

Nothing in a request is fetched or opened: pictures are in the request itself. A field that is not
known is refused.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.responses import JSONResponse, Response

MAX_BODY = 2**26  # bytes of a request
LONGEST = 200     # characters of what is repeated of it


class Refused(Exception):
    """A request is not answered; ``retry_after_s``: when it is worth asking again."""

    def __init__(self, status: int, text: str, reason: str, retry_after_s: float = 0.0) -> None:
        """Keep what is said to the robot; ``reason`` is counted."""
        super().__init__(text)
        self.status, self.reason = status, reason
        self.retry_after_s = math.ceil(retry_after_s)  # HTTP knows whole seconds

    def response(self) -> Response:
        """Return the refusal as OpenAI's servers put it."""
        headers = {'Retry-After': str(self.retry_after_s)} if self.retry_after_s > 0 else None
        return JSONResponse({'error': {'message': str(self), 'type': self.reason}}, self.status,
                            headers)


class Strict(BaseModel):
    """What has no other fields than these."""

    model_config = ConfigDict(extra='forbid', strict=True)


class _Picture(Strict):
    url: Annotated[str, StringConstraints(pattern=r'^data:image/(jpeg|png|webp);base64,')]
    detail: Literal['auto', 'high'] | None = None  # it is taken as it is


class PicturePart(Strict):
    """A picture that is in the request itself."""

    type: Literal['image_url']  # noqa: A003
    image_url: _Picture


class TextPart(Strict):
    """Some text."""

    type: Literal['text']  # noqa: A003
    text: str


class Message(Strict):
    """A turn of the chat."""

    role: Literal['system', 'user', 'assistant']
    content: str | list[Annotated[TextPart | PicturePart, Field(discriminator='type')]]


class _JsonSchema(Strict):
    name: str = ''
    description: str = ''
    strict: bool | None = None
    schema_: dict[str, object] = Field(alias='schema')


class _ResponseFormat(Strict):
    type: Literal['text', 'json_object', 'json_schema']  # noqa: A003
    json_schema: _JsonSchema | None = None


class _StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(Strict):
    """The body of a request; fields that would be ignored are not taken."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0.0, le=0.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0.0, le=0.0)] | None = None
    seed: int | None = None  # taken and ignored: the likeliest tokens need none
    user: str | None = None  # taken and ignored: robots are known by their keys

    @property
    def schema_text(self) -> str:
        """Return the JSON schema of the reply, '' for free text."""
        wanted = self.response_format
        if wanted is None or wanted.type == 'text':
            return ''
        if wanted.type == 'json_object':
            return '{"type": "object"}'
        if wanted.json_schema is None:
            raise ValueError('response_format.json_schema is missing; give the schema')
        return json.dumps(wanted.json_schema.schema_)


REMEDIES = {'missing': 'is missing; give it', 'extra_forbidden': 'is not known; leave it out',
            'string_pattern_mismatch': 'is no picture in the request itself; send '
            'data:image/jpeg;base64,... (or png, webp)',
            'union_tag_invalid': 'is neither text nor image_url; send those',
            'union_tag_not_found': 'has no type; give text or image_url',
            'json_invalid': 'is no JSON; send an object as OpenAI has it'}


def chat_request(body: bytes) -> ChatRequest:
    """Return a request; raise Refused, which names the field and says what to send."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        # Of the branches of a union the one that was meant is that which got furthest.
        problem = max(error.errors(include_url=False, include_input=False),
                      key=lambda p: len(p['loc']))
    names = list[str]()
    for part in map(str, problem['loc']):  # also says which branch
        if '[' not in part and part not in ('str', *names[-1:]):
            names.append(part[:LONGEST])
    where, said = '.'.join(names) or 'the body', str(problem['msg'])[:LONGEST]
    raise Refused(422, f'{where} ' + REMEDIES.get(
        str(problem['type']), said.replace('Input', '').strip() + '; change it'), 'request')
