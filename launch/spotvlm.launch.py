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
"""Camera, edge, cloud and context nodes, in one process or in four."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, SetEnvironmentVariable
from launch.conditions import IfCondition, UnlessCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node, PushROSNamespace, SetRemap
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue
from launch_ros.substitutions import FindPackageShare


def declared(name, default, description, **kwargs):
    """Return the declaration of a launch argument."""
    return DeclareLaunchArgument(name, default_value=default, description=description, **kwargs)


def generate_launch_description():
    """Return the graph."""
    params_file = ParameterFile(LaunchConfiguration('params_file'), allow_substs=True)
    sim_time = {'use_sim_time': ParameterValue(LaunchConfiguration('use_sim_time'),
                                               value_type=bool)}
    autostart = {'autostart': ParameterValue(LaunchConfiguration('autostart'), value_type=bool)}
    common = {
        'package': 'spotvlm_ros', 'output': 'screen',
        'respawn': LaunchConfiguration('use_respawn'), 'respawn_delay': 2.0,
        'arguments': ['--ros-args', '--log-level', LaunchConfiguration('log_level')],
    }
    composed = LaunchConfiguration('composed')
    embedded = LaunchConfiguration('embedded_cloud')

    def nodes(executables, condition, overrides):
        return [Node(executable=name, parameters=[params_file, sim_time, autostart, *overrides],
                     condition=condition, **({} if name == 'composed' else {'name': name}),
                     **common) for name in executables]

    # A file, not a dictionary: launch_ros hands dictionaries over as /**, which gives way to
    # the section /**/cloud of params_file.
    embedded_cloud = ParameterFile(PathJoinSubstitution(
        [FindPackageShare('spotvlm_ros'), 'config', 'embedded_cloud.yaml']))
    groups = []
    for condition, overrides in ((IfCondition(embedded), [embedded_cloud]),
                                 (UnlessCondition(embedded), [])):
        groups.append(GroupAction(condition=condition, actions=[
            PushROSNamespace(LaunchConfiguration('namespace')),
            SetRemap('image', LaunchConfiguration('image')),
            *nodes(['composed'], IfCondition(composed), overrides),
            *nodes(['context', 'cloud', 'edge', 'camera'], UnlessCondition(composed), overrides),
        ]))

    return LaunchDescription([
        SetEnvironmentVariable('RCUTILS_LOGGING_BUFFERED_STREAM', '1'),
        declared('namespace', '', 'Namespace of the robot'),
        declared('use_sim_time', 'false', 'Use the clock of a simulation or bag (true, false)'),
        declared('params_file', PathJoinSubstitution(
            [FindPackageShare('spotvlm_ros'), 'config', 'driving.yaml']),
            'Parameters of all nodes'),
        declared('autostart', 'true', 'Configure and activate the nodes at start (true, false)'),
        declared('use_respawn', 'false', 'Start a node again when it crashed (true, false)'),
        declared('log_level', 'info', 'Log level of the nodes'),
        declared('composed', 'true', 'One process that shares frames in memory, or four '
                 '(true, false)'),
        declared('embedded_cloud', 'true', 'Serve the miniature cloud model on this machine; '
                 'false: base_url of node cloud in params_file names a server'),
        declared('image', 'image', 'Image topic to subscribe to, where the source is topic'),
        *groups,
    ])
