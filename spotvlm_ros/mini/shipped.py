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
"""The shipped checkpoints: where they are, and what to warn of when they are used."""

from pathlib import Path

from ..system.text_file import read_text_file

CHECKPOINTS = Path(__file__).parent / 'checkpoints'
REPLY_FORM = 'reply_form.txt'  # beside the weights of a checkpoint
MAX_FORM = 1 << 14             # bytes of it
NOTE = ('the miniature models were trained on rendered worlds; what they say about real camera '
        'frames is not meaningful')
NOTES = {'spot-mini-edge-hri': (
    'this miniature knows hands near the camera that show 0 to 9 (Turkish signs), and 28 gestures '
    'of the people who taught it; what else it says about real camera frames is not meaningful')}
MORE_QUESTIONS = {'spot-mini-edge-hri': (  # those of config/real
    'Which digit does the hand show?', 'Which gesture does the person make?')}


def checkpoint_path(name: str) -> Path:
    """Return the folder of a shipped checkpoint given its bare name, else ``name`` as a path."""
    shipped = CHECKPOINTS / name
    return shipped if '/' not in name and shipped.is_dir() else Path(name).expanduser()


def model_name_or_path(name: str) -> str:
    """Return the folder that ``checkpoint_path`` finds; where there is none, ``name`` as it is."""
    path = checkpoint_path(name)
    return str(path) if path.is_dir() else name


def trained_reply_form(name: str) -> str:
    """
    Return how a checkpoint says it was trained to be asked for facts, '' without a word.

    Raise ValueError where that file cannot be used.
    """
    path = checkpoint_path(name) / REPLY_FORM
    try:
        return read_text_file(path, MAX_FORM).strip() if path.exists() else ''
    except ValueError as error:
        raise ValueError(f'{path} {error}; write it anew, or remove it') from error


def beyond_miniature(model: str, prompt: str) -> str:
    """Return what to say of a model's answer to a question it was not trained on, '' else."""
    from .driving.scene import ACTION, DESCRIBE, SCENE
    from .hri.scene import HRI_DESCRIBE, HRI_SCENE, INTENT
    known = [query.prompt for query in (SCENE, ACTION, DESCRIBE, HRI_SCENE, INTENT, HRI_DESCRIBE)]
    known += MORE_QUESTIONS.get(Path(model).name, ())
    if not note_on(model) or prompt in known:
        return ''
    return (f'{Path(model).name} was trained on these questions only: {" ".join(known)} What it '
            'says to another one means nothing; set model of node edge to a real checkpoint')


def note_on(name: str) -> str:
    """Return what a shipped model, given by name or path, cannot do; '' for others."""
    name = Path(name).name
    return NOTES.get(name, NOTE if name.startswith('spot-mini') else '')
