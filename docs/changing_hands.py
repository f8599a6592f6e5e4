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
Shows another photographed hand each second to the edge of profile hri, and judges what it says.

A replay: both models, the whole method, a cloud that is late by as much as you say, and the rule
of whom to believe as it is now. Prints how often the number is right by the clock, minute by
minute. From the root, with the photographs of docs/benchmark.md:
`.venv/bin/ros-env python docs/changing_hands.py HANDS --seed 1`.
"""

import argparse
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from spotvlm_ros.bench.spotbench import systems
from spotvlm_ros.bench.spotbench.cache import Cache
from spotvlm_ros.bench.spotbench.calibration_rows import fixed, Learner, Part
from spotvlm_ros.bench.spotbench.delays import Trace
from spotvlm_ros.bench.spotbench.latencies import Latencies
from spotvlm_ros.bench.spotbench.models import CachedCloud, CachedEdge, LocalCloud
from spotvlm_ros.bench.spotbench.own_data import facts_query
from spotvlm_ros.bench.spotbench.passes import Heard
from spotvlm_ros.bench.spotbench.replay import Replay
from spotvlm_ros.bench.spotbench.score import latest, right
from spotvlm_ros.bench.spotbench.streams import Sampling
from spotvlm_ros.bench.spotbench.systems import FULL, Inputs
from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.frames.pixels import Image
from spotvlm_ros.labels.sequences import START_NS
from spotvlm_ros.method.facts import NS, Region
from spotvlm_ros.method.guard import ODDS, OFF
from spotvlm_ros.mini.hri.hands import DIGITS, HandBank, SPLITS
from spotvlm_ros.mini.shipped import checkpoint_path
import torch

WORDS = 'zero one two three four five six seven eight nine'.split()
KEY, MINUTE = 'gesture', 600     # labels, ten a second


class Hands:
    """A stream: each second another number, 200 pixels wide on grey, of some person."""

    name, size = 'changing hands', (640, 480)

    def __init__(self, args: argparse.Namespace) -> None:
        """Draw who shows what."""
        bank, rng = HandBank(args.hands), np.random.default_rng([args.seed, 18])
        self.query, self.seed = facts_query('hri'), args.seed
        self.people: set[int] = set()
        self.shown: list[tuple[int, Path]] = []
        for _ in range(60 * args.minutes):
            before = self.shown[-1][0] if self.shown else -1
            digit = int(rng.choice([d for d in DIGITS if d != before]))
            person = int(rng.choice([p for p in bank.split[args.people]
                                     if digit in bank.people[p]]))
            paths = bank.people[person][digit]
            self.people.add(person)
            self.shown.append((digit, paths[int(rng.integers(len(paths)))]))
        self.frames = [START_NS + i * NS // 10 for i in range(10 * len(self.shown))]
        self.edge, self.labels = self.frames[::2], list(self.frames)
        self.blocks = [0] * len(self.labels)

    def image(self, stamp_ns: int) -> Image:
        """Return a frame."""
        return self._images[self._place(stamp_ns)]

    def truth(self, stamp_ns: int) -> Mapping[str, str]:
        """Return the number."""
        return {KEY: WORDS[self.shown[self._place(stamp_ns)][0]]}

    def scored(self, stamp_ns: int) -> Collection[str]:
        """Return its key; of the others nothing is known."""
        return (KEY,)

    def regions(self, stamp_ns: int) -> Mapping[str, Region]:
        """Return none."""
        return {}

    def _place(self, stamp_ns: int) -> int:
        return (stamp_ns - START_NS) // NS

    @cached_property
    def _images(self) -> list[Image]:
        found = []
        for _, path in self.shown:
            image = np.full((480, 640, 3), 128, np.uint8)
            photo = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            image[140:340, 220:420] = cv2.resize(photo, (200, 200),
                                                 interpolation=cv2.INTER_CUBIC)
            found.append(image)
        return found


def replayed(stream: Hands, delay_s: float) -> Part:
    """Ask both models, and the edge once more with each context of the full method."""
    latencies = Latencies.load()
    edge = EdgeModel.load(EdgeConfig(model='spot-mini-edge-hri', guard_odds=OFF))
    cloud = LocalCloud(checkpoint_path('spot-mini-cloud'))
    inputs = Inputs(stream, CachedEdge(edge, stream, Cache(None, '')),
                    CachedCloud(cloud, stream, Cache(None, '')), latencies)
    run = Replay(inputs, Sampling())
    replies = run.cloud.replies(Trace('fixed', '', delay_s))
    contexts = run.transfer(FULL, replies).contexts
    told = {s: inputs.edge(s, c, guarded=False) for s, c in contexts.items()}
    return Part(stream, run.alone, Heard(tuple(replies), contexts, told), latencies)


def main() -> None:
    """Print the share of right answers, of each minute and from the second on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('hands', type=Path)
    parser.add_argument('--people', choices=SPLITS, default='test')
    parser.add_argument('--minutes', type=int, default=3)
    parser.add_argument('--delay', type=float, default=0.3, help='of the cloud [s]')
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    stream = Hands(args)
    part = replayed(stream, args.delay)
    print(f'{len(stream.people)} people: {sorted(stream.people)}')
    truth = [stream.truth(s) for s in stream.labels]
    for name, published in (
            ('calibrated', Learner(stream.query).over([part])[0]),
            ('hold', systems.hold(part.heard.replies)), ('edge alone', part.alone.published),
            (f'guard at {ODDS:g}', fixed([part], ODDS)[0])):
        grid = right(latest(published, stream.labels), truth, (KEY,))
        minutes = [100 * grid[k:k + MINUTE].mean() for k in range(0, len(grid), MINUTE)]
        print(f'{name:12s}', *(f'{share:5.1f}' for share in minutes),
              f'  from the second on {100 * grid[MINUTE:].mean():.1f}' if minutes[1:] else '')


if __name__ == '__main__':
    main()
