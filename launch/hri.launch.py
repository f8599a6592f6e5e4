# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The graph of spotvlm.launch.py with the parameters of the hri profile."""

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

SHARE = FindPackageShare('spotvlm_ros')


def generate_launch_description():
    """Return the graph; its other arguments can be set here too."""
    return LaunchDescription([IncludeLaunchDescription(
        PythonLaunchDescriptionSource(PathJoinSubstitution(
            [SHARE, 'launch', 'spotvlm.launch.py'])),
        launch_arguments={
            'params_file': PathJoinSubstitution([SHARE, 'config', 'hri.yaml']),
        }.items())])
