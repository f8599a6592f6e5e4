# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The worlds by name."""

from __future__ import annotations

from . import hri, world
from .hri import Hands, HriWorld
from .world import DrivingWorld

World = DrivingWorld | HriWorld

WORLDS: dict[str, type[DrivingWorld] | type[HriWorld]] = {'driving': DrivingWorld,
                                                          'hri': HriWorld}
CONDITIONS = {'driving': world.CONDITIONS, 'hri': hri.CONDITIONS}


def make_world(name: str, seed: int, condition: str | None = None, hands: Hands | None = None
               ) -> World:
    """Return the named world; hands are photographs for condition 'real' of 'hri'."""
    if name not in WORLDS:
        raise ValueError(f'there is no world {name!r}; use one of {", ".join(WORLDS)}')
    if name == 'hri':
        return HriWorld(seed, condition, hands)
    return DrivingWorld(seed, condition)
