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
"""The edge model on the shipped checkpoint."""

from dataclasses import replace
from functools import partial
import itertools
import subprocess
import sys

import numpy as np
import pytest

from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.method.facts import Context, NS
from spotvlm_ros.method.guard import is_confident, ODDS, OFF, select_by_odds
from spotvlm_ros.method.prompt import answer_text
from spotvlm_ros.mini.driving.scene import ACTION, DESCRIBE, SCENE
from spotvlm_ros.mini.training import dataset
from spotvlm_ros.mini.worlds import make_world, TUNE_SEEDS
from spotvlm_ros.system import doctor
import tiny
import transformers


@pytest.fixture(scope='module')
def model():
    """Return the shipped edge model."""
    return EdgeModel.load(EdgeConfig(guard_odds=OFF))


@pytest.fixture(scope='module')
def guarded():
    """Return it with the guard."""
    return EdgeModel.load(EdgeConfig())


@pytest.fixture(scope='module')
def sample():
    """Return a frame with a late context that holds regions."""
    return dataset.sample(make_world('driving', TUNE_SEEDS[7]), 340,
                          np.random.default_rng(0), SCENE)


def test_answers_each_format(model, sample):
    facts = model.answer(sample.frame, SCENE, None, sample.stamp_ns)
    assert [f.key for f in facts.facts] == list(SCENE.keys) and not facts.rejected
    assert all(0 < f.confidence <= 1 and f.stamp_ns == sample.stamp_ns for f in facts.facts)
    assert not facts.used_context and not facts.used_focus and not facts.partial
    choice = model.answer(sample.frame, ACTION, None, 0)
    assert choice.facts[0].value in ACTION.choices['action']
    said = []
    text = model.answer(sample.frame, DESCRIBE, None, 0, on_text=lambda t, n: said.append((t, n)))
    assert text.text.endswith('.') and text.facts == ()
    assert said[-1][0] == text.text and [n for _, n in said] == list(range(1, len(said) + 1))


@pytest.mark.parametrize('name', ['model', 'guarded'])
def test_what_is_streamed_stands(name, request):
    """It came from the guard's first pass, and 11 of 12 answers were others in the end."""
    model = request.getfixturevalue(name)
    passes = set()
    for number in range(12):
        one = dataset.sample(make_world('driving', TUNE_SEEDS[number]), 400 + 9 * number,
                             np.random.default_rng(number), SCENE)
        for context in (None, one.context):
            said = []
            answer = model.answer(one.frame, SCENE, context, one.stamp_ns,
                                  on_text=lambda text, tokens: said.append(text))
            passes.add((context is None, answer.passes > 1))
            assert all(answer.text.startswith(text) for text in said), (said, answer.text)
            assert said[-1:] in ([], [answer.text])
    assert (False, name == 'guarded') in passes


def test_a_text_that_is_cut_short_goes_on_where_it_was(model, sample):
    """So a question can take turns with standing queries: its words so far are drafted."""
    whole = model.answer(sample.frame, DESCRIBE, None, 5)
    model.answer(sample.frame, SCENE, None, 5)
    other = make_world('driving', TUNE_SEEDS[8]).frame(900)
    model.answer(other, DESCRIBE, None, 6)  # so that nothing of the whole is drafted
    turns = []
    while not turns or turns[-1].partial:
        steps = itertools.count()
        turns.append(model.answer(sample.frame, DESCRIBE, None, 5, should_stop=partial(
            lambda steps: next(steps) >= 3, steps)))
        model.answer(sample.frame, SCENE, None, 5)
        assert len(turns) < 20, 'each turn begins anew'
    assert len(turns) > 1 and turns[-1].text == whole.text


def test_context_and_focus_are_used_and_told(model, sample):
    answer = model.answer(sample.frame, SCENE, sample.context, sample.stamp_ns)
    assert answer.used_context and answer.used_focus and answer.context_tokens > 0


@pytest.mark.parametrize('name', ['model', 'guarded'])
def test_a_pass_with_context_that_fails_leaves_the_answer_without(name, sample, request,
                                                                  monkeypatch):
    """It fails in the middle of a forward pass, when tokens count as cached that are not."""
    model = request.getfixturevalue(name)
    alone = model.answer(sample.frame, SCENE, None, sample.stamp_ns)
    monkeypatch.setattr('spotvlm_ros.edge.model.guard.is_confident', lambda *args: False)
    backend = model._engine.backend
    forward = backend.forward_all
    lengths = []

    def failing(turns, *more):
        these = [state.prompt_length for state, _ in turns]
        lengths.extend(these)
        if max(these) > min(lengths) or len(lengths) == 1 and name == 'model':
            raise RuntimeError('out of memory')
        return forward(turns, *more)
    monkeypatch.setattr(backend, 'forward_all', failing)
    answer = model.answer(sample.frame, SCENE, sample.context, sample.stamp_ns)
    assert answer.context_error == 'RuntimeError: out of memory' and not answer.used_context
    assert [(f.key, f.value) for f in answer.facts] == [(f.key, f.value) for f in alone.facts]
    monkeypatch.setattr(backend, 'forward_all', forward)
    again = model.answer(sample.frame, SCENE, sample.context, sample.stamp_ns)
    assert again.used_context and not again.context_error


def test_an_empty_context_is_exactly_edge_alone(model, sample):
    alone = model.answer(sample.frame, SCENE, None, sample.stamp_ns)
    empty = model.answer(sample.frame, SCENE, Context('scene', sample.stamp_ns), sample.stamp_ns)
    assert empty.text == alone.text and not empty.used_context
    tiny.assert_alike(empty.facts, alone.facts)


