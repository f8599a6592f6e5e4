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
"""Streams of cameras on a network: the newest picture, whatever the camera does."""

from functools import partial
import itertools
import os
from pathlib import Path
import threading
import time

from cameras import CameraServer, claiming, jpeg, LOGIN, mjpeg, MULTIPART, part, rtsp, with_login
import cv2
from fakes import wait_for
import psutil
import pytest
from spotvlm_ros.config.nodes import CameraConfig
from spotvlm_ros.frames import streams
from spotvlm_ros.frames.pixels import decode_compressed, FrameError
from spotvlm_ros.frames.source_frame import SourceError
from spotvlm_ros.frames.sources import open_source, video_device
from spotvlm_ros.frames.stream_process import parts, StreamError


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(streams, 'PAUSE_S', 0.05)


class Listener:
    """Opens a stream, keeps what is said of it, and ends it."""

    def __init__(self, path, **config):
        self.stop, self.lost = threading.Event(), []
        given = CameraConfig(source='stream', path=str(path), **{'timeout_s': 1.0, **config})
        self.frames = open_source(given, self.stop.is_set, self.lost.append)
        self._waiting = None

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.stop.set()
        if self._waiting is not None:
            self._waiting.join(5.0)
        self.frames.close()
        assert not children()

    def wait(self):
        """Wait for the first picture in a thread."""
        self._waiting = threading.Thread(target=lambda: next(self.frames, None))
        self._waiting.start()
        return self._waiting

    def pixels(self):
        """Return the next good picture."""
        for frame in self.frames:
            try:
                return decode_compressed(frame.jpeg) if frame.jpeg is not None else frame.load()
            except FrameError as error:
                self.lost.append(str(error))
        raise AssertionError('ended')


def children():
    """Return the arguments of the processes that read streams for this one."""
    return [' '.join(child.cmdline()) for child in psutil.Process().children()
            if 'stream_process' in ' '.join(child.cmdline())]


def written(tmp_path, address, mode=0o600):
    """Return a file that holds an address."""
    file = tmp_path / 'camera.url'
    file.write_text(address + '\n')
    file.chmod(mode)
    return file


@pytest.mark.alone
@pytest.mark.parametrize('length', [True, False], ids=['length', 'no-length'])
def test_a_slow_reader_gets_the_newest_picture_and_never_a_queue(length):
    """Pictures are 10 ms apart and are taken every 200: what is queued would be seconds old."""
    sent = {}

    def camera(connection, asked):
        connection.sendall(MULTIPART)
        for number in range(250):
            sent[number] = time.monotonic()
            connection.sendall(part(jpeg(number), length))
            time.sleep(0.01)
    with CameraServer(camera) as server, \
            Listener(f'http://127.0.0.1:{server.port}/video?size=vga') as listener:
        ages, levels = [], []
        for _ in range(8):
            levels.append(round(float(listener.pixels().mean())))
            ages.append(time.monotonic() - sent[levels[-1]])
            time.sleep(0.2)
    assert levels == sorted(set(levels)) and levels[-1] > 60
    assert max(ages[2:]) < 0.3, ages
    assert listener.lost == ['']


def test_no_more_pictures_are_taken_than_wanted():
    with CameraServer(partial(mjpeg, period_s=0.005)) as server, \
            Listener(f'http://127.0.0.1:{server.port}/', rate_hz=20.0) as listener:
        listener.pixels()
        began = time.monotonic()
        for _ in range(20):
            listener.pixels()
        assert time.monotonic() - began > 0.9


def endless(head, body):
    """Return a camera that never comes to the point."""
    def camera(connection, asked):
        connection.sendall(head)
        while True:
            connection.sendall(body)
    return camera


def silent(connection, asked):
    """Take the connection and say nothing."""
    time.sleep(30.0)


def says(*pieces):
    """Return a camera that says something and hangs up."""
    return lambda connection, asked: connection.sendall(b''.join(pieces))


def drips(connection, asked):
    """Send a header of which each byte comes before any timeout."""
    for byte in itertools.cycle(b'HTTP/1.0 200 OK\r\nX: y\r\n'):
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


