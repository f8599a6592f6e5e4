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
"""Standing questions that change while the nodes run: what differs from their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
import re
import unicodedata

import yaml

from .profiles import allowed_names, flatten, lay, NOTHING, Profile, Section
from .queries import query_ids
from .spec import ParameterError
from .strict_yaml import parse_yaml
from ..method.facts import Query
from ..method.prompt import neutralise, template_marks

MAX_DEFINITION = 8192           # characters of a definition
MAX_CHANGES = 32 * MAX_DEFINITION  # and of all changes
MAX_QUERIES = 16   # standing queries, where some were added while the nodes run
MAX_KEYS = 32      # of a query that was set while they run
MAX_CHOICES = 64   # and of each key
_ID = re.compile(r'[A-Za-z][A-Za-z0-9_]{0,39}')
_TAKEN = ('fallback', 'qos_overrides')  # groups of other parameters


@dataclass(frozen=True)
class QueryChanges:
    """
    What was said about standing queries, laid over the parameters that a node was started with.

    ``changed`` holds the fields of queries that are among those parameters, by id, ``added`` all
    fields of others. One that is removed and added again has nothing of what it was.
    """

    added: Mapping[str, Section] = field(default_factory=dict)
    changed: Mapping[str, Section] = field(default_factory=dict)
    removed: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> QueryChanges:
        """Return the changes that `text` wrote; raise ParameterError."""
        if len(text) > MAX_CHANGES:
            raise ParameterError(f'more than {MAX_CHANGES} characters')
        tree = parse_yaml(text)
        tree = {} if tree is None else tree
        if not isinstance(tree, dict) or not tree.keys() <= cls.__dataclass_fields__.keys():
            raise ParameterError('no changes of queries: sections are added, changed and removed')
        removed = tree.get('removed', [])
        if not isinstance(removed, list) or not all(isinstance(i, str) for i in removed):
            raise ParameterError('removed must be a list of ids')
        groups: dict[str, dict[str, Section]] = {}
        for name in ('added', 'changed'):
            group = tree.get(name, {})
            if not isinstance(group, dict) or not all(
                    isinstance(k, str) and isinstance(v, dict) for k, v in group.items()):
                raise ParameterError(f'{name} must hold the fields of each query')
            groups[name] = {query_id: flatten(fields) for query_id, fields in group.items()}
        return cls(groups['added'], groups['changed'], tuple(removed))

    def text(self) -> str:
        """Return this as YAML; '' for none."""
        parts = {'added': dict(self.added), 'changed': dict(self.changed),
                 'removed': list(self.removed)}
        return yaml_text({name: part for name, part in parts.items() if part})

    def with_query(self, query_id: str, fields: Section, own: Section) -> QueryChanges:
        """Return the changes with other fields of a query, which is added where there is none."""
        is_own = query_id in query_ids(own) and query_id not in self.removed
        before = (self.changed if is_own else self.added).get(query_id, {})
        now = self._with(query_id, {**before, **fields}, is_own)
        # What belonged to keys that are no more would be unknown.
        names = allowed_names(now.over(own), 'edge')
        return self._with(query_id, {
            name: value for name, value in {**before, **fields}.items()
            if name in fields or f'{query_id}.{name}' in names}, is_own)

    def without(self, query_id: str, own: Section) -> QueryChanges:
        """Return the changes with a query removed."""
        if query_id not in query_ids(self.over(own)):
            raise ParameterError(f'no query {neutralise(query_id, 40)!r}; there are '
                                 f'{", ".join(query_ids(self.over(own)))}')
        removed = self.removed if query_id not in query_ids(own) else tuple(
            dict.fromkeys([*self.removed, query_id]))
        return QueryChanges({k: v for k, v in self.added.items() if k != query_id},
                            {k: v for k, v in self.changed.items() if k != query_id}, removed)

    def with_query_as_in(self, other: QueryChanges, query_id: str) -> QueryChanges:
        """Return the changes with all that concerns a query taken over from others."""
        def taken(mine: Mapping[str, Section], theirs: Mapping[str, Section]
                  ) -> dict[str, Section]:
            return {k: v for k, v in mine.items() if k != query_id} | {
                k: v for k, v in theirs.items() if k == query_id}
        return QueryChanges(
            taken(self.added, other.added), taken(self.changed, other.changed),
            (*(i for i in self.removed if i != query_id),
             *(i for i in other.removed if i == query_id)))

    def over(self, own: Section) -> dict[str, object]:
        """Return a node's parameters with these laid over them, unchecked."""
        ids = [i for i in query_ids(own) if i not in self.removed]
        gone = {*self.removed, *self.added}
        section = {name: value for name, value in own.items()
                   if name.partition('.')[0] not in gone}
        for query_id, fields in {**self.changed, **self.added}.items():
            if query_id in ids or query_id in self.added:
                section |= {f'{query_id}.{name}': value for name, value in fields.items()}
        return {**section, 'queries': list(dict.fromkeys([*ids, *self.added]))}

    def checked(self, own: Section, node: str) -> tuple[dict[str, object], tuple[Query, ...]]:
        """Return a node's parameters with these, and its queries; raise ParameterError."""
        section = self.over(own)
        flat = {}
        for query_id, fields in {**self.changed, **self.added}.items():
            check_id(query_id)
            if query_id in query_ids(section):
                _check_texts(query_id, fields)
                flat.update({f'{query_id}.{name}': value for name, value in fields.items()})
        sections = lay({**NOTHING, node: section}, (node,), flat)
        queries = Profile(sections).queries(node)
        for query in queries:
            if query.id in self.added or query.id in self.changed:
                _check_size(query)
        if self.added and len(queries) > MAX_QUERIES:
            raise ParameterError(f'{len(queries)} queries are too many; remove one, there may be '
                                 f'{MAX_QUERIES}')
        return dict(sections[node]), queries

    def _with(self, query_id: str, fields: Section, is_own: bool) -> QueryChanges:
        if is_own:
            return replace(self, changed={**self.changed, query_id: fields})
        return replace(self, added={**self.added, query_id: fields})


