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

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
import difflib
import json
from pathlib import Path

import yaml

from .nodes import (CameraConfig, CloudNodeConfig, ContextNodeConfig, EdgeConfig, NODE_CONFIGS,
                    QueryConfig, ServerConfig)
from .queries import CHOICES, MEANINGS, read_queries, TTL, WEIGHTS
from .sections import ANYWHERE, Names, titled
from .spec import Lookup, ParameterError, ParameterSpec, read_config, specs, T, Value
from .strict_yaml import read_yaml
from ..method.facts import Query

Section = Mapping[str, object]  # parameters of a node by full name; what it leaves out is default

REMAP = '; another image topic is said by -r image:=/camera/image_raw'
LAYERS = {'embedded_cloud', 'recorded'}  # files of config/ that are no profiles
COMMON = ('use_sim_time', 'start_type_description_service')  # of every node of ROS


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

    def with_values(self, rules: Sequence[str], names: Names = ANYWHERE,
                    values: bool = True) -> Profile:
        """Return a copy with values of a command line, as `read_rule` reads them."""
        sections = self.sections
        for rule in rules:
            try:
                sections = lay(sections, *read_rule(rule, names), values)
            except ParameterError as error:
                raise ParameterError(f'-p {rule}: {error}') from error
        for rule in rules:
            _check_effect(rule, *read_rule(rule, names), sections)
        return Profile(sections)

    def params_file(self, names: Names = ANYWHERE) -> str:
        """
        Return all parameters, defaults included, as a ROS params file.

        Those of queries and servers that a file laid over the profile names no more are left out.
        """
        return params_file({
            node: {s.name: s.default for s in specs(NODE_CONFIGS[node])} | {
                name: value for name, value in section.items() if name in _allowed(section, node)
                or name in COMMON or name.startswith('qos_overrides.')}
            for node, section in self.sections.items()}, names)

    def _read(self, node: str, config: type[T]) -> T:
        return read_config(config, lookup_in(self.sections[node]))


def load_profile(name: str, overlays: Sequence[Path] = (), names: Names = ANYWHERE) -> Profile:
    """
    Read a profile, by its name or path, and lay params files over it.

    ``names`` are those of the nodes that it is for. Raise ParameterError with the file, the
    parameter and the remedy.
    """
    sections = NOTHING
    for path in (find_profile(name), *overlays):
        sections = check_file(path, sections, names)
    return Profile(sections)


def find_profile(name: str) -> Path:
    """
    Return the YAML of a profile: a path, or a name in config/ of the source or of share.

    Raise ParameterError that lists the names there are.
    """
    candidates = [Path(name), *(f / f'{name}.yaml' for f in _folders())]
    path = next((c for c in candidates if c.is_file()), None)
    if path is None:
        raise ParameterError(f'no profile {name!r}; give the path of a YAML or one of '
                             f'{", ".join(profile_names())}')
    return path


def profile_names() -> list[str]:
    """Return the names of the profiles there are in config/."""
    return sorted({str(p.relative_to(f).with_suffix('')) for f in _folders()
                   for p in (*f.glob('*.yaml'), *f.glob('real/*.yaml'))} - LAYERS)


def _folders() -> list[Path]:
    """Return config/ of the source and of share."""
    folders = [Path(__file__).resolve().parents[2] / 'config']
    try:
        from ament_index_python.packages import get_package_share_directory
        folders.append(Path(get_package_share_directory('spotvlm_ros')) / 'config')
    except (ImportError, LookupError):
        pass
    return folders


def check_overlay(path: Path, profile: str = '') -> list[str]:
    """
    Check a params file by itself or, where it names no queries, as it is laid over profiles.

    Return those over which it is fine: of all there are, or ``profile`` alone; none where it
    stands by itself. Raise ParameterError where it is wrong over each.
    """
    if not profile and _names_queries(path):
        check_file(path)
        return []
    fine, problems = [], []
    for name in [profile] if profile else profile_names():
        try:
            load_profile(name, [path])
            fine.append(name)
        except ParameterError as error:
            problems.append(error if profile else ParameterError(
                f'{error} (as it is laid over {name}; --profile NAME checks over another)'))
    if not fine:
        raise problems[0]
    return fine


def _names_queries(path: Path) -> bool:
    document = read_yaml(path)
    try:
        return isinstance(document, dict) and any(
            'queries' in flatten(tree) for _, tree in titled(document))
    except ParameterError:  # of the sections: `check_file` says in which file
        return True


def params_file(sections: Mapping[str, Section], names: Names = ANYWHERE) -> str:
    """Return parameters of nodes as a ROS params file, in any namespace if names has none."""
    # ROS cannot tell the type of an empty list, and refuses the aliases of YAML: JSON has none.
    return json.dumps({names.title(node): {'ros__parameters': {
        name: value for name, value in section.items() if value != []}}
        for node, section in sections.items()})


