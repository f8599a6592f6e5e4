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
"""The newest of everything that a running graph tells, for whoever looks. No queues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
import secrets
import threading
import time

from pydantic import JsonValue

from .said import Json, plain, Said, Told
from ..method.facts import NS

KEPT = 400               # frames of a camera, to find again the one that the cloud answers about
KEPT_BYTES = 24 << 20    # of all of them together
NEAR_NS = NS // 16       # a frame this far from a stamp will do, where that one was not seen
SCORED = 300             # newest answers that are compared with truth
RATE_S = 2.0             # over which rates are counted
RESULTS = ('both', 'edge alone', 'cloud held')


@dataclass(frozen=True)
class Picture:
    """A frame as JPEG; width and height are those of the camera's frame [pixels]."""

    stamp_ns: int
    jpeg: bytes
    width: int
    height: int

    def plain(self, now_ns: int) -> Json:
        """Return all but the pixels for JSON."""
        return {'stamp': str(self.stamp_ns), 'age_s': round((now_ns - self.stamp_ns) / NS, 3),
                'width': self.width, 'height': self.height, 'bytes': len(self.jpeg)}


@dataclass
class _Query:
    """What is known about a query."""

    edge: Said | None = None
    cloud: Said | None = None
    context: Told | None = None

    def __post_init__(self) -> None:
        self.arrived: deque[float] = deque(maxlen=128)  # answers, steady clock [s]
        self.scores: deque[tuple[int, dict[str, float]]] = deque(maxlen=SCORED)
        self.alone_at: dict[int, Said] = {}
        self.contexts: dict[int, Told] = {}
        self.calibration: list[JsonValue] = []

    @property
    def rate_hz(self) -> float:
        """Return how often it is answered."""
        recent = [t for t in self.arrived if time.monotonic() - t < RATE_S]
        return (len(recent) - 1) / max(1e-3, recent[-1] - recent[0]) if len(recent) > 1 else 0.0


