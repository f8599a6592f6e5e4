# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""`python -m spotvlm_ros.cli`."""

import sys

from .main import main

sys.exit(main())
