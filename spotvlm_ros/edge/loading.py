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
Reads a checkpoint from its folder, and says what is wrong with one that cannot be used.

Transformers goes on where weights are missing (they are random then) and reports the rest by
errors of many types, most without the file or with the remedy of another program. Here every fault
is a FileNotFoundError or a ValueError with the folder, the fault and a remedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
import json
import math
from pathlib import Path
import pickle
import re
import zipfile

import torch
from transformers import __version__, AutoModelForImageTextToText
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.logging import disable_progress_bar

from .chat_template import template_fault
from .families import ModelFamily
from .inputs import InputProcessor
from .processors import HERE, json_content, json_object, load_processor, UnusableError
from ..method.facts import Context, Query
from ..method.prompt import Message, messages
from ..system.lean import Layout

LFS_POINTER = b'version https://git-lfs'
MAX_ERROR = 400  # longest text of a library's error [characters]
NAMED_KEYS = 3  # weights that an error names
LAYER = re.compile(r'(.+?)\.(\d+)\.')
TEMPLATES = ('chat_template.jinja', 'chat_template.json', 'tokenizer_config.json')
# What transformers reads quantised weights by.
NEEDED = {'gptq': 'optimum gptqmodel', 'awq': 'gptqmodel', 'bitsandbytes': 'bitsandbytes',
          'compressed-tensors': 'compressed-tensors'}
WEIGHTS = ('model*.safetensors', 'pytorch_model*.bin')  # as transformers looks for them


def check_folder(path: Path) -> None:
    """Raise FileNotFoundError, with the remedy, where a path is no folder of a whole model."""
    fault = ''
    if path.is_file():
        fault = f'it is a file; name the folder, {path.parent}'
    elif (path / 'adapter_config.json').is_file():
        fault = ('it has an adapter (adapter_config.json), which is not applied; merge it into '
                 "its model with peft's merge_and_unload and name the folder that save_pretrained "
                 'writes then')
    elif not path.exists():
        fault = ('there is no such folder; name one written by save_pretrained or `hf download '
                 'NAME --local-dir FOLDER`, or a model that ships with spotvlm (spot-mini-edge)')
    elif not (path / 'config.json').is_file():
        fault = ('it has no config.json; name a folder written by save_pretrained, or a model '
                 'that ships with spotvlm (spot-mini-edge)')
    if fault:
        raise FileNotFoundError(f'{path} is no checkpoint: {fault}')


