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
"""Recordings as the world has them: odd times, several connections, names, sizes and endings."""

import io
import itertools
from pathlib import Path
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
from PIL import Image as PilImage
import pytest
from rosbags.interfaces import (Qos, QosDurability, QosHistory, QosLiveliness, QosReliability,
                                QosTime)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

from spotvlm_ros.cloud.keyframe_encoder import KeyframeEncoder
from spotvlm_ros.config.nodes import KeyframeConfig
from spotvlm_ros.frames import sources
from spotvlm_ros.frames.jpeg import complete_jpeg, without_metadata
from spotvlm_ros.frames.pace import Pace
from spotvlm_ros.frames.pixels import decode_compressed, FrameError, image_to_rgb
import yaml

TYPES = get_typestore(Stores.ROS2_KILTED)
QOS = Qos(QosHistory.KEEP_LAST, 5, QosReliability.BEST_EFFORT, QosDurability.VOLATILE,
          QosTime(0, 0), QosTime(0, 0), QosLiveliness.AUTOMATIC, QosTime(0, 0), False)
START = 1_700_000_000 * 10**9
STEP = 10**8  # [ns]
PIXELS = np.kron(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5, np.ones((40, 40), np.uint8))
JPEG = cv2.imencode('.jpg', PIXELS)[1].tobytes()


