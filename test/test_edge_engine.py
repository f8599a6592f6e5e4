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
"""The engine says what `generate` says, whatever it kept or drafted, and computes less."""

from dataclasses import replace

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge.cpu import TracedVisionTower
from spotvlm_ros.edge.engine import Engine
from spotvlm_ros.edge.families import ImageFeatures, model_family
from spotvlm_ros.edge.gpu.graphs import GraphBackend, LENGTHS
from spotvlm_ros.edge.grammar import DraftTree, FreeText, Logits, Slot, Template
from spotvlm_ros.edge.grammar import TemplateCompiler
from spotvlm_ros.edge.model import EdgeModel, expected_values, LastAnswer
from spotvlm_ros.edge.torch_backend import KVCache
from spotvlm_ros.method import focus
from spotvlm_ros.method.facts import Context, Fact, NS, Query
from spotvlm_ros.method.guard import OFF
from spotvlm_ros.mini.driving.scene import ACTION, DESCRIBE, SCENE
from spotvlm_ros.mini.training import dataset
from spotvlm_ros.mini.worlds import make_world, TUNE_SEEDS
import tiny
import torch

FACTS = Query('scene', 'What is on the road?', 'facts',
              {'light': ('red', 'green', 'none'), 'lead': ('none', 'braking')}, max_new_tokens=12)
CHOICE = Query('turn', 'Where to?', 'choice',
               {'turn': ('go', 'go left', 'go left now', 'stop')}, max_new_tokens=12)
TEXT = Query('text', 'Describe the road.', 'text', max_new_tokens=9)


@pytest.fixture(scope='module')
def pairs():
    """Return, per architecture, the engine decoding freely and `generate` on one checkpoint."""
    made = {}
    for family in tiny.MAKERS:
        model, processor = tiny.checkpoint(family)
        made[family] = (tiny.edge_model(model, processor, decoding='free'),
                        tiny.edge_model(model, processor, engine='generate'))
    return made


@pytest.fixture(scope='module')
def fixed(pairs):
    """Return the engine for GPUs, not captured; the next token is begun before one is read."""
    made = {}
    for family in tiny.FIXED:
        model, processor = pairs[family][0]._model, pairs[family][0]._input_processor.processor
        made[family] = tiny.edge_model(model, processor, decoding='free')
        backend = GraphBackend(model_family(model), tokens=512, capture=False)
        backend._looks_ahead = True
        made[family]._engine = Engine(backend)
    return made


@pytest.fixture(scope='module')
def mini():
    """Return the shipped model: constrained, free, and by `generate`."""
    config = EdgeConfig(guard_odds=OFF)
    return tuple(EdgeModel.load(c) for c in (
        config, replace(config, decoding='free'), replace(config, engine='generate')))


def frame_of(number):
    """Return a noisy picture."""
    return np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def tokens(model, frame, query, context, stamp=9 * NS):
    """Return the answer's tokens and the answer."""
    answer = model.answer(frame, query, context, stamp)
    return model._last_answers[query.id].tokens, answer


def contexts(query):
    """Return a strategy for contexts of a query, None included."""
    if query.format == 'text':
        return st.none() | st.builds(
            lambda t, s: Context(query.id, 9 * NS, text=t, text_stamp_ns=s * NS),
            st.sampled_from(['', 'a car', 'two cars ahead']), st.integers(4, 8))

    def build(values, stamp):
        return Context(query.id, 9 * NS, tuple(
            Fact(k, v, stamp * NS) for k, v in values.items() if v is not None))
    return st.none() | st.builds(build, st.fixed_dictionaries(
        {k: st.none() | st.sampled_from(v) for k, v in query.choices.items()}),
        st.integers(4, 8))


@pytest.mark.parametrize('family', tiny.MAKERS)
@given(st.data())
@settings(max_examples=10, deadline=None)
def test_tokens_are_those_of_generate(pairs, family, data):
    """Over frames and contexts that change or stay, in any order, with what was kept before."""
    fast, slow = pairs[family]
    for _ in range(data.draw(st.integers(1, 4))):
        query = data.draw(st.sampled_from([FACTS, CHOICE, TEXT]))
        context = data.draw(contexts(query))
        frame = frame_of(data.draw(st.integers(0, 3)))
        assert tokens(fast, frame, query, context)[0] == tokens(slow, frame, query, context)[0]


@pytest.mark.parametrize('family', tiny.FIXED)
@given(st.data())
@settings(max_examples=6, deadline=None)
def test_fixed_shapes_change_nothing(pairs, fixed, family, data):
    """What runs as a CUDA graph on a GPU, run as it is: filled up, one buffer for all queries."""
    model, slow = fixed[family], pairs[family][1]
    for _ in range(data.draw(st.integers(1, 4))):
        query = data.draw(st.sampled_from([FACTS, CHOICE, TEXT]))
        context = data.draw(contexts(query))
        frame = frame_of(data.draw(st.integers(0, 3)))
        assert tokens(model, frame, query, context)[0] == tokens(slow, frame, query, context)[0]


