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
"""What the server counts, in the text form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Mapping

# Name, kind and meaning of each.
METERS = {
    'requests_total': ('counter', 'Chat requests, by HTTP status'),
    'refused_total': ('counter', 'Requests refused, by reason'),
    'hung_up_total': ('counter', 'Chat requests that were given up by who asked'),
    'request_seconds_sum': ('counter', 'Time from request to reply, of those answered'),
    'batches_total': ('counter', 'Batches computed'),
    'batched_requests_total': ('counter', 'Requests in them'),
    'batch_seconds_sum': ('counter', 'Time that they took'),
    'tokens_total': ('counter', 'Tokens, by kind'),
    'waiting': ('gauge', 'Requests that wait for a batch'),
    'computed': ('gauge', 'Requests in the batch that is computed'),
    'wait_seconds': ('gauge', 'How long a request that comes now would take'),
}


class Meters:
    """Counters and gauges, each with at most one label."""

    def __init__(self) -> None:
        """Start at zero."""
        self._values: dict[str, dict[tuple[str, str], float]] = {name: {} for name in METERS}

    def add(self, name: str, value: float = 1.0, label: tuple[str, str] = ('', '')) -> None:
        """Add to a counter."""
        values = self._values[name]
        values[label] = values.get(label, 0.0) + value

    def set(self, values: Mapping[str, float]) -> None:  # noqa: A003
        """Set gauges."""
        for name, value in values.items():
            self._values[name]['', ''] = value

    def value(self, name: str, label: str = '') -> float:
        """Return a counter or gauge, with one label or, for '', over all of them."""
        return sum(v for (_, l), v in self._values[name].items() if label in ('', l))

    def text(self) -> str:
        """Return all of them, in the text form of Prometheus."""
        lines = []
        for name, (kind, meaning) in METERS.items():
            lines += [f'# HELP spotvlm_{name} {meaning}', f'# TYPE spotvlm_{name} {kind}']
            lines += [f'spotvlm_{name}' + (f'{{{key}="{label}"}}' if key else '') + f' {value:g}'
                      for (key, label), value in sorted(self._values[name].items())]
        return '\n'.join(lines) + '\n'
