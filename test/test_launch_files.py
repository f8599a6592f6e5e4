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
"""Launch files: read as source everywhere, started for real where launch is installed."""

import ast
import importlib.util
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

from fakes import wait_for
import numpy as np
import pytest
from spotvlm_ros.system.processes import PYTHON
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
ARGUMENTS = {'namespace', 'use_sim_time', 'params_file', 'profile', 'autostart', 'use_respawn',
             'log_level', 'composed', 'embedded_cloud', 'image', 'model', 'device', 'source',
             'path', 'image_transport', 'base_url', 'cloud_model'}
LAUNCH = [sys.executable, '-c', 'import sys; from ros2cli.cli import main; sys.exit(main())',
          'launch', 'spotvlm_ros']
RUN = [*PYTHON, '-m', 'spotvlm_ros.cli', 'run']
needs_launch = pytest.mark.skipif(
    not (importlib.util.find_spec('launch_ros') and importlib.util.find_spec('ros2launch')),
    reason='launch is not on PyPI; it comes with an installed ROS. The same by spotvlm run is '
    'here, in test_nodes_run.py and in test_config_arguments.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.name)
def test_is_a_launch_file(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert 'generate_launch_description' in {
        n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def test_arguments_are_described():
    tree = ast.parse((ROOT / 'launch' / 'spotvlm.launch.py').read_text())
    declared = {key.value: value.elts[-1] for node in tree.body if isinstance(node, ast.Assign)
                and node.targets[0].id in ('PARAMETERS', 'ARGUMENTS')
                for key, value in zip(node.value.keys, node.value.values)}
    assert set(declared) == ARGUMENTS
    assert all(len(ast.literal_eval(text)) > 10 for text in declared.values())


def test_node_cloud_starts_the_embedded_server_itself():
    config = yaml.safe_load((ROOT / 'config' / 'embedded_cloud.yaml').read_text())
    values = config['/**/cloud']['ros__parameters']
    assert values['base_url'] == '' and values['embedded_threads'] >= 1


class Launched:
    """A launch in a process group of its own, as in a terminal, ended by Ctrl-C."""

    def __init__(self, tmp_path, *arguments, program=LAUNCH):
        """Start."""
        self._log = tmp_path / 'log'
        with self._log.open('w') as out:
            self.process = subprocess.Popen(
                [*program, *arguments], stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, 'ROS_LOG_DIR': str(tmp_path / 'ros')})

    def __enter__(self):
        """Return this."""
        return self

    def __exit__(self, *_):
        """End."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            assert self.process.wait(20.0) == 0
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def log(self):
        """Return what it has said."""
        return self._log.read_text()


@pytest.fixture
def node():
    """Return a node that is spun by `wait_for` of the tests."""
    rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: make setup')
    rclpy.init()
    yield rclpy.create_node('observer')
    rclpy.shutdown()


def parameters(node, name, wanted):
    """Return the values that another node has of some parameters."""
    import rclpy
    from rcl_interfaces.srv import GetParameters
    from rclpy.parameter import parameter_value_to_python
    client = node.create_client(GetParameters, f'{name}/get_parameters')
    assert client.wait_for_service(20.0), name
    future = client.call_async(GetParameters.Request(names=list(wanted)))
    rclpy.spin_until_future_complete(node, future, timeout_sec=10.0)
    return dict(zip(wanted, map(parameter_value_to_python, future.result().values)))


@pytest.fixture
def overlay(tmp_path):
    """Return a params file that is laid over a profile: in part the arguments', in part not."""
    path = tmp_path / 'over.yaml'
    path.write_text('/**:\n  ros__parameters:\n    scene: {rate_hz: 2}\n    autostart: false\n'
                    '/**/edge: {ros__parameters: {model: overlaid, threads: 2, device: cuda}}\n'
                    '/**/camera: {ros__parameters: {frame_id: overlaid}}\n'
                    '/**/cloud: {ros__parameters: {model: overlaid, retries: 7}}\n'
                    '/**/lidar: {ros__parameters: {rate_hz: 10}}\n')
    return path


GIVEN = {'model': '/m', 'device': 'cuda:1', 'source': 'usb', 'image_transport': 'compressed',
         'base_url': 'http://robot:9/v1', 'cloud_model': 'yes', 'use_sim_time': 'true'}


# The same by spotvlm run.
GIVEN_TO_RUN = ['--usb', '0', '--namespace', 'robot1', *(word for rule in (
    'edge.model:=/m', 'edge.device:=cuda:1', 'image_transport:=compressed',
    'cloud.base_url:=http://robot:9/v1', 'cloud.model:="yes"', 'cloud.embedded_threads:=1',
    'use_sim_time:=true') for word in ('-p', rule))]


@pytest.mark.parametrize('program, file, mode', [
    pytest.param(LAUNCH, 'spotvlm.launch.py', ['composed:=true'], marks=needs_launch),
    pytest.param(LAUNCH, 'driving.launch.py', ['composed:=false'], marks=needs_launch),
    pytest.param(LAUNCH, 'hri.launch.py', ['composed:=true'], marks=needs_launch),
    (RUN, 'driving', ['--multi-process']), (RUN, 'hri', [])])
def test_arguments_go_before_the_overlay_and_that_before_the_profile(
        program, file, mode, overlay, tmp_path, node):
    arguments = [*GIVEN_TO_RUN, '--params-file', str(overlay)] if program is RUN else [
        'namespace:=robot1', f'params_file:={overlay}',
        *(f'{name}:={value}' for name, value in GIVEN.items())]
    with Launched(tmp_path, file, *mode, *arguments, program=program) as launched:
        edge = parameters(node, '/robot1/edge', [
            'model', 'device', 'threads', 'image_transport', 'use_sim_time', 'autostart'])
        camera = parameters(node, '/robot1/camera', ['source', 'frame_id', 'rate_hz', 'world'])
        cloud = parameters(node, '/robot1/cloud', [
            'base_url', 'model', 'retries', 'image_transport', 'embedded_threads'])
        context = parameters(node, '/robot1/context', ['queries', 'image_transport'])
    assert edge == {'model': '/m', 'device': 'cuda:1', 'threads': 2, 'autostart': False,
                    'image_transport': 'compressed', 'use_sim_time': True}
    assert camera == {'source': 'usb', 'frame_id': 'overlaid', 'rate_hz': 0.0,
                      'world': file.partition('.')[0].replace('spotvlm', 'driving')}
    assert cloud == {'base_url': 'http://robot:9/v1', 'model': 'yes', 'retries': 7,
                     'image_transport': 'compressed', 'embedded_threads': 1}
    assert context['queries'] == ['scene', 'intent' if file.startswith('hri') else 'action']
    assert 'Traceback' not in launched.log and 'has died' not in launched.log


@needs_launch
@pytest.mark.parametrize('embedded, expected', [
    ('auto', {'base_url': '', 'model': 'overlaid', 'embedded_threads': 1}),
    ('true', {'base_url': '', 'model': 'spot-mini-cloud', 'embedded_threads': 1}),
    ('false', {'base_url': '', 'model': 'overlaid', 'embedded_threads': 0})])
def test_what_is_not_given_is_left_to_the_overlay(embedded, expected, overlay, tmp_path, node):
    with Launched(tmp_path, 'driving.launch.py', f'params_file:={overlay}',
                  f'embedded_cloud:={embedded}'):
        assert parameters(node, '/cloud', expected) == expected
        assert parameters(node, '/edge', ['model', 'device', 'autostart']) == {
            'model': 'overlaid', 'device': 'cuda', 'autostart': False}
        assert parameters(node, '/camera', ['source', 'rate_hz']) == {
            'source': 'mini', 'rate_hz': 12.0}


@pytest.mark.parametrize('program, arguments', [
    pytest.param(LAUNCH, ['composed:=true'], marks=needs_launch),
    pytest.param(LAUNCH, ['composed:=false'], marks=needs_launch),
    (RUN, []), (RUN, ['--multi-process'])])
def test_images_of_another_topic_are_answered(program, arguments, server, tmp_path, node):
    """The server that is named is asked for the model that is named."""
    import rclpy
    from sensor_msgs.msg import CompressedImage
    from spotvlm_msgs.msg import Answer
    from spotvlm_ros.frames.pixels import encode_jpeg
    jpeg, answers = encode_jpeg(np.full((64, 64, 3), 99, np.uint8)), []
    publisher = node.create_publisher(CompressedImage, '/cam/image_raw/compressed', 5)
    for topic in ('answers', 'cloud/answers'):
        node.create_subscription(Answer, f'/robot1/{topic}', answers.append, 10)

    def answered():
        message = CompressedImage(format='jpeg', data=jpeg)
        message.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(message)
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            rclpy.spin_once(node, timeout_sec=0.05)
        return {a.source for a in answers} >= {Answer.SOURCE_EDGE, Answer.SOURCE_CLOUD}
    if program is LAUNCH:
        arguments = ['driving.launch.py', *arguments, 'namespace:=robot1', 'image:=/cam/image_raw',
                     'image_transport:=compressed', f'base_url:={server.url}',
                     'cloud_model:=named']
    else:
        arguments = ['driving', *arguments, '--topic', '--namespace', 'robot1', '--ros-args', '-r',
                     'image:=/cam/image_raw', '-p', 'image_transport:=compressed', '-p',
                     f'cloud.base_url:={server.url}', '-p', 'cloud:model:=named']
    with Launched(tmp_path, *arguments, program=program) as launched:
        wait_for(answered, 40.0)
    assert 'Traceback' not in launched.log
    assert {r['model'] for r in server.requests} == {'named'}


@needs_launch
@pytest.mark.parametrize('arguments, words', [
    (['modle:=x'], 'unknown launch argument modle; did you mean model?'),
    (['params_file:=/nowhere.yaml'], '/nowhere.yaml is no params file')])
def test_a_wrong_argument_starts_nothing(arguments, words, tmp_path):
    done = subprocess.run([*LAUNCH, 'driving.launch.py', *arguments], capture_output=True,
                          text=True, timeout=30)
    assert done.returncode == 1 and words in done.stderr + done.stdout
    assert 'process started' not in done.stdout


@needs_launch
@pytest.mark.parametrize('text, words', [
    ('/**/edge: {ros__parameters: {thread: 2}}', 'did you mean threads?'),
    ('/**/egde: {ros__parameters: {threads: 2}}', r'did you mean /\*\*/edge?')])
def test_a_mistyped_overlay_ends_the_nodes(text, words, tmp_path):
    path = tmp_path / 'over.yaml'
    path.write_text(text)
    with Launched(tmp_path, 'driving.launch.py', f'params_file:={path}') as launched:
        launched.process.wait(20.0)
    assert re.search(words, launched.log) and str(path) in launched.log, launched.log


@needs_launch
def test_a_process_that_ends_again_and_again_is_not_started_for_ever(tmp_path):
    path = tmp_path / 'over.yaml'
    path.write_text('/**/edge: {ros__parameters: {thread: 2}}')
    with Launched(tmp_path, 'driving.launch.py', f'params_file:={path}',
                  'use_respawn:=true') as launched:
        launched.process.wait(60.0)
    assert launched.log.count('did you mean threads?') == 6, launched.log
    assert 'exit code 1: it is not started again' in launched.log


@needs_launch
@pytest.mark.parametrize('composed', ['true', 'false'])
def test_starts_and_ends_cleanly(composed, tmp_path, node):
    with Launched(tmp_path, 'driving.launch.py', f'composed:={composed}', 'embedded_cloud:=false',
                  'autostart:=false') as launched:
        for name in ('camera', 'edge', 'cloud', 'context'):
            assert parameters(node, f'/{name}', ['autostart']) == {'autostart': False}
    assert 'process started' in launched.log and 'Traceback' not in launched.log
    assert 'has died' not in launched.log
