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
"""Pages of the site that are made of the code, or stand beside docs/: hooks of MkDocs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import importlib
import json
import os
from pathlib import Path
import re
import sys
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
BESIDE = {'README.md': 'index.md', 'CONTRIBUTING.md': 'contributing.md',
          'SECURITY.md': 'vulnerabilities.md', 'QUALITY_DECLARATION.md': 'quality.md',
          'LICENSE': ''}
INTERFACES = ('msg', 'srv', 'action')


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are no files of docs/."""
    from mkdocs.structure.files import File
    pages = {page: (ROOT / name).read_text() for name, page in BESIDE.items() if page}
    pages |= {'reference/commands.md': commands(), 'reference/messages.md': messages(),
              'reference/schema.md': schema(), 'reference/python.md': python()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links lead to where the pages are on the site."""
    beside = page.file.src_uri in BESIDE.values()

    def link(found: re.Match[str]) -> str:
        text, path, anchor = found.groups()
        if beside and path.startswith('docs/'):
            return f'[{text}]({path.removeprefix("docs/")}{anchor})'
        name = path if beside else path.removeprefix('../')
        if name in BESIDE and (beside or path.startswith('../')):
            return f'[{text}]({BESIDE[name]}{anchor})' if BESIDE[name] else text
        return found[0]
    return re.sub(r'\[([^\]\[]*)\]\((?!https?:|#|mailto:)([^)#]+)(#[^)]*|)\)', link, markdown)


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the parser of each command and program, with its name."""
    from spotvlm_ros.bench.perf.main import PROGRAMS
    from spotvlm_ros.cli.main import command_parser, COMMANDS, ELSEWHERE, parser_of
    whole = command_parser()
    known = whole._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    assert known is not None
    yield '', whole
    for name in COMMANDS:
        yield name, known[name]
    for name in ELSEWHERE:
        yield name, parser_of(name)
    for name, (module, _) in PROGRAMS.items():
        yield f'perf {name}', importlib.import_module(module).command_parser()


def commands() -> str:
    """Return what each command says of itself."""
    os.environ['COLUMNS'] = '96'
    lines = ['# Commands', '', 'As `--help` of each prints it.', '']
    for name, parser in parsers():
        lines += [f'## spotvlm {name}'.rstrip(), '', '```text', parser.format_help().rstrip(),
                  '```', '']
    return '\n'.join(lines)


def messages() -> str:
    """Return the interfaces, whose comments explain every field."""
    lines = ['# Messages, services, action', '', 'Of the package `spotvlm_msgs`.', '']
    for kind in INTERFACES:
        for path in sorted((ROOT / 'spotvlm_msgs' / kind).iterdir()):
            lines += [f'## {kind}/{path.stem}', '', '```text', path.read_text().rstrip(), '```',
                      '']
    return '\n'.join(lines)


def schema() -> str:
    """Return the JSON schema of params files."""
    from spotvlm_ros.config.schema import params_schema
    return ('# JSON schema of params files\n\nWhat `spotvlm params --schema` prints, by which '
            'editors complete and check them ([how](../parameters.md#in-an-editor)).\n\n'
            f'```json\n{json.dumps(params_schema(), indent=1)}\n```\n')


def python() -> str:
    """Return the page of the Python interface, for mkdocstrings to fill."""
    from spotvlm_ros import client
    return '\n'.join([
        '# Python', '', 'For planners: `spotvlm_ros.client` ([how](../planners.md)).', '',
        *(f'::: client.{name}\n' for name in client.__all__)])
