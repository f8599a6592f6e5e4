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
"""Focus regions carried over rendered frames whose motion is known."""

import numpy as np
import pytest

from spotvlm_ros.method.facts import NS, Region
from spotvlm_ros.method.flow import FlowConfig, RegionTracker, shrink
from spotvlm_ros.mini.driving.scene import SCENE
from spotvlm_ros.mini.worlds import make_world

TENTH = NS // 10
SIZE = (640, 480)


def texture(seed, height, width, low=0, high=255):
    """Return a picture with structure at the size of a few pixels."""
    import cv2
    rng = np.random.default_rng(seed)
    coarse = rng.integers(low, high, (height // 6 + 2, width // 6 + 2), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def scene(t, patches, camera=(0.0, 0.0)):
    """Draw textured patches moving over a background that moves with the camera [pixels/s]."""
    import cv2
    width, height = SIZE
    ground = texture(0, 2 * height, 2 * width)
    x, y = 300 + camera[0] * t, 200 + camera[1] * t
    frame = cv2.getRectSubPix(ground, SIZE, (x + width / 2, y + height / 2))
    for k, (region, (vx, vy), growth) in enumerate(patches):
        box = moved(region, (vx, vy), growth, t)
        patch = texture(k + 1, round(region.h), round(region.w))
        shift = np.float32([[box.w / region.w, 0, box.x], [0, box.h / region.h, box.y]])
        warped = cv2.warpAffine(patch, shift, SIZE, flags=cv2.INTER_LINEAR)
        mask = cv2.warpAffine(np.full_like(patch, 255), shift, SIZE)
        frame = np.where(mask > 127, warped, frame)
    return frame


def moved(region, velocity, growth, t):
    """Return where a region is after t seconds; growth is per second, about its corner."""
    return Region(region.x + velocity[0] * t, region.y + velocity[1] * t,
                  region.w * (1 + growth * t), region.h * (1 + growth * t))


# None meets another within two seconds.
PATCHES = [(Region(100, 100, 60, 60), (40, 10), 0.0), (Region(420, 300, 50, 80), (-30, -20), 0.0),
           (Region(300, 60, 40, 40), (0, 25), 0.15), (Region(180, 400, 90, 40), (60, 0), 0.0),
           (Region(540, 60, 36, 36), (-45, 30), 0.0), (Region(60, 300, 50, 50), (25, -35), 0.1)]


def test_six_regions_after_two_seconds():
    carrier = RegionTracker()
    for n in range(21):
        carrier.add((n + 1) * TENTH, scene(n / 10, PATCHES, camera=(12, -6)))
        if n == 0:
            carrier.start({k: p[0] for k, p in enumerate(PATCHES)}, TENTH)
    truth = [moved(*p, 2.0) for p in PATCHES]
    carried = carrier.regions()
    assert len(carried) == 6
    iou = np.mean([carried[k].iou(r) for k, r in enumerate(truth)])
    stayed = np.mean([p[0].iou(r) for p, r in zip(PATCHES, truth)])
    assert iou >= 0.7 and iou >= stayed + 0.15, (iou, stayed)


def test_driving_world_beats_regions_that_stay():
    """Of what is still there after 2 s; by the truth of the world, 10 Hz."""
    carried, stayed = [], []
    for seed in range(13):
        world = make_world('driving', 1_000_100 + seed, 'day')
        first = 400 + 100 * seed
        carrier = RegionTracker()
        before = _things(world, first)
        for n in range(21):
            carrier.add((n + 1) * TENTH, world.frame(first + 2 * n))
            if n == 0:
                carrier.start(before, TENTH)
        after, regions = _things(world, first + 40), carrier.regions()
        for name in set(before) & set(after) & set(regions):
            carried.append(regions[name].iou(after[name]))
            stayed.append(before[name].iou(after[name]))
    assert len(carried) >= 12
    iou, still = np.mean(carried), np.mean(stayed)
    assert iou >= 0.7 and iou >= still + 0.15, (iou, still)


def _things(world, index):
    """Return region by identity: what stands keeps its place on the road."""
    scene_ = world.scene(index)
    found = {}
    for thing in scene_.things:
        region = scene_.region(thing)
        if thing.kind in SCENE.choices and thing.kind != 'pedestrian' and region is not None:
            place = thing.variant if thing.kind == 'lead' else round(scene_.distance + thing.z, 1)
            found[thing.kind, place] = region
    return found


def test_late_reply_catches_up_over_buffered_frames():
    """Started late from an old frame, a region ends where one started in time ends."""
    early, late = RegionTracker(), RegionTracker()
    regions = {k: p[0] for k, p in enumerate(PATCHES)}
    for n in range(16):
        frame = scene(n / 10, PATCHES)
        for carrier in (early, late):
            carrier.add((n + 1) * TENTH, frame)
        if n == 0:
            early.start(regions, TENTH)
    late.start(regions, TENTH)
    for k in regions:
        assert late.regions()[k].iou(early.regions()[k]) > 0.99


def test_camera_motion_carries_what_has_no_corners():
    """A featureless box moves with the camera for a while, then is lost."""
    config = FlowConfig(max_coasting_s=0.55)
    carrier = RegionTracker(config)
    box = Region(300, 200, 60, 60)
    seen = []
    for n in range(8):
        t = n / 10
        frame = scene(t, [], camera=(50, 0))
        x = round(box.x - 50 * t)
        frame[190:270, x - 10:x + 70] = 128
        carrier.add((n + 1) * TENTH, frame)
        if n == 0:
            carrier.start({'box': box}, TENTH)
        seen.append(carrier.regions().get('box'))
    assert seen[5] is not None
    assert seen[5].iou(moved(box, (-50, 0), 0.0, 0.5)) > 0.7 > seen[5].iou(box)
    assert seen[7] is None and carrier.lost == 1


def test_what_only_moves_with_the_camera_is_lost_after_five_seconds():
    carrier = RegionTracker()
    plain = np.full((SIZE[1], SIZE[0]), 128, np.uint8)   # nothing to hold on to
    for n in range(27):
        carrier.add((n + 1) * 2 * TENTH, plain)
        if n == 0:
            carrier.start({'box': Region(300, 200, 60, 60)}, 2 * TENTH)
        assert ('box' in carrier.regions()) is (0.2 * n < 5.05), f'{0.2 * n:.1f} s'


def test_what_leaves_the_frame_is_lost():
    carrier = RegionTracker()
    box = Region(560, 200, 60, 60)
    for n in range(20):
        carrier.add((n + 1) * TENTH, scene(n / 10, [(box, (80, 0), 0.0)]))
        if n == 0:
            carrier.start({'box': box}, TENTH)
    assert carrier.regions() == {} and carrier.lost == 1


def test_no_frame_no_guess():
    carrier = RegionTracker()
    carrier.start({'a': Region(0, 0, 9, 9)}, TENTH)
    assert carrier.regions() == {} and carrier.lost == 1
    carrier.add(100 * TENTH, scene(0, []))
    carrier.start({'a': Region(0, 0, 9, 9)}, TENTH)  # of a frame ten seconds before the buffer
    assert carrier.regions() == {} and carrier.lost == 2


def test_buffer_is_bounded_and_in_order():
    carrier = RegionTracker(FlowConfig(history_s=1.0))
    frame = scene(0, [])
    for n in range(1, 40):
        carrier.add(n * TENTH, frame)
    assert len(carrier._frames) <= 11
    with pytest.raises(ValueError, match='clear'):
        carrier.add(TENTH, frame)
    carrier.clear()
    carrier.add(TENTH, frame)
    carrier.start({'a': Region(10, 10, 50, 50)}, TENTH)
    carrier.add(2 * TENTH, frame[:240, :320])
    assert carrier.regions() == {}, 'another camera mode'


def test_shrink():
    assert shrink(np.zeros((480, 640, 3), np.uint8), FlowConfig(width=320)).shape == (240, 320)
    assert shrink(np.zeros((1080, 1920), np.uint8), FlowConfig(width=320)).shape == (180, 320)
    assert shrink(np.zeros((240, 320), np.uint8), FlowConfig()).shape == (240, 320)


@pytest.mark.parametrize('shape', [(48, 64), (48, 64, 3)])
def test_frames_are_kept_in_the_same_memory_and_are_never_the_callers(shape):
    carrier, kept = RegionTracker(FlowConfig(history_s=0.35), cut_below=-2.0), []
    for n in range(12):
        frame = np.full(shape, n, np.uint8)
        carrier.add((n + 1) * TENTH, frame)
        if n == 8:
            carrier.clear()
        kept.append((frame, carrier._frames[-1].grey.ctypes.data if n != 8 else None))
    assert [frame.flat[0] for frame, _ in kept] == list(range(12))
    assert len({address for _, address in kept} - {None}) <= 5


def test_other_regions_go_on():
    carrier = RegionTracker()
    for n in range(3):
        carrier.add((n + 1) * TENTH, scene(n / 10, PATCHES))
        if n == 0:
            carrier.start({'a': PATCHES[0][0]}, TENTH)
    carrier.start({'b': PATCHES[1][0]}, TENTH)
    assert set(carrier.regions()) == {'a', 'b'}
    carrier.keep(['b'])
    assert set(carrier.regions()) == {'b'}