def test_warm_up_makes_the_passes_that_answers_need(fixed):
    """Also those of prompts between the shortest and the longest of the warm-up."""
    model = fixed['llava']
    model.warm_up([FACTS])
    before = set(model._engine.backend._graphs)
    assert {n for _, n, _ in before} >= {1, 2, 4, 8, 16}
    long = sorted(n for _, n, _ in before if n > 16)
    assert long == [n for n in LENGTHS if long[0] <= n <= long[-1]]
    for context in (None, Context('facts', 0, (Fact('light', 'red', 0),))):
        for number in range(3):
            model.answer(frame_of(number), FACTS, context, 0)
    assert set(model._engine.backend._graphs) == before


def test_a_prompt_that_does_not_fit_says_so(fixed):
    long = Query('text', 'word ' * 600, 'text')
    with pytest.raises(ValueError, match='shorten context_tokens'):
        fixed['idefics3'].answer(frame_of(0), long, None, 0)


@pytest.mark.parametrize('family', tiny.MAKERS)
def test_the_traced_tower_sees_exactly_what_the_tower_sees(pairs, family):
    fast, _ = pairs[family]
    engine = fast._engine
    traced = TracedVisionTower(engine.family)
    inputs = []
    for number in (0, 5):
        given = fast.model_inputs(frame_of(number), FACTS, None, 0)
        inputs.append(fast._input_processor(given.chat, given.images))
    with torch.inference_mode():
        for which in ([0], [0, 1], [1]):
            for each in inputs:
                part = engine.family.select_images(each, which)
                assert torch.equal(traced(part).embeddings,
                                   engine.family.encode_images(part).embeddings)
    assert len(traced._traces) == 2  # one image, two images


@pytest.mark.parametrize('tower, traced', [
    (lambda x: 2 * x + 1, True),
    (lambda x: 2 * x + float(x.mean()), False)])     # a trace takes the number for a constant
def test_a_trace_is_used_only_where_it_follows_the_tower(pairs, tower, traced, monkeypatch):
    monkeypatch.setattr('spotvlm_ros.edge.cpu.MAX_TRACED_S', 60.0)
    family = model_family(pairs['llava'][0]._model)
    calls = []

    def encode(inputs):
        calls.append(1)
        return ImageFeatures(tower(inputs['pixel_values'].flatten()))
    family.encode_images = encode
    vision_tower = TracedVisionTower(family)
    inputs = [{'pixel_values': torch.full((1, 3, 8, 8), value)} for value in (1.0, 2.0)]
    for each in inputs:
        assert torch.equal(vision_tower(each).embeddings, tower(each['pixel_values'].flatten()))
    before = len(calls)
    vision_tower(inputs[1])
    assert (len(calls) == before) == traced


@pytest.mark.parametrize('family', tiny.MAKERS)
def test_an_answer_may_hold_the_token_that_stands_for_an_image(pairs, family):
    """It is a word like any other there, when it is drafted too."""
    fast, slow = pairs[family]
    model = fast._model
    for number in (0, 1):
        want, _ = tokens(slow, frame_of(number), TEXT, None)
        for draft in ([model.config.image_token_id] * 3, want[:1] + [model.config.image_token_id]):
            tokens(fast, frame_of(1 - number), TEXT, None)
            fast._last_answers['text'] = LastAnswer(draft, (), None)
            assert tokens(fast, frame_of(number), TEXT, None)[0] == want


@pytest.mark.parametrize('family', tiny.MAKERS)
def test_the_tiny_checkpoints_look_at_the_picture(pairs, family):
    """Or the test above would show little."""
    _, slow = pairs[family]
    said = {tuple(tokens(slow, frame_of(n), FACTS, None)[0]) for n in range(4)}
    assert len(said) > 1


def test_attention_by_plain_matrix_products_gives_the_same():
    """Attention 'eager' takes other masks than 'sdpa'."""
    for family in ('idefics3', 'gemma3'):
        model, processor = tiny.checkpoint(family, attention='eager')
        fast = tiny.edge_model(model, processor, decoding='free')
        slow = tiny.edge_model(model, processor, engine='generate')
        for number in (0, 0, 1):
            assert (tokens(fast, frame_of(number), FACTS, None)[0]
                    == tokens(slow, frame_of(number), FACTS, None)[0])


