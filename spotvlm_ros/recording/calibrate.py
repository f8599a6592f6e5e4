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
Learning from what was recorded whom to believe (`spotvlm calibrate`).

The frames are answered again, by the model and with the contexts of the recording, in one pass or
two as on the robot, and what the cloud said about them comes in between as it did then. So the
recorded rule and the learned one are compared on truths that neither has seen. Each label counts
once: a second time through would take them for twice as many. `overlay` says what comes of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import datetime
import json
from pathlib import Path
import statistics
import sys

import cv2

from .judged import Passes
from .overlay import Finding, Overlay, Seen
from .process import Due
from .recorder import from_plain
from .replay import AnswerLine, edge_config, EdgeStart, Line, MAX_WHY, Pictures, read_lines
from ..edge.answer import EdgeVLM
from ..edge.model import EdgeModel
from ..method.calibration import Calibration
from ..method.facts import NS, Query, Source, Turn
from ..method.labels import GAP_S
from ..method.prompt import printable
from ..system.progress import tracked

DAMAGE = ('lines_torn', 'files_cut_off', 'files_altered', 'not_recorded', 'frames_missing')


class Learner:
    """Learns from frames and the cloud's answers about them, in the order in which they came."""

    def __init__(self, load: Callable[[], EdgeVLM], queries: Sequence[Query], odds: float,
                 every: int = 1, share: float = 0.0) -> None:
        """
        Begin with the guard, whatever was learned earlier; of answers take one in ``every``.

        For the ``share`` see `Calibration`.
        """
        self.queries = {q.id: replace(q, weights={}) for q in queries if q.keys}
        self.counts: Counter[str] = Counter()
        self.odds, self.first_ns = odds, 0
        self._load, self._every = load, every
        self._model: EdgeVLM | None = None
        self._met: Counter[str] = Counter()     # answers of each query
        self._learned = {q.id: Calibration(q, odds, share) for q in self.queries.values()}
        self._delays_s: defaultdict[str, list[float]] = defaultdict(list)
        self._last: dict[tuple[str, str], tuple[int, str]] = {}   # values of the cloud, by key
        self._changes: Counter[tuple[str, str]] = Counter()
        self._watched_s: defaultdict[tuple[str, str], float] = defaultdict(float)

    def wants(self, query: Query) -> bool:
        """Return whether the next answer to a query is to be learned from."""
        if not query.asks_as(self.queries.get(query.id)):
            return False    # a text, a question of action ask, or changed while the nodes ran
        self._met[query.id] += 1
        return self._met[query.id] % self._every == 0

    def answer(self, due: Due, passes: Passes | None = None) -> None:
        """Answer about a frame again; where its passes are known, the model is not asked."""
        self.first_ns = self.first_ns or due.stamp_ns
        self.counts['answers'] += 1
        judge = self._learned[due.query.id].of_frame(due.stamp_ns)
        if passes is not None:
            judge.select(passes.first, passes.second, due.context)
            return
        if self._model is None:
            self._model = self._load()
            self._model.warm_up(tuple(self.queries.values()))
        self._model.answer(*due, judge=judge)

    def truth(self, turn: Turn) -> None:
        """Take an answer of the cloud."""
        if turn.query_id not in self.queries:
            return
        self.counts['cloud_answers'] += 1
        self.counts['labels'] += self._learned[turn.query_id].truth(turn)
        for fact in turn.facts:
            name = turn.query_id, fact.key
            before_ns, before = self._last.get(name, (0, ''))
            if turn.stamp_ns <= before_ns:
                continue    # overtaken on its way
            self._last[name] = turn.stamp_ns, fact.value
            if turn.stamp_ns - before_ns <= GAP_S * NS:
                self._changes[name] += fact.value != before
                self._watched_s[name] += (turn.stamp_ns - before_ns) / NS

    def late(self, query_id: str, delay_s: float) -> None:
        """Take how late an answer of the cloud was."""
        self._delays_s[query_id].append(delay_s)

    def forget(self, camera: str | None = None) -> None:
        """Forget frames of a camera, or of all: its stream starts over."""
        for query in self.queries.values():
            if camera in (None, query.camera):
                self._learned[query.id].forget()
                for key in query.keys:
                    self._last.pop((query.id, key), None)

    def findings(self) -> list[Finding]:
        """Return what was found, key by key."""
        found = []
        for query in self.queries.values():
            learned = self._learned[query.id]
            delay_s = statistics.median(self._delays_s[query.id] or [0.0])
            for key, state in learned.state().items():
                judged = learned.judged(key)
                guard, right = sum(j.by_guard for j in judged), sum(j.by_learned for j in judged)
                found.append(Finding.of(query, key, state, Seen(
                    guard / max(1, len(judged)), right / max(1, len(judged)),
                    self._changes[query.id, key], self._watched_s[query.id, key], delay_s)))
        return found


# Recordings

