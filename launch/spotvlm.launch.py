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
Camera, edge, cloud and context nodes, in one process or in four.

Arguments that are given go before params_file, and that before the profile.
"""

import difflib
import json
from pathlib import Path
import sys
import time

from launch import LaunchDescription
from launch.actions import (DeclareLaunchArgument, EmitEvent, GroupAction, LogInfo,
                            OpaqueFunction, SetEnvironmentVariable)
from launch.events import matches_action
from launch.events.process import ShutdownProcess
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node, PushRosNamespace, SetRemap
from launch_ros.parameter_descriptions import ParameterFile
from launch_ros.substitutions import FindPackageShare

FILES = ('spotvlm.launch.py', 'driving.launch.py', 'hri.launch.py')
NODES = ('context', 'cloud', 'edge', 'camera')
RESPAWNS = 5   # of a process, at most, in a row: each time it ended
ROW_S = 60.0   # or less after it was started
KEPT = 'default: as in params_file and profile'

# Arguments that are parameters: nodes, name, description.
PARAMETERS = {
    'use_sim_time': (NODES, 'use_sim_time', 'Use the clock of a simulation or bag (true, false)'),
    'autostart': (NODES, 'autostart', 'Configure and activate the nodes at start (true, false)'),
    'model': (('edge',), 'model', 'Checkpoint of the model on board: a shipped one or a folder'),
    'device': (('edge',), 'device', 'torch device of that model, such as cpu or cuda'),
    'source': (('camera',), 'source', 'Where frames come from: topic, usb, stream, video, images, '
               'bag or mini; topic if image is given'),
    'path': (('camera',), 'path', 'Video file, folder of images or bag, address of a stream, '
             'name of a USB camera'),
    'image_transport': (NODES, 'image_transport', 'raw: subscribe to image; compressed: to '
                        'image/compressed'),
    'base_url': (('cloud',), 'base_url', 'OpenAI-compatible server, as http://127.0.0.1:8000/v1'),
    'cloud_model': (('cloud',), 'model', 'Model that is asked for there'),
}
ARGUMENTS = {
    'namespace': ('', 'Namespace of the robot'),
    'params_file': ('', 'Params file that is laid over the profile; what it leaves out stays'),
    'profile': ('driving', 'Parameters of all nodes: driving, hri or the path of a params file'),
    'use_respawn': ('false', 'Start a process again when it has ended, up to 5 times within a '
                    'minute of each other (true, false)'),
    'log_level': ('info', 'Log level of the nodes'),
    'composed': ('true', 'One process that shares frames in memory, or four (true, false)'),
    'embedded_cloud': ('auto', 'Serve the miniature cloud model on this machine: auto does where '
                       'no base_url is set, true whatever is set, false never'),
    'image': ('image', 'Image topic to subscribe to'),
}


def words(value, node):
    """Return the ROS arguments with which a node is given the arguments that are set."""
    given = {name: value(name) for name in PARAMETERS if value(name)}
    if value('image') != 'image':
        given.setdefault('source', 'topic')
    if value('embedded_cloud') == 'true':
        given = {'base_url': '', 'cloud_model': 'spot-mini-cloud', **given}
    plain = ('use_sim_time', 'autostart')  # true or false, no text
    rules = [f'{node}.{name}:={text if name in plain else json.dumps(text)}'
             for argument, text in given.items()
             for nodes, name, _ in [PARAMETERS[argument]] if node in nodes]
    if node == 'cloud' and value('embedded_cloud') == 'false':
        rules.append('cloud.embedded_threads:=0')
    return [word for rule in rules for word in ('-p', rule)]


def layers(value, config):
    """Return the params files, each laid over those before it."""
    named = config / f'{value("profile")}.yaml'
    files = [named if named.is_file() else value('profile')]
    if value('embedded_cloud') != 'false':
        files.insert(0, config / 'embedded_cloud.yaml')
    if value('source') in ('usb', 'stream', 'video', 'images', 'bag'):
        files.append(config / 'recorded.yaml')  # the profile's rate is for the miniature
    if value('params_file'):
        files.append(value('params_file'))
    paths = [Path(file).expanduser() for file in files]
    for path in paths:
        if not path.is_file():
            raise RuntimeError(f'{path} is no params file')  # launch_ros would leave it out
    # launch_ros copies a file with substitutions, and then messages name the copy.
    return [ParameterFile(str(path), allow_substs='$(' in path.read_text()) for path in paths]


def refuse_unknown(context):
    """Raise RuntimeError for an argument that has no effect, where it is for this file."""
    if not any(Path(word).name in FILES for word in sys.argv):
        return  # included by a file with arguments of its own
    known = [*ARGUMENTS, *PARAMETERS]
    for name in (word.partition(':=')[0] for word in context.argv):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f'did you mean {near[0]}?' if near else 'see --show-args'
            raise RuntimeError(f'unknown launch argument {name}; {hint}')


class Row:
    """Has a process not started again that ends again and again, as with a mistyped name."""

    def __init__(self):
        self._ends, self._at = 0, time.monotonic()

    def __call__(self, event, context):
        """Count that it has ended."""
        now = time.monotonic()
        self._ends = self._ends + 1 if now - self._at < ROW_S else 1
        self._at = now
        if self._ends <= RESPAWNS:
            return None
        return [LogInfo(msg=f'{event.process_name} has ended {self._ends} times in a row, exit '
                        f'code {event.returncode}: it is not started again; its lines above say '
                        'why, mend that and launch again'),
                EmitEvent(event=ShutdownProcess(process_matcher=matches_action(event.action)))]


def graph(context):
    """Return the processes."""
    def value(name):
        return LaunchConfiguration(name).perform(context)

    refuse_unknown(context)
    share = Path(FindPackageShare('spotvlm_ros').perform(context))
    files = layers(value, share / 'config')
    composed = value('composed').lower() in ('true', '1')
    processes = {'composed': NODES} if composed else {name: (name,) for name in NODES}
    return [GroupAction([
        PushRosNamespace(value('namespace')),
        SetRemap('image', value('image')),
        *(Node(package='spotvlm_ros', executable=name, output='screen', parameters=files,
               respawn=LaunchConfiguration('use_respawn'), respawn_delay=1.0, on_exit=Row(),
               arguments=['--ros-args', '--log-level', value('log_level'),
                          *(word for node in nodes for word in words(value, node))],
               **({} if composed else {'name': name}))
          for name, nodes in processes.items())])]


def generate_launch_description():
    """Return the graph."""
    return LaunchDescription([
        SetEnvironmentVariable('RCUTILS_LOGGING_BUFFERED_STREAM', '1'),
        *(DeclareLaunchArgument(name, default_value=default, description=text)
          for name, (default, text) in ARGUMENTS.items()),
        *(DeclareLaunchArgument(name, default_value='', description=f'{text}; {KEPT}')
          for name, (_, _, text) in PARAMETERS.items()),
        OpaqueFunction(function=graph),
    ])
