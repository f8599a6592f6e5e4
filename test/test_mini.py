# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""The miniature: world, samples, and the two shipped checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest

from spotvlm_ros.method.facts import Region
from spotvlm_ros.mini import dataset, models
from spotvlm_ros.mini.world import CONDITIONS, HEIGHT, SCENE, WIDTH
from spotvlm_ros.mini.worlds import make_world

SHIPPED = (models.EDGE, models.CLOUD)


@pytest.mark.parametrize('name', WORLDS)
@pytest.mark.parametrize('condition', CONDITIONS)
def test_a_frame_is_a_function_of_its_reference(name, condition):
    first, again = (make_world(name, 7, condition) for _ in range(2))
    frame = first.frame(333)
    assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8
    first.frame(12)
    assert np.array_equal(frame, again.frame(333))
    assert first.facts(333, 5) == again.facts(333, 5)
    assert not np.array_equal(frame, make_world(name, 8, condition).frame(333))


@pytest.mark.parametrize('name', WORLDS)
def test_labels_fit_the_queries_and_the_frame(name):
    world = make_world(name, 3)
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
            assert (fact.region is None) == (fact.value == 'none')


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


def test_unknown_world_and_condition_name_the_known():
    with pytest.raises(ValueError, match='driving'):
        make_world('moon', 1)
    with pytest.raises(ValueError, match='night'):
        make_world('driving', 1, 'fog')


def test_seeds_of_train_tune_and_test_are_disjoint():
    ranges = (dataset.TRAIN_SEEDS, dataset.TUNE_SEEDS, dataset.TEST_SEEDS)
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
    assert min(ages) >= 0.3 and 1.5 < np.median(ages) < 3.5 and max(ages) <= 6.0
    assert 0.01 < wrong / total < 0.15


def test_cloud_text_is_qwen_style_json():
    facts = make_world('driving', 5).facts(700, 0)
    entries = json.loads(dataset.cloud_text(SCENE, facts, ''))
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
    return models.resolve(shape.name)


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
    tiles = shape.tiles ** 2 + 1 if shape.tiles > 1 else 1
    assert ids.count(image) == tiles * shape.tokens_per_image
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
