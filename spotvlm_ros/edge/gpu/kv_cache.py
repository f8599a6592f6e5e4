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
"""The KV cache of forward passes that always compute the same shapes at the same addresses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Cache


@dataclass
class LayerCache:
    """Keys and values of one layer, of fixed size."""

    keys: torch.Tensor     # prefixes x heads x tokens x dim
    values: torch.Tensor
    slots: torch.Tensor    # that the new ones are written to, prefixes x new

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor,
               *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values; return the whole buffers."""
        for row, slots in enumerate(self.slots):
            self.keys[row].index_copy_(1, slots, key_states[row])
            self.values[row].index_copy_(1, slots, value_states[row])
        return self.keys, self.values


class StaticKVCache(Cache):
    """
    Keys and values of all layers, each layers x prefixes x heads x tokens x dim.

    ``slots``, prefixes x new, says where a pass writes; it is one of as many of the prefixes.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], like: torch.Tensor) -> None:
        """Make the buffers, zeroed: what was never written must still be a number."""
        super().__init__(layers=[])
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.slots = torch.zeros((0, 0), dtype=torch.int64)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int,
               *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of one layer; return the whole buffers."""
        return self.layer(layer_idx).update(key_states, value_states)

    def layer(self, index: int) -> LayerCache:
        """Return the part of one layer."""
        n = len(self.slots)
        return LayerCache(self.keys[index, :n], self.values[index, :n], self.slots)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return nothing of use: positions and masks are given to each pass."""
        return 0
