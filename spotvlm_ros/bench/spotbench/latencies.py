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
from typing import Any

import numpy as np

from ...system.machine import machine

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
    def told_s(self) -> float:
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
        """Write."""
        path.write_text(json.dumps(asdict(self), indent=1) + '\n')


def measure(edge_path: Path, cloud_path: Path | None, threads: int = 1, repeats: int = 60,
            ) -> Latencies:
    """Measure on this machine, on frames of a training drive; ``cloud_path`` is served."""
    from .models import decode, encode, RemoteCloud, timed
    from ...cloud.server import EmbeddedServer
    from ...config.nodes import EdgeConfig
    from ...edge.model import EdgeModel
    from ...method.facts import Context, NS, Source, Turn
    from ...method.guard import ODDS, OFF
    from ...method.transfer import Transfer
    from ...mini.worlds import make_world, TRAIN_SEEDS

    world = make_world('driving', TRAIN_SEEDS[42], 'day')
    query = world.queries[0]
    frames = [world.frame(300 + 2 * i) for i in range(repeats)]
    jpegs = [encode(f) for f in frames]
    stamp = [NS + i * NS // 10 for i in range(repeats)]
    told = world.facts(300, stamp[0])
    # A model for each way of answering: none finds what another has kept of a frame.
    alone, with_context, guarded = (EdgeModel.load(EdgeConfig(
        model=str(edge_path), threads=threads, guard_odds=odds)) for odds in (OFF, OFF, ODDS))
    for edge in (alone, with_context, guarded):
        edge.warm_up([query])
    method = Transfer([query])
    contexts: list[Context] = []

    def carry(i: int) -> None:
        if i % 10 == 0:  # a new answer every second, regions of one second to catch up with
            past = max(0, i - 10)
            method.add(Turn(query.id, stamp[past], Source.CLOUD,
                            world.facts(300 + 2 * past, stamp[past])))
        method.frame(stamp[i], frames[i])
        contexts.append(method.context(query.id, stamp[i]))
    carried = timed(carry, repeats)
    whole = [Context(query.id, s, told, focus={f.key: f.region for f in told if f.region})
             for s in stamp]
    trips = [float('nan')]
    if cloud_path is not None:
        with EmbeddedServer(str(cloud_path), threads=threads) as server:
            remote = RemoteCloud(server.url, str(cloud_path))
            remote.replies(query, frames[:6])
            if not remote.round_trips_s:
                raise RuntimeError(f'the embedded server gave no answer: {remote.errors[0]}; '
                                   f'see {server.log}')
            trips = remote.round_trips_s[1:] or remote.round_trips_s

    def answer(turn: int) -> None:
        i = turn // 3
        edge, context = ((alone, None), (with_context, whole[i]), (guarded, whole[i]))[turn % 3]
        edge.answer(frames[i], query, context, stamp[i])
    # In turns, so that whatever else the machine does falls on all.
    took = timed(answer, 3 * repeats)
    found: dict[str, Any] = {
        'decode_s': timed(lambda i: decode(jpegs[i]), repeats),
        'answer_s': took[::3], 'answer_context_s': took[1::3], 'answer_both_s': took[2::3],
        'carry_s': carried, 'cloud_round_trip_s': trips}
    return Latencies(**{k: round(float(np.median(v)), 4) for k, v in found.items()},
                     edge_model=edge_path.name, machine=machine())
