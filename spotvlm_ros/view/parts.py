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
"""Parts of pages that need no other file: style, tables, scripts. All texts are escaped."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
import hashlib
import html
import json
from pathlib import Path

from pydantic import JsonValue

LONG = 24      # word [characters]
WEB = Path(__file__).with_name('web')


def document(title: str, body: Sequence[str], script: str = '', data: JsonValue = None) -> str:
    """
    Return a whole page; ``body`` is HTML, ``data`` is there for the script to read.

    Nothing but the style and the script that are part of it is obeyed by a browser.
    """
    style = (WEB / 'view.css').read_text(encoding='utf-8') + 'body { max-width: 62rem }'
    policy = (f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src "
              + (f"'{_digest(script)}'" if script else "'none'") + "; base-uri 'none'")
    held = json.dumps(data).replace('<', r'\u003c')
    return '\n'.join([
        '<!doctype html>', '<html lang="en">', '<head>', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f'<title>{html.escape(title)}</title>', '<link rel="icon" href="data:,">',
        f'<style>{style}</style>', '</head>', '<body>', '<main class="page">',
        f'<h1>{html.escape(title)}</h1>', *body, '</main>',
        *([f'<script type="application/json" id="data">{held}</script>',
           f'<script>{script}</script>'] if script else []), '</body>', '</html>', ''])


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = '',
          marked: str = '', cell: Callable[[str], str] = html.escape) -> str:
    """
    Return a table whose rows become blocks where the page is narrow.

    ``cell`` makes HTML of a text; the row that begins with ``marked`` stands out.
    """
    wide = ' class="wide"' if len(head) > 2 else ''
    lines = [f'<table{wide} role="table">']
    if caption:
        lines.append(f'<caption>{html.escape(caption)}</caption>')
    lines.append('<thead role="rowgroup"><tr role="row">' + ''.join(
        f'<th scope="col" role="columnheader">{html.escape(name)}</th>' for name in head)
        + '</tr></thead><tbody role="rowgroup">')
    for row in rows:
        mark = ' class="full"' if marked and row[0] == marked else ''
        lines.append(
            f'<tr{mark} role="row"><th scope="row" role="rowheader"{_long(row[0])}>'
            f'{html.escape(row[0])}</th>'
            + ''.join(f'<td role="cell" data-label="{html.escape(name)}"{_long(text)}>{cell(text)}'
                      '</td>' for name, text in zip(head[1:], row[1:])) + '</tr>')
    return ''.join([*lines, '</tbody></table>'])


def _long(text: str) -> str:
    """Return what lets a word be broken that is too long for a column."""
    return ' class="long"' if any(len(word) > LONG for word in text.split()) else ''


def note(text: str) -> str:
    """Return a paragraph of small text."""
    return f'<p class="note">{html.escape(text)}</p>'


def heading(text: str) -> str:
    """Return the heading of a section."""
    return f'<h2>{html.escape(text)}</h2>'


def jpeg_url(jpeg: bytes) -> str:
    """Return a picture as an address."""
    return f'data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}'


def _digest(text: str) -> str:
    return f'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'
