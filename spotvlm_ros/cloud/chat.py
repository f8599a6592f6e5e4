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
The messages of a chat as our servers take them: text, and pictures that are in the request itself.

No address or file that a request names is read; a field that is not known is refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

MAX_BODY = 2**26  # bytes of a request


class Strict(BaseModel):
    """What has no other fields than these."""

    model_config = ConfigDict(extra='forbid', strict=True)


class _Picture(Strict):
    url: Annotated[str, StringConstraints(pattern=r'^data:image/(jpeg|png|webp);base64,')]


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
    content: str | list[TextPart | PicturePart]
