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
"""Keyframes as they leave the robot."""

import io

import cv2
import numpy as np
from PIL import Image as PilImage
import pytest

from spotvlm_ros.bench.faults.pictures import bombs
from spotvlm_ros.cloud.keyframe_encoder import KeyframeEncoder, read_masks, shrink
from spotvlm_ros.config.nodes import KeyframeConfig
from spotvlm_ros.frames.frame import Frame
from spotvlm_ros.frames.pixels import encode_jpeg, FrameError


def scene(noise=40, size=(480, 640), seed=0):
    """Return a frame with structure and noise, like a camera's."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8), size[::-1],
                        interpolation=cv2.INTER_CUBIC).astype(np.int16)
    return np.clip(coarse + rng.integers(-noise, noise + 1, (*size, 3)), 0, 255).astype(np.uint8)


def jpeg_of(pixels, **options):
    out = io.BytesIO()
    PilImage.fromarray(pixels).save(out, 'JPEG', **options)
    return out.getvalue()


def decoded(keyframe):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(keyframe.jpeg, np.uint8), 1), cv2.COLOR_BGR2RGB)


def never():
    raise AssertionError('nothing needs to be decoded')


def test_jpeg_passes_through_without_decoding():
    data = jpeg_of(scene())
    keyframe = KeyframeEncoder().encode(data, never)
    assert keyframe.jpeg is data
    assert (keyframe.width, keyframe.height, keyframe.scale) == (640, 480, 1.0)


@pytest.mark.parametrize('limits', [
    KeyframeConfig(max_side=320), KeyframeConfig(max_image_bytes=20_000),
    KeyframeConfig(privacy_masks=('0 0 1 0.5',))])
def test_jpeg_is_made_anew_where_a_rule_asks_for_it(limits):
    pixels = scene()
    keyframe = KeyframeEncoder(limits).encode(jpeg_of(pixels), lambda: pixels)
    assert keyframe.jpeg[:2] == b'\xff\xd8' and (keyframe.width, keyframe.height) == (640, 480)
    assert not limits.max_image_bytes or len(keyframe.jpeg) <= limits.max_image_bytes
    assert decoded(keyframe).shape[1] == round(640 * keyframe.scale)


@pytest.mark.parametrize('data', [
    jpeg_of(scene())[:5000], b'', b'\xff\xd8\xff\xd9', b'\x89PNG\r\n\x1a\n'])
def test_what_is_no_whole_jpeg_is_decoded_first(data):
    def broken():
        raise ValueError('truncated JPEG')
    with pytest.raises(ValueError, match='truncated'):
        KeyframeEncoder().encode(data, broken)


def test_camera_on_its_side_is_sent_upright():
    exif = PilImage.Exif()
    exif[274] = 6
    pixels = scene()
    data = jpeg_of(pixels, exif=exif)
    turned = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB)
    keyframe = KeyframeEncoder().encode(data, lambda: turned)
    assert (keyframe.width, keyframe.height) == (480, 640)
    assert decoded(keyframe).shape == (640, 480, 3)


@pytest.mark.parametrize('limit', [60_000, 30_000, 12_000, 5_000])
def test_byte_budget_costs_as_little_as_possible(limit):
    maker = KeyframeEncoder(KeyframeConfig(max_image_bytes=limit))
    keyframes = [maker.encode(None, lambda i=i: scene(seed=i)) for i in range(4)]
    assert all(0.2 * limit < len(p.jpeg) <= limit for p in keyframes)
    easy = maker.encode(None, lambda: np.full((480, 640, 3), 90, np.uint8))
    for _ in range(20):  # quality comes back step by step
        easy = maker.encode(None, lambda: np.full((480, 640, 3), 90, np.uint8))
    assert easy.scale >= 0.75 and easy.scale >= keyframes[-1].scale


def test_impossible_byte_budget_is_told():
    with pytest.raises(ValueError, match='raise max_image_bytes'):
        KeyframeEncoder(KeyframeConfig(max_image_bytes=200)).encode(None, scene)


def test_shrink():
    keyframe = KeyframeEncoder(KeyframeConfig(max_side=320)).encode(None, scene)
    again = shrink(keyframe, len(keyframe.jpeg) // 3)
    assert len(again.jpeg) <= len(keyframe.jpeg) // 3 and again.width == 640
    assert decoded(again).shape[1] == round(640 * again.scale)


def test_masked_parts_hold_nothing_of_the_frame():
    """Text under a mask cannot be told from another text; outside nothing changes."""
    def frame(text):
        pixels = np.full((480, 640, 3), 200, np.uint8)
        cv2.putText(pixels, text, (60, 120), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (0, 0, 0), 2)
        cv2.putText(pixels, 'EXIT', (400, 400), cv2.FONT_HERSHEY_SIMPLEX, 2.0, (0, 0, 0), 3)
        return pixels
    masks = ('0.05 0.1 0.5 0.35', '0.6 0 1 0 1 0.3')
    sent = {}
    for text in ('B-XY 4711', 'H-KL 8023'):
        pixels = frame(text)
        sent[text] = decoded(KeyframeEncoder(KeyframeConfig(privacy_masks=masks)).encode(
            jpeg_of(pixels), lambda p=pixels: p)).astype(int)
        assert np.array_equal(pixels, frame(text)), 'the frame is shared: it must not change'
        assert np.abs(sent[text][360:410, 390:560] - pixels[360:410, 390:560]).mean() < 4
        hidden = sent[text][52:164, 40:312]
        assert np.abs(np.diff(hidden, axis=1)).max() < 25, 'an edge is left'
    one, two = sent.values()
    original = np.abs(frame('B-XY 4711').astype(int) - frame('H-KL 8023')).max()
    assert original == 200 and np.abs(one - two).max() < 70


def test_polygon_is_blurred_inside_only():
    pixels = np.repeat(scene(noise=90)[..., :1], 3, axis=2)  # JPEG halves only colour
    limits = KeyframeConfig(jpeg_quality=100, privacy_masks=('0 0 0.5 0 0 0.5',))
    out = decoded(KeyframeEncoder(limits).encode(None, lambda: pixels)).astype(int)
    assert pixels[10:60, 10:60].std() > 2 * out[10:60, 10:60].std()
    assert np.abs(out[200:, 300:] - pixels[200:, 300:]).mean() < 6


@pytest.mark.parametrize('text', ['', '0 0 1', '0 0 1 2', 'a b c d', '0 0 nan 1', '0 0 1 1 1'])
def test_bad_masks_are_told(text):
    with pytest.raises(ValueError, match='privacy mask'):
        read_masks([text])


def test_what_is_no_picture_is_told_and_not_sent():
    """A header of 65,500 x 65,500 pixels was a bug of ours in the counts."""
    sent = set()
    for name, data in bombs().items():
        frame = Frame(1, 'camera', jpeg=data)
        try:
            KeyframeEncoder().encode(frame.jpeg, frame.rgb)
            sent.add(name)
        except ValueError as error:
            assert 'pixels' in str(error) or 'publish' in str(error) or 'check' in str(error)
    assert sent == {'follows.jpg', 'other.jpg'}


def test_large_pictures_are_kept_until_another_is_decoded():
    """Three nodes with a picture of 100 MB each would be more than the rest of the process."""
    rng = np.random.default_rng(1)
    small = rng.integers(0, 255, (45, 60, 3), np.uint8)
    large = cv2.resize(small, (3000, 2250), interpolation=cv2.INTER_CUBIC)
    data, few = encode_jpeg(large), encode_jpeg(small)
    first, second, other = (Frame(i, 'c', jpeg=j) for i, j in ((1, data), (2, data), (3, few)))
    before, _ = other.rgb(), first.rgb()
    assert np.abs(first.rgb().astype(int) - large).mean() < 3.0
    mine = first.rgb()
    np.testing.assert_array_equal(second.rgb(), mine)
    assert second.decoded and not first.decoded and other.rgb() is before
    assert Frame(4, 'c', jpeg=few).rgb().shape == small.shape and not second.decoded
    np.testing.assert_array_equal(first.rgb(), mine)
    assert first.decoded
    with pytest.raises(FrameError, match='JPEG'):
        encode_jpeg(np.zeros((100, 66_000, 3), np.uint8))
