# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Real-time answers about a camera image, with a cloud model's context."""

__version__ = '0.1.0'
