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
"""What happened in a run: each answer of the edge with all that was known when it came."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
import json
from pathlib import Path

from pydantic import JsonValue
import yaml

from .said import Said, said, stamp_ns, Told, told
from ..frames.bags import bag, bag_messages
from ..frames.pixels import decode_compressed, Image
from ..frames.source_frame import SourceError
from ..method.facts import NS, Query, Source, Turn
from ..mini.worlds import make_world
from ..recording.recorder import from_plain
from ..recording.replay import AnswerLine, EdgeStart, Line, Picture, Pictures, read_lines

ANSWER, CONTEXT = 'spotvlm_msgs/msg/Answer', 'spotvlm_msgs/msg/Context'
MAX_WHY = 300       # of an error [characters]
EDGE, CLOUD = int(Source.EDGE), int(Source.CLOUD)
_WORLD = lru_cache(maxsize=4)(make_world)
Images = Callable[[Iterable[int]], Iterable[tuple[int, Image]]]


class RunError(ValueError):
    """A run that cannot be read; the message names it and the remedy."""


@dataclass(frozen=True)
class Step:
    """An answer of the edge, what it was told, and what the cloud had said by then."""

    query_id: str
    said: Said
    arrived_ns: int = 0           # 0: not known
    told: Told | None = None
    cloud: Said | None = None
    alone: Said | None = None     # the edge without context
    truth: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CloudAnswer:
    """An answer of the cloud, and when it came."""

    query_id: str
    said: Said
    arrived_ns: int

    @property
    def delay_s(self) -> float:
        """Return how late it was."""
        return (self.arrived_ns - self.said.stamp_ns) / NS


@dataclass
class Run:
    """A recorded run; ``images`` yields the frames of some stamps that can be had."""

    name: str
    kind: str
    steps: list[Step]
    clouds: list[CloudAnswer]
    images: Images
    prompts: Mapping[str, str] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)

    @property
    def query_ids(self) -> list[str]:
        """Return the queries, those answered most often first."""
        return [name for name, _ in Counter(s.query_id for s in self.steps).most_common()]


def read_run(folder: Path) -> Run:
    """Read a folder of `spotvlm run --record`, or a bag with answers; raise RunError."""
    try:
        if (folder / 'edge.jsonl').is_file():
            run = _recorded(folder)
        elif folder.exists():
            run = _bag(folder)
        else:
            raise RunError(f'{folder} does not exist')
    except RunError as error:
        raise RunError(f'{error}; name a folder that spotvlm run --record or spotvlm process has '
                       'written') from None
    except Exception as error:  # what a damaged file makes the readers raise can be anything
        why = ' '.join(str(error).split())[:MAX_WHY]
        raise RunError(f'{folder} cannot be read: {type(error).__name__}: {why}; name a folder '
                       'that spotvlm run --record or spotvlm process has written') from error
    if not run.steps:
        raise RunError(f'{folder} holds no answer of the edge; see what the run has printed')
    return run


# Of spotvlm run --record

def _recorded(folder: Path) -> Run:
    counts: Counter[str] = Counter()
    clouds: list[CloudAnswer] = []
    arrived: dict[tuple[str, int], int] = {}   # of answers of the edge
    heard = folder / 'context.jsonl'
    for line in read_lines(heard, counts) if heard.is_file() else ():
        if line['event'] == 'turn':
            turn, at_ns = from_plain(Turn, line['turn']), from_plain(int, line['arrived_ns'])
            if turn.source is Source.CLOUD:
                clouds.append(CloudAnswer(turn.query_id, Said(turn.stamp_ns, turn.facts,
                                                              turn.text), at_ns))
            else:
                arrived.setdefault((turn.query_id, turn.stamp_ns), at_ns)
    first, *lines = read_lines(folder / 'edge.jsonl', counts)
    start = from_plain(EdgeStart, first)
    run = Run(folder.name, 'spotvlm run --record', [], clouds,
              lambda stamps: _pictures(folder, found, stamps),
              {q.id: q.prompt for q in start.queries}, counts)
    found: dict[int, Picture] = {}
    model = Path(str(start.load.get('path', ''))).name
    newest = _Newest(clouds)
    for line in lines:
        if line['event'] == 'answer':
            answer = from_plain(AnswerLine, line)
            found[answer.stamp_ns] = answer.frame
            at_ns = arrived.get((answer.query_id, answer.stamp_ns), 0)
            run.steps.append(_step(answer, at_ns, model, newest))
        elif line['event'] == 'queries':
            run.prompts = {**run.prompts, **_prompts(line)}
    return run


def _prompts(line: Line) -> dict[str, str]:
    return {q.id: q.prompt for q in from_plain(tuple[Query, ...], line['queries'])}


def _step(answer: AnswerLine, at_ns: int, model: str, newest: _Newest) -> Step:
    context = answer.context
    used = () if context is None else (
        *(('context',) if not context.empty else ()), *(('focus',) if context.focus else ()))
    return Step(
        answer.query_id, Said(answer.stamp_ns, answer.facts, answer.text, model=model, used=used,
                              error='cut short' if answer.partial else ''), at_ns,
        None if context is None else Told(context.stamp_ns, context.facts, context.focus,
                                          context.dropped, context.text),
        newest.at(answer.query_id, at_ns or answer.stamp_ns),
        Said(answer.stamp_ns, answer.own, model=model) if answer.own else None,
        _mini_truth(answer))


def _mini_truth(answer: AnswerLine) -> dict[str, str]:
    """Return what is true of a frame of a miniature world."""
    frame = answer.frame
    if not frame.world:
        return {}
    world = _WORLD(frame.world, frame.seed, frame.condition)
    return {f.key: f.value for f in world.facts(frame.index, answer.stamp_ns)}


def _pictures(folder: Path, found: Mapping[int, Picture], stamps: Iterable[int]
              ) -> Iterable[tuple[int, Image]]:
    pictures = Pictures(folder)
    for stamp in stamps:
        image = pictures.get(found[stamp]) if stamp in found else None
        if image is not None:
            yield stamp, image


# Of a bag

def _bag(folder: Path) -> Run:
    path = str(folder)
    messages = [(said(m), m.query_id, int(m.source), log_ns)
                for m, log_ns in bag_messages(path, ANSWER, 'answers')]
    clouds = [CloudAnswer(query, one, one.stamp_ns + round(NS * (
        one.stages_s['wait'] + one.stages_s['model'])))
        for one, query, source, _ in messages if source == CLOUD]
    truths = {stamp_ns(m.header.stamp): {f.key: f.value for f in m.facts}
              for m, _ in bag_messages(path, ANSWER, 'truth')}
    alone = {(m.query_id, stamp_ns(m.header.stamp)): said(m)
             for m, _ in bag_messages(path, ANSWER, 'alone')}   # answers/alone
    contexts: dict[str, list[Told]] = {}
    for message, _ in bag_messages(path, CONTEXT, 'context'):
        contexts.setdefault(message.query_id, []).append(told(message))
    numbered = {(query, c.sequence): c for query, all_ in contexts.items() for c in all_}
    newest = _Newest(clouds)
    steps = []
    for one, query, source, _ in messages:
        if source == EDGE:
            done_ns = one.stamp_ns + round(NS * sum(
                one.stages_s[stage] for stage in ('wait', 'preprocess', 'model')))
            steps.append(Step(query, one, done_ns, numbered.get((query, one.sequence)),
                              newest.at(query, one.stamp_ns), alone.get((query, one.stamp_ns)),
                              truths.get(one.stamp_ns, {})))
    return Run(folder.name, 'bag', steps, clouds, lambda stamps: _bag_images(folder, stamps))


def _bag_images(folder: Path, stamps: Iterable[int]) -> Iterable[tuple[int, Image]]:
    """Yield frames of the bag, or of the one that was processed into it."""
    path, topic, wanted = str(folder), '', set(stamps)
    about = folder / 'metadata.yaml'
    if about.is_file():
        held = yaml.safe_load(about.read_text(encoding='utf-8'))
        custom = held['rosbag2_bagfile_information'].get('custom_data') or {}
        if 'spotvlm process' in custom:
            source: dict[str, JsonValue] = json.loads(custom['spotvlm process'])
            path, topic = str(source.get('path', '')), str(source.get('topic', ''))
    try:
        for frame in bag(path, topic):
            stamp = frame.stamp_ns or frame.log_ns
            if stamp in wanted:
                yield stamp, frame.load() if frame.load else decode_compressed(frame.jpeg or b'')
    except (SourceError, OSError):
        return  # it has been moved: there are no pictures


class _Newest:
    """Tells what the cloud had said at a time: the answer about the newest frame."""

    def __init__(self, clouds: Sequence[CloudAnswer]) -> None:
        self._times: dict[str, list[int]] = {}
        self._said: dict[str, list[Said]] = {}
        for answer in sorted(clouds, key=lambda c: c.arrived_ns):
            before = self._said.setdefault(answer.query_id, [])
            newer = not before or answer.said.stamp_ns >= before[-1].stamp_ns
            before.append(answer.said if newer else before[-1])
            self._times.setdefault(answer.query_id, []).append(answer.arrived_ns)

    def at(self, query_id: str, now_ns: int) -> Said | None:
        number = bisect_right(self._times.get(query_id, []), now_ns)
        return self._said[query_id][number - 1] if number else None
