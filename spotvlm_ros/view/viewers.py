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
"""What ``--view`` may name: the page, Foxglove, Rerun. All show the same state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .address import Address
from .foxglove_sink import FoxgloveSink
from .rerun_sink import RerunSink
from .server import Controls, ViewServer
from .state import LiveState
from .stream import Stream


class Viewer(Protocol):
    """Shows a state until it is closed; only while somebody looks it is filled."""

    @property
    def url(self) -> str:
        """Return what people are told of it."""

    def close(self) -> None:
        """End."""


def open_view(text: str, state: LiveState, controls: Controls,
              look: Callable[[bool], object]) -> Viewer:
    """Return what the value of ``--view`` names; raise AddressError."""
    kind, _, where = text.partition(':')
    if kind == 'foxglove':
        return Stream(state, FoxgloveSink(state.title, Address.parse(where)), look)
    if kind == 'rerun':
        return Stream(state, RerunSink(state.title, where), look)
    return ViewServer(state, controls, Address.parse(text), look)
