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
"""Draws a scene of the HRI world as the camera of the robot would see it."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from .render_people import draw_arm, draw_partner, draw_walker, style_of
from .render_room import PAD_LOW, PAD_TOP, PAD_X, room
from .render_things import ITEMS, tone
from .scene import Arm, HEIGHT, HriScene, WIDTH
from ..drawing import add_noise, motion_blur, Noise, NOISE_SHAPE, rectangle, shade
from ..pictures import Image
from ...method.facts import Region


def draw(scene: HriScene, seed: int) -> Image:
    """Return the picture of a scene, height x width x 3, RGB; a pure function of its arguments."""
    top, left = round(PAD_TOP - scene.pitch), round(PAD_X - scene.yaw)
    top = min(max(0, top), PAD_TOP + PAD_LOW)
    left = min(max(0, left), 2 * PAD_X)
    canvas = room(scene.variant)[top:top + HEIGHT, left:left + WIDTH].copy()
    partner, k = scene.partner, scene.light.person
    behind = [w for w in scene.walkers if partner is None or w.z > partner.z]
    for walker in behind:
        draw_walker(canvas, walker, k)
    style = style_of(scene.variant, scene.skin)
    if partner is not None:
        draw_partner(canvas, partner, style, k)
        for arm in partner.arms:
            if not _in_front(scene, arm):
                draw_arm(canvas, partner, arm, style, k)
    _counter(canvas, scene, k)
    for item in sorted(scene.items, key=lambda one: one.y):
        ITEMS[item.kind](canvas, item, k)
    if partner is not None:
        for arm in partner.arms:
            if _in_front(scene, arm):
                draw_arm(canvas, partner, arm, style, k)
    for walker in scene.walkers[len(behind):]:
        draw_walker(canvas, walker, k)
    if scene.post is not None:
        _post(canvas, scene.post, scene.variant)
    rng = np.random.default_rng([seed, scene.index, 7])
    return _sensor(motion_blur(canvas, scene.light.blur), scene, rng)


def _in_front(scene: HriScene, arm: Arm) -> bool:
    """Whether an arm is over the counter and what stands on it."""
    return arm.hand.y < scene.counter[0] or arm.target >= 0 and arm.out


def _counter(canvas: Image, scene: HriScene, k: float) -> None:
    rear, front, m = scene.counter
    wood = shade(tone(scene.variant + 5), 0.75 * k)
    rectangle(canvas, -2, rear, WIDTH + 4, front - rear, wood)
    rectangle(canvas, -2, front, WIDTH + 4, 0.05 * m, shade(wood, 0.6))
    if front < HEIGHT:
        for leg in (-0.9, 0.9):
            x = WIDTH / 2 + scene.yaw + leg * m
            rectangle(canvas, x - 0.03 * m, front, 0.06 * m, m, shade(wood, 0.5))


def _post(canvas: Image, post: Region, variant: int) -> None:
    color = shade(tone(variant + 9), 0.8)
    rectangle(canvas, post.x, post.y - 2, post.w, post.h + 4, color)
    rectangle(canvas, post.x + 0.15 * post.w, post.y - 2, 0.2 * post.w, post.h + 4,
              shade(color, 1.25))


@lru_cache(maxsize=4)
def _noise_bank(level: int) -> Noise:
    rng = np.random.default_rng(98)
    return np.asarray(rng.normal(0, (3.0, 5.0, 7.5, 10.0)[level], NOISE_SHAPE), dtype=np.int16)


def _sensor(canvas: Image, scene: HriScene, rng: np.random.Generator) -> Image:
    ramp = np.arange(256, dtype=np.float32)[:, None] * np.array(scene.light.gain, np.float32)
    canvas = np.asarray(cv2.LUT(canvas, np.clip(ramp, 0, 255).astype(np.uint8)[None]))
    return add_noise(canvas, _noise_bank(scene.light.noise), rng)
