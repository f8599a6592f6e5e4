# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The small vision-language model (SVLM) on the robot. Needs no ROS."""
