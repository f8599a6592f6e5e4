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
"""Generated tables in written pages: a command replaces what stands between two marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Marks = tuple[str, str]


def replace_between(page: Path, text: str, marks: Marks) -> None:
    """Replace what is between two lines of a page; raise ValueError where they are missing."""
    head, begin, rest = page.read_text(encoding='utf-8').partition(marks[0])
    _, end, tail = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f'{page} lacks the lines {marks[0]} and {marks[1]}; put them where the '
                         'tables are to stand')
    page.write_text(f'{head}{begin}\n\n{text.rstrip()}\n\n{end}{tail}', encoding='utf-8')


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    first, *others = ('| ' + ' | '.join(line) + ' |' for line in (head, *rows))
    return '\n'.join([first, '|' + '---|' * len(head), *others])
