# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Processes, signals, the machine, the environment: what knows nothing of robots."""
