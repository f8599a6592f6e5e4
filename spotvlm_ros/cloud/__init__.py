# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The bridge to a large model behind an OpenAI-compatible server. Needs no ROS and no torch."""
