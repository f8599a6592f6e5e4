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
The running graph under attack: hostile replies, forged messages, image bombs, asks, transitions.

``spotvlm perf faults`` starts the composed process of ``spotvlm run driving --mini`` and does to
it what `kinds` lists, from other processes: each kind by itself, then all in random turns
(``--soak``), then kills processes of ``spotvlm run`` (``--kills``), then sends random and mutated
replies through HTTP and the parser alone. Judged are the
edge's answers per second against those just before and after, its memory, and the exceptions that
were logged. ``--network`` puts robot and cloud into two network namespaces and takes the link
down instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
import os
from pathlib import Path
from random import Random
import sys
import time

from .faults_report import (Attacked, kill_cells, KILLS_HEAD, markdown, MARKS, print_table,
                            results)
from .result import write_results
from ..faults import network
from ..faults.kills import Kill, kill_all, MODES
from ..faults.kinds import Kind, KINDS, SOAK_SCENE
from ..faults.replies import MUTATED, parse_all, RANDOM
from ..faults.scene import LinkScene, meet, Scene, Turn
from ...system.machine import StealTime
from ...system.markdown import replace_between
from ...system.processes import PYTHON

SOAK_S = 480.0
FIRST_S = 0.5  # of each kind, before the soak
KILLS_S = 10.0


def meet_all(attacked: Attacked, name: str, kinds: Iterator[Kind],
             meet_one: Callable[[Scene, Kind], None]) -> None:
    """Meet kinds one after another; a graph that does not come back is started anew."""
    scene_name = SOAK_SCENE if name == 'soak' else name
    kind = next(kinds, None)
    while kind is not None:
        with Scene(scene_name) as scene:
            while kind is not None:
                try:
                    meet_one(scene, kind)
                except RuntimeError as error:
                    attacked.broken.append(f'{kind.title}: the graph did not come back: {error}')
                    print(attacked.broken[-1], flush=True)
                    break
                kind = next(kinds, None)
        kind = next(kinds, None)
        attacked.exits[name] = attacked.exits.get(name) or scene.robot.exit_code


def each(attacked: Attacked, kinds: Sequence[Kind], seconds: float, clean_s: float,
         times: int) -> None:
    """
    Meet each kind by itself, one whose rate is too low longer: so often, and all of it counts.

    In nine seconds one answer more or less is 1.6 % of them.
    """
    def meet_one(scene: Scene, kind: Kind) -> None:
        for _ in range(times):
            attacked.turns.append(meet(scene, kind, seconds, clean_s))
            show(attacked.turns[-1])
            if kind.least is None or attacked.of_kind()[-1].ratio >= kind.least:
                break
    for name in dict.fromkeys(kind.scene for kind in kinds):
        meet_all(attacked, name, (k for k in kinds if k.scene == name), meet_one)


def soak(attacked: Attacked, kinds: Sequence[Kind], seconds: float, seed: int) -> None:
    """
    Meet kinds in random turns, all of them before any again.

    A short turn of each comes before, outside of ``seconds``: what the first of a kind takes is
    told apart from what further ones do, which would be a leak.
    """
    draw = Random(seed)
    kinds = [k for k in kinds if k.scene in ('mini', SOAK_SCENE)]

    def turns() -> Iterator[Kind]:
        yield from draw.sample(kinds, len(kinds))
        until = time.monotonic() + seconds
        while kinds:
            for kind in draw.sample(kinds, len(kinds)):
                if time.monotonic() > until:
                    return
                yield kind

    def meet_one(scene: Scene, kind: Kind) -> None:
        first = len(attacked.first_mb) < len(kinds)
        turn = meet(scene, kind, FIRST_S if first else draw.uniform(1.0, 4.0), 1.0)
        attacked.soaked.append(turn)
        (attacked.first_mb if first else attacked.soak_mb).append(turn.memory_mb[2])
        show(turn)
    meet_all(attacked, 'soak', turns(), meet_one)


def show(turn: Turn) -> None:
    """Print a line."""
    print(f'{turn.kind.title:40} {turn.tried:5} tried, edge {turn.hz:5.2f} of '
          f'{turn.clean_hz:5.2f} Hz ({turn.ratio:6.1%}), gap {turn.gap_s:4.2f} s, back after '
          f'{turn.back_s:4.1f} s, at most {turn.memory_mb[1]:.0f} MB, {turn.exceptions} '
          f'exceptions; others took {turn.others:.1f} cores', flush=True)


def kills(attacked: Attacked, only: Sequence[str], seconds: float, rest_s: float) -> None:
    """Kill each process in each mode, or those that are asked for."""
    victims = {mode: [name for name in names if not only or any(
        word in f'kill: {name} {mode}' for word in only)] for mode, names in MODES.items()}
    done, exits = kill_all({m: n for m, n in victims.items() if n}, seconds, rest_s, show_kill)
    attacked.kills += done
    attacked.exits |= exits