def load_checkpoint(path: Path, device: str = 'cpu') -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    Return model and processor of a checkpoint that has all of its weights, on the CPU.

    Weights that are quantised already go to ``device``, as their libraries want it.

    Raise FileNotFoundError or ValueError, with the remedy, where the folder has no such
    checkpoint. No code of the checkpoint's own is run.
    """
    check_folder(path)
    disable_progress_bar()  # of its own accord it draws one on the console of a robot
    config = json_object(path / 'config.json')
    # These are no errors to transformers: the one would be the prompt, the other is passed over.
    fault = _pointer(path.glob('*.jinja')) or _unknown_quantisation(config)
    if fault:
        raise ValueError(f'{path} cannot be loaded: {fault}')
    try:
        processor = load_processor(path, config.get('model_type'))
        where = {'device_map': {'': device}} if 'quantization_config' in config else {}
        load = partial(AutoModelForImageTextToText.from_pretrained, path,
                       output_loading_info=True, **HERE, **where)
        try:
            with Layout():
                model, report = load()
        except RuntimeError:  # a family, as Gemma 4, whose ranges meet tensors on device meta
            model, report = load()
    except Exception as error:  # of any type: safetensors, tokenizers and pickle have their own
        raise ValueError(f'{path} cannot be loaded: {_fault(path, config, error)}') from error
    _check_weights(path, model, report)
    _settle_chat_template(processor)
    _check_processor(path, processor)
    _check_chat_template(path, processor)
    return model, processor


def check_image_tokens(family: ModelFamily, inputs: InputProcessor, chat: list[Message],
                       view_size: tuple[int, int]) -> None:
    """
    Raise UnusableError where a prompt has not one image token for each row of image features.

    ``chat`` has one image, ``view_size`` (width, height) is that of the views.
    """
    tokenizer, weight = inputs.processor.tokenizer, family.embed_tokens.weight
    if len(tokenizer) > len(weight):
        raise UnusableError(f'the tokenizer has {len(tokenizer)} tokens, the model {len(weight)}; '
                            'copy tokenizer.json from the checkpoint that the weights are of')
    view = torch.full((view_size[1], view_size[0], 3), 127, dtype=torch.uint8).numpy()
    try:
        given = {k: v.to(weight.device, family.vision_dtype if v.is_floating_point() else None)
                 for k, v in inputs(chat, [view]).items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise UnusableError(
            f'the processor cannot prepare an image: {error}; set patch_size and '
            'vision_feature_select_strategy in processor_config.json as the authors of the '
            'checkpoint have them') from error
    ids = given['input_ids'][0]
    tokens = int((ids == family.image_token_id).sum())
    with torch.inference_mode():
        features = len(family.encode_images(given).embeddings)
    if tokens == features:
        return
    values, counts = ids.unique(return_counts=True)
    others = values[counts == features].tolist()
    if others:
        raise UnusableError(
            f'image_token_id of config.json is {family.image_token_id}, but the processor writes '
            f'{tokenizer.convert_ids_to_tokens(others[0])!r} ({others[0]}); set image_token_id '
            f'(in some families image_token_index) in config.json to {others[0]}, or download '
            'config.json and tokenizer.json again')
    raise UnusableError(
        f'Image features and image tokens do not match, tokens: {tokens}, features: {features}; ' +
        ('set num_additional_image_tokens, vision_feature_select_strategy, patch_size or '
         'image_seq_len in processor_config.json to what suits config.json' if tokens else
         'copy chat_template.jinja, tokenizer.json and config.json from one checkpoint, of an '
         'instruct model that takes images'))


def _check_weights(path: Path, model: PreTrainedModel, report: dict[str, Iterable[str]]) -> None:
    """Raise ValueError where weights are not there, are of more layers, or hold nothing."""
    remedy = 'download the weights again, or save them again with save_pretrained'
    missing = sorted(report['missing_keys'])
    if missing:
        raise ValueError(f'{path} lacks {len(missing)} weights of the model ({_some(missing)}), '
                         f'which would be random; {remedy}')
    lists = {name: len(module) for name, module in model.named_modules()
             if isinstance(module, torch.nn.ModuleList)}
    more = [key for key in sorted(report['unexpected_keys'])
            if (found := LAYER.match(key)) and int(found[2]) >= lists.get(found[1], math.inf)]
    if more:
        raise ValueError(f'{path} has weights of more layers than config.json says ({_some(more)})'
                         '; download config.json and the weights again, from one place')
    empty = [name for name, weight in model.named_parameters()
             if weight.ndim > 1 and weight.is_floating_point() and not weight.is_meta
             and not 0.0 < float(torch.linalg.vector_norm(weight.detach(), math.inf)) < math.inf]
    if empty:
        raise ValueError(f'{path} has weights that are all zero or no numbers ({_some(empty)}); '
                         f'{remedy}')


def _some(names: list[str]) -> str:
    return ', '.join(names[:NAMED_KEYS]) + ', ...' * (len(names) > NAMED_KEYS)


def _check_processor(path: Path, processor: object) -> None:
    """Raise ValueError where a processor lacks a part."""
    for part, file in (('image_processor', 'processor_config.json or preprocessor_config.json'),
                       ('tokenizer', 'tokenizer.json and tokenizer_config.json'),
                       ('chat_template', 'chat_template.jinja or chat_template.json')):
        if not getattr(processor, part, None):
            raise ValueError(
                f'{path} has no {part.replace("_", " ")}; copy {file} into it from the checkpoint '
                'that it was made of (of an instruct model: base models have no chat template)')


def _settle_chat_template(processor: ProcessorMixin) -> None:
    """Have one chat template: the processor's, of several the default, or else the tokenizer's."""
    tokenizer = getattr(processor, 'tokenizer', None)
    template = processor.chat_template or getattr(tokenizer, 'chat_template', None)
    processor.chat_template = template.get('default') if isinstance(template, dict) else template


def _check_chat_template(path: Path, processor: ProcessorMixin) -> None:
    """Raise ValueError where the template would hold up a node, or need all of its memory."""
    query, text = Query('', 'What is there?', 'text'), 'A car at a light. ' * 20
    contexts = (None, Context('', 0, text=text))
    chats = [messages(query, context, 0, views) for context in contexts for views in (0, 1, 2)]
    chats += [[*chat, {'role': 'assistant', 'content': [{'type': 'text', 'text': text}]}]
              for chat in chats]
    tokens = {k: str(v) for k, v in processor.tokenizer.special_tokens_map.items()}
    fault = template_fault(processor.chat_template, json.dumps(chats), json.dumps(tokens))
    if fault:
        file = next((name for name in TEMPLATES if (path / name).is_file()), 'chat template')
        raise ValueError(f'{path} cannot be used: its chat template, of {file}, {fault}; copy '
                         f'{file} from the checkpoint that it was made of')


def _fault(path: Path, config: dict[str, object], error: Exception) -> str:
    """Return what is wrong with a checkpoint that raised an error, and the remedy."""
    text = ' '.join(str(error).split())[:MAX_ERROR]
    return (_pointer(sorted(path.iterdir())) or _damaged_file(path)
            or _own_code(path) or _architecture(config.get('model_type')) or _no_weights(path)
            or _no_processor(path, text) or _quantisation(config, text) or _torchvision(text)
            or _shapes(text) or _pickled(error)
            or f'{type(error).__name__}: {text}; ' + (
                'see `spotvlm doctor` for what this installation lacks'
                if isinstance(error, ImportError) else
                'download the folder again, all of its files from one place'))


def _pointer(files: Iterable[Path]) -> str:
    """Return what to do about files that git-lfs would replace."""
    pointers = [f.name for f in files if f.is_file() and _starts_with(f, LFS_POINTER)]
    return (f'{", ".join(pointers)}: a git-lfs pointer instead of the file; run `git lfs pull` '
            'in the folder, or download the file itself' if pointers else '')


def _damaged_file(path: Path) -> str:
    """Return which file is cut off or none of its kind, or is named but absent; the remedy."""
    for file in sorted(path.iterdir()):
        check = INTACT.get(file.suffix)
        if check is not None and file.is_file() and not check(file):
            return f'{file.name} is cut off or damaged; download {file.name} again'
    for index in path.glob('*.index.json'):
        shards = json_object(index).get('weight_map')
        if not isinstance(shards, dict):
            return f'{index.name} names no weights; download {index.name} again'
        for name in sorted({str(v) for v in shards.values()}):
            if not (path / name).is_file():
                return f'{name} is not there, though {index.name} names it; download {name} too'
    return ''


def _no_weights(path: Path) -> str:
    """Return what to do where no file has the name of weights."""
    if any(file.is_file() for pattern in WEIGHTS for file in path.glob(pattern)):
        return ''
    return 'it has no weights; download model.safetensors too'


def _no_processor(path: Path, text: str) -> str:
    """Return what to do where there is no processor, or no tokenizer without other libraries."""
    names = 'processor_config.json', 'preprocessor_config.json'
    if not any((path / name).is_file() for name in names):
        return (f'it has neither {" nor ".join(names)}; copy what there is of them from '
                'the checkpoint that it was made of')
    if 'tokenizer' not in text or (path / 'tokenizer.json').is_file():
        return ''
    return (f'it has no tokenizer.json ({text}); copy tokenizer.json and tokenizer_config.json '
            'into it from the checkpoint that it was made of')


def _pickled(error: Exception) -> str:
    """Return what to do about a pickle of more than weights, which torch does not read."""
    return ('pytorch_model.bin holds more than weights, which might be code, and is not read; use '
            'a checkpoint with weights in model.safetensors'
            if isinstance(error, pickle.UnpicklingError) else '')


def _own_code(path: Path) -> str:
    """Return what to do about a checkpoint with code of its own."""
    if any('auto_map' in json_object(f) for f in path.glob('*.json')):
        return ('it needs code of its own (auto_map), which spotvlm does not run; use a '
                f'checkpoint of a family that transformers {__version__} has')
    return ''


def _unknown_quantisation(config: dict[str, object]) -> str:
    """Return what to do about quantised weights that transformers would read as they are."""
    settings = config.get('quantization_config')
    method = settings.get('quant_method') if isinstance(settings, dict) else None
    if method is None or str(method) in {*AUTO_QUANTIZER_MAPPING, 'bitsandbytes'}:
        return ''
    return (f'its weights are quantised by {method!r}, which transformers {__version__} does not '
            'know; use the checkpoint that is not quantised')


def _quantisation(config: dict[str, object], text: str) -> str:
    """Return what to do where quantised weights cannot be read."""
    settings = config.get('quantization_config')
    if not isinstance(settings, dict):
        return ('' if settings is None else 'quantization_config of config.json is no object; '
                'download config.json again, or remove the field where weights are not quantised')
    method = settings.get('quant_method', 'a method that config.json does not name')
    needed = NEEDED.get(str(method))
    return (f'its weights are quantised ({method}), and that cannot be used here: {text}; use the '
            'checkpoint that is not quantised, with parameter quantization (int8, int4), or ' +
            (f'pip install {needed}' if needed else 'install what is named'))


def _torchvision(text: str) -> str:
    """Return what to do where a processor of videos lacks its library."""
    if find_spec('torchvision') is not None or not (
            'torchvision' in text.lower() or 'video processor' in text.lower()):
        return ''
    return ('its processor needs torchvision (for videos), which is not installed, and whose '
            'wheel does not work with the CPU build of torch that spotvlm comes with; use a '
            'checkpoint whose processor takes images only (idefics3, llava, gemma3), or install '
            'builds of torch and torchvision that belong together')


def _architecture(kind: object) -> str:
    """Return what to do about a kind of model that cannot be loaded."""
    if not kind:
        return 'config.json names no kind of model (model_type); download config.json again'
    if str(kind) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return ''
    return (f'{kind!r} is no kind of model that takes images and text and that transformers '
            f'{__version__} has; use a checkpoint of another family, such as idefics3')


def _shapes(text: str) -> str:
    """Return what to do where weights have other shapes than the configuration says."""
    return ('its weights have other shapes than config.json says; download config.json and the '
            'weights again, from one place' if 'ignore_mismatched_sizes' in text else '')


def _starts_with(file: Path, *begins: bytes) -> bool:
    with file.open('rb') as stream:
        return stream.read(max(map(len, begins))).startswith(begins)


def _is_pickle(file: Path) -> bool:
    """Return whether a file is what torch.save wrote, now or before 1.6; neither is read."""
    return zipfile.is_zipfile(file) or _starts_with(file, b'\x80\x02')


def _is_whole(file: Path) -> bool:
    """Return whether a safetensors file has the header and the length that it says it has."""
    with file.open('rb') as stream:
        length = int.from_bytes(stream.read(8), 'little')
        if not 0 < length <= file.stat().st_size - 8:
            return False
        try:
            header = json.loads(stream.read(length))
            end = max((v['data_offsets'][1] for k, v in header.items() if k != '__metadata__'),
                      default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return False
    return bool(file.stat().st_size == 8 + length + end)


INTACT = {'.safetensors': _is_whole, '.bin': _is_pickle,
          '.json': lambda file: json_content(file) is not None}
