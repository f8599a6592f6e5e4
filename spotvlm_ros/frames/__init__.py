# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Camera frames: what they are, where they come from, how the newest one gets around. No ROS."""
