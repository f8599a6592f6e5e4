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
"""A robot under test: its nodes, in this process or their own, and when they answered what."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
import gc
import itertools
import json
from pathlib import Path
import re
import subprocess
import tempfile
import threading
import time
from types import TracebackType
from typing import TypeVar
import urllib.request

from diagnostic_msgs.msg import DiagnosticArray
import psutil
from rclpy.node import Node
from spotvlm_msgs.msg import Answer

from .chaos import ChaosStats
from ...cloud.bridge import CloudBridge
from ...config.profiles import find_profile, load_profile
from ...frames.hub import FrameHub
from ...method.facts import Query
from ...nodes.camera import CameraNode
from ...nodes.cloud import CloudNode
from ...nodes.context import ContextNode
from ...nodes.edge import EdgeNode, Load as LoadEdge, load_edge_model
from ...nodes.executor import Graph
from ...system.processes import Child, PYTHON

T = TypeVar('T')
Params = Mapping[str, Mapping[str, object]]  # by node and name
KEEP = 20_000
START_S = 60.0  # longest wait for the models to load
FORGED = 'forged'  # model of answers that no node of ours has given
EXCEPTIONS = ('callback_errors', 'context_errors', 'flow_errors', 'model_errors', 'source_errors',
              'errors.internal')  # keys of /diagnostics, with 'errors' of node edge


def write_params(folder: str, params: Params, *profiles: Path) -> list[str]:
    """Write parameters that are laid over those of profiles; return what to tell a node."""
    file = Path(folder) / 'nodes.yaml'
    file.write_text(json.dumps({k: {'ros__parameters': v} for k, v in params.items()}))
    return [part for path in (*profiles, file) for part in ('--params-file', str(path))]


def started(make: Callable[[], Sequence[Node]], params: Params, *profiles: Path) -> Graph:
    """Return nodes that run on parameters, by node, which are laid over those of profiles."""
    with tempfile.TemporaryDirectory(prefix='spotvlm-') as folder:
        files = write_params(folder, params, *profiles)
        graph = Graph(make, ['--ros-args', '--log-level', 'fatal', *files])
        if not graph.started.wait(START_S) or graph.failed:
            graph.close()
            raise RuntimeError(f'nodes did not start: {graph.failed}; run spotvlm doctor')
        return graph


class Listener(Node):
    """Notes when answers of both kinds arrive (steady clock), and what nodes have counted."""

    def __init__(self, queries: Sequence[Query] = ()) -> None:
        """Listen; answers of the edge must be choices of ``queries``."""
        super().__init__('listener')
        self.edge: deque[tuple[float, bool]] = deque(maxlen=KEEP)   # with context?
        self.cloud: deque[tuple[float, bool]] = deque(maxlen=KEEP)  # with facts?
        self.counts: Counter[str] = Counter()  # by key of /diagnostics, all nodes, only growing
        self._choices = {(q.id, key): choices for q in queries for key, choices in
                         q.choices.items()}
        self._last: dict[str, float] = {}
        self.create_subscription(Answer, 'answers', self._on_edge, 50)
        self.create_subscription(Answer, 'cloud/answers', self._on_cloud, 50)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 50)

    def _on_edge(self, message: Answer) -> None:
        if message.model != FORGED:
            self.edge.append((time.monotonic(), message.used_context))
            self.counts['answers_with_error'] += bool(message.error_code)
            self.counts['answers_out_of_choices'] += bool(self._choices) and any(
                f.value not in self._choices.get((message.query_id, f.key), ())
                for f in message.facts)

    def _on_cloud(self, message: Answer) -> None:
        if message.model != FORGED:
            self.cloud.append((time.monotonic(), bool(message.facts)))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            for entry in status.values:
                key = f'edge.{entry.key}' if (status.name, entry.key) == ('edge', 'errors') \
                    else entry.key
                with suppress(ValueError):
                    value, where = float(entry.value), f'{status.name}.{entry.key}'
                    last = self._last.get(where, 0.0)  # a node that starts over counts from 0
                    self.counts[key] += round(value - last if value >= last else value)
                    self._last[where] = value


class Watched:
    """A robot whose answers are listened to."""

    listener: Listener

    def rate_hz(self, began: float, ended: float) -> float:
        """Return the edge's answers per second between two moments."""
        return sum(began <= t < ended for t, _ in tuple(self.listener.edge)) / (ended - began)

    def gap_s(self, began: float, ended: float) -> float:
        """Return the longest time without an answer of the edge between two moments."""
        times = [t for t, _ in tuple(self.listener.edge) if began <= t < ended]
        return max(b - a for a, b in itertools.pairwise((began, *times, ended)))

    def watch(self, seconds: float) -> float:
        """Wait, and return the edge's rate meanwhile."""
        began = time.monotonic()
        time.sleep(seconds)
        return self.rate_hz(began, began + seconds)

    def since(self, kind: str, moment: float) -> float | None:
        """Return when the first good answer of a kind came after a moment, None if none has."""
        return next((t for t, good in tuple(getattr(self.listener, kind))
                     if good and t >= moment), None)

    def wait(self, condition: Callable[[], T | None], timeout_s: float) -> T:
        """Return the first true value of a condition; raise when there is none in time."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            value = condition()
            if value:
                return value
            time.sleep(0.01)
        raise RuntimeError(f'not within {timeout_s:g} s; is the machine overloaded?')


class RobotGraph(Watched):
    """The driving profile on the miniature world, with the cloud at ``base_url``."""

    def __init__(self, base_url: str, cloud: Mapping[str, object] | None = None,
                 load_edge: LoadEdge = load_edge_model,
                 camera: Mapping[str, object] | None = None) -> None:
        """Prepare; ``load_edge`` takes the place of the real model's."""
        self._cloud_node: CloudNode
        self._graph: Graph
        self._params = {'cloud': {'base_url': base_url, **(cloud or {})},
                        **({'camera': dict(camera)} if camera else {})}
        self._load_edge = load_edge

    def __enter__(self) -> RobotGraph:
        """Start, and wait for the first answer."""
        self._graph = started(self._make, {f'/**/{k}': v for k, v in self._params.items()},
                              find_profile('driving'))
        self.wait(lambda: self.listener.edge, START_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """End."""
        self._graph.close()

    @property
    def bridge(self) -> CloudBridge:
        """Return the bridge of the cloud node, which is active."""
        bridge = self._cloud_node._bridge
        assert bridge is not None
        return bridge

    def _make(self) -> list[Node]:
        hub = FrameHub()
        self._cloud_node, self.listener = CloudNode(hub), Listener()
        return [self.listener, ContextNode(hub), self._cloud_node, EdgeNode(hub, self._load_edge),
                CameraNode(hub)]


class RobotProcess(Watched):
    """The composed process of ``spotvlm run driving --mini``, listened to from this one."""

    def __init__(self, params: Params) -> None:
        """Prepare; ``params`` are laid over the profile."""
        self._params = params
        self._stack = ExitStack()
        self.exit_code: int | None = None  # at the end

    def __enter__(self) -> RobotProcess:
        """Start, and wait for the first answer."""
        with self._stack as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='spotvlm-'))
            self._log = Path(folder) / 'log'
            queries = load_profile('driving').queries()
            graph = Graph(lambda: [Listener(queries)])
            stack.callback(graph.close)
            self.listener = graph.nodes[0]
            files = write_params(folder, {f'/**/{k}': v for k, v in self._params.items()},
                                 find_profile('driving'))
            self._child = node_process('composed', files, self._log)
            self.process = psutil.Process(self._child.process.pid)
            stack.callback(self._end)
            self.wait(lambda: self.listener.edge, START_S)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """End the process, which is to exit with 0."""
        self._stack.close()

    @property
    def exceptions(self) -> int:
        """Return how many exceptions it has logged or counted so far."""
        text = self._log.read_text(errors='replace')
        counts = self.listener.counts
        return len(re.findall('^Traceback ', text, re.MULTILINE)) + sum(
            counts[name] for name in (*EXCEPTIONS, 'edge.errors'))

    def log(self) -> str:
        """Return the end of what it has printed."""
        return '\n'.join(self._log.read_text(errors='replace').splitlines()[-20:])

    def use(self) -> Resources:
        """Return what it holds."""
        return Resources(self.process.memory_info().rss, self.process.num_threads(),
                         len(self.process.net_connections('tcp')))

    def peak_rss(self) -> int:
        """Return the most memory since the last call [bytes]; Linux keeps count of it."""
        folder, peak = Path(f'/proc/{self.process.pid}'), self.process.memory_info().rss
        with suppress(OSError):
            match = re.search(r'VmHWM:\s+(\d+) kB', (folder / 'status').read_text())
            peak = max(peak, 1024 * int(match[1]) if match else 0)
            (folder / 'clear_refs').write_text('5')  # proc(5): begin anew
        return peak

    def _end(self) -> None:
        self.exit_code = self._child.stop()


