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
Draws docs/method.png with the real method: what was told, when, and where it came from.

Run from the root: `.venv/bin/ros-env python docs/draw_method.py`.
"""

from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.patches import Patch
from spotvlm_ros.method.facts import NS, Source, Turn
from spotvlm_ros.method.transfer import Transfer
from spotvlm_ros.mini.driving.scene import SCENE
from spotvlm_ros.mini.worlds import make_world

matplotlib.use('Agg')
SEED, FIRST, FRAMES = 1_000_001, 420, 200          # ten seconds of a tuning drive
REPLIES = ((0, 2.6), (24, 3.2), (48, 1.9), (80, 3.4), (104, 2.2), (132, 2.8))  # frame, delay [s]
COLORS = {'none': '#e6e6e6', 'red': '#d62728', 'yellow': '#e6b800', 'green': '#2ca02c',
          '30': '#9ecae1', '50': '#6baed6', '80': '#3182bd', '100': '#08519c',
          'cruising': '#74c476', 'braking': '#d62728', 'sidewalk': '#fdae6b',
          'crossing': '#a63603'}


def stamp(frame: int) -> int:
    """Return the stamp of a frame."""
    return 1000 * NS + frame * NS // 20


def main() -> None:
    """Run the method over a drive and draw what it tells."""
    world, transfer = make_world('driving', SEED, 'day'), Transfer([SCENE])
    due = {round(frame + 20 * delay): frame for frame, delay in REPLIES}
    told: dict[str, list[tuple[float, str, float]]] = {key: [] for key in SCENE.keys}
    truth: dict[str, list[tuple[float, str]]] = {key: [] for key in SCENE.keys}
    for frame in range(0, FRAMES, 2):
        index, now = FIRST + frame, stamp(frame)
        for arrival in (frame, frame + 1):
            if arrival in due:
                then = due[arrival]
                transfer.add(Turn('scene', stamp(then), Source.CLOUD,
                                  world.facts(FIRST + then, stamp(then))))
        transfer.frame(now, world.frame(index))
        for fact in transfer.context('scene', now).facts:
            told[fact.key].append((frame / 20, fact.value, (now - fact.stamp_ns) / NS))
        for fact in world.facts(index, now):
            truth[fact.key].append((frame / 20, fact.value))
    draw(told, truth)


def draw(told: dict[str, list[tuple[float, str, float]]],
         truth: dict[str, list[tuple[float, str]]]) -> None:
    """Draw one row per fact: the truth, and below it what the context says and how old it is."""
    figure, axes = pyplot.subplots(len(told) + 1, 1, figsize=(11, 7.5), sharex=True,
                                   constrained_layout=True,
                                   gridspec_kw={'height_ratios': [1.1] + [1] * len(told)})
    top, *rows = axes
    for frame, delay in REPLIES:
        start = frame / 20
        top.annotate('', (start + delay, 0), (start, 1), arrowprops={'arrowstyle': '->'})
        top.plot(start, 1, 'ks', markersize=5)
        top.plot(start + delay, 0, 'ko', markersize=5)
    top.set_yticks([1, 0], ['keyframe leaves', 'answer arrives'])
    top.set_ylim(-0.4, 1.4)
    top.set_title('A late cloud answer takes its place by the stamp of its frame; it is told with '
                  'its age', loc='left', fontsize=10)
    for axis, key in zip(rows, told):
        for at, value in truth[key]:
            axis.barh(1, 0.1, left=at, height=0.75, color=COLORS[value])
        for at, value, age in told[key]:
            axis.barh(0, 0.1, left=at, height=0.75, color=COLORS[value],
                      alpha=max(0.3, 1 - age / 6))
        axis.set_yticks([1, 0], ['truth', 'context'])
        axis.set_ylim(-0.6, 1.6)
        axis.set_title(key, loc='left', fontsize=10)
        seen = {value for _, value in truth[key]} | {value for _, value, _ in told[key]}
        axis.legend(handles=[Patch(color=COLORS[v], label=v) for v in SCENE.choices[key]
                             if v in seen], ncols=5, fontsize=8, frameon=False,
                    loc='lower right', bbox_to_anchor=(1, 0.93))
    rows[-1].set_xlabel('time [s]; the fainter, the older; white: nothing is told')
    figure.savefig(Path(__file__).with_name('method.png'), dpi=100)


if __name__ == '__main__':
    main()
