# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Made tables in written pages: what stands between two marks is put there by a command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Marks = tuple[str, str]


def put(page: Path, text: str, marks: Marks) -> None:
    """Replace what is between two lines of a page; raise ValueError where they are missing."""
    found = page.read_text(encoding='utf-8')
    head, begin, rest = found.partition(marks[0])
    _, end, tail = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f'{page} lacks the lines {marks[0]} and {marks[1]}; put them where the '
                         'tables are to stand')
    page.write_text(f'{head}{begin}\n\n{text.rstrip()}\n\n{end}{tail}', encoding='utf-8')


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    first, *others = ('| ' + ' | '.join(line) + ' |' for line in (head, *rows))
    return '\n'.join([first, '|' + '---|' * len(head), *others])
