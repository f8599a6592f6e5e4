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
"""The HRI world: a pure function of its reference, labels that fit the picture, split hands."""

from collections import Counter
import os
from pathlib import Path
import subprocess
import sys

import cv2
import numpy as np
import pytest

from spotvlm_ros.method.facts import Fact
from spotvlm_ros.mini.hri import hand_shape, hands
from spotvlm_ros.mini.hri.episode import split_of
from spotvlm_ros.mini.hri.hands import HandBank, SPLITS
from spotvlm_ros.mini.hri.labels import intent
from spotvlm_ros.mini.hri.scene import Hand, HEIGHT, HRI_SCENE, INTENT, WIDTH
from spotvlm_ros.mini.hri.world import HriWorld
from spotvlm_ros.mini.worlds import make_world, TEST_SEEDS, TRAIN_SEEDS, TUNE_SEEDS

PHOTOS = Path(os.environ.get('SPOTVLM_HANDS', Path(__file__).resolve().parents[2]
                             / 'shared' / 'data' / 'hands'))
DRAWN = ('near', 'far')


@pytest.fixture(scope='module')
def bank():
    if not PHOTOS.is_dir():
        pytest.skip(f'{PHOTOS} is missing; set SPOTVLM_HANDS to a folder with {hands.DATA_SET}')
    return HandBank(PHOTOS)


@pytest.fixture(scope='module')
def toy_bank(tmp_path_factory):
    """Return a bank of painted blobs, one series per person, so that no photograph is needed."""
    folder = tmp_path_factory.mktemp('hands')
    for person in range(40):
        for digit in range(10):
            path = folder / str(digit) / f'IMG_{1000 + 20 * person + digit}.JPG'
            path.parent.mkdir(exist_ok=True)
            image = np.full((100, 100, 3), (205, 205, 208), np.uint8)
            cv2.rectangle(image, (35, 20 + digit), (70, 99), (90, 120, 180), -1)
            cv2.imwrite(str(path), image)
    return HandBank(folder)


def _worlds(condition, bank=None, seeds=range(8)):
    return [HriWorld(seed, condition, bank) for seed in seeds]


@pytest.mark.parametrize('condition', [*DRAWN, 'real', None])
def test_a_frame_is_a_function_of_its_reference(condition, toy_bank):
    first, again = (make_world('hri', 7, condition, toy_bank) for _ in range(2))
    frame = first.frame(333)
    assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8
    first.frame(12)
    first.facts(2700, 0)
    assert np.array_equal(frame, again.frame(333))
    assert first.facts(333, 5) == again.facts(333, 5)
    assert not np.array_equal(frame, make_world('hri', 8, condition, toy_bank).frame(333))
    assert not np.array_equal(frame, again.frame(2400 + 333)), 'the next episode is another'


