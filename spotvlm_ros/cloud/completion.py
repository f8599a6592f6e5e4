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
"""A reply, as far as it has come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Completion:
    """
    A reply, what it cost so far, and when things happened (steady clock) [s].

    Kept where the request fails or is cancelled, too.
    """

    text: str = ''
    usage: tuple[int, int] | None = None  # tokens asked and replied; None: nothing usable is said
    bytes_sent: int = 0    # bodies of all requests that it took
    bytes_received: int = 0
    began: bool = False    # the request is, at least in part, on its way
    sent: float = 0.0      # the request's last byte went to the kernel; 0: not yet
    received: float = 0.0  # the reply's last byte came
    finished: bool = False
