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
Runs the whole graph on a miniature world and scores it (`spotvlm demo`).

The live part is `spotvlm run` with an emulated network delay. Afterwards the same frames
are answered again without context, by the same edge code, which gives the edge-alone column.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import re
import time
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import numpy.typing as npt

from ..config.nodes import EdgeConfig
from ..method.facts import Context, Fact, NS, Query
from ..method.guard import OFF
from ..mini.driving.scene import FPS, SCENE
from ..mini.worlds import make_world, NAMES
from ..system.machine import machine
from ..system.progress import tracked
from ..system.signals import StopSignal

if TYPE_CHECKING:
    from ..nodes.monitor import Monitor, ReceivedMessage

COLORS = {'none': '#dddddd', 'red': '#d62728', 'yellow': '#e6b800', 'green': '#2ca02c',
          '30': '#9ecae1', '50': '#6baed6', '80': '#3182bd', '100': '#08519c',
          'cruising': '#74c476', 'braking': '#d62728', 'sidewalk': '#fdae6b',
          'crossing': '#a63603'}
CAMERA_HZ = 12.0
MOVIE_S, MOVIE_HZ, MOVIE_WIDTH = 16.0, 5.0, 480
HELPED, HARMED = (120, 230, 140), (255, 120, 100)   # right through the cloud; wrong
Values = dict[str, str]
Outage = tuple[float, float]   # begin and end of a pause, after the first answer [s]


class FrameReference(TypedDict):
    """Names a frame of a world, so that it can be drawn again."""

    world: str
    seed: int
    condition: str | None
    index: int


class Accuracy(TypedDict):
    """Shares of right facts, of all facts of all answered frames."""

    edge_alone: float
    full: float
    cloud_held: float
    cloud_about_its_own_frame: float | None
    helped: float      # right only with context
    harmed: float      # right only without
    per_fact: dict[str, dict[str, float]]
    unit: str


@dataclass
class AnsweredFrame:
    """One answered frame: when, what was true, and the answer of each system."""

    stamp_ns: int
    reference: FrameReference
    truth: Values
    full: Values
    context: Context | None        # what the edge was given
    alone: Values
    held: Values                   # newest cloud answer that had arrived by then


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm demo', description=__doc__,
                                     epilog='example: spotvlm demo --duration 20 --delay 4')
    parser.add_argument('--duration', type=float, help='live part [s] (default 30)')
    parser.add_argument('--delay', type=float, default=1.5,
                        help='median of the emulated network delay, lognormal [s]; 0 = none')
    parser.add_argument('--world', choices=NAMES, default='driving', help='default: driving')
    parser.add_argument('--speed', type=float, default=1.0, metavar='TIMES',
                        help='how fast the world goes by: the faster, the older is a late answer')
    parser.add_argument('--cloud', type=_outage, action='append', default=[],
                        metavar='off@S..S', help='pause the cloud between these times after the '
                        'first answer, as off@10s..20s; may be repeated')
    parser.add_argument('--seed', type=int, default=1_000_004, help='episode of the world')
    parser.add_argument('--condition', default='', help='weather and light, such as day, rain or '
                        'night; default: by seed')
    parser.add_argument('--view', nargs='?', const='', metavar='WHERE',
                        help='as of spotvlm run; then the live part lasts 10 minutes by default')
    parser.add_argument('--movie', action='store_true', help='also draw movie.webp')
    parser.add_argument('--multi-process', action='store_true', help='one process per node')
    parser.add_argument('--out', type=Path, default=Path('out/demo'), help='folder to write')
    return parser


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    args = command_parser().parse_args(argv)
    if args.duration is None:
        args.duration = 30.0 if args.view is None else 600.0
    return args


def _outage(text: str) -> Outage:
    found = re.fullmatch(r'off@(\d+(?:\.\d+)?)s?\.\.(\d+(?:\.\d+)?)s?', text)
    if found is None or float(found[1]) >= float(found[2]):
        raise argparse.ArgumentTypeError(f'{text!r} is no pause; write off@10s..20s')
    return float(found[1]), float(found[2])


def main(argv: Sequence[str] | None = None) -> int:
    """Run, score, draw."""
    args = arguments(argv or [])
    stop = StopSignal()  # before the slow imports
    code = _demo(args, stop)
    stop.ignore()
    return code


