#!/usr/bin/env bash
# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
#
# Into the venv that is first in PATH: torch, and what spotvlm needs beside the distribution's own.
# usage: install-python.sh TORCH...    what pip is told of torch; requirements.* lie beside this
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# numpy stays as it is: the distribution's rclpy, cv2 and cv_bridge are built with that one.
python -c 'import numpy; print("numpy==" + numpy.__version__)' > constraints.txt
if python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  grep -vE '^(#|numpy=|opencv-|ros-|torch=)' requirements.lock >> constraints.txt
else
  # Half of the versions in the lock are not for Python 3.10. colcon needs an old setuptools.
  grep '^setuptools=' requirements.lock >> constraints.txt
fi
python requirements.py beside > wanted.txt
pip install --no-cache-dir --constraint constraints.txt "$@"
pip install --no-cache-dir --constraint constraints.txt --requirement wanted.txt
