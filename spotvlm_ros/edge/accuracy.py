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
What number formats cost a checkpoint in accuracy, and which it is therefore not loaded in.

`spotvlm check --accuracy` counts it and leaves a file in the folder of the checkpoint. Where that
says that a format loses more than WORST points, the model is not loaded in it, nor is it named as
a way to fit into memory; `auto` takes the fastest format only where it was counted and loses no
more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
import json
from pathlib import Path

import torch

from .processors import json_object, UnusableError
from ..config.nodes import EdgeConfig, Quantization

FILE = 'spotvlm_accuracy.json'
WORST = 1.0     # percentage points of the facts that a format may cost
FAST: Quantization = 'int8_dynamic'
# What makes products of 8 bits fast; without these 16 or 32 bits are.
INSTRUCTIONS = ('avx512_vnni', 'amx_int8')


def points_lost(path: Path) -> dict[str, float]:
    """Return the percentage points that formats lose, of those that were counted."""
    points = json_object(path / FILE).get('points_lost')
    return ({str(k): float(v) for k, v in points.items() if isinstance(v, (int, float))}
            if isinstance(points, dict) else {})


def keep_points(path: Path, points: Mapping[str, float], facts: int) -> bool:
    """Write what formats lose to the folder of a checkpoint; return whether that can be."""
    try:
        (path / FILE).write_text(json.dumps(
            {'points_lost': dict(points), 'facts': facts,
             'by': 'spotvlm check --accuracy, on the miniature world'}, indent=2) + '\n')
    except OSError:
        return False
    return True


def settled(config: EdgeConfig, path: Path) -> EdgeConfig:
    """
    Return a configuration with formats instead of `auto`.

    Raise UnusableError, with the remedy, where a format was found to lose too much.
    """
    lost = points_lost(path)
    chosen: Quantization = 'none'
    if config.device == 'cpu' and lost.get(FAST, WORST + 1) <= WORST and _multiplies_bytes():
        chosen = FAST
    config = replace(config, quantization=_or(config.quantization, chosen),
                     vision_quantization=_or(config.vision_quantization, chosen))
    asked = config.quantization
    if lost.get(asked, 0.0) > WORST:
        names = ('int8', 'int4', FAST)[:3 if config.device == 'cpu' else 2]
        better = [repr(name) for name in names if lost.get(name, WORST + 1) <= WORST]
        raise UnusableError(
            f'quantization is {asked!r}, which costs {lost[asked]:.1f} points of the facts '
            f'({FILE} in its folder), and {WORST:g} is allowed; use '
            f'{" or ".join([*better, repr("none")])}, or count again with `spotvlm check '
            f'{config.model} --accuracy`')
    return config


def _or(asked: Quantization, chosen: Quantization) -> Quantization:
    return chosen if asked == 'auto' else asked


def _multiplies_bytes() -> bool:
    """Return whether this CPU has instructions for products of 8 bits."""
    has: dict[str, object] = dict(getattr(torch.cpu, 'get_capabilities', dict)())
    return any(map(has.get, INSTRUCTIONS))