def read_definition(query_id: str, text: str) -> dict[str, object]:
    """Return the fields in the definition of a query; raise ParameterError."""
    check_id(query_id)
    if len(text) > MAX_DEFINITION:
        raise ParameterError(f'definition of {query_id} has {len(text)} characters; use at most '
                             f'{MAX_DEFINITION}')
    try:
        tree = parse_yaml(text)
    except ParameterError as error:
        raise ParameterError(f'definition of {query_id}: {error}') from error
    if not isinstance(tree, dict) or not tree:
        raise ParameterError(f'definition of {query_id} has no fields; write YAML, as in '
                             "'rate_hz: 2.0'")
    return flatten(tree)


def definition(query_id: str, section: Section) -> str:
    """Return the fields of a query in a node's parameters as YAML."""
    prefix = f'{query_id}.'
    return yaml_text({name.removeprefix(prefix): value for name, value in section.items()
                      if name.startswith(prefix) and value not in ('', [])})


def yaml_text(value: object) -> str:
    """Return YAML that people can read."""
    return str(yaml.safe_dump(value, default_flow_style=None, sort_keys=False,
                              allow_unicode=True, width=10_000)) if value else ''


def check_id(query_id: str) -> None:
    """Raise ParameterError for what is no id of a query."""
    if not _ID.fullmatch(query_id) or query_id in _TAKEN:
        raise ParameterError(f'query_id is {neutralise(query_id, 60)!r}; use a letter, then '
                             'letters, digits and _, 40 in all, and no name of other parameters '
                             f'({", ".join(_TAKEN)})')


def _check_texts(query_id: str, fields: Section) -> None:
    """Raise ParameterError for texts that could pass for the words of a chat template."""
    for name, value in fields.items():
        for text in (name, *(value if isinstance(value, list) else [value])):
            marks = template_marks(unicodedata.normalize('NFKC', text)) \
                if isinstance(text, str) else ''
            if marks:
                raise ParameterError(
                    f'{query_id}.{neutralise(name, 60)} holds {marks!r}; the brackets and bars '
                    'of chat templates and control characters are for params files only: use '
                    'words')


def _check_size(query: Query) -> None:
    """Raise ParameterError for a query that would take long to answer whatever is seen."""
    if len(query.choices) > MAX_KEYS:
        raise ParameterError(f'{query.id}.keys names {len(query.choices)} facts; use at most '
                             f'{MAX_KEYS}')
    for key, values in query.choices.items():
        if len(values) > MAX_CHOICES:
            raise ParameterError(f'{query.id}: {key} has {len(values)} choices; use at most '
                                 f'{MAX_CHOICES}')
