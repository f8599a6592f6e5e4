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
Draws docs/demo.webp: a tuning drive answered by the full method and by the edge alone.

Replayed as SpotBench does, with the latencies of two CPU cores and an emulated cloud that is 2 s
late, so that it is the same on every machine. `spotvlm demo --movie` draws one of a live run. Run
from the root: `.venv/bin/ros-env python docs/draw_demo.py`.
"""

from pathlib import Path

from spotvlm_ros.bench.demo import AnsweredFrame, draw_movie
from spotvlm_ros.bench.spotbench.delays import HEADLINE, TRACES
from spotvlm_ros.bench.spotbench.latencies import Latencies
from spotvlm_ros.bench.spotbench.seeds import episodes
from spotvlm_ros.bench.spotbench.streams import Sampling, START_NS
from spotvlm_ros.bench.spotbench.systems import FULL
from spotvlm_ros.bench.spotbench.work import begin, OpenEpisode, Setup
from spotvlm_ros.method.facts import NS
from spotvlm_ros.mini.driving.scene import FPS
from spotvlm_ros.mini.shipped import checkpoint_path

SET, NUMBER = 'driving day', 1


def main() -> None:
    """Answer the frames of the drive in both ways and draw them."""
    begin(Setup(checkpoint_path('spot-mini-edge'), checkpoint_path('spot-mini-cloud'), None, None,
                Sampling(), Latencies.load()))
    episode = episodes('tune', SET, NUMBER + 1)[NUMBER]
    replay = OpenEpisode(episode).replay()
    full = replay.transfer(FULL, replay.cloud.replies(TRACES[HEADLINE]))
    rows = [AnsweredFrame(
        stamp, {'world': episode.world, 'seed': episode.seed, 'condition': episode.condition,
                'index': episode.first + round((stamp - START_NS) * FPS / NS)},
        dict(replay.stream.truth(stamp)), answer.values, full.contexts.get(stamp),
        replay.inputs.edge(stamp).values, {})
        for stamp, answer in sorted(full.answers.items())]
    right = [[sum(said.get(k) == v for k, v in row.truth.items()) / len(row.truth)
              for said in (row.full, row.alone)] for row in rows]
    print(f'{len(rows)} frames, right:', *(round(sum(r) / len(rows), 3) for r in zip(*right)))
    draw_movie(rows, Path(__file__).with_name('demo.webp'), replay.stream.query)


if __name__ == '__main__':
    main()
