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

MAX_BYTES = 1 << 20  # of a params file
MAX_DEPTH = 32       # of groups within groups


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
        if not path.is_file():
            raise ParameterError('is no file; give the path of a YAML')
        with path.open('rb') as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ParameterError(f'has more than {MAX_BYTES} bytes; is it a params file?')
        loader = _Loader(data.decode())
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_depth(node, 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except ParameterError as error:
        raise ParameterError(f'{path}: {error}') from error
    except UnicodeDecodeError as error:
        raise ParameterError(f'{path}: byte {error.start} is not UTF-8; save the file as '
                             'UTF-8') from error
    except RecursionError as error:
        raise ParameterError(f'{path}: groups nest too deeply') from error
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
        raise ParameterError(f'{path}: {error}') from error


def _check_depth(node: yaml.Node, depth: int) -> None:
    """Raise ParameterError for what nests deeper than parameters do, as what holds itself."""
    if depth > MAX_DEPTH:
        raise ParameterError('groups nest too deeply, or one holds itself (line '
                             f'{node.start_mark.line + 1})')
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            for part in pair:
                _check_depth(part, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _check_depth(part, depth + 1)
