# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Training and scoring of the miniature models."""
