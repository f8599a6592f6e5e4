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
"""`spotvlm run`: the whole graph from one YAML, where launch is not installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
import json
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from .summary import print_summary, RunSummary
from ..config.arguments import RosArguments
from ..config.nodes import CameraConfig, MADE, NODE_CONFIGS
from ..config.profiles import check_cameras, check_file, lay, load_profile, Profile
from ..config.sections import Names
from ..config.spec import ParameterError
from ..method.prompt import printable
from ..mini.shipped import note_on
from ..system.machine import StealTime
from ..system.middleware import report_middleware_problem
from ..system.processes import Child, PYTHON
from ..system.signals import StopSignal
from ..view.address import AddressError, show

if TYPE_CHECKING:
    from .family import Awaited, Family
    from .monitor import Monitor  # imports ROS, which has to wait for the signal handlers
    from .view import ViewNode

DRAIN_S = 5.0  # longest wait for the last answers to arrive after the last frame
QUIET_S = 0.7  # no answer for this long: there will be none any more


@dataclass(frozen=True)
class RunConfig:
    """What to run; the command line in one place."""

    profile: str
    params_files: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    recorded: bool = False            # not of the miniature, which the profile's rate is for
    parameters: tuple[str, ...] = ()  # NODE.NAME:=VALUE, laid over all others
    remaps: tuple[str, ...] = ()      # FROM:=TO
    namespace: str = ''
    duration_s: float = 0.0  # 0 = to the end of the source
    multi_process: bool = False
    log_level: str = 'info'
    quiet: bool = False
    server_threads: int = 1
    record: bool = False     # keep all messages in the monitor, truth and context too
    output: str = ''         # folder for summary.json; empty: none
    view: str | None = None  # what shows it live, as open_view has it; None: nothing


def run(config: RunConfig, stop: StopSignal,
        watch: Callable[[Monitor], None] = lambda monitor: None) -> tuple[int, RunSummary]:
    """
    Run until the source ends, the duration is over or a signal comes.

    Return the exit code and the summary, empty where the graph did not come up. ``watch`` is
    given the monitor when it does. Errors are printed, not raised.
    """
    if report_middleware_problem(os.environ):
        return 1, {}
    with ExitStack() as stack:
        try:
            names = RosArguments(remaps=_remaps(config)).names(tuple(NODE_CONFIGS))
            profile = _profile(config, names)
            if not profile.cloud.base_url:
                threads = profile.cloud.embedded_threads or config.server_threads
                profile = profile.overlaid('cloud', {'embedded_threads': threads})
                print(f'starting the embedded cloud server ({profile.cloud.model}) ...',
                      flush=True)
            argv = _argv(config, profile.params_file(names), stack)
            return _run_graph(config, profile, argv, stop, watch, stack)
        except (AddressError, ParameterError, RuntimeError) as error:
            print(printable(f'error: {error}'), file=sys.stderr)
            return 1, {}
        except ImportError as error:
            print(f'error: {error}; run make setup, and see spotvlm doctor', file=sys.stderr)
            return 1, {}


def _profile(config: RunConfig, names: Names) -> Profile:
    """Check all files and lay them, and then what the command line sets, over one another."""
    sections = load_profile(config.profile, names=names).sections
    if config.recorded:
        sections = lay(sections, ('camera',), {'rate_hz': CameraConfig.rate_hz})
    for path in config.params_files:
        sections = check_file(Path(path), sections, names)
    for node, values in config.overrides.items():
        sections = lay(sections, (node,), values)
    profile = Profile(sections).with_values(config.parameters, names)
    check_cameras(profile)
    return profile


def _remaps(config: RunConfig) -> tuple[str, ...]:
    namespace = config.namespace.strip('/')
    return (*config.remaps, *([f'__ns:=/{namespace}'] if namespace else []))


def _argv(config: RunConfig, params: str, stack: ExitStack) -> list[str]:
    """Return the ROS arguments of all processes; ``params`` go into a file until the end."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='spotvlm-'))
    path = Path(folder) / 'params.yaml'
    path.write_text(params, encoding='utf-8')
    return ['--ros-args', '--log-level', config.log_level, '--params-file', str(path),
            *(word for rule in _remaps(config) for word in ('-r', rule))]