HOSTILE = {
    'silent': (silent, 'timed out'),
    'dripping': (drips, ''),
    'garbage': (endless(b'', os.urandom(1 << 12)), 'does not speak HTTP'),
    'endless header': (endless(b'HTTP/1.0 200 OK\r\n', b'X: ' + b'y' * 60 + b'\r\n'),
                       'does not speak HTTP'),
    'endless line': (endless(b'HTTP/1.0 200 OK\r\nX: ', b'y' * 4096), 'does not speak HTTP'),
    'endless header of a picture': (endless(MULTIPART + b'--frame\r\n', b'X: y\r\n'),
                                    'no picture'),
    'endless picture': (endless(MULTIPART + b'--frame\r\n\r\n', jpeg()[:-2] * 100), 'no picture'),
    'endless picture, as it says': (
        endless(MULTIPART + b'--frame\r\nContent-Length: 999999999\r\n\r\n', b'\0' * 65536),
        'no picture'),
    'no boundary': (endless(MULTIPART, os.urandom(1 << 16)), 'no picture'),
    'half a picture': (says(MULTIPART, part(jpeg()[:300])), 'truncated JPEG of 300 bytes'),
    'no picture': (says(MULTIPART, part(b'<html>' * 99)), 'no JPEG'),
    'bomb': (says(MULTIPART, part(claiming(20_000, 20_000))), '20000x20000'),
    'bomb for FFmpeg': (says(b'HTTP/1.0 200 OK\r\nContent-Type: video/x-motion-jpeg\r\n\r\n',
                             claiming(20_000, 20_000) * 20), ''),
    'dead in a picture': (says(MULTIPART, part(jpeg()) * 3, part(jpeg())[:200]),
                          'the server has ended the stream'),
    'not found': (says(b'HTTP/1.0 404 \x1b[2J hunter2-secret\r\n\r\n'), '404 Not Found'),
    'a single picture': (says(b'HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n', jpeg()),
                         'single picture'),
    'another place': (says(b'HTTP/1.0 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n'), '302'),
}


