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
"""Images by cv_bridge where it gives what we give, by us where it crashes, hangs or lies."""

import sys
import time
from types import SimpleNamespace

from fakes import FakeEdge, wait_for
import numpy as np
import pytest

pytest.importorskip('rclpy')
from spotvlm_ros.frames.frame import Frame  # noqa: E402
from spotvlm_ros.frames.pixels import fast_bytes, image_to_rgb  # noqa: E402
from spotvlm_ros.nodes.convert import image_msg  # noqa: E402
from spotvlm_ros.nodes.edge import EdgeNode  # noqa: E402
from spotvlm_ros.nodes.image_converter import (  # noqa: E402
    compare, ImageConverter, kind_of, samples)
from spotvlm_ros.system import doctor  # noqa: E402
from spotvlm_ros.system.cv_bridge import ABSENT, check_cv_bridge, Verdict  # noqa: E402
from test_nodes_graph import graph, GREY, keep_sending  # noqa: E402

# Reads an image as cv_bridge does: rows are cut at whole pixels, wide values are scaled, and
# NumPy 2 has no newbyteorder.
STAND_IN = """
import cv2
import numpy as np
USED = []


class CvBridgeError(TypeError):
    pass


class CvBridge:
    def imgmsg_to_cv2(self, img_msg, desired_encoding='passthrough'):
        USED.append(img_msg.encoding)
        name = img_msg.encoding.replace('yuv422_yuy2', 'yuy2').replace('yuv422', 'uyvy')
        colour = {'mono': 'GRAY2', 'baye': {
            'rg': 'BayerBG2', 'bg': 'BayerRG2', 'gb': 'BayerGR2', 'gr': 'BayerGB2'}.get(name[6:8]),
            'uyvy': 'YUV2', 'yuy2': 'YUV2'}.get(name[:4], name.upper().rstrip('168') + '2')
        if name[:2].isdigit() or name == 'yuyv' or img_msg.encoding == 'uyvy':
            raise CvBridgeError('[%s] is not a color format' % name)
        if img_msg.is_bigendian:
            raise AttributeError("'numpy.ndarray' object has no attribute 'newbyteorder'")
        kind = np.dtype('u2' if name.endswith('16') else 'u1')
        channels = {'mono': 1, 'baye': 1, 'uyvy': 2, 'yuy2': 2}.get(name[:4], len(colour) - 1)
        shape = (img_msg.height, img_msg.step // kind.itemsize // channels, channels)
        pixels = np.ndarray(shape, kind, img_msg.data)[:, :img_msg.width].copy()
        code = 'COLOR_' + colour + 'RGB' + ('_' + name.upper() if colour == 'YUV2' else '')
        pixels = pixels if colour == 'RGB2' else cv2.cvtColor(pixels, getattr(cv2, code))
        return np.round(pixels / 257).astype('u1') if kind.itemsize == 2 else pixels
"""


def install(tmp_path, monkeypatch, source):
    """Put a module cv_bridge on sys.path."""
    (tmp_path / 'cv_bridge.py').write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, 'cv_bridge', None)
    monkeypatch.delitem(sys.modules, 'cv_bridge')


def checked(converter, complaints):
    """Have every kind of image converted, before the check and after; return who converts."""
    assert converter.name == 'spotvlm (nothing to convert yet)'
    everything = list(samples())
    assert len({kind_of(message) for message in everything}) > 100
    for _ in range(2):
        for message in everything:
            assert np.array_equal(converter.rgb(message, complaints.append), image_to_rgb(message))
        wait_for(lambda: converter.verdict is not None)
    return converter.name


def test_it_converts_what_it_converts_as_we_do(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, STAND_IN)
    converter, complaints = ImageConverter(), []
    assert checked(converter, complaints) == 'cv_bridge' and not complaints
    used = set(sys.modules['cv_bridge'].USED)
    assert used >= {'bgr8', 'rgba8', 'bgra8', 'mono8', 'yuv422', 'yuv422_yuy2', 'bayer_rggb8'}
    assert used == set(converter.verdict.encodings)
    # Twelve bits in sixteen would be black, rows that are no whole number of pixels askew.
    assert not any(word in kind for kind in converter.verdict.kinds
                   for word in ('16', 'ragged', 'big'))
    monkeypatch.setattr(doctor, 'check_cv_bridge', lambda: converter.verdict)
    finding, = (f for f in doctor.check_ros_extras() if f.name == 'cv_bridge')
    assert finding.status == doctor.OK and 'bayer_rggb8' in finding.detail


