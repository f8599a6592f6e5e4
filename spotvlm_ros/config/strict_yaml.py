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
"""YAML that means what it shows: a name that stands twice in one place is an error."""

from __future__ import annotations

from pathlib import Path

import yaml

from .spec import ParameterError
from ..system.text_file import read_text_file

MAX_BYTES = 1 << 20  # of a params file
MAX_DEPTH = 32       # of groups within groups
MAX_SHOWN = 60       # of a line with a fault [characters]
MAX_NODES = 100_000  # names and values


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses repeated names, which PyYAML drops and rcl merges."""

    def construct_mapping(self, node: yaml.MappingNode,
                          deep: bool = False) -> dict[object, object]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ParameterError(f'a name in line {line} is no text')
            if key.value in lines and key.tag != 'tag:yaml.org,2002:merge':
                raise ParameterError(f'{key.value} stands twice, in lines {lines[key.value]} and '
                                     f'{line}; put what belongs to it in one place')
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> object:
    """Return what a YAML file holds; raise ParameterError with the file, the line, the remedy."""
    try:
        return parse_yaml(_text(path))
    except ParameterError as error:
        raise ParameterError(f'{path}: {error}') from error


def parse_yaml(text: str) -> object:
    """Return what a text holds as YAML, None for nothing; raise ParameterError with the line."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_size(node, 0, [MAX_NODES])
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except ParameterError:
        raise
    except RecursionError as error:
        raise ParameterError('groups nest too deeply') from error
    except yaml.MarkedYAMLError as error:
        raise ParameterError(_fault(text, error)) from error
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        raise ParameterError(str(error)) from error


def _fault(text: str, error: yaml.MarkedYAMLError) -> str:
    """Return what is no YAML, where, and how it is mended."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return str(error)
    lines = text.splitlines()
    line = lines[mark.line].strip()[:MAX_SHOWN] if mark.line < len(lines) else 'the end'
    remedy = 'indent by spaces' if '\t' in line or '\\t' in str(error.problem) else \
        'indent alike what belongs together, put a space behind each colon, close quotes and ' \
        'brackets, and quote what holds a colon or begins with %, @, * or &'
    return f'line {mark.line + 1}, column {mark.column + 1} ({line}): {error.problem}; {remedy}'


def _text(path: Path) -> str:
    try:
        return read_text_file(path, MAX_BYTES)
    except ValueError as error:
        raise ParameterError(f'{error}; give the path of a params file') from error


def _check_size(node: yaml.Node, depth: int, left: list[int]) -> None:
    """
    Raise ParameterError for what no parameters need: deep nesting, as of what holds itself.

    Aliases of aliases can make a short file hold more than a machine does; ``left`` counts down.
    """
    left[0] -= 1
    if left[0] < 0:
        raise ParameterError(f'holds more than {MAX_NODES} values, aliases included')
    if depth > MAX_DEPTH:
        raise ParameterError('groups nest too deeply, or one holds itself (line '
                             f'{node.start_mark.line + 1})')
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for part in pair:
                _check_size(part, depth + 1, left)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _check_size(part, depth + 1, left)
