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
Episodes spread over a Ray cluster.

Each machine of it has this package, the checkpoints and, if they are used, the photographs of
hands in the same places. What an episode gave is kept with whoever started the run, so a run that
was cut off goes on where it was, wherever its episodes run then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
import hashlib
import os
from pathlib import Path
import pickle
from typing import TYPE_CHECKING, TypeVar

from .cache import fingerprint, model_hash, PACKAGE
from .work import begin, Setup

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

T = TypeVar('T')


class _Worker:
    """A process of the cluster that computes in one thread."""

    def __init__(self, setup: Setup) -> None:
        begin(setup)

    def call(self, what: Callable[[], T]) -> T:
        return what()


class RayPool:
    """Workers on a cluster, one for each of its cores; as `WorkerPool`."""

    def __init__(self, setup: Setup, address: str, jobs: int, kept: Path | None) -> None:
        """Join the cluster (``local``: start one here); results are kept in a folder, if named."""
        import ray
        os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # nothing is sent home
        local = address == 'local'
        ray.init(address, num_cpus=jobs if local else None, log_to_driver=False,
                 include_dashboard=False if local else None, namespace='spotvlm')
        setup = replace(setup, edge=setup.edge.resolve(), cloud=setup.cloud.resolve(),
                        cache=setup.cache and setup.cache.resolve())
        worker = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=3)(_Worker)
        cores = max(1, int(ray.cluster_resources().get('CPU', 1)))
        self._idle = [worker.remote(setup) for _ in range(cores)]
        # All that a result depends on: setup, code and models.
        self._basis = pickle.dumps((replace(setup, cache=None), fingerprint(
            PACKAGE.rglob('*.py')), model_hash(setup.edge), model_hash(setup.cloud)))
        self._kept = kept

    def run(self, calls: Sequence[Callable[[], T]]) -> Iterator[tuple[int, T]]:
        """Yield the place and the result of each call, in the order in which they finish."""
        import ray
        files = [self._file(call) for call in calls]
        left = []
        for i, file in enumerate(files):
            if file is not None and file.is_file():
                yield i, pickle.loads(file.read_bytes())  # our own: see SECURITY.md
            else:
                left.append(i)
        busy: dict[ObjectRef, tuple[int, ActorHandle]] = {}
        while left or busy:
            while left and self._idle:
                i, worker = left.pop(0), self._idle.pop()
                busy[worker.call.remote(calls[i])] = i, worker
            (done,), _ = ray.wait(list(busy))
            i, worker = busy.pop(done)
            self._idle.append(worker)
            result: T = ray.get(done)
            self._keep(files[i], result)
            yield i, result

    def close(self) -> None:
        """Leave the cluster; its workers end."""
        import ray
        ray.shutdown()

    def _file(self, call: Callable[[], object]) -> Path | None:
        if self._kept is None:
            return None
        return self._kept / f'{hashlib.sha256(self._basis + pickle.dumps(call)).hexdigest()}.pkl'

    def _keep(self, file: Path | None, result: object) -> None:
        """Write a result, whole or not at all."""
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f'.{os.getpid()}.part')
            part.write_bytes(pickle.dumps(result))
            part.replace(file)