def show_kill(kill: Kill) -> None:
    """Print a line."""
    print(', '.join(f'{name} {cell}' for name, cell in zip(KILLS_HEAD, kill_cells(kill))),
          flush=True)


def real_network(attacked: Attacked, least: float, lengths: Sequence[float],
                 clean_s: float) -> None:
    """Meet a killed server and a lost link; this process must be in a namespace of its own."""
    with LinkScene() as scene:
        for name, length in zip(LinkScene.NAMES, lengths):
            kind = Kind('network', name, 'network', least)
            attacked.turns.append(meet(scene, kind, length, clean_s))
            show(attacked.turns[-1])
    attacked.exits['network'] = scene.robot.exit_code


def isolate(argv: Sequence[str]) -> int:
    """Run this program in a namespace of its own."""
    why = network.why_not()
    if why:
        print(f'skipped: {why}')
        return 0
    command = [*PYTHON, '-m', 'spotvlm_ros.bench.perf.faults', *argv]
    return network.isolated(command, {**os.environ, 'SPOTVLM_ISOLATED': '1'})


def run(arguments: argparse.Namespace) -> Attacked:
    """Do what the command line says."""
    attacked = Attacked()
    if arguments.network:
        real_network(attacked, 1.0 - (arguments.tolerance or 0.05),
                     (arguments.seconds, arguments.outage), arguments.clean)
        return attacked
    only = [name.casefold() for name in arguments.faults]
    kinds = [k for k in KINDS if not only or any(name in k.title.casefold() for name in only)]
    if arguments.tolerance:
        kinds = [replace(k, least=k.least and 1.0 - arguments.tolerance) for k in kinds]
    if arguments.seconds:
        each(attacked, kinds, arguments.seconds, arguments.clean, arguments.times)
    if arguments.soak:
        soak(attacked, kinds, arguments.soak, arguments.seed)
    if arguments.kills:
        kills(attacked, only, arguments.kills, arguments.clean)
    if arguments.replies:
        attacked.replies = parse_all(
            arguments.replies, max(1, arguments.replies * MUTATED // RANDOM), arguments.seed)
        print(attacked.replies, flush=True)
    return attacked


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm perf faults', description=__doc__,
                                     epilog='example: spotvlm perf faults --faults asks --soak 0',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--faults', nargs='*', default=[], metavar='TEXT',
                        help='only kinds with one of these in their names, as: whole asks bag')
    parser.add_argument('--seconds', type=float, default=9.0,
                        help='length of an attack; 0: only the soak')
    parser.add_argument('--clean', type=float, default=3.0, help='time without, after each [s]')
    parser.add_argument('--tolerance', type=float, default=0.0, help='of the edge rate, for all '
                        'kinds; 0: that of each')
    parser.add_argument('--times', type=int, default=3, help='repeat a kind whose rate is too '
                        'low up to so often; all of it counts')
    parser.add_argument('--soak', type=float, default=SOAK_S, metavar='S',
                        help='length of the soak with all kinds in random turns; 0: none')
    parser.add_argument('--kills', type=float, default=KILLS_S, metavar='S', help='time that '
                        'rates are taken over before and after each kill; 0: none')
    parser.add_argument('--replies', type=int, default=RANDOM, metavar='N',
                        help='number of random replies, and a twentieth of it mutated; 0: none')
    parser.add_argument('--seed', type=int, default=0, help='of turns and replies')
    parser.add_argument('--network', action='store_true', help='two namespaces and a real link')
    parser.add_argument('--outage', type=float, default=30.0, help='time without a link [s]')
    parser.add_argument('--out', type=Path, default=Path('out/faults/results.json'),
                        metavar='FILE', help='write the figures there')
    parser.add_argument('--update', type=Path, metavar='FILE',
                        help='put the tables of what was done into this Markdown file, between '
                        'its marks')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Attack, print a table, write results.json; return 1 when a bar was not met, and name it."""
    arguments = command_parser().parse_args(argv)
    if arguments.network and os.environ.get('SPOTVLM_ISOLATED') != '1':
        return isolate(list(sys.argv[1:] if argv is None else argv))
    meanwhile = StealTime()
    attacked = run(arguments)
    print_table(attacked)
    meanwhile.print_warning()
    write_results(results(attacked), arguments.out)
    print(f'wrote {arguments.out}')
    if arguments.update is not None:
        for name, part in attacked.parts().items():
            replace_between(arguments.update, markdown(part, meanwhile.fraction), MARKS[name])
    for text in attacked.failures():
        print(f'bar not met: {text}')
    return 1 if attacked.failures() else 0


if __name__ == '__main__':
    sys.exit(main())
