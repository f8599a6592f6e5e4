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
"""Random and mutated replies through HTTP, client and parser: none may raise, few may mislead."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
import json
from random import Random

from .chaos import ChaosServer
from .chaos_faults import Exchange, FAULTS
from ...cloud.client import CloudClient, CloudServer
from ...cloud.errors import CloudError
from ...cloud.parse import parse_reply
from ...config.nodes import ServerConfig
from ...method.facts import Query

RANDOM, MUTATED = 20_000, 1_000
MOST_WRONG = 0.005  # of the facts kept: a digit may well have become another
QUERY = Query('scene', 'What is on the road?', 'facts', {
    'light': ('none', 'red', 'yellow', 'green'), 'limit': ('none', '30', '50')})
QUERIES = (QUERY, Query('action', 'What now?', 'choice', {'action': ('stop', 'go')}),
           Query('describe', 'Describe the road.', 'text'))
TRUTH = {'light': 'red', 'limit': '30'}
KNOWN = (
    json.dumps([{'label': 'light', 'value': 'red'}, {'label': 'limit', 'value': '30'}]),
    json.dumps({'facts': {'light': 'red', 'limit': 30}}), 'light: red\nlimit: 30',
    '<think>light: green</think>\n```json\n{"light": "red", "limit": "30"}\n```',
    '{"light": {"value": "red", "bbox_2d": [1, 2, 30, 40]}, "limit": {"value": "30"}}')
PARTS = ('{"light": "red"}', *'{}[]",:\'\\\n ', 'light', 'red', 'label', 'value', 'facts',
         'bbox_2d', '<think>', '</think>', '```', '1e999', 'null', 'True', 'NaN', '<answer>',
         '&quot;', 'stop', 'limit', '\u25c1/think\u25b7', '9' * 400, '\ud800', '\x00', '\x1b[2J',
         '<|im_end|>', '\u202e', 'choices', 'message', 'content', 'usage')


@dataclass
class Parsed:
    """What became of replies."""

    seed: int
    random: int = 0     # random ones
    mutated: int = 0    # known ones with a few characters changed
    refused: int = 0    # random ones of which the client made an error with a remedy
    facts: int = 0      # kept of random ones
    told: int = 0       # facts in the known ones before
    right: int = 0      # of the mutated ones, kept
    wrong: int = 0      # of the mutated ones, kept with another value
    rejected: int = 0   # of the mutated ones, reasons given
    exceptions: list[str] = field(default_factory=list)

    def failures(self) -> list[str]:
        """Return which bars were not met, in words."""
        found = [f'replies: {text}' for text in self.exceptions[:5]]
        if self.wrong > MOST_WRONG * (self.right + self.wrong):
            found.append(f'replies: {self.wrong} wrong facts, {self.right} right')
        return found

    def __str__(self) -> str:
        """Return it in words."""
        return (f'{self.random:,} random replies ({self.refused:,} refused as errors, '
                f'{self.facts:,} facts kept) and {self.mutated:,} mutated ones of known content, '
                f'seed {self.seed}: {len(self.exceptions)} exceptions; of {self.told:,} facts in '
                f'the mutated ones {self.right:,} were kept right, {self.wrong} kept wrong, '
                f'{self.told - self.right - self.wrong:,} lost; {self.rejected:,} rejections')


def mutate(text: str, draw: Random) -> str:
    """Return a text with one to four characters dropped, doubled or changed."""
    letters = list(text)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(letters))
        letters[at] = draw.choice(['', letters[at] * 2, draw.choice('{}[]",:\\\'\n <>/'),
                                   chr(draw.randrange(0x2000))])
    return ''.join(letters)


def soup(draw: Random) -> str:
    """Return words of replies in any order."""
    return ''.join(draw.choices(PARTS, k=draw.randint(0, 40)))


def tree(draw: Random, depth: int = 0) -> object:
    """Return any JSON value."""
    kind = draw.randrange(4 if depth > 4 else 7)
    if kind < 4:
        return (None, draw.random() < 0.5, draw.choice((-1, 0.5, 1e308, 10**40)),
                draw.choice(PARTS))[kind]
    if kind == 4:
        return [tree(draw, depth + 1) for _ in range(draw.randint(0, 4))]
    return {draw.choice(PARTS): tree(draw, depth + 1) for _ in range(draw.randint(0, 4))}


def bodies(draw: Random) -> Iterator[bytes | str]:
    """Yield random replies for ever: bytes of a whole body, or the text in a good one."""
    while True:
        yield soup(draw)
        yield json.dumps(tree(draw))
        yield json.dumps({'choices': tree(draw), 'usage': tree(draw)}).encode()
        yield draw.randbytes(draw.randint(0, 400))


def parse_all(random: int = RANDOM, changed: int = MUTATED, seed: int = 0) -> Parsed:
    """Send replies through a real server and the real client, and parse them."""
    draw, parsed, server = Random(seed), Parsed(seed), ChaosServer('reply')
    now: list[bytes | str] = ['']

    async def reply(x: Exchange) -> bool:
        body = now[0]
        x.streamed = draw.random() < 0.5
        if isinstance(body, str):
            return await x.reply(x.body(body))
        return await x.reply(b'data: ' + body + b'\n\n' if x.streamed else body)

    async def all_of_them() -> None:
        client = CloudClient(CloudServer(ServerConfig(base_url=server.url, deadline_s=5.0)))
        known = ((text, mutate(text, draw)) for _ in range(changed)
                 for text in [draw.choice(KNOWN)])
        for body, _ in zip(bodies(draw), range(random)):
            now[0] = body
            parsed.random += 1
            await _met(client, parsed, mutated=False)
        for _, text in known:
            now[0] = text
            parsed.mutated += 1
            parsed.told += len(TRUTH)
            await _met(client, parsed, mutated=True)
        await client.close()
    FAULTS['reply'] = reply
    try:
        asyncio.run(all_of_them())
    finally:
        server.stop()
        del FAULTS['reply']
    return parsed


async def _met(client: CloudClient, parsed: Parsed, mutated: bool) -> None:
    try:
        text = (await client.ask(b'\xff\xd8\xff\xd9', QUERIES[-1])).text
        for query in QUERIES:
            found = parse_reply(query, text, 1, (640, 480))
            for fact in found.facts:
                if fact.value not in query.choices[fact.key]:
                    raise ValueError(f'{fact} is no choice')
            if query is QUERY and mutated:
                right = sum(TRUTH[f.key] == f.value for f in found.facts)
                parsed.right += right
                parsed.wrong += len(found.facts) - right
                parsed.rejected += len(found.rejected)
            else:
                parsed.facts += len(found.facts)
    except CloudError:
        parsed.refused += not mutated
    except Exception as error:
        parsed.exceptions.append(f'{type(error).__name__}: {error}')
