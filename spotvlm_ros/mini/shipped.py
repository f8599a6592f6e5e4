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

CHECKPOINTS = Path(__file__).parent / 'checkpoints'
REPLY_FORM = 'reply_form.txt'  # beside the weights of a checkpoint
MINIATURE_WARNING = ('the miniature models were trained on rendered worlds; what they say about '
                     'real camera frames is not meaningful')


def checkpoint_path(name: str) -> Path:
    """Return the folder of a shipped checkpoint given its bare name, else ``name`` as a path."""
    shipped = CHECKPOINTS / name
    return shipped if '/' not in name and shipped.is_dir() else Path(name).expanduser()


def model_name_or_path(name: str) -> str:
    """Return the folder that ``checkpoint_path`` finds; where there is none, ``name`` as it is."""
    path = checkpoint_path(name)
    return str(path) if path.is_dir() else name


def trained_reply_form(name: str) -> str:
    """Return how a checkpoint says it was trained to be asked for facts, '' without a word."""
    path = checkpoint_path(name) / REPLY_FORM
    return path.read_text(encoding='utf-8').strip() if path.is_file() else ''


def is_miniature(name: str) -> bool:
    """Return whether a model, given by name or path, was trained on rendered worlds only."""
    return Path(name).name.startswith('spot-mini')
