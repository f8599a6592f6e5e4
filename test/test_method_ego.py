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
"""How regions are carried where it is known how the camera turns."""

import math

import cv2
import numpy as np
import pytest

from spotvlm_ros.method.ego import (bend, BODY_FROM_OPTICAL, pinhole, rescaled, rotation,
                                    rotation_of_angles, Rotations, turned_region)
from spotvlm_ros.method.facts import NS, Region
from spotvlm_ros.method.flow import FlowConfig, RegionTracker
from test_method_flow import texture

SIZE, F = (320, 240), 300.0
K = [F, 0, 160, 0, F, 120, 0, 0, 1]
LENS = pinhole(K, *SIZE)
NAN = float('nan')


def body(roll=0.0, pitch=0.0, yaw=0.0):
    """Return how a camera looks that is fixed to a body, ahead."""
    return rotation_of_angles(roll, pitch, yaw) @ BODY_FROM_OPTICAL


@pytest.mark.parametrize(('turn', 'moved'), [
    ({'yaw': -0.2}, (-F * math.tan(0.2), 0)),    # to the right: things go left
    ({'pitch': 0.2}, (0, -F * math.tan(0.2))),   # nose down (REP 103): things go up
    ({'roll': 0.3}, (0, 0))])
def test_a_turn_moves_the_middle_as_far_as_its_angle(turn, moved):
    box = Region(140, 100, 40, 40)
    there = turned_region(box, LENS.turn(body(), body(**turn), SIZE))
    assert (there.x + there.w / 2, there.y + there.h / 2) == pytest.approx(
        (160 + moved[0], 120 + moved[1]), abs=1.0)
    assert (there.w, there.h) == pytest.approx((40, 40), rel=0.06)
    # At another resolution it is the same, and turning back undoes it.
    large = turned_region(Region(280, 200, 80, 80), LENS.turn(body(), body(**turn), (640, 480)))
    assert large.iou(Region(*(2 * v for v in (there.x, there.y, there.w, there.h)))) > 0.99
    assert turned_region(there, LENS.turn(body(**turn), body(), SIZE)).iou(box) > 0.95


def test_what_is_behind_the_camera_is_nowhere():
    assert turned_region(Region(140, 100, 40, 40), LENS.turn(body(), body(yaw=2.0), SIZE)) is None


@pytest.mark.parametrize('values', [
    [0.0] * 9, [NAN] * 9, [-F, 0, 160, 0, F, 120, 0, 0, 1], [F, 0, 1e6, 0, F, 120, 0, 0, 1],
    [F, 0, 160, 0, F, 120, 0, 0, 2], [1e9, 0, 160, 0, 1e9, 120, 0, 0, 1]])
def test_a_matrix_that_is_no_calibration_is_refused(values):
    with pytest.raises(ValueError, match='calibrate'):
        pinhole(values, *SIZE)


def test_frames_of_another_shape_are_refused():
    with pytest.raises(ValueError, match='camera_info is about 320x240'):
        LENS.turn(body(), body(), (640, 360))


@pytest.mark.parametrize('quaternion', [
    (0, 0, 0, 0), (NAN, 0, 0, 1), (0, 0, 0, 1.1), (math.inf, 0, 0, 1), (1e200, 1e200, 0, 0)])
def test_a_quaternion_that_is_no_rotation_is_refused(quaternion):
    with np.errstate(over='ignore'), pytest.raises(ValueError, match='quaternion'):
        rotation(*quaternion)


def test_a_quaternion_is_the_rotation_of_its_angles():
    s, c = math.sin(0.3), math.cos(0.3)
    assert rotation(0, 0, s, c) == pytest.approx(rotation_of_angles(0, 0, 0.6))
    assert rotation(0, s, 0, c) == pytest.approx(rotation_of_angles(0, 0.6, 0))
    assert rotation(s, 0, 0, c) == pytest.approx(rotation_of_angles(0.6, 0, 0))


def test_a_lens_bends_by_what_its_distortion_says():
    assert bend(LENS, []) == bend(LENS, [0.0] * 5) == 0.0
    assert bend(LENS, [-0.3, 0.1, 0, 0, 0]) > 0.02 > bend(LENS, [0.01, 0, 0, 0])
    assert bend(LENS, [NAN] * 4) == math.inf


