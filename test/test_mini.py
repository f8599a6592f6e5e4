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
"""The miniature: world, samples, and the two shipped checkpoints."""

from dataclasses import replace
import json
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from spotvlm_ros.config.profiles import load_profile
from spotvlm_ros.method.facts import Region
from spotvlm_ros.mini import models, shipped, worlds
from spotvlm_ros.mini.driving import digits
from spotvlm_ros.mini.driving.labels import labelled_things
from spotvlm_ros.mini.driving.scene import HEIGHT, SCENE, Thing, WIDTH
from spotvlm_ros.mini.training import dataset
from spotvlm_ros.mini.worlds import make_world, NAMES, TEST_SEEDS, TRAIN_SEEDS, TUNE_SEEDS

SHIPPED = (models.EDGE, models.CLOUD)


@pytest.mark.parametrize('model, prompt, noted', [
    ('/x/checkpoints/spot-mini-edge', 'Are there cats?', True), ('spot-mini-cloud', 'Who?', True),
    ('spot-mini-edge', 'Describe the road.', False), ('/models/SmolVLM', 'Cats?', False)])
def test_an_answer_of_a_miniature_to_what_it_cannot_know_is_noted(model, prompt, noted):
    """Asked about cats it answered: stop."""
    note = shipped.beyond_miniature(model, prompt)
    assert bool(note) == noted and ('What is on the road?' in note) == noted


@pytest.mark.parametrize('profile', ['hri', 'real/digits', 'real/gestures'])
def test_the_questions_of_its_profiles_are_those_that_a_checkpoint_knows(profile):
    found = load_profile(profile)
    assert found.edge.model == 'spot-mini-edge-hri'
    assert 'hands near the camera' in shipped.note_on(found.edge.model)
    for query in found.queries():
        assert not shipped.beyond_miniature(found.edge.model, query.prompt)


@pytest.mark.parametrize('condition', worlds.CONDITIONS['driving'])
def test_a_frame_is_a_function_of_its_reference(condition):
    name = 'driving'
    first, again = (make_world(name, 7, condition) for _ in range(2))
    frame = first.frame(333)
    assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8
    first.frame(12)
    assert np.array_equal(frame, again.frame(333))
    assert first.facts(333, 5) == again.facts(333, 5)
    assert not np.array_equal(frame, make_world(name, 8, condition).frame(333))


@pytest.mark.parametrize('name, condition', [
    (n, c) for n in NAMES for c in worlds.CONDITIONS[n] if c != 'real'])  # needs photographs
def test_labels_fit_the_queries_and_the_frame(name, condition):
    world = make_world(name, 3, condition)
    queries = {q.id: q for q in world.queries}
    for index in range(0, 2600, 130):  # past the end of the first episode, too
        answers = world.answers(index, 42)
        assert set(answers) == set(queries)
        for query_id, (facts, text) in answers.items():
            query = queries[query_id]
            assert bool(text) == (query.format == 'text')
            assert [f.key for f in facts] == list(query.keys)
            for fact in facts:
                assert fact.value in query.choices[fact.key] and fact.stamp_ns == 42
                if fact.region is not None:
                    assert fact.region.clipped(WIDTH, HEIGHT) == fact.region
        for fact in answers['scene'][0]:
            assert (fact.region is None) == (fact.value == 'none' or fact.key == 'people')


def test_labels_are_where_the_picture_says():
    """A red lamp is drawn inside the region of each red light by day; found by colour."""
    seen = 0
    for seed in range(40):
        world = make_world('driving', seed, 'day')
        fact = world.facts(600, 0)[0]
        if fact.value != 'red' or fact.region.w < 12:
            continue
        r = fact.region
        patch = world.frame(600)[int(r.y):int(r.y + r.h), int(r.x):int(r.x + r.w)].astype(int)
        red = (patch[:, :, 0] > 150) & (patch[:, :, 1] < 110) & (patch[:, :, 2] < 110)
        assert red.any(), f'seed {seed}'
        assert np.nonzero(red)[0].mean() < patch.shape[0] / 2, 'red is the upper lamp'
        seen += 1
    assert seen >= 3


def test_facts_change_at_a_realistic_rate():
    """Neither frozen (context alone would do) nor random (context could not help)."""
    changed = total = 0
    for seed in range(6):
        world = make_world('driving', seed)
        facts = [[f.value for f in world.facts(i, 0)] for i in range(0, 2400, 40)]
        for before, after in zip(facts, facts[1:]):
            changed += sum(a != b for a, b in zip(before, after))
            total += len(after)
    assert 0.1 < changed / total < 0.5


