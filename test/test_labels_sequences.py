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
"""Labelled sequences: folders of frames, and label files that name a recording."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

from spotvlm_ros.frames.pixels import encode_jpeg, encode_png
from spotvlm_ros.labels.schema import Header, Label, LabelError, write_labels
from spotvlm_ros.labels.sequences import LabelledSequence, open_labelled, stamp
from spotvlm_ros.method.facts import NS, Query, Region

QUERY = Query('scene', 'What?', 'facts', {'light': ('none', 'red', 'green')})
STEP_S = 0.4


def picture(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    return np.full((size[1], size[0], 3), 20 * number, np.uint8)


def label_of(number: int, **fields: object) -> Label:
    return Label(number * STEP_S, {'light': 'red'}, {}, **fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of twelve frames, each with its line."""
    for i in range(12):
        (tmp_path / f'{i}.jpg').write_bytes(encode_jpeg(picture(i)))
    write_labels(tmp_path / 'labels.jsonl', [label_of(i) for i in range(12)])
    return tmp_path


def shown(sequence: LabelledSequence) -> list[int]:
    """Return the numbers of the pictures, in order of time."""
    return [round(sequence.image(s).mean() / 20) for s in sequence.jpegs]


def test_each_image_of_a_folder_has_its_line_in_natural_order(folder):
    for path in (folder, folder / 'labels.jsonl'):
        found = open_labelled(path, QUERY)
        assert (found.name, found.size, len(found.labels)) == (folder.name, (64, 48), 12)
        assert list(found.jpegs) == [stamp(i * STEP_S) for i in range(12)]
        assert shown(found) == list(range(12))
        assert found.stamp_of(found.labels[3]) == stamp(3 * STEP_S)


def test_images_between_those_that_labels_name_are_between_them_in_time(folder):
    (folder / 'sub').mkdir()
    lines = [label_of(i, image=f'{i}.jpg') for i in (2, 4, 8)]
    write_labels(folder / 'sub' / 'some.jsonl', lines, Header(recording='..', kind='images'))
    found = open_labelled(folder / 'sub' / 'some.jsonl', QUERY)
    assert list(found.jpegs) == pytest.approx([stamp(i * STEP_S) for i in range(12)])
    assert shown(found) == list(range(12))
    # Names that tell no order: only what is named.
    write_labels(folder / 'labels.jsonl', [label_of(i, image=f'{9 - i}.jpg') for i in (1, 2, 3)])
    assert shown(open_labelled(folder, QUERY)) == [8, 7, 6]


@pytest.mark.parametrize('kind', ['video', 'bag'])
def test_a_label_file_names_its_recording(tmp_path, kind):
    frames = [picture(i) for i in range(10)]
    if kind == 'video':
        name = 'drive.avi'
        out = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter.fourcc(*'MJPG'), 20.0,
                              (64, 48))
        for frame in frames:
            out.write(frame)
        out.release()
    else:
        name, jpegs = 'drive', [encode_jpeg(f) for f in frames]
        jpegs[4] = jpegs[4][:-60]
        write_bag(tmp_path / name, jpegs)
    write_labels(tmp_path / 'mine.jsonl', [Label(t, {'light': 'red'}, {}) for t in (0.05, 0.4)],
                 Header(recording=name, kind=kind))
    found = open_labelled(tmp_path / 'mine.jsonl', QUERY)
    # Ten a second, and the labelled one between them.
    assert shown(found) == ([0, 1, 2, 4, 6, 8] if kind == 'video' else [0, 1, 2, 6, 8])
    assert (found.name, found.size, found.skipped) == (name, (64, 48), int(kind == 'bag'))
    assert found.stamp_of(found.labels[0]) == stamp(0.05)


