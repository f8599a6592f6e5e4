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
The server on Ray Serve: replicas, autoscaling by requests under way, health, one address.

`spotvlm serve --ray` starts it on this machine; on a cluster, `serve run
spotvlm_ros.serving.on_ray:build model=/models/x keys=/etc/spotvlm/keys replicas=4 device=cuda`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import logging
import os
from pathlib import Path
import socket
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from .keys import Keys, read_keys
from .meters import METERS, Meters

if TYPE_CHECKING:
    from ray.serve import Application


class Settings(BaseModel):
    """What is served, and by how many; ``replicas`` are the most, ``least`` always run."""

    model: str                   # folder of the checkpoint, the same on each machine
    keys: str                    # file with a robot a line, the same on each machine
    name: str = ''               # by which robots ask for the model, beside the folder
    device: str = 'cpu'
    max_batch: int = Field(default=8, ge=1)
    replicas: int = Field(default=1, ge=1)
    least: int = Field(default=0, ge=0)  # 0: all of them
    cpus: float = Field(default=1.0, gt=0.0)   # of each replica; its threads, too
    batches: int = Field(default=4, ge=1)  # under way at most per replica; more wait before it


class Replica:
    """One copy of the model."""

    def __init__(self, settings: Settings) -> None:
        """Load."""
        import torch

        from .checkpoint import Checkpoint
        from .service import Limits, Service
        from ..system.lean import check_without_sympy
        check_without_sympy()
        torch.set_num_threads(max(1, int(settings.cpus)))
        path = Path(settings.model)
        model = Checkpoint(path, settings.device)
        self._service = Service(
            model, Keys(read_keys(Path(settings.keys))),
            Limits((settings.model, settings.name or path.name),
                   model.at_once(settings.max_batch)), RayMeters())

    async def __call__(self, request: Request) -> Response:
        """Answer; Ray cancels this when the robot hangs up."""
        return await self._service(request)

    async def check_health(self) -> None:
        """Raise an error where this replica is to be replaced."""
        if not self._service.healthy:
            raise RuntimeError('a batch does not end')


class RayMeters(Meters):
    """Counts for Ray's own metrics, too, which add the replicas up."""

    def __init__(self) -> None:
        """Start at zero."""
        from ray.util.metrics import Counter
        super().__init__()
        self._counters = {name: Counter(f'spotvlm_{name}', description=meaning, tag_keys=('of',))
                          for name, (kind, meaning) in METERS.items() if kind == 'counter'}

    def add(self, name: str, value: float = 1.0, label: tuple[str, str] = ('', '')) -> None:
        """Add to a counter."""
        super().add(name, value, label)
        if value > 0:  # Ray refuses to add nothing
            self._counters[name].inc(value, {'of': label[1]})


def build(settings: Settings) -> Application:
    """Return the app; with ``least`` replicas, more are started as requests pile up."""
    from ray import serve
    scaling: dict[str, object] = {'num_replicas': settings.replicas}
    if 0 < settings.least < settings.replicas:
        scaling = {'autoscaling_config': {
            'min_replicas': settings.least, 'max_replicas': settings.replicas,
            'target_ongoing_requests': settings.max_batch, 'upscale_delay_s': 5.0}}
    gpus = {'num_gpus': 1} if settings.device.startswith('cuda') else {}
    return serve.deployment(
        health_check_period_s=2.0, health_check_timeout_s=10.0, graceful_shutdown_timeout_s=10.0,
        **scaling, max_ongoing_requests=settings.max_batch * settings.batches,
        max_queued_requests=settings.max_batch * settings.batches * settings.replicas,
        ray_actor_options={'num_cpus': settings.cpus, **gpus})(Replica).bind(settings)


@contextmanager
def run(settings: Settings, address: str, host: str, port: int) -> Iterator[str]:
    """
    Serve, on a Ray that is started here (``local``) or a cluster; yield the address.

    Raise ImportError where there is no Ray.
    """
    import ray
    from ray import serve
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # nothing is sent home
    port = port or _free_port(host)
    cores = max(os.cpu_count() or 1, int(settings.cpus * settings.replicas + 0.5))
    ray.init(address, include_dashboard=False if address == 'local' else None,
             num_cpus=cores if address == 'local' else None, log_to_driver=False,
             logging_level=logging.ERROR, namespace='spotvlm')
    try:
        serve.start(http_options={'host': host, 'port': port})
        serve.run(build(settings), name='spotvlm', route_prefix='/')
        yield f'http://{host}:{port}/v1'
    finally:
        if address == 'local':  # a cluster goes on serving
            serve.shutdown()
        ray.shutdown()


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as free:
        return int(free.getsockname()[1])
