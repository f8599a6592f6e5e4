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
"""SpotBench: label files."""

from __future__ import annotations

import os

import pytest

from spotvlm_ros.labels.schema import (Header, Label, LabelError, read_label_file, read_labels,
                                       write_labels)
from spotvlm_ros.method.facts import Region
from spotvlm_ros.mini.driving.scene import SCENE

GOOD = ('{"t": 0.5, "facts": {"light": "red", "lead": "none"}}\n\n'
        '{"t": 1, "facts": {"light": "green"}, "regions": {"light": [10, 20, 30, 40.5]}}\n')


def test_a_good_file_is_read(tmp_path):
    (tmp_path / 'l.jsonl').write_text(GOOD)
    first, second = read_labels(tmp_path / 'l.jsonl', SCENE)
    assert (first.t, first.facts, first.regions) == (0.5, {'light': 'red', 'lead': 'none'}, {})
    assert second.regions == {'light': Region(10, 20, 30, 40.5)}


@pytest.mark.parametrize('line, words', [
    ('{"t": 2, "facts": {"light": "blue"}}', ('line 4', 'facts.light', "'blue'", 'red, yellow')),
    ('{"t": 2, "facts": {"lamp": "red"}}', ('line 4', 'facts.lamp', 'light, limit', '--profile')),
    ('{"t": 2}', ('line 4', 'facts', 'required', '{key: value}')),
    ('{"t": 2, "facts": {}}', ('line 4', 'facts')),
    ('{"t": "2", "facts": {"light": "red"}}', ('line 4', 't:', 'number')),
    ('{"t": -1, "facts": {"light": "red"}}', ('line 4', 't:', 'greater')),
    ('{"t": 2, "fact": {"light": "red"}, "facts": {"light": "red"}}', ('line 4', 'fact:')),
    ('{"t": 2, "facts": {"light": true}}', ('line 4', 'facts.light', 'string')),
    ('{"t": 2, "facts": {"light": "red"}, "regions": {"light": [1, 2, 3, 0]}}',
     ('line 4', 'regions.light.3', 'greater than 0')),
    ('{"t": 2, "facts"', ('line 4', 'JSON')),
    ('{"t": 1, "facts": {"light": "red"}}', ('sort the lines',)),
])
def test_an_error_names_line_field_and_remedy(tmp_path, line, words):
    (tmp_path / 'l.jsonl').write_text(GOOD + line + '\n')
    with pytest.raises(LabelError) as error:
        read_labels(tmp_path / 'l.jsonl', SCENE)
    for word in words:
        assert word in str(error.value)


def test_no_labels_and_no_file_are_errors(tmp_path):
    (tmp_path / 'l.jsonl').write_text('\n')
    with pytest.raises(LabelError, match='holds no labels; each line is'):
        read_labels(tmp_path / 'l.jsonl', SCENE)
    with pytest.raises(LabelError, match='one JSON object per line'):
        read_labels(tmp_path / 'none.jsonl', SCENE)


@pytest.mark.parametrize('data, words', [
    ('{"t": 1, "facts": {"light": "caf\xe9"}}'.encode('latin-1'), 'not UTF-8'),
    (b'{"t": 1e300, "facts": {"light": "red"}}', 'less than or equal'),
    (b'{"t": ' + b'9' * 5000 + b', "facts": {"light": "red"}}', 'line 1'),
    (b'{"t": 1, "facts": {"light": "red"}, "regions": {"light": [1e300, 1, 2, 3]}}', 'regions'),
    (b'[' * 100_000, 'line 1'), (b'{"a":' * 100_000, 'line 1'), (b'\0\0', 'line 1'),
    (b'{"t": 1, "facts": {"\\u001b[31m": "red"}}', r'\x1b')])
def test_odd_files_are_errors_that_name_the_line(tmp_path, data, words):
    (tmp_path / 'l.jsonl').write_bytes(data)
    with pytest.raises(LabelError) as error:
        read_labels(tmp_path / 'l.jsonl', SCENE)
    assert words in str(error.value) and '\x1b' not in str(error.value)


def test_a_pipe_holds_no_labels(tmp_path):
    os.mkfifo(tmp_path / 'l.jsonl')
    with pytest.raises(LabelError, match='is no file'):
        read_labels(tmp_path / 'l.jsonl', SCENE)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / 'l.jsonl'
    header = Header(recording='drive', kind='bag', topic='/image', labelled_by='a model')
    labels = [Label(0.5, {'light': 'red'}, {'light': Region(1, 2, 3, 4)}, {'light': 0.5},
                    {'light': 'green'}, '000001.jpg'), Label(1.5, {'light': 'none'}, {})]
    write_labels(path, labels, header)
    assert read_label_file(path, SCENE) == (header, labels)
    write_labels(path, labels)
    assert read_label_file(path, SCENE) == (None, labels)


def test_a_header_that_is_wrong_names_its_field(tmp_path):
    (tmp_path / 'l.jsonl').write_text('{"recording": "drive", "kind": "film"}\n' + GOOD)
    with pytest.raises(LabelError, match='line 1: kind'):
        read_labels(tmp_path / 'l.jsonl', SCENE)
