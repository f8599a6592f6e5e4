#!/usr/bin/env bash
# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
#
# Runs a command with ROS 2 and the workspace in its environment.
set -e
. /home/robot/ws/install/setup.bash
exec "$@"