@pytest.mark.parametrize('source,why', [
    ('raise AttributeError("_ARRAY_API not found")', 'AttributeError: _ARRAY_API not found'),
    ('import ctypes; ctypes.string_at(0)', 'was killed by SIGSEGV'),
    ('import atexit, os; atexit.register(os.abort)\n' + STAND_IN, 'was killed by SIGABRT'),
    ('import sys; sys.exit(0)', 'has ended with exit code 0')])
def test_one_that_cannot_be_loaded_is_not_used(tmp_path, monkeypatch, source, why):
    install(tmp_path, monkeypatch, source)
    converter = ImageConverter()
    assert why in checked(converter, []) and 'cv_bridge' not in sys.modules
    monkeypatch.setattr(doctor, 'check_cv_bridge', lambda: converter.verdict)
    finding, = (f for f in doctor.check_ros_extras() if f.name == 'cv_bridge')
    assert finding.status == doctor.OPTIONAL and f'not used: {converter.verdict.why}' in \
        finding.detail


@pytest.mark.parametrize('change,why', [
    ('right(self, img_msg)[..., ::-1]', 'its pixels are not those of ours'),
    ('right(self, img_msg).astype(float)', 'TypeError: it gives float64 of shape'),
    ('right(self, img_msg)[0]', 'TypeError: it gives uint8 of shape'),
    ('None', 'AttributeError: '), ('1 / 0', 'ZeroDivisionError: ')])
def test_pixels_that_are_not_ours_are_seen(change, why):
    module = {}
    exec(STAND_IN, module)  # noqa: S102
    module['right'] = module['CvBridge'].imgmsg_to_cv2
    exec(f'CvBridge.imgmsg_to_cv2 = lambda self, img_msg, name: {change}', module)  # noqa: S102
    verdict = compare(module['CvBridge']())
    assert why in verdict.why
    assert all(kind.startswith(('mono', '8UC1')) for kind in verdict.kinds)


def test_one_that_hangs_holds_nobody_up(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, 'import signal, time\nwhile True: time.sleep(1)')
    converter, message = ImageConverter(lambda: check_cv_bridge(0.2)), next(samples())
    begin = time.monotonic()
    converter.rgb(message, print)
    assert time.monotonic() - begin < 0.1
    wait_for(lambda: converter.verdict is not None)
    assert converter.name == 'spotvlm (its check took more than 0.2 s)'


def test_one_that_fails_later_is_used_no_more(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv_bridge', SimpleNamespace(CvBridge=object))
    kinds = frozenset(map(kind_of, samples()))
    converter, complaints = ImageConverter(lambda: Verdict(kinds)), []
    assert checked(converter, complaints).startswith('spotvlm (AttributeError')
    assert len(complaints) == 1 and 'without it from now on' in complaints[0]
    monkeypatch.setitem(sys.modules, 'cv_bridge', None)
    converter = ImageConverter(lambda: Verdict(kinds))
    assert checked(converter, complaints).startswith('spotvlm (ModuleNotFoundError')


def test_without_it_no_process_is_started(monkeypatch):
    monkeypatch.setattr('spotvlm_ros.system.cv_bridge.Child', None)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert check_cv_bridge() == Verdict(why=ABSENT)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_wide_bayer_is_narrow_bayer_with_more_bits(pattern):
    wide, narrow = (next(m for m in samples() if m.encoding == f'bayer_{pattern}{bits}')
                    for bits in (16, 8))
    narrow.data = fast_bytes((np.frombuffer(wide.data, '<u2') >> 8).astype(np.uint8))
    assert np.array_equal(image_to_rgb(wide), image_to_rgb(narrow))


@pytest.mark.parametrize('use', ['true', 'false'])
def test_the_node_says_who_converts(tmp_path, monkeypatch, use):
    install(tmp_path, monkeypatch, STAND_IN)
    monkeypatch.setattr('spotvlm_ros.nodes.input.CONVERTER', ImageConverter())
    edge = FakeEdge()
    with graph(lambda: [EdgeNode(load=edge.load)], f'use_cv_bridge:={use}') as (probe, _):
        def send(stamp):
            message = image_msg(Frame(stamp, 'eye', pixels=GREY))
            message.encoding = 'bgr8'
            probe.image.publish(message)
        said = {'true': 'cv_bridge', 'false': 'spotvlm (use_cv_bridge is false)'}[use]
        keep_sending(probe, send, lambda: probe.diagnostics.get(
            'edge', {}).get('converter') == said)
        keep_sending(probe, send, lambda: any(not a.error_code for a in probe.answers))
    assert ('cv_bridge' in sys.modules) == (use == 'true')