def learn_from_recording(folder: Path, every: int) -> Learner:
    """Learn from a folder of `spotvlm run --record`; raise what its files make it raise."""
    counts: Counter[str] = Counter()
    first, *lines = read_lines(folder / 'edge.jsonl', counts)
    start = from_plain(EdgeStart, first)
    config, focus = edge_config(start.load)
    queries, pictures = {q.id: q for q in start.queries}, Pictures(folder)
    learner = Learner(lambda: EdgeModel.load(config, focus), start.queries, config.guard_odds,
                      every, config.calibrate_share)
    heard = [line for line in read_lines(folder / 'context.jsonl', counts)
             if line['event'] in ('turn', 'clear')]
    for line in heard:
        if line['event'] == 'turn':
            turn = from_plain(Turn, line['turn'])
            if turn.source == Source.CLOUD:
                learner.late(turn.query_id,
                             (from_plain(int, line['arrived_ns']) - turn.stamp_ns) / NS)
    if not config.calibrate or all(line['event'] != 'truth' for line in lines):
        lines = _in_order(lines, heard)
    for line in tracked(lines, 'lines', len(lines), sys.stderr):
        match line['event']:
            case 'answer':
                answer = from_plain(AnswerLine, line)
                query = answer.query or queries[answer.query_id]
                if learner.wants(query):
                    image = pictures.get(answer.frame)
                    counts['frames_missing'] += image is None
                    if image is not None:
                        learner.answer(Due(image, query, answer.context, answer.stamp_ns))
            case 'truth':
                learner.truth(from_plain(Turn, line['turn']))
            case 'forget':
                camera = line.get('camera')
                learner.forget(None if camera is None else str(camera))
    learner.counts += counts
    return learner


def _in_order(lines: Sequence[Line], heard: Sequence[Line]) -> list[Line]:
    """
    Return the answers of an edge that did not learn, with the cloud's among them as they came.

    Node context has ``heard`` of both: of an answer of the edge milliseconds after it was given.
    Those that it has not heard of, as they were late, stand before the next that it has.
    """
    answers = [line for line in lines if line['event'] == 'answer']
    places = {(line['query_id'], line['stamp_ns']): i for i, line in enumerate(answers, start=1)}
    ordered: list[Line] = []
    done = 0
    for line in heard:
        if line['event'] == 'clear':
            ordered.append({**line, 'event': 'forget'})
            continue
        turn = from_plain(Turn, line['turn'])
        if turn.source == Source.CLOUD:
            ordered.append({**line, 'event': 'truth'})
        elif (place := places.get((turn.query_id, turn.stamp_ns), 0)) > done:
            ordered += answers[done:place]
            done = place
    return ordered + answers[done:]


# The command

@dataclass(frozen=True)
class CalibrateConfig:
    """What to calibrate from, and where to write; the command line in one place."""

    source: Path
    out: Path
    force: bool = False
    period: bool = False
    every: int = 1
    json: bool = False


def calibrate(config: CalibrateConfig, learn: Callable[[Path, int], Learner]) -> int:
    """Learn, report, write; return the exit code. Errors are printed, not raised."""
    if config.out.exists() and not config.force:
        return _failed(f'{config.out} exists; name another --out, or add --force')
    if not config.out.parent.is_dir():
        return _failed(f'{config.out.parent} is no folder; make it, or name another --out')
    cv2.setNumThreads(1)
    try:
        learner = learn(config.source, config.every)
    except Exception as error:  # what a damaged file makes the method raise can be anything
        return _failed(f'{config.source} cannot be used: {type(error).__name__}: '
                       f'{str(error)[:MAX_WHY]}; give a folder written by spotvlm run --record '
                       'or spotvlm process of this version')
    counts = learner.counts
    damage = [f'{counts[n]} {n.replace("_", " ")}' for n in DAMAGE if counts[n]]
    if not counts['labels']:
        return _failed(f'{config.source}: none of the {counts["cloud_answers"]} answers of the '
                       f'cloud is about one of the {counts["answers"]} frames answered'
                       f'{"".join(f", {d}" for d in damage)}; record longer, with a cloud that '
                       'answers')
    data = (f'{config.source}: {counts["answers"]} answers of the edge, from '
            f'{_date(learner.first_ns)} on, and {counts["labels"]} labels, of '
            f'{counts["cloud_answers"]} answers of the cloud'
            f'{"".join(f", {d}" for d in damage)}')
    overlay = Overlay(data, learner.findings(), learner.queries, learner.odds, config.period)
    if config.json:
        print(json.dumps(overlay.plain(), indent=2))
    else:
        overlay.show()
    return _write(config, overlay)


def _write(config: CalibrateConfig, overlay: Overlay) -> int:
    notes = sys.stderr if config.json else sys.stdout
    if not overlay.parameters:
        print(f'nothing to change: {config.out} is not written', file=notes)
        return 0
    try:
        config.out.write_text(overlay.text(), encoding='utf-8')
    except OSError as error:
        return _failed(f'{config.out}: {error.strerror}; name an --out that can be written')
    print(printable(f'{config.out} is written; use it with spotvlm run PROFILE --params-file '
                    f'{config.out}'), file=notes)
    return 0


def _failed(why: str) -> int:
    print(printable(f'error: {why}'), file=sys.stderr)
    return 1


def _date(stamp_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(stamp_ns / NS, datetime.timezone.utc)
    return f'{moment:%Y-%m-%d %H:%M} UTC'
