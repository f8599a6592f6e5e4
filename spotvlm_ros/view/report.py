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
"""One page of a recorded run (`spotvlm report`): a timeline to go through, and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
from pydantic import JsonValue

from .parts import document, heading, jpeg_url, note, table, WEB
from .recorded import Run, Step
from .said import Json, plain, reason, shown
from ..cloud.bridge_statistics import percentile
from ..frames.pixels import encode_jpeg, Image
from ..method.facts import NS

MAX_STEPS = 3000     # answers on the page
MAX_FRAMES = 240     # and frames
WIDTH = 480          # of frames [pixels]
QUALITY = 70


def report(run: Run) -> str:
    """Return the page."""
    steps = run.steps[:MAX_STEPS]
    begin = steps[0].said.stamp_ns
    body = [note(f'Recorded by {run.kind}: {len(run.steps)} answers of the edge, '
                 f'{len(run.clouds)} of the cloud, in '
                 f'{(run.steps[-1].said.stamp_ns - begin) / NS:.1f} s.')]
    if len(steps) < len(run.steps):
        body.append(note(f'The first {MAX_STEPS} answers are on this page.'))
    lacking = [f'{count} {name.replace("_", " ")}' for name, count in (+run.problems).items()]
    if lacking:
        body.append(note(f'The recording is not whole: {", ".join(lacking)}.'))
    body += [_player(), heading('Queries'), table(*_by_query(run), 'Times are those recorded'),
             heading('Facts'), table(*_by_key(run), 'Right: of the answers whose truth is known')]
    data: Json = {'queries': {shown(name): {
        'prompt': shown(run.prompts.get(name, '')),
        'steps': [_plain(s, begin) for s in steps if s.query_id == name]}
        for name in run.query_ids}, 'frames': _frames(run, steps)}
    script = ''.join((WEB / name).read_text(encoding='utf-8')
                     for name in ('parts.js', 'report.js'))
    return document(f'Run {shown(run.name)}', body, script, data)


def write_report(run: Run, path: Path) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(run), encoding='utf-8')


def _player() -> str:
    return (WEB / 'player.html').read_text(encoding='utf-8')


def _plain(step: Step, begin_ns: int) -> Json:
    """Return a step for the script."""
    now = step.said.stamp_ns
    late_s = (step.arrived_ns - now) / NS if step.arrived_ns else None
    truth: Json = {shown(key): shown(value) for key, value in step.truth.items()
                   if key in step.said.values}
    return {'t': round((now - begin_ns) / NS, 3), 'stamp': str(now),
            'late_s': None if late_s is None else round(late_s, 3), 'said': step.said.plain(now),
            'told': plain(step.told, now),
            'cloud': plain(step.cloud, now), 'alone': plain(step.alone, now), 'truth': truth}


def _frames(run: Run, steps: Sequence[Step]) -> JsonValue:
    """Return some of the frames that were answered, as addresses, by stamp."""
    stamps = sorted({s.said.stamp_ns for s in steps})
    chosen = stamps[::-(-len(stamps) // MAX_FRAMES)]
    return {str(stamp): _picture(image) for stamp, image in run.images(chosen)}


def _picture(image: Image) -> Json:
    height, width = image.shape[:2]
    scale = min(1.0, WIDTH / width)
    small = cv2.resize(image, (round(width * scale), max(1, round(height * scale))),
                       interpolation=cv2.INTER_AREA)
    return {'width': width, 'height': height, 'url': jpeg_url(encode_jpeg(small, QUALITY))}


def _by_query(run: Run) -> tuple[list[str], list[list[str]]]:
    """Return how often and how late each query was answered."""
    rows = []
    for name in run.query_ids:
        steps = [s for s in run.steps if s.query_id == name]
        clouds = [c for c in run.clouds if c.query_id == name]
        late = [(s.arrived_ns - s.said.stamp_ns) / NS for s in steps if s.arrived_ns]
        told = sum('context' in s.said.used for s in steps)
        rows.append([shown(name), str(len(steps)), _times(late), str(len(clouds)),
                     _times([c.delay_s for c in clouds]), f'{100 * told / len(steps):.0f} %',
                     str(sum(bool(s.said.error) for s in steps))])
    return ['query', 'answers', 'late', 'of the cloud', 'late there', 'with context',
            'errors'], rows


def _times(seconds: Sequence[float]) -> str:
    return f'{percentile(seconds, 0.5):.2f} s, p95 {percentile(seconds, 0.95):.2f} s' \
        if seconds else 'not recorded'


def _by_key(run: Run) -> tuple[list[str], list[list[str]]]:
    """Return what became of each fact, and why facts were not told."""
    rows = []
    for name in run.query_ids:
        steps = [s for s in run.steps if s.query_id == name]
        for key in dict.fromkeys(k for s in steps for k in s.said.values):
            of = [s for s in steps if key in s.said.values]
            changes = sum(a.said.values[key] != b.said.values[key] for a, b in zip(of, of[1:]))
            known = [s for s in of if key in s.truth]
            dropped = Counter(reason(s.told.dropped[key]) for s in of
                              if s.told is not None and key in s.told.dropped)
            rows.append([
                shown(f'{name}.{key}'), _right(known, [s.said.values[key] for s in known], key),
                _right([s for s in known if s.alone is not None],
                       [s.alone.values.get(key, '') for s in known if s.alone is not None], key),
                _right(known, [s.cloud.values.get(key, '') if s.cloud else '' for s in known],
                       key), str(changes),
                str(sum(s.told is not None and key in {f.key for f in s.told.facts} for s in of)),
                '; '.join(f'{n} x {why}' for why, n in dropped.most_common()) or 'never'])
    return ['fact', 'right', 'edge alone right', 'last of the cloud right', 'changes',
            'times told', 'dropped from the context'], rows


def _right(steps: Sequence[Step], values: Sequence[str], key: str) -> str:
    """Return how often values are the truth of steps."""
    if not steps:
        return 'not known'
    right = sum(v == s.truth[key] for s, v in zip(steps, values))
    return f'{100 * right / len(steps):.1f} % of {len(steps)}'
