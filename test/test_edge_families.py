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
"""The whole path, frame and late context in, facts out, on every supported architecture."""

from importlib.util import find_spec

import numpy as np
import pytest

from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.method.facts import Context, Fact, NS, Query, Region, Source, Turn
from spotvlm_ros.method.guard import OFF
from spotvlm_ros.method.history import History
import tiny
import transformers

SCENE = Query('scene', 'What is on the road?', 'facts',
              {'light': ('red', 'green', 'none'), 'lead': ('none', 'braking')})
FRAME = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def late():
    """Return what a cloud answer about an older frame has left."""
    history = History(SCENE)
    history.add(Turn('scene', 7 * NS, Source.EDGE, (Fact('light', 'green', 7 * NS),)))
    history.add(Turn('scene', 7 * NS, Source.CLOUD, (
        Fact('light', 'red', 7 * NS, region=Region(10, 8, 12, 12)),
        Fact('lead', 'braking', 7 * NS))))
    return history.context(9 * NS, {'light': Region(12, 8, 12, 12)})


@pytest.mark.parametrize('family', tiny.MAKERS)
def test_whole_path(tmp_path, family):
    """Saved, loaded by its name where the processor can be, asked with a replaced turn."""
    model, processor = tiny.checkpoint(family)
    if family in ('idefics3', 'llava', 'gemma3'):
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        edge = EdgeModel.load(EdgeConfig(model=str(tmp_path), guard_odds=OFF))
    else:
        edge = tiny.edge_model(model, processor)
    edge.warm_up([SCENE])
    prompts = []
    assert edge._engine is not None
    engine_answer = edge._engine.answer_all
    edge._engine.answer_all = lambda asks, *a: (
        prompts.extend(ask.prompt for ask in asks) or engine_answer(asks, *a))
    answer = edge.answer(FRAME, SCENE, late(), 9 * NS)
    assert answer.used_context and answer.used_focus and answer.context_tokens > 0
    assert [f.key for f in answer.facts] == ['light', 'lead'] and not answer.rejected
    assert all(f.value in SCENE.choices[f.key] and f.stamp_ns == 9 * NS for f in answer.facts)
    told = edge._decode(prompts[0].ids)
    assert 'light: red (2.0 s ago)' in told and 'green (' not in told, 'the replaced turn'
    assert told.index('red (') < told.index('Now: What is on the road?')
    alone = edge.answer(FRAME, SCENE, Context('scene', 9 * NS), 9 * NS)
    assert alone.facts and not alone.used_context and not alone.used_focus


def test_an_unknown_architecture_is_run_by_generate():
    """The engine is for the families that it knows; others still answer."""
    model, processor = tiny.checkpoint('llava')
    known = tiny.edge_model(model, processor, decoding='free').answer(FRAME, SCENE, None, 0)
    model.config.model_type = 'vipllava'
    edge = tiny.edge_model(model, processor)
    assert edge._engine is None
    assert edge.answer(FRAME, SCENE, None, 0).text == known.text


def assert_same_answers(folder, model, processor, inputs):
    """Compare a checkpoint loaded from its folder with one that has our inputs."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    theirs = EdgeModel.load(EdgeConfig(model=str(folder), guard_odds=OFF))
    ours = tiny.edge_model(model, inputs)
    for context in (None, late()):
        assert (theirs.answer(FRAME, SCENE, context, 9 * NS).text
                == ours.answer(FRAME, SCENE, context, 9 * NS).text)


@pytest.mark.skipif(find_spec('torchvision') is None,
                    reason='the processors of Qwen2.5-VL and Qwen3-VL want torchvision, which CPU '
                           'installations of spotvlm lack')
@pytest.mark.parametrize('family, name, videos', [
    ('qwen2_5_vl', 'Qwen2_5_VLProcessor', 'Qwen2VLVideoProcessor'),
    ('qwen3_vl', 'Qwen3VLProcessor', 'Qwen3VLVideoProcessor')])
def test_qwen_through_its_own_processor(tmp_path, family, name, videos):
    model, inputs = tiny.checkpoint(family)
    options = {'patch_size': 4, 'merge_size': 2,
               'size': {'shortest_edge': 64, 'longest_edge': 1024}}
    processor = getattr(transformers, name)(
        transformers.Qwen2VLImageProcessor(**options), inputs.tokenizer,
        getattr(transformers, videos)(**options), chat_template=inputs.chat_template)
    assert_same_answers(tmp_path, model, processor, inputs)


@pytest.mark.skipif(find_spec('torchvision') is None or find_spec('num2words') is None,
                    reason='the processor of SmolVLM wants torchvision and num2words for videos; '
                           'its image part is that of Idefics3, which the other tests use')
def test_smolvlm_through_its_own_processor(tmp_path):
    model, inputs = tiny.checkpoint('smolvlm')
    processor = transformers.SmolVLMProcessor(
        inputs.image_processor, inputs.tokenizer, transformers.SmolVLMVideoProcessor(),
        image_seq_len=16, chat_template=tiny.CHAT_TEMPLATE)
    assert_same_answers(tmp_path, model, processor, inputs)
