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
"""What a judge of answers was given, so that a journal or a recording can do it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..method.facts import Context, Fact, Query
from ..method.guard import Judge


@dataclass(frozen=True)
class Passes:
    """
    The facts of an answer's passes, without context and with it; None: there was no second.

    As a `guard.Judge` it has the model go through as many again.
    """

    first: tuple[Fact, ...]
    second: tuple[Fact, ...] | None = None

    def guards(self, query: Query) -> bool:
        """Return that there is a pass without context."""
        return True

    def leaves_no_doubt(self, facts: Sequence[Fact], context: Context | None) -> bool:
        """Return whether there was no second pass."""
        return self.second is None

    def select(self, first: Sequence[Fact], second: Sequence[Fact] | None,
               context: Context | None) -> tuple[Fact, ...]:
        """Return the facts of the first pass: they are of no interest."""
        return tuple(first)


class NotingJudge:
    """
    A `guard.Judge` that keeps what another one is given.

    ``alone``: nothing is asked with context, for when it was asked first that did not come to an
    end.
    """

    def __init__(self, judge: Judge, alone: bool = False) -> None:
        """Wait for an answer."""
        self.passes: Passes | None = None   # None: the first was stopped early
        self._judge, self._alone, self._doubt = judge, alone, False

    def guards(self, query: Query) -> bool:
        """Return whether answers to a query are guarded."""
        return self._judge.guards(query)

    def leaves_no_doubt(self, facts: Sequence[Fact], context: Context | None) -> bool:
        """Return whether an answer without context needs no second pass."""
        self._doubt = not self._judge.leaves_no_doubt(facts, context)
        return not self._doubt or self._alone

    def select(self, first: Sequence[Fact], second: Sequence[Fact] | None,
               context: Context | None) -> tuple[Fact, ...]:
        """Return the facts that count."""
        self.passes = Passes(tuple(first), None if second is None else tuple(second))
        return self._judge.select(first, second, context)

    @property
    def alone(self) -> bool:
        """Whether a second pass was wanted that did not come to an end."""
        return self._doubt and self.passes is not None and self.passes.second is None
