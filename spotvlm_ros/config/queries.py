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
"""Standing questions from the flat parameters ``<id>.*``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math

from .nodes import QueryConfig
from .spec import Lookup, ParameterError, ParameterSpec, read_config, specs, Value
from ..method.facts import CloudWording, Query
from ..method.stacking import NAMES

CHOICES = ParameterSpec('choices.<key>', [], 'facts only: the allowed values of a fact, quoted '
                        'strings')
DEFAULT_TTL_S = 5.0
TTL = ParameterSpec('ttl_s.<key>', DEFAULT_TTL_S, 'a cloud fact is forgotten after [s]; key '
                    'default for the others', 0.01, 86400.0, optional=True)
MEANINGS = ParameterSpec('meanings.<key>', [], 'what values mean, told to the cloud alone, each '
                         "'<value>: <meaning>'; <key> of a choice is the query's id")
WEIGHTS = ParameterSpec('weights.<key>', [], 'whom to believe of a fact, as spotvlm calibrate '
                        "writes it, each '<name>: <number>' with a name of "
                        f'{", ".join(NAMES)}; empty: begin with the guard')
UNREAD = {'facts': ('choices',), 'choice': ('keys',), 'text': ('keys', 'choices')}


def read_queries(ids: Sequence[str], lookup: Lookup) -> tuple[Query, ...]:
    """Return the queries of these ids; raise ParameterError."""
    if not ids:
        raise ParameterError("queries is empty; name at least one, as in queries: ['scene'], and "
                             'describe it under scene.prompt, scene.format and so on')
    if len(set(ids)) != len(ids):
        raise ParameterError(f'queries names one twice: {list(ids)}')
    return tuple(_read_query(query_id, lookup) for query_id in ids)


def query_parameters(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return those of a node's parameters that are about queries."""
    ids = query_ids(values)
    return {name: value for name, value in values.items()
            if name == 'queries' or '.' in name and name.partition('.')[0] in ids}


def query_ids(values: Mapping[str, object]) -> list[str]:
    """Return the ids of the queries in a node's parameters."""
    ids = values.get('queries', [])
    return [str(i) for i in ids] if isinstance(ids, (list, tuple)) else []


def _read_query(query_id: str, lookup: Lookup) -> Query:
    form = lookup(next(s for s in specs(QueryConfig) if s.name == 'format'), f'{query_id}.format')
    config = read_config(QueryConfig, lookup, f'{query_id}.', without=UNREAD[str(form)])
    if not config.prompt:
        raise ParameterError(f'{query_id}.prompt is empty; write the question there')
    choices = {query_id: config.choices} if config.format == 'choice' else {}
    if config.format == 'facts':
        if not config.keys:
            raise ParameterError(f'{query_id}.keys is empty; name the facts wanted')
        choices = {key: _strings(lookup, CHOICES, f'{query_id}.choices.{key}')
                   for key in config.keys}
    ttl_s = {key: _seconds(lookup, f'{query_id}.ttl_s.{key}') for key in (*choices, 'default')}
    default = ttl_s['default'] or DEFAULT_TTL_S
    meanings = {key: _meanings(lookup, f'{query_id}.meanings.{key}') for key in choices}
    weights = {key: _weights(lookup, f'{query_id}.weights.{key}') for key in choices}
    try:
        return Query(
            query_id, config.prompt, config.format, choices, rate_hz=config.rate_hz,
            deadline_s=config.deadline_s, cloud_period_s=config.cloud_period_s,
            ttl_s={key: seconds or default for key, seconds in ttl_s.items()},
            max_new_tokens=config.max_new_tokens, context_tokens=config.context_tokens,
            camera=config.camera, harm_at_most=config.harm_at_most,
            cautious=config.cautious,
            cloud=CloudWording(config.cloud_prompt, {k: m for k, m in meanings.items() if m},
                               config.cloud_examples, config.language),
            weights={k: w for k, w in weights.items() if w})
    except ValueError as error:
        raise ParameterError(str(error)) from error


def _meanings(lookup: Lookup, name: str) -> dict[str, str]:
    """Return what values mean, by value."""
    meanings = {}
    for text in _strings(lookup, MEANINGS, name):
        value, colon, meaning = text.partition(':')
        if not colon or not meaning.strip():
            raise ParameterError(f"{name} holds {text!r}; write '<value>: <meaning>', as in "
                                 "['red: we must stop']")
        meanings[value.strip()] = meaning.strip()
    return meanings


def _weights(lookup: Lookup, name: str) -> dict[str, float]:
    """Return weights by name."""
    weights = {}
    for text in _strings(lookup, WEIGHTS, name):
        weight, _, number = text.partition(':')
        try:
            weights[weight.strip()] = float(number)
        except ValueError:
            weights[''] = 0.0
        if not set(weights) <= set(NAMES) or not math.isfinite(weights[weight.strip()]):
            raise ParameterError(f"{name} holds {text!r}; write '<name>: <number>' with one of "
                                 f'{", ".join(NAMES)}, as spotvlm calibrate does')
    return weights


def _strings(lookup: Lookup, spec: ParameterSpec, name: str) -> tuple[str, ...]:
    values = lookup(spec, name)
    assert isinstance(values, list)  # as the default
    return tuple(values)


def _seconds(lookup: Lookup, name: str) -> float | None:
    seconds = lookup(TTL, name)
    assert seconds is None or isinstance(seconds, float)  # as the default
    return seconds