def test_labels_need_no_drawing_library():
    code = ('import sys; from spotvlm_ros.mini.hri.world import HriWorld; '
            "HriWorld(3, 'near').answers(50, 0); assert 'cv2' not in sys.modules")
    done = subprocess.run([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('condition', [*DRAWN, 'real'])
def test_regions_are_in_the_frame_and_of_a_size(condition, toy_bank):
    for world in _worlds(condition, toy_bank, range(4)):
        for index in range(0, 2600, 40):  # past the end of the first episode, too
            for fact in world.answers(index, 42)['scene'][0]:
                if fact.key == 'people' or fact.value == 'none':
                    assert fact.region is None
                    continue
                assert fact.region.clipped(WIDTH, HEIGHT) == fact.region
                assert fact.region.w >= 6 and fact.region.h >= 6
                assert fact.region.w * fact.region.h < 0.45 * WIDTH * HEIGHT


@pytest.mark.parametrize('condition', [*DRAWN, 'real'])
def test_what_is_labelled_is_drawn_in_its_region_and_nowhere_else(condition, toy_bank,
                                                                  monkeypatch):
    """A frame drawn without the hand, or the object, differs in the region and only there."""
    from spotvlm_ros.mini.hri import render_people
    seen = Counter()
    for world in _worlds(condition, toy_bank, range(10)):
        for index in range(200, 2300, 300):
            facts = {f.key: f for f in world.facts(index, 0)}
            whole = world.frame(index).astype(int)
            for key, patched in (('gesture', 'draw_hand'), ('object', 'HELD')):
                if facts[key].value == 'none':
                    continue
                with monkeypatch.context() as patch:
                    if key == 'object':
                        patch.setattr(render_people, patched, {facts[key].value: lambda *_: None})
                    else:
                        draw = render_people.draw_hand
                        patch.setattr(render_people, patched,
                                      lambda canvas, hand, *a: hand.pose == 'digit'
                                      or draw(canvas, hand, *a))
                    without = world.frame(index).astype(int)
                blur = world.scene(index).light.blur
                ys, xs = np.nonzero(np.abs(whole - without).max(axis=2) > 12)
                r = facts[key].region
                slack = 3 + blur
                assert len(xs) > 0.08 * r.w * r.h, (world.seed, index, key)
                assert r.x - slack <= xs.min() and xs.max() <= r.x + r.w + slack
                assert r.y - slack <= ys.min() and ys.max() <= r.y + r.h + slack
                if blur < 2 and min(r.x, r.y, WIDTH - r.x - r.w, HEIGHT - r.y - r.h) > 1 \
                        and key == 'gesture' and world.scene(index).post is None \
                        and not any(w.z < world.scene(index).partner.z
                                    for w in world.scene(index).walkers):
                    assert np.ptp(xs) > 0.75 * r.w and np.ptp(ys) > 0.75 * r.h, 'a tight box'
                seen[key] += 1
    assert min(seen['gesture'], seen['object']) >= 8, seen


def test_two_digits_look_different_at_the_same_place():
    from spotvlm_ros.mini.hri.render_hands import draw_hand, SKIN
    pictures = []
    for digit in range(10):
        canvas = np.full((60, 60, 3), 90, np.uint8)
        hand = Hand(30, 50, 38.0, 0.0, False, 'digit', digit, hand_shape.STEPS)
        draw_hand(canvas, hand, SKIN[0], 1.0)
        pictures.append(canvas.astype(int))
    for k, a in enumerate(pictures):
        for b in pictures[:k]:
            assert (np.abs(a - b).max(axis=2) > 40).sum() > 40


@pytest.mark.parametrize('condition', DRAWN)
def test_things_move_continuously(condition):
    for world in _worlds(condition, seeds=range(3)):
        before = {f.key: f for f in world.facts(399, 0)}
        for index in range(400, 1000):
            facts = {f.key: f for f in world.facts(index, 0)}
            for key in ('gaze', 'gesture', 'object'):
                a, b = before[key], facts[key]
                if a.value != b.value or a.region is None:
                    continue
                limit = 0.35 * max(b.region.w, b.region.h) + 3
                assert abs(a.region.x + a.region.w / 2 - b.region.x - b.region.w / 2) < limit, \
                    (world.seed, index, key)
                assert abs(a.region.y + a.region.h / 2 - b.region.y - b.region.h / 2) < limit
            before = facts
    still = [np.abs(world.frame(i).astype(int) - world.frame(i + 1)).mean() for i in (500, 900)]
    assert 0 < min(still) and max(still) < 25


@pytest.mark.parametrize('condition', DRAWN)
def test_values_are_spread_and_change_at_a_realistic_rate(condition):
    """Neither frozen (context alone would do) nor random (context could not help)."""
    values = {key: Counter() for key in HRI_SCENE.keys}
    wanted, changes, seconds = Counter(), Counter(), 0
    for world in _worlds(condition, seeds=range(16)):
        before = None
        for index in range(0, 2400, 20):
            facts = world.facts(index, 0)
            wanted[intent(facts)] += 1
            for k, fact in enumerate(facts):
                values[fact.key][fact.value] += 1
                changes[fact.key] += before is not None and before[k].value != fact.value
            before, seconds = facts, seconds + 1
    for key, choices in HRI_SCENE.choices.items():
        assert set(values[key]) == set(choices), key
        # one arm points or holds out, so either is absent more often than not
        most = 0.80 if key in ('pointing', 'object') else 0.72  # mostly one person is there
        assert max(values[key].values()) / seconds < most, (key, values[key])
        assert 0.04 < changes[key] / seconds < 0.5, (key, changes[key] / seconds)
    assert set(wanted) == set(INTENT.choices['intent'])
    assert min(wanted.values()) / seconds > 0.02 and max(wanted.values()) / seconds < 0.5


def test_hands_are_all_over_the_frame():
    for condition, spread in (('near', 120), ('far', 90)):
        x = [f.region.x + f.region.w / 2 for w in _worlds(condition, seeds=range(30))
             for f in w.facts(700, 0) + w.facts(1500, 0) if f.key == 'gesture' and f.region]
        assert len(x) > 15 and np.std(x) > spread


def test_intent_follows_the_facts():
    def facts(**value):
        return tuple(Fact(k, value.get(k, 'none'), 0) for k in HRI_SCENE.keys)
    assert intent(facts(object='key', pointing='cup', gesture='two', gaze='robot')) == 'give'
    assert intent(facts(pointing='cup', gesture='two', gaze='robot')) == 'fetch'
    assert intent(facts(gesture='two', gaze='robot')) == 'order'
    assert intent(facts(gaze='robot')) == 'attention'
    assert intent(facts(gesture='two', gaze='left')) == 'nothing'


def test_what_is_wrong_is_said_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match='HandBank'):
        HriWorld(1, 'real')
    with pytest.raises(ValueError, match='near, far, real'):
        HriWorld(1, 'fog')
    with pytest.raises(ValueError, match='driving, hri'):
        make_world('moon', 1)
    with pytest.raises(FileNotFoundError, match='download .*Sign-Language-Digits-Dataset'):
        HandBank(tmp_path / 'nothing')
    with pytest.raises(ValueError, match='no photographs .*download'):
        HandBank(tmp_path)
    assert make_world('hri', 3).scene(0).condition in DRAWN, 'no bank, no real hands'


def test_splits_of_seeds_are_those_of_the_data_set():
    for split, seeds in zip(SPLITS, (TRAIN_SEEDS, TUNE_SEEDS, TEST_SEEDS)):
        assert split_of(seeds[0]) == split_of(seeds[-1]) == split


def test_people_are_in_one_split_each(bank):
    assert sorted(p for people in bank.split.values() for p in people) == sorted(bank.people)
    files = {split: {path for p in people for paths in bank.people[p].values() for path in paths}
             for split, people in bank.split.items()}
    assert sum(map(len, files.values())) == len(set().union(*files.values()))
    assert set().union(*files.values()) == set(PHOTOS.glob('[0-9]/IMG_*.JPG'))
    begins = {split: {int(p.stem[4:]) - int(p.parent.name) for p in found}
              for split, found in files.items()}
    for a in SPLITS:  # a series with a gap has two beginnings close by: one person still
        for b in SPLITS:
            assert a == b or all(abs(m - n) > 9 for m in begins[a] for n in begins[b])
    share = len(bank.split['train']) / len(bank.people)
    assert 0.6 < share < 0.8
    assert {s: len(p) for s, p in bank.split.items()} == {'train': 104, 'tune': 22, 'test': 23}


def test_photographs_are_cut_out(bank):
    for split in SPLITS:
        for digit in range(10):
            cut = bank.pick(split, digit, np.random.default_rng(5))
            assert cut.dtype == np.uint8 and cut.shape[2] == 4
            solid = cut[:, :, 3] > 128
            assert 0.25 < solid.mean() < 0.97 and solid[-3:].any()


def test_all_digits_of_an_episode_are_of_one_person(bank, monkeypatch):
    picked = []
    monkeypatch.setattr(hands, '_scaled', lambda path, widest: picked.append(path)
                        or np.full((90, 60, 4), 255, np.uint8))
    world = HriWorld(2_000_005, 'real', bank)
    shown = {f.value for i in range(0, 2400, 10) for f in world.facts(i, 0) if f.key == 'gesture'}
    owners = {person for path in picked for person, photos in bank.people.items()
              if any(path in paths for paths in photos.values())}
    assert len(shown) > 5 and len(owners) == 1 and owners <= set(bank.split['test'])
