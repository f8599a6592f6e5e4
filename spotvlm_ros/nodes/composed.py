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
"""All four nodes in one process, sharing frames in memory."""

from __future__ import annotations

from .base import SpotNode
from .camera import CameraNode
from .cloud import CloudNode
from .context import ContextNode
from .edge import EdgeNode
from ..config.nodes import NodeConfig
from ..frames.hub import FrameHub


def make_nodes(hub: FrameHub | None = None) -> list[SpotNode[NodeConfig]]:
    """
    Return the nodes in the order in which they start: the camera last, all ears are open.

    They are given each frame in this order, too, so the edge comes first. Whoever else is to see
    the frames listens to ``hub``.
    """
    hub = hub or FrameHub()
    return [EdgeNode(hub), ContextNode(hub), CloudNode(hub), CameraNode(hub)]
