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
"""What the nodes are made of, without ROS running: frames, pixels, parameters, sources."""

import json
import os
from pathlib import Path
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from spotvlm_ros.config.nodes import NODE_CONFIGS
from spotvlm_ros.config.profiles import check_file, LAYERS, load_profile
from spotvlm_ros.config.spec import ParameterError, specs
from spotvlm_ros.config.tables import markdown
from spotvlm_ros.frames import sources
from spotvlm_ros.frames.frame import Frame
from spotvlm_ros.frames.hub import FrameHub, Mailbox
from spotvlm_ros.frames.pace import Pace
from spotvlm_ros.frames.pixels import (
    check_image, decode_compressed, encode_jpeg, fast_bytes, FrameError, image_to_rgb)
from spotvlm_ros.frames.schedule import Schedule
from spotvlm_ros.frames.stamps import StampOrder
from spotvlm_ros.method.facts import NS, Query

CONFIG = Path(__file__).resolve().parents[1] / 'config'
RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def message(encoding, pixels, step=None, bigendian=0):
    height, width = pixels.shape[:2]
    row = pixels.reshape(height, -1).view(np.uint8)
    step = step or row.shape[1]
    data = np.zeros((height, step), np.uint8)
    data[:, :row.shape[1]] = row
    return SimpleNamespace(encoding=encoding, width=width, height=height, step=step,
                           is_bigendian=bigendian, data=fast_bytes(data))


@pytest.mark.parametrize('encoding,pixels', [
    ('rgb8', RGB), ('bgr8', RGB[..., ::-1].copy()),
    ('rgba8', np.dstack([RGB, RGB[..., 0]])), ('bgra8', np.dstack([RGB[..., ::-1], RGB[..., 0]])),
    ('rgb16', RGB.astype('<u2') << 8), ('bgr16', RGB[..., ::-1].astype('<u2') << 8)])
@pytest.mark.parametrize('padding', [0, 5])
def test_colour(encoding, pixels, padding):
    pixels = np.ascontiguousarray(pixels)
    step = pixels.shape[1] * pixels[0, 0].nbytes + padding * pixels.itemsize
    assert np.array_equal(image_to_rgb(message(encoding, pixels, step)), RGB)


def test_grey_and_endianness():
    grey = np.dstack([RGB[..., 0]] * 3)
    assert np.array_equal(image_to_rgb(message('mono8', RGB[..., :1].copy())), grey)
    wide = (RGB[..., :1].astype('>u2') << 8) | 7
    assert np.array_equal(image_to_rgb(message('mono16', wide.astype('>u2'), bigendian=1)), grey)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer(pattern):
    rows = (pattern[:2], pattern[2:])
    colour = dict(zip('rgb', (200, 100, 50)))
    tile = np.array([[colour[c] for c in row] for row in rows], np.uint8)
    mosaic = np.tile(tile, (4, 4))[..., None]
    assert image_to_rgb(message(f'bayer_{pattern}8', mosaic))[3, 3].tolist() == [200, 100, 50]


@pytest.mark.parametrize('encoding,order', [('yuv422_yuy2', 'yuyv'), ('yuv422', 'uyvy')])
def test_yuv(encoding, order):
    part = {'y': 128, 'u': 90, 'v': 200}
    pixels = np.tile(np.array([part[c] for c in order], np.uint8), 4 * 4).reshape(4, 8, 2)
    red, green, blue = image_to_rgb(message(encoding, pixels))[0, 0].tolist()
    assert red > 200 and blue < 80 and green < red


@pytest.mark.parametrize('change,word', [
    ({'encoding': 'jpeg2000'}, 'not supported'), ({'encoding': '16UC1'}, 'depth'),
    ({'encoding': '32FC1'}, 'colour image'), ({'step': 3}, 'step is 3'),
    ({'height': 99}, 'cut off'), ({'width': 0}, 'pixels'), ({'data': b''}, 'cut off')])
def test_wrong_images_say_what(change, word):
    broken = message('rgb8', RGB)
    vars(broken).update(change)
    with pytest.raises(FrameError, match=word):
        check_image(broken)
    with pytest.raises(FrameError, match=word):
        image_to_rgb(broken)