def test_same_input_same_answer(model, sample):
    first, second = (model.answer(sample.frame, SCENE, sample.context, sample.stamp_ns)
                     for _ in range(2))
    assert first.text == second.text
    for one, other in zip(first.facts, second.facts, strict=True):
        # The second time the prefix is kept: sums are taken in another order.
        assert (one.key, one.value) == (other.key, other.value)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-4)


def test_context_does_not_hide_the_frame(guarded):
    """
    With a wrong context the model, as it is run, still sees the frame: no parrot.

    Every fact of the context is wrong on purpose; a model that copies would score 0.
    """
    rng = np.random.default_rng(3)
    right = copied = total = 0
    for seed in range(12):
        world = make_world('driving', TUNE_SEEDS[seed], 'day')
        index = int(rng.integers(300, 2300))
        stamp = index * NS // 20
        truth = world.facts(index, stamp)
        wrong = tuple(f.__class__(f.key, str(rng.choice([
            v for v in SCENE.choices[f.key] if v != f.value])), stamp - NS) for f in truth)
        said = guarded.answer(world.frame(index), SCENE, Context('scene', stamp, wrong), stamp)
        for fact, true, lie in zip(said.facts, truth, wrong):
            right += fact.value == true.value
            copied += fact.value == lie.value
            total += 1
    assert right > copied and right > 0.4 * total, (right, copied, total)


def test_the_guard_takes_from_context_only_what_is_surer(model, guarded, sample):
    world = make_world('driving', TUNE_SEEDS[7])
    for index in range(0, 1200, 100):
        frame, stamp = world.frame(index), index * NS // 20 + NS
        told = tuple(replace(f, stamp_ns=stamp - NS) for f in world.facts(index, stamp))
        context = Context('scene', stamp, told, focus={f.key: f.region for f in told if f.region})
        own, other = (model.answer(frame, SCENE, c, stamp) for c in (None, context))
        both = guarded.answer(frame, SCENE, context, stamp)
        wanted = select_by_odds(SCENE, own.facts, other.facts, context, ODDS)
        if is_confident(SCENE, own.facts):
            wanted = own.facts
        assert both.used_context == (not is_confident(SCENE, own.facts))
        assert [(f.key, f.value) for f in both.facts] == [(f.key, f.value) for f in wanted]
        assert both.text == answer_text(SCENE, both.facts)
        mine = {(f.key, f.value) for f in own.facts}
        assert both.told_keys == {f.key for f in both.facts if (f.key, f.value) not in mine}
        alone = guarded.answer(frame, SCENE, None, stamp)
        assert (alone.text, alone.used_context) == (own.text, False) and not alone.told_keys
        assert other.told_keys == set(SCENE.keys), 'one pass, told the context'


def test_without_time_for_a_second_pass_the_first_stands(model, guarded, sample):
    own = model.answer(sample.frame, SCENE, None, sample.stamp_ns)
    whole = guarded.answer(sample.frame, SCENE, sample.context, sample.stamp_ns)
    assert whole.used_context, 'the frame leaves a doubt'
    asked = itertools.count()
    # Once a first answer is there the time is up. Nothing says that two would be wanted.
    guarded._last_answers.clear()
    done = guarded.answer(sample.frame, SCENE, None, sample.stamp_ns,
                          should_stop=lambda: next(asked) < 0).passes
    guarded._last_answers.clear()
    checks = itertools.count(1)
    short = guarded.answer(sample.frame, SCENE, sample.context, sample.stamp_ns,
                           should_stop=lambda: next(checks) > done)
    assert short.text == own.text and not short.partial and not short.used_context


def test_should_stop_ends_the_answer_early(model, sample):
    answer = model.answer(sample.frame, SCENE, None, 0, should_stop=lambda: True)
    assert answer.partial and len(answer.facts) < len(SCENE.keys)


@pytest.mark.parametrize('size', [(96, 96), (1080, 1920), (33, 500)])
def test_any_frame_size(model, size):
    frame = np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8)
    assert model.answer(frame, SCENE, None, 0).facts


def test_what_cannot_be_loaded_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match='save_pretrained'):
        EdgeModel.load(EdgeConfig(model=str(tmp_path / 'none')))
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='model_type.*download config.json again'):
        EdgeModel.load(EdgeConfig(model=str(tmp_path)))


def test_the_doctor_knows_which_transformers_can_load_it(monkeypatch):
    assert {f.status for f in doctor.check_transformers()} == {doctor.OK}
    monkeypatch.setattr(transformers, '__version__', '5.17.0')
    found, = doctor.check_transformers()
    assert found.status == doctor.MISSING and '5.18' in found.detail
    assert 'pip install' in found.remedy


def test_what_is_imported_where_it_is_not_needed_costs_nothing():
    """Nodes know the model by a module without torch; an edge without a GPU needs no compiler."""
    code = """if True:
        import sys
        import spotvlm_ros.edge.answer
        assert 'torch' not in sys.modules
        import numpy as np
        from spotvlm_ros.config.nodes import EdgeConfig
        from spotvlm_ros.method.facts import Query
        from spotvlm_ros.nodes.remote_edge import load_edge_model
        model, query = load_edge_model(EdgeConfig()), Query('q', '?', 'choice', {'q': ('b', 'c')})
        assert model.answer(np.zeros((96, 96, 3), np.uint8), query, None, 0).facts
        assert not {'sympy', 'torch._dynamo', 'torch.distributed.tensor'} & sys.modules.keys()
        assert not [m for m in sys.modules if m.startswith('spotvlm_ros.edge.gpu.')]
        import torch  # which is as it was, for who needs more of it
        from transformers.masking_utils import TransformGetItemToIndex
        with TransformGetItemToIndex():
            assert torch.distributed.is_available() == hasattr(torch._C, '_c10d_init')
    """
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)
