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
"""Answers of models kept on disk, by everything that they depend on."""

from __future__ import annotations

from collections.abc import Iterable
import hashlib
import json
import os
from pathlib import Path
from typing import Generic, TypeVar

from ...method.facts import Fact, Region

PACKAGE = Path(__file__).resolve().parents[2]
# What shapes an answer besides the checkpoint: frames, JPEG, prompts, views, the engine, defaults.
CODE = ('mini/**/*.py', 'method/prompt.py', 'method/focus.py', 'method/facts.py',
        'method/history.py', 'edge/**/*.py', 'cloud/parse.py', 'config/nodes.py',
        'frames/pixels.py', 'bench/spotbench/models.py')

V = TypeVar('V')   # what JSON can hold
PackedFact = tuple[str, str, float, list[float] | None]   # key, value, confidence, x y w h


def fingerprint(files: Iterable[Path]) -> str:
    """Return a short hash of files and of their names."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b'\0' + path.read_bytes())
    return digest.hexdigest()[:12]


def model_hash(checkpoint: Path) -> str:
    """Return a short hash of a checkpoint folder: weights, configuration, tokenizer."""
    return fingerprint(p for p in checkpoint.iterdir() if p.suffix in ('.safetensors', '.json')
                       and p.name != 'training_log.json')


def code_hash() -> str:
    """Return a short hash of the code that answers depend on."""
    return fingerprint(p for pattern in CODE for p in PACKAGE.glob(pattern))


class Cache(Generic[V]):
    """One JSON file of values; without a folder it lasts as long as the object."""

    def __init__(self, folder: Path | None, name: str) -> None:
        """Read what there is."""
        self._path = folder / f'{name}.json' if folder is not None else None
        self._values: dict[str, V] = {}
        self._new = False
        if self._path is not None and self._path.is_file():
            try:
                self._values = json.loads(self._path.read_text())
            except ValueError:
                pass  # cut off by a crash of the machine: made anew

    def get(self, key: str) -> V | None:
        """Return what is kept, None when nothing is."""
        return self._values.get(key)

    def put(self, key: str, value: V) -> None:
        """Keep something that JSON can hold."""
        self._values[key] = value
        self._new = True

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self._path is not None and self._new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_suffix(f'.{os.getpid()}.part')
            part.write_text(json.dumps(self._values))
            part.replace(self._path)
            self._new = False


def pack(facts: Iterable[Fact]) -> list[PackedFact]:
    """Return facts as JSON; their stamps are the reader's to know."""
    return [(f.key, f.value, f.confidence, [f.region.x, f.region.y, f.region.w, f.region.h]
             if f.region is not None else None) for f in facts]


def unpack(rows: Iterable[PackedFact], stamp_ns: int) -> tuple[Fact, ...]:
    """Return facts of the frame of ``stamp_ns``."""
    return tuple(Fact(key, value, stamp_ns, confidence, Region(*box) if box else None)
                 for key, value, confidence, box in rows)
