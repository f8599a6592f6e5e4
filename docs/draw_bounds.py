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
Draws docs/real_bounds.png: gain and harm over the bound of harm, of several runs together.

Each run is the results.json of `spotvlm bench --frames ... --calibration`; runs count the same.
From the root: `.venv/bin/ros-env python docs/draw_bounds.py 'six cities' out/*/results.json`.
"""

from collections import defaultdict
from pathlib import Path
from statistics import fmean
import sys

from matplotlib import pyplot
from spotvlm_ros.bench.spotbench.cells import Cell, CellTable, read
from spotvlm_ros.bench.spotbench.plots import over_bounds, whole


def main(title: str, *paths: str) -> None:
    """Draw the mean of all runs."""
    values: dict[tuple[str, str, str, str, str], list[float]] = defaultdict(list)
    for path in paths:
        cells = read(Path(path))[0]
        world = whole(CellTable(cells))
        for cell in cells:
            if cell.world == world:
                values[(title, *cell[1:5])].append(cell.value)
    figure = over_bounds(CellTable(
        Cell(*name, fmean(v), None, 0) for name, v in values.items() if len(v) == len(paths)))
    if figure is None:
        sys.exit('no bounds in these results; run spotvlm bench --frames with --calibration')
    figure.savefig(Path(__file__).with_name('real_bounds.png'), dpi=120)
    pyplot.close(figure)


if __name__ == '__main__':
    pyplot.switch_backend('Agg')
    main(*sys.argv[1:])
