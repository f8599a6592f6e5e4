# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The parameters of all nodes."""
