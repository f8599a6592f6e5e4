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
"""Data sets of others, and folders of stills, as labelled sequences."""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
import re

import cv2
import numpy as np
import pytest

from spotvlm_ros.cli.main import main
from spotvlm_ros.frames.pixels import encode_jpeg, encode_png
from spotvlm_ros.labels.importers import import_labels, NAMES
from spotvlm_ros.labels.schema import LabelError
from spotvlm_ros.labels.sequences import open_labelled
from spotvlm_ros.method.facts import Query, Region

QUERY = Query('scene', 'What?', 'facts', {
    'light': ('none', 'red', 'green'), 'people': ('nobody', 'one', 'two or more'),
    'nearest': ('none', 'left', 'ahead', 'right')})
RULE = """
light: {largest: {lamp_red: red, lamp_green: green}}
people: {count: [pedestrian], near: 0.5}
nearest: {side: [pedestrian], near: 0.5}
"""
WIDTH, HEIGHT = 64, 48
# Of each picture: class, x, y, width, height. The second of the third picture is far away.
BOXES = ([('lamp_red', 10, 5, 4, 8), ('lamp_green', 30, 5, 2, 4)],
         [],
         [('pedestrian', 48, 10, 10, 30), ('pedestrian', 2, 20, 4, 10)],
         [('pedestrian', 0, 10, 10, 30), ('pedestrian', 30, 10, 8, 25),
          ('lamp_green', 60, 0, 9, 9)])
FACTS = [{'light': 'red', 'people': 'nobody', 'nearest': 'none'},
         {'light': 'none', 'people': 'nobody', 'nearest': 'none'},
         {'light': 'none', 'people': 'one', 'nearest': 'right'},
         {'light': 'green', 'people': 'two or more', 'nearest': 'left'}]
CLASSES = ('lamp_red', 'lamp_green', 'pedestrian')


def pictures(folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    names = [folder / ('8.png' if i == 0 else f'{8 + i}.jpg') for i in range(len(BOXES))]
    for i, path in enumerate(names):
        rgb = np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8)
        path.write_bytes(encode_png(rgb) if path.suffix == '.png' else encode_jpeg(rgb))
    return names


def coco(root: Path) -> Path:
    files = pictures(root / 'images')
    (root / 'labels.json').write_text(json.dumps({
        'images': [{'id': 90 - i, 'file_name': f.name, 'width': WIDTH, 'height': HEIGHT}
                   for i, f in enumerate(files)],
        'categories': [{'id': i + 1, 'name': n} for i, n in enumerate(CLASSES)],
        'annotations': [{'id': 1, 'image_id': 90 - i, 'category_id': CLASSES.index(n) + 1,
                         'bbox': box, 'iscrowd': 0}
                        for i, boxes in enumerate(BOXES) for n, *box in boxes]}))
    return root / 'labels.json'


def yolo(root: Path) -> Path:
    files = pictures(root / 'images')
    (root / 'labels').mkdir()
    (root / 'data.yaml').write_text(f'names: [{", ".join(CLASSES)}]\ntrain: images\n')
    for file, boxes in zip(files, BOXES):
        if boxes:   # no file: nothing there
            (root / 'labels' / file.name).with_suffix('.txt').write_text(''.join(
                f'{CLASSES.index(n)} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} '
                f'{h / HEIGHT}\n' for n, x, y, w, h in boxes))
    return root


def mot(root: Path) -> Path:
    """Write what is about people; MOTChallenge has no lights."""
    pictures(root / 'img1')
    (root / 'seqinfo.ini').write_text('[Sequence]\nname=a\nimDir=img1\nframeRate=25\n')
    (root / 'gt').mkdir()
    rows = [f'{i + 1},7,{x},{y},{w},{h},1,1,0.9' for i, boxes in enumerate(BOXES)
            for n, x, y, w, h in boxes if n == 'pedestrian']
    (root / 'gt' / 'gt.txt').write_text('\n'.join([*rows, '1,9,1,1,60,40,0,1,1',
                                                   '1,9,1,1,60,40,1,9,1']))
    return root


def cvat(root: Path) -> Path:
    files = pictures(root / 'frames')
    (root / 'annotations.xml').write_text('<annotations>' + ''.join(
        f'<image id="{i}" name="{f.name}" width="{WIDTH}" height="{HEIGHT}">' + ''.join(
            f'<box label="{n}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" occluded="0"/>'
            for n, x, y, w, h in boxes) + '</image>'
        for i, (f, boxes) in enumerate(zip(files, BOXES))) + '</annotations>')
    return root


