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
"""The batch curve of a checkpoint, on keyframes and questions as robots send them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
import json

import numpy as np

from .curve import beside, Curve, measure, ROUNDS, SIZES
from ...cloud.client import cloud_server
from ...cloud.keyframe_encoder import KeyframeEncoder
from ...cloud.wording import ask_text
from ...config.profiles import load_profile
from ...mini.worlds import make_world, TUNE_SEEDS
from ...serving.chat import ChatRequest
from ...serving.checkpoint import Checkpoint, Prepared

FRAMES = 8


def bodies(profile: str, model: str) -> list[bytes]:
    """Return what robots of a profile ask first, each about a frame of its own."""
    loaded = load_profile(profile)
    query, encoder = loaded.queries('cloud')[0], KeyframeEncoder()
    config = cloud_server(replace(loaded.cloud, base_url='http://127.0.0.1', model=model)).config
    asked = []
    for number in range(FRAMES):
        frame = make_world(loaded.camera.world, TUNE_SEEDS.start + number).frame(100)
        jpeg = encoder.encode(None, partial(np.asarray, frame)).jpeg
        url = 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode('ascii')
        asked.append(json.dumps({
            'model': model, 'max_tokens': config.max_tokens, 'messages': [{
                'role': 'user', 'content': [
                    {'type': 'image_url', 'image_url': {'url': url}},
                    {'type': 'text', 'text': ask_text(query, config, False)}]}]}).encode())
    return asked


def requests(checkpoint: Checkpoint, profile: str, model: str) -> list[Prepared]:
    """Return the same in tensors."""
    return [_prepared(checkpoint, body) for body in bodies(profile, model)]


def measured_curve(checkpoint: Checkpoint, name: str, profile: str,
                   sizes: Sequence[int] = SIZES, rounds: int = ROUNDS) -> Curve:
    """Measure how long batches take, and requests until they are ready, also beside batches."""
    asked = requests(checkpoint, profile, name)
    curve = measure(name, checkpoint.answer, asked, sizes, rounds)
    return beside(curve, checkpoint.answer, asked, [
        partial(_prepared, checkpoint, body) for body in bodies(profile, name)])


def _prepared(checkpoint: Checkpoint, body: bytes) -> Prepared:
    return checkpoint.prepare(ChatRequest.model_validate_json(body))
