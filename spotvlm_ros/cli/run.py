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
"""`spotvlm run`: camera, edge, cloud and context as a profile has them."""

from __future__ import annotations

import argparse
import os

HELP = 'run a profile: camera, edge, cloud and context'
EXAMPLE = 'spotvlm run driving --mini --duration 30'
Overrides = dict[str, dict[str, object]]  # values of parameters by node and name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('profile', help='driving, hri, or the path of a params file')
    source = parser.add_argument_group('source of frames (default: as in the profile)')
    one = source.add_mutually_exclusive_group()
    one.add_argument('--video', metavar='FILE', help='video file')
    one.add_argument('--bag', metavar='DIR', help='rosbag2, mcap or sqlite3')
    one.add_argument('--images', metavar='DIR', help='folder of images')
    one.add_argument('--usb', metavar='N', type=int, help='number of a USB camera')
    one.add_argument('--mini', action='store_true', help='the miniature world')
    one.add_argument('--topic', action='store_true', help='topic image of the namespace')
    source.add_argument('--loop', action='store_true', help='start over at the end')
    graph = parser.add_argument_group('graph')
    graph.add_argument('--params-file', action='append', default=[], metavar='FILE',
                       help='laid over the profile; may be repeated')
    graph.add_argument('-p', '--param', action='append', default=[], metavar='NODE.NAME:=VALUE',
                       help='one parameter, as edge.threads:=2 (without a node: every node)')
    graph.add_argument('-r', '--remap', action='append', default=[], metavar='FROM:=TO',
                       help='another name of a topic, as image:=/camera/image_raw')
    graph.add_argument('--ros-args', action='store_true',
                       help='may stand before -p, -r, --params-file and --log-level, as for ros2 '
                       'run')
    graph.add_argument('--namespace', default='', metavar='NS', help='robot to run as')
    graph.add_argument('--multi-process', action='store_true', help='one process per node')
    graph.add_argument('--emulate-delay', type=float, metavar='MEDIAN',
                       help='add a lognormal delay to each cloud reply [s]; 0 = none')
    graph.add_argument('--server-threads', type=int, default=1, metavar='N',
                       help='CPU threads of the embedded server (default 1)')
    graph.add_argument('--duration', type=float, default=0.0, metavar='S',
                       help='end this long after the first answer [s]; 0 = at the end of the '
                       'source')
    output = parser.add_argument_group('output')
    output.add_argument('--log-level', default='info',
                        choices=('debug', 'info', 'warn', 'error', 'fatal'))
    output.add_argument('--quiet', action='store_true', help='only the summary')
    output.add_argument('--out', default='', metavar='DIR', help='write summary.json there')
    output.add_argument('--view', nargs='?', const='', metavar='WHERE',
                        help='serve a live page: to this machine, or at HOST:PORT, with a token; '
                        'or foxglove[:HOST:PORT], rerun[:FILE.rrd]')
    output.add_argument('--record', default='', metavar='DIR',
                        help='write frames, answers and contexts there, for spotvlm replay')


def execute(arguments: argparse.Namespace) -> int:
    """Run the graph and return its exit code."""
    from ..system.signals import StopSignal
    stop = StopSignal()  # before the slow imports
    from ..nodes.runner import run, RunConfig
    config = RunConfig(
        profile=arguments.profile, params_files=tuple(arguments.params_file),
        overrides=_overrides(arguments), parameters=tuple(arguments.param),
        recorded=bool(arguments.video or arguments.bag or arguments.images
                      or arguments.usb is not None),
        remaps=tuple(arguments.remap), namespace=arguments.namespace,
        duration_s=arguments.duration, multi_process=arguments.multi_process,
        log_level=arguments.log_level, quiet=arguments.quiet,
        server_threads=arguments.server_threads, output=arguments.out, view=arguments.view)
    code = run(config, stop)[0]
    stop.ignore()
    return code


def _overrides(arguments: argparse.Namespace) -> Overrides:
    """Return the parameters that options other than -p set."""
    from ..config.nodes import NODE_CONFIGS
    overrides: Overrides = {node: {} for node in NODE_CONFIGS}
    overrides['camera'] |= _camera(arguments)
    if arguments.emulate_delay is not None:
        overrides['cloud']['emulated_delay_median_s'] = arguments.emulate_delay
    if arguments.record:
        for node in ('edge', 'context'):
            overrides[node]['record_dir'] = os.path.abspath(arguments.record)
    return overrides


def _camera(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the parameters of the camera that name the source of frames."""
    camera: dict[str, object] = {}
    for source in ('video', 'bag', 'images'):
        if getattr(arguments, source):
            camera |= {'source': source, 'path': os.path.abspath(getattr(arguments, source))}
    if arguments.usb is not None:
        camera |= {'source': 'usb', 'device': arguments.usb}
    if arguments.mini or arguments.topic:
        camera['source'] = 'mini' if arguments.mini else 'topic'
    if arguments.loop:
        camera['loop'] = True
    return camera
