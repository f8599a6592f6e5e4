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
"""A robot under test: the four nodes in this process, and when they answered what."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import gc
import json
from pathlib import Path
import subprocess
import sys
import tempfile
import threading
import time
from types import TracebackType
from typing import TypeVar
import urllib.request

import psutil
from rclpy.node import Node
from spotvlm_msgs.msg import Answer

from .chaos import ChaosStats
from ...cloud.bridge import CloudBridge
from ...config.profiles import find_profile
from ...frames.hub import FrameHub
from ...nodes.camera import CameraNode
from ...nodes.cloud import CloudNode
from ...nodes.context import ContextNode
from ...nodes.edge import EdgeNode, Load as LoadEdge, load_edge_model
from ...nodes.executor import Graph

T = TypeVar('T')
KEEP = 20_000
START_S = 60.0  # longest wait for the models to load


def started(make: Callable[[], Sequence[Node]], params: Mapping[str, Mapping[str, object]],
            *profiles: Path) -> Graph:
    """Return nodes that run on parameters, by node, which are laid over those of profiles."""
    with tempfile.TemporaryDirectory(prefix='spotvlm-') as folder:
        file = Path(folder) / 'nodes.yaml'
        file.write_text(json.dumps({k: {'ros__parameters': v} for k, v in params.items()}))
        files = [part for path in (*profiles, file) for part in ('--params-file', str(path))]
        graph = Graph(make, ['--ros-args', '--log-level', 'fatal', *files])
        if not graph.started.wait(START_S) or graph.failed:
            graph.close()
            raise RuntimeError(f'nodes did not start: {graph.failed}; run spotvlm doctor')
        return graph


class Listener(Node):
    """Notes when answers of both kinds arrive (steady clock)."""

    def __init__(self) -> None:
        """Listen."""
        super().__init__('listener')
        self.edge: deque[tuple[float, bool]] = deque(maxlen=KEEP)   # with context?
        self.cloud: deque[tuple[float, bool]] = deque(maxlen=KEEP)  # with facts?
        self.create_subscription(Answer, 'answers', self._on_edge, 50)
        self.create_subscription(Answer, 'cloud/answers', self._on_cloud, 50)

    def _on_edge(self, message: Answer) -> None:
        self.edge.append((time.monotonic(), message.used_context))

    def _on_cloud(self, message: Answer) -> None:
        self.cloud.append((time.monotonic(), bool(message.facts)))


class RobotGraph:
    """The driving profile on the miniature world, with the cloud at ``base_url``."""

    def __init__(self, base_url: str, cloud: Mapping[str, object] | None = None,
                 load_edge: LoadEdge = load_edge_model,
                 camera: Mapping[str, object] | None = None) -> None:
        """Prepare; ``load_edge`` takes the place of the real model's."""
        self.listener: Listener
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

    def rate_hz(self, began: float, ended: float) -> float:
        """Return the edge's answers per second between two moments."""
        return sum(began <= t < ended for t, _ in tuple(self.listener.edge)) / (ended - began)

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

    def _make(self) -> list[Node]:
        hub = FrameHub()
        self._cloud_node, self.listener = CloudNode(hub), Listener()
        return [self.listener, ContextNode(hub), self._cloud_node, EdgeNode(hub, self._load_edge),
                CameraNode(hub)]


class ChaosProcess:
    """The chaos server in a process of its own, so that its memory and its GIL are, too."""

    def __init__(self, fault: str = 'none', *, port: int = 0, pause_s: float = 0.0,
                 host: str = '127.0.0.1', prefix: Sequence[str] = ()) -> None:
        """Start; ``prefix`` goes before the command, as in ``nsenter``."""
        self.host = host
        self._process = subprocess.Popen(
            [*prefix, sys.executable, '-P', '-m', 'spotvlm_ros.bench.faults.chaos', '--host', host,
             '--port', str(port), '--fault', fault, '--pause', str(pause_s)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f'the chaos server did not start on {host}:{port}')
        self.port = int(line)
        self.url = f'http://{host}:{self.port}/v1'

    def set(self, fault: str) -> None:  # noqa: A003
        """Change what it does."""
        self._call('PUT', f'/fault/{fault}')

    def stats(self) -> ChaosStats:
        """Return what it has done."""
        return ChaosStats(**json.loads(self._call('GET', '/stats')))

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> ChaosProcess:
        """Return itself, started."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """End it."""
        self.close()

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
