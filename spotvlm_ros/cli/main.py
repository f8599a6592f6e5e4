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
"""The command `spotvlm`. Each subcommand imports what it needs, when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import importlib
import os
import sys
from typing import Any

# Subcommands that live elsewhere and parse their own arguments: module:function, called with argv.
ELSEWHERE = {
    'demo': ('spotvlm_ros.bench.demo:main',
             'the whole graph for half a minute on the shipped models'),
    'bench': ('spotvlm_ros.bench.spotbench.main:main',
              'SpotBench: accuracy over delay, help and harm'),
    'perf': ('spotvlm_ros.bench.perf.main:main', 'overhead, latency and speed against baselines'),
    'replay': ('spotvlm_ros.recording.recorder:main',
               'run a recording again, without ROS, and compare'),
    'train': ('spotvlm_ros.mini.training.train:main', 'train the miniature models'),
    'doctor': ('spotvlm_ros.system.doctor:run', 'what is installed, what is missing, what to do'),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ['node']:  # for run --multi-process; everything after it is for ROS
        from ..nodes.main import run_node
        return run_node(argv[1], argv[2:], exit_on_failure=True)
    if argv and argv[0] in ELSEWHERE:
        return _elsewhere(argv[0], argv[1:])
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return command(arguments)


def _elsewhere(name: str, argv: list[str]) -> int:
    module, _, function = ELSEWHERE[name][0].partition(':')
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.rpartition('.')[0]):
            raise
        print(f'error: spotvlm {name} is not in this version yet ({module} is missing)',
              file=sys.stderr)
        return 1
    return int(getattr(found, function)(argv) or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser('spotvlm', description=__doc__)
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    run = commands.add_parser('run', help='run a profile: camera, edge, cloud and context')
    run.set_defaults(command=_run)
    run.add_argument('profile', help='driving, hri, or the path of a params file')
    source = run.add_argument_group('source of frames (default: as in the profile)')
    one = source.add_mutually_exclusive_group()
    one.add_argument('--video', metavar='FILE', help='video file')
    one.add_argument('--bag', metavar='DIR', help='rosbag2, mcap or sqlite3')
    one.add_argument('--images', metavar='DIR', help='folder of images')
    one.add_argument('--usb', metavar='N', type=int, help='number of a USB camera')
    one.add_argument('--mini', action='store_true', help='the miniature world')
    one.add_argument('--topic', action='store_true', help='topic image of the namespace')
    source.add_argument('--loop', action='store_true', help='start over at the end')
    graph = run.add_argument_group('graph')
    graph.add_argument('--params-file', action='append', default=[], metavar='FILE',
                       help='laid over the profile; may be repeated')
    graph.add_argument('-p', '--param', action='append', default=[], metavar='NODE.NAME:=VALUE',
                       help='one parameter, as edge.threads:=2 (without a node: every node)')
    graph.add_argument('--namespace', default='', metavar='NS', help='robot to run as')
    graph.add_argument('--multi-process', action='store_true', help='one process per node')
    graph.add_argument('--emulate-delay', type=float, metavar='MEDIAN',
                       help='add a lognormal delay to each cloud reply [s]; 0 = none')
    graph.add_argument('--server-threads', type=int, default=1, metavar='N',
                       help='CPU threads of the embedded server (default 1)')
    graph.add_argument('--duration', type=float, default=0.0, metavar='S',
                       help='end this long after the first answer [s]; 0 = at the end of the '
                       'source')
    output = run.add_argument_group('output')
    output.add_argument('--log-level', default='info',
                        choices=('debug', 'info', 'warn', 'error', 'fatal'))
    output.add_argument('--quiet', action='store_true', help='only the summary')
    output.add_argument('--out', default='', metavar='DIR', help='write summary.json there')
    output.add_argument('--record', default='', metavar='DIR',
                        help='write frames, answers and contexts there, for spotvlm replay')

    serve = commands.add_parser('serve', help='serve a checkpoint as an OpenAI-compatible server')
    serve.set_defaults(command=_serve)
    serve.add_argument('--model', default='spot-mini-cloud', help='shipped name or folder')
    serve.add_argument('--port', type=int, default=0, help='TCP port; 0 = any free one')
    serve.add_argument('--threads', type=int, default=1, help='CPU threads')

    ask = commands.add_parser('ask', help='ask a running graph about what the robot sees now')
    ask.set_defaults(command=_ask)
    ask.add_argument('prompt', nargs='?', default='', help='the question')
    ask.add_argument('--query', default='', metavar='ID', help='answer this configured query')
    ask.add_argument('--namespace', default='', metavar='NS', help='robot to ask')
    ask.add_argument('--timeout', type=float, default=5.0, metavar='S', help='give up after [s]')
    ask.add_argument('--max-tokens', type=int, default=0, metavar='N',
                     help="longest answer; 0 = the node's default")

    params = commands.add_parser('params', help='list all parameters, or check params files')
    params.set_defaults(command=_params)
    params.add_argument('files', nargs='*', help='params files to check')
    params.add_argument('--update', metavar='FILE', default='',
                        help='renew the tables in this Markdown file')

    for name, (_, text) in ELSEWHERE.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from ..system.signals import StopSignal
    stop = StopSignal()  # before the slow imports
    import yaml

    from ..config.nodes import NODE_CONFIGS
    from ..config.spec import ParameterError, specs
    from ..nodes.runner import run, RunConfig
    overrides: dict[str, dict[str, Any]] = {node: {} for node in NODE_CONFIGS}
    camera = overrides['camera']
    for source in ('video', 'bag', 'images'):
        if getattr(arguments, source):
            camera |= {'source': source, 'path': os.path.abspath(getattr(arguments, source))}
    if arguments.usb is not None:
        camera |= {'source': 'usb', 'device': arguments.usb}
    if camera:
        camera['rate_hz'] = 0.0  # the profile's is for the miniature; recordings have their own
    if arguments.mini or arguments.topic:
        camera['source'] = 'mini' if arguments.mini else 'topic'
    if arguments.loop:
        camera['loop'] = True
    if arguments.emulate_delay is not None:
        overrides['cloud']['emulated_delay_median_s'] = arguments.emulate_delay
    try:
        for text in arguments.param:
            name, sign, value = text.partition(':=')
            node, dot, rest = name.partition('.')
            if not sign:
                raise ParameterError(f'-p {text}: write NODE.NAME:=VALUE')
            targets = {node: rest} if dot and node in NODE_CONFIGS else dict.fromkeys(
                NODE_CONFIGS, name)
            for target, param in targets.items():
                if len(targets) == 1 or '.' in param or param in {
                        s.name for s in specs(NODE_CONFIGS[target])}:
                    overrides[target][param] = yaml.safe_load(value)
        if not any(overrides.values()) and arguments.param:
            raise ParameterError(f'-p {arguments.param[0]}: no node has that parameter')
        if arguments.record:
            for node in ('edge', 'context'):
                overrides[node]['record_dir'] = os.path.abspath(arguments.record)
    except (ParameterError, yaml.YAMLError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    config = RunConfig(
        profile=arguments.profile, params_files=tuple(arguments.params_file),
        overrides=overrides, namespace=arguments.namespace, duration_s=arguments.duration,
        multi_process=arguments.multi_process, log_level=arguments.log_level,
        quiet=arguments.quiet, server_threads=arguments.server_threads, output=arguments.out)
    code = run(config, stop)[0]
    stop.ignore()
    return code


def _serve(arguments: argparse.Namespace) -> int:
    from ..system.signals import StopSignal
    stop = StopSignal()  # before the slow imports
    from pathlib import Path

    from ..system.processes import Child
    from ..cloud.server import free_port, serve_command, serve_env
    from ..mini.shipped import model_name_or_path
    path = model_name_or_path(arguments.model)
    if not Path(path).is_dir():
        print(f'error: --model {arguments.model} is neither a shipped checkpoint nor a folder',
              file=sys.stderr)
        return 1
    port = arguments.port or free_port()
    command = serve_command(path, port)
    print(f'serving {path} at http://127.0.0.1:{port}/v1', flush=True)
    server = Child(command, serve_env(arguments.threads))
    while server.alive and not stop.wait(0.2):
        pass
    code = 0 if server.alive else server.process.returncode
    server.stop()
    stop.ignore()
    return code


def _ask(arguments: argparse.Namespace) -> int:
    from ..nodes.ask import ask
    return ask(arguments.prompt, arguments.query, arguments.namespace, arguments.timeout,
               arguments.max_tokens)


def _params(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from ..system.markdown import replace_between
    from ..config.profiles import check_file
    from ..config.spec import ParameterError
    from ..config.tables import markdown, MARKS
    if arguments.update:
        try:
            replace_between(Path(arguments.update), markdown(), MARKS)
        except (OSError, ValueError) as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
    elif not arguments.files:
        print(markdown())
    for name in arguments.files:
        try:
            check_file(Path(name))
        except ParameterError as error:
            print(f'error: {error}', file=sys.stderr)
            return 1
        print(f'{name}: fine')
    return 0


if __name__ == '__main__':
    sys.exit(main())