def image(stamp_ns, encoding='rgb8'):
    stamp = TYPES.types['builtin_interfaces/msg/Time'](stamp_ns // 10**9, stamp_ns % 10**9)
    header = TYPES.types['std_msgs/msg/Header'](stamp, 'camera')
    return TYPES.types['sensor_msgs/msg/Image'](header, 2, 2, encoding, 0, 6,
                                                np.zeros(12, np.uint8))


def write_bag(path, log_times, connections=1, odd_definition=False, storage='MCAP',
              encoding='rgb8'):
    """Write a bag whose images come over several connections in turn; return the folder."""
    with Writer(path, version=9, storage_plugin=StoragePlugin[storage]) as writer:
        of = [writer.add_connection('/image', 'sensor_msgs/msg/Image', typestore=TYPES,
                                    offered_qos_profiles=[QOS] * i) for i in range(connections)]
        if odd_definition:
            writer.add_connection('/odd', 'odd_msgs/msg/Odd', msgdef='this [[ is none',
                                  rihs01='RIHS01_0', serialization_format='cdr')
        for i, log_ns in enumerate(log_times):
            message = image(START + i * STEP, encoding)
            writer.write(of[i * len(of) // len(log_times)], log_ns,
                         TYPES.serialize_cdr(message, message.__msgtype__))
    return path


def due(frames):
    return [round(f.at_s, 3) for f in frames]


@pytest.mark.parametrize('log_times,jumps', [
    ([0] + [START + i * STEP for i in range(1, 6)], 1),          # before the first /clock
    ([START + i * STEP for i in range(5)] + [2**63 - 1], 1),      # rolled over
    ([START + i * STEP for i in range(6)], 0)])
def test_log_times_that_jump_are_no_pause_to_wait_for(tmp_path, log_times, jumps):
    frames = list(sources.bag(str(write_bag(tmp_path / 'bag', log_times))))
    assert due(frames) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert [bool(f.warning) for f in frames].count(True) == jumps
    assert [f.stamp_ns for f in frames] == [START + i * STEP for i in range(6)]


def test_a_clock_that_is_set_back_goes_on():
    clock = sources.RecordedClock()
    times = [clock.at(t) for t in (5.0, 5.2, 1.0, 1.2, 1.2, 90000.0, float('nan'), 90000.5)]
    assert [round(t, 3) for t, _ in times] == [0.0, 0.2, 0.4, 0.6, 0.6, 0.8, 1.0, 1.2]
    assert [i for i, (_, warning) in enumerate(times) if warning] == [2, 5, 6, 7]


def test_a_pause_of_seconds_is_kept(tmp_path):
    bag = write_bag(tmp_path / 'bag', [START, START + STEP, START + 71 * STEP])
    assert due(sources.bag(str(bag))) == [0.0, 0.1, 7.1]


def test_all_connections_of_a_topic_are_read(tmp_path):
    """A driver that is restarted while recording has a second one (PRBonn/kiss-icp#109)."""
    bag = write_bag(tmp_path / 'bag', [START + i * STEP for i in range(12)], connections=2)
    assert due(sources.bag(str(bag))) == [round(0.1 * i, 3) for i in range(12)]


@pytest.mark.parametrize('storage', ['MCAP', 'SQLITE3'])
def test_another_topic_does_not_spoil_a_bag(tmp_path, storage):
    times = [START + i * STEP for i in range(3)]
    bag = write_bag(tmp_path / 'bag', times, odd_definition=True, storage=storage)
    assert len(list(sources.bag(str(bag)))) == 3
    file = bag / 'metadata.yaml'
    metadata = yaml.safe_load(file.read_text())
    for topic in metadata['rosbag2_bagfile_information']['topics_with_message_count']:
        if topic['topic_metadata']['name'] == '/odd':
            topic['topic_metadata']['offered_qos_profiles'] = '- history: nonsense'
    file.write_text(yaml.safe_dump(metadata))
    assert len(list(sources.bag(str(bag)))) == 3


def test_qos_of_the_metadata_need_not_be_that_of_the_file(tmp_path):
    """A converter writes another (facontidavide/cloudini#29)."""
    bag = write_bag(tmp_path / 'bag', [START + i * STEP for i in range(3)])
    file = bag / 'metadata.yaml'
    metadata = yaml.safe_load(file.read_text())
    zero = {'sec': 0, 'nsec': 0}
    topics = metadata['rosbag2_bagfile_information']['topics_with_message_count']
    topics[0]['topic_metadata']['offered_qos_profiles'] = [{
        'history': 'keep_last', 'depth': 5, 'reliability': 'reliable', 'durability': 'volatile',
        'deadline': zero, 'lifespan': zero, 'liveliness': 'automatic',
        'liveliness_lease_duration': zero, 'avoid_ros_namespace_conventions': False}]
    file.write_text(yaml.safe_dump(metadata))
    assert len(list(sources.bag(str(bag)))) == 3
    assert len(list(sources.bag(str(next(bag.glob('*.mcap')))))) == 3


def test_a_video_is_paced_by_its_own_times():
    """Webm says 1000 frames a second, phones vary theirs (opencv/opencv#24000)."""
    path = str(Path(__file__).with_name('data') / 'variable_rate.webm')
    assert due(sources.video(path)) == [0.0, 0.1, 0.15, 1.65, 1.7, 3.2]
    assert due(sources.video(path, 10.0)) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_images_are_sorted_by_number_and_a_folder_is_none(tmp_path):
    for number in range(12):
        cv2.imwrite(str(tmp_path / f'frame{number}.png'), np.full((8, 8, 3), 20 * number, 'u1'))
    (tmp_path / 'frame5.jpg').mkdir()
    (tmp_path / 'frame12.jpg').symlink_to(tmp_path / 'gone.jpg')
    frames = list(sources.images(str(tmp_path)))
    assert [int(decode_compressed(f.jpeg).mean()) // 20 for f in frames[:12]] == list(range(12))
    with pytest.raises(FrameError, match='frame12.jpg'):
        frames[12].load()


def test_a_short_clip_shown_over_and_over_keeps_its_rate():
    pace, stop, shown = Pace(), threading.Event(), []
    began = time.monotonic()
    for _ in range(3):
        pace.run((sources.SourceFrame(0.05 * i) for i in range(2)), shown.append, stop)
    assert len(shown) == 6 and time.monotonic() - began >= 0.29


@pytest.mark.parametrize('tail', [b'\0' * 3, b'\0' * 96, b'\xab' * 512, JPEG + b'video' * 99,
                                  b'MotionPhoto_Data' + bytes(9000)])
def test_bytes_behind_a_jpeg_are_cut_off(tail):
    """Drivers pad, motion photos have a video there (espressif/esp32-camera#162)."""
    assert complete_jpeg(JPEG + tail) == JPEG
    assert np.array_equal(decode_compressed(JPEG + tail), decode_compressed(JPEG))
    sent = KeyframeEncoder().encode(JPEG + tail, lambda: pytest.fail('was decoded'))
    assert sent.jpeg == JPEG and (sent.width, sent.height) == (320, 240)


@pytest.mark.parametrize('options', [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
                                     [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]])
def test_a_jpeg_that_was_cut_off_is_none(options):
    data = cv2.imencode('.jpg', PIXELS, options)[1].tobytes()
    for size in itertools.chain(range(2, 700, 37), [len(data) - 1]):
        assert complete_jpeg(data[:size]) is None
        with pytest.raises(FrameError, match='truncated'):
            decode_compressed(data[:size])
    assert complete_jpeg(data) == data and decode_compressed(data).shape == (240, 320, 3)


def photo(options=()):
    """Return the JPEG of a picture with much in it."""
    noise = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    pixels = cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode('.jpg', pixels, list(options))[1].tobytes()


@pytest.mark.parametrize('options', [(), (cv2.IMWRITE_JPEG_RST_INTERVAL, 8),
                                     (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
def test_a_jpeg_with_a_hole_is_none(options):
    """A packet is lost, or its place in the buffer is never written."""
    data = photo(options)
    holes = 0
    for at in range(1000, len(data) - 2000, len(data) // 40):
        for holed in (data[:at] + bytes(1400) + data[at + 1400:], data[:at] + data[at + 1400:]):
            try:
                decode_compressed(holed)
            except FrameError as error:
                holes += 'packet loss' in str(error)
    assert holes >= 76  # of 2 x 39; some holes of a progressive JPEG show nowhere
    with pytest.raises(FrameError, match='hole'):
        KeyframeEncoder().encode(data[:9000] + bytes(1400) + data[10400:], lambda: PIXELS)


@pytest.mark.parametrize('options', [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
                                     (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_a_jpeg_is_decoded_as_opencv_does(options):
    for data in (photo(options), cv2.imencode('.jpg', PIXELS, list(options))[1].tobytes()):
        wanted = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        assert np.array_equal(decode_compressed(data), wanted)
        stray = data[:-2] + bytes(4) + data[-2:]  # as many webcams end
        assert np.array_equal(decode_compressed(stray), wanted)
    exif = PilImage.Exif()
    exif[274] = 6  # turned by a quarter
    buffer = io.BytesIO()
    PilImage.fromarray(PIXELS).save(buffer, 'JPEG', exif=exif)
    assert decode_compressed(buffer.getvalue()).shape == (320, 240, 3)
    buffer = io.BytesIO()
    PilImage.fromarray(PIXELS).convert('CMYK').save(buffer, 'JPEG')
    assert decode_compressed(buffer.getvalue()).shape == (240, 320, 3)


def test_what_a_camera_writes_about_itself_stays_on_the_robot():
    exif = PilImage.Exif()
    exif[271] = 'ACME serial 4711'
    exif[0x8825] = {1: 'N', 2: (52.0, 31.0, 12.0)}
    buffer = io.BytesIO()
    PilImage.fromarray(PIXELS).save(buffer, 'JPEG', exif=exif, comment=b'owner', icc_profile=b'p')
    data = buffer.getvalue()
    stripped = without_metadata(data)
    assert b'ACME' not in stripped and b'owner' not in stripped and b'ICC_PROFILE' in stripped
    assert np.array_equal(decode_compressed(stripped), decode_compressed(data))
    assert KeyframeEncoder().encode(data, lambda: PIXELS).jpeg == stripped
    keep = KeyframeEncoder(KeyframeConfig(keep_metadata=True))
    assert keep.encode(data, lambda: PIXELS).jpeg == data


@pytest.mark.parametrize('suffix', ['PNG', 'BMP', 'TIFF', 'WEBP', 'JPEG'])
def test_a_picture_that_claims_to_be_huge_is_not_decoded(suffix):
    """A PNG of 389 kB can take 4.6 GB."""
    side = 16000 if suffix in ('PNG', 'JPEG', 'TIFF') else 9000
    buffer = io.BytesIO()
    picture = PilImage.new('1' if suffix != 'WEBP' else 'RGB', (side, side))
    options = {'method': 0, 'quality': 1} if suffix == 'WEBP' else {}
    try:
        picture = picture.convert('L' if suffix == 'JPEG' else picture.mode)
        picture.save(buffer, suffix, **options)
    except ValueError:
        pytest.skip(f'{suffix} itself has no pictures of this size')
    with pytest.raises(FrameError, match='is not decoded'):
        decode_compressed(buffer.getvalue())


@pytest.mark.parametrize('bits', [10, 12, 14, 16])
def test_few_bits_in_many_are_not_shown_dark(bits):
    wide = np.linspace(0, 2**bits - 1, 64).astype('<u2').reshape(8, 8)
    message = SimpleNamespace(encoding='mono16', width=8, height=8, step=16, is_bigendian=0,
                              data=wide.tobytes())
    assert image_to_rgb(message)[-1, -1, 0] == 255


def test_a_png_called_jpeg_is_a_picture():
    png = cv2.imencode('.png', PIXELS)[1].tobytes()
    assert np.array_equal(decode_compressed(png)[:, :, 0], PIXELS)
