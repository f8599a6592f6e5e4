# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Names of models."""

from pathlib import Path

from .models import resolve

MEANINGLESS = ('the miniature models were trained on rendered worlds; what they say about real '
               'camera frames is not meaningful')


def model_path(name: str) -> str:
    """Return the folder of a shipped checkpoint; any other name or path as it is."""
    path = resolve(name)
    return str(path) if path.is_dir() else name


def is_miniature(name: str) -> bool:
    """Return whether a model was trained on rendered worlds only."""
    return Path(name).name.startswith('spot-mini')
