# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Recording what context and edge did, and doing it again."""
