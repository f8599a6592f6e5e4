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
"""The audit: now and then a frame is answered with and without context, and both are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .facts import Fact


@dataclass
class Audit:
    """Counts of facts over the audited frames; `add` one frame at a time."""

    share: float          # of the answers with context that are audited, 0..1
    frames: int = 0
    facts: int = 0        # answered with context
    agreed: int = 0       # of these, the same without context
    contradicted: int = 0  # context says other than the model sees without it
    copied: int = 0       # of these, answered as the context says
    judged: int = 0       # facts whose truth is known
    helped: int = 0       # of these, wrong without context and right with it
    harmed: int = 0       # of these, right without context and wrong with it
    _due: float = 0.0

    def due(self) -> bool:
        """Tell whether the answer just given is one to audit; evenly spread, no dice."""
        self._due += self.share
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True

    def add(self, given: Sequence[Fact], alone: Sequence[Fact], context_facts: Sequence[Fact],
            truth: Mapping[str, str] | None = None) -> None:
        """Take the facts answered with context and without, those of the context, the truth."""
        without = {f.key: f.value for f in alone}
        context = {f.key: f.value for f in context_facts}
        self.frames += 1
        for fact in given:
            value_without = without.get(fact.key)
            self.facts += 1
            self.agreed += fact.value == value_without
            if fact.key in context and context[fact.key] != value_without:
                self.contradicted += 1
                self.copied += fact.value == context[fact.key]
            if truth is not None and fact.key in truth:
                right, was = fact.value == truth[fact.key], value_without == truth[fact.key]
                self.judged += 1
                self.helped += right and not was
                self.harmed += was and not right

    def report(self) -> dict[str, float]:
        """Return rates, 0..1; those without a single case are left out."""
        report: dict[str, float] = {'audit_frames': self.frames}
        for name, count, of in (
                ('agreement', self.agreed, self.facts), ('copy', self.copied, self.contradicted),
                ('help', self.helped, self.judged), ('harm', self.harmed, self.judged)):
            if of:
                report[f'audit_{name}_rate'] = round(count / of, 4)
        return report
