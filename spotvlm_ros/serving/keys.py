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
"""Who may ask, and how often: a key and a quota for each robot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
import hashlib
import math
from pathlib import Path
import stat

BURST_S = 4.0  # a quota may be used up for as much time at once


@dataclass
class Robot:
    """Who asks; ``per_s``: requests a second that it may send, 0 for any number."""

    name: str
    per_s: float = 0.0
    _tokens: float = math.inf
    _at: float = 0.0

    def wait_s(self, now: float) -> float:
        """Take one request of the quota; return how long to wait where nothing is left of it."""
        if not self.per_s:
            return 0.0
        most = max(1.0, self.per_s * BURST_S)
        self._tokens = min(most, self._tokens + (now - self._at) * self.per_s)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / self.per_s
        self._tokens -= 1.0
        return 0.0


class Keys:
    """Robots by their keys; what is kept of a key is its hash."""

    def __init__(self, robots: Iterable[tuple[str, Robot]]) -> None:
        """Know the robots, each with its key. Raise ValueError where a key is there twice."""
        self._robots: dict[bytes, Robot] = {}
        for key, robot in robots:
            digest = _digest(key)
            if digest in self._robots:
                raise ValueError(f'{robot.name} and {self._robots[digest].name} have one key; '
                                 'give each its own')
            self._robots[digest] = robot

    def robot(self, authorization: str) -> Robot | None:
        """Return who sends that header, None for a stranger."""
        scheme, _, key = authorization.partition(' ')
        return self._robots.get(_digest(key)) if scheme == 'Bearer' else None


def read_keys(path: Path) -> list[tuple[str, Robot]]:
    """
    Read a file with a robot a line: its name, its key and, if it has one, its quota [1/s].

    Return robots with their keys. Raise ValueError with file and line.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        lines = path.read_text('utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} cannot be read ({error}); give a text file') from None
    if mode & 0o077:
        raise ValueError(f'{path} is readable by others; run: chmod 600 {path}')
    robots, names, keys = [], dict[str, int](), dict[str, int]()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith('#'):
            continue
        try:
            name, key, per_s = (*words, '0')[:3] if len(words) in (2, 3) else ()
            robot = Robot(name, float(per_s))
        except ValueError:
            raise ValueError(f'{path}:{number} is no robot; write: name key [requests a '
                             'second]') from None
        if not 0.0 <= robot.per_s < math.inf:
            raise ValueError(f'{path}:{number}: {per_s} is no quota; give requests a second')
        for what, seen, value in (('name', names, name), ('key', keys, key)):
            if seen.setdefault(value, number) != number:
                raise ValueError(f'{path}:{number} has the {what} of line {seen[value]}; give '
                                 f'each robot a {what} of its own')
        robots.append((key, robot))
    if not robots:
        raise ValueError(f'{path} has no robots; write a line for each: name key')
    return robots


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode('utf-8', 'surrogateescape')).digest()
