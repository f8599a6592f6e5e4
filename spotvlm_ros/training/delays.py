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
"""How late the simulated cloud of a training is: a trace, or what a recording measured."""

from __future__ import annotations

from dataclasses import dataclass
import json
import math
from pathlib import Path

import numpy as np

from ..cloud.traces import Trace, TRACES
from ..method.facts import NS, Source

LONGEST_S = 30.0
TRIES = 4        # lost answers in a row, after which there is no context


@dataclass(frozen=True)
class Delays:
    """Delays of cloud answers [s], to draw from."""

    name: str
    trace: Trace | None = None
    measured: tuple[float, ...] = ()

    def draw(self, rng: np.random.Generator, period_s: float) -> float | None:
        """
        Return the age of the newest answer at a moment between two, None for no answer at all.

        ``period_s``: between keyframes. A lost answer leaves the one before.
        """
        for tries in range(TRIES):
            number = int(rng.integers(1 << 31))
            delay = (float(self.measured[number % len(self.measured)]) if self.trace is None
                     else self.trace.delay_s(0, number))
            if delay <= LONGEST_S:
                return delay + period_s * (tries + float(rng.random()))
        return None

    @property
    def horizon_s(self) -> float:
        """Return the age that nine of ten answers stay below."""
        rng = np.random.default_rng(0)
        ages = [age for _ in range(200) if (age := self.draw(rng, 1.0)) is not None]
        return float(np.quantile(ages, 0.9)) if ages else 0.0


def delays_of(name: str, median_s: float) -> Delays:
    """Return the delays that a name, or else a median, stands for; raise ValueError."""
    if not name:
        return Delays(f'lognormal, median {median_s:g} s, sigma 0.5',
                      Trace('', '', median_s, 0.5))
    if name in TRACES:
        return Delays(TRACES[name].text, TRACES[name])
    path = Path(name)
    file = path / 'context.jsonl' if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f'--delays {name}: neither a trace nor a recording with context.jsonl; '
                         f'name a folder of spotvlm run --record, or one of {", ".join(TRACES)}')
    measured = _measured(file)
    if not measured:
        raise ValueError(f'--delays {name}: {file.name} holds no answer of the cloud; name a '
                         'recording that has some, or leave --delays out')
    return Delays(f'{len(measured)} measured in {path.name}', measured=measured)


def _measured(file: Path) -> tuple[float, ...]:
    found: list[float] = []
    for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            event = json.loads(line)
            if event['event'] == 'turn' and event['turn']['source'] == Source.CLOUD:
                found.append((event['arrived_ns'] - event['turn']['stamp_ns']) / NS)
        except (ValueError, KeyError, TypeError):
            continue  # torn, or of another kind
    return tuple(d for d in found if math.isfinite(d) and 0.0 <= d <= LONGEST_S)
