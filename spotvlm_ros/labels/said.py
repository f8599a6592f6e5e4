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
"""What models said about keyframes, as labels and in tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .keyframes import Keyframe
from .replies import Reply
from .schema import Label
from ..cloud.parse import CloudAnswer
from ..config.nodes import BoxScale
from ..method.facts import Fact, Query

APART = 0.5     # boxes of two models that overlap less (intersection over union) differ
MOST = 8        # reasons shown


@dataclass(frozen=True)
class Said:
    """A keyframe and what a model said about it."""

    reply: Reply
    answer: CloudAnswer

    @property
    def facts(self) -> Mapping[str, Fact]:
        """Return what can be used, by key."""
        return {fact.key: fact for fact in self.answer.facts}


def read(query: Query, replies: Mapping[int, Reply], box_scale: BoxScale) -> dict[int, Said]:
    """Return what replies say, by the number of their frame."""
    return {i: Said(reply, reply.read(query, box_scale)) for i, reply in replies.items()}


def labels(keyframes: Sequence[Keyframe], first: Mapping[int, Said],
           second: Mapping[int, Said], files: Sequence[str]) -> list[Label]:
    """Return the labels of keyframes about which something was said; ``files`` of all frames."""
    found = []
    for keyframe in keyframes:
        said = first.get(keyframe.number)
        if said is None or not said.facts:
            continue
        other = second[keyframe.number].facts if keyframe.number in second else {}
        found.append(Label(
            round(keyframe.t, 6), {key: fact.value for key, fact in said.facts.items()},
            {key: fact.region for key, fact in said.facts.items() if fact.region is not None},
            {key: p for key, p in said.reply.confidences.items() if key in said.facts},
            {key: other[key].value for key, fact in said.facts.items()
             if key in other and other[key].value != fact.value},
            files[keyframe.number] if files else ''))
    return found


def table(query: Query, said: Sequence[Said]) -> Iterator[str]:
    """Yield what was said how often, and what could not be used and why."""
    usable = [one for one in said if one.facts]
    yield f'{"key":<14} {"value":<14} {"said":>6} {"share":>6} {"boxes":>6}'
    for key, values in query.choices.items():
        facts = [one.facts[key] for one in usable if key in one.facts]
        for value in values:
            mine = [fact for fact in facts if fact.value == value]
            boxes = sum(fact.region is not None for fact in mine)
            yield f'{key:<14} {value:<14} {len(mine):>6} ' \
                  f'{len(mine) / max(1, len(facts)):>6.0%} {boxes:>6}'
    useless = [one for one in said if not one.facts]
    if useless:
        yield f'unusable replies: {len(useless)} of {len(said)}: ' + reasons(useless)
    partly = [one for one in usable if one.answer.rejected]
    if partly:
        yield f'replies of which a part was left out: {len(partly)}: ' + reasons(partly)


def reasons(said: Sequence[Said]) -> str:
    """Return why things that were said cannot be used, the commonest first."""
    count = Counter(why for one in said for why in one.answer.rejected or ['it says nothing'])
    return counted(count)


def counted(count: Counter[str]) -> str:
    """Return reasons and how often each."""
    shown = [f'{why} ({n})' for why, n in count.most_common(MOST)]
    return '; '.join(shown + ['...'] * (len(count) > MOST))


def agreement(query: Query, first: Mapping[int, Said], second: Mapping[int, Said]
              ) -> Iterator[str]:
    """Yield how often two models said the same about the same frames, key by key."""
    yield f'{"key":<14} {"both":>6} {"same":>6} {"boxes apart":>12}'
    pairs = [(first[i].facts, second[i].facts) for i in first.keys() & second.keys()]
    for key in query.keys:
        both = [(a[key], b[key]) for a, b in pairs if key in a and key in b]
        same = [(a.region, b.region) for a, b in both if a.value == b.value]
        boxes = [(a, b) for a, b in same if a is not None and b is not None]
        apart = sum(a.iou(b) < APART for a, b in boxes)
        share = f'{len(same) / len(both):.0%}' if both else '-'
        yield f'{key:<14} {len(both):>6} {share:>6} {f"{apart} of {len(boxes)}":>12}'
