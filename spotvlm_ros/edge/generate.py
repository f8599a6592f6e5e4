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
"""Answers by transformers' own `model.generate`, for what the engine does not know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .engine import Decoded
from .families import Tensors


def generate(model: PreTrainedModel, inputs: Tensors, limit: int, should_stop: Callable[[], bool],
             on_token: Callable[[list[int]], None]) -> Decoded:
    """Return the greedy answer to ``inputs``, of at most ``limit`` tokens; see `Engine.answer`."""
    stop = _Stop(should_stop)
    start = inputs['input_ids'].shape[1]
    with torch.inference_mode():
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=limit, return_dict_in_generate=True,
            output_logits=True, stopping_criteria=StoppingCriteriaList([stop]),
            streamer=_Streamer(on_token))
    tokens = output.sequences[0, start:].tolist()
    shares = torch.cat([logits[:1] for logits in output.logits]).float().softmax(-1)
    probabilities = shares[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
    return Decoded(tokens, probabilities, stop.stopped, passes=len(tokens),
                   computed_tokens=start + len(tokens) - 1)


class _Stop(StoppingCriteria):
    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop, self.stopped = should_stop, False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor,
                 **_: object) -> torch.Tensor:
        self.stopped = self.stopped or self._should_stop()
        return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)


class _Streamer(BaseStreamer):
    def __init__(self, on_token: Callable[[list[int]], None]) -> None:
        self._on_token = on_token
        self._tokens: list[int] | None = None  # the first call brings the prompt

    def put(self, value: torch.Tensor) -> None:
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += value.flatten().tolist()
        self._on_token(self._tokens)

    def end(self) -> None:
        """Nothing is left to say."""
