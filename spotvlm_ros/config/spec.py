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
What a parameter is: a field of a dataclass, with its help, range and time of change as metadata.

The field gives name, type and default; a ``Literal`` type gives the choices. So the dataclasses
in `nodes` are the only place that names a parameter: nodes declare from them, params files are
checked against them, and the tables of docs/parameters.md are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import get_args, get_origin, get_type_hints, Literal, TypeVar

Changeable = Literal['at_start', 'before_configure', 'while_running']
Value = bool | int | float | str | list[str]  # what ROS can hold of it
T = TypeVar('T')
_specs: dict[type, tuple[ParameterSpec, ...]] = {}  # hints are slow to read

_KINDS = {str: 'a string', bool: 'true or false', int: 'a whole number', float: 'a number'}


class ParameterError(ValueError):
    """A parameter that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter; the default's type is its type. A list holds strings."""

    name: str
    default: Value
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    changeable: Changeable = 'before_configure'
    sources: tuple[str, ...] = ()  # of node camera, which alone read it; empty: all do
    optional: bool = False  # absent means absent, not the default

    def check(self, value: object, name: str = '') -> Value:
        """
        Return the value, whole numbers widened to floats where one is wanted.

        ``name`` is the full name for messages where it is not the field's, as `fallback.b.model`.
        Raise ParameterError that names the parameter, the value and what would do.
        """
        name = name or self.name
        kind = type(self.default)
        if kind is list:
            return _strings(value, name)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or not isinstance(value, (bool, int, float, str)):
            raise ParameterError(f'{name} must be {_KINDS[kind]}, got {value!r}')
        if self.choices and value not in self.choices:
            raise ParameterError(f'{name} is {value!r}; use one of {", ".join(self.choices)}')
        if isinstance(value, (int, float)) and not (
                (self.low is None or value >= self.low)
                and (self.high is None or value <= self.high)):
            raise ParameterError(f'{name} is {value}; use {self.allowed}')
        return value

    @property
    def allowed(self) -> str:
        """Return the range in words, '' without one."""
        if self.choices:
            return ', '.join(self.choices)
        if self.high is not None:
            return f'{self.low:g} to {self.high:.10g}'
        return '' if self.low is None else f'at least {self.low:g}'


Lookup = Callable[[ParameterSpec, str], Value | None]
"""Parameter and full name -> its checked value; None only where it is optional and absent."""


def _strings(value: object, name: str) -> list[str]:
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    strings = [v for v in items if isinstance(v, str)]
    if not isinstance(value, (list, tuple)) or len(strings) < len(items):
        odd = next((v for v in items if not isinstance(v, str)), value)
        raise ParameterError(
            f'{name} must be a list of strings, got {value!r}; put quotes around numbers, yes '
            f"and no, as in ['{odd}']")
    return strings


def parameter(default: T, description: str, low: float | None = None, high: float | None = None,
              changeable: Changeable = 'before_configure', sources: tuple[str, ...] = ()) -> T:
    """Return a dataclass field that `specs` reads back as a ParameterSpec."""
    return field(default=default, metadata={
        'description': description, 'low': low, 'high': high, 'changeable': changeable,
        'sources': sources})


def specs(config: type) -> tuple[ParameterSpec, ...]:
    """Return the parameters of a dataclass made of `parameter` fields, in their order."""
    if config not in _specs:
        hints = get_type_hints(config)
        _specs[config] = tuple(ParameterSpec(
            f.name, _default(f.default),
            choices=get_args(hints[f.name]) if get_origin(hints[f.name]) is Literal else (),
            **f.metadata) for f in fields(config))
    return _specs[config]


def _default(value: object) -> Value:
    if isinstance(value, tuple):
        return list(value)
    assert isinstance(value, (bool, int, float, str))
    return value


def read_config(config: type[T], lookup: Lookup, prefix: str = '',
                without: Collection[str] = ()) -> T:
    """
    Return a dataclass of `parameter` fields with the values that ``lookup`` finds.

    ``prefix`` stands before the names, as ``scene.``; fields ``without`` keep their default.
    ParameterError of the lookup passes.
    """
    values = {spec.name: lookup(spec, prefix + spec.name) for spec in specs(config)
              if spec.name not in without}
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
