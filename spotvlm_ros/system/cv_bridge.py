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
"""Whether the cv_bridge that is installed converts images as we do: tried in another process."""

from __future__ import annotations

from dataclasses import dataclass
import importlib.util
import json
import os
import subprocess
import sys
import tempfile

from .processes import Child, PYTHON

CHECK = 'spotvlm_ros.nodes.image_converter'
LIMIT_S = 30.0
BEFORE = ('torch',)  # libraries that come first where they have been loaded here
ABSENT = 'cv_bridge is not installed'


@dataclass(frozen=True)
class Verdict:
    """The kinds of images that cv_bridge converts as we do, and why there are none or not more."""

    kinds: frozenset[str] = frozenset()
    why: str = ''

    @property
    def encodings(self) -> list[str]:
        """Return their encodings."""
        return sorted({kind.split()[0] for kind in self.kinds})


def check_cv_bridge(limit_s: float = LIMIT_S) -> Verdict:
    """
    Have another process compare cv_bridge with our converter; nothing if there is no cv_bridge.

    One that was built for another NumPy or OpenCV fails at import, crashes or never returns. That
    process loads what this one has, in the same order, and takes only time that nobody wants.
    """
    spec = importlib.util.find_spec('cv_bridge')
    if spec is None or spec.origin is None:
        return Verdict(why=ABSENT)
    command = (*PYTHON, '-m', CHECK, *(name for name in BEFORE if name in sys.modules))
    with tempfile.TemporaryFile() as log:
        child = Child(command, {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}, log,
                      idle=True)
        try:
            child.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return Verdict(why=f'its check took more than {limit_s:g} s')
        finally:
            child.stop(1.0)
        log.seek(0)
        lines = log.read().decode(errors='replace').split('\n')
    said = [line for line in lines if line.startswith('{"kinds": ')]
    if child.process.returncode or not said:
        last = next((line for line in reversed(lines) if line), 'without a word')[:200]
        return Verdict(why=f'its check {child.end}: {last}')
    result = json.loads(said[-1])
    return Verdict(frozenset(result['kinds']), result['why'])
