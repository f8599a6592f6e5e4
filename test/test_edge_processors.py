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
"""
Processors as the families ship them.

data/processors.json has the settings of published checkpoints: sizes, tiles, patches and tokens.
The models here have their vision towers' sizes in pixels, and next to no weights. As a program
this file prints how long inputs take.
"""

import json
from pathlib import Path
import tempfile
import timeit

import numpy as np
import pytest

from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.method.facts import Query
from spotvlm_ros.method.guard import OFF
from spotvlm_ros.method.prompt import messages
import tiny
import torch

PUBLISHED = json.loads((Path(__file__).parent / 'data' / 'processors.json').read_text())
QUERY = Query('text', 'What is there?', 'text', max_new_tokens=2)


def write(name, folder):
    """Write a checkpoint with the published settings of one."""
    facts, words = PUBLISHED[name], tiny.tokenizer()
    made, processor = tiny.MAKERS[facts['family']](words)
    config = made.config
    for target, values in ((config, facts.get('config', {})),
                           (config.vision_config, facts['vision'])):
        for key, value in values.items():
            setattr(target, key, value)
    torch.manual_seed(0)
    tiny.loud(type(made)(config)).save_pretrained(folder)
    words.save_pretrained(folder)
    (folder / 'chat_template.jinja').write_text(processor.chat_template)
    for file, settings in (('preprocessor_config.json', facts['preprocessor']),
                           ('processor_config.json', facts['processor'])):
        if settings is not None:
            (folder / file).write_text(json.dumps(settings))
    return facts


def load(folder, **options):
    """Load it."""
    return EdgeModel.load(EdgeConfig(model=str(folder), guard_odds=OFF, **options))


@pytest.mark.parametrize('name', PUBLISHED)
def test_views_are_what_the_vision_tower_was_trained_at(name, tmp_path):
    """Loading asserts that tokens equal features; nothing is scaled, and no tile is cut."""
    facts = write(name, tmp_path)
    model = load(tmp_path)
    side = facts['view']
    assert model.view_size == (side, side)
    assert model.inputs.fast, 'inputs without the detour of the processor'
    views = [np.random.default_rng(k).integers(0, 256, (side, side, 3), dtype=np.uint8)
             for k in range(2)]
    for n in (1, 2):
        chat = messages(QUERY, None, 0, n)
        quick, slow = model.inputs(chat, views[:n]), model.inputs.process(chat, views[:n])
        image = model.engine.family.image_token_id
        assert int((quick['input_ids'] == image).sum()) == n * facts['tokens']
        assert quick.keys() == slow.keys()
        for key, value in quick.items():
            assert torch.allclose(value.double(), slow[key].double(), atol=1e-5), key


@pytest.mark.parametrize('name, side, tokens', [
    ('SmolVLM-256M-Instruct', 256, 16), ('SmolVLM2-256M-Video-Instruct', 384, 36),
    ('Qwen2.5-VL-3B-Instruct', 224, 64), ('Qwen3-VL-4B-Instruct', 128, 16)])
def test_a_view_may_be_smaller(name, side, tokens, tmp_path):
    write(name, tmp_path)
    model = load(tmp_path, view_size=side)
    assert model.view_size == (side, side) and model.inputs.fast
    view = np.zeros((side, side, 3), np.uint8)
    ids = model.inputs(messages(QUERY, None, 0, 1), [view])['input_ids']
    assert int((ids == model.engine.family.image_token_id).sum()) == tokens
    assert model.answer(view, QUERY, None, 0).passes


@pytest.mark.parametrize('name, side, said', [
    ('SmolVLM-256M-Instruct', 250, 'use a multiple of 64 up to 512'),
    ('SmolVLM-256M-Instruct', 1024, 'use a multiple of 64 up to 512'),
    ('Qwen2.5-VL-3B-Instruct', 200, 'use a multiple of 28'),
    ('gemma-3-4b-it', 448, 'pictures of 896 pixels only')])
def test_a_size_that_a_vision_tower_does_not_take(name, side, said, tmp_path):
    write(name, tmp_path)
    with pytest.raises(ValueError, match=f'view_size is {side}.*{said}'):
        load(tmp_path, view_size=side)


@pytest.mark.parametrize('written', [True, False])
def test_the_first_token_comes_once(written, tmp_path):
    """Where the tokenizer puts it, and where the chat template has written it already."""
    from tokenizers import processors
    write('SmolVLM-256M-Instruct', tmp_path)
    words = tiny.tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        '<s> $A', special_tokens=[('<s>', 1)])
    words.save_pretrained(tmp_path)
    template = ('<s>' if written else '') + tiny.CHAT_TEMPLATE
    (tmp_path / 'chat_template.jinja').write_text(template)
    model = load(tmp_path)
    assert model.inputs.fast
    view = np.zeros((512, 512, 3), np.uint8)
    for make in (model.inputs, model.inputs.process):
        ids = make(messages(QUERY, None, 0, 1), [view])['input_ids'][0].tolist()
        assert ids[0] == 1 and ids.count(1) == 1


def main(folder):
    """Print how long inputs of two views take, for each of the published settings."""
    torch.set_num_threads(1)
    for name in PUBLISHED:
        write(name, folder / name)
        model, chat = load(folder / name), messages(QUERY, None, 0, 2)
        views = [np.random.default_rng(k).integers(0, 256, (*model.view_size, 3), dtype=np.uint8)
                 for k in range(2)]
        took = []
        for make in (model.inputs, model.inputs.process):
            times = timeit.repeat(lambda make=make: make(chat, views), number=1, repeat=15)
            took.append(f'{1e3 * np.median(times):.1f} ms')
        print(f'{name}: views of {model.view_size[0]} pixels, inputs', ', processor '.join(took))


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
