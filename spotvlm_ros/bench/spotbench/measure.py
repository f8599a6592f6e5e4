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
"""What the steps to an answer take: on this machine, and on a recording of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
import time

import numpy as np

from .latencies import Latencies
from .models import RemoteCloud
from .streams import START_NS, Stream
from ...cloud.server import EmbeddedServer
from ...config.nodes import EdgeConfig
from ...edge.answer import EdgeVLM
from ...edge.model import EdgeModel
from ...frames.pixels import decode_compressed, encode_jpeg, Image
from ...method.facts import Context, Fact, NS, Source, Turn
from ...method.guard import ODDS, OFF
from ...method.transfer import Transfer
from ...mini.worlds import make_world, TRAIN_SEEDS, World
from ...system.machine import machine

FIRST = 300        # frame of the training drive
STEP_NS = NS // 10


def time_calls(call: Callable[[int], object], repeats: int) -> list[float]:
    """Return what each of some calls took [s]; each is given its number."""
    seconds = []
    for i in range(repeats):
        begin = time.perf_counter()
        call(i)
        seconds.append(time.perf_counter() - begin)
    return seconds


def measure_machine(edge_path: Path, cloud_path: Path, repeats: int = 60) -> Latencies:
    """Measure on frames of a training drive; the cloud's checkpoint is served from here."""
    world = make_world('driving', TRAIN_SEEDS[42], 'day')
    query = world.queries[0]
    frames = [world.frame(FIRST + 2 * i) for i in range(repeats)]
    jpegs = [encode_jpeg(f) for f in frames]
    stamps = [NS + i * STEP_NS for i in range(repeats)]
    # A model for each way of answering: none finds what another has cached of a frame.
    models = [EdgeModel.load(EdgeConfig(model=str(edge_path), guard_odds=odds))
              for odds in (OFF, OFF, ODDS)]
    for model in models:
        model.warm_up([query])
    carry_s = _carry_s(world, stamps, frames)
    facts = world.facts(FIRST, stamps[0])
    focus = {f.key: f.region for f in facts if f.region is not None}
    trips = _round_trips_s(cloud_path, world)

    def answer(turn: int) -> None:
        i, way = divmod(turn, 3)
        context = Context(query.id, stamps[i], facts, focus=focus) if way else None
        models[way].answer(frames[i], query, context, stamps[i])
    # In turns, so that whatever else the machine does falls on all.
    answers = time_calls(answer, 3 * repeats)
    return _medians({
        'decode_s': time_calls(lambda i: decode_compressed(jpegs[i]), repeats),
        'answer_s': answers[::3], 'answer_context_s': answers[1::3],
        'answer_both_s': answers[2::3], 'carry_s': carry_s, 'cloud_round_trip_s': trips},
        edge_path.name)


def _carry_s(world: World, stamps: Sequence[int], frames: Sequence[Image]) -> list[float]:
    """Time the method from frame to frame."""
    method, query = Transfer([world.queries[0]]), world.queries[0]

    def carry(i: int) -> None:
        if i % 10 == 0:  # a new answer every second, regions of one second to catch up with
            past = max(0, i - 10)
            method.add(Turn(query.id, stamps[past], Source.CLOUD,
                            world.facts(FIRST + 2 * past, stamps[past])))
        method.frame(stamps[i], frames[i])
        method.context(query.id, stamps[i])
    return time_calls(carry, len(stamps))


def _round_trips_s(checkpoint: Path, world: World) -> list[float]:
    """Ask the embedded server about a few frames; raise RuntimeError where it says nothing."""
    with EmbeddedServer(str(checkpoint), threads=1) as server:
        remote = RemoteCloud(server.to_ask())
        remote.replies(world.queries[0], [world.frame(FIRST + 2 * i) for i in range(6)])
        if not remote.round_trips_s:
            raise RuntimeError(f'the embedded server gave no answer: {remote.errors[0]}; '
                               f'its last words: {server.last_words()}')
    return remote.round_trips_s[1:] or remote.round_trips_s


def measure_stream(edge: EdgeVLM, stream: Stream, repeats: int = 20) -> Latencies:
    """Measure on the frames of a stream."""
    query = stream.query
    stamps = (stream.frames * repeats)[:repeats]
    images = [stream.image(s) for s in stamps]
    facts = tuple(Fact(k, v[0], stamps[0]) for k, v in query.choices.items())
    context = Context(query.id, stamps[0], facts)
    edge.warm_up([query])
    method = Transfer([query])

    def answer(i: int, *contexts: Context | None) -> None:
        for given in contexts:
            edge.answer(images[i], query, given, stamps[i])
    return _medians({
        'decode_s': time_calls(lambda i: stream.image(stamps[i]), repeats),
        'answer_s': time_calls(lambda i: answer(i, None), repeats),
        'answer_context_s': time_calls(lambda i: answer(i, context), repeats),
        'answer_both_s': time_calls(lambda i: answer(i, None, context), repeats),
        'carry_s': time_calls(lambda i: method.frame(START_NS + i * STEP_NS, images[i]), repeats),
        'cloud_round_trip_s': [0.0]}, edge.name)


def _medians(seconds: Mapping[str, Sequence[float]], edge_model: str) -> Latencies:
    return Latencies(**{name: round(float(np.median(each)), 4) for name, each in seconds.items()},
                     edge_model=edge_model, machine=machine())
