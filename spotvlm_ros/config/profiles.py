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
"""Profiles: params files, laid over one another and checked against the parameters in `nodes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import difflib
import json
from pathlib import Path

from .nodes import (CameraConfig, CloudNodeConfig, ContextNodeConfig, EdgeConfig, NODE_CONFIGS,
                    QueryConfig, ServerConfig)
from .queries import CHOICES, MEANINGS, read_queries, TTL
from .spec import Lookup, ParameterError, ParameterSpec, read_config, specs, T, Value
from .strict_yaml import read_yaml
from ..method.facts import Query

Section = Mapping[str, object]  # parameters of a node by full name; what it leaves out is default


@dataclass(frozen=True)
class Profile:
    """The checked parameters of all nodes, as the files give them and as the nodes read them."""

    sections: Mapping[str, Section]  # by node

    @property
    def camera(self) -> CameraConfig:
        """Return the parameters of node camera."""
        return self._read('camera', CameraConfig)

    @property
    def edge(self) -> EdgeConfig:
        """Return the parameters of node edge."""
        return self._read('edge', EdgeConfig)

    @property
    def cloud(self) -> CloudNodeConfig:
        """Return the parameters of node cloud."""
        return self._read('cloud', CloudNodeConfig)

    @property
    def context(self) -> ContextNodeConfig:
        """Return the parameters of node context."""
        return self._read('context', ContextNodeConfig)

    def queries(self, node: str = 'edge') -> tuple[Query, ...]:
        """Return the standing questions that a node knows; raise ParameterError."""
        lookup = lookup_in(self.sections[node])
        ids = lookup(next(s for s in specs(EdgeConfig) if s.name == 'queries'), 'queries')
        return read_queries(ids if isinstance(ids, list) else [], lookup)

    def overlaid(self, node: str, values: Section) -> Profile:
        """Return a copy with other values, which are not checked, for some of a node."""
        return Profile({**self.sections, node: {**self.sections[node], **values}})

    def params_file(self) -> str:
        """Return all parameters, defaults included, as a ROS params file for any namespace."""
        return params_file({
            node: {s.name: s.default for s in specs(NODE_CONFIGS[node])} | dict(section)
            for node, section in self.sections.items()})

    def _read(self, node: str, config: type[T]) -> T:
        return read_config(config, lookup_in(self.sections[node]))


def load_profile(name: str, overlays: Sequence[Path] = ()) -> Profile:
    """
    Read a profile, by its name or path, and lay params files over it.

    Raise ParameterError with the file, the parameter and the remedy.
    """
    sections = NOTHING
    for path in (find_profile(name), *overlays):
        sections = check_file(path, sections)
    return Profile(sections)


def find_profile(name: str) -> Path:
    """
    Return the YAML of a profile: a path, or a name in config/ of the source or of share.

    Raise ParameterError that lists the names there are.
    """
    folders = [Path(__file__).resolve().parents[2] / 'config']
    try:
        from ament_index_python.packages import get_package_share_directory
        folders.append(Path(get_package_share_directory('spotvlm_ros')) / 'config')
    except (ImportError, LookupError):
        pass
    candidates = [Path(name), *(f / f'{name}.yaml' for f in folders)]
    path = next((c for c in candidates if c.is_file()), None)
    if path is None:
        names = sorted({p.stem for f in folders for p in f.glob('*.yaml')} - {'embedded_cloud'})
        raise ParameterError(f'no profile {name!r}; give the path of a YAML or one of '
                             f'{", ".join(names)}')
    return path


def params_file(sections: Mapping[str, Section]) -> str:
    """Return parameters of nodes as a ROS params file that holds in any namespace."""
    # ROS cannot tell the type of an empty list, and refuses the aliases of YAML: JSON has none.
    return json.dumps({f'/**/{node}': {'ros__parameters': {
        name: value for name, value in section.items() if value != []}}
        for node, section in sections.items()})


def fallback_prefix(server: str) -> str:
    """Return what stands before the names of the parameters of a fallback server."""
    return f'fallback.{server}.'


NOTHING: Mapping[str, Section] = {node: {} for node in NODE_CONFIGS}


def check_file(path: Path, earlier: Mapping[str, Section] = NOTHING) -> dict[str, Section]:
    """
    Read a ROS params file and check it against the parameters there are.

    ``earlier`` are the parameters of files that this one is laid over. Return the flat parameters
    per node, theirs included; raise ParameterError with the file, the name and the remedy.
    """
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise ParameterError(f'{path}: no sections; start with /**/edge: and ros__parameters: '
                             'below it')
    sections = dict(earlier)
    for title, body in document.items():
        tree = body.get('ros__parameters') if isinstance(body, dict) else None
        if not isinstance(tree, dict):
            raise ParameterError(f'{path}: section {title} has no ros__parameters')
        node = str(title).rsplit('/', 1)[-1]
        if node not in sections and node != '**':
            raise ParameterError(f'{path}: section {title} is for no node of ours; '
                                 f'use /**/ and one of {", ".join(sections)}')
        nodes = tuple(sections) if node == '**' else (node,)
        try:
            base = {name: value for part in nodes for name, value in sections[part].items()}
            flat = _check_section(_flatten(tree), nodes, base)
        except ParameterError as error:
            raise ParameterError(f'{path}: {title}: {error}') from error
        for name in nodes:
            sections[name] = {**sections[name], **flat}
    for node, config in NODE_CONFIGS.items():
        try:
            if 'queries' in {s.name for s in specs(config)}:
                Profile(sections).queries(node)
        except ParameterError as error:
            raise ParameterError(f'{path}: {node}: {error}') from error
    return sections


def check_cameras(profile: Profile) -> None:
    """Raise ParameterError where a question is about a camera that there is not."""
    cameras = list(profile.camera.cameras) or ['']
    for query in profile.queries():
        if query.camera not in cameras:
            raise ParameterError(
                f'{query.id}.camera is {query.camera!r}, and cameras of node camera is '
                f'{cameras if cameras != [""] else "empty"}; name each camera in both places, or '
                'in neither where there is only one')


def lookup_in(section: Section) -> Lookup:
    """Return a lookup of checked values in flat parameters."""
    def lookup(spec: ParameterSpec, name: str) -> Value | None:
        if name not in section:
            return None if spec.optional else spec.default
        return spec.check(section[name], name)
    return lookup


def _check_section(flat: Section, nodes: Sequence[str], base: Section) -> dict[str, object]:
    """Return the section with its values checked; ``base`` is what it is laid over."""
    merged, checked = {**base, **flat}, dict(flat)
    allowed = _allowed(merged, nodes)
    for name, value in flat.items():
        if name in allowed:
            checked[name] = allowed[name].check(value, name)
        elif name != 'use_sim_time' and not name.startswith('qos_overrides.'):
            near = difflib.get_close_matches(
                name, [a for a in allowed if ('.' in a) == ('.' in name)], 1)
            hint = f'; did you mean {near[0]}?' if near else (
                f'; queries is {merged.get("queries", [])} and does not name '
                f'{name.partition(".")[0]!r}' if '.' in name else '')
            raise ParameterError(f'unknown parameter {name}{hint}')
    return checked


def _allowed(merged: Section, nodes: Sequence[str]) -> dict[str, ParameterSpec]:
    """Return the parameters that nodes take, those of their queries and servers included."""
    allowed = {s.name: s for node in nodes for s in specs(NODE_CONFIGS[node])}
    for query_id in _names(merged, 'queries'):
        allowed |= {f'{query_id}.{s.name}': s for s in specs(QueryConfig)}
        for key in _names(merged, f'{query_id}.keys'):
            allowed[f'{query_id}.choices.{key}'] = CHOICES
            allowed[f'{query_id}.ttl_s.{key}'] = TTL
            allowed[f'{query_id}.meanings.{key}'] = MEANINGS
        allowed[f'{query_id}.meanings.{query_id}'] = MEANINGS
        allowed[f'{query_id}.ttl_s.{query_id}'] = allowed[f'{query_id}.ttl_s.default'] = TTL
    for server in _names(merged, 'fallbacks') if 'cloud' in nodes else ():
        allowed |= {fallback_prefix(server) + s.name: s for s in specs(ServerConfig)}
    return allowed


def _names(section: Section, name: str) -> list[str]:
    values = section.get(name, [])
    return [str(v) for v in values] if isinstance(values, list) else []


def _flatten(tree: Mapping[object, object], prefix: str = '') -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f'{prefix}{key}.')
        else:
            flat[f'{prefix}{key}'] = value
    return flat
