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
"""
Frames with boxes as other tools keep them: COCO, YOLO, MOTChallenge, CVAT.

What is read comes from strangers: it is checked, XML may declare nothing of its own, and only
pictures within the folder of the data set are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import configparser
import csv
from dataclasses import dataclass, field
from pathlib import Path
import re
from typing import Annotated
from xml.etree.ElementTree import Element, ParseError

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from .rules import Box
from .schema import first_error, LabelError, MAX_BYTES
from ..config.strict_yaml import read_yaml
from ..frames.pixels import decode_compressed, FrameError
from ..frames.source_frame import natural_order
from ..frames.sources import IMAGE_SUFFIXES
from ..method.facts import Region
from ..method.prompt import printable
from ..system.text_file import read_text_file

YOLO_MOST = 2.0     # of the picture's sides; boxes may stand out of it
RATE_HZ = 10.0      # of frames whose times are not told
MOT_CLASSES = ('', 'pedestrian', 'person on vehicle', 'car', 'bicycle', 'motorbike',
               'non motorized vehicle', 'static person', 'distractor', 'occluder',
               'occluder on the ground', 'occluder full', 'reflection')


@dataclass
class Shot:
    """A picture of a data set."""

    file: Path
    t: float | None = None   # of its sequence; None: not told
    boxes: list[Box] = field(default_factory=list)


def coco(path: Path) -> list[Shot]:
    """Read a COCO file (JSON), or the only one in a folder; pictures by their names."""
    file = _only(path, '*.json', 'COCO file')
    try:
        data = _Coco.model_validate_json(_text(file))
    except ValidationError as error:
        raise LabelError(f'{file}: {first_error(error)}; a COCO file has images, categories, and '
                         'annotations with bbox') from error
    names = {one.id: one.name for one in data.categories}
    find = _finder(file, path if path.is_dir() else file.parent)
    shots = {one.id: Shot(find(one.file_name)) for one in data.images}
    for number, one in enumerate(data.annotations):
        if one.image_id not in shots or one.category_id not in names:
            raise LabelError(f'{file}: annotations.{number}: no image {one.image_id} or no '
                             f'category {one.category_id}; export the data set anew')
        shots[one.image_id].boxes.append(Box(names[one.category_id], Region(*one.bbox)))
    return sorted(shots.values(), key=lambda s: natural_order(s.file))


def yolo(path: Path) -> list[Shot]:
    """
    Read a folder of pictures with a text file each: beside it, or in labels/ for images/.

    Names of the classes stand in data.yaml, classes.txt or obj.names. No file: no boxes. Outlines
    (more than a box and its confidence, in pairs) count as the boxes around them.
    """
    names, found, shots = _yolo_names(path), 0, []
    for image in sorted(_places(path).values(), key=lambda p: (str(p.parent), natural_order(p))):
        beside = image.with_suffix('.txt')
        parts = ['labels' if part == 'images' else part for part in beside.relative_to(path).parts]
        file = next((f for f in (path.joinpath(*parts), beside) if f.is_file()), None)
        shot = Shot(image)
        if file is not None:
            found += 1
            width, height = picture_size(image)
            for number, line in enumerate(_text(file).splitlines(), 1):
                if line.strip():
                    where = f'{file}: line {number}'
                    index, *at = _numbers(where, line.split(), 5)
                    if int(index) not in names:
                        raise LabelError(f'{where}: class {index:g} has no name; complete the '
                                         'names in data.yaml or classes.txt')
                    shot.boxes.append(Box(names[int(index)], _yolo_region(
                        where, at, (width, height))))
        shots.append(shot)
    if not found:
        raise LabelError(f'{path}: no picture has a text file with its boxes; put 0001.txt beside '
                         '0001.jpg, or into labels/ where that is in images/')
    return shots


def _yolo_region(where: str, at: Sequence[float], size: tuple[int, int]) -> Region:
    """Return a box of shares of the picture as pixels; raise LabelError."""
    outline = len(at) > 5 and len(at) % 2 == 0
    if any(abs(n) > YOLO_MOST for n in (at if outline else at[:4])):
        raise LabelError(f'{where}: {max(at, key=abs):g} is no share of the picture; divide '
                         'pixels by its width and height')
    if outline:
        return _around(at[::2], at[1::2], size)
    x, y, w, h = at[:4]
    return Region((x - w / 2) * size[0], (y - h / 2) * size[1], w * size[0], h * size[1])


def _around(xs: Sequence[float], ys: Sequence[float], scale: tuple[float, float] = (1, 1),
            ) -> Region:
    """Return the box around the points of an outline."""
    (left, right), (top, bottom) = (min(xs), max(xs)), (min(ys), max(ys))
    return Region(left * scale[0], top * scale[1], (right - left) * scale[0],
                  (bottom - top) * scale[1])


def mot(path: Path) -> list[Shot]:
    """Read a sequence of MOTChallenge: seqinfo.ini, gt/gt.txt and its pictures."""
    info, truth = path / 'seqinfo.ini', path / 'gt' / 'gt.txt'
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read_string(_text(info))
        section = config['Sequence']
        rate_hz = section.getfloat('frameRate', RATE_HZ)
    except (configparser.Error, KeyError, ValueError) as error:
        raise LabelError(f'{info}: {str(error).splitlines()[0]}; it begins with [Sequence] and '
                         'tells frameRate and imDir') from error
    if not 0.1 <= rate_hz <= 1000.0:
        raise LabelError(f'{info}: frameRate is {rate_hz:g}; give frames a second')
    folder = path / section.get('imDir', 'img1')
    if not folder.resolve().is_relative_to(path.resolve()):
        raise LabelError(f'{info}: imDir leads out of {path}; name a folder in it')
    files = sorted(_places(folder).values(), key=natural_order)
    shots = [Shot(file, i / rate_hz) for i, file in enumerate(files)]
    for number, row in enumerate(csv.reader(_text(truth).splitlines()), 1):
        where = f'{truth}: line {number}'
        frame, _, x, y, w, h, counts, *rest = _numbers(where, row, 7)
        if not 1 <= frame <= len(shots):
            raise LabelError(f'{where}: frame {frame:g}, and {folder} has {len(shots)} pictures; '
                             'complete them')
        kind = abs(int(rest[0])) if rest else 1     # -1 in the sets of 2015: all are pedestrians
        if counts and 0 < kind < len(MOT_CLASSES):
            shots[int(frame) - 1].boxes.append(Box(MOT_CLASSES[kind], Region(x, y, w, h)))
    return shots


def cvat(path: Path) -> list[Shot]:
    """
    Read "CVAT for images" or "CVAT for video" 1.1 (XML), or the only XML in a folder.

    Polygons and lines of points count as the boxes around them.
    """
    file = _only(path, '*.xml', 'CVAT file')
    root, folder = _xml(file), path if path.is_dir() else file.parent
    if root.find('track') is None:
        find = _finder(file, folder)
        shots = [Shot(find(node.get('name', '')), None,
                      [_cvat_box(file, node.get('name', ''), shape, shape.get('label', ''))
                       for shape in node if shape.tag != 'tag']) for node in root.iter('image')]
        if not shots:
            raise LabelError(f'{file} has neither images nor tracks; export it as CVAT for images '
                             '1.1 or CVAT for video 1.1')
        return shots
    shots = [Shot(p) for p in sorted(_places(folder).values(), key=natural_order)]
    for track in root.iter('track'):
        for box in track:
            frame, = _numbers(str(file), [box.get('frame', '')], 1)
            if not 0 <= frame < len(shots):
                raise LabelError(f'{file}: frame {frame:g}, and beside it are {len(shots)} '
                                 'pictures; put all frames of the video there as images')
            if box.get('outside') != '1':
                shots[int(frame)].boxes.append(_cvat_box(
                    file, f'frame {frame:g}', box, track.get('label', '')))
    return shots


FORMATS: Mapping[str, Callable[[Path], list[Shot]]] = {
    'coco': coco, 'yolo': yolo, 'mot': mot, 'cvat': cvat}


def picture_size(file: Path) -> tuple[int, int]:
    """Return width and height of a picture; raise LabelError."""
    try:
        height, width = decode_compressed(file.read_bytes()).shape[:2]
    except (OSError, FrameError) as error:
        raise LabelError(f'{file}: {error}; replace the file, or take it out') from error
    return width, height


class _Named(BaseModel):
    id: int  # noqa: A003
    name: str


class _CocoImage(BaseModel):
    id: int  # noqa: A003
    file_name: str


class _CocoBox(BaseModel):
    image_id: int
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


class _Coco(BaseModel):
    images: Annotated[list[_CocoImage], Field(min_length=1)]
    categories: list[_Named]
    annotations: list[_CocoBox]


def _yolo_names(path: Path) -> dict[int, str]:
    for name in ('data.yaml', 'classes.txt', 'obj.names'):
        file = path / name
        if not file.is_file():
            continue
        if file.suffix != '.yaml':
            return dict(enumerate(line.strip() for line in _text(file).splitlines()))
        data = read_yaml(file)
        names = data.get('names') if isinstance(data, dict) else None
        if isinstance(names, list):
            return {i: str(one) for i, one in enumerate(names)}
        if isinstance(names, dict) and all(isinstance(i, int) for i in names):
            return {i: str(one) for i, one in names.items()}
        raise LabelError(f'{file}: names is no list; write names: [person, car]')
    raise LabelError(f'{path} holds none of data.yaml, classes.txt and obj.names; name the '
                     'classes in classes.txt, one a line')


def _xml(file: Path) -> Element:
    """Return the root of an XML file that declares no entities and no document type."""
    try:
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import fromstring
    except ImportError as error:
        raise LabelError('defusedxml is missing, without which no XML is read; run pip install '
                         'defusedxml, or make setup') from error
    try:
        root = fromstring(_text(file), forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise LabelError(f'{file}: no XML that can be read: {printable(str(error))}; export it '
                         'anew as CVAT for images 1.1 or CVAT for video 1.1') from error
    assert isinstance(root, Element)
    return root


def _cvat_box(file: Path, where: str, shape: Element, name: str) -> Box:
    where = f'{file}: {printable(where)}'
    if points := shape.get('points'):
        numbers = _numbers(where, re.split('[,;]', points), 4)
        return Box(name, _around(numbers[::2], numbers[1::2]))
    if shape.tag != 'box':
        raise LabelError(f'{where}: {printable(shape.tag)} {printable(name)} has neither corners '
                         'nor points; draw a box or a polygon')
    left, top, right, bottom = _numbers(
        where, [shape.get(a, '') for a in ('xtl', 'ytl', 'xbr', 'ybr')], 4)
    return Box(name, Region(left, top, right - left, bottom - top))


def _numbers(where: str, texts: Sequence[str], least: int) -> list[float]:
    """Return finite numbers, at least so many; raise LabelError."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = []
    if len(numbers) < least or not all(abs(n) < 1e9 for n in numbers):
        raise LabelError(f'{where}: {printable(" ".join(texts)[:60])!r} are not {least} numbers; '
                         'mend the line')
    return numbers


