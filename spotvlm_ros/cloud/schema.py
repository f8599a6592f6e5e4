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
The JSON schema that a server is asked to hold its reply to.

The root is an object, all properties are required and nothing else is allowed: what the strictest
servers demand. ``parse`` reads such replies, and the free ones of servers that know no schemas.
"""

from __future__ import annotations

from ..method.facts import Query

FACTS = 'facts'  # name of the list in the reply


def response_format(query: Query) -> dict[str, object] | None:
    """Return the ``response_format`` of a request; None for free text."""
    if query.format == 'text':
        return None
    if query.format == 'choice':
        body = _object({query.id: {'type': 'string', 'enum': list(query.choices[query.id])}})
    else:
        body = _object({FACTS: {'type': 'array', 'items': {
            'anyOf': [_fact(key, values) for key, values in query.choices.items()]}}})
    return {'type': 'json_schema',
            'json_schema': {'name': 'answer', 'strict': True, 'schema': body}}


def _fact(key: str, values: tuple[str, ...]) -> dict[str, object]:
    box = {'type': 'array', 'items': {'type': 'number'}}
    return _object({'label': {'type': 'string', 'enum': [key]},
                    'bbox_2d': {'anyOf': [box, {'type': 'null'}]},
                    'value': {'type': 'string', 'enum': list(values)}})


def _object(properties: dict[str, object]) -> dict[str, object]:
    return {'type': 'object', 'properties': properties, 'required': list(properties),
            'additionalProperties': False}