def fallback_prefix(server: str) -> str:
    """Return what stands before the names of the parameters of a fallback server."""
    return f'fallback.{server}.'


NOTHING: Mapping[str, Section] = {node: {} for node in NODE_CONFIGS}


def check_file(path: Path, earlier: Mapping[str, Section] = NOTHING, names: Names = ANYWHERE,
               values: bool = True) -> dict[str, Section]:
    """
    Read a ROS params file and check it against the parameters there are.

    ``earlier`` are the parameters of files that this one is laid over; without ``values`` only
    names are checked. Sections for nodes of others are left alone. Return the flat parameters
    per node, earlier ones included; raise ParameterError with the file, the name and the remedy.
    """
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise ParameterError(f'{path}: no sections; start with /**/edge: and ros__parameters: '
                             'below it')
    sections, addressed, others = dict(earlier), set(), {}
    try:
        for title, tree in titled(document):
            flat, nodes = flatten(tree), names.find(title)
            if not nodes:
                others[title] = flat
                continue
            addressed |= set() if title.strip('/') == '**' else set(nodes)
            try:
                sections = lay(sections, nodes, flat, values)
            except ParameterError as error:
                raise ParameterError(f'{title}: {error}') from error
        for title, flat in others.items():
            _check_others(title, flat, sections, names, addressed)
        for node, config in NODE_CONFIGS.items() if values else ():
            try:
                if 'queries' in {s.name for s in specs(config)}:
                    Profile(sections).queries(node)
            except ParameterError as error:
                raise ParameterError(f'{node}: {error}') from error
    except ParameterError as error:
        raise ParameterError(f'{path}: {error}') from error
    return sections


def _check_others(title: str, flat: Section, sections: Mapping[str, Section], names: Names,
                  addressed: Collection[str]) -> None:
    """Raise ParameterError where a section for no node of ours was meant for one."""
    node = names.meant(title, addressed)
    allowed = {name for n in names.here for name in _allowed({**sections[n], **flat}, n)}
    ours = sum(bool(difflib.get_close_matches(name, allowed, 1, 0.8)) for name in flat)
    if node and 2 * ours > len(flat):
        is_here = f': {node} is {names.title(node)} here' if names.full else ''
        raise ParameterError(f'section {title} is for no node of ours{is_here}; did you mean '
                             f'/**/{names.title(node).rpartition("/")[2]}?')


def _check_effect(rule: str, nodes: Sequence[str], flat: Section,
                  sections: Mapping[str, Section]) -> None:
    """Raise ParameterError for what node camera, with its source, does not read."""
    source = sections['camera'].get('source', CameraConfig.source)
    for spec in specs(CameraConfig):
        others = [n for n in nodes if n != 'camera' and spec.name in _allowed(sections[n], n)]
        if spec.name in flat and 'camera' in nodes and not others and \
                source not in (spec.sources or (source,)):
            raise ParameterError(
                f'-p {rule} has no effect with source {source}, only with '
                f'{", ".join(spec.sources)}{REMAP if source == "topic" else ""}')


def check_cameras(profile: Profile) -> None:
    """Raise ParameterError for a question about a camera there is not, and for unread topic."""
    if profile.camera.source == 'topic' and profile.camera.topic:
        raise ParameterError(f'camera.topic has no effect with source topic, only bag{REMAP}')
    cameras = list(profile.camera.cameras) or ['']
    for name, camera in [*((f'{q.id}.camera', q.camera) for q in profile.queries()),
                         *(('edge.cameras', c) for c in profile.edge.cameras)]:
        if camera not in cameras:
            raise ParameterError(
                f'{name} is {camera!r}, and cameras of node camera is '
                f'{cameras if cameras != [""] else "empty"}; name each camera in both places, or '
                'in neither where there is only one')


def lookup_in(section: Section) -> Lookup:
    """Return a lookup of checked values in flat parameters."""
    def lookup(spec: ParameterSpec, name: str) -> Value | None:
        if name not in section:
            return None if spec.optional else spec.default
        return spec.check(section[name], name)
    return lookup


def read_rule(rule: str, names: Names = ANYWHERE) -> tuple[tuple[str, ...], Section]:
    """
    Return the nodes and the parameters that ``NODE.NAME:=VALUE`` sets, VALUE being YAML.

    ``NODE:NAME`` is the same, and without NODE it is for every node that has the parameter.
    """
    name, assigned, text = rule.partition(':=')
    if not assigned or not name:
        raise ParameterError('write NODE.NAME:=VALUE')
    try:
        value = yaml.safe_load(text) if text else ''
    except (yaml.YAMLError, ValueError) as error:
        raise ParameterError(str(error)) from error
    called = {names.title(node).rpartition('/')[2]: node for node in names.here}
    node, mark, rest = (name.partition(':') if ':' in name else name.partition('.'))
    if mark and (node in called or node in NODE_CONFIGS or mark == ':'):
        if called.get(node, node) not in names.here:
            raise ParameterError(f'node {node} is not here; use one of {", ".join(called)}')
        return (called.get(node, node),), flatten({rest: value})
    return names.here, flatten({name: value})


