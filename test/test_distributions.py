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
"""What of ROS 2 we use is there from Humble on; which distribution `make setup` takes."""

import ast
import asyncio
import importlib
from pathlib import Path

import pytest
from spotvlm_ros.system import bootstrap, host
from spotvlm_ros.system.requirements import WHEEL_DISTROS

ROOT = Path(__file__).resolve().parents[1]
# What each module and class of rclpy, launch and launch_ros has in Humble.
HUMBLE = {name: set(there.split()) for name, _, there in (
    line.partition(':') for line in (ROOT / 'test/data/humble.txt').read_text().splitlines()
    if not line.startswith('#'))}
CHECKED = {name.partition('.')[0] for name in HUMBLE}
FILES = sorted(path for folder in ('spotvlm_ros', 'launch', 'examples')
               for path in (ROOT / folder).rglob('*.py'))


def missing(text):
    """Return what a source imports of ROS 2 that Humble has not, without another way."""
    tree = ast.parse(text)
    elsewhere = {id(node) for attempt in ast.walk(tree) if isinstance(attempt, ast.Try)
                 and 'ImportError' in {getattr(h.type, 'id', '') for h in attempt.handlers}
                 for child in attempt.body for node in ast.walk(child)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in elsewhere:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.partition('.')[0] in CHECKED
                      and a.name not in HUMBLE}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if node.module.partition('.')[0] in CHECKED:
                found |= {f'{node.module}.{a.name}' for a in node.names
                          if a.name not in HUMBLE.get(node.module, ())}
        elif isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') in CHECKED:
            name = f'{node.value.id}.{node.attr}'
            if node.attr not in HUMBLE[node.value.id] and name not in HUMBLE:
                found.add(name)
    return found


@pytest.mark.parametrize('text, found', [
    ('import rclpy.node\nrclpy.node.Node', set()),
    ('import rclpy\nwith rclpy.newer():\n    rclpy.ok()', {'rclpy.newer'}),
    ('from rclpy.node import Node', set()),
    ('from rclpy.event_handler import EventHandler', {'rclpy.event_handler.EventHandler'}),
    ('from launch_ros.actions import PushROSNamespace', {'launch_ros.actions.PushROSNamespace'}),
    ('def f():\n    import rclpy.experimental', {'rclpy.experimental'}),
    ('try:\n    from rclpy.event_handler import EventHandler\nexcept ImportError:\n'
     '    from rclpy.qos_event import Wrong', {'rclpy.qos_event.Wrong'})])
def test_names_that_humble_lacks_are_found(text, found):
    assert missing(text) == found


def test_humble_has_what_is_imported():
    assert {str(path.relative_to(ROOT)): names for path in FILES
            if (names := missing(path.read_text()))} == {}


def test_humble_has_what_is_called_on_the_classes_of_rclpy():
    pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    newer, used = set(), {}
    ours = set(dir(asyncio.AbstractEventLoop))  # and what is called alike
    for name, there in HUMBLE.items():
        module, _, kind = name.rpartition('.')
        if kind[:1].isupper() and module.startswith('rclpy'):
            now = getattr(importlib.import_module(module), kind)
            newer |= {attribute for attribute in dir(now) if attribute[0] != '_'} - there
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                where = ours if isinstance(node.ctx, ast.Store) else used.setdefault(
                    str(path.relative_to(ROOT)), set())
                where.add(node.attr)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                ours.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                ours.add(node.target.id)
    assert newer
    assert {path: names for path, attributes in used.items()
            if (names := attributes & (newer - ours))} == {}


def test_a_distribution_that_is_neither_sourced_nor_on_pypi_is_refused():
    with pytest.raises(host.SetupError, match='ROS_DISTRO is rolling') as error:
        host.choose_python(False, 'rolling')
    assert all(name in error.value.remedy for name in (*WHEEL_DISTROS, 'source /opt/ros/rolling'))


@pytest.mark.parametrize('asked, had, taken', [
    ('', '', 'kilted'), ('jazzy', '', 'jazzy'), ('', 'jazzy', 'jazzy'),
    ('kilted', 'jazzy', 'kilted')])
def test_a_distribution_stays_until_another_is_asked_for(monkeypatch, asked, had, taken):
    monkeypatch.setenv('ROS_DISTRO', asked)
    assert bootstrap.wanted_distro({'distro': had} if had else {}) == taken
