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
"""Which nodes of ours the section of a params file is for, by the rules of ROS."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
import difflib
import re

from .nodes import NODE_CONFIGS
from .spec import ParameterError


@dataclass(frozen=True)
class Names:
    """What our nodes are called where they run, by node; empty: not known, anything anywhere."""

    full: Mapping[str, str] = field(default_factory=dict)  # such as /robot1/edge
    here: tuple[str, ...] = tuple(NODE_CONFIGS)            # nodes of this process

    def title(self, node: str) -> str:
        """Return the title of a section for one node."""
        return self.full.get(node) or f'/**/{node}'

    def find(self, title: str) -> tuple[str, ...]:
        """
        Return the nodes that a title is for.

        One without a slash in front may also mean a node of our own namespace, whichever it is;
        to ROS it is one of the root alone.
        """
        parts = title.strip('/').split('/')
        if not self.full:
            return tuple(node for node in NODE_CONFIGS if parts[-1] in ('*', '**', node))
        pattern = ''.join({'**': '(/[^/]+)*', '*': '/[^/]+'}.get(p, f'/{re.escape(p)}')
                          for p in parts)
        return tuple(node for node, full in self.full.items() if re.fullmatch(pattern, full) or (
            not title.startswith('/') and re.fullmatch(
                re.escape(full.rpartition('/')[0]) + pattern, full)))

    def meant(self, title: str, addressed: Collection[str]) -> str:
        """
        Return the node of this process that a title for none of ours may be meant for.

        '' where none is like it, and where the file has a section for that node beside, which
        is ``addressed``: files may be shared with other robots and with a second edge.
        """
        last = title.rpartition('/')[2]
        names = {self.title(node).rpartition('/')[2]: node for node in self.here}
        near = list(names) if last in ('*', '**') else difflib.get_close_matches(last, names, 1)
        if not near or (last in NODE_CONFIGS and last not in names):
            return ''
        node = names[near[0]]
        elsewhere = last in ('*', '**', near[0]) or near[0] != node
        return '' if elsewhere and node in addressed else node


ANYWHERE = Names()
REMEDY = 'a section is a line /**/edge:, below it ros__parameters:, below that what is set'


def titled(tree: Mapping[object, object],
           above: str = '') -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield the sections of a params file with their titles, those within namespaces, too."""
    for key, body in tree.items():
        title = f'{above}/{str(key).strip("/")}' if above else str(key)
        if not isinstance(body, dict) or not body:
            raise ParameterError(f'section {title} has no ros__parameters; {REMEDY}')
        if 'ros__parameters' not in body:
            yield from titled(body, title)
            continue
        parameters = body['ros__parameters']
        if not isinstance(parameters, dict):
            raise ParameterError(f'section {title} has no ros__parameters; {REMEDY}')
        beside = [str(name) for name in body if name != 'ros__parameters']
        if beside:
            raise ParameterError(f'{title}: {beside[0]} stands beside ros__parameters and has no '
                                 'effect there; indent it to stand below')
        yield title, parameters
