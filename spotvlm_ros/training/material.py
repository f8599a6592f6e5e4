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
"""What there is to learn from: labelled sequences, which of them for what, checked."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .tracks import Tracks
from ..config.profiles import load_profile
from ..labels.schema import Label, LabelError, read_label_file
from ..labels.sequences import FILE, LabelledSequence, open_labelled
from ..method.facts import NS, Query

APART_S = 2.0    # between frames of one sequence that train and those that validate


@dataclass(frozen=True)
class Clip:
    """A labelled sequence, and the frames of it that one purpose may ask about."""

    sequence: LabelledSequence
    labels: Mapping[int, Label]     # of the whole sequence, by the stamp of the frame
    frames: tuple[int, ...]
    tracks: Tracks | None = None    # None: pictures in no order, which have no past

    @cached_property
    def values(self) -> Mapping[str, list[str]]:
        """Return the values that come, by key."""
        found: dict[str, set[str]] = {}
        for label in self.labels.values():
            for key, value in label.facts.items():
                found.setdefault(key, set()).add(value)
        return {key: sorted(values) for key, values in found.items()}

    @property
    def query(self) -> Query:
        """Return the question that the labels answer."""
        return self.sequence.query


def keyframe_before(clip: Clip, stamp: int, back_s: float) -> int | None:
    """Return the keyframe nearest to ``back_s`` ago, None before the first."""
    if back_s == float('inf'):
        return None
    assert clip.tracks is not None
    stamps = clip.tracks.keyframes
    wanted = stamp - int(back_s * NS)
    if wanted < stamps[0] - NS // 2:
        return None
    after = bisect_right(stamps, wanted)
    near = min(stamps[max(0, after - 1):after + 1], key=lambda s: abs(s - wanted))
    return near if near < stamp else None


def open_all(paths: Sequence[Path], profiles: Sequence[str]) -> list[LabelledSequence]:
    """Open label files and folders, each with the first query that takes it; raise LabelError."""
    queries = [query for name in profiles for query in load_profile(name).queries()
               if query.choices]
    if not queries:
        raise LabelError(f'profile {", ".join(profiles)} has no query of format facts or choice; '
                         'name one that asks for what the labels say, with --profile')
    return [open_labelled(file, _query_of(file, queries)) for path in paths
            for file in _label_files(path)]


def _label_files(path: Path) -> Iterator[Path]:
    if not path.is_dir() or (path / FILE).is_file():
        yield path / FILE if path.is_dir() else path
        return
    found = sorted(path.glob(f'*/{FILE}')) or sorted(path.glob('*.jsonl'))
    if not found:
        raise LabelError(f'{path} holds no {FILE}, nor do the folders in it; name a label file, '
                         'or a folder with some')
    yield from found


def _query_of(file: Path, queries: Sequence[Query]) -> Query:
    """Return the first query that takes all labels of a file; raise what the first one says."""
    errors: list[LabelError] = []
    for query in queries:
        try:
            read_label_file(file, query)
            return query
        except LabelError as error:
            errors.append(error)
    raise errors[0]


def split(sequences: Sequence[LabelledSequence], validation: Sequence[str],
          ) -> tuple[list[Clip], list[Clip]]:
    """
    Return clips to train on, and to validate on.

    ``validation`` names whole sequences, or is one share: the end of each. Raise ValueError.
    """
    names = sorted({s.name for s in sequences})
    clips = [Clip(s, labels, tuple(labels)) for s in sequences
             if (labels := {s.stamp_of(one): one for one in s.labels})]
    share = _share(validation)
    if share is None:
        unknown = [name for name in validation if name not in names]
        if unknown:
            raise ValueError(f'--validation {unknown[0]}: there is no such sequence; name some '
                             f'of {", ".join(names)}, or give a share such as 0.15')
        training = [clip for clip in clips if clip.sequence.name not in validation]
        tuning = [clip for clip in clips if clip.sequence.name in validation]
    else:
        training, tuning = [], []
        for clip in clips:
            border = clip.frames[round((1.0 - share) * (len(clip.frames) - 1))]
            before = tuple(f for f in clip.frames if f < border - APART_S * NS)
            training += [_part(clip, before)] if before else []
            tuning.append(_part(clip, tuple(f for f in clip.frames if f >= border)))
    if not training:
        raise ValueError(_nothing_left(clips, share))
    _check_variety(training)
    return training, tuning


def _nothing_left(clips: Sequence[Clip], share: float | None) -> str:
    """Return why there is nothing to train on, with a remedy."""
    if share is None:
        return 'no sequence is left to train on; name fewer in --validation, or label more'
    longest = max((c.frames[-1] - c.frames[0]) / NS for c in clips)
    return (f'--validation {share:g}: nothing is left to train on, for {APART_S:g} s before what '
            f'validates are left out, and the longest sequence has {longest:.1f} s; give a '
            'smaller share, name whole sequences, or label longer ones')


def _part(clip: Clip, frames: tuple[int, ...]) -> Clip:
    return Clip(clip.sequence, clip.labels, frames, clip.tracks)


def _share(validation: Sequence[str]) -> float | None:
    try:
        share = float(validation[0]) if len(validation) == 1 else None
    except ValueError:
        return None
    if share is not None and not 0.0 < share <= 0.5:
        raise ValueError(f'--validation {share:g}: give a share above 0 and up to 0.5, or names '
                         'of sequences')
    return share


def _check_variety(training: Sequence[Clip]) -> None:
    """Raise ValueError where nothing can be learned: each key has one value throughout."""
    counts: dict[str, Counter[str]] = {}
    for clip in training:
        for stamp in clip.frames:
            for key, value in clip.labels[stamp].facts.items():
                counts.setdefault(key, Counter())[value] += 1
    if all(len(values) < 2 for values in counts.values()):
        key, values = next(iter(counts.items()))
        raise ValueError(f'every label to train on says {key}: {next(iter(values))}; nothing can '
                         'be learned from one value; add sequences with others')


def describe(clips: Sequence[Clip]) -> str:
    """Return sequences, frames and values in words."""
    values = Counter(f'{key} {value}' for clip in clips for stamp in clip.frames
                     for key, value in clip.labels[stamp].facts.items())
    names = list(dict.fromkeys(clip.sequence.name for clip in clips))
    shown = ', '.join(names[:12]) + f' and {len(names) - 12} more' * (len(names) > 12)
    return (f'{sum(len(c.frames) for c in clips)} frames of {shown} (' + ', '.join(
        f'{value} {n}' for value, n in values.most_common(24)) + ')')
