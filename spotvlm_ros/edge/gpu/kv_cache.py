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

    keys: torch.Tensor     # 1 x heads x tokens x dim
    values: torch.Tensor
    slots: torch.Tensor    # that the new ones are written to

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor,
               *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values; return the whole buffers."""
        self.keys.index_copy_(2, self.slots, key_states)
        self.values.index_copy_(2, self.slots, value_states)
        return self.keys, self.values


class StaticKVCache(Cache):
    """Keys and values of all layers in two tensors; ``slots`` says where a pass writes."""

    def __init__(self, layers: int, heads: int, tokens: int, dim: int, like: torch.Tensor) -> None:
        """Make the buffers, zeroed: what was never written must still be a number."""
        super().__init__(layers=[])
        self.keys = like.new_zeros((layers, 1, heads, tokens, dim))
        self.values = like.new_zeros((layers, 1, heads, tokens, dim))
        self.slots = torch.zeros(0, dtype=torch.int64)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int,
               *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of one layer; return the whole buffers."""
        return self.layer(layer_idx).update(key_states, value_states)

    def layer(self, index: int) -> LayerCache:
        """Return the part of one layer."""
        return LayerCache(self.keys[index], self.values[index], self.slots)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return nothing of use: positions and masks are given to each pass."""
        return 0
