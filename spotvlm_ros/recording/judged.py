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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..method.calibration import FrameJudge
from ..method.facts import Context, Fact, Query


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
    Keeps what the judge of a frame is given, and spares it a pass that there is no time for.

    ``alone``: nothing is asked with context, for when it was asked first that did not come to an
    end. ``has_time``: whether there is time for a second pass that is to learn from only.
    """

    def __init__(self, judge: FrameJudge, alone: bool = False,
                 has_time: Callable[[], bool] = lambda: True) -> None:
        """Wait for an answer."""
        self.passes: Passes | None = None   # None: the first was stopped early
        self.to_learn = False               # the second pass is wanted to learn from only
        self._judge, self._alone, self._has_time, self._doubt = judge, alone, has_time, False

    def guards(self, query: Query) -> bool:
        """Return whether answers to a query are guarded."""
        return self._judge.guards(query)

    def leaves_no_doubt(self, facts: Sequence[Fact], context: Context | None) -> bool:
        """Return whether an answer without context needs no second pass."""
        self._doubt = not self._judge.leaves_no_doubt(facts, context)
        self.to_learn = self._judge.owes_pass and self._judge.is_sure(facts, context)
        return not self._doubt or self._alone or (self.to_learn and not self._has_time())

    def select(self, first: Sequence[Fact], second: Sequence[Fact] | None,
               context: Context | None) -> tuple[Fact, ...]:
        """Return the facts that count."""
        self.passes = Passes(tuple(first), None if second is None else tuple(second))
        return self._judge.select(first, second, context)

    @property
    def alone(self) -> bool:
        """Whether a second pass was wanted that did not come to an end."""
        return self._doubt and self.passes is not None and self.passes.second is None
