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
"""The same app on Ray Serve: a reply, a key, a killed replica."""

import os
import signal

from fakes import wait_for
import pytest
from spotvlm_ros.bench.faults.ray_kills import processes, VICTIMS
from spotvlm_ros.bench.faults.servers import Options, Server
from spotvlm_ros.mini.shipped import checkpoint_path
from test_cloud_server import ask, chat

pytest.importorskip('ray.serve', reason='pip install "ray[serve]"')


@pytest.mark.alone
def test_a_replica_on_ray_answers_and_is_replaced_when_it_is_killed():
    path = checkpoint_path('spot-mini-cloud')
    with Server('ray', Options(path)) as server:
        assert ask(server, 'guess', chat(model=path.name))[0] == 401
        status, reply = ask(server, server.key, chat(model=path.name))
        assert status == 200 and reply['choices'][0]['message']['content']
        victim, = processes(server, VICTIMS['replica'])
        os.kill(victim.pid, signal.SIGKILL)
        wait_for(lambda: not victim.is_running() or victim.status() == 'zombie')
        wait_for(lambda: server.answers() and ask(
            server, server.key, chat(model=path.name))[0] == 200, 60.0)
