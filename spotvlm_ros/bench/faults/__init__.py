# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The graph under faults: a hostile server, a bad network, many robots."""
