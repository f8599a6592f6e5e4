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
A fleet on paper (`spotvlm perf fleet`): how many robots a replica carries, and what breaks first.

Bridges and batchers as they are, in simulated time; the model is a batch curve, which --measure
measures, the network a trace. Figures are computed, not measured; they are as good as the curve.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
import json
import math
from pathlib import Path
import sys

from .clock import SimulatedLoop
from .curve import Curve, read_curve, write_curve
from .simulated import KEYFRAME, Network, NETWORKS, Region, Robot, Setting
from ...config.profiles import load_profile
from ...mini.shipped import checkpoint_path

SETTLE_S = 10.0        # of simulated time before anything is counted
FRESH = 0.95           # share of the time that context is to be fresh
MOST = 1 << 14         # robots tried on one replica
HEADING = ('robots  replicas  fresh   age p50, p95      answers/s  wanted  refused  errors  busy')


@dataclass(frozen=True)
class Plan:
    """A fleet and what serves it."""

    curve: Curve
    setting: Setting
    robots: int
    replicas: int = 1       # of each region
    regions: int = 1
    max_batch: int = 8
    seconds: float = 40.0   # counted
    fresh_s: float = 3.0
    outage_s: tuple[float, float] = (0.0, 0.0)  # of the first region, after the settling
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a plan; shares are of the robots' time or requests."""

    robots: int
    replicas: int
    fresh: float
    age_p50_s: float
    age_p95_s: float
    answers_per_s: float
    wanted: float
    refused: float
    errors: float        # other than refusals
    busy: float          # share of the time that replicas compute
    fresh_by_s: tuple[float, ...]  # share of robots with fresh context, second by second

    def __str__(self) -> str:
        """Return a line below HEADING."""
        return (f'{self.robots:6}  {self.replicas:8}  {self.fresh:5.1%}  {self.age_p50_s:5.2f} s '
                f'{self.age_p95_s:6.2f} s  {self.answers_per_s:9.2f}  '
                f'{self.wanted:6.1%}  {self.refused:7.1%}  '
                f'{self.errors:6.1%}  {self.busy:5.1%}')


def simulate(plan: Plan) -> Outcome:
    """Return what came of a plan; the same plan gives the same."""
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(_simulated(plan))
    finally:
        loop.close()