def node_process(name: str, arguments: Sequence[str], log: Path) -> Child:
    """Start a node process of ours, as ``spotvlm run`` does."""
    with log.open('ab') as out:
        return Child([*PYTHON, '-m', 'spotvlm_ros.cli', 'node', name, '--ros-args',
                      '--log-level', 'info', *arguments], log=out)


class HelperProcess:
    """A program of this room in a process of its own, so that its memory and its GIL are, too."""

    def __init__(self, module: str, *arguments: str, prefix: Sequence[str] = ()) -> None:
        """Start; ``prefix`` goes before the command, as in ``nsenter``."""
        self._module = module
        self._process = subprocess.Popen(
            [*prefix, *PYTHON, '-m', f'spotvlm_ros.bench.faults.{module}',
             *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self) -> str:
        """Return the next line that it prints; raise when it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f'{self._module} ended early; the lines above say why')
        return line

    def tell(self, line: str) -> str:
        """Send a line and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + '\n')
        self._process.stdin.flush()
        return self.read()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self: H) -> H:
        """Return itself, started."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """End it."""
        self.close()


H = TypeVar('H', bound=HelperProcess)


class ChaosProcess(HelperProcess):
    """The chaos server."""

    def __init__(self, fault: str = 'none', *, port: int = 0, pause_s: float = 0.0,
                 host: str = '127.0.0.1', prefix: Sequence[str] = ()) -> None:
        """Start, see `HelperProcess`."""
        super().__init__('chaos', '--host', host, '--port', str(port), '--fault', fault,
                         '--pause', str(pause_s), prefix=prefix)
        self.host, self.port = host, int(self.read())
        self.url = f'http://{host}:{self.port}/v1'

    def set(self, fault: str) -> None:  # noqa: A003
        """Change what it does."""
        self._call('PUT', f'/fault/{fault}')

    def stats(self) -> ChaosStats:
        """Return what it has done."""
        return ChaosStats(**json.loads(self._call('GET', '/stats')))

    def _call(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(f'http://{self.host}:{self.port}{path}', method=method)
        with urllib.request.urlopen(request, timeout=10.0) as reply:
            return bytes(reply.read())


@dataclass(frozen=True)
class Resources:
    """What a leak would show in."""

    rss: int      # memory [bytes]
    threads: int
    sockets: int  # TCP; those of DDS are not among them


def resources() -> Resources:
    """Return what this process holds."""
    gc.collect()
    process = psutil.Process()
    return Resources(process.memory_info().rss, threading.active_count(),
                     len(process.net_connections('tcp')))
