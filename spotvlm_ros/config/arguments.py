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
"""ROS arguments of a command line, read before ROS does: ROS takes what has no effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import difflib
import os
from pathlib import Path
import re

from .nodes import NODE_CONFIGS
from .profiles import check_file, NOTHING, params_file, Profile
from .sections import Names
from .spec import ParameterError

TOPICS = ('image', 'image/compressed', 'answers', 'cloud/answers', 'context', 'cloud/status',
          'focus/detections', 'debug_image', 'debug_image/compressed', 'audit', 'truth', 'ask',
          'diagnostics', 'clock')


@dataclass(frozen=True)
class RosArguments:
    """What stands behind --ros-args, by kind, each in its order."""

    files: tuple[str, ...] = ()   # of --params-file
    values: tuple[str, ...] = ()  # of -p, NAME:=VALUE
    remaps: tuple[str, ...] = ()  # of -r, FROM:=TO
    others: tuple[str, ...] = ()

    def names(self, nodes: Sequence[str]) -> Names:
        """Return what these nodes of one process are called; raise ParameterError."""
        called, spaces = {n: n for n in NODE_CONFIGS}, dict.fromkeys(NODE_CONFIGS, '')
        for rule in self.remaps:
            node, key, value = _remap(rule)
            if node and node not in nodes:
                raise ParameterError(f'-r {rule}: node {node} is not here; use one of '
                                     f'{", ".join(nodes)}')
            if key in ('__node', '__name'):
                if not node and len(nodes) > 1:
                    raise ParameterError(f'-r {rule} would give {len(nodes)} nodes one name; '
                                         f'write which, as in -r edge:{key}:={value}')
                called[node or nodes[0]] = value
            elif key == '__ns':
                spaces |= dict.fromkeys([node] if node else spaces, value.strip('/'))
        return Names({node: '/' + f'{spaces[node]}/{called[node]}'.lstrip('/')
                      for node in called}, tuple(nodes))


def read_ros_arguments(argv: Sequence[str]) -> RosArguments:
    """Take a command line of a node apart; raise ParameterError for what nodes do not take."""
    taken: dict[str, list[str]] = {'-p': [], '-r': [], '--params-file': []}
    others, words, within = [], iter(argv), False
    for word in words:
        option = {'--param': '-p', '--remap': '-r'}.get(word, word)
        if word in ('--ros-args', '--'):
            within = word == '--ros-args'
        elif not within:
            raise ParameterError(f'{word} has no effect here; what is meant for ROS, as -p and '
                                 '--params-file, stands behind --ros-args')
        elif option in taken:
            value = next(words, None)
            if value is None:
                raise ParameterError(f'{word} ends the command line; write what it sets')
            taken[option].append(value)
        else:
            others.append(word)
    return RosArguments(tuple(taken['--params-file']), tuple(taken['-p']), tuple(taken['-r']),
                        tuple(others))


def check_ros_arguments(argv: Sequence[str], nodes: Sequence[str]) -> list[str]:
    """
    Return the arguments of a process of these nodes with all parameters in one file.

    So -p goes before every file and a later file before an earlier one, whatever sections they
    use; ROS goes by the order in which it first meets a section. Raise ParameterError with the
    file, the name and the remedy for a name that has no effect; wrong values are left to the
    nodes, which show them in /diagnostics.
    """
    given = read_ros_arguments(argv)
    names = given.names(nodes)
    sections = NOTHING
    for path in given.files:
        sections = check_file(Path(path), sections, names, values=False)
    profile = Profile(sections).with_values(given.values, names, values=False)
    file = os.memfd_create('spotvlm-params')  # gone with the process, however that ends
    with open(file, 'w', encoding='utf-8', closefd=False) as out:
        out.write(params_file({node: profile.sections[node] for node in nodes}, names))
    rules = [word for rule in given.remaps for word in ('-r', rule)]
    return ['--ros-args', *given.others, *rules, '--params-file', f'/proc/self/fd/{file}']


def _remap(rule: str) -> tuple[str, str, str]:
    """Return the node, the name and the new name of a rule; raise ParameterError."""
    found = re.fullmatch(r'(?:([^:/]+):)?([^:]+|rostopic://.+|rosservice://.+):=(.+)', rule)
    if found is None:
        raise ParameterError(f'-r {rule}: write FROM:=TO, as in -r image:=/camera/image_raw')
    node, key, value = found[1] or '', found[2], found[3]
    near = difflib.get_close_matches(key, TOPICS, 1, 0.75)
    if near and key not in TOPICS and not re.search(r'[/_]', key):
        raise ParameterError(f'-r {rule}: no topic of ours is {key}; did you mean {near[0]}?')
    return node, key, value
