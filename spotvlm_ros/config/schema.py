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
"""The parameters as a JSON schema, by which editors complete and check params files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .nodes import NODE_CONFIGS, QueryConfig, ServerConfig
from .queries import CHOICES, MEANINGS, TTL, WEIGHTS
from .spec import ParameterSpec, specs, Value

Schema = dict[str, object]
TYPES: Mapping[type, str] = {bool: 'boolean', int: 'integer', float: 'number', str: 'string'}
# Those of every node of ROS, and names written with points, which only `spotvlm params` can tell.
OF_ROS: Schema = {'use_sim_time': {'type': 'boolean', 'description': 'use the time of /clock'},
                  'start_type_description_service': {'type': 'boolean'},
                  'qos_overrides': {'type': 'object'}}
POINTS: Schema = {'[^.][.][^.]': {}}


def params_schema() -> Schema:
    """Return the schema of a params file: any namespace, nodes of others left alone."""
    nodes = {node: specs(config) for node, config in NODE_CONFIGS.items()}
    definitions = {node: _section(parameters) for node, parameters in nodes.items()}
    definitions['all'] = _section([p for parameters in nodes.values() for p in parameters])
    definitions |= {'query': _query(), 'server': _group(specs(ServerConfig))}
    patterns = {f'(^|/){node}$': {'$ref': f'#/definitions/{node}'} for node in nodes}
    patterns['(^|/)[*][*]?$'] = {'$ref': '#/definitions/all'}
    return {'$schema': 'http://json-schema.org/draft-07/schema#',
            'title': 'Parameters of spotvlm', 'type': 'object', 'definitions': definitions,
            'patternProperties': patterns}


def _section(parameters: Sequence[ParameterSpec]) -> Schema:
    """Return the schema of what stands below the title of a section."""
    group = _group(parameters)
    properties = group['properties']
    assert isinstance(properties, dict)
    properties |= OF_ROS
    if 'queries' in properties:
        group['additionalProperties'] = {'$ref': '#/definitions/query'}
    if 'fallbacks' in properties:
        properties['fallback'] = {'type': 'object',
                                  'additionalProperties': {'$ref': '#/definitions/server'}}
    return {'type': 'object', 'properties': {'ros__parameters': group},
            'required': ['ros__parameters'], 'additionalProperties': False}


def _query() -> Schema:
    """Return the schema of a question, where values may go by key."""
    group = _group(specs(QueryConfig))
    properties = group['properties']
    assert isinstance(properties, dict)
    by_key = {spec.name.partition('.')[0]: {
        'type': 'object', 'description': spec.description, 'additionalProperties': _one(spec)}
        for spec in (CHOICES, TTL, MEANINGS, WEIGHTS)}
    properties |= {**by_key, 'choices': {'anyOf': [properties['choices'], by_key['choices']]}}
    return group


def _group(parameters: Sequence[ParameterSpec]) -> Schema:
    """Return the schema of parameters by name; what two nodes take differently may be either."""
    properties: dict[str, Schema] = {}
    for spec in parameters:
        known, one = properties.get(spec.name), _one(spec)
        properties[spec.name] = one if known in (None, one) else {'anyOf': [known, one]}
    return {'type': 'object', 'properties': properties, 'patternProperties': POINTS,
            'additionalProperties': False}


def _one(spec: ParameterSpec) -> Schema:
    """Return the schema of one value."""
    schema: Schema = {'description': spec.description, 'default': spec.default}
    if spec.choices:
        return {**schema, 'enum': list(spec.choices)}
    bounds = {'minimum': spec.low, 'maximum': spec.high}
    return {**schema, **_type(spec.default),
            **{name: bound for name, bound in bounds.items() if bound is not None}}


def _type(default: Value) -> Schema:
    if isinstance(default, list):
        return {'type': 'array', 'items': {'type': 'string'}}
    return {'type': TYPES[type(default)]}
