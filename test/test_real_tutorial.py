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
"""The way from a recording to a better edge model, as docs/real.md prints it, on a tiny set."""

from __future__ import annotations

import json
import os
from pathlib import Path
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.config.profiles import load_profile
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.labels.schema import read_label_file
from spotvlm_ros.training.main import main
import tiny

DOCUMENT = Path(__file__).resolve().parents[1] / 'docs' / 'real.md'
TINY = {'DRIVES': '2', 'DRIVE_S': '4', 'TESTS': '1', 'TEST_S': '2',
        'TRAIN': '--device cpu --steps 4 --batch 8 --frames 60 --first 4 --workers 1'}


@pytest.fixture(scope='module')
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the commands of the document have filled."""
    folder = tmp_path_factory.mktemp('lab')
    commands = re.search(r'## The whole way.*?```bash\n(.*?)```', DOCUMENT.read_text(), re.DOTALL)
    assert commands
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = str(free.getsockname()[1])
    program = folder / 'bin' / 'spotvlm'
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m spotvlm_ros.cli "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, **TINY, 'LAB': str(folder), 'PORT': port,
                   'SPOTVLM_API_KEY': 'a-key-of-this-test',
                   'PATH': f'{program.parent}:{os.environ["PATH"]}'}
    done = subprocess.run(['bash', '-euo', 'pipefail', '-c', commands[1]], text=True,
                          env=environment, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def alone(folder: Path) -> float:
    """Return the share of facts that the edge alone has right in a scored run."""
    cells = json.loads((folder / 'results.json').read_text())['cells']
    return next(float(c['value']) for c in cells if (
        c['system'], c['slice'], c['metric']) == ('edge alone', 'all', 'accuracy'))


def test_the_commands_lead_from_a_recording_to_a_scored_model(lab):
    query = load_profile('driving').queries()[0]
    for n in '12':
        header, said = read_label_file(lab / 'said' / f'{n}.jsonl', query)
        assert header is not None and header.labelled_by == 'spot-mini-cloud'
        assert len(said) >= 4 and any(label.regions for label in said)
    card = (lab / 'taught' / 'README.md').read_text()
    assert 'Apache-2.0' in card and 'Trained on' in card
    assert alone(lab / 'plain') != alone(lab / 'before') != alone(lab / 'after')


def test_what_the_cloud_said_teaches_a_checkpoint_of_another_family_by_lora(lab, tmp_path):
    pytest.importorskip('peft', reason='pip install peft')
    for part in tiny.checkpoint('smolvlm'):
        part.save_pretrained(tmp_path / 'start')
    assert main([
        '--labels', str(lab / 'said'), '--start', str(tmp_path / 'start'), '--lora', '--out',
        str(tmp_path / 'out'), *TINY['TRAIN'].split(), '--batch', '2', '--steps', '2']) == 0
    query = load_profile('driving').queries()[0]
    edge = EdgeModel.load(EdgeConfig(model=str(tmp_path / 'out')))
    answer = edge.answer(np.zeros((96, 160, 3), np.uint8), query, None, 0)
    assert {fact.key for fact in answer.facts} <= set(query.choices)