def test_what_is_hidden_is_not_labelled():
    """A pedestrian behind a vehicle, and the same beside it."""
    scene = make_world('driving', 3, 'day').scene(300)
    near, far = Thing('lead', 0.0, 0.0, 10.0, 1.85, 1.5, 'cruising'), Thing(
        'pedestrian', 0.2, 0.0, 16.0, 0.6, 1.75, 'crossing')
    hidden = replace(scene, things=(near, far))
    assert hidden.visible(far) < 0.5 and 'pedestrian' not in labelled_things(hidden)
    beside = replace(scene, things=(near, replace(far, x=4.0)))
    assert 'pedestrian' in labelled_things(beside) and 'lead' in labelled_things(beside)


@pytest.mark.parametrize('name', NAMES)
def test_follow_ends_where_the_labels_are(name):
    """Over a tenth of a second what is labelled before and after is the same thing."""
    world, compared = make_world(name, 11), 0
    for index in range(300, 2300, 50):
        now = {f.key: f.region for f in world.facts(index, 0) if f.region is not None}
        for key, region in world.follow(index - 2, index).items():
            if key in now:
                compared += 1
                assert region.iou(now[key]) > 0.5 or region.w > 1.5 * now[key].w, (index, key)
    assert compared > 40


def test_unknown_world_and_condition_name_the_known():
    with pytest.raises(ValueError, match='driving'):
        make_world('moon', 1)
    with pytest.raises(ValueError, match='night'):
        make_world('driving', 1, 'fog')


def test_seeds_of_train_tune_and_test_are_disjoint():
    ranges = (TRAIN_SEEDS, TUNE_SEEDS, TEST_SEEDS)
    for a in ranges:
        for b in ranges:
            assert a is b or a.stop <= b.start or b.stop <= a.start


def test_late_context_is_late_and_errs_sometimes():
    rng = np.random.default_rng(0)
    world = make_world('driving', 5)
    ages, wrong, total = [], 0, 0
    for index in range(300, 2300, 20):
        context = dataset.late_context(world, SCENE, index, rng)
        for fact in context.facts:
            ages.append((context.stamp_ns - fact.stamp_ns) / 1e9)
            then = {f.key: f.value for f in world.facts(round(fact.stamp_ns * 20 / 1e9), 0)}
            wrong += then[fact.key] != fact.value
            total += 1
    assert min(ages) >= 0.3 and 1.5 < np.median(ages) < 3.5 and max(ages) <= 9.0
    assert 0.01 < wrong / total < 0.15


def test_cloud_text_is_qwen_style_json():
    facts = make_world('driving', 5).facts(700, 0)
    entries = json.loads(dataset.cloud_text(SCENE, facts, '', (WIDTH, HEIGHT)))
    assert [e['label'] for e in entries] == list(SCENE.keys)
    for entry, fact in zip(entries, facts):
        assert entry['value'] == fact.value
        if fact.region is None:
            assert 'bbox_2d' not in entry
            continue
        x0, y0, x1, y1 = (v / 1000 for v in entry['bbox_2d'])
        box = Region(x0 * WIDTH, y0 * HEIGHT, (x1 - x0) * WIDTH, (y1 - y0) * HEIGHT)
        assert abs(box.x + box.w / 2 - fact.region.x - fact.region.w / 2) <= 0.03 * WIDTH


# -- the shipped checkpoints ---------------------------------------------------------------------

def folder(shape) -> Path:
    """Return the shipped checkpoint's folder."""
    return shipped.checkpoint_path(shape.name)


def test_checkpoints_are_small():
    size = sum(f.stat().st_size for s in SHIPPED for f in folder(s).iterdir())
    assert size <= 32e6


@pytest.mark.parametrize('shape,most', [(models.EDGE, 5e6), (models.CLOUD, 12e6)])
def test_checkpoint_loads_the_ordinary_way_and_has_its_papers(shape, most):
    transformers = pytest.importorskip('transformers')
    path = folder(shape)
    model = transformers.AutoModelForImageTextToText.from_pretrained(path)
    processor = transformers.AutoProcessor.from_pretrained(path)
    assert sum(p.numel() for p in model.parameters()) <= most
    text = processor.apply_chat_template(
        [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'Hello?'}]}],
        add_generation_prompt=True)
    inputs = processor(images=[np.zeros((480, 640, 3), np.uint8)], text=text,
                       return_tensors='pt')
    ids = inputs['input_ids'][0].tolist()
    image = processor.tokenizer.convert_tokens_to_ids('<image>')
    assert ids.count(image) == shape.images * shape.tokens_per_image
    log = json.loads((path / 'training_log.json').read_text())
    assert log['log'][-1]['loss'] < log['log'][0]['loss'] and log['accuracy']
    assert 'license: apache-2.0' in (path / 'README.md').read_text()


