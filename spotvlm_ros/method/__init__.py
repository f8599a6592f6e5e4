# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Context Transfer: facts, history, focus, keyframes and prompts. Needs no ROS and no torch."""
