# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The engine on a GPU: CUDA graphs, layers, kernels. Imported only where there is one."""