@pytest.mark.parametrize('shape', SHIPPED)
def test_training_and_the_processor_see_the_same_tokens(shape):
    """What training writes by hand for speed is what the shipped processor makes."""
    transformers = pytest.importorskip('transformers')
    processor = transformers.AutoProcessor.from_pretrained(folder(shape))
    chat = [{'role': 'user', 'content': [{'type': 'image'},
                                         {'type': 'text', 'text': SCENE.prompt}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    real = processor(images=[np.zeros((480, 640, 3), np.uint8)], text=text)['input_ids'][0]
    ours = processor.tokenizer(models.expand_images(shape, text),
                               add_special_tokens=False)['input_ids']
    assert list(real) == ours


def test_tokenizer_reads_any_text_back():
    transformers = pytest.importorskip('transformers')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder(models.EDGE))
    for text in ('light: red (2.5 s ago)', 'Ünï¢ode 你好 🚦', '{"a": [1, 2]}\n\n x'):
        assert tokenizer.decode(tokenizer(text)['input_ids']) == text


# -- training ------------------------------------------------------------------------------------

def test_tiles_of_training_are_those_of_the_processor():
    transformers = pytest.importorskip('transformers')
    processor = transformers.AutoProcessor.from_pretrained(folder(models.CLOUD))
    frame = make_world('driving', 4).frame(500)
    real = processor(images=[frame], text='<image>')['pixel_values'][0]
    ours = models.cut(models.CLOUD, frame).transpose(0, 3, 1, 2) / 127.5 - 1.0
    assert np.abs(np.asarray(real) - ours).max() < 1e-5


@pytest.mark.parametrize('shape', SHIPPED)
def test_the_fast_forward_pass_of_training_is_the_models_own(shape):
    torch = pytest.importorskip('torch')
    from spotvlm_ros.mini.training import fit, rendering
    tokenizer = models.build_tokenizer(dataset.corpus(6))
    models.add_tile_tags(tokenizer, models.CLOUD)
    torch.manual_seed(0)
    model = models.build_model(shape, tokenizer).eval()
    image = tokenizer.convert_tokens_to_ids('<image>')
    edge = shape is models.EDGE
    item = dataset.sample(make_world('driving', 2), 500, np.random.default_rng(0), SCENE)
    chat = dataset.edge_chat(item, item.context) if edge else dataset.cloud_chat(item)
    ids, start = rendering.encode(tokenizer, shape, *chat)
    n = ids.count(image) // shape.tokens_per_image
    tokens = torch.tensor([ids + [tokenizer.pad_token_id] * 7])
    pixels = torch.randn(1, n, 3, shape.image, shape.image)
    places = torch.arange(start - 1, len(ids) - 1)[None]
    with torch.no_grad():
        ours = fit.forward(model, fit.positions_of(model, shape.image), pixels, tokens, places)
        real = model(input_ids=tokens, attention_mask=(tokens != tokenizer.pad_token_id).long(),
                     pixel_values=pixels).logits[:, places[0]]
    assert torch.allclose(ours, real, atol=1e-4)


def test_the_training_command_runs_and_writes_checkpoints(tmp_path):
    pytest.importorskip('torch')
    done = subprocess.run(
        [sys.executable, '-m', 'spotvlm_ros.mini.training.train', '--device', 'cpu',
         '--frames', '40',
         '--first', '40', '--workers', '1', '--steps-edge', '3', '--batch-edge', '4',
         '--steps-cloud', '1', '--batch-cloud', '2', '--evaluate', '0', '--out', str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for shape in SHIPPED:
        log = json.loads((tmp_path / shape.name / 'training_log.json').read_text())
        assert log['log'][-1]['loss'] > 0
        assert (tmp_path / shape.name / 'model.safetensors').stat().st_size > 1e6


@pytest.mark.parametrize('text, ink', [
    ('30', 0.969), ('50', 1.010), ('80', 1.016), ('100', 1.398)])
def test_signs_look_the_same_whatever_opencv_writes(text, ink):
    canvas = np.full((60, 180, 3), 255, np.uint8)
    digits.write(canvas, text, (4.3, 5.6), 50.0, True, (0, 0, 0))
    assert (255 - canvas[..., 0].astype(float)).sum() / 255 / 50 ** 2 == pytest.approx(ink, 0.02)
    rows, columns = np.nonzero(canvas[..., 0] < 128)
    assert (rows.min(), rows.max() + 1) == pytest.approx((5.6, 55.6), abs=1.5)
    assert columns.max() + 1 - columns.min() == pytest.approx(
        50 * (digits.ADVANCE * (len(text) - 1) + 0.78), abs=4)
