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
"""The order of the stamps of one stream."""

from __future__ import annotations

from typing import Literal

# A stamp this far behind the newest means that the stream has started over (a bag that loops, a
# simulation that was reset) [s]; less is a frame that the transport delivered late.
RESTART_S = 1.0
Verdict = Literal['ok', 'restart', 'zero_stamp', 'duplicate', 'out_of_order']


class StampOrder:
    """Lets each stamp through once and in order; says when the stream starts over."""

    def __init__(self) -> None:
        """Start before the first frame."""
        self.newest_ns = 0
        self.rejected: dict[Verdict, int] = {'zero_stamp': 0, 'duplicate': 0, 'out_of_order': 0}
        self.restarts = 0

    def admit(self, stamp_ns: int) -> Verdict:
        """Return 'ok', 'restart' or the reason for rejecting a frame of this stamp."""
        why: Verdict
        if stamp_ns <= 0:
            why = 'zero_stamp'
        elif stamp_ns == self.newest_ns:
            why = 'duplicate'
        elif stamp_ns > self.newest_ns:
            self.newest_ns = stamp_ns
            return 'ok'
        elif self.newest_ns - stamp_ns >= RESTART_S * 1e9:
            self.newest_ns = stamp_ns
            self.restarts += 1
            return 'restart'
        else:
            why = 'out_of_order'
        self.rejected[why] += 1
        return why
