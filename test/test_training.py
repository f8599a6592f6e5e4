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
"""`spotvlm train --labels`: samples are what the robot sees, variety is honest, runs go on."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.config.profiles import load_profile
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.labels.schema import Header, Label, write_labels
from spotvlm_ros.method.facts import Context, Fact, NS, Region, Source, Turn
from spotvlm_ros.method.guard import OFF
from spotvlm_ros.method.transfer import Transfer
from spotvlm_ros.mini.training.fit import Plan
from spotvlm_ros.mini.training.rendering import PER_JOB, SILENT, Store
from spotvlm_ros.training import learners, main, material, pasting, pasts
from spotvlm_ros.training.coach import Coach, Point
from spotvlm_ros.training.context import SimulatedCloud
from spotvlm_ros.training.delays import Delays, delays_of
from spotvlm_ros.training.material import keyframe_before
from spotvlm_ros.training.samples import answer_ids, Example, LabelJob, mirrored, Sampler, Variety
from spotvlm_ros.training.student import (
    add_adapters, freeze, made_student, open_student, room_for)
from spotvlm_ros.training.tracks import track
import tiny
import torch

COLOURS = {'red': (220, 30, 30), 'green': (30, 200, 60)}
WIDTH, HEIGHT, FRAMES = 160, 96, 20
PROFILE = """
/**:
  ros__parameters:
    queries: [scene]
    scene:
      prompt: Which light is there?
      format: facts
      keys: [light, lane]
      choices: {light: [none, red, green], lane: [left, right]}
      ttl_s: {default: 9.0}
"""


def light_at(i: int) -> tuple[str, Region | None]:
    """Return value and place of the light of a frame."""
    value = ('red', 'green', 'none')[i // 7]
    return value, None if value == 'none' else Region(30.0 + 2 * i, 20.0 + i // 2, 16.0, 24.0)


def write_world(folder: Path, seed: int = 0) -> Path:
    """Write a folder of frames: a light moves over a textured wall, and changes."""
    folder.mkdir(parents=True)
    wall = np.random.default_rng(seed).integers(60, 120, (12, 20, 3), dtype=np.uint8)
    wall = cv2.resize(wall, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    labels = []
    for i in range(FRAMES):
        value, box = light_at(i)
        picture = wall.copy()
        if box is not None:
            x, y, w, h = int(box.x), int(box.y), int(box.w), int(box.h)
            picture[y:y + h, x:x + w] = 20
            picture[y + 4:y + h - 4, x + 3:x + w - 3] = COLOURS[value]
        cv2.imwrite(str(folder / f'{i:03d}.png'), picture[:, :, ::-1])
        facts = {'light': value} if i % 5 == 4 else {'light': value, 'lane': 'left'}
        labels.append(Label(0.4 * i, facts, {'light': box} if box else {}, image=f'{i:03d}.png'))
    write_labels(folder / 'labels.jsonl', labels,
                 Header(recording='.', kind='images', licence='CC0-1.0'))
    return folder


@pytest.fixture(scope='module')
def worlds(tmp_path_factory):
    """Return a profile, and a folder with two sequences."""
    root = tmp_path_factory.mktemp('worlds')
    (root / 'profile.yaml').write_text(PROFILE)
    for seed, name in enumerate(('north', 'south')):
        write_world(root / 'sets' / name, seed)
    return root


@pytest.fixture(scope='module')
def clips(worlds):
    """Return both sequences, tracked."""
    found = material.open_all([worlds / 'sets'], [str(worlds / 'profile.yaml')])
    return [material.Clip(s, labels, tuple(labels), track(s, 6.0, 0)) for s in found
            if (labels := {s.stamp_of(one): one for one in s.labels})]


@pytest.fixture(scope='module')
def student():
    """Return the shipped edge model, to be taught."""
    return open_student('spot-mini-edge')


def exact(seconds: float) -> SimulatedCloud:
    """Return a cloud without errors whose answers are so old, and no others."""
    class Fixed(Delays):
        def draw(self, rng, period_s):
            return seconds
    return SimulatedCloud(Fixed(''), 0.0, 0.0, {'light': 'none'})


@pytest.mark.parametrize('age_s', [0.8, 2.0, 4.0])
def test_a_context_is_that_of_the_robot(clips, age_s):
    """The same answers through Transfer, frame by frame, leave the same facts and regions."""
    clip, rng = clips[0], np.random.default_rng(0)
    compared = dropped = 0
    for stamp in clip.frames[10:]:
        context = exact(age_s).context(clip, stamp, None, rng)
        transfer = Transfer([clip.query])
        sent = {fact.stamp_ns for fact in context.facts} | {keyframe_before(clip, stamp, age_s)}
        for frame in clip.frames:
            if frame > stamp:
                break
            transfer.frame(frame, clip.sequence.image(frame))
        for past in sorted(sent):
            transfer.add(Turn(clip.query.id, past, Source.CLOUD, tuple(
                Fact(key, value, past, region=clip.tracks.boxes.get((past, key)))
                for key, value in clip.labels[past].facts.items())))
        transfer.frame(stamp + 1, clip.sequence.image(stamp))
        real = transfer.context(clip.query.id, stamp + 1)
        assert {f.key: (f.value, f.stamp_ns) for f in real.facts} == {
            f.key: (f.value, f.stamp_ns) for f in context.facts}
        for key, region in context.focus.items():
            assert region.iou(real.focus[key]) > 0.8, (key, region, real.focus[key])
            compared += 1
        assert context.focus.keys() == real.focus.keys() and context.dropped == real.dropped
        dropped += bool(context.dropped)
    assert compared and dropped


@pytest.mark.parametrize('profile', ['real/digits', 'real/lights', 'hri', 'driving'])
def test_there_is_room_for_every_answer(student, profile):
    """A value that takes more tokens alone may take fewer behind its key."""
    for query in (q for q in load_profile(profile).queries() if q.choices):
        for key, values in query.choices.items():
            for value in values:
                example = Example(np.zeros((48, 48, 3), np.uint8), query, Context(query.id, 0, ()),
                                  0, tuple(Fact(k, value if k == key else v[0], 0)
                                           for k, v in query.choices.items()))
                assert len(answer_ids(student.edge, example)[0]) <= room_for(
                    student, [query]).answer


def test_a_sample_is_what_the_robot_gives_its_model(clips, student, monkeypatch):
    room = room_for(student, [clips[0].query])
    store = Store(room, PER_JOB)
    job = LabelJob(student.edge, Sampler(clips, exact(1.0), Variety()), store, 1, True)
    job.render(0)
    robot = EdgeModel.load(EdgeConfig(guard_odds=OFF))
    robot.use_processor()
    given = []
    monkeypatch.setattr(robot.inputs, 'process', lambda chat, views: given.append(
        type(robot.inputs).process(robot.inputs, chat, views)) or given[-1])
    rng = np.random.default_rng([1, 0])
    rng.random()
    job.sampler.draw(rng)
    for i in range(12):
        example = job.sampler.plain(*job.sampler.frames[i], rng)
        for variant, context in enumerate((None, example.context)):
            robot.answer(example.frame, example.query, context, example.stamp_ns)
            ids = given[-1]['input_ids'][0].tolist()
            start = int(store.start[i, variant])
            assert store.ids[i, variant, :start].tolist() == ids
            pixels = store.images[i, [0, 1 + variant]].transpose(0, 3, 1, 2) / 127.5 - 1.0
            assert np.abs(given[-1]['pixel_values'][0].numpy() - pixels).max() < 1e-5
            told = robot.inputs.processor.tokenizer.decode(
                store.ids[i, variant, start:store.length[i, variant] - 1])
            assert told.startswith(f'light: {example.facts[0].value}\nlane: ')
        unknown = store.slots[i, :store.length[i, 0] - store.start[i, 0]] == SILENT
        assert unknown.any() == (i % 5 == 4), 'a value that nobody knows is not learnt'


def test_what_is_pasted_is_where_and_what_it_is_said_to_be(clips):
    patches = pasting.gather(clips, 'light', np.random.default_rng(0))
    assert patches.absent == 'none' and set(patches.by_value) == set(COLOURS)
    clip, rng, seen = clips[0], np.random.default_rng(1), []
    for i in range(120):
        stamp = clip.frames[i % FRAMES]
        before, label = clip.sequence.image(stamp), clip.labels[stamp]
        done = patches.paste(before, label, rng)
        if done is None:
            continue
        after, pasted = done
        place = pasted.place
        x, y = int(place.x + place.w / 2), int(place.y + place.h / 2)
        changed = np.argwhere((after != before).any(axis=2))
        assert pasted.region is None or changed.size, 'nothing was pasted'
        if pasted.region is None:
            assert pasted.value == 'none'
            assert np.abs(after[y, x].astype(int) - COLOURS[label.facts['light']]).max() > 40
        else:
            middle = after[y - 1:y + 2, x - 1:x + 2].reshape(-1, 3).astype(int).mean(axis=0)
            assert (middle[0] > middle[1]) == (pasted.value == 'red'), (pasted, middle)
            top, bottom = changed.min(axis=0), changed.max(axis=0)
            assert top[1] <= x <= bottom[1] and top[0] <= y <= bottom[0]
        seen.append((label.facts['light'], pasted.value))
    assert {('red', 'green'), ('green', 'red'), ('none', 'red'), ('red', 'none')} <= set(seen)


@pytest.mark.parametrize('miss', [(40.0, -12.0), None])
def test_the_past_of_what_is_pasted_is_that_of_its_sequence(clips, monkeypatch, miss):
    """Where flow misses the things of a sequence or loses them, it does so with pasted ones."""
    clip, rng = clips[0], np.random.default_rng(3)
    boxes, tracks = {s: one.regions['light'] for s, one in clip.labels.items()
                     if one.regions}, clip.tracks
    regions = {s: {} if miss is None or s not in boxes else {
        name: replace(boxes[s], x=boxes[s].x + miss[0], y=boxes[s].y + miss[1])
        for name in tracks.boxes if name[0] < s} for s in tracks.regions}
    clip = replace(clip, tracks=replace(tracks, regions=regions))
    monkeypatch.setattr(pasts, 'MADE_UP', 0.0)
    region = Region(70.0, 40.0, 16.0, 24.0)
    pasted = pasting.Pasted('light', 'red', region, region, ('green', 'none', 'red'))
    seen, values = 0, []
    for _ in range(60):
        context = exact(1.2).context(clip, clip.frames[13], pasted, rng)
        values += [fact.value for fact in context.facts if fact.key == 'light']
        if 'light' in context.focus:
            assert miss is not None, 'a region that flow loses is lost'
            focus, seen = context.focus['light'], seen + 1
            assert (focus.x - region.x, focus.y - region.y) == pytest.approx(miss)
    assert bool(seen) == (miss is not None)
    changed = np.mean([clip.labels[s].facts != clip.labels[clip.frames[i - 3]].facts
                       for i, s in enumerate(clip.frames) if s in boxes and i >= 3])
    assert values and abs(np.mean([v != 'red' for v in values]) - changed) < 0.2


def test_what_comes_often_is_pasted_as_often_as_it_is_asked_for():
    thing = np.full((8, 8, 3), 255, np.uint8)
    by_value = {value: [pasting.Patch(value, thing, Region(1, 1, 6, 6))] * n
                for value, n in (('green', 64), ('red', 4))}
    for balance, share in ((0.0, 4 / 68), (0.5, 0.2), (1.0, 0.5)):
        patches = pasting.Patches('light', by_value, [(0.5, 0.5, 0.1)], balance=balance)
        rng = np.random.default_rng(1)
        values = [patches.paste(np.zeros((96, 96, 3), np.uint8), Label(0.0, {}, {}), rng)[1].value
                  for _ in range(500)]
        assert abs(values.count('red') / 500 - share) < 0.06


def test_a_mirrored_frame_exchanges_sides_values_and_regions(clips):
    sampler = Sampler(clips, exact(0.4), Variety())
    example = sampler.plain(clips[0], clips[0].frames[5], np.random.default_rng(2))
    turned = mirrored(example, {'left': 'right', 'right': 'left'})
    facts = {fact.key: fact.value for fact in turned.facts}
    assert facts == {'light': 'red', 'lane': 'right'}
    assert {f.key: f.value for f in turned.context.facts}['lane'] == 'right'
    before, after = example.context.focus['light'], turned.context.focus['light']
    assert after == replace(before, x=WIDTH - before.x - before.w)
    assert (turned.frame[:, ::-1] == example.frame).all()
    again = mirrored(turned, {'left': 'right', 'right': 'left'})
    assert again.context.focus['light'].iou(before) == pytest.approx(1.0)
    assert again.facts == example.facts


def test_a_frame_that_is_moved_takes_its_regions_along(clips):
    sampler = Sampler(clips, exact(0.4), Variety(amount=1.0))
    clip, rng, seen = clips[0], np.random.default_rng(2), 0
    for _ in range(40):
        example = sampler.varied(clip, clip.frames[5], rng)
        region = example.context.focus['light'].clipped(WIDTH, HEIGHT)
        if region is None or region.w < 8:
            continue
        x, y = int(region.x + region.w / 2), int(region.y + region.h / 2)
        r, g, b = example.frame[y, x].astype(int)
        assert r > 100 > g, (example.context.focus, (r, g, b))
        seen += 1
    assert seen > 20


def command(worlds: Path, out: Path, *more: str) -> list[str]:
    """Return a command line that trains for a few steps."""
    return ['--labels', str(worlds / 'sets'), '--profile', str(worlds / 'profile.yaml'),
            '--validation', 'south', '--out', str(out), '--device', 'cpu', '--workers', '1',
            '--frames', '40', '--first', '40', '--steps', '3', '--batch', '4', '--score', '4',
            *more]


@pytest.mark.parametrize('right,best', [
    ([0.9, 0.4, 0.5, 0.6, 0.7, 0.6, 0.5], 60), ([0.3], 10), ([0.5, 0.4], 20)])
def test_one_validation_that_did_well_by_chance_is_not_the_best(tmp_path, right, best):
    """The mean of three decides, as soon as there are three; of fewer, all there are."""
    curve = [Point(10 * i, 0.0, {'context': 0.1}, {'context': share})
             for i, share in enumerate(right, 1)]
    coach = Coach(None, Plan(1, 1, 1.0, 1.0, 1), tmp_path, torch.nn.Linear(1, 1), curve=curve)
    assert coach.load_best().step == best


def test_a_training_that_is_cut_off_goes_on(worlds, tmp_path, monkeypatch, capsys):
    out, learn, steps = tmp_path / 'out', learners.PlainLearner.learn, []

    def counted(self):
        steps.append(self)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return learn(self)
    monkeypatch.setattr(learners.PlainLearner, 'learn', counted)
    assert main.main(command(worlds, out)) == 1
    assert '--resume' in capsys.readouterr().err
    assert main.main(command(worlds, out)) == 1
    assert 'in use' in capsys.readouterr().err
    assert main.main(command(worlds, out, '--resume', '--batch', '5')) == 1
    assert '--batch 4' in capsys.readouterr().err
    assert main.main(command(worlds, out, '--resume')) == 0
    assert len(steps) == 4, 'two steps are left, after the one that was done and the one cut off'
    record = json.loads((out / 'training_log.json').read_text())
    assert [line['step'] for line in record['log']] == [1, 2, 3]
    assert record['accuracy'].keys() == {'alone', 'context', 'cloud held'}
    text = (out / 'README.md').read_text()
    assert 'license: other' in text and 'CC0-1.0' in text and 'north' in text
    assert (out / 'training.png').stat().st_size > 5000
    answer = EdgeModel.load(EdgeConfig(model=str(out))).answer(
        np.zeros((HEIGHT, WIDTH, 3), np.uint8), material.open_all(
            [worlds / 'sets' / 'north'], [str(worlds / 'profile.yaml')])[0].query, None, 0)
    assert {f.key for f in answer.facts} == {'light', 'lane'}


@pytest.mark.parametrize('more, says', [
    (['--validation', 'east'], 'there is no such sequence; name some of north, south'),
    (['--validation', 'north', 'south'], 'no sequence is left to train on'),
    (['--mirror', 'left:up'], '--mirror up: no key has such a value; name two of green, left'),
    (['--paste', 'lane'], 'no label to train on has a region of that key; use light'),
    (['--delays', '/nowhere'], 'neither a trace nor a recording'),
    (['--device', 'cuda'], 'finds no GPU; use --device cpu'),
    (['--out', '/proc/nowhere/out'], 'nowhere'),
    (['--profile', 'driving'], 'facts.lane: query scene has no such key')])
def test_faults_are_one_line_with_a_remedy(worlds, tmp_path, capsys, more, says):
    if 'cuda' in more and torch.cuda.is_available():
        pytest.skip('there is a GPU')
    assert main.main(command(worlds, tmp_path / 'out', *more)) == 1
    assert not list((tmp_path / 'out').glob('*')), 'nothing is left behind by what did not begin'
    error = capsys.readouterr().err.splitlines()[-1]
    assert says in error and error.startswith('error: ')


def test_one_value_teaches_nothing(clips):
    same = [replace(c, labels={s: replace(one, facts={'light': 'red'})
                               for s, one in c.labels.items()}) for c in clips]
    with pytest.raises(ValueError, match='says light: red; nothing can be learned'):
        material.split([replace(c.sequence, labels=list(c.labels.values())) for c in same],
                       ['south'])


def test_measured_delays_are_those_of_the_recording(tmp_path):
    lines = [{'event': 'turn', 'arrived_ns': int(late * NS) + 5 * NS,
              'turn': {'stamp_ns': 5 * NS, 'source': source}}
             for late, source in ((1.5, 2), (2.5, 2), (0.1, 1), (99.0, 2))]
    (tmp_path / 'context.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n{"torn')
    delays = delays_of(str(tmp_path), 2.0)
    assert delays.measured == (1.5, 2.5)
    ages = [delays.draw(np.random.default_rng(i), 1.0) for i in range(40)]
    assert min(ages) >= 1.5 and max(ages) <= 3.5
    assert delays_of('never', 2.0).draw(np.random.default_rng(0), 1.0) is None


@pytest.mark.parametrize('family', ['smolvlm', 'qwen2_5_vl'])
def test_adapters_are_trained_and_merged(family, clips):
    pytest.importorskip('peft', reason='pip install peft')
    student = made_student(Path('tiny'), *tiny.checkpoint(family))
    kept = {n: w.clone() for n, w in student.model.named_parameters()}
    add_adapters(student, vision=True)
    sampler = Sampler(clips, exact(1.0), Variety())
    held_out = [sampler.plain(clips[0], s, np.random.default_rng(0))
                for s in clips[0].frames[5:7]]
    learner = learners.FamilyLearner(student, sampler, held_out, Plan(2, 3, 1e-2, 1e9, 1), 'cpu')
    before = learner.validate(True)[0]
    optimizer = torch.optim.SGD(learner.parameters, lr=0.5)
    assert all('lora' in n for n, w in student.model.named_parameters() if w.requires_grad)
    for _ in range(2):
        optimizer.zero_grad()
        learner.learn()
        optimizer.step()
    after = learner.validate(True)[0]
    assert after != before
    merged = student.merged()
    assert not [n for n, _ in merged.named_parameters() if 'lora' in n]
    changed = {n for n, w in merged.named_parameters() if not torch.equal(w, kept[n])}
    assert changed and not [n for n in changed if 'vision' in n or 'visual' in n]
    assert learner.validate(True)[0] == pytest.approx(after, rel=1e-3), 'merging changes nothing'


def test_a_checkpoint_comes_out_as_exact_as_it_went_in(tmp_path):
    model, processor = tiny.checkpoint('smolvlm')
    student = made_student(tmp_path, model.bfloat16(), processor)
    assert student.model.dtype is torch.float32, 'it learns in float32'
    student.save(tmp_path / 'out')
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['dtype'] == 'bfloat16'


def test_frozen_eyes_stay_as_they_are(student):
    freeze(student, vision=True)
    free = [n for n, w in student.model.named_parameters() if w.requires_grad]
    student.model.requires_grad_(True)
    assert free and not [n for n in free if 'vision_model' in n]
    assert [n for n in free if 'connector' in n]


def test_larger_views_start_from_the_same_positions():
    student = open_student('spot-mini-edge', 64)
    assert student.edge.view_size == (64, 64)
    name = 'model.vision_model.embeddings.position_embedding.weight'
    assert len(student.model.state_dict()[name]) == 64


def test_the_size_of_views_is_that_of_the_miniature_alone(tmp_path):
    for part in tiny.checkpoint('smolvlm'):
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match='--size is for checkpoints of the shape'):
        open_student(str(tmp_path), 64)