@pytest.mark.parametrize('family', tiny.MAKERS)
@given(st.data())
@settings(max_examples=6, deadline=None)
def test_constrained_answers_are_always_complete(family, pairs, data):
    """Even of a model that knows nothing; each key is answered with one of its choices."""
    free, _ = pairs[family]
    model = tiny.edge_model(free._model, free._input_processor.processor)
    for _ in range(2):
        query = data.draw(st.sampled_from([FACTS, CHOICE]))
        query = Query(query.id, query.prompt, query.format, query.choices)
        answer = model.answer(frame_of(data.draw(st.integers(0, 3))), query,
                              data.draw(contexts(query)), 9 * NS)
        assert [f.key for f in answer.facts] == list(query.keys) and not answer.rejected
        assert all(0 < f.confidence <= 1 for f in answer.facts) and not answer.partial


@given(st.integers(0, 40), st.integers(0, 2**20), st.sampled_from([SCENE, ACTION, DESCRIBE]))
@settings(max_examples=12, deadline=None)
def test_forced_keys_change_nothing_where_the_model_keeps_to_the_form(mini, drive, seed, query):
    """On the worlds that the shipped model was trained for it always does."""
    constrained, free, slow = mini
    rng = np.random.default_rng(seed)
    item = dataset.sample(make_world('driving', TUNE_SEEDS[drive]),
                          int(rng.integers(300, 2300)), rng, query)
    for context in (item.context, None):
        want, answer = tokens(slow, item.frame, query, context, item.stamp_ns)
        assert not answer.rejected
        assert tokens(free, item.frame, query, context, item.stamp_ns)[0] == want
        assert tokens(constrained, item.frame, query, context, item.stamp_ns)[0] == want


def test_confidence_is_that_of_generate_where_the_form_is_certain(mini):
    """The shipped model is sure of keys and line ends; values have the same probability."""
    item = dataset.sample(make_world('driving', TUNE_SEEDS[3]), 700,
                          np.random.default_rng(1), SCENE)
    first, _, third = (m.answer(item.frame, SCENE, None, item.stamp_ns) for m in mini)
    assert [f.confidence for f in first.facts] == pytest.approx(
        [f.confidence for f in third.facts], abs=0.01)


def test_an_unchanged_scene_costs_one_pass_over_the_new_tokens(mini):
    """What comes before the pictures is cached; the answer is verified together with the rest."""
    model = mini[0]
    item = dataset.sample(make_world('driving', TUNE_SEEDS[3]), 700,
                          np.random.default_rng(1), SCENE)
    model.answer(item.frame, SCENE, item.context, item.stamp_ns)
    noisy = item.frame ^ np.uint8(1)
    again = model.answer(noisy, SCENE, item.context, item.stamp_ns)
    assert again.passes == 1 and again.computed_tokens < 110
    same = model.answer(noisy, SCENE, item.context, item.stamp_ns)
    assert same.passes == 1 and same.computed_tokens < 10, 'no pixel changed'
    tiny.assert_alike(same.facts, again.facts)


def test_the_clouds_news_are_drafted(mini):
    """When the context changed, its values are tried first, else the last answer."""
    old = Context('scene', 0, (Fact('light', 'red', 0), Fact('lead', 'none', 0)))
    new = Context('scene', 0, (Fact('light', 'red', 0), Fact('lead', 'braking', 0)))
    last = LastAnswer([], (Fact('light', 'green', 0), Fact('lead', 'none', 0)), old)
    assert expected_values(last, old) == {'light': 'green', 'lead': 'none'}
    assert expected_values(last, new) == {'light': 'green', 'lead': 'braking'}
    assert expected_values(None, old) == {'light': 'red', 'lead': 'none'}
    assert expected_values(last, None) == {'light': 'green', 'lead': 'none'}


def test_a_choice_costs_one_pass(pairs):
    """Though some choices are the beginning of others."""
    for free, _ in pairs.values():
        model = tiny.edge_model(free._model, free._input_processor.processor)
        said = set()
        for number in range(4):
            answer = model.answer(frame_of(number), CHOICE, None, 0)
            assert answer.passes == 1 and not answer.rejected
            said.add(answer.text)
        assert said <= set(CHOICE.choices['turn'])


def test_a_choice_scored_at_once_is_that_scored_step_by_step(pairs):
    """The tree of choices sees no more than each choice alone would."""
    free, slow = pairs['idefics3']
    model = tiny.edge_model(free._model, free._input_processor.processor)
    for number in range(6):
        answer = model.answer(frame_of(number), CHOICE, None, 0)
        inputs = slow._input_processor([{'role': 'user', 'content': [
            {'type': 'image'}, {'type': 'image'},
            {'type': 'text', 'text': 'Where to?\nOne of: go|go left|go left now|stop'}]}],
            _views(slow, frame_of(number)))
        template = model._templates.template(CHOICE, {})
        ids, probability = inputs['input_ids'][0].tolist(), 1.0
        with torch.inference_mode():
            while not template.done:
                logits = slow._model(**{**inputs, 'input_ids': torch.tensor([ids]),
                                        'attention_mask': torch.ones(1, len(ids))}).logits
                token, p = template.choose(Logits(logits[0, -1]))
                ids.append(token)
                probability *= p
        assert slow._decode(ids[inputs['input_ids'].shape[1]:]).strip() == answer.text
        assert answer.facts[0].confidence == pytest.approx(probability, abs=1e-4)


