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
"""Focus back-ends: which image tokens are left out or favoured, and that it is done."""

from dataclasses import replace

from hypothesis import given, strategies as st
import numpy as np
import pytest

from spotvlm_ros.edge.families import check_focus
from spotvlm_ros.method import focus
from spotvlm_ros.method.facts import Context, Fact, NS, Query, Region
import tiny
import torch

FACTS = Query('scene', 'What is on the road?', 'facts',
              {'light': ('red', 'green', 'none'), 'lead': ('none', 'braking')}, max_new_tokens=8)
ABLE = ['idefics3', 'smolvlm', 'llava', 'qwen2_5_vl', 'qwen3_vl']
CONFIG = focus.FocusConfig(min_side_px=8)
SEEN = Context('scene', 9 * NS, (Fact('light', 'red', 8 * NS), Fact('lead', 'none', 8 * NS)),
               focus={'light': Region(4, 4, 10, 10), 'lead': Region(40, 20, 12, 12)})


def frame_of(number):
    """Return a noisy picture."""
    return np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def made():
    """Return model and processor per architecture."""
    return {family: tiny.checkpoint(family) for family in tiny.MAKERS}


def test_how_much_of_each_token_a_region_covers():
    """A region over the right half of the lower row and half of the upper one."""
    assert focus.token_coverage([(0.5, 0.25, 1.0, 1.0)], 2, 2).tolist() == [0, 0.5, 0, 1.0]
    assert focus.token_coverage([], 2, 3).tolist() == [0] * 6
    assert focus.token_coverage([(-0.5, -1.0, 0.25, 2.0)], 1, 2).tolist() == [0.5, 0], \
        'cut at the edge'


def test_regions_in_each_view():
    """The second view shows cells with crop and tokens, the default region with attention."""
    boxes = {'lead': (32, 24, 64, 48)}
    whole, cells = focus.regions_of_views(FACTS, boxes, 64, 48, replace(CONFIG, backend='tokens'))
    assert whole == [(0.5, 0.5, 1.0, 1.0)] and cells == [(0.5, 0.0, 1.0, 0.5)]
    whole, centre = focus.regions_of_views(FACTS, {'lead': (19, 14, 31, 23)}, 64, 48,
                                           replace(CONFIG, backend='attention'))
    x0, y0, x1, y1 = centre[0]
    assert (x0, y0) == (0, 0) and 0.4 < x1 < 0.6 and 0.4 < y1 < 0.6


BOX = st.tuples(st.floats(-0.5, 1), st.floats(-0.5, 1), st.floats(0.01, 1), st.floats(0.01, 1)
                ).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@given(st.lists(BOX, max_size=3), st.lists(BOX, max_size=4), st.integers(1, 9),
       st.integers(1, 9), st.floats(0.05, 1))
def test_no_more_tokens_than_the_share_and_something_of_everything(one, two, rows, columns, keep):
    chosen = focus.tokens_to_keep([one, two], rows, columns, replace(CONFIG, keep=keep))
    budget = max(1, int(keep * 2 * rows * columns))
    assert chosen.sum() == budget
    inside = np.concatenate([focus._nearness(view, rows, columns) for view in (one, two)]) > 0
    if budget >= 6 and inside.any() and not inside.all():
        assert (chosen & inside).any() and (chosen & ~inside).any()


def test_the_middle_of_a_region_is_kept_first():
    chosen = focus.tokens_to_keep([[(0.0, 0.0, 1.0, 1.0)]], 3, 3, replace(CONFIG, keep=1.01 / 9))
    assert np.flatnonzero(chosen).tolist() == [4]


@pytest.mark.parametrize('backend', ['tokens', 'attention'])
@pytest.mark.parametrize('family', ABLE)
def test_without_a_region_all_are_the_edge_alone(made, family, backend):
    model = tiny.edge_model(*made[family], replace(CONFIG, backend=backend), decoding='free')
    plain = tiny.edge_model(*made[family], CONFIG, engine='generate')
    for number in (0, 1):
        model.answer(frame_of(number), FACTS, SEEN, 9 * NS)
        plain.answer(frame_of(number), FACTS, None, 9 * NS)
        model.answer(frame_of(number), FACTS, None, 9 * NS)
        assert model._last_answers['scene'].tokens == plain._last_answers['scene'].tokens


