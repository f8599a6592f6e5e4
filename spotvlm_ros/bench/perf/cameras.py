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
"""Several cameras on one edge node: what each costs, and which rates are kept."""

from __future__ import annotations

from dataclasses import dataclass
import threading
import time

import numpy as np
import numpy.typing as npt
from rclpy.node import Node
from spotvlm_msgs.msg import Answer

from .result import PerfResult
from ..faults.rig import started
from ...frames.frame import Frame
from ...frames.hub import FrameHub
from ...method.facts import NS
from ...mini.driving.scene import SCENE
from ...mini.worlds import make_world, TUNE_SEEDS
from ...nodes.convert import duration_s, stamp_ns
from ...nodes.edge import EdgeNode
from ...system.machine import machine

CAMERAS = (1, 2, 4)
RATES = (2.0, 5.0, 10.0)   # of each camera and of its question [Hz]
SECONDS = 6.0              # of each number of cameras
SETTLE_S = 1.0             # not counted
FRAMES = 24                # pictures per camera, shown again and again


@dataclass
class CameraLoad:
    """What an edge node has made of some cameras. Times are seconds."""

    answered: float        # share of the answers wanted
    p95_s: float           # from stamp to answer
    model_s: float         # mean preprocessing and inference of an answer


class Watch(Node):
    """Notes when answers come, how late, and what they took."""

    def __init__(self) -> None:
        """Listen."""
        super().__init__('watch')
        # When each came (steady clock), since its stamp, in the model [s].
        self.answers: list[tuple[float, float, float]] = []
        self.create_subscription(Answer, 'answers', self._on_answer, 50)

    def _on_answer(self, message: Answer) -> None:
        late = (self.get_clock().now().nanoseconds - stamp_ns(message.header.stamp)) / NS
        spent = duration_s(message.preprocess) + duration_s(message.inference)
        self.answers.append((time.monotonic(), late, spent))


def rows() -> list[PerfResult]:
    """Measure each number of cameras at each rate, without context and without a cloud."""
    drives = [make_world('driving', TUNE_SEEDS[k]) for k in range(max(CAMERAS))]
    pictures = [[w.frame(300 + 4 * i) for i in range(FRAMES)] for w in drives]
    on, slow = machine(1), min(RATES)
    # In turns, and each camera alone: neither the machine's moods nor the scenes may decide.
    pairs = [(_load([one], slow).model_s, _load(pictures, slow).model_s) for one in pictures]
    one, four = (float(np.mean(values)) for values in zip(*pairs))
    results = [PerfResult(
        'cameras_4_over_1', 4 * four / one, 'times',
        f'one camera alone, mean of four, all at {slow:g} Hz', 4 * four / one, on)]
    loads = {(n, hz): _load(pictures[:n], hz) for n in CAMERAS for hz in RATES}
    for (n, hz), load in loads.items():
        name, wanted = f'cameras_{n}_at_{hz:g}_hz', f'{n} x {hz:g} answers per second'
        results += [
            PerfResult(f'{name}_answered', load.answered, 'share of the answers wanted', wanted,
                       load.answered, on),
            PerfResult(f'{name}_p95_ms', 1e3 * load.p95_s, 'ms from stamp to answer', '', None,
                       on)]
    return results


def _load(pictures: list[list[npt.NDArray[np.uint8]]], rate_hz: float) -> CameraLoad:
    """Run an edge node on some cameras."""
    names = [f'camera_{k}' for k in range(len(pictures))]
    hub, stop = FrameHub(), threading.Event()
    watch: Watch

    def nodes() -> list[Node]:
        nonlocal watch
        watch = Watch()
        return [watch, EdgeNode(hub)]

    def show() -> None:
        """Let the cameras take turns, evenly spaced."""
        gap, begin, n = 1.0 / (rate_hz * len(names)), time.monotonic(), 0
        while not stop.wait(max(0.0, begin + n * gap - time.monotonic())):
            k = n % len(names)
            pixels = pictures[k][(n // len(names)) % FRAMES]
            hub.publish(Frame(time.time_ns(), names[k], pixels=pixels, camera=names[k]))
            n += 1
    graph = started(nodes, {'/**': _params(names, rate_hz)})
    thread = threading.Thread(target=show, daemon=True)
    try:
        began = time.monotonic() + SETTLE_S
        thread.start()
        time.sleep(SETTLE_S + SECONDS)
        timed = [a for a in tuple(watch.answers) if began <= a[0] < began + SECONDS]
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
        graph.close()
    if not timed:
        raise RuntimeError(f'no answer about {len(names)} cameras; run spotvlm doctor')
    late, spent = (np.array([a[i] for a in timed]) for i in (1, 2))
    return CameraLoad(len(timed) / (SECONDS * rate_hz * len(names)),
                      float(np.percentile(late, 95)), float(spent.mean()))


def _params(names: list[str], rate_hz: float) -> dict[str, object]:
    """Return the driving question, once per camera."""
    one = {'prompt': SCENE.prompt, 'format': 'facts', 'keys': list(SCENE.keys),
           'choices': {k: list(v) for k, v in SCENE.choices.items()}, 'rate_hz': rate_hz,
           'deadline_s': 2.0}
    return {'queries': [f'scene_{name}' for name in names],
            **{f'scene_{name}': {**one, 'camera': name} for name in names}}
