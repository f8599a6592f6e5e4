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
"""Checkpoints that cannot be used are refused when they are loaded, with folder and remedy."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge import families
from spotvlm_ros.edge.inputs import InputProcessor
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.edge.processors import set_view_size
import tiny
import torch
import transformers
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

POINTER = 'version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 513028808\n'
WEIGHTS = 'model.safetensors'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Return folders with a whole checkpoint each, by family."""
    folders = {}
    for family in ('idefics3', 'llava'):
        folders[family] = tmp_path_factory.mktemp(family)
        for part in tiny.checkpoint(family):
            part.save_pretrained(folders[family])
    return folders


@pytest.fixture
def folder(saved, tmp_path):
    """Return a copy of a checkpoint that a test may damage."""
    return shutil.copytree(saved['idefics3'], tmp_path / 'damaged')


def edit(path, **changes):
    """Change entries of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def refusal(folder, kind=ValueError, **options):
    """Return what is said about a checkpoint when it is loaded."""
    with pytest.raises(kind) as refused:
        EdgeModel.load(EdgeConfig(model=str(folder), **options))
    text = str(refused.value)
    assert str(folder) in text
    return text


@pytest.mark.parametrize('name', [WEIGHTS, 'config.json', 'tokenizer.json',
                                  'processor_config.json', 'chat_template.jinja'])
def test_a_git_lfs_pointer(folder, name):
    (folder / name).write_text(POINTER)
    text = refusal(folder)
    assert name in text and 'git lfs pull' in text


@pytest.mark.parametrize('name', [WEIGHTS, 'config.json', 'tokenizer.json',
                                  'processor_config.json'])
@pytest.mark.parametrize('share', [0.0, 0.5])
def test_a_file_that_was_cut_off(folder, name, share):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:int(share * len(content))])
    assert f'download {name} again' in refusal(folder)


def test_a_page_of_a_server_in_place_of_weights(folder):
    (folder / WEIGHTS).write_text('<html>not found</html>' * 20)
    assert f'download {WEIGHTS} again' in refusal(folder)


@pytest.mark.parametrize('content', ['{}', '[]', 'null', '[' * 100_000])
def test_a_configuration_of_nothing(folder, content):
    (folder / 'config.json').write_text(content)
    assert 'download config.json again' in refusal(folder)


def test_an_index_of_nothing(folder):
    (folder / WEIGHTS).rename(folder / 'model-00001-of-00001.safetensors')
    (folder / 'model.safetensors.index.json').write_text('{}')
    assert 'download model.safetensors.index.json again' in refusal(folder)


def test_weights_of_torch_are_read_and_a_damaged_file_is_named(folder):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    file = folder / 'pytorch_model.bin'
    torch.save(weights, file)
    EdgeModel.load(EdgeConfig(model=str(folder)))
    file.write_bytes(file.read_bytes()[:9000])
    assert 'download pytorch_model.bin again' in refusal(folder)


def test_code_in_a_pickle_is_not_run(folder):
    (folder / WEIGHTS).unlink()
    torch.save({'a': Code()}, folder / 'pytorch_model.bin')
    text = refusal(folder)
    assert 'pytorch_model.bin' in text and 'safetensors' in text


class Code:
    """What runs code where it is unpickled."""

    def __reduce__(self):
        """Return what is to run."""
        return pytest.fail, ('was run',)


def test_a_path_that_is_no_folder_of_a_model(folder):
    assert f'name the folder, {folder}' in refusal(folder / 'config.json', FileNotFoundError)
    (folder / 'adapter_config.json').write_text('{}')
    assert 'merge_and_unload' in refusal(folder, FileNotFoundError)


@pytest.mark.parametrize('names, said', [
    (['processor_config.json'], 'processor_config.json'),
    (['tokenizer.json', 'tokenizer_config.json'], 'tokenizer.json'),
    (['tokenizer.json'], 'tokenizer.json')])
def test_files_that_are_not_there(folder, names, said):
    for name in names:
        (folder / name).unlink()
    assert said in refusal(folder)


def test_a_tokenizer_of_a_larger_model(folder):
    file = folder / 'tokenizer.json'
    content = json.loads(file.read_text())
    last = content['added_tokens'][-1]
    content['added_tokens'] += [last | {'id': 1000 + i, 'content': f'<{i}>'} for i in range(99)]
    file.write_text(json.dumps(content))
    assert 'copy tokenizer.json' in refusal(folder)


@pytest.mark.parametrize('template, said', [
    ("{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}",
     'tokens: 0, features: 16; copy chat_template'),
    ("{{ messages[0]['content'] + 'x' }}", 'compare its chat template'),
    ("{{ raise_exception('text only') }}", 'text only; compare its chat template'),
    ('{% for', 'compare its chat template')])
def test_a_chat_template_for_no_images(folder, template, said):
    (folder / 'chat_template.jinja').write_text(template)
    assert said in refusal(folder)


LONG = '{% for i in range(99999) %}' * 3 + '{% endfor %}' * 3


@pytest.mark.parametrize('template, said', [
    ('{% for i in range(10 ** 9) %}x{% endfor %}', 'takes more than'),
    (LONG, 'does not end'), ('{{ 10 ** (10 ** 10) }}', 'does not end'),
    ("{% for m in messages %}{% if m['role'] == 'assistant' %}" + LONG + '{% endif %}{% endfor %}',
     'does not end'), ('{% generation %}' + LONG + '{% endgeneration %}', 'does not end'),
    ("{{ 'x' * 10 ** 10 }}", 'takes more than'), ("{{ 'x' | center(10 ** 7) }}", 'takes more'),
    ("{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}"
     '{% endfor %}', ''),   # of memory or of time: which ends it first depends on the machine
    ('{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}', 'compare its chat template')])
@pytest.mark.parametrize('file', ['chat_template.jinja', 'chat_template.json'])
def test_a_chat_template_without_end(folder, template, said, file):
    (folder / 'chat_template.jinja').unlink()
    (folder / file).write_text(template if file.endswith('jinja') else json.dumps(
        {'chat_template': template}))
    text = refusal(folder)
    assert said in text and (file in text or said.startswith('compare'))
    assert said or 'takes more than' in text or 'does not end' in text


@pytest.mark.parametrize('where', ['tokenizer_config.json', 'chat_template.json', 'templates'])
def test_where_a_chat_template_may_be(folder, where):
    file = folder / 'chat_template.jinja'
    template = file.read_text()
    if where == 'templates':
        (folder / 'additional_chat_templates').mkdir()
        (folder / 'additional_chat_templates' / 'tool_use.jinja').write_text('tools')
    else:
        file.unlink()
        path = folder / where
        path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {})
                                   | {'chat_template': template}))
    EdgeModel.load(EdgeConfig(model=str(folder)))


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    assert f'download {WEIGHTS} too' in refusal(folder)


def test_a_shard_that_is_not_there(folder):
    (folder / WEIGHTS).unlink()
    tiny.checkpoint('idefics3')[0].save_pretrained(folder, max_shard_size='100KB')
    shard = sorted(folder.glob('model-*'))[-1]
    shard.unlink()
    assert f'download {shard.name} too' in refusal(folder)


def test_weights_that_would_be_random(folder):
    weights = load_file(folder / WEIGHTS)
    kept = {k: v for k, v in weights.items() if 'text_model.layers.1.' not in k}
    save_file(kept, folder / WEIGHTS, {'format': 'pt'})
    text = refusal(folder)
    assert f'lacks {len(weights) - len(kept)} weights' in text and 'download' in text
    assert 'model.text_model.layers.1.input_layernorm.weight' in text


def test_weights_of_layers_that_are_not_in_the_configuration(folder):
    config = json.loads((folder / 'config.json').read_text())
    edit(folder / 'config.json', text_config=config['text_config'] | {'num_hidden_layers': 2})
    text = refusal(folder)
    assert 'more layers' in text and 'model.text_model.layers.2.' in text


@pytest.mark.parametrize('value', [0.0, float('nan'), float('inf')])
def test_weights_that_hold_nothing(folder, value):
    weights = load_file(folder / WEIGHTS)
    weights['model.text_model.layers.1.mlp.up_proj.weight'].fill_(value)
    save_file(weights, folder / WEIGHTS, {'format': 'pt'})
    assert 'all zero or no numbers (model.text_model.layers.1.mlp.up_proj' in refusal(folder)


def test_weights_of_other_shapes(folder):
    config = json.loads((folder / 'config.json').read_text())
    edit(folder / 'config.json', text_config=config['text_config'] | {'intermediate_size': 60})
    assert 'other shapes' in refusal(folder)


@pytest.mark.parametrize('settings, named', [
    ({'quant_method': 'mystery'}, 'mystery'), ({'bits': 4}, 'quantised'),
    pytest.param({'quant_method': 'bitsandbytes', 'load_in_4bit': True}, 'bitsandbytes')])
def test_quantised_weights_that_cannot_be_read(folder, settings, named):
    edit(folder / 'config.json', quantization_config=settings)
    text = refusal(folder)
    assert named in text and 'use the checkpoint that is not quantised' in text


def test_code_of_its_own_is_not_run_and_nobody_is_asked(folder, monkeypatch):
    monkeypatch.setattr('builtins.input', lambda *a: pytest.fail('asked on the terminal'))
    edit(folder / 'config.json', model_type='mine', auto_map={
        'AutoConfig': 'mine.Config', 'AutoModelForImageTextToText': 'mine.Model'})
    (folder / 'mine.py').write_text('raise SystemExit("was run")')
    assert 'code of its own' in refusal(folder)


@pytest.mark.parametrize('kind', ['mine', 'llama'])
def test_another_kind_of_model(folder, kind):
    edit(folder / 'config.json', model_type=kind)
    assert f"'{kind}' is no kind of model" in refusal(folder)


def test_no_chat_template(folder):
    (folder / 'chat_template.jinja').unlink()
    assert 'copy chat_template.jinja' in refusal(folder)


def test_a_processor_that_needs_torchvision(folder, monkeypatch):
    monkeypatch.setattr('spotvlm_ros.edge.loading.find_spec', lambda name: None)
    monkeypatch.setattr(
        'spotvlm_ros.edge.processors.AutoProcessor.from_pretrained', lambda *a, **k: (
            _ for _ in ()).throw(ImportError('Qwen2VLVideoProcessor requires the Torchvision '
                                             'library')))
    text = refusal(folder)
    assert 'needs torchvision' in text and 'idefics3' in text


@pytest.mark.parametrize('engine', ['fast', 'generate'])
@pytest.mark.parametrize('family, file, changes, said', [
    ('llava', 'processor_config.json', {'num_additional_image_tokens': None},
     'tokens: 63, features: 64; set num_additional_image_tokens'),
    ('llava', 'processor_config.json',
     {'patch_size': None, 'vision_feature_select_strategy': None}, 'set patch_size'),
    ('idefics3', 'processor_config.json', {'image_seq_len': 9}, 'tokens: 9, features: 16'),
    ('idefics3', 'config.json', {'image_token_id': 5}, "writes '<image>' (4)")])
def test_image_tokens_are_those_of_the_features(saved, tmp_path, engine, family, file, changes,
                                                said):
    folder = shutil.copytree(saved[family], tmp_path / 'other')
    EdgeModel.load(EdgeConfig(model=str(folder), engine=engine))
    edit(folder / file, **changes)
    assert said in refusal(folder, engine=engine)


def test_an_architecture_without_an_engine_is_checked_by_transformers(saved, tmp_path,
                                                                      monkeypatch):
    monkeypatch.delitem(families.FAMILIES, 'llava')
    folder = shutil.copytree(saved['llava'], tmp_path / 'other')
    EdgeModel.load(EdgeConfig(model=str(folder)))
    edit(folder / 'processor_config.json', num_additional_image_tokens=None)
    assert 'do not match' in refusal(folder)


@pytest.mark.parametrize('images', [
    {'size': {'shortest_edge': 64}, 'crop_size': {'height': 64, 'width': 64}},
    {'image_mean': None}, {'rescale_factor': 'a'}])
def test_an_image_processor_of_another_model(saved, tmp_path, images):
    folder = shutil.copytree(saved['llava'], tmp_path / 'other')
    content = json.loads((folder / 'processor_config.json').read_text())
    edit(folder / 'processor_config.json', image_processor=content['image_processor'] | images)
    assert 'processor_config.json' in refusal(folder)


def test_the_name_of_a_hub_is_no_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='hf download'):
        EdgeModel.load(EdgeConfig(model='somebody/some-model'))


def test_the_published_sizes_of_smolvlm_need_no_scaling():
    """Tiles of 512 pixels out of 2048; without tiles a view of 512 goes in as it is."""
    images = Idefics3ImageProcessorPil(
        do_image_splitting=True, size={'longest_edge': 2048},
        max_image_size={'longest_edge': 512}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = transformers.Idefics3Processor(images, tiny.tokenizer(), image_seq_len=64,
                                               chat_template=tiny.CHAT_TEMPLATE)
    size = set_view_size(processor, tiny.checkpoint('idefics3')[0].config)
    assert size == (512, 512) and InputProcessor(processor, size).fast
    view = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    pixels = processor(images=[view], text='<image>', return_tensors='pt')['pixel_values']
    assert np.allclose(pixels[0, 0].permute(1, 2, 0).numpy(), view / 127.5 - 1, atol=1e-5)
