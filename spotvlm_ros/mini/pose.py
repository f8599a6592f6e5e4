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
"""Where the camera of a world is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pose:
    """
    A place and how a camera there is turned, of a body with x ahead, y left, z up (REP 103).

    The worlds turn their camera by a shift of the picture: the angles are exact for what lies
    ahead, and the less so the nearer to the edge of the frame.
    """

    x: float = 0.0      # [m]
    y: float = 0.0
    pitch: float = 0.0  # down [rad]
    yaw: float = 0.0    # left, after pitch [rad]
