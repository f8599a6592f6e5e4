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
"""What a cloud said about its own frames: what could be used of it, and against what is true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

from .streams import Stream
from ...cloud.parse import CloudAnswer
from ...method.facts import Query

MOST = 5        # reasons told
NOTHING = '(nothing)'
HEAD = ['key', 'true', 'asked', 'said so', NOTHING, 'said instead']


class CloudSaid(TypedDict):
    """How the replies were; ``said_of_true`` has the columns of ``HEAD``."""

    requests: int
    without_reply: int
    unusable: int                   # replies that not one fact could be taken from
    rejected: dict[str, int]        # reasons, the most frequent ones
    said_of_true: list[list[str]]


def cloud_said(asked: Sequence[tuple[Stream, Mapping[int, CloudAnswer | None]]]) -> CloudSaid:
    """Count what the answers, by stamp, say about the frames of each stream."""
    replies = [(stream.truth(stamp), answer) for stream, answers in asked
               for stamp, answer in answers.items() if answer is not None]
    requests = sum(len(answers) for _, answers in asked)
    rejected = Counter(reason for _, answer in replies for reason in answer.rejected)
    told = [(truth, {f.key: f.value for f in answer.facts}) for truth, answer in replies]
    pairs = Counter((key, value, facts.get(key, NOTHING)) for truth, facts in told
                    for key, value in truth.items())
    return {'requests': requests, 'without_reply': requests - len(replies),
            'unusable': sum(not facts for _, facts in told),
            'rejected': dict(rejected.most_common(MOST)),
            'said_of_true': _rows(asked[0][0].query, pairs)}


def summary(said: CloudSaid) -> str:
    """Return the counts as a line or two."""
    replies = said['requests'] - said['without_reply']
    text = f'{replies} cloud answers to {said["requests"]} requests'
    if said['unusable']:
        text += f'; nothing of {said["unusable"]} of them could be used'
    return '\n'.join([text, *(f'  rejected, {count} times: {reason}'
                              for reason, count in said['rejected'].items())])


def _rows(query: Query, pairs: Counter[tuple[str, str, str]]) -> list[list[str]]:
    rows = []
    for key, values in query.choices.items():
        for true in values:
            said = {value: pairs[key, true, value] for value in (*values, NOTHING)}
            asked = sum(said.values())
            if asked:
                wrong = [f'{value} {n}' for value, n in said.items()
                         if n and value not in (true, NOTHING)]
                rows.append([key, true, str(asked), str(said[true]), str(said[NOTHING]),
                             ', '.join(wrong)])
    return rows