class LiveState:
    """
    What the page shows; filled by one thread, read by another.

    ``now_ns`` is ROS time; ``changed`` is called, by the thread that fills it, after each change.
    """

    def __init__(self, title: str, now_ns: Callable[[], int]) -> None:
        """Begin with nothing."""
        self._changes, self._born = 0, secrets.token_hex(4)
        self.changed: Callable[[], object] = lambda: None
        self.title, self._now_ns = title, now_ns
        self._lock = threading.Lock()
        self._queries: dict[str, _Query] = {}
        self._definitions: dict[str, Json] = {}
        self._truths: dict[int, Said] = {}
        self._status: Json = {}
        self._frames: dict[str, deque[Picture]] = {}

    @property
    def version(self) -> str:
        """Return what is another after each change, and in each process."""
        return f'{self._born}.{self._changes}'

    # Filled

    def edge(self, query_id: str, said: Said) -> None:
        """Take an answer as it is published."""
        with self._lock:
            query = self._query(query_id)
            query.edge = said
            query.arrived.append(time.monotonic())
            self._score(query, said)
        self._tell()

    def alone(self, query_id: str, said: Said) -> None:
        """Take what the edge alone said about a frame; it comes before the answer."""
        with self._lock:
            query = self._query(query_id)
            query.alone_at[said.stamp_ns] = said
            _shorten(query.alone_at)

    def cloud(self, query_id: str, said: Said) -> None:
        """Take an answer of the cloud, unless it is older than the last."""
        with self._lock:
            query = self._query(query_id)
            if query.cloud is None or said.stamp_ns >= query.cloud.stamp_ns:
                query.cloud = said
        self._tell()

    def context(self, query_id: str, told: Told) -> None:
        """Take a context."""
        with self._lock:
            query = self._query(query_id)
            query.context = query.contexts[told.sequence] = told
            _shorten(query.contexts)
        self._tell()

    def truth(self, said: Said) -> None:
        """Take what is true of a frame."""
        with self._lock:
            self._truths[said.stamp_ns] = said
            _shorten(self._truths)

    def calibration(self, query_id: str, keys: list[JsonValue]) -> None:
        """Take what delayed truth has taught."""
        with self._lock:
            self._query(query_id).calibration = keys

    def queries(self, definitions: dict[str, Json]) -> None:
        """Take the standing queries; what is known of others is forgotten."""
        with self._lock:
            self._queries = {
                name: known for name, known in self._queries.items()
                if self._definitions.get(name) in (None, definitions.get(name))}
            self._definitions = definitions
        self._tell()

    def status(self, values: Json) -> None:
        """Take how the bridge to the cloud is."""
        with self._lock:
            self._status = self._status | values
        self._tell()

    def frame(self, camera: str, picture: Picture) -> None:
        """Take a frame."""
        with self._lock:
            frames = self._frames.setdefault(camera, deque(maxlen=KEPT))
            if frames and picture.stamp_ns < frames[-1].stamp_ns:
                frames.clear()  # the stream starts over
            frames.append(picture)
            while sum(len(p.jpeg) for p in frames) > KEPT_BYTES:
                frames.popleft()
        self._tell()

    def forget(self) -> None:
        """Forget what ages: nobody looks, and nothing is taken meanwhile."""
        with self._lock:
            for query in self._queries.values():
                query.edge = query.cloud = query.context = None
                query.arrived.clear()
                query.scores.clear()
            self._frames.clear()
            self._truths.clear()
        self._tell()

    # Read

    def view(self, query_id: str) -> tuple[Json, dict[str, Picture]]:
        """Return what a page about a query shows, and its frames: the one of now, the cloud's."""
        with self._lock:
            now = self._now_ns()
            names = [*self._definitions] or [*self._queries]
            query_id = query_id if query_id in names else next(iter(names), '')
            query = self._queries.get(query_id, _Query())
            definition = self._definitions.get(query_id, {})
            camera = str(definition.get('camera', ''))
            frames = self._frames.get(camera) or ()
            newest = frames[-1] if frames else None
            clouds = _nearest(frames, query.cloud.stamp_ns) if query.cloud is not None else None
            pictures = {name: picture for name, picture in (('now', newest), ('cloud', clouds))
                        if picture is not None}
            edge = query.edge
            alone = query.alone_at.get(edge.stamp_ns) if edge is not None else None
            return {
                'title': self.title, 'version': self.version, 'query': query_id,
                'queries': [*names], 'definition': definition, 'rate_hz': round(query.rate_hz, 1),
                'edge': plain(edge, now), 'alone': plain(alone, now),
                'cloud': plain(query.cloud, now),
                'truth': self._truth(edge, now),
                'context': plain(query.context, now),
                'told': self._told(query, edge, now), 'calibration': query.calibration,
                'score': self._means(query), 'status': self._status,
                'frames': {n: p.plain(now) for n, p in pictures.items()}}, pictures

    # Both

    def _query(self, query_id: str) -> _Query:
        return self._queries.setdefault(query_id, _Query())

    def _tell(self) -> None:
        self._changes += 1
        self.changed()

    def _score(self, query: _Query, said: Said) -> None:
        """Compare an answer with the truth of its frame, where that is known."""
        truth = self._truths.get(said.stamp_ns)
        values = {k: v for k, v in truth.values.items() if k in said.values} if truth else {}
        if not values:
            return
        answers = (said, query.alone_at.get(said.stamp_ns), query.cloud)
        query.scores.append((len(values), {
            name: sum(answer.values.get(k) == v for k, v in values.items())
            for name, answer in zip(RESULTS, answers) if answer is not None}))

    @staticmethod
    def _means(query: _Query) -> Json:
        """Return the share of right facts of each, where it said anything."""
        means: Json = {}
        for name in RESULTS:
            of = [(count, right[name]) for count, right in query.scores if name in right]
            if of:
                means[name] = {'right': round(sum(r for _, r in of) / sum(n for n, _ in of), 3),
                               'facts': sum(n for n, _ in of)}
        return means

    def _truth(self, edge: Said | None, now: int) -> JsonValue:
        truth = self._truths.get(edge.stamp_ns) if edge is not None else None
        return plain(truth, now)

    @staticmethod
    def _told(query: _Query, edge: Said | None, now: int) -> JsonValue:
        """Return the context that the shown answer was told."""
        found = query.contexts.get(edge.sequence) if edge is not None else None
        return plain(found, now)


def _shorten(kept: dict[int, Said] | dict[int, Told]) -> None:
    """Forget the oldest of what is too much."""
    while len(kept) > KEPT:
        kept.pop(next(iter(kept)))


def _nearest(frames: deque[Picture] | tuple[()], stamp: int) -> Picture | None:
    """Return the frame of a stamp, or one beside it."""
    found = min(frames, key=lambda p: abs(p.stamp_ns - stamp), default=None)
    return found if found is not None and abs(found.stamp_ns - stamp) <= NEAR_NS else None
