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
"""Fast DDS as our nodes set it up."""

import os
from pathlib import Path
import subprocess

import pytest

from spotvlm_ros.system.middleware import (free_buffers, FROM_XML, NUMBERS, own_ports, PROFILES,
                                           SET_UP)
from spotvlm_ros.system.processes import PYTHON

pytest.importorskip('rclpy')

# Ten latched messages of 8 MB, then ten small ones: what remains of the memory [MB]?
LARGE_THEN_SMALL = """
import array
import psutil
from rclpy.node import Node
from std_msgs.msg import UInt8MultiArray
from spotvlm_ros.nodes.base import latched
from spotvlm_ros.nodes.executor import Graph
from spotvlm_ros.system.memory import trim

graph = Graph(lambda: [Node('latching')])
publisher = graph.nodes[0].create_publisher(UInt8MultiArray, 'bytes', latched(10))

def publish(size):
    message = UInt8MultiArray()
    message.data = array.array('B', bytes(size))
    for _ in range(10):
        publisher.publish(message)
    del message
    trim()
    return psutil.Process().memory_info().rss / 1e6

publish(8)
before, large, after = publish(8), publish(8_000_000), publish(8)
graph.close()
print('kept', large - before, after - before)
"""


def _kept(**environment: str) -> float:
    """Return how many megabytes a process keeps of large messages that nobody has any more."""
    result = subprocess.run([*PYTHON, '-c', LARGE_THEN_SMALL], text=True,
                            capture_output=True, timeout=60.0, check=True,
                            env={**{k: v for k, v in os.environ.items() if k not in SET_UP},
                                 **environment})
    assert 'XMLPARSER' not in result.stderr + result.stdout
    word, large, kept = result.stdout.splitlines()[-1].split()
    assert word == 'kept' and float(large) > 75.0
    return float(kept)


def test_large_messages_leave_no_buffers_behind():
    """By itself rmw_fastrtps keeps as many buffers of the largest size as the depth says."""
    if os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp') != 'rmw_fastrtps_cpp':
        pytest.skip('another middleware than Fast DDS')
    assert _kept() < 10.0
    # And without the file: the test can tell.
    assert _kept(RMW_FASTRTPS_PUBLICATION_MODE='SYNCHRONOUS') > 50.0


def test_a_user_who_sets_fast_dds_up_is_left_alone(tmp_path: Path, monkeypatch):
    """One of its variables, or a file in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in SET_UP:
        given = {name: 'mine'}
        free_buffers(given)
        assert given == {name: 'mine'}
    for distribution, name in (('kilted', PROFILES[0]), ('jazzy', PROFILES[1])):
        ours = {'ROS_DISTRO': distribution}
        free_buffers(ours)
        assert ours[FROM_XML] == '1' and Path(ours[name]).is_file() and len(ours) == 3
    (tmp_path / 'DEFAULT_FASTDDS_PROFILES.xml').write_text('<dds/>')
    ours.clear()
    free_buffers(ours)
    assert not ours


PORTS = """
import psutil
import rclpy
rclpy.init()
node = rclpy.create_node('ports')
print('ports', *(c.laddr.port for c in psutil.Process().net_connections('udp4')))
"""


def test_who_takes_the_place_of_a_killed_process_has_ports_of_its_own(tmp_path: Path):
    """Others go on sending to the ports of the killed one; on them it was deaf, or hung."""
    if os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp') != 'rmw_fastrtps_cpp':
        pytest.skip('another middleware than Fast DDS')
    base = {k: v for k, v in os.environ.items() if k not in SET_UP}
    assert not own_ports({**base, PROFILES[0]: 'mine', PROFILES[1]: 'mine'}, tmp_path, 1)
    free_buffers(base)
    first = 7400 + 250 * int(os.environ['ROS_DOMAIN_ID']) + 10  # of number 0, see RTPS 9.6.1.1
    taken = []
    for number in 5, 6, 5 + len(NUMBERS):
        changed = own_ports(base, tmp_path, number)
        result = subprocess.run([*PYTHON, '-c', PORTS], text=True, capture_output=True,
                                timeout=60.0, check=True, env={**base, **changed})
        assert 'XMLPARSER' not in result.stderr + result.stdout
        ports = {int(p) - first for p in result.stdout.split('ports')[-1].split()}
        taken.append({p // 2 for p in ports if 0 <= p < 250 - 10})
    assert taken == [{NUMBERS[5]}, {NUMBERS[6]}, {NUMBERS[5]}]
