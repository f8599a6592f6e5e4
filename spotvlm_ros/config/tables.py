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
"""The tables of all parameters, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from .nodes import NODE_CONFIGS, QueryConfig, ServerConfig
from .queries import CHOICES, MEANINGS, TTL, WEIGHTS
from .spec import Changeable, specs
from ..system.markdown import table

WHEN: Mapping[Changeable, str] = {
    'at_start': 'at start', 'before_configure': 'before configure',
    'while_running': 'while running'}
MARKS = ('<!-- parameters: made by `spotvlm params --update docs/parameters.md` -->',
         '<!-- end of parameters -->')


def markdown() -> str:
    """Return one table per node, then those of queries and of fallback servers."""
    groups = {node: specs(config) for node, config in NODE_CONFIGS.items()}
    groups['each query, as <id>.*'] = (
        *specs(QueryConfig), CHOICES, MEANINGS, TTL, WEIGHTS)
    groups['cloud, each fallback server, as fallback.<name>.*'] = specs(ServerConfig)
    lines = []
    for title, parameters in groups.items():
        lines += [f'### {title}', '', table(
            ('parameter', 'default', 'range', 'change', 'meaning'),
            [(f'`{p.name}`', f'`{_yaml(p.default)}`', p.allowed, WHEN[p.changeable],
              p.description) for p in parameters]), '']
    return '\n'.join(lines)


def _yaml(value: object) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix('...\n').strip()
