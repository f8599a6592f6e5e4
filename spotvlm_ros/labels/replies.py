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
What a model has replied about keyframes, kept so that nothing is asked, or paid for, twice.

The file has a line that says what was asked, and a line for each reply, on the disk before the
next request is made. Replies are kept as they came: they can be read anew.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from .keyframes import START_NS
from .schema import LabelError
from ..cloud.parse import CloudAnswer, parse_reply
from ..config.nodes import BoxScale
from ..method.facts import NS, Query
from ..system.append_file import open_alone

WHAT = 'spotvlm_label'    # key of the first line


class Reply(BaseModel):
    """A reply about a keyframe, or why it is none that can be used."""

    model_config = ConfigDict(frozen=True)

    number: int                              # of the frame in the recording
    t: float                                 # after the first frame [s]
    text: str = ''
    error: str = ''
    size: tuple[int, int]                    # of the frame [pixels]
    scale: float = Field(gt=0)               # of the picture sent over it
    confidences: dict[str, float] = {}       # by key, where the server tells probabilities
    usage: tuple[int, int] | None = None     # tokens of prompt and reply
    bytes_sent: int = 0
    bytes_received: int = 0
    took_s: float = 0.0

    def read(self, query: Query, box_scale: BoxScale) -> CloudAnswer:
        """Return what it says; what cannot be used is in ``rejected``."""
        if self.error:
            return CloudAnswer(query.id, 0, rejected=[self.error])
        return parse_reply(query, self.text, START_NS + round(self.t * NS), self.size, self.scale,
                           box_scale)


class Replies:
    """The replies of one model to one question; one process at a time can add to them."""

    def __init__(self, path: Path, asked: Mapping[str, JsonValue]) -> None:
        """Go on with a file, or begin one; raise LabelError where it is about something else."""
        self.path = path
        self.by_number: dict[int, Reply] = {}
        self._file = _opened(path)
        try:
            self._begin(dict(asked))
        except BaseException:
            self._file.close()
            raise

    def keep(self, reply: Reply) -> None:
        """Have a reply on the disk before returning."""
        self._write(reply.model_dump_json(exclude_defaults=True))
        self.by_number[reply.number] = reply

    def close(self) -> None:
        """Let others go on."""
        self._file.close()

    def _begin(self, asked: dict[str, JsonValue]) -> None:
        data = self.path.read_bytes()
        lines = data.split(b'\n')
        if len(lines) < 2:    # nothing, or not even the first line was written to its end
            if data and not data.startswith(f'{{"{WHAT}"'.encode()[:len(data)]):
                raise LabelError(f'{self.path} holds something else; name another --out')
            self._file.truncate(0)
            self._write(json.dumps({WHAT: asked}))
            return
        try:
            known = dict(json.loads(lines[0])[WHAT])
        except (ValueError, LookupError, TypeError):
            raise LabelError(f'{self.path} holds something else; name another --out') from None
        differ = [name for name in asked | known if known.get(name) != asked.get(name)]
        if differ:
            raise LabelError(f'{self.path} holds replies to something else ({", ".join(differ)} '
                             'differ); give the same arguments to go on, name another --out, or '
                             'remove that file')
        if lines[-1]:    # a crash has cut it off
            self._write('')
        for line in lines[1:]:
            try:
                reply = Reply.model_validate_json(line)
            except ValidationError:
                continue
            self.by_number[reply.number] = reply

    def _write(self, line: str) -> None:
        self._file.write(line.encode() + b'\n')
        os.fsync(self._file.fileno())


def _opened(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open_alone(path)
    if file is None:
        raise LabelError(f'{path} is being written by another spotvlm label; wait for it, or '
                         'name another --out')
    return file
