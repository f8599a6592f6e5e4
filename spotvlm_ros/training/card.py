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
"""What is written beside the weights: model card, training log, validation curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
import json
from pathlib import Path

import numpy as np

from .coach import Point
from .samples import Example
from ..config.nodes import EdgeConfig
from ..edge.model import EdgeModel
from ..method.guard import OFF
from ..mini.training.fit import Log

FREE = ('apache-2.0', 'mit', 'bsd-3-clause', 'cc0-1.0', 'cc-by-4.0')  # as model cards spell them
SYSTEMS = ('alone', 'context', 'cloud held')


@dataclass(frozen=True)
class Report:
    """All that there is to say of a training."""

    name: str
    start: str
    training: str               # sequences, frames and values, in words
    validation: str
    licences: Sequence[str]     # of the pictures, as their labels say
    licence: str                # of the weights, as the user says; '' where nothing was said
    delays: str
    accuracy: Mapping[str, Mapping[str, float]]   # by system, then by key and 'mean'
    scored: int                 # frames
    curve: Sequence[Point]
    log: Log
    meta: Mapping[str, object]
    note: str = ''              # of how it ended


def score(folder: Path, examples: Sequence[Example]) -> dict[str, dict[str, float]]:
    """Return the share of right facts of a saved checkpoint, answered as node edge would."""
    edge = EdgeModel.load(EdgeConfig(model=str(folder.resolve()), guard_odds=OFF))
    right: dict[str, dict[str, list[bool]]] = {name: {} for name in SYSTEMS}
    for example in examples:
        said = {}
        for name, context in (('alone', None), ('context', example.context)):
            answer = edge.answer(example.frame, example.query, context, example.stamp_ns)
            said[name] = {fact.key: fact.value for fact in answer.facts}
        said['cloud held'] = {fact.key: fact.value for fact in example.context.facts}
        for fact in example.facts:
            if fact.key not in example.unknown:
                for name in SYSTEMS:
                    right[name].setdefault(fact.key, []).append(
                        said[name].get(fact.key) == fact.value)
    return {name: {key: round(float(np.mean(hits)), 4) for key, hits in rows.items()}
            | {'mean': round(float(np.mean([h for hits in rows.values() for h in hits])), 4)}
            for name, rows in right.items()}


def write(folder: Path, report: Report) -> None:
    """Write training_log.json, training.png and README.md."""
    record = asdict(report)
    (folder / 'training_log.json').write_text(json.dumps(record, indent=1, default=str) + '\n')
    draw(folder / 'training.png', report)
    (folder / 'README.md').write_text(card(report), encoding='utf-8')


def card(report: Report) -> str:
    """Return the model card."""
    known = report.licence.lower() if report.licence.lower() in FREE else 'other'
    keys = [key for key in next(iter(report.accuracy.values())) if key != 'mean']
    rows = [f'| {name} | {row["mean"]:.3f} | ' + ', '.join(
        f'{key} {row[key]:.3f}' for key in keys) + ' |' for name, row in report.accuracy.items()]
    data = '; '.join(dict.fromkeys(report.licences)) or 'not stated in the label files'
    end = report.log[-1]
    return '\n'.join([
        '---', f'license: {known}', 'library_name: transformers',
        'pipeline_tag: image-text-to-text', '---', f'# {report.name}', '',
        f'{report.start}, taught by `spotvlm train --labels` on labelled frames with late '
        'context.', '',
        f'- Trained on {report.training}.', f'- Validated on {report.validation}.',
        f'- Licence of the pictures: {data}. Licence of these weights: '
        f'{report.licence or "not stated; that of the pictures may forbid to pass them on"}.',
        f'- The cloud of training and of the table is simulated from labels: {report.delays}, '
        'with errors and missing facts as the arguments say.',
        f'- {end["seconds"]:.0f} s, {end["step"]:.0f} steps. {report.note}', '',
        f'Share of right facts on {report.scored} validation frames, answered as node edge does '
        'on one frame, without the guard; cloud held: its newest facts as they are, wrong where '
        'there are none yet. The best of several moments of the training was chosen '
        'on these sequences: score on others with `spotvlm bench` before believing it.', '',
        '| | all facts | per key |', '|---|---|---|', *rows, '',
        '![validation](training.png)', '', 'Arguments:', '', '```',
        json.dumps(report.meta, indent=1, default=str), '```', ''])


def draw(path: Path, report: Report) -> None:
    """Draw loss and accuracy over steps."""
    from matplotlib import pyplot

    pyplot.switch_backend('Agg')
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.6), layout='constrained')
    left.plot([line['step'] for line in report.log], [line['loss'] for line in report.log],
              color='#999999', label='training')
    steps = [point.step for point in report.curve]
    for name, colour in (('alone', '#555555'), ('context', '#0b5fa5')):
        left.plot(steps, [p.loss[name] for p in report.curve], color=colour, label=name)
        right.plot(steps, [p.accuracy[name] for p in report.curve], color=colour, label=name)
    right.axhline(report.accuracy['cloud held']['mean'], color='#d95f02', linestyle='--',
                  label='cloud held')
    for axes, title in ((left, 'loss'), (right, 'right facts, validation sequences')):
        axes.set(title=title, xlabel='step')
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    left.set_yscale('log')
    right.set_ylim(0, 1)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
