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
"""Things that come into frames to be counted and looked for."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from spotvlm_ros.labels.rules import KeyRule
from spotvlm_ros.labels.schema import Header, Label, write_labels
from spotvlm_ros.method.facts import NS, Region
from spotvlm_ros.training import main, material
from spotvlm_ros.training.context import SimulatedCloud
from spotvlm_ros.training.copy_paste import (
    CopyPaste, cut_objects, cut_out, PastedObject, PastedObjects)
from spotvlm_ros.training.delays import Delays
from spotvlm_ros.training.samples import Sampler, Variety
from spotvlm_ros.training.tracks import track

WIDTH, HEIGHT, FRAMES = 240, 160, 30
RULES = {'people': KeyRule(count=['person'], near=0.4),
         'nearest': KeyRule(side=['person'], near=0.4)}
RULE_FILE = 'people: {count: [person], near: 0.4}\nnearest: {side: [person], near: 0.4}\n'
OWN = Region(150.0, 50.0, 30.0, 90.0)


def person(picture, box, colour):
    x, y, w, h = int(box.x), int(box.y), int(box.w), int(box.h)
    picture[y:y + h, x + w // 4:x + w - w // 4] = colour


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a sequence in which one person is near, on the right, now and then."""
    folder = tmp_path_factory.mktemp('people') / 'hall'
    folder.mkdir()
    wall = np.random.default_rng(0).integers(40, 140, (16, 24, 3), dtype=np.uint8)
    wall = cv2.resize(wall, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    labels = []
    for i in range(FRAMES):
        picture, there = wall.copy(), i // 5 % 2 == 0
        if there:
            person(picture, OWN, (250, 20, 20))
        cv2.imwrite(str(folder / f'{i:03}.png'), picture)
        labels.append(Label(0.2 * i, {'people': 'one', 'nearest': 'right'} if there else
                            {'people': 'nobody', 'nearest': 'none'},
                            {'people': OWN, 'nearest': OWN} if there else {}, image=f'{i:03}.png'))
    write_labels(folder / 'labels.jsonl', labels, Header(recording='.', kind='images'))
    return folder


@pytest.fixture(scope='module')
def clip(folder):
    """Return that sequence, tracked."""
    sequence = material.open_all([folder], ['real/people'])[0]
    found = {sequence.stamp_of(one): one for one in sequence.labels}
    return material.Clip(sequence, found, tuple(found), track(sequence, 6.0, 0))


def pasted(height, x, since_s=100.0, until_s=0.0, speed=0.0):
    pixels = np.full((40, 16, 4), 255, np.uint8)
    return PastedObject(pixels, Region(x, 150.0 - height, 30.0, height), speed, since_s, until_s)


@pytest.mark.parametrize('objects, first, last', [
    ([], ('one', 'right'), ('nobody', 'none')),
    ([pasted(60, 10)], ('one', 'right'), ('nobody', 'none')),              # too small to count
    ([pasted(80, 10)], ('two', 'right'), ('one', 'left')),                 # the other is taller
    ([pasted(100, 10)], ('two', 'left'), ('one', 'left')),
    ([pasted(100, 105), pasted(80, 10)], ('three or more', 'ahead'), ('two', 'ahead')),
    ([pasted(100, x) for x in (0, 50, 105, 200)], ('three or more', 'left'),
     ('three or more', 'left')),                                          # as many as have names
    ([pasted(100, 235)], ('one', 'right'), ('nobody', 'none')),            # out of sight
    ([pasted(100, 10, 9.0, 1.0)], ('one', 'right'), ('nobody', 'none'))])  # gone
def test_one_more_is_counted_and_the_tallest_is_where_it_is(clip, objects, first, last):
    added = PastedObjects(objects, RULES)
    for stamp, (people, nearest) in ((clip.frames[0], first), (clip.frames[-1], last)):
        assert added.now(clip, stamp) == {'people': people, 'nearest': nearest}


def test_the_cloud_saw_a_pasted_object_where_it_was_then(clip):
    rng = np.random.default_rng(0)
    stamp, seen = clip.frames[-1], clip.frames[-1] - 2 * NS
    come, gone = pasted(100, 10, since_s=1.0), pasted(100, 10, since_s=9.0, until_s=1.0)
    moved = pasted(100, 10, speed=-50.0)
    assert PastedObjects([come], RULES).past(clip, seen, stamp, rng).facts['people'] == 'nobody'
    told = PastedObjects([gone], RULES).past(clip, seen, stamp, rng)
    assert told.facts == {'people': 'one', 'nearest': 'left'}
    assert abs(told.regions['nearest'].x - 10) < 40
    told = PastedObjects([moved], RULES).past(clip, seen, stamp, rng)
    assert told.facts['nearest'] == 'ahead' and told.regions['nearest'].x > 75


def test_what_was_there_keeps_its_region_beside_a_smaller_pasted_object(clip):
    stamp = clip.frames[4]
    seen = next(s for s in clip.tracks.keyframes if s > 0)
    told = PastedObjects([pasted(80, 10)], RULES).past(clip, seen, stamp, np.random.default_rng(0))
    assert told.facts == {'people': 'two', 'nearest': 'right'}
    assert told.regions['nearest'].w == pytest.approx(clip.tracks.boxes[seen, 'nearest'].w)
    assert told.carried['nearest'].x == pytest.approx(
        clip.tracks.regions[stamp][seen, 'nearest'].x)
    assert told.regions['people'].x < 40 and told.regions['people'].w > 120, 'around both'


def test_a_thing_is_cut_out_of_what_is_behind_it(clip):
    cut = cut_out(clip.sequence.image(clip.frames[0]), OWN)
    truth = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    person(truth, OWN, (255, 255, 255))
    x, y, w, h = (int(v) for v in (OWN.x, OWN.y, OWN.w, OWN.h))
    wrong = np.abs(cut[..., 3].astype(int) - truth[y:y + h, x:x + w, 0]) > 127
    assert cut.shape == (h, w, 4) and wrong.mean() < 0.08
    assert cut_out(clip.sequence.image(clip.frames[0]), replace(OWN, x=-4.0)) is None


def test_pasted_objects_are_where_they_are_said_to_be(clip):
    found = cut_objects([clip], RULES, np.random.default_rng(0))
    empty, counts = clip.sequence.image(clip.frames[-1]), set()
    for seed in range(20):
        frame, added = found.paste(empty, np.random.default_rng(seed))
        changed = np.abs(frame.astype(int) - empty).max(axis=2) > 40
        beside = changed.copy()
        counts.add(added.now(clip, clip.frames[-1])['people'])
        for one in added.objects:
            box = one.seen(0.0, (WIDTH, HEIGHT))
            if box is not None:
                x, y = int(box.x), int(box.y)
                part = np.s_[y:y + int(box.h) + 1, x:x + int(box.w) + 1]
                assert changed[part].mean() > 0.2
                beside[part] = False
        # What sticks out a bit only is there, though it does not count.
        assert beside.mean() < 0.03
    assert counts == {'nobody', 'one', 'two', 'three or more'}


def test_samples_have_pasted_objects_now_and_before(clip):
    class Fixed(Delays):
        def draw(self, rng, period_s):
            return 1.0
    found = cut_objects([clip], RULES, np.random.default_rng(0))
    last = replace(clip, frames=clip.frames[-1:])
    cloud = SimulatedCloud(Fixed(''), 0.0, 0.0, {'people': 'nobody', 'nearest': 'none'})
    sampler = Sampler([last], cloud, Variety(pasted=0.99, amount=0.0, copy_paste=found))
    rng = np.random.default_rng(1)
    examples = [sampler.varied(last, last.frames[0], rng) for _ in range(40)]
    now = [e.facts[0].value for e in examples]
    told = [f.value for e in examples for f in e.context.facts if f.key == 'people']
    assert len(told) > 30
    assert len(set(now)) == 4 and len(set(told)) >= 3
    assert any('nearest' in e.context.focus for e in examples)


@pytest.mark.parametrize('rule, more, says', [
    ('people: {count: [person]}\n', (), 'nothing can be cut out; it needs a key of side'),
    (RULE_FILE, ('--stills',), 'pasted objects have a past, and --stills have none'),
    ('light: {side: [person]}\n', (), 'query scene has no such key')])
def test_faults_are_told_with_a_remedy(folder, tmp_path, capsys, rule, more, says):
    (tmp_path / 'rule.yaml').write_text(rule)
    assert main.main(['--labels', str(folder), '--profile', 'real/people', '--out',
                      str(tmp_path / 'out'), '--validation', '0.3', '--paste-rule',
                      str(tmp_path / 'rule.yaml'), *more]) == 1
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_too_short_a_sequence_is_told_with_the_gap(clip):
    some = clip.sequence.labels[:16]
    with pytest.raises(ValueError, match=r'for 2 s before what validates are left out, and the '
                                         r'longest sequence has 3\.0 s; give a smaller share'):
        material.split([replace(clip.sequence, labels=some)], ['0.4'])


def test_nothing_is_pasted_without_a_thing_that_can_be_told(clip):
    empty = replace(clip, frames=clip.frames[-3:])
    assert cut_objects([empty], RULES, np.random.default_rng(0)) is None
    assert isinstance(cut_objects([clip], RULES, np.random.default_rng(0)), CopyPaste)