def _views(model, frame):
    return focus.views(frame, CHOICE, {}, model._view_size, model.focus)


def test_stop_is_asked_before_each_pass(pairs):
    fast, _ = pairs['idefics3']
    asked = []
    answer = fast.answer(frame_of(7), TEXT, None, 0, should_stop=lambda: len(asked) > 2 or
                         bool(asked.append(1)))
    assert answer.partial and len(fast._last_answers['text'].tokens) >= 3
    none = fast.answer(frame_of(7), TEXT, None, 0, should_stop=lambda: True)
    assert none.partial and none.text == '' and none.passes == 0
    assert not fast.answer(frame_of(7), TEXT, None, 0).partial


# -- grammar, without a model --------------------------------------------------------------------

ABC = [Slot('a', {'x': (1, 2), 'y': (1, 3)}), Slot('b', {'p': (4, 5), 'q': (4, 5, 6)})]


def logits(*best):
    """Return logits that prefer tokens in order."""
    row = torch.zeros(10)
    for i, token in enumerate(best):
        row[token] = 9.0 - i
    return Logits(row)


def test_template_forces_what_has_no_choice():
    template = Template(ABC, 9, {})
    assert template.draft().tokens == [1], 'up to the first decision'
    assert template.choose(logits(8))[0] == 1, 'forced, whatever the model would say'
    token, probability = template.choose(logits(8, 3, 2))
    assert token == 3 and probability == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert template.draft().tokens == [4, 5]
    assert [template.choose(logits(7))[0] for _ in range(2)] == [4, 5]
    assert template.forced_tokens() == [], 'it may end here or go on'
    assert template.draft().tokens == []
    assert template.choose(logits(6, 9))[0] == 6
    assert template.forced_tokens() == [9] and template.done


def test_a_template_drafts_what_is_expected_up_to_the_last_decision():
    assert list(Template(ABC, 9, {'a': 'y', 'b': 'p'}).draft().tokens) == [1, 3, 4, 5]
    assert list(Template(ABC, 9, {'a': 'y'}).draft().tokens) == [1, 3, 4, 5]
    assert list(Template(ABC, 9, {'b': 'q'}).draft().tokens) == [1]


def test_without_a_token_that_ends_an_answer_there_is_no_template():
    compiler = TemplateCompiler(tiny.tokenizer(), tiny.CHAT_TEMPLATE, ())
    assert compiler.template(FACTS, {}) is None


def test_one_slot_is_drafted_as_a_tree():
    draft = Template([Slot('a', {'x': (1, 2), 'xz': (1, 2, 3), 'y': (4,)})], 9, {}).draft()
    assert list(zip(draft.tokens, draft.parents)) == [(1, -1), (2, 0)]
    assert draft.next_row(0, 1) == 1 and draft.next_row(1, 2) == 2 and draft.next_row(0, 4) is None
    assert draft.depths() == [0, 1]
    two = DraftTree([1, 2, 1, 2], [-1, 0, -1, 2])
    assert two.attention_mask().astype(int).tolist() == [
        [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_free_text_goes_on_with_the_draft_after_a_difference():
    free = FreeText({0}, [5, 6, 7, 0])
    assert list(free.draft().tokens) == [5, 6, 7]
    free.choose(logits(5))
    free.choose(logits(8))
    assert list(free.draft().tokens) == [7]
    assert free.choose(logits(0))[0] == 0 and free.done


def test_free_text_gives_up_a_draft_that_gains_nothing():
    draft = [5, 6, 7, 8, 9, 5, 6, 0]
    free = FreeText({0}, draft)
    free.draft()
    free.choose(logits(1))                                    # the prompt's pass costs no more
    assert list(free.draft().tokens) == [6, 7, 8, 9, 5, 6]
    for token in (6, 7, 1):                                   # two were gained
        free.choose(logits(token))
    assert list(free.draft().tokens) == [9, 5, 6]
    free.choose(logits(2))                                    # none
    assert not free.draft().tokens
    free.choose(logits(5))
    assert not free.draft().tokens


def test_room_for_a_very_long_answer_is_given_back():
    """A question of action ask may want 4096 tokens; the next one wants 64."""
    cache = KVCache()
    assert not cache.reserve(4300) and cache.reserve(4000), 'kept while it is of use'
    assert not cache.reserve(300) and cache.capacity < 1024
    assert cache.reserve(400) and not cache.reserve(600)
