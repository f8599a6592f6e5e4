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
"""Text files that somebody else wrote: read within bounds, refused with a remedy."""

from __future__ import annotations

from pathlib import Path


def read_text_file(path: Path, max_bytes: int) -> str:
    """
    Return what a file holds, which must be UTF-8.

    Raise ValueError, without the path, for what is no regular file (a FIFO would never end), too
    large, not readable or in another encoding.
    """
    try:
        if not path.is_file():
            raise ValueError('is no file' if path.exists() else 'does not exist')
        with path.open('rb') as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise ValueError(f'cannot be read: {error.strerror}') from error
    if len(data) > max_bytes:
        raise ValueError(f'has more than {max_bytes} bytes')
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f'byte {error.start} is not UTF-8; save the file as UTF-8') from None
