# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The ROS shells: camera, edge, cloud and context nodes, and what runs them."""