def _only(path: Path, pattern: str, what: str) -> Path:
    """Return a file, or the only such one in a folder or its folder annotations."""
    if not path.is_dir():
        return path
    found = [*path.glob(pattern), *path.glob(f'annotations/{pattern}')]
    if len(found) != 1:
        raise LabelError(f'{path} holds {len(found)} files {pattern}; name the {what}')
    return found[0]


def _places(folder: Path) -> dict[str, Path]:
    """Return the pictures in and below a folder by their names from there."""
    found = {str(p.relative_to(folder)): p for p in _below(folder)}
    if not found:
        raise LabelError(f'{folder}: no pictures there ({" ".join(IMAGE_SUFFIXES)}); put them '
                         'beside the labels')
    return found


def _below(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
            and not p.is_symlink())


def _finder(file: Path, folder: Path) -> Callable[[str], Path]:
    """Return what finds a picture by the name that labels give it, in the folder or below."""
    by_name: dict[str, list[tuple[str, Path]]] = {}
    for known, place in _places(folder).items():
        by_name.setdefault(place.name, []).append((known, place))

    def find(name: str) -> Path:
        fitting = [place for known, place in by_name.get(name.rpartition('/')[2], [])
                   if known == name or known.endswith(f'/{name}')]
        if not fitting:
            raise LabelError(f'{file}: image {printable(name)!r} is not in {folder} or below it; '
                             'put the pictures there')
        return min(fitting, key=lambda p: len(p.parts))
    return find


def _text(file: Path) -> str:
    try:
        return read_text_file(file, MAX_BYTES)
    except ValueError as error:
        raise LabelError(f'{file} {error}; see docs/real.md for what belongs where') from error
