# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The miniature: synthetic worlds with exact labels, training, and the two shipped checkpoints."""
