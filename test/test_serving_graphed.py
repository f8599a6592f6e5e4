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
"""Batches by passes of fixed shape, as on a GPU: what they say is what `generate` says."""

from dataclasses import replace
import json

import numpy as np
from PIL import Image
import pytest
from spotvlm_ros.bench.fleet.measured import requests
from spotvlm_ros.cloud.wording import response_format
from spotvlm_ros.config.profiles import load_profile
from spotvlm_ros.edge.families import model_family
from spotvlm_ros.mini.shipped import checkpoint_path
from spotvlm_ros.serving.checkpoint import Checkpoint
from spotvlm_ros.serving.graphed import Graphed
from spotvlm_ros.serving.pictures import Pictures
import tiny
import torch

END, NOBODY = 2, (lambda i: False)


def graphed(model):
    return Graphed(model_family(model.requires_grad_(False)), frozenset({END}), capture=False)


def prompts(processor, texts):
    noise = np.random.default_rng(0)
    for text in texts:
        picture = Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        said = processor.apply_chat_template(
            [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': text}]}],
            add_generation_prompt=True)
        yield dict(processor(images=[picture], text=said, return_tensors='pt'))


def alone(model, inputs, limit):
    given = {k: v for k, v in inputs.items() if k != 'pixel_attention_mask'}
    return model.generate(**given, max_new_tokens=limit, do_sample=False, pad_token_id=0,
                          eos_token_id=END)[0, inputs['input_ids'].shape[1]:].tolist()


@pytest.mark.parametrize('family', tiny.FIXED)
def test_a_batch_of_prompts_of_any_length_says_what_generate_says_of_each(family):
    model, processor = tiny.checkpoint(family)
    by, limits = graphed(model), (9, 4, 12)
    for texts in (('go?', 'stop or go, or slow?', 'light'), ('lead: braking?', 'x', 'red')):
        asked = list(prompts(processor, texts))      # three are filled up to four
        wanted = [alone(model, inputs, limit) for inputs, limit in zip(asked, limits)]
        assert by.answer(asked, limits, [None] * 3, NOBODY) == wanted
        assert len(set(map(tuple, wanted))) == 3


def test_who_has_gone_is_given_no_more_and_sizes_that_are_kept_have_an_end(monkeypatch):
    model, processor = tiny.checkpoint('llava')
    by, asked = graphed(model), list(prompts(processor, ('go?', 'stop?')))
    whole, = by.answer(asked[1:], [8], [None], NOBODY)
    first, second = by.answer(asked, [8, 8], [None] * 2, lambda i: i == 0)
    assert len(first) == 1 and second == whole
    monkeypatch.setattr('spotvlm_ros.serving.graphed.GRAPHS', 2)
    for rows in (1, 2, 3):
        by.answer(asked[:1] * rows, [2] * rows, [None] * rows, NOBODY)
    assert len(by._passes) == 2
    monkeypatch.setattr('spotvlm_ros.serving.pictures.SHAPES', 1)
    seen = Pictures()
    assert seen.usual(asked[0]) and seen.usual(asked[1]) and not seen.usual(
        {'pixel_values': torch.zeros(1, 3, 8, 8)}) and not seen.usual({})


@pytest.mark.parametrize('schema', [False, True])
def test_the_miniature_says_the_same_in_batches_by_graphs_schema_or_not(schema):
    checkpoint = Checkpoint(checkpoint_path('spot-mini-cloud'))
    asked = [replace(p, max_tokens=40) for p in requests(checkpoint, 'driving', 'm')[:3]]
    if schema:
        pytest.importorskip('llguidance', reason='pip install llguidance')
        query = load_profile('driving').queries('cloud')[0]
        text = json.dumps(response_format(query)['json_schema']['schema'])
        checkpoint._constraints.check(text)
        asked = [replace(asked[0], schema=text), *asked[1:]]
    wanted = [checkpoint.answer([p], NOBODY)[0] for p in asked]
    checkpoint._fast = Graphed(checkpoint._fast._engine.family, checkpoint._ends, capture=False)
    assert checkpoint.at_once(8) == 8
    assert checkpoint.answer(asked, NOBODY) == wanted
