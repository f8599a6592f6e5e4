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


from .cells import Cell
from .delays import DeliveredReply, HEADLINE, TRACES
from .score import PublishedAnswer
from .seeds import Episode, episodes, Split
from .streams import START_NS, WorldStream
from .systems import ALONE, FULL, values
from .work import begin, OpenEpisode, Setup
from ...config.nodes import EdgeConfig
from ...edge.answer import EdgeVLM
from ...edge.model import EdgeModel
from ...frames.pixels import decode_compressed, encode_jpeg
from ...method.facts import NS, Source, Turn
from ...method.transfer import Transfer
from ...system.progress import tracked

WALL = 'wall clock'
EPISODES = 3   # of each set


def compare(setup: Setup, split: Split, sets: Sequence[str],
            ) -> tuple[list[Cell], dict[str, dict[str, float]]]:
    """Return cells of the first episodes per set in real time, and the differences in points."""
    begin(setup)
    cells: list[Cell] = []
    differences = {}
    guarded = EdgeModel.load(EdgeConfig(model=str(setup.edge), guard_odds=setup.odds))
    for name in tracked(sets, 'sets in real time', len(sets)):
        runs = [_both_ways(episode, guarded) for episode in episodes(split, name, EPISODES)]
        figures: dict[str, float] = {}
        for system in (FULL, ALONE):
            real, replayed = (sum(each) / len(runs)
                              for each in zip(*(run[system][:2] for run in runs)))
            late = sorted(ns for run in runs for ns in run[system][2])
            for suffix, metric, value in ((WALL, 'accuracy', real),
                                          (f'{WALL} minus replay', 'difference',
                                           real - replayed)):
                cells.append(Cell(name, f'{system}, {suffix}', HEADLINE, 'all', metric,
                                  round(value, 4), None, len(runs)))
            figures |= {system: round(100 * (real - replayed), 2),
                        f'{system}, median ms to an answer': round(late[len(late) // 2] / 1e6, 1),
                        f'{system}, answers': len(late)}
        differences[name] = figures
    return cells, differences


def _both_ways(episode: Episode, guarded: EdgeVLM,
               ) -> dict[str, tuple[float, float, list[int]]]:
    """Return, by system, accuracy in real time and replayed, and the times to answers [ns]."""
    opened = OpenEpisode(episode)
    run = opened.replay()
    replies = run.arrivals(TRACES[HEADLINE])
    replayed = {FULL: run.transfer(FULL, replies).published, ALONE: run.alone.published}
    opened.save()
    results = {}
    for system, published in replayed.items():
        real = real_time(opened.stream, guarded, replies if system == FULL else None)
        results[system] = (float(run.scorer.grid(real).mean()),
                           float(run.scorer.grid(published).mean()),
                           [p.at_ns - p.stamp_ns for p in real])
    return results


class _Network:
    """Hands over the cloud's answers when they are due, from a thread of its own."""

    def __init__(self, replies: Sequence[DeliveredReply]) -> None:
        """Start the clock; the first frame is due a tenth of a second later."""
        self._replies = replies
        self._arrived: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._began = time.monotonic_ns() + NS // 10
        self._thread = threading.Thread(target=self._run, name='network')
        self._thread.start()

    def now_ns(self) -> int:
        """Return the time on the clock of the frames' stamps."""
        return START_NS + time.monotonic_ns() - self._began

    def arrived(self) -> list[Turn]:
        """Return what has arrived since the last call."""
        turns = []
        while not self._arrived.empty():
            turns.append(self._arrived.get())
        return turns

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        for reply in self._replies:
            if self._stop.wait(max(0.0, (reply.at_ns - self.now_ns()) / NS)):
                return
            self._arrived.put(reply.turn)


def real_time(stream: WorldStream, model: EdgeVLM, replies: Sequence[DeliveredReply] | None,
              ) -> list[PublishedAnswer]:
    """
    Run an episode in real time and return what was published when.

    Without ``replies`` the edge is alone. A frame is decoded when it is due; one that is more than
    a frame's time late when the robot comes to it is left out, as a camera would have replaced it.
    """
    jpegs = {s: encode_jpeg(stream.image(s)) for s in stream.frames}
    model.warm_up([stream.query])
    stamps = stream.edge if replies is None else stream.frames
    answered, period = set(stream.edge), stamps[1] - stamps[0]
    method, published = Transfer([stream.query]), []
    network = _Network(replies or ())
    try:
        for stamp in stamps:
            wait_ns = stamp - network.now_ns()
            if wait_ns > 0:
                time.sleep(wait_ns / NS)
            elif -wait_ns > period:
                continue
            image, context = decode_compressed(jpegs[stamp]), None
            if replies is not None:
                for turn in network.arrived():
                    method.add(turn)
                method.frame(stamp, image)
            if stamp in answered:
                if replies is not None:
                    context = method.context(stream.query.id, stamp)
                answer = model.answer(image, stream.query, context, stamp)
                published.append(PublishedAnswer(network.now_ns(), stamp, values(answer.facts)))
                if replies is not None:
                    method.add(Turn(stream.query.id, stamp, Source.EDGE, answer.facts))
    finally:
        network.close()
    return published
