# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""SpotBench: whether late cloud answers help."""