def _demo(args: argparse.Namespace, stop: StopSignal) -> int:
    from ..nodes.runner import run, RunConfig
    monitors: list[Monitor] = []
    query = make_world(args.world, args.seed).queries[0]
    config = RunConfig(
        args.world, duration_s=args.duration, record=True, log_level='warn',
        multi_process=args.multi_process, view=args.view, overrides={
            'camera': {'source': 'mini', 'world': args.world, 'seed': args.seed,
                       'condition': args.condition, 'rate_hz': CAMERA_HZ, 'speed': args.speed},
            'cloud': {'emulated_delay_median_s': args.delay}})
    if args.delay:
        print(f'cloud replies are delayed by {args.delay:g} s at the median: emulated, not a '
              'real network', flush=True)

    def watch(monitor: Monitor) -> None:
        monitors.append(monitor)
        _pause(monitor, args.cloud)
    code, summary = run(config, stop, watch)
    if code or stop() or not monitors:
        return code
    rows, cloud_own = _rows(monitors[0].received, query)
    if not rows:
        print('error: no answer of the edge came with the truth of its frame; the log above '
              'says why, or see spotvlm doctor')
        return 1
    print(f'answering the same {len(rows)} frames without context ...', flush=True)
    if not _answer_alone(rows, query, str(summary['meta']['edge_model']), stop):
        return 0
    accuracy = summary['accuracy'] = _accuracy(rows, cloud_own)
    summary['meta'] |= {'seed': args.seed, 'machine': machine(), 'duration_s': args.duration,
                        'world': args.world, 'speed': args.speed}
    args.out.mkdir(parents=True, exist_ok=True)
    draw_timeline(rows, args.out / 'timeline.png', query, args.cloud)
    draw_frames(rows, args.out / 'frames.png', query)
    if args.movie:
        draw_movie(rows, args.out / 'movie.webp', query)
    (args.out / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    print(f'wrote summary.json, timeline.png and frames.png to {args.out}/')
    print(f'full {accuracy["full"]:.3f} | edge alone {accuracy["edge_alone"]:.3f} | last cloud '
          f'answer held {accuracy["cloud_held"]:.3f} | accuracy per fact over {len(rows)} frames '
          f'at {summary["answers_hz"]} Hz, answers p95 {summary["stamp_to_answer_ms"]["p95"]} ms '
          f'after the frame, {summary["errors"]} errors', flush=True)
    return 0


def _pause(monitor: Monitor, outages: Sequence[Outage]) -> None:
    """Have node cloud pause at the times after the first answer, and say so."""
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter
    if not outages:
        return
    client = monitor.create_client(SetParameters, 'cloud/set_parameters')
    paused = False

    def look() -> None:
        nonlocal paused
        first_s = monitor.statistics.first_s
        now = time.monotonic() - first_s if first_s else -1.0
        wanted = any(begin <= now < end for begin, end in outages)
        if wanted != paused and client.service_is_ready():
            paused = wanted
            client.call_async(SetParameters.Request(parameters=[
                Parameter('paused', value=wanted).to_parameter_msg()]))
            print(f'  cloud  {"paused" if paused else "goes on"} after {now:.0f} s', flush=True)
    monitor.create_timer(0.1, look)


# -- score --------------------------------------------------------------------------------------

def _values(facts: Sequence[Fact]) -> Values:
    return {f.key: f.value for f in facts}


def _rows(received: Sequence[ReceivedMessage], query: Query = SCENE,
          ) -> tuple[list[AnsweredFrame], list[float]]:
    """
    Pair each edge answer of the query, which asks for facts, with the truth of its frame.

    Return the frames by stamp, and the accuracy of each cloud answer about its own frame.
    """
    from spotvlm_msgs.msg import Answer, Context as ContextMsg

    from ..nodes.convert import context_from_msg, stamp_ns
    truth, contexts = {}, []
    edge: list[ReceivedMessage] = []
    cloud: list[ReceivedMessage] = []
    for item in received:
        message = item.message
        if isinstance(message, ContextMsg):
            if message.query_id == query.id:
                contexts.append(context_from_msg(message))
        elif message.source == Answer.SOURCE_TRUTH:
            truth[stamp_ns(message.header.stamp)] = message
        elif message.query_id == query.id:
            (edge if message.source == Answer.SOURCE_EDGE else cloud).append(item)
    rows = []
    for item in edge:
        at = stamp_ns(item.message.header.stamp)
        if at not in truth:
            continue
        arrived = [c for c in cloud if c.arrived_ns <= item.arrived_ns]
        newest = max(arrived, key=lambda c: stamp_ns(c.message.header.stamp), default=None)
        rows.append(AnsweredFrame(
            at, json.loads(truth[at].text), _values(truth[at].facts), _values(item.message.facts),
            _context_of(item, at, contexts), {},
            _values(newest.message.facts) if newest is not None else {}))
    own = [_right(_values(c.message.facts), _values(truth[at].facts)) for c in cloud
           if (at := stamp_ns(c.message.header.stamp)) in truth]
    return sorted(rows, key=lambda r: r.stamp_ns), own


def _context_of(item: ReceivedMessage, at: int, contexts: Sequence[Context]) -> Context | None:
    """Return the context that an answer about a frame at ``at`` [ns] says it used."""
    if not item.message.used_context:
        return None
    age = item.message.context_age
    newest_ns = at - age.sec * NS - age.nanosec
    return next((c for c in reversed(contexts) if c.stamp_ns <= at
                 and abs(newest_ns - c.newest_ns) < 1000), None)


def _right(answer: Values, truth: Values) -> float:
    return float(np.mean([answer.get(key) == value for key, value in truth.items()]))


def _answer_alone(rows: Sequence[AnsweredFrame], query: Query, model_name: str,
                  stop: StopSignal) -> bool:
    """Answer each row's frame again without context; return False when interrupted."""
    from ..edge.model import EdgeModel
    model = EdgeModel.load(EdgeConfig(model=model_name, guard_odds=OFF))
    for row in tracked(rows, 'frames, edge alone', len(rows)):
        if stop():
            return False
        row.alone = _values(model.answer(_frame(row), query, None, row.stamp_ns).facts)
    return True


def _frame(row: AnsweredFrame) -> npt.NDArray[np.uint8]:
    """Draw the row's frame again, bit for bit."""
    reference = row.reference
    world = make_world(reference['world'], reference['seed'], reference['condition'])
    return world.frame(reference['index'])


def _accuracy(rows: Sequence[AnsweredFrame], cloud_own: Sequence[float]) -> Accuracy:
    """Return the share of right facts per system, and how often context helped and harmed."""
    pairs = [(r.full.get(k) == v, r.alone.get(k) == v) for r in rows for k, v in r.truth.items()]
    return {
        'edge_alone': round(float(np.mean([_right(r.alone, r.truth) for r in rows])), 4),
        'full': round(float(np.mean([_right(r.full, r.truth) for r in rows])), 4),
        'cloud_held': round(float(np.mean([_right(r.held, r.truth) for r in rows])), 4),
        'cloud_about_its_own_frame': round(float(np.mean(cloud_own)), 4) if cloud_own else None,
        'helped': round(float(np.mean([full and not alone for full, alone in pairs])), 4),
        'harmed': round(float(np.mean([alone and not full for full, alone in pairs])), 4),
        'per_fact': {key: {
            'edge_alone': round(float(np.mean([r.alone.get(key) == r.truth[key] for r in rows])),
                                4),
            'full': round(float(np.mean([r.full.get(key) == r.truth[key] for r in rows])), 4),
        } for key in rows[0].truth},
        'unit': 'facts right, of all facts of all answered frames',
    }


# -- draw ---------------------------------------------------------------------------------------

def draw_timeline(rows: Sequence[AnsweredFrame], path: Path, query: Query = SCENE,
                  outages: Sequence[Outage] = ()) -> None:
    """Draw what each system said over time, a strip per fact and system, truth on top."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    begin = rows[0].stamp_ns
    figure, axes = pyplot.subplots(len(query.keys), 1, figsize=(12, 8), sharex=True,
                                   constrained_layout=True)
    systems = ('truth', 'full', 'alone', 'held')
    names = ('truth', 'full', 'edge alone', 'last cloud answer')
    times = [(r.stamp_ns - begin) / NS for r in rows]
    widths = np.diff([*times, times[-1] + 1 / FPS])
    for axis, key in zip(np.atleast_1d(axes), query.keys):
        colors = _colors(query.choices[key])
        for begin_s, end_s in outages:
            axis.axvspan(begin_s, end_s, color='#999999', alpha=0.25, zorder=0)
        for y, system in enumerate(systems):
            values = [getattr(r, system).get(key, '') for r in rows]
            axis.barh([-y] * len(rows), widths, left=times, height=0.8,
                      color=[colors.get(v, '#ffffff') for v in values])
            wrong = [t for t, v, r in zip(times, values, rows) if v != r.truth[key]]
            axis.plot(wrong, [-y - 0.47] * len(wrong), 'k|', markersize=3)
        axis.set_yticks([-y for y in range(len(systems))], names)
        axis.set_title(key, loc='left', fontsize=10)
        axis.legend(handles=[Patch(color=colors[v], label=v) for v in query.choices[key]],
                    ncols=len(colors), loc='lower right', bbox_to_anchor=(1, 1.0), fontsize=8,
                    frameon=False)
    np.atleast_1d(axes)[-1].set_xlabel('time [s]; ticks below a strip: wrong there')
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _colors(choices: Sequence[str]) -> dict[str, str]:
    """Return a colour for each value, those of COLORS where they have one."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex
    return {v: COLORS.get(v) or to_hex(colormaps['tab20'](n % 20)) for n, v in enumerate(choices)}


def draw_frames(rows: Sequence[AnsweredFrame], path: Path, query: Query = SCENE,
                count: int = 6) -> None:
    """Draw some answered frames with focus regions and answers, those first where it mattered."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    from ..method.focus import focus_boxes, FocusConfig
    from ..method.history import unexpired
    figure, axes = pyplot.subplots(2, count // 2, figsize=(15, 9.2), constrained_layout=True)
    for axis, row in zip(axes.flat, _chosen(rows, count)):
        frame = _frame(row)
        axis.imshow(frame)
        axis.set_axis_off()
        context = unexpired(row.context, query, row.stamp_ns) if row.context is not None else None
        boxes = focus_boxes(query, context, row.stamp_ns, frame.shape[1], frame.shape[0],
                            FocusConfig())
        for key, (x0, y0, x1, y1) in boxes.items():
            axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color='cyan'))
            axis.text(x0, y0 - 4, key, color='cyan', fontsize=8)
        axis.set_title(_caption(query, row, context.facts if context is not None else ()),
                       fontsize=8, loc='left', family='monospace')
    for axis in axes.flat[len(rows):]:
        axis.set_axis_off()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def draw_movie(rows: Sequence[AnsweredFrame], path: Path, query: Query = SCENE) -> None:
    """Draw the last seconds as a moving picture: what was told, said with it, and said without."""
    from PIL import Image

    from ..frames.annotate import annotate, Color, WHITE
    from ..method.history import unexpired
    pictures, next_ns = [], rows[-1].stamp_ns - int(MOVIE_S * NS)
    for row in rows:
        if row.stamp_ns < next_ns:
            continue
        next_ns = max(next_ns, rows[0].stamp_ns) + int(NS / MOVIE_HZ)
        context = unexpired(row.context, query, row.stamp_ns) if row.context is not None else None
        told = {f.key: f for f in context.facts} if context is not None else {}
        lines: list[tuple[str, Color]] = [('what is said, what it would be without the cloud, '
                                           'what it said', WHITE)]
        for key in query.keys:
            full, alone, true = row.full.get(key, ''), row.alone.get(key, ''), row.truth[key]
            late = f'{told[key].value}, {(row.stamp_ns - told[key].stamp_ns) / NS:.1f} s ago' \
                if key in told else ''
            lines.append((f'{key}: {full}; alone: {alone}{" (wrong)" * (alone != true)}; '
                          f'cloud: {late}', HELPED if full == true != alone else
                          HARMED if full != true else WHITE))
        picture = annotate(_frame(row), context.focus if context is not None else {}, True, lines)
        pictures.append(Image.fromarray(picture).resize(
            (MOVIE_WIDTH, round(picture.shape[0] * MOVIE_WIDTH / picture.shape[1]))))
    # As high as the highest: lines may be broken.
    box = 0, 0, MOVIE_WIDTH, max(picture.height for picture in pictures)
    first, *others = (picture.crop(box) for picture in pictures)
    first.save(path, save_all=True, append_images=others, loop=0, quality=55,
               duration=round(1e3 / MOVIE_HZ), method=4)


def _chosen(rows: Sequence[AnsweredFrame], count: int) -> list[AnsweredFrame]:
    """Return rows spread over time, preferring those where full and edge alone differ."""
    chosen = []
    for part in np.array_split(np.arange(len(rows)), count):
        if len(part):
            chosen.append(max((rows[i] for i in part), key=lambda r: (
                sum(r.full.get(k) != r.alone.get(k) for k in r.truth), r.context is not None)))
    return chosen


def _caption(query: Query, row: AnsweredFrame, facts: Sequence[Fact]) -> str:
    context = {f.key: f'{f.value} {(row.stamp_ns - f.stamp_ns) / NS:.1f}s' for f in facts}
    lines = [f'{"":<11}{"context":<15}{"full":<11}{"alone":<11}truth']
    for key in query.keys:
        full, alone = row.full.get(key, '-'), row.alone.get(key, '-')
        marks = [' ' if v == row.truth[key] else '!' for v in (full, alone)]
        lines.append(f'{key:<11}{context.get(key, "-"):<15}{full + marks[0]:<11}'
                     f'{alone + marks[1]:<11}{row.truth[key]}')
    return '\n'.join(lines)