@pytest.mark.parametrize('camera, why', HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_camera_sends_it_is_connected_again(camera, why, tmp_path):
    """No memory, no waiting, no word of the server: the next connection gives pictures."""
    with CameraServer(camera) as server:
        address = f'http://{":".join(LOGIN)}@127.0.0.1:{server.port}/video'
        with Listener(written(tmp_path, address)) as listener:
            def then_well(connection, asked):
                lost = any('connecting again' in why for why in listener.lost)
                (mjpeg if lost else camera)(connection, asked)
            server.behave = then_well
            for _ in range(500):
                assert listener.pixels().shape == (48, 64, 3)
                if any(listener.lost) and not listener.lost[-1]:
                    break
    said = ' '.join(listener.lost)
    assert why in said and 'connecting again in 0.05 s' in said
    assert LOGIN[1] not in said and '\x1b' not in said


def test_a_stream_that_hangs_does_not_hold_up_who_ends_it():
    with CameraServer(silent) as server, \
            Listener(f'http://127.0.0.1:{server.port}/', timeout_s=60.0) as listener:
        waiting = listener.wait()
        wait_for(lambda: server.connections)
        began = time.monotonic()
        listener.stop.set()
        waiting.join(5.0)
        assert time.monotonic() - began < 1.5 and not waiting.is_alive()


def test_the_pauses_between_tries_grow_to_a_bound(monkeypatch):
    monkeypatch.setattr(streams, 'LONGEST_PAUSE_S', 0.2)
    with CameraServer(says(b'HTTP/1.0 503 Busy\r\n\r\n')) as server, \
            Listener(f'http://127.0.0.1:{server.port}/', timeout_s=60.0) as listener:
        listener.wait()
        wait_for(lambda: len(listener.lost) >= 5)
        pauses = [why.partition('again in ')[2].partition(' ')[0] for why in listener.lost]
    assert pauses[:5] == ['0.05', '0.1', '0.2', '0.2', '0.2']


def test_rtsp_with_a_login_that_nobody_sees_and_a_camera_that_dies(tmp_path):
    with CameraServer(with_login(rtsp)) as server:
        address = f'rtsp://{":".join(LOGIN)}@127.0.0.1:{server.port}/live'
        with Listener(written(tmp_path, address), timeout_s=3.0) as listener:
            first = listener.pixels()
            assert first.shape == (48, 64, 3)
            assert [LOGIN[1] in arguments for arguments in children()] == [False]
            levels = [float(listener.pixels().mean()) for _ in range(5)]
            assert levels == sorted(levels) and levels[-1] > levels[0]
            server.hang_up()
            wait_for(lambda: listener.pixels() is not None and server.connections > 1)
    assert listener.lost[0] == listener.lost[-1] == '' and len(listener.lost) == 3
    assert LOGIN[1] not in ' '.join(listener.lost)


def test_rtsp_that_refuses_the_login_says_so():
    with CameraServer(with_login(rtsp)) as server, \
            Listener(f'rtsp://127.0.0.1:{server.port}/live', timeout_s=3.0) as listener:
        listener.wait()
        why = wait_for(lambda: listener.lost)[0]
    assert f'rtsp://127.0.0.1:{server.port}/live: OpenCV cannot open it (401 Unauth' in why


def test_a_decoder_that_crashes_takes_nobody_along():
    with CameraServer(mjpeg) as server, \
            Listener(f'http://127.0.0.1:{server.port}/') as listener:
        listener.pixels()
        for child in psutil.Process().children():
            if 'stream_process' in ' '.join(child.cmdline()):
                child.kill()
        wait_for(lambda: listener.pixels() is not None and listener.lost[1:])
        assert 'the process that reads it was killed by SIGKILL' in listener.lost[1]


@pytest.mark.parametrize('path, why', [
    ('rtsp://admin:hunter2-secret@cam/1', 'chmod 600'),
    ('http://cam/video?user=admin&pwd=hunter2-secret', 'chmod 600'),
    ('rtspsrc location=rtsp://cam user-pw=hunter2-secret ! appsink', 'chmod 600'),
    ('ftp://cam/1', 'rtsp://'), ('rtsp://', 'rtsp://'), ('http://[cam/', 'rtsp://'),
    ('', 'rtsp://'), ('clip.mp4', 'set source to video'), ('/dev/null', 'set source to video'),
    ('videotestsrc ! videoconvert', 'appsink'),
    ('videotestsrc ! appsink', 'python3-opencv')])
def test_what_can_never_work_is_refused_with_the_remedy(path, why, monkeypatch):
    monkeypatch.setattr(cv2, 'getBuildInformation', lambda: '  GStreamer:     NO\n')
    with pytest.raises(SourceError, match=why) as error:
        Listener(path)
    assert 'hunter2' not in str(error.value)


def test_an_address_in_a_file_is_for_its_owner_only(tmp_path):
    secret = 'rtsp://admin:hunter2-secret@cam/1'
    with pytest.raises(SourceError, match='chmod 600'):
        streams.read_address(str(written(tmp_path, secret, 0o644)))
    file = written(tmp_path, secret)
    assert streams.read_address(str(file)) == secret
    assert streams.shown_address(str(file), secret) == f'{file} (rtsp://cam)'
    for cut in ('rtsp://admin:12/3@cam/1', 'rtsp://admin:12#3@cam/1', 'rtsp://admin:12?3@cam/1'):
        with pytest.raises(SourceError, match='%2F') as error:
            streams.read_address(str(written(tmp_path, cut)))
        assert 'admin' not in str(error.value)


def test_a_pipeline_is_taken_where_opencv_has_gstreamer(monkeypatch):
    monkeypatch.setattr(cv2, 'getBuildInformation', lambda: '  GStreamer:     YES (1.24)\n')
    pipeline = 'rtspsrc location=rtsp://cam/1 ! decodebin ! videoconvert ! appsink drop=true'
    assert streams.read_address(pipeline) == pipeline
    assert 'cam' not in streams.shown_address(pipeline)


def test_parts_are_cut_wherever_the_network_cuts_them():
    """A boundary, a header or a picture may come in any pieces."""
    pictures = [jpeg(level) for level in (10, 200, 90)]
    body = b'preamble\r\n' + b''.join(part(p, length) for p, length in
                                      zip(pictures, (True, False, True)))
    for size in (1, 3, 7, 64, 1 << 16):
        pieces = iter([body[i:i + size] for i in range(0, len(body), size)])
        found = []
        with pytest.raises(StreamError):
            for one in parts(lambda limit: next(pieces, b''), b'--frame'):
                found.append(one)
        assert found == pictures


def video_nodes(folder: Path, **names: str) -> Path:
    """Make a folder like /sys/class/video4linux: names by node, metadata nodes beside them."""
    for node, name in names.items():
        (folder / node).mkdir(parents=True)
        (folder / node / 'name').write_text(f'{name}\n')
        (folder / node / 'index').write_text('1\n' if int(node[5:]) % 2 else '0\n')
    return folder


def test_a_usb_camera_is_found_by_its_name(tmp_path):
    names = video_nodes(tmp_path / 'v4l', video0='HD Webcam: HD', video1='HD Webcam: HD',
                        video2='RealSense \x1b[2J 435', video10='C920', video12='C920')
    assert video_device('HD Webcam: HD', names) == 0
    assert video_device('realsense', names) == 2
    with pytest.raises(SourceError, match=r'2 cameras.*\(video10\), C920 \(video12\).*by-id'):
        video_device('C920', names)
    with pytest.raises(SourceError, match='no camera') as error:
        video_device('C270', names)
    assert '\x1b' not in str(error.value) and 'HD Webcam' in str(error.value)
    with pytest.raises(SourceError, match='none'):
        video_device('C270', tmp_path / 'nowhere')


def test_a_usb_camera_is_found_by_its_path(tmp_path):
    (tmp_path / 'video7').touch()
    by_id = tmp_path / 'usb-046d_C920-video-index0'
    by_id.symlink_to('video7')
    assert video_device(str(by_id)) == 7
    for wrong in (tmp_path / 'gone', tmp_path):
        with pytest.raises(SourceError, match='/dev/v4l/by-id'):
            video_device(str(wrong))
    with pytest.raises(SourceError, match='/dev/v4l/by-id'):
        open_source(CameraConfig(source='usb', path=str(tmp_path / 'gone')), lambda: False)
