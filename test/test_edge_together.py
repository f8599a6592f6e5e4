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
"""The guard's two passes as one say what each says alone; so do layers without their modules."""

import copy
import itertools

import numpy as np
import pytest
from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge.engine import Ask, Engine, Prompt
from spotvlm_ros.edge.families import model_family
from spotvlm_ros.edge.gpu.graphs import GraphBackend
from spotvlm_ros.edge.grammar import FreeText
from spotvlm_ros.edge.inputs import InputProcessor
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.edge.plain_decoder import PlainDecoder, Turn
from spotvlm_ros.edge.quantised import quantise
from spotvlm_ros.edge.torch_backend import KVCache
from spotvlm_ros.method.facts import Context, Fact, NS, Query, Region
from spotvlm_ros.method.guard import FixedOdds
import tiny
import torch

FACTS = Query('scene', 'What is on the road?', 'facts',
              {'light': ('red', 'green', 'none'), 'lead': ('none', 'braking')}, max_new_tokens=12)
CHOICE = Query('turn', 'Where to?', 'choice',
               {'turn': ('go', 'go left', 'go left now', 'stop')}, max_new_tokens=12)


def frame_of(number):
    """Return a noisy picture."""
    return np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)


class Doubtful(FixedOdds):
    """Wants two passes of each frame."""

    def leaves_no_doubt(self, facts, context):
        return False


@pytest.fixture(scope='module')
def checkpoints():
    """Return model and processor of each architecture."""
    return {family: tiny.checkpoint(family) for family in tiny.MAKERS}


@pytest.fixture
def joint(checkpoints):
    """Return a function: the guarded model of an architecture, and what its passes computed."""
    def make(family, joins=True, fixed=False):
        model, passes = EdgeModel(*checkpoints[family], EdgeConfig()), []
        if fixed:
            model._engine = Engine(GraphBackend(model._engine.family, 512, capture=False))
            model._engine.backend._looks_ahead = True
        backend = model._engine.backend
        run, model._joins = backend.forward_all, joins
        backend.forward_all = lambda turns, *more: passes.append(len(turns)) or run(turns, *more)
        return model, passes
    return make


@pytest.mark.parametrize('family, fixed', [
    *((family, False) for family in tiny.MAKERS), *((family, True) for family in tiny.FIXED)])
