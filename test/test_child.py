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
"""Child processes: apart from Ctrl-C, but in our session, where giving way counts."""

import os
import subprocess
import sys

import psutil
import pytest
from spotvlm_ros.system.processes import Child


@pytest.mark.parametrize('idle', [False, True])
def test_a_child_has_a_group_of_its_own_in_our_session_and_gives_way_if_told(idle):
    child = Child(['sleep', '60'], idle=idle)
    try:
        pid = child.process.pid
        assert os.getpgid(pid) == pid
        assert os.getsid(pid) == os.getsid(0)
        assert os.sched_getscheduler(pid) == (os.SCHED_IDLE if idle else os.SCHED_OTHER)
    finally:
        assert child.stop() < 0
    assert not child.alive


def test_where_giving_way_is_forbidden_a_child_starts_all_the_same(monkeypatch):
    def forbidden(*arguments):
        raise PermissionError('no such call here')
    monkeypatch.setattr(os, 'sched_setscheduler', forbidden)
    child = Child(['sleep', '60'], idle=True)
    assert child.alive
    assert child.stop() < 0


def test_who_gives_way_ends_at_once_with_its_parent():
    """Beside busy cores the old server took 14 s to end well, and its successor waited."""
    parent = subprocess.Popen([sys.executable, '-c', """
import time
from spotvlm_ros.system.processes import Child
child = Child(['sh', '-c', 'trap "" TERM; while :; do sleep 0.1; done'], idle=True)
print(child.process.pid, flush=True)
time.sleep(60)
"""], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(20.0)


PARENT = """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
import os
import time
from spotvlm_ros.system.processes import exit_with_parent
if __name__ == '__main__':
    context = multiprocessing.get_context('{start}')
    with ProcessPoolExecutor(2, context, exit_with_parent) as pool:
        first = pool.submit(os.getpid)
        busy = [pool.submit(time.sleep, 60) for _ in range(2)]
        first.result()
        print(*pool._processes, flush=True)
        busy[0].result()
"""


@pytest.mark.parametrize('start', ['spawn', 'fork'])
def test_workers_of_a_pool_end_when_their_parent_is_killed(tmp_path, start):
    script = tmp_path / 'parent.py'
    script.write_text(PARENT.replace('{start}', start))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2 and all(w.is_running() for w in workers)
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(workers, 20.0)[1]