async def _simulated(plan: Plan) -> Outcome:
    end_s = SETTLE_S + plan.seconds
    regions = [Region(f'region-{i}', plan.curve, plan.replicas, plan.max_batch, plan.seed)
               for i in range(plan.regions)]
    robots = [Robot(plan.seed + number, plan.setting, SETTLE_S) for number in range(plan.robots)]
    lives = [robot.live(regions[i % plan.regions:] + regions[:i % plan.regions], end_s)
             for i, robot in enumerate(robots)]
    outage = asyncio.ensure_future(_out(regions[0], plan.outage_s))
    bridges = await asyncio.gather(*lives)
    outage.cancel()
    for region in regions:
        region.close()
    ages = sorted(age for robot in robots for _, age in robot.ages_s)
    stats = [bridge.stats for bridge in bridges]
    requests = max(1, sum(s.requests for s in stats))
    refused = sum(s.errors_by['http_503'] + s.errors_by['http_429'] for s in stats)
    by_second: list[list[bool]] = [[] for _ in range(math.ceil(plan.seconds))]
    for robot in robots:
        for at, age in robot.ages_s:
            by_second[min(int(at - SETTLE_S), len(by_second) - 1)].append(age <= plan.fresh_s)
    wanted = plan.robots * plan.seconds * sum(
        1.0 / q.cloud_period_s for q in plan.setting.queries if q.cloud_period_s > 0)
    return Outcome(
        plan.robots, plan.replicas * plan.regions,
        fresh=sum(age <= plan.fresh_s for age in ages) / len(ages),
        age_p50_s=ages[len(ages) // 2], age_p95_s=ages[int(0.95 * len(ages))],
        answers_per_s=round(sum(r.answers for r in robots) / plan.seconds, 2),
        wanted=sum(r.answers for r in robots) / wanted, refused=refused / requests,
        errors=(sum(s.errors for s in stats) - refused) / requests,
        busy=sum(r.busy_s for r in regions) / (end_s * plan.replicas * plan.regions),
        fresh_by_s=tuple(round(sum(b) / max(1, len(b)), 4) for b in by_second))


async def _out(region: Region, outage_s: tuple[float, float]) -> None:
    """Have a region down for a while; its replicas are empty when they come back."""
    begin, end = outage_s
    if end > begin:
        await asyncio.sleep(SETTLE_S + begin)
        region.down = True
        await asyncio.sleep(end - begin)
        region.down = False


def robots_per_replica(plan: Plan, limit: int = MOST) -> int:
    """Return how many robots one replica carries with context that is fresh 95 % of the time."""
    def carries(robots: int) -> bool:
        return simulate(replace(plan, robots=robots, replicas=1, regions=1)).fresh >= FRESH
    low, high = 0, 1
    while high <= limit and carries(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if carries(middle) else (low, middle)
    return low


def recovery_s(outcome: Outcome, since_s: float) -> float:
    """Return when, after a moment, as many robots have fresh context again; inf for never."""
    return next((s - since_s for s, fresh in enumerate(outcome.fresh_by_s)
                 if s >= since_s and fresh >= FRESH), math.inf)


def at_scale(robots: int, per_replica: int, plan: Plan, cost: float) -> dict[str, float]:
    """Return what so many robots need: arithmetic, nothing else."""
    per_s = sum(1.0 / q.cloud_period_s for q in plan.setting.queries if q.cloud_period_s > 0)
    replicas = math.ceil(robots / max(1, per_replica))
    return {'robots': robots, 'requests_per_s': robots * per_s, 'replicas': replicas,
            'upload_gbit_s': robots * per_s * len(KEYFRAME.jpeg) * 4 / 3 * 8e-9,
            'cost_per_hour': replicas * cost, 'cost_per_robot_hour': replicas * cost / robots}


def _measured(arguments: argparse.Namespace) -> Curve:
    """Measure the curve of a checkpoint, on keyframes of the miniature world."""
    from .measured import measured_curve
    from ...serving.checkpoint import Checkpoint
    path = checkpoint_path(arguments.measure)
    curve = replace(measured_curve(Checkpoint(path, arguments.device), str(path),
                                   arguments.profile), name=path.name)
    write_curve(curve, arguments.curve)
    print(f'wrote {arguments.curve}')
    return curve


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm perf fleet', description=__doc__,
                                     epilog='example: spotvlm perf fleet --curve curve.json',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--curve', type=Path, required=True, metavar='FILE',
                        help='batch curve of the model')
    parser.add_argument('--measure', default='', metavar='MODEL',
                        help='measure that of a checkpoint here, and write it to --curve')
    parser.add_argument('--device', default='cpu', help='of --measure')
    parser.add_argument('--profile', default='driving', help='whose queries are asked')
    parser.add_argument('--network', default='mobile', choices=NETWORKS)
    parser.add_argument('--robots', type=int, nargs='+', default=[10, 100, 500])
    parser.add_argument('--max-batch', type=int, default=8, help='requests computed at once')
    parser.add_argument('--fresh', type=float, default=3.0,
                        help='context younger than this is fresh [s]')
    parser.add_argument('--seconds', type=float, default=40.0, help='simulated, of each fleet')
    parser.add_argument('--load', type=float, default=0.8, help='robots per replica, as a share '
                        'of what one carries alone')
    parser.add_argument('--cost', type=float, default=3.0, help='of a replica per hour')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, metavar='FILE', help='write all figures there')
    return parser


def main(argv: Sequence[str] | None = None, show: Callable[[str], None] = print) -> int:
    """Simulate fleets, print tables; return 0, or 2 where the curve cannot be read."""
    arguments = command_parser().parse_args(argv)
    try:
        curve = _measured(arguments) if arguments.measure else read_curve(arguments.curve)
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    network: Network = NETWORKS[arguments.network]
    setting = Setting(load_profile(arguments.profile).queries('cloud'), network)
    plan = Plan(curve, setting, 1, max_batch=arguments.max_batch, seconds=arguments.seconds,
                fresh_s=arguments.fresh, seed=arguments.seed)
    show(f'{curve.name} ({curve.measured_on or "not measured"}), network {network.name}: '
         f'{network.delay.text}; all figures are computed')
    show(str(curve))
    per_replica = robots_per_replica(plan)
    show(f'robots per replica, context younger than {plan.fresh_s:g} s {FRESH:.0%} of the time: '
         f'{per_replica}')
    loaded = max(1, int(arguments.load * per_replica))
    show(HEADING)
    outcomes = []
    for robots in arguments.robots:
        outcomes.append(simulate(replace(plan, robots=robots,
                                         replicas=math.ceil(robots / loaded))))
        show(str(outcomes[-1]))
    out = replace(plan, robots=arguments.robots[-1], regions=2, outage_s=(10.0, 20.0),
                  seconds=40.0, replicas=math.ceil(arguments.robots[-1] / 2 / loaded))
    broken = simulate(out)
    show(f'one of two regions down for 10 s, {out.robots} robots: fresh '
         f'{min(broken.fresh_by_s[10:20]):.1%} at worst, back {recovery_s(broken, 20.0):g} s '
         f'after the end; refused {broken.refused:.1%}')
    scale = [at_scale(robots, loaded, plan, arguments.cost) for robots in (10, 100, 10_000, 10**6)]
    for row in scale:
        show('  '.join(f'{key} {value:,.4g}' for key, value in row.items()))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({
            'curve': asdict(curve), 'network': network.name, 'robots_per_replica': per_replica,
            'fleets': [asdict(o) for o in outcomes], 'outage': asdict(broken), 'scale': scale},
            indent=2) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