def cvat_video(root: Path) -> Path:
    pictures(root / 'images')
    (root / 'annotations.xml').write_text('<annotations>' + ''.join(
        f'<track id="0" label="{n}"><box frame="{i}" xtl="{x}" ytl="{y}" xbr="{x + w}" '
        f'ybr="{y + h}" outside="0"/><box frame="1" xtl="1" ytl="1" xbr="9" ybr="40" '
        'outside="1"/></track>'
        for i, boxes in enumerate(BOXES) for n, x, y, w, h in boxes) + '</annotations>')
    return root


def yolo_emptied(root: Path) -> Path:
    (yolo(root) / 'images' / '9.jpg').write_bytes(b'')
    return root


def outlined(made: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    """Return what writes a data set with outlines in the place of boxes."""
    def corners(found: re.Match[str]) -> str:
        x, y, w, h = (float(n) for n in found.groups()[1:])
        x, y, w, h = (x - w / 2, y - h / 2, x + w / 2, y + h / 2) if made is yolo else (x, y, w, h)
        points = ((x, y), (w, y), (w, h), (x, h))
        if made is yolo:
            return found[1] + ''.join(f' {a} {b}' for a, b in points)
        return f'<polygon{found[1]} points="{";".join(f"{a},{b}" for a, b in points)}" '
    pattern = r'(\d) (\S+) (\S+) (\S+) (\S+)' if made is yolo else (
        r'<box([^>]*?) xtl="(\S+)" ytl="(\S+)" xbr="(\S+)" ybr="(\S+)" ')

    def write(root: Path) -> Path:
        path = made(root)
        for file in root.glob(name):
            text = file.read_text()
            file.write_text(re.sub(pattern, corners, text))
            assert file.read_text() != text
        return path
    write.__name__ = made.__name__
    return write


def mot_2015(root: Path) -> Path:
    """Write rows as those of 2015 are: no class, and no place in the world."""
    path = mot(root)
    rows = [row.split(',') for row in (path / 'gt' / 'gt.txt').read_text().splitlines()]
    (path / 'gt' / 'gt.txt').write_text('\n'.join(
        ','.join([*row[:7], '-1', '-1', '-1']) for row in rows if row[7] == '1'))
    return path


@pytest.fixture
def rule(tmp_path: Path) -> Path:
    (tmp_path / 'rule.yaml').write_text(RULE)
    return tmp_path / 'rule.yaml'


@pytest.mark.parametrize('made', [
    coco, yolo, mot, mot_2015, cvat, cvat_video, outlined(yolo, 'labels/*.txt'),
    outlined(cvat, 'annotations.xml'), outlined(cvat_video, 'annotations.xml')])
def test_boxes_of_every_format_become_the_same_facts(tmp_path, rule, made):
    path, people = made(tmp_path / 'set'), made in (mot, mot_2015)
    out, = import_labels(made.__name__.partition('_')[0], path, rule, tmp_path / 'out', QUERY)
    found = open_labelled(out, QUERY)
    facts = [{**f, 'light': 'none'} for f in FACTS] if people else FACTS
    assert [label.facts for label in found.labels] == facts
    assert [label.t for label in found.labels] == pytest.approx(
        [i * (0.04 if people else 0.1) for i in range(4)])
    last = found.labels[3].regions
    assert near(last['nearest'], 0, 10, 10, 30) and near(last['people'], 0, 10, 38, 30)
    if not people:   # cut off at the edge of the picture
        assert near(last['light'], 60, 0, 4, 9)
        assert near(found.labels[0].regions['light'], 10, 5, 4, 8)
    assert found.header is not None and found.header.labelled_by.startswith(
        made.__name__.partition('_')[0])


def near(region: Region, *numbers: float) -> bool:
    return numbers == pytest.approx((region.x, region.y, region.w, region.h), abs=1e-6)


def test_boxes_that_are_nowhere_are_counted(tmp_path, rule, capsys):
    made = edited(coco, 'labels.json', lambda s: s.replace('[30, 5, 2, 4]', '[3000, 5, 2, 4]'))
    import_labels('coco', made(tmp_path / 'set'), rule, tmp_path / 'out', QUERY)
    assert 'out: 1 boxes are outside of their pictures' in capsys.readouterr().out


BOMB = ('<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
        '<annotations><image name="&c;"/></annotations>')
FILE = ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotations>&b;</annotations>')


def edited(made: Callable[[Path], Path], name: str, change: Callable[[str], str],
           ) -> Callable[[Path], Path]:
    """Return what writes a data set with one of its files changed."""
    def write(root: Path) -> Path:
        path = made(root)
        (root / name).write_text(change((root / name).read_text()))
        return path
    write.__name__ = made.__name__
    return write


@pytest.mark.parametrize('made, words', [
    (edited(cvat, 'annotations.xml', lambda s: BOMB), ('annotations.xml', 'export it anew')),
    (edited(cvat, 'annotations.xml', lambda s: FILE), ('annotations.xml', 'export it anew')),
    (edited(cvat, 'annotations.xml', lambda s: s[:-9]), ('annotations.xml', 'export it anew')),
    (edited(cvat, 'annotations.xml', lambda s: s.replace('xtl="10"', 'xtl="nan"')),
     ('4 numbers', 'mend')),
    (edited(cvat, 'annotations.xml', lambda s: '<annotations/>'), ('neither images nor tracks',)),
    (edited(cvat_video, 'annotations.xml', lambda s: s.replace('frame="3"', 'frame="4"')),
     ('frame 4', '4 pictures')),
    (edited(coco, 'labels.json', lambda s: s.replace('"9.jpg"', '"../../secret.jpg"')),
     ("'../../secret.jpg'", 'put the pictures there')),
    (edited(coco, 'labels.json', lambda s: s.replace('"bbox"', '"box"')),
     ('annotations.0.bbox', 'categories')),
    (edited(coco, 'labels.json', lambda s: '[' * 100_000), ('labels.json', 'categories')),
    (edited(coco, 'labels.json', lambda s: s.replace('"category_id": 1', '"category_id": 8')),
     ('no category 8',)),
    (edited(coco, 'labels.json', lambda s: s.replace('lamp', 'lump').replace('pede', 'pedi')),
     ('is about lamp_green', 'lump_red', 'use its names')),
    (edited(yolo, 'labels/8.txt', lambda s: '7' + s[1:]), ('8.txt: line 1', 'class 7', 'names')),
    (edited(yolo, 'labels/8.txt', lambda s: '0 0.5 0.5 1e400 0.1'), ('line 1', '5 numbers')),
    (edited(yolo, 'labels/8.txt', lambda s: '0 12 9 4 8'), ('line 1', '12 is no share', 'divide')),
    (edited(cvat, 'annotations.xml', lambda s: s.replace('<box', '<mask', 1)),
     ('8.png: mask lamp_red', 'draw a box')),
    (edited(yolo, 'data.yaml', lambda s: 'names: 3'), ('data.yaml', 'write names: [person')),
    (edited(mot, 'gt/gt.txt', lambda s: s + '\n99,1,1,1,1,1,1,1,1'), ('line 7', 'frame 99')),
    (edited(mot, 'seqinfo.ini', lambda s: 'frameRate=25'), ('seqinfo.ini', '[Sequence]')),
    (edited(mot, 'seqinfo.ini', lambda s: s.replace('img1', '../../img1')), ('imDir leads out',)),
    (yolo_emptied, ('9.jpg', 'replace the file')),
])
def test_what_strangers_wrote_ends_in_one_line_with_a_remedy(tmp_path, rule, made, words):
    with pytest.raises(LabelError) as caught:
        path = made(tmp_path / 'set')
        import_labels(made.__name__.partition('_')[0], path, rule, tmp_path / 'out', QUERY)
    for word in words:
        assert word in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text, words', [
    ('lamp: {largest: {a: red}}', ('lamp', 'no such key', 'light, people')),
    ('light: {largest: {a: blue}}', ("'blue'", 'none, red, green')),
    ('light: {count: [a], side: [b]}', ('light', 'one of largest, count and side')),
    ('light: {largst: {a: red}}', ('light.largst',)),
    ('people: {side: [a]}', ('people', "'left'")), ('', ('docs/real.md',))])
