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
Photographs of hands that show digits, cut out of their background.

The data set is ardamavi/Sign-Language-Digits-Dataset (Apache-2.0; Mavi, "A New Dataset and
Proposed Convolutional Neural Network Architecture for Classification of American Sign Language
Digits", 2020): ``<digit>/IMG_<n>.JPG``, 100 x 100 pixels. It is not part of this package.
"""

from __future__ import annotations

from functools import lru_cache
import hashlib
from pathlib import Path
import re

import cv2
import numpy as np
import numpy.typing as npt

RGBA = npt.NDArray[np.uint8]

SPLITS = ('train', 'tune', 'test')
SHARES = (0.70, 0.15, 0.15)
DIGITS = range(10)
SAME_PERSON = 9       # series that begin closer than this are one person, photographed with a gap
FIVE_PX = 96.0        # every person's open hand is scaled to this width
DATA_SET = 'ardamavi/Sign-Language-Digits-Dataset on GitHub (Apache-2.0, Mavi 2020)'


class HandBank:
    """
    Photographs of one folder, people kept apart between train, tune and test.

    The number of a photograph less its digit is constant in the series of one person. Where a
    photograph was discarded the series breaks in two with close numbers, so close series are one
    person. People are split by a hash of their first number: adding photographs moves nobody.
    """

    def __init__(self, folder: str | Path) -> None:
        """List the photographs; they are read and cut out when first picked."""
        self.folder = Path(folder)
        get = f'download {DATA_SET} and name its folder with the sub-folders 0 to 9'
        if not self.folder.is_dir():
            raise FileNotFoundError(f'there is no folder {self.folder} of hand photographs; {get}')
        series: dict[int, dict[int, list[Path]]] = {}
        for digit in DIGITS:
            for path in sorted((self.folder / str(digit)).glob('IMG_*.JPG')):
                number = re.fullmatch(r'IMG_(\d+)', path.stem)
                if number:
                    begin = int(number[1]) - digit
                    series.setdefault(begin, {}).setdefault(digit, []).append(path)
        digits = {digit for one in series.values() for digit in one}
        if digits != set(DIGITS):
            missing = ', '.join(str(d) for d in DIGITS if d not in digits)
            raise ValueError(f'{self.folder} has no photographs <digit>/IMG_<n>.JPG of digit '
                             f'{missing}; {get}')
        self.people = _people(series)
        self.split = {split: [p for p in self.people if split_of(p) == split]
                      for split in SPLITS}
        for split, people in self.split.items():
            held = {digit for p in people for digit in self.people[p]}
            if held != set(DIGITS):
                raise ValueError(f'{self.folder} has too few people: digits '
                                 f'{sorted(set(DIGITS) - held)} lack in split {split}; {get}')

    def pick(self, split: str, digit: int, rng: np.random.Generator) -> RGBA:
        """
        Return a photograph of a digit, cut out, its lower edge being the wrist.

        The person is the generator's first draw, so equal generators give the same person for
        every digit; the next person stands in where a series is incomplete.
        """
        if split not in self.split:
            raise ValueError(f'split is {split!r}; use one of {", ".join(SPLITS)}')
        people = self.split[split]
        first = int(rng.integers(len(people)))
        turned = people[first:] + people[:first]
        person = next(p for p in turned if digit in self.people[p])
        paths = self.people[person][digit]
        path = paths[int(rng.integers(len(paths)))]
        return _scaled(path, self._widest(person))

    def _widest(self, person: int) -> Path:
        """Return the photograph that tells the size of a person's hand: the open one."""
        photos = self.people[person]
        digit = min(photos, key=lambda d: (d != 5, -d))
        return photos[digit][0]


def split_of(person: int) -> str:
    """Return the split of a person, for ever the same."""
    place = int(hashlib.sha256(f'hand {person}'.encode()).hexdigest()[:8], 16) / 2 ** 32
    return SPLITS[0] if place < SHARES[0] else SPLITS[1] if place < sum(SHARES[:2]) else SPLITS[2]


def _people(series: dict[int, dict[int, list[Path]]]) -> dict[int, dict[int, list[Path]]]:
    """Join series with close numbers, so that nobody is in two splits."""
    people: dict[int, dict[int, list[Path]]] = {}
    person = last = None
    for begin in sorted(series):
        if person is None or last is None or begin - last > SAME_PERSON:
            person = begin
        last = begin
        for digit, paths in series[begin].items():
            people.setdefault(person, {}).setdefault(digit, []).extend(paths)
    return people


@lru_cache(maxsize=4096)
def _scaled(path: Path, widest: Path) -> RGBA:
    cut = cut_out(path)
    scale = min(3.0, FIVE_PX / max(30, cut_out(widest).shape[1]))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(cut, None, fx=scale, fy=scale, interpolation=how), dtype=np.uint8)


@lru_cache(maxsize=4096)
def cut_out(path: Path) -> RGBA:
    """Return the hand of a photograph with a soft edge, cropped to it."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f'{path} is no readable picture; download {DATA_SET} again')
    # Skin is redder than the pale wall whatever the light, the wall's corners are only darker.
    lab = cv2.cvtColor(bgr, cv2.COLOR_BGR2LAB).astype(np.float32)
    edge = np.concatenate([lab[:8].reshape(-1, 3), lab[:50, :8].reshape(-1, 3),
                           lab[:50, -8:].reshape(-1, 3)])
    wall = np.median(edge, axis=0)
    warm = np.clip((lab[..., 1] - wall[1]) + 0.6 * (lab[..., 2] - wall[2]), 0, 60)
    warm = cv2.GaussianBlur(warm, (0, 0), 1.0)
    level, _ = cv2.threshold((warm * 4).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    level /= 4
    seed = np.full(warm.shape, cv2.GC_PR_BGD, np.uint8)
    seed[warm > 0.75 * level] = cv2.GC_PR_FGD
    seed[warm > 1.5 * level] = cv2.GC_FGD
    seed[warm < 0.35 * level] = cv2.GC_BGD
    cv2.setRNGSeed(1)
    if (seed == cv2.GC_FGD).sum() > 20:
        cv2.grabCut(bgr, seed, None, np.zeros((1, 65)), np.zeros((1, 65)), 2,
                    cv2.GC_INIT_WITH_MASK)
    mask = ((seed == cv2.GC_FGD) | (seed == cv2.GC_PR_FGD)).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    if len(stats) > 1:
        mask = (parts == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(mask)
    if w < 8 or h < 8:
        raise ValueError(f'{path} shows no hand on a pale wall; download {DATA_SET} again')
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)
    alpha = np.clip((alpha - 0.25) / 0.6, 0, 1) * 255  # a little inside, so no wall is left
    rgba = np.dstack([bgr[:, :, ::-1], alpha.astype(np.uint8)])
    return np.ascontiguousarray(rgba[y:y + h, x:x + w])