def test_two_passes_made_as_one_say_what_each_says_alone(joint, family, fixed):
    """With focus, drafts that are right and wrong, choices as a tree, masks of windows."""
    (both, passes), (apart, alone) = joint(family, fixed=fixed), joint(family, joins=False)
    for number, (query, value) in enumerate(
            [(FACTS, 'red'), (FACTS, 'green'), (CHOICE, 'stop'), (FACTS, 'green'),
             (CHOICE, 'go left'), (CHOICE, 'go left')]):
        key = query.keys[0]
        context = Context(query.id, 9 * NS, (Fact(key, value, 5 * NS),),
                          focus={key: Region(4 * number, 4, 20, 20)} if number % 2 else {})
        found, want = (model.answer(frame_of(number // 2), query, context, 9 * NS,
                                    judge=Doubtful(query)) for model in (both, apart))
        assert found.text == want.text and found.computed_tokens == want.computed_tokens
        assert [(f.key, f.value) for f in found.facts] == [(f.key, f.value) for f in want.facts]
        assert [f.confidence for f in found.facts] == pytest.approx(
            [f.confidence for f in want.facts], abs=1e-4)
        for name in (query.id, f'{query.id} alone'):
            assert both._last_answers[name].tokens == apart._last_answers[name].tokens
    assert passes.count(2) >= 4 and len(passes) < len(alone) and 2 not in alone


@pytest.mark.parametrize('family', tiny.FIXED)
def test_answers_of_a_batch_are_those_apart(checkpoints, family):
    """Of other lengths and other ends, with a bias, in changing company, some cached."""
    parts, processor = model_family(checkpoints[family][0]), checkpoints[family][1]
    backends = [GraphBackend(parts, 512, capture=False) for _ in range(2)]
    batch, apart = map(Engine, backends)
    for each in backends:
        each._looks_ahead = True
    inputs = InputProcessor(processor, (64, 48))
    towers = []
    encode, backends[0]._encode = backends[0]._encode, lambda given: towers.append(
        len(given['pixel_values'])) or encode(given)

    def ask(name, words, number, limit):
        content = [{'type': 'image'}, {'type': 'image'}, {'type': 'text', 'text': words}]
        frames = [frame_of(number), frame_of(number + len(words) % 2)]
        given = dict(inputs([{'role': 'user', 'content': content}], frames))
        ids = tuple(given['input_ids'][0].tolist())
        bias = np.linspace(0, 1, ids.count(parts.image_token_id), dtype=np.float32)
        return Ask(name, Prompt(ids, given, tuple(f.tobytes() for f in frames),
                                bias=bias if number % 2 else None), FreeText(()), limit)
    for names, number in (('ab', 0), ('bc', 2), ('ca', 2), ('b', 5), ('ab', 5), ('ba', 5)):
        made = [[ask(name, 'red ' * (3 + ord(name) % 3 * 7), number, 4 + ord(name) % 3 * 3)
                 for name in names] for _ in range(2)]
        del towers[:]
        found = batch.answer_all(made[0])
        assert len(towers) <= 2
        for one, each in zip(made[1], found):
            want, = apart.answer_all([one])
            assert each.tokens == want.tokens and len(each.tokens) == one.limit
            assert each.probabilities == pytest.approx(want.probabilities, abs=1e-4)
    assert not towers, 'images that were seen are not seen again'


def test_two_passes_are_one_only_where_both_are_likely_and_there_is_time(joint):
    model, passes = joint('idefics3')
    context = Context('scene', 9 * NS, (Fact('light', 'red', 5 * NS),))

    def shared(judge, **options):
        del passes[:]
        answer = model.answer(frame_of(0), FACTS, context, 9 * NS, judge=judge(FACTS), **options)
        return 2 in passes, answer.partial
    sure = type('Sure', (FixedOdds,), {'leaves_no_doubt': lambda *_: True})
    assert [shared(judge)[0] for judge in (Doubtful, Doubtful, sure, Doubtful)] == [
        False, True, False, True]
    assert shared(Doubtful, should_stop=lambda: True) == (False, True)
    assert shared(Doubtful) == (False, False), 'the one without context is likely to be in time'
    assert shared(Doubtful) == (True, False)


def test_where_two_passes_as_one_fail_each_is_made(joint):
    model, _ = joint('idefics3')
    backend = model._engine.backend
    run = backend.forward_all

    def fail(turns, *more):
        if len(turns) > 1:
            raise RuntimeError('no memory')
        return run(turns, *more)
    backend.forward_all = fail
    context = Context('scene', 9 * NS, (Fact('light', 'red', 5 * NS),))
    answers = [model.answer(frame_of(0), FACTS, context, 9 * NS, judge=Doubtful(FACTS))
               for _ in range(2)]
    assert answers[0].facts == answers[1].facts and not answers[1].context_error


@pytest.mark.parametrize('bits', [0, 8, 4])
@pytest.mark.parametrize('family', ['idefics3', 'llava', 'qwen2_5_vl'])
def test_layers_without_their_modules_give_the_same(checkpoints, family, bits):
    """Of the last layer only what is wanted is computed; the modules work as before."""
    model = copy.deepcopy(checkpoints[family][0])
    parts = model_family(model)
    if bits:
        quantise([parts.decoder], bits, torch.device('cpu'))
    embeds = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    axes = 3 if family == 'qwen2_5_vl' else 1
    mask = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1)[None, None]

    def cache():
        made = KVCache()
        made.reserve(9)
        made.set_slots(0, 9)
        return made

    def usual():
        positions = torch.arange(9).expand(axes, 9)
        return parts.forward(
            embeds[None], None, None, use_cache=True, past_key_values=cache(),
            attention_mask=mask, position_ids=positions if axes == 1 else positions[:, None])[0]
    with torch.inference_mode():
        wanted = usual()
        assert PlainDecoder.supports(parts)
        for given, count in itertools.product((mask, None), (2, 1)):
            found = PlainDecoder(parts)(embeds, torch.arange(9).expand(axes, 9),
                                        [Turn(cache(), given, 9, count)])
            assert torch.allclose(found, wanted[-count:], atol=1e-5)
        assert torch.allclose(usual(), wanted, atol=1e-5)


def test_what_is_not_of_the_usual_make_keeps_its_modules(checkpoints):
    assert not any(PlainDecoder.supports(model_family(checkpoints[name][0]))
                   for name in ('gemma3', 'qwen3_vl'))