def lay(sections: Mapping[str, Section], nodes: Sequence[str], flat: Section,
        values: bool = True) -> dict[str, Section]:
    """
    Return the sections with parameters laid over those of some nodes, each what it takes.

    Raise ParameterError for a parameter that none of them takes and, with ``values``, for a value
    that will not do; without, a value is left as it is where ROS can carry it.
    """
    merged = {node: {**section, **flat} for node, section in sections.items()}
    allowed = {node: _allowed(merged[node], node) for node in nodes}
    over: dict[str, dict[str, object]] = {node: {} for node in nodes}
    for name, value in flat.items():
        takers = [node for node in nodes if name in allowed[node]]
        if name in COMMON and not isinstance(value, bool):
            raise ParameterError(f'{name} must be true or false, got {value!r}')
        if name in COMMON or name.startswith('qos_overrides.'):
            over = {node: {**over[node], name: value} for node in nodes}
        elif not takers:
            raise ParameterError(_unknown(name, merged, allowed))
        # device is a number to node camera and a name to node edge.
        one_kind = len({type(allowed[node][name].default) for node in takers}) == 1
        problem: ParameterError | None = None
        for node in takers:
            try:
                over[node][name] = allowed[node][name].check(value, name)
            except ParameterError as error:
                if values or not one_kind or not isinstance(value, (bool, int, float, str)):
                    problem = error
                else:
                    over[node][name] = value
        if problem and (one_kind or not any(name in over[node] for node in takers)):
            raise problem
    return {**sections, **{node: {**sections[node], **over[node]} for node in nodes}}


def _unknown(name: str, merged: Mapping[str, Section],
             allowed: Mapping[str, Mapping[str, ParameterSpec]]) -> str:
    """Return what is wrong with a parameter that no node takes of those that it is given to."""
    known = {n for names in allowed.values() for n in names if ('.' in n) == ('.' in name)}
    near = difflib.get_close_matches(name, known, 1)
    owners = [n for n in merged if n not in allowed and name in _allowed(merged[n], n)]
    if owners:
        hint = f'; it is one of node {" and ".join(owners)}'
    elif near:
        hint = f'; did you mean {near[0]}?'
    elif '.' in name:
        queries = dict.fromkeys(q for n in allowed for q in _names(merged[n], 'queries'))
        hint = f'; queries is {list(queries)} and does not name {name.partition(".")[0]!r}'
    else:
        nodes = f'node {next(iter(allowed))}' if len(allowed) == 1 else 'no node'
        hint = f'; {nodes} has {"no " * (len(allowed) == 1)}such a one, see spotvlm params'
    return f'unknown parameter {name}{hint}'


def _allowed(section: Section, node: str) -> dict[str, ParameterSpec]:
    """Return the parameters that a node takes, those of its queries and servers included."""
    allowed = {s.name: s for s in specs(NODE_CONFIGS[node])}
    for query_id in _names(section, 'queries') if 'queries' in allowed else ():
        allowed |= {f'{query_id}.{s.name}': s for s in specs(QueryConfig)}
        for key in _names(section, f'{query_id}.keys'):
            allowed[f'{query_id}.choices.{key}'] = CHOICES
            allowed[f'{query_id}.ttl_s.{key}'] = TTL
            allowed[f'{query_id}.meanings.{key}'] = MEANINGS
            allowed[f'{query_id}.weights.{key}'] = WEIGHTS
        allowed[f'{query_id}.meanings.{query_id}'] = MEANINGS
        allowed[f'{query_id}.weights.{query_id}'] = WEIGHTS
        allowed[f'{query_id}.ttl_s.{query_id}'] = allowed[f'{query_id}.ttl_s.default'] = TTL
    for server in _names(section, 'fallbacks') if 'fallbacks' in allowed else ():
        allowed |= {fallback_prefix(server) + s.name: s for s in specs(ServerConfig)}
    return allowed


def _names(section: Section, name: str) -> list[str]:
    values = section.get(name, [])
    return [str(v) for v in values] if isinstance(values, list) else []


def allowed_names(section: Section, node: str) -> Collection[str]:
    """Return the names of the parameters that a node takes, those of its queries included."""
    return _allowed(section, node).keys()


def flatten(tree: Mapping[object, object], prefix: str = '') -> dict[str, object]:
    """Return the parameters of groups within groups by their full names."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[f'{prefix}{key}'] = value
    return flat
