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
"""Parameters of a node: the fields of a dataclass, and those of its queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypedDict, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, \
    SetParametersResult
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from typing_extensions import Unpack  # Python 3.10 has none

from ..config.nodes import NodeConfig, QueriesConfig
from ..config.queries import query_parameters, read_queries
from ..config.spec import ParameterError, ParameterSpec, read_config, specs, Value
from ..method.facts import Query

Config = TypeVar('Config', bound=NodeConfig, covariant=True)
T = TypeVar('T')


class NodeOptions(TypedDict, total=False):
    """What a node of ours hands on to rclpy's Node."""

    namespace: str
    parameter_overrides: list[Parameter]


class ParameterNode(LifecycleNode, Generic[Config]):
    """
    A lifecycle node whose parameters are the fields of a dataclass.

    ``config`` holds their present, checked values; a change puts a new one in its place.
    """

    def __init__(self, name: str, config: type[Config],
                 **options: Unpack[NodeOptions]) -> None:
        """Declare the parameters of ``config``."""
        super().__init__(name, **options)
        self._specs = {s.name: s for s in specs(config)}  # by full name, of queries too
        self._values: dict[str, Value] = {}
        self.last_failure = ''  # why the last transition failed
        self._param_errors: dict[str, str] = {}  # until they are mended, by full name
        for spec in specs(config):
            self._declare(spec, spec.name)
        self.config = self.read(config)
        self.add_on_set_parameters_callback(self._on_set)

    def read(self, config: type[T], prefix: str = '') -> T:
        """Return a group of parameters, declared when first read; raise ParameterError."""
        return read_config(config, self._lookup, prefix)

    def queries(self, config: QueriesConfig) -> tuple[Query, ...]:
        """Declare and read the parameters of the queries; raise ParameterError."""
        return read_queries(config.queries, self._lookup)

    def query_parameters(self) -> dict[str, Value]:
        """Return the parameters about queries, as given or as set since."""
        given = {name: parameter.value for name, parameter in self._parameter_overrides.items()}
        return query_parameters({k: v for k, v in {**given, **self._values}.items()
                                 if v is not None})

    def replace_parameters(self, values: Mapping[str, Value]) -> None:
        """Have other parameters about queries, checked ones, whatever the state."""
        for name in self.query_parameters().keys() - values.keys():
            if self.has_parameter(name):
                self.undeclare_parameter(name)
            self._values.pop(name, None)
            self._specs.pop(name, None)
            self._param_errors.pop(name, None)
            self._parameter_overrides.pop(name, None)
        for name, value in values.items():
            self._parameter_overrides[name] = typed = _typed(name, value)
            if self._values.get(name, value) != value:
                spec = self._specs.pop(name)  # what is not known here passes `_on_set`
                self._values[name] = value
                self.set_parameters([typed])
                self._specs[name] = spec
        self.config = self.read(type(self.config))

    def _lookup(self, spec: ParameterSpec, name: str) -> Value | None:
        return self._values[name] if name in self._values else self._declare(spec, name)

    def _declare(self, spec: ParameterSpec, name: str) -> Value | None:
        """Declare one parameter; return its checked value, or raise ParameterError."""
        # Typed by our own check: rclpy's own errors name neither range nor remedy.
        given = self._parameter_overrides.get(name)
        given = None if given is None else given.value
        if spec.optional and given is None:
            return None
        value, wrong = spec.default, None
        try:
            value = spec.default if given is None else spec.check(given, name)
        except ParameterError as error:  # it is declared all the same, so that it can be mended
            wrong, self._param_errors[name] = error, str(error)
        of_query = name not in self._specs
        typed = _typed(name, value)
        if not self.has_parameter(name):
            self.declare_parameter(name, typed.value, _descriptor(spec), ignore_override=True)
        self._values[name] = value
        self._specs.setdefault(name, spec)
        if wrong is not None and of_query:
            raise wrong
        return value

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        checked = {}
        for parameter in parameters:
            spec = self._specs.get(parameter.name)
            if spec is None:
                continue
            try:
                checked[parameter.name] = spec.check(parameter.value, parameter.name)
            except ParameterError as error:
                return SetParametersResult(successful=False, reason=str(error))
            state = self._state_machine.current_state[1]
            if spec.changeable == 'before_configure' and state not in (
                    'unconfigured', 'configuring'):
                return SetParametersResult(successful=False, reason=f'{parameter.name} is read '
                                           'at configure; deactivate and clean up the node first')
        for name in checked:
            mended = self._param_errors.pop(name, '')
            if mended and mended in self.last_failure:
                self.last_failure = ''
        if checked:
            self._values.update(checked)
            self.config = self.read(type(self.config))
        return SetParametersResult(successful=True)


def _typed(name: str, value: Value) -> Parameter:
    # An empty list has no type in ROS, so a parameter that holds one has no value there.
    return Parameter(name, Parameter.Type.STRING_ARRAY, value) \
        if isinstance(value, list) else Parameter(name, value=value)


def _descriptor(spec: ParameterSpec) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(
        description=spec.description + (f'; {spec.allowed}' if spec.choices else ''),
        read_only=spec.changeable == 'at_start', dynamic_typing=True)
    if type(spec.default) is int and spec.high is not None:
        descriptor.integer_range = [IntegerRange(
            from_value=int(spec.low or 0), to_value=int(spec.high), step=0)]
    elif type(spec.default) is float and spec.high is not None:
        descriptor.floating_point_range = [FloatingPointRange(
            from_value=float(spec.low or 0.0), to_value=float(spec.high), step=0.0)]
    return descriptor
