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
What a request says: the question, the form of the reply in words, and the same form as a schema.

Words and schema always ask for the same thing. The schema's root is an object, all properties are
required and nothing else is allowed: what the strictest servers demand. ``parse`` reads such
replies, and the free ones of servers that know no schemas.
"""

from __future__ import annotations

from ..config.nodes import BoxScale, ServerConfig
from ..method.facts import Query
from ..method.prompt import cloud_question

FACTS = 'facts'  # name of the list in the reply
KEYS_ARE = 'Keys, each with its possible values:'
_SCALES: dict[BoxScale, str] = {
    'relative': 'from 0 to 1000 of the width and height of the image',
    'pixels': 'in pixels of the image'}


def ask_text(query: Query, config: ServerConfig, structured: bool) -> str:
    """Return what a server is asked; ``structured``: beside the schema of `response_format`."""
    if config.reply_form:
        return cloud_question(query, config.reply_form if query.format == 'facts' else '')
    return cloud_question(query, reply_form(query, config.box_scale, structured), KEYS_ARE)


def reply_form(query: Query, box_scale: BoxScale, structured: bool) -> str:
    """Return how to reply, in words; '' for free text."""
    if query.format == 'text':
        return ''
    if query.format == 'choice':
        return f'Reply as a JSON object: {{"{query.id}": the one that holds}}' if structured else \
            'Reply with the one that holds and nothing else.'
    entry = '{"label": key, "bbox_2d": [x1, y1, x2, y2], "value": value}'
    lines = [f'Reply as a JSON object with one entry per key: {{"{FACTS}": [{entry}, ...]}}'
             if structured else f'Reply as a JSON list with one object per key: [{entry}, ...]',
             'bbox_2d: where it is seen, as left, top, right, bottom, '
             f'{_SCALES[box_scale]}; {"null" if structured else "left out"} where it is nowhere.']
    if any('none' in values for values in query.choices.values()):
        lines.append('A value "none" says that the image shows nothing of the kind; name the key '
                     'all the same.')
    return '\n'.join(lines)


def response_format(query: Query) -> dict[str, object] | None:
    """Return the ``response_format`` of a request; None for free text."""
    if query.format == 'text':
        return None
    if query.format == 'choice':
        return values_format(query)
    return _schema({FACTS: {'type': 'array', 'items': {
        'anyOf': [_fact(key, values) for key, values in query.choices.items()]}}})


def values_format(query: Query) -> dict[str, object]:
    """Return the ``response_format`` of a reply that is an object of a value for each key."""
    return _schema({key: {'type': 'string', 'enum': list(values)}
                    for key, values in query.choices.items()})


def _schema(properties: dict[str, object]) -> dict[str, object]:
    return {'type': 'json_schema', 'json_schema': {
        'name': 'answer', 'strict': True, 'schema': _object(properties)}}


def _fact(key: str, values: tuple[str, ...]) -> dict[str, object]:
    box = {'type': 'array', 'items': {'type': 'number'}}
    return _object({'label': {'type': 'string', 'enum': [key]},
                    'bbox_2d': {'anyOf': [box, {'type': 'null'}]},
                    'value': {'type': 'string', 'enum': list(values)}})


def _object(properties: dict[str, object]) -> dict[str, object]:
    return {'type': 'object', 'properties': properties, 'required': list(properties),
            'additionalProperties': False}