def test_a_wrong_rule_names_file_key_and_remedy(tmp_path, text, words):
    (tmp_path / 'rule.yaml').write_text(text)
    with pytest.raises(LabelError) as caught:
        import_labels('coco', coco(tmp_path / 'set'), tmp_path / 'rule.yaml', tmp_path / 'out',
                      QUERY)
    for word in ('rule.yaml', *words):
        assert word in str(caught.value)


def test_the_command_imports_and_refuses(tmp_path, rule, capsys):
    (tmp_path / 'mine.yaml').write_text("""
/**:
  ros__parameters:
    queries: [scene]
    scene:
      prompt: What?
      keys: [light]
      choices: {light: [none, red, green]}
""")
    rule.write_text('light: {largest: {lamp_red: red}}')
    path, out = coco(tmp_path / 'set'), tmp_path / 'out'

    def run(*arguments: str) -> int:
        return main(['label', str(tmp_path / 'mine.yaml'), '--out', str(out), *arguments])
    assert run('--from', 'coco', str(path), '--rule', str(rule)) == 0
    assert (out / 'labels.jsonl').is_file() and 'with labels' in capsys.readouterr().out
    assert run('--from', 'coco', str(path), '--rule', str(rule)) == 2
    assert 'is not empty; name another --out' in capsys.readouterr().err
    assert run('--from', 'voc', str(path)) == 2
    assert f'mini, {", ".join(NAMES)}' in capsys.readouterr().err
    assert run('--from', 'coco', str(path)) == 2 and '--rule' in capsys.readouterr().err


DIGITS = Query('scene', 'Which?', 'facts', {'digit': ('none', '0', '1', '2')})