def write_bag(path: Path, jpegs: list[bytes]) -> None:
    """Write a bag of twenty frames a second."""
    types = get_typestore(Stores.ROS2_KILTED)
    kind = 'sensor_msgs/msg/CompressedImage'
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection('/image', kind, typestore=types)
        for i, jpeg in enumerate(jpegs):
            header = types.types['std_msgs/msg/Header'](
                types.types['builtin_interfaces/msg/Time'](0, 0), '')
            image = types.types[kind](header, 'jpeg', np.frombuffer(jpeg, np.uint8))
            writer.write(connection, i * NS // 20, types.serialize_cdr(image, kind))


def damage(folder: Path, how: str) -> None:
    lines = [json.loads(line) for line in (folder / 'labels.jsonl').read_text().splitlines()]
    match how:
        case 'missing frame':
            (folder / '5.jpg').unlink()
        case 'missing named frame':
            lines = [line | {'image': f'{i}.jpg'} for i, line in enumerate(lines)]
            (folder / '5.jpg').unlink()
        case 'frame elsewhere':
            lines = [line | {'image': f'../{i}.jpg'} for i, line in enumerate(lines)]
        case 'some named':
            lines[3]['image'] = '3.jpg'
        case 'two sizes':
            (folder / '5.jpg').write_bytes(encode_jpeg(picture(5, (32, 48))))
        case 'cut off':
            (folder / '5.jpg').write_bytes((folder / '5.jpg').read_bytes()[:-60])
        case 'no picture':
            (folder / '5.jpg').write_bytes(b'')
        case 'box outside':
            lines[5]['regions'] = {'light': [50, 10, 20, 10]}
        case 'unknown key':
            lines[5]['facts'] = {'lamp': 'red'}
        case 'no labels':
            lines = []
        case 'no images':
            for file in folder.glob('*.jpg'):
                file.unlink()
    (folder / 'labels.jsonl').write_text('\n'.join(map(json.dumps, lines)))


@pytest.mark.parametrize('how, words', [
    ('missing frame', ('12 lines', '11 images', 'give each image a line')),
    ('missing named frame', ('t 2:', "image '5.jpg'", 'take the line out')),
    ('frame elsewhere', ("image '../0.jpg'", 'put it there')),
    ('some named', ('t 0 ', 'name the image in all lines, or in none')),
    ('two sizes', ('5.jpg', '32x48', '64x48', 'bring all frames')),
    ('cut off', ('5.jpg', 'replace the file')), ('no picture', ('5.jpg', 'replace the file')),
    ('box outside', ('t 2:', 'regions.light [50, 10, 20, 10]', '64x48', 'cut it off')),
    ('unknown key', ('line 6', 'facts.lamp', 'use light')),
    ('no labels', ('holds no labels', 'each line is')), ('no images', ('no folder with images',))])
def test_a_fault_is_one_line_with_its_remedy(folder, how, words):
    damage(folder, how)
    with pytest.raises(LabelError) as caught:
        open_labelled(folder, QUERY)
    assert '\n' not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_is_no_set_is_an_error(tmp_path):
    with pytest.raises(LabelError, match='does not exist'):
        open_labelled(tmp_path / 'none', QUERY)
    with pytest.raises(LabelError, match='holds no labels.jsonl'):
        open_labelled(tmp_path, QUERY)
    write_labels(tmp_path / 'l.jsonl', [label_of(0)], Header(recording='gone', kind='bag'))
    with pytest.raises(LabelError, match='its first line names the recording'):
        open_labelled(tmp_path / 'l.jsonl', QUERY)


def test_boxes_may_touch_the_edge_and_pictures_may_be_png(tmp_path):
    for i in range(2):
        (tmp_path / f'{i}.png').write_bytes(encode_png(picture(i)))
    box = Region(-1.0, 0.0, 65.0, 49.0)
    write_labels(tmp_path / 'labels.jsonl', [Label(float(i), {'light': 'red'}, {'light': box})
                                             for i in range(2)])
    assert shown(open_labelled(tmp_path, QUERY)) == [0, 1]