@pytest.mark.parametrize('family', ABLE)
def test_tokens_uses_fewer(made, family):
    crop = tiny.edge_model(*made[family], CONFIG, decoding='free')
    thin = tiny.edge_model(*made[family], replace(CONFIG, backend='tokens'), decoding='free')
    full = crop.answer(frame_of(0), FACTS, SEEN, 9 * NS)
    few = thin.answer(frame_of(0), FACTS, SEEN, 9 * NS)
    visual = 2 * (64 if family == 'llava' else 16)
    first_pass = full.computed_tokens - full.passes, few.computed_tokens - few.passes
    assert first_pass[0] - first_pass[1] == visual - int(0.4 * visual)
    assert few.used_focus
    every = tiny.edge_model(*made[family], replace(CONFIG, backend='tokens', keep=1.0),
                            decoding='free')
    every.answer(frame_of(0), FACTS, SEEN, 9 * NS)
    assert (every._last_answers['scene'].tokens
            == crop._last_answers['scene'].tokens), 'all kept: as crop'


def _reference(model, prompt_, limit):
    """Return greedy tokens by whole forward passes of a decoder, bias added, without a cache."""
    family = model._engine.family
    ids = np.array(prompt_.ids)
    image = ids == family.image_token_id
    keep = np.ones(len(ids), bool)
    keep[image] = True if prompt_.keep is None else prompt_.keep
    rows = family.encode_images(prompt_.inputs).embeddings
    out = []
    for _ in range(limit):
        embeds = family.embed_tokens(torch.tensor([*ids, *out]))[None].clone()
        embeds[0, np.flatnonzero(image)] = rows
        used = np.append(keep, np.ones(len(out), bool))
        bias = np.zeros(len(used), np.float32)
        if prompt_.bias is not None:
            bias[:len(ids)][image] = prompt_.bias
        n = int(used.sum())
        mask = np.where(np.tri(n, dtype=bool), bias[used][None], np.finfo(np.float32).min)
        hidden = family.decoder(
            inputs_embeds=embeds[:, used], use_cache=False,
            position_ids=torch.from_numpy(np.flatnonzero(used))[None],
            attention_mask=torch.from_numpy(mask.astype(np.float32))[None, None])
        out.append(int(family.lm_head(hidden.last_hidden_state[0, -1]).argmax()))
        if out[-1] == 2:
            break
    return out


@pytest.mark.parametrize('backend', ['tokens', 'attention'])
def test_cached_and_drafted_answers_are_those_of_whole_passes(made, backend):
    """Over frames that repeat, with regions left out or favoured."""
    model = tiny.edge_model(*made['idefics3'], replace(CONFIG, backend=backend), decoding='free')
    asked = []
    engine_answer = model._engine.answer_all
    model._engine.answer_all = lambda asks, *a: (
        asked.extend(ask.prompt for ask in asks) or engine_answer(asks, *a))
    for number in (0, 0, 1, 0):
        model.answer(frame_of(number), FACTS, SEEN, 9 * NS)
        with torch.inference_mode():
            assert model._last_answers['scene'].tokens == _reference(model, asked[-1], 8)
    assert (asked[0].keep is None) == (backend == 'attention')


def test_attention_draws_to_the_region(made):
    """Favoured without bound, the region's tokens are all that is seen of the picture."""
    def answer(number, bias):
        model = tiny.edge_model(*made['idefics3'], replace(CONFIG, backend='attention', bias=bias),
                                decoding='free')
        frame = frame_of(1)
        frame[4:14, 4:14] = frame_of(number)[4:14, 4:14]
        model.answer(frame, FACTS, SEEN, 9 * NS)
        return model._last_answers['scene'].tokens
    assert answer(2, 0.0) != answer(2, 6.0)


def test_what_does_not_suit_says_why():
    with pytest.raises(ValueError, match='gemma3.*both directions.*crop'):
        check_focus('tokens', 'gemma3')
    with pytest.raises(ValueError, match='no engine for this architecture.*idefics3'):
        check_focus('attention', 'florence2')
    with pytest.raises(ValueError, match='generate'):
        check_focus('tokens', 'idefics3', 'generate')
    check_focus('crop', 'florence2', 'generate')


def test_the_model_refuses_what_does_not_suit(made):
    with pytest.raises(ValueError, match='both directions'):
        tiny.edge_model(*made['gemma3'], replace(CONFIG, backend='tokens'))
