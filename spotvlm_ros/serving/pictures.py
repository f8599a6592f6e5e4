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
"""Which pictures are answered by what keeps something for each size of them."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from ..edge.families import input_shapes, Tensors

SHAPES = 8       # of pictures, for each of which something is kept


class Pictures:
    """Knows the first few sizes of pictures that it sees."""

    def __init__(self) -> None:
        """Have seen none yet."""
        self._shapes: set[Hashable] = set()

    def usual(self, inputs: Tensors) -> bool:
        """Whether a prompt has pictures of a usual size, and no pixels that are padding."""
        if 'pixel_values' not in inputs or not inputs.get('pixel_attention_mask',
                                                          torch.ones(1)).all():
            return False
        shapes = input_shapes(inputs)
        if len(self._shapes) < SHAPES:
            self._shapes.add(shapes)
        return shapes in self._shapes
