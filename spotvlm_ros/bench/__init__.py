# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Measuring: SpotBench, performance, the cloud bridge under faults."""
