# Copyright 2026 spotvlm maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
#
# SPDX-License-Identifier: Apache-2.0
"""Files that one process at a time adds to."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


def open_alone(path: Path) -> IO[bytes] | None:
    """
    Open a file to add to, unbuffered, for this process alone; None where another one has it.

    Others can have it when it is closed. Raise OSError where it cannot be opened.
    """
    file = open(path, 'ab', buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
