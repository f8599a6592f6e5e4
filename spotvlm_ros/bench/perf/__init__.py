# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Speed, overhead and memory against named baselines."""