def test_rotations_are_known_where_they_were_told_and_little_beyond():
    known = Rotations()
    assert known.at(5) is None and known.newest_ns == 0
    for n in range(4):
        assert known.add(NS + n * NS // 10, body(yaw=0.1 * n))
    assert not known.add(NS, body())                                   # not in order
    at = {s: known.at(round(s * NS)) for s in (0.9, 1.0, 1.05, 1.3, 1.35, 1.45)}
    assert at[0.9] is None and at[1.45] is None
    for s in (1.0, 1.05, 1.3, 1.35):
        assert at[s] == pytest.approx(body(yaw=s - 1.0)), s
    known.add(3 * NS, body())
    assert known.at(2 * NS) is None                                    # a gap
    assert known.at(round(3.05 * NS)) is None                          # nor a rate
    for n in range(3000):
        known.add((4 + n) * NS, body())
    assert known.at(NS) is None                                        # not kept for ever


GROUND = texture(3, 1500, 3000)
WIDE = pinhole([F, 0, 1500, 0, F, 750, 0, 0, 1], 3000, 1500)


def picture(look):
    """Return what a camera sees of a far wall."""
    to_wall = WIDE.matrix @ look.T @ body() @ np.linalg.inv(WIDE.matrix)
    at = np.array([[1, 0, 160 - 1500], [0, 1, 120 - 750], [0, 0, 1.0]])
    return cv2.warpPerspective(GROUND, at @ to_wall, SIZE)


def carried(looks, ego, tracker=None, hz=5):
    """Return where a box of the first picture is in the others, and the tracker."""
    tracker = tracker or RegionTracker(cut_below=0.4)
    seen = []
    for n, look in enumerate(looks):
        turn = LENS.turn(looks[n - 1], look, SIZE) if ego and n else None
        tracker.add((n + 1) * NS // hz, picture(look), turn)
        if not n:
            tracker.start({'box': Region(140, 100, 40, 40)}, NS // hz)
        seen.append(tracker.regions().get('box'))
    return seen, tracker


def truth(look):
    return turned_region(Region(140, 100, 40, 40), LENS.turn(body(), look, SIZE))


def test_a_fast_turn_loses_flow_and_not_what_knows_the_turn():
    looks = [body(yaw=0.16 * n, pitch=0.02 * n, roll=0.05 * n) for n in range(4)]  # 46 deg a s
    alone, _ = carried(looks, ego=False)
    joined, tracker = carried(looks, ego=True)
    assert alone[-1] is None or alone[-1].iou(truth(looks[-1])) < 0.1
    assert joined[-1].iou(truth(looks[-1])) > 0.8
    assert tracker.cuts == 0


def test_what_the_camera_turned_away_from_is_there_when_it_turns_back():
    looks = [body(yaw=0.6 * math.sin(n * math.pi / 8)) for n in range(9)]
    seen, tracker = carried(looks, ego=True)
    assert seen[4] is None and tracker.lost == 0
    assert seen[8].iou(truth(looks[8])) > 0.7


def test_what_the_camera_turned_away_from_is_not_kept_for_ever():
    looks = [body(), body(yaw=0.3), *[body(yaw=0.6)] * 6]
    tracker = carried(looks, True, RegionTracker(FlowConfig(max_coasting_s=1.0)))[1]
    assert not tracker.tracks and tracker.lost == 1


def test_another_scene_is_a_cut_though_the_camera_turns():
    looks = [body(), body(yaw=0.3)]
    tracker = carried(looks, ego=True)[1]
    tracker.add(3 * NS, texture(9, 240, 320), LENS.turn(looks[1], body(yaw=0.5), SIZE))
    assert tracker.cuts == 1


def test_a_camera_at_rest_is_carried_by_flow_to_the_bit():
    looks = [body(yaw=0.002 * n) for n in range(6)]
    assert carried(looks, ego=True)[0] == carried(looks, ego=False)[0]


def test_a_homography_is_that_of_a_picture_half_as_large():
    turn = LENS.turn(body(), body(yaw=0.1), SIZE)
    small = turned_region(Region(70, 50, 20, 20), rescaled(turn, 0.5))
    large = turned_region(Region(140, 100, 40, 40), turn)
    assert small.x == pytest.approx(large.x / 2) and small.w == pytest.approx(large.w / 2)
