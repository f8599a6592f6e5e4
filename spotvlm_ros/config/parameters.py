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
"""
Params files and queries checked against the parameters in `nodes`, and the tables of the docs.

No ROS is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import difflib
from pathlib import Path
from typing import Any

import yaml

from .nodes import NODE_CONFIGS, QueryConfig, ServerConfig
from .spec import Changeable, ParameterError, ParameterSpec, specs
from ..method.facts import Query
from ..system.markdown import table

TABLES: Mapping[str, tuple[ParameterSpec, ...]] = {
    node: specs(config) for node, config in NODE_CONFIGS.items()}
ENDPOINT = specs(ServerConfig)
QUERY = specs(QueryConfig)
CHOICES = ParameterSpec('choices.<key>', [], 'facts only: the allowed values of a fact, quoted strings')
TTL = ParameterSpec('ttl_s.<key>', 5.0, 'a cloud fact is forgotten after [s]; key default for the '
            'others', 0.01, 86400.0)

Get = Callable[[ParameterSpec, str], Any]  # table entry and full name -> checked value


def read_queries(get: Get) -> tuple[Query, ...]:
    """Build the queries from parameters that ``get`` looks up; raise ParameterError."""
    ids = get(_by_name(TABLES['edge'], 'queries'), 'queries')
    if not ids:
        raise ParameterError("queries is empty; name at least one, as in queries: ['scene'], and "
                         'describe it under scene.prompt, scene.format and so on')
    if len(set(ids)) != len(ids):
        raise ParameterError(f'queries names one twice: {ids}')
    return tuple(_read_query(query_id, get) for query_id in ids)


def _read_query(query_id: str, get: Get) -> Query:
    plain = {p.name: get(p, f'{query_id}.{p.name}') for p in QUERY
             if p.name not in ('keys', 'choices')}
    if not plain['prompt']:
        raise ParameterError(f'{query_id}.prompt is empty; write the question there')
    choices: dict[str, tuple[str, ...]] = {}
    if plain['format'] == 'facts':
        keys = get(_by_name(QUERY, 'keys'), f'{query_id}.keys')
        if not keys:
            raise ParameterError(f'{query_id}.keys is empty; name the facts wanted')
        choices = {k: tuple(get(CHOICES, f'{query_id}.choices.{k}')) for k in keys}
    elif plain['format'] == 'choice':
        choices = {query_id: tuple(get(_by_name(QUERY, 'choices'), f'{query_id}.choices'))}
    ttl = {k: get(TTL, f'{query_id}.ttl_s.{k}') for k in (*choices, 'default')}
    default = ttl['default']
    ttl = {k: default if v is None else v for k, v in ttl.items()}
    try:
        return Query(id=query_id, choices=choices,
                     ttl_s={k: TTL.default if v is None else v for k, v in ttl.items()}, **plain)
    except ValueError as error:
        raise ParameterError(str(error)) from error


def fallback_name(name: str, param: str) -> str:
    """Return the full name of a parameter of a fallback server."""
    return f'fallback.{name}.{param}'


def _by_name(table: Iterable[ParameterSpec], name: str) -> ParameterSpec:
    return next(p for p in table if p.name == name)


def check_file(path: Path, earlier: Mapping[str, Mapping[str, Any]] | None = None
               ) -> dict[str, dict[str, Any]]:
    """
    Read a ROS params file and check it against the tables.

    ``earlier`` are the parameters of files that this one is laid over. Return the flat parameters
    per node, theirs included; raise ParameterError with the file, the name and the remedy.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError) as error:
        raise ParameterError(f'{path}: {error}') from error
    if not isinstance(document, dict):
        raise ParameterError(f'{path}: no sections; start with /**/edge: and ros__parameters: '
                         'below it')
    nodes = {node: dict((earlier or {}).get(node, {})) for node in TABLES}
    for section, body in document.items():
        flat = _flatten(body.get('ros__parameters')) if isinstance(body, dict) else None
        node = str(section).rsplit('/', 1)[-1]
        if flat is None:
            raise ParameterError(f'{path}: section {section} has no ros__parameters')
        if node not in TABLES and node != '**':
            raise ParameterError(f'{path}: section {section} is for no node of ours; '
                             f'use /**/ and one of {", ".join(TABLES)}')
        targets = tuple(TABLES) if node == '**' else (node,)
        try:
            flat = _check_section(flat, targets, {} if node == '**' else nodes[node])
        except ParameterError as error:
            raise ParameterError(f'{path}: {section}: {error}') from error
        for target in targets:
            nodes[target].update(flat)
    for node, flat in nodes.items():
        if any(p.name == 'queries' for p in TABLES[node]):
            try:
                read_queries(lambda p, name: lookup(flat, p, name))
            except ParameterError as error:
                raise ParameterError(f'{path}: {node}: {error}') from error
    return nodes


def lookup(flat: Mapping[str, Any], param: ParameterSpec, name: str) -> Any:
    """Return a checked value from flat parameters; None for an absent time to live."""
    if name not in flat:
        return None if param is TTL else param.default
    return param.check(flat[name], name)


def _check_section(flat: Mapping[str, Any], nodes: tuple[str, ...],
                   base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section with its values checked; ``base`` is what it is laid over."""
    both, checked = {**base, **flat}, dict(flat)
    ids = both.get('queries', [])
    known: dict[str, ParameterSpec] = {p.name: p for node in nodes for p in TABLES[node]}
    for query_id in ids if isinstance(ids, list) else ():
        known |= {f'{query_id}.{p.name}': p for p in QUERY}
        keys = both.get(f'{query_id}.keys', [])
        for key in keys if isinstance(keys, list) else ():
            known[f'{query_id}.choices.{key}'] = CHOICES
            known[f'{query_id}.ttl_s.{key}'] = TTL
        known[f'{query_id}.ttl_s.{query_id}'] = known[f'{query_id}.ttl_s.default'] = TTL
    servers = both.get('fallbacks', []) if 'cloud' in nodes else []
    for server in servers if isinstance(servers, list) else ():
        known |= {fallback_name(server, p.name): p for p in ENDPOINT}
    for name, value in flat.items():
        if name in known:
            checked[name] = known[name].check(value, name)
        elif name != 'use_sim_time' and not name.startswith('qos_overrides.'):
            near = difflib.get_close_matches(name, known, 1)
            group = name.partition('.')[0]
            hint = f'; did you mean {near[0]}?' if near else (
                f'; queries is {ids} and does not name {group!r}' if '.' in name else '')
            raise ParameterError(f'unknown parameter {name}{hint}')
    return checked


def _flatten(tree: Any, prefix: str = '') -> dict[str, Any] | None:
    if not isinstance(tree, dict):
        return None
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f'{prefix}{key}.') or {}
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix('...\n').strip()


def markdown() -> str:
    """Return the tables of all parameters for the README."""
    lines = []
    groups = {**TABLES, 'each query, as <id>.*': (*QUERY, CHOICES, TTL)}
    groups['cloud, each fallback server, as fallback.<name>.*'] = ENDPOINT
    for title, params in groups.items():
        lines += [f'### {title}', '', table(
            ('parameter', 'default', 'range', 'change', 'meaning'),
            [(f'`{p.name}`', f'`{_yaml(p.default)}`', p.allowed, _WHEN[p.changeable],
              p.description) for p in params]), '']
    return '\n'.join(lines)


_WHEN: Mapping[Changeable, str] = {
    'at_start': 'at start', 'before_configure': 'before configure',
    'while_running': 'while running'}
MARKS = ('<!-- parameters: made by `spotvlm params --update README.md` -->',
         '<!-- end of parameters -->')