def _print_notes(config: RunConfig, profile: Profile) -> None:
    source = profile.camera.source
    if source != 'topic' and any('image' in rule for rule in config.remaps):
        print(f'note: source is {source}, so images are published by that name; --topic '
              'subscribes to it', flush=True)
    if profile.sections['edge'].get('use_sim_time') and source in MADE:
        print('note: use_sim_time is true, so nothing happens before /clock comes, which source '
              f'{source} does not give; leave it out where nobody else does', flush=True)
    note = '' if source == 'mini' else note_on(profile.edge.model)
    if note:
        print(f'note: {note}', flush=True)


def _run_graph(config: RunConfig, profile: Profile, argv: list[str], stop: StopSignal,
               watch: Callable[[Monitor], None], stack: ExitStack) -> tuple[int, RunSummary]:
    _print_notes(config, profile)
    if stop():
        return 0, {}

    from .executor import end_process, Graph  # imports ROS
    from .family import Awaited, Family
    from .monitor import Monitor
    sim_time = profile.sections['edge'].get('use_sim_time', False)
    graph = Graph(lambda: [Monitor(show=not config.quiet, keep=config.record),
                           *_views(config, profile)],
                  [*argv, '-p', f'use_sim_time:={json.dumps(sim_time)}'])
    monitor: Monitor = graph.nodes[0]
    for node in graph.nodes[1:]:
        show(node.viewer.url)
    stack.callback(monitor.end_screen)
    family, awaited = Family(profile, stack), Awaited(monitor, profile, config.multi_process)
    # The camera last. Processes of their own also where it is only one: the monitor must not take
    # the interpreter lock from the edge.
    for name in ('cloud', 'context', 'edge', 'camera') if config.multi_process else ('composed',):
        last = ['-p', 'exit_when_finished:=true'] if name in ('camera', 'composed') else []
        child = family.start(name, partial(Child, [
            *PYTHON, '-m', 'spotvlm_ros.cli', 'node', name, *argv, *last],
            log=monitor.log))
        embedded = name == 'cloud' and profile.cloud.autostart and not profile.cloud.base_url
        while embedded and not monitor.status and child.alive and not stop.wait(0.05):
            awaited.look()  # its server is starting
    steal = StealTime()
    watch(monitor)
    code, reason = _wait(config, monitor, family, awaited, stop)
    monitor.end_screen()
    if reason:
        print(reason, flush=True)
    family.stop()
    monitor.wait_for_log()
    ended = graph.close()
    summary = monitor.statistics.summary({
        'profile': config.profile, 'source': profile.camera.source,
        'edge_model': profile.edge.model, 'cloud_model': profile.cloud.model,
        'emulated_delay_median_s': profile.cloud.emulated_delay_median_s,
        'cpu_stolen': steal.fraction})
    print_summary(summary)
    _write_summary(config.output, summary)
    steal.print_warning()
    if not ended:
        stack.close()
        end_process(code)
    return code, summary


def _views(config: RunConfig, profile: Profile) -> list[ViewNode]:
    """Return the node of the live page, where one is wanted; raise AddressError."""
    if config.view is None:
        return []
    from .view import ViewNode
    node = profile.edge if config.multi_process else profile.camera
    transport = node.image_transport if profile.camera.source == 'topic' else 'compressed'
    cameras = dict.fromkeys(profile.camera.cameras or ('',), transport)
    return [ViewNode(f'spotvlm {Path(config.profile).stem} {config.namespace}'.rstrip(),
                     config.view, cameras, profile.cloud.emulated_delay_median_s)]


def _wait(config: RunConfig, monitor: Monitor, family: Family, awaited: Awaited,
          stop: StopSignal) -> tuple[int, str]:
    """Wait for the end; return the exit code and the reason, '' where there is nothing to say."""
    while not stop.wait(0.05):
        why = family.tend()
        if why:
            return 1, why
        began = monitor.statistics.first_s  # the duration counts from the first answer
        if config.duration_s and began and time.monotonic() - began > config.duration_s:
            return 0, ''
        if not began:
            awaited.look()
        if not family.source.alive:
            until = time.monotonic() + DRAIN_S
            monitor.quiet_since = max(monitor.quiet_since, time.monotonic())
            while time.monotonic() < min(until, monitor.quiet_since + QUIET_S):
                if stop.wait(0.05):
                    break
            if not monitor.statistics.first_s:
                return 1, 'the source ended and nothing was answered; the lines above say why'
            return 0, ''
    return 0, 'interrupted'


def _write_summary(folder: str, summary: RunSummary) -> None:
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n',
                                               encoding='utf-8')