def test_jpeg():
    data = encode_jpeg(np.full((25, 50, 3), (200, 30, 30), np.uint8))
    assert decode_compressed(data).shape == (25, 50, 3)
    assert abs(int(decode_compressed(data)[5, 5, 0]) - 200) < 4  # RGB, not BGR
    for bad in (data[:len(data) // 2], b'', b'hello', b'\xff\xd8\xff\xd9'):
        with pytest.raises(FrameError):
            Frame(1, 'c', jpeg=bad).rgb()


def test_mailbox_keeps_the_newest():
    box = Mailbox()
    for stamp in (1, 2, 3):
        box.put(Frame(stamp, 'c'))
    assert box.get(0).stamp_ns == 3 and box.dropped == 2 and box.get(0.01) is None
    threading.Timer(0.01, box.wake).start()
    assert box.get(10.0) is None


def test_mailbox_serves_the_camera_that_has_waited_longest():
    box = Mailbox()
    for stamp, camera in ((1, 'a'), (2, 'b'), (3, 'a'), (4, 'c')):
        box.put(Frame(stamp, 'c', camera=camera))
    assert box.dropped == 1
    assert [f.stamp_ns for f in box.waiting()] == [3, 2, 4]
    assert [box.get(0).stamp_ns for _ in range(3)] == [3, 2, 4] and not box.waiting()
    for camera in 'ab':
        box.put(Frame(5, 'c', camera=camera))
    box.clear('a')
    assert box.get(0).camera == 'b' and box.get(0.01) is None


def test_hub():
    hub, seen = FrameHub(), []
    end = hub.listen(seen.append)
    hub.publish(Frame(1, 'c'))
    end()
    hub.publish(Frame(2, 'c'))
    assert [f.stamp_ns for f in seen] == [1] and hub.listeners == 0


def test_who_starts_something_slow_is_configured_first_and_the_camera_activated_last(
        monkeypatch):
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    from spotvlm_ros.nodes.base import SpotNode
    from spotvlm_ros.nodes.composed import make_nodes
    from spotvlm_ros.nodes.executor import Graph
    steps = []
    monkeypatch.setattr(SpotNode, 'autostart', lambda node, active: steps.append(
        (node.get_name(), active)) or True)
    graph = Graph(make_nodes, ['--ros-args', '--log-level', 'fatal'])
    try:
        assert graph.started.wait(20.0)
    finally:
        assert graph.close()
    assert steps == [(name, False) for name in ('cloud', 'edge', 'context', 'camera')] + [
        (name, True) for name in ('edge', 'context', 'cloud', 'camera')]


def test_stamp_order():
    order = StampOrder()
    assert [order.admit(s) for s in (0, 5 * NS, 5 * NS, 5 * NS - 1, 6 * NS, NS, 2 * NS)] == [
        'zero_stamp', 'ok', 'duplicate', 'out_of_order', 'ok', 'restart', 'ok']


def test_schedule_keeps_rates_that_do_not_divide_the_camera():
    queries = [Query(i, 'q', 'text', rate_hz=r) for i, r in (('a', 8.0), ('b', 3.0))]
    schedule = Schedule(queries)
    picked = [q.id for i in range(250) if (q := schedule.take(NS + i * NS // 25))]
    assert abs(picked.count('a') - 80) <= 2 and abs(picked.count('b') - 30) <= 2


def test_schedule_gives_a_frame_only_to_questions_about_its_camera():
    queries = [Query(i, 'q', 'text', rate_hz=5.0, camera=c)
               for i, c in (('a', 'front'), ('b', 'front'), ('c', 'rear'))]
    schedule = Schedule(queries)
    assert schedule.take(NS, 'left') is None
    assert [schedule.take(NS + i, c).id for i, c in enumerate(('front', 'rear', 'front'))] == [
        'a', 'c', 'b']
    assert schedule.take(NS + 9, 'rear') is None
    schedule.clear('rear')
    assert schedule.take(NS + 10, 'rear').id == 'c' and schedule.take(NS + 11, 'front') is None


def test_schedule_starves_nobody():
    queries = [Query(i, 'q', 'text', rate_hz=r) for i, r in (('a', 100.0), ('b', 1.0))]
    schedule = Schedule(queries)
    picked = [schedule.take(NS + i * NS // 5).id for i in range(50)]
    assert 8 <= picked.count('b') <= 11


def test_schedule_goes_on_after_a_frame_from_before_a_restart():
    queries = [Query(i, 'q', 'text', rate_hz=r) for i, r in (('a', 5.0), ('b', 5.0))]
    schedule = Schedule(queries)
    schedule.take(100 * NS)
    picked = [q.id for i in range(50) if (q := schedule.take(NS + i * NS // 10))]
    assert abs(picked.count('a') - picked.count('b')) <= 1 and len(picked) >= 45


@pytest.mark.parametrize('path', sorted([*CONFIG.glob('*.yaml'), *CONFIG.glob('real/*.yaml')]),
                         ids=lambda p: p.stem)
def test_shipped_params_files(path):
    if path.stem in LAYERS:
        check_file(path, check_file(CONFIG / 'driving.yaml'))
    else:
        assert check_file(path)['edge']['queries']


@pytest.mark.parametrize('change,words', [
    (('rate_hz: 2.0', 'rate: 2.0'), ('unknown parameter rate', 'did you mean rate_hz')),
    (("'30', '50'", '30, 50'), ('scene.choices.limit', 'quotes', "'30'")),
    (('[stop, slow, go]', '[stop, yes, go]'), ('action.choices', 'quotes')),
    (('threads: 1', 'threads: many'), ('threads', 'whole number')),
    (('threads: 1', 'threads: 1000'), ('threads', '1 to 64')),
    (('source: mini', 'source: webcam'), ('source', 'usb')),
    (('format: facts', 'format: fact'), ('scene.format', 'facts, choice, text')),
    (('[none, red, yellow, green]', '[none]'), ('light', 'two or more')),
    (('light: 6.0', 'lihgt: 6.0'), ('unknown parameter scene.ttl_s.lihgt', 'scene.ttl_s.light')),
    (('queries: [scene, action]', 'queries: []'), ('queries is []', "'scene'")),
    (('prompt: What is on the road?', "prompt: ''"), ('scene.prompt', 'empty')),
    (('/**/edge:', '/**/egde:'), ('no node of ours',)),
    (('/**:', '['), ('driving.yaml',))])
def test_wrong_params_name_the_remedy(tmp_path, change, words):
    text = (CONFIG / 'driving.yaml').read_text()
    assert change[0] in text
    path = tmp_path / 'driving.yaml'
    path.write_text(text.replace(change[0], change[1], 1))
    with pytest.raises(ParameterError) as caught:
        check_file(path)
    for word in ('driving.yaml', *words):
        assert word in str(caught.value)


def test_profiles_are_read_as_the_nodes_read_them(tmp_path):
    over = tmp_path / 'over.yaml'
    over.write_text('/**/camera: {ros__parameters: {rate_hz: 7, cameras: [front]}}')
    profile = load_profile('driving', [over])
    assert (profile.camera.rate_hz, profile.camera.cameras) == (7.0, ('front',))
    assert profile.edge.queries == ('scene', 'action') == tuple(q.id for q in profile.queries())
    assert profile.overlaid('cloud', {'base_url': 'http://x/v1'}).cloud.base_url == 'http://x/v1'
    scene = profile.queries('cloud')[0]
    assert scene.choices['limit'][1:3] == ('30', '50') and scene.ttl_ns('light') == 6 * NS
    handed_on = json.loads(profile.params_file())  # to the nodes, by spotvlm run
    camera = handed_on['/**/camera']['ros__parameters']
    assert (camera['rate_hz'], camera['cameras'], camera['loop']) == (7.0, ['front'], False)
    assert all(value != [] for section in handed_on.values()
               for value in section['ros__parameters'].values())


def test_every_parameter_is_described():
    text = markdown()
    for config in NODE_CONFIGS.values():
        assert len({s.name for s in specs(config)}) == len(specs(config))
        for param in specs(config):
            assert param.description and f'`{param.name}`' in text
            assert param.check(param.default) == param.default


def test_images_in_order(tmp_path):
    for name in ('b.png', 'a.png', 'c.txt'):
        (tmp_path / name).write_bytes(cv2.imencode('.png', RGB)[1].tobytes())
    shots = list(sources.images(str(tmp_path)))
    assert [s.at_s for s in shots] == [0.0, 0.1]


def test_mini_is_repeatable():
    def first(count):
        shots = sources.mini('driving', 3, '', 10.0)
        return [next(shots) for _ in range(count)][-1]
    assert np.array_equal(first(3).load(), first(3).load())
    assert first(3).reference == '{"world": "driving", "seed": 3, "index": 4, "condition": null}'
    assert {f.stamp_ns for f in first(3).truth(9)} == {9}


@pytest.mark.parametrize('make', [
    lambda p: sources.video(p), lambda p: sources.images(p), lambda p: sources.bag(p)])
def test_missing_source_says_so(make, tmp_path):
    with pytest.raises(sources.SourceError, match='none'):
        next(make(str(tmp_path / 'none')))


def test_pace_skips_what_is_late():
    shown = []
    stop = threading.Event()

    def show(shot):
        shown.append(shot.at_s)
        if len(shown) == 1:
            stop.wait(0.2)
    pace = Pace(late_s=0.05)
    pace.run((sources.SourceFrame(i * 0.02) for i in range(15)), show, stop)
    assert pace.skipped >= 5 and len(shown) + pace.skipped == 15 and shown[-1] == 14 * 0.02


@pytest.mark.parametrize('text,why', [
    ('/**/cloud: {ros__parameters: {retries: 5}}\n/**/cloud: {ros__parameters: {max_side: 9}}\n',
     'cloud stands twice, in lines 1 and 2'),
    ('/**/cloud:\n  ros__parameters:\n    retries: 5\n    retries: 6\n', 'retries stands twice'),
    ('/**/cloud:\n  ros__parameters: &a\n    b: *a\n', 'nest too deeply'),
    ('/**/cloud: ' + '{a: ' * 60 + '1' + '}' * 60, 'nest too deeply'),
    ('a0: &a0 [x]\n' + ''.join(
        f'a{i}: &a{i} [' + f'*a{i - 1},' * 9 + ']\n' for i in range(1, 12)), 'aliases included'),
    ('[' * 5000, 'nest too deeply|expected'), ('caf\xe9: 1'.encode('latin-1'), 'UTF-8'),
    ('/**/cloud: {ros__parameters: {retries: 1e300}}', 'retries'),
    ('/**/cloud: {ros__parameters: {retries: ' + '9' * 5000 + '}}', 'limit|retries'),
    ('x: ' + 'a' * 2**20, 'more than'), ('a: b: c', 'mapping values'), ('', 'no sections'),
    ('a:\n\tb: 1', 'line 2, .*; indent by spaces'),
    ("a:\n  b: 'x\n", 'line .*close quotes'), ('a:\n    b: 1\n  c: 2', 'line 3, .*indent alike'),
    ('/**/edge: {ros__parameters: {use_sim_time: maybe}}', 'use_sim_time must be true or false'),
    ('- 1', 'no sections'), ('? [a]\n: 1\n', 'is no text')])
def test_odd_params_files_say_what_is_odd(tmp_path, text, why):
    """The first of two sections is dropped by PyYAML: it held masks and budgets (nav2#1217)."""
    path = tmp_path / 'params.yaml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ParameterError, match=why) as error:
        check_file(path, check_file(CONFIG / 'driving.yaml'))
    assert str(path) in str(error.value)


def test_a_pipe_is_no_params_file(tmp_path):
    os.mkfifo(tmp_path / 'params.yaml')
    with pytest.raises(ParameterError, match='is no file'):
        check_file(tmp_path / 'params.yaml')


def test_the_tables_of_parameters_are_those_of_the_declarations():
    path = Path(__file__).resolve().parents[1] / 'docs' / 'parameters.md'
    text = path.read_text(encoding='utf-8')
    assert markdown() in text, 'run: spotvlm params --update docs/parameters.md'
