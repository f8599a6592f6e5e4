# Copyright 2026 spotvlm maintainers
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
