# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""All four nodes in one process, sharing frames in memory."""

from __future__ import annotations

from .base import SpotNode
from .camera import CameraNode
from .cloud import CloudNode
from .context import ContextNode
from .edge import EdgeNode
from ..frames.frame import FrameHub


def make_nodes() -> list[SpotNode]:
    """
    Return the nodes in the order in which they start: the camera last, all ears are open.

    They are given each frame in this order, too, so the edge comes first.
    """
    hub = FrameHub()
    return [EdgeNode(hub), ContextNode(hub), CloudNode(hub), CameraNode(hub)]