def hands(root: Path) -> Path:
    """Write five people who show three digits each; their brightness tells who they are."""
    for digit in range(3):
        (root / str(digit)).mkdir(parents=True)
        for person in range(5):
            rgb = np.full((20, 20, 3), 50 * person + 10 * digit, np.uint8)
            (root / str(digit) / f'IMG_{100 + 10 * person + digit}.JPG').write_bytes(
                encode_jpeg(rgb))
    return root


def test_stills_become_streams_and_people_are_kept_apart(tmp_path):
    rule = tmp_path / 'rule.yaml'
    rule.write_text('{people: number - class, sequences: 2, seconds: 1, rate_hz: 5}')
    path = hands(tmp_path / 'hands')
    written = import_labels('stills', path, rule, tmp_path / 'out', DIGITS)
    assert [p.name for p in written] == ['hands-00', 'hands-01']
    seen = []
    for folder in written:
        found = open_labelled(folder, DIGITS)
        shades = [round(found.image(s).mean()) for s in found.jpegs]
        seen.append({shade // 50 for shade in shades})
        assert [int(label.facts['digit']) for label in found.labels] == [
            round(shade % 50 / 10) for shade in shades]
        assert found.header is not None and 'order in time is random' in found.header.labelled_by
        assert len(shades) > 15     # each is held for a while
    assert seen[0] | seen[1] == {0, 1, 2, 3, 4} and not seen[0] & seen[1]
    again = import_labels('stills', path, rule, tmp_path / 'again', DIGITS)
    assert [(p / 'labels.jsonl').read_text() for p in written] == [
        (p / 'labels.jsonl').read_text() for p in again]


def test_stills_of_an_unknown_class_are_told(tmp_path):
    path = hands(tmp_path / 'hands')
    (path / '2').rename(path / 'fist')
    with pytest.raises(LabelError, match='fist.*values: {fist: none}'):
        import_labels('stills', path, None, tmp_path / 'out', DIGITS)


def held(tmp_path: Path, height: str) -> tuple[Path, Path]:
    """Write a photograph of a hand on a pale wall, a blue room and the rule; return both."""
    wall = np.full((100, 100, 3), 220, np.uint8)
    cv2.ellipse(wall, (50, 55), (20, 30), 0, 0, 360, (200, 120, 80), -1)
    (tmp_path / 'hands/1').mkdir(parents=True)
    (tmp_path / 'hands/1/IMG_1.JPG').write_bytes(encode_jpeg(wall))
    (tmp_path / 'rooms').mkdir()
    (tmp_path / 'rooms/1.jpg').write_bytes(encode_jpeg(np.full((120, 200, 3), (0, 0, 90),
                                                               np.uint8)))
    rule = tmp_path / 'rule.yaml'
    rule.write_text(f'{{scenes: ../rooms, height: {height}, sequences: 1, seed: 3}}')
    return tmp_path / 'hands', rule


def test_hands_are_held_into_scenes_where_the_labels_say(tmp_path):
    path, rule = held(tmp_path, '[0.4, 0.4]')
    found = open_labelled(import_labels('stills', path, rule, tmp_path / 'out', DIGITS)[0], DIGITS)
    assert found.size == (200, 120) and len(found.labels) > 10
    places = set()
    for label in found.labels:
        region, rgb = label.regions['digit'], found.image(found.stamp_of(label))
        ys, xs = np.nonzero(rgb[:, :, 0].astype(int) - rgb[:, :, 2] > 40)
        seen = Region(float(xs.min()), float(ys.min()), float(np.ptp(xs)), float(np.ptp(ys)))
        assert region.iou(seen) > 0.6 and 0.2 < region.h / 120 < 0.4
        places.add(round(region.x))
    assert len(places) > 3      # it is never held still
    assert 'held into other pictures' in found.header.labelled_by


@pytest.mark.parametrize('broken, message', [
    (lambda p: (p / 'rooms/1.jpg').unlink(), 'rooms: no pictures there'),
    (lambda p: (p / 'rooms/1.jpg').write_bytes(b'no'), 'rooms/1.jpg: .*; replace the file'),
    (lambda p: (p / 'hands/1/IMG_1.JPG').write_bytes(encode_jpeg(np.full(
        (100, 100, 3), 220, np.uint8))), 'IMG_1.JPG shows no hand.* leave scenes out'),
    (lambda p: (p / 'rule.yaml').write_text('{scenes: ../rooms, height: [0.4, 0.1]}'),
     'height: .*the smaller one first')])
def test_what_cannot_be_held_into_scenes_is_told(tmp_path, broken, message):
    path, rule = held(tmp_path, '[0.4, 0.4]')
    broken(tmp_path)
    with pytest.raises(LabelError, match=message):
        import_labels('stills', path, rule, tmp_path / 'out', DIGITS)
