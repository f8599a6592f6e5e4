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
"""One figure of results.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import textwrap

DIGITS = 4  # after the point


@dataclass(frozen=True)
class PerfResult:
    """A figure, and what it is compared with in the same run; a row of results.json."""

    name: str
    value: float
    unit: str
    baseline: str         # what the ratio is against, in words; '' without one
    ratio: float | None   # None where nothing is compared
    machine: str          # what it was measured on, in words

    def __post_init__(self) -> None:
        """Round, and make whole numbers what the others are."""
        object.__setattr__(self, 'value', round(float(self.value), DIGITS))
        if self.ratio is not None:
            object.__setattr__(self, 'ratio', round(float(self.ratio), DIGITS))


def print_results(rows: Sequence[PerfResult]) -> None:
    """Print figures so that they fit 80 columns: what each is compared with in a line below."""
    for row in rows:
        ratio = '' if row.ratio is None else f'{row.ratio:.3g} of: '
        print(f'{row.name:<38} {row.value:>9.4g} {row.unit}')
        if row.baseline:
            print(textwrap.fill(ratio + row.baseline, 80, initial_indent=' ' * 4,
                                subsequent_indent=' ' * 8))


def write_results(results: list[PerfResult], path: Path) -> None:
    """Write a list of figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(r) for r in results], indent=2) + '\n', encoding='utf-8')
