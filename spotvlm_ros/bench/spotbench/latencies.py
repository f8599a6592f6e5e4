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
What each step takes on the edge: measured once, kept in latencies.json, charged in every replay.

Replays are the same on every machine that way. `spotvlm bench --measure` measures this one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
import json
from pathlib import Path

FILE = Path(__file__).with_name('latencies.json')


@dataclass(frozen=True)
class Latencies:
    """Medians [s], with where they were measured."""

    decode_s: float              # of a JPEG frame
    answer_s: float              # the edge model without context, frame in to facts out
    answer_context_s: float      # with context
    answer_both_s: float         # without, then with: the guard's two passes
    carry_s: float               # regions to the next frame, and the context
    cloud_round_trip_s: float    # HTTP to the embedded server and back, no network
    edge_model: str
    machine: str

    @property
    def alone_s(self) -> float:
        """From a frame to the edge's answer about it, nothing known."""
        return self.decode_s + self.answer_s

    @property
    def both_s(self) -> float:
        """From a frame to the edge's answer about it, when the guard takes a second pass."""
        return self.decode_s + self.carry_s + self.answer_both_s

    @property
    def own_history_s(self) -> float:
        """From a frame to the edge's answer about it, with a history but no Context Transfer."""
        return self.decode_s + self.answer_context_s

    @property
    def context_s(self) -> float:
        """From a frame to the edge's answer about it, with Context Transfer."""
        return self.decode_s + self.carry_s + self.answer_context_s

    @classmethod
    def load(cls, path: Path = FILE) -> Latencies:
        """Read a file that `save` wrote."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f'{path}: {error}; write it anew with spotvlm bench --measure'
                             ) from error

    def save(self, path: Path = FILE) -> None:
        """Write the file that `load` reads."""
        path.write_text(json.dumps(asdict(self), indent=1) + '\n')
