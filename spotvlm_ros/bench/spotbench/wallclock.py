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
The same loop in real time, to see whether the replay's clock tells the truth.

One thread is the robot: it takes each frame when it is due, carries regions, answers. Another is
the network: it hands over the cloud's answers when they are due. Frames are drawn and the cloud is
asked beforehand, so that only what runs on a robot takes time here; the delay is emulated.
"""

from __future__ import annotations

from collections.abc import Sequence
import queue
import threading
import time
from typing import Any

from .cells import Cell
from .delays import HEADLINE, Reply, TRACES
from .models import cloud_turns, decode, encode
from .replay import Replay
from .score import Said
from .seeds import episodes, Split
from .streams import START_NS, WorldStream
from .systems import ALONE, FULL, values
from ...config.nodes import EdgeConfig
from ...edge.answer import EdgeVLM
from ...edge.model import EdgeModel
from ...method.facts import NS, Source, Turn
from ...method.transfer import Transfer

WALL = 'wall clock'
EPISODES = 3   # of each set


def compare(setup: Any, split: Split, sets: Sequence[str]) -> tuple[list[Cell], dict[str, Any]]:
    """Return cells of the first episodes per set in real time, and the differences in points."""
    from rich.progress import track

    from . import work
    work.begin(setup)
    cells, differences = [], {}
    guarded = EdgeModel.load(EdgeConfig(model=str(setup.edge), guard_odds=setup.odds))
    for name in track(sets, 'real time'):
        pairs: dict[str, list[tuple[float, float]]] = {FULL: [], ALONE: []}
        late: dict[str, list[int]] = {FULL: [], ALONE: []}
        for episode in episodes(split, name, EPISODES):
            stream, kept, kept_cloud = work.opened(episode)
            turns = cloud_turns(work.cloud_model(), stream, kept_cloud)
            edge = work.Edge(work.edge_model(), stream, kept, setup.odds)
            run = Replay(stream, setup.plan, edge, turns, setup.took)
            came = run.arrivals(TRACES[HEADLINE])
            replayed = {FULL: run.transfer(FULL, came).said, ALONE: run.alone.said}
            kept.save()
            kept_cloud.save()
            for system, said in replayed.items():
                real = real_time(stream, guarded, turns, came if system == FULL else None)
                pairs[system].append((float(run.board.grid(real).mean()),
                                      float(run.board.grid(said).mean())))
                late[system] += [s.at_ns - s.stamp_ns for s in real]
        found: dict[str, float] = {}
        for system, both in pairs.items():
            a, b = (sum(each) / len(both) for each in zip(*both))
            cells.append(Cell(name, f'{system}, {WALL}', HEADLINE, 'all', 'accuracy',
                              round(a, 4), None, len(both)))
            cells.append(Cell(name, f'{system}, {WALL} minus replay', HEADLINE, 'all',
                              'difference', round(a - b, 4), None, len(both)))
            found |= {system: round(100 * (a - b), 2),
                      f'{system}, median ms to an answer':
                      round(sorted(late[system])[len(late[system]) // 2] / 1e6, 1),
                      f'{system}, answers': len(late[system])}
        differences[name] = found
    return cells, differences


def real_time(stream: WorldStream, model: EdgeVLM, turns: dict[int, Turn],
              came: Sequence[Reply] | None) -> list[Said]:
    """
    Run an episode in real time and return what was published when.

    Without ``came`` the edge is alone. A frame is decoded when it is due; one that is more than a
    frame's time late when the robot comes to it is left out, as a camera would have replaced it.
    """
    jpegs = {s: encode(stream.image(s)) for s in stream.frames}
    model.warm_up([stream.query])
    ticks, period = set(stream.edge), stream.frames[1] - stream.frames[0]
    if came is None:
        period = stream.edge[1] - stream.edge[0]
    method, said = Transfer([stream.query]), []
    arrived: queue.SimpleQueue[Turn] = queue.SimpleQueue()
    stop = threading.Event()
    began = time.monotonic_ns() + NS // 10

    def now() -> int:
        return START_NS + time.monotonic_ns() - began

    def network() -> None:
        for reply in came or ():
            if stop.wait(max(0.0, (reply.at_ns - now()) / NS)):
                return
            if reply.stamp_ns in turns:
                arrived.put(turns[reply.stamp_ns])
    thread = threading.Thread(target=network, name='network')
    thread.start()
    try:
        for stamp in (s for s in stream.frames if came is not None or s in ticks):
            wait = (stamp - now()) / NS
            if wait > 0:
                time.sleep(wait)
            elif -wait * NS > period:
                continue
            image = decode(jpegs[stamp])
            if came is not None:
                while not arrived.empty():
                    method.add(arrived.get())
                method.frame(stamp, image)
            if stamp in ticks:
                context = method.context(stream.query.id, stamp) if came is not None else None
                answer = model.answer(image, stream.query, context, stamp)
                said.append(Said(now(), stamp, values(answer.facts)))
                if came is not None:
                    method.add(Turn(stream.query.id, stamp, Source.EDGE, answer.facts))
    finally:
        stop.set()
        thread.join(timeout=5.0)
    return said
