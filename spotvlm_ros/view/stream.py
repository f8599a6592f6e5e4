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
"""What is new in the state of a running graph, for viewers that are sent it as it comes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import threading
from typing import Protocol

from .said import Json
from .state import LiveState, Picture

PERIOD_S = 0.05     # something new is sent this often, at most
LOOK_S = 0.3        # after this long it is seen that somebody looks, or nobody any more
SOURCES = ('edge', 'alone', 'cloud', 'context', 'truth')


@dataclass(frozen=True)
class News:
    """What is new about a query: a frame, and answers and contexts by source; ``seen`` has all."""

    query: str
    camera: str
    seen: Json
    new: Mapping[str, Json]
    picture: Picture | None

    def focus(self) -> dict[str, list[float]]:
        """Return the regions that the edge is told of, x, y, width, height [pixels]."""
        context = self.seen.get('context')
        found = context.get('focus') if isinstance(context, dict) else None
        return {key: [number(v) for v in box] for key, box in found.items()
                if isinstance(box, list)} if isinstance(found, dict) else {}

    def context_age_s(self) -> float:
        """Return by how much the newest fact is older that the shown answer was told [s]."""
        told, edge = self.seen.get('told'), self.seen.get('edge')
        facts = told.get('facts') if isinstance(told, dict) else None
        ages = [number(f.get('age_s')) for f in facts if isinstance(f, dict)] \
            if isinstance(facts, list) else []
        return round(min(ages) - number(edge.get('age_s')), 3) \
            if ages and isinstance(edge, dict) else 0.0

    def ages(self) -> dict[str, float]:
        """Return how old the shown answers are, the stages of the newest, and its rate."""
        values = {'rate_hz': number(self.seen.get('rate_hz')),
                  'context_age_s': self.context_age_s()}
        for source in ('edge', 'cloud'):
            said = self.seen.get(source)
            if isinstance(said, dict):
                values[f'{source}_age_s'] = number(said.get('age_s'))
                stages = said.get('stages_s')
                if isinstance(stages, dict):
                    values |= {f'{source}_{name}_s': number(v) for name, v in stages.items()}
        return values


class Sink(Protocol):
    """A viewer that is sent what is new."""

    url: str    # what people are told of it

    def wanted(self) -> bool:
        """Return whether anybody looks."""

    def send(self, news: News) -> None:
        """Show what is new."""

    def close(self) -> None:
        """End."""


class Stream:
    """Sends a sink what is new in a state, by a thread of its own, until `close`."""

    def __init__(self, state: LiveState, sink: Sink, look: Callable[[bool], object]) -> None:
        """``look`` is told whether anybody looks."""
        self.looking, self.url = False, sink.url
        self._state, self._sink, self._look = state, sink, look
        self._stamps: dict[tuple[str, str], object] = {}
        self._news, self._ended = threading.Event(), threading.Event()
        state.changed = self._news.set
        self._thread = threading.Thread(target=self._run, name='view', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, and let go of files and ports."""
        self._ended.set()
        self._news.set()
        self._thread.join(3.0)
        self._sink.close()

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            if self._sink.wanted() != self.looking:
                self.looking = not self.looking
                self._stamps.clear()
                self._look(self.looking)
            if self._news.wait(LOOK_S) and self.looking:
                self._news.clear()
                self._send()

    def _send(self) -> None:
        first, _ = self._state.view('')
        for query in first['queries'] if isinstance(first['queries'], list) else ():
            seen, pictures = self._state.view(str(query))
            definition, picture = seen['definition'], pictures.get('now')
            camera = str(definition.get('camera', '')) if isinstance(definition, dict) else ''
            new = {}
            for source in SOURCES:
                said = seen[source]
                if isinstance(said, dict) and self._is_new(str(query), source, said['stamp']):
                    new[source] = said
            if picture is not None and not self._is_new('', f'frame {camera}', picture.stamp_ns):
                picture = None
            if new or picture is not None:
                self._sink.send(News(str(query), camera, seen, new, picture))

    def _is_new(self, query: str, source: str, stamp: object) -> bool:
        before, self._stamps[query, source] = self._stamps.get((query, source)), stamp
        return stamp != before


def scale(picture: Picture, width: int) -> float:
    """Return what pixels of the camera are multiplied by to be those of its JPEG."""
    return width / picture.width if picture.width else 1.0


def line(said: Json) -> str:
    """Return an answer in one line."""
    facts = said.get('facts')
    values = [f'{f["key"]}: {f["value"]}' for f in facts if isinstance(f, dict)] \
        if isinstance(facts, list) else []
    return str(said.get('error') or ', '.join(values) or said.get('text') or '')


def number(value: object) -> float:
    """Return a number of JSON, 0 where there is none."""
    return float(value) if isinstance(value, (int, float)) else 0.0
