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
"""What a command line sets goes before params files, and what has no effect is an error."""

import json

import pytest
from spotvlm_ros.config.arguments import check_ros_arguments, read_ros_arguments
from spotvlm_ros.config.nodes import NODE_CONFIGS
from spotvlm_ros.config.profiles import check_file, find_profile, load_profile
from spotvlm_ros.config.spec import ParameterError

ALL = tuple(NODE_CONFIGS)
EDGES = ('/**', '/**/edge', '/robot1/edge', '/*/edge', '/robot1/*', 'edge', '/robot1/**')


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a params file and returns its path."""
    def write(sections, name='over.yaml'):
        path = tmp_path / name
        path.write_text(json.dumps({title: {'ros__parameters': values}
                                    for title, values in sections.items()}))
        return path
    return write


def resolved(*argv, nodes=ALL, namespace='/robot1'):
    """Return what each node of a process is given, as ROS reads it, by node."""
    out = check_ros_arguments(['--ros-args', '-r', f'__ns:={namespace}', *map(str, argv)], nodes)
    assert out.count('--params-file') == 1 and '-p' not in out
    with open(out[out.index('--params-file') + 1]) as file:
        document = json.load(file)
    prefix = namespace.rstrip('/') + '/'
    return {title.removeprefix(prefix): body['ros__parameters']
            for title, body in document.items()}


PROFILE = ('--params-file', find_profile('driving'))


@pytest.mark.parametrize('title', EDGES)
@pytest.mark.parametrize('rule', ['edge.threads:=3', 'edge:threads:=3', 'threads:=3'])
def test_the_command_line_beats_each_form_of_section(write, title, rule):
    over = write({title: {'threads': 2}})
    assert resolved(*PROFILE, '--params-file', over)['edge']['threads'] == 2
    for argv in (('-p', rule, '--params-file', over), ('--params-file', over, '--param', rule)):
        assert resolved(*PROFILE, *argv)['edge']['threads'] == 3


@pytest.mark.parametrize('title', EDGES)
def test_a_later_file_beats_an_earlier_one_whatever_sections_they_use(write, title):
    first = write({'/robot1/edge': {'threads': 4, 'device': 'cuda'}}, 'first.yaml')
    over = write({title: {'threads': 2}})
    edge = resolved('--params-file', first, '--params-file', over)['edge']
    assert (edge['threads'], edge['device']) == (2, 'cuda')


@pytest.mark.parametrize('title', EDGES)
def test_one_field_of_a_query_is_changed_without_naming_the_queries(write, title):
    for over, name in (({'scene': {'rate_hz': 2}}, 'scene.rate_hz'),
                       ({'scene.rate_hz': 2.0}, 'scene.rate_hz'),
                       ({'scene.ttl_s.light': 2}, 'scene.ttl_s.light')):
        path = write({title: over})
        assert resolved(*PROFILE, '--params-file', path)['edge'][name] == 2.0
        names = read_ros_arguments(['--ros-args', '-r', '__ns:=/robot1']).names(ALL)
        edge = load_profile('driving', [path], names).sections['edge']
        assert edge[name] == 2.0 and edge['queries'] == ['scene', 'action']
    for rule in ('scene.rate_hz:=2', 'edge.scene.rate_hz:=2', 'scene:={rate_hz: 2}'):
        assert resolved(*PROFILE, '-p', rule)['edge']['scene.rate_hz'] == 2.0
        assert load_profile('driving').with_values([rule]).queries()[0].rate_hz == 2.0


def test_each_node_is_given_what_it_takes():
    given = resolved(*PROFILE, '-p', 'use_sim_time:=true', '-p', 'device:=cuda', '-p',
                     'qos_overrides./robot1/image.subscription.depth:=3')
    assert given['edge']['device'] == 'cuda' and 'device' not in given['camera']
    assert 'queries' not in given['camera'] and given['cloud']['queries'] == ['scene', 'action']
    assert all(g['use_sim_time'] is True and len(g) > 2 for g in given.values())
    assert set(resolved(*PROFILE, nodes=('edge',))) == {'edge'}
    assert resolved('-p', 'device:=2')['camera']['device'] == 2


def test_nodes_by_other_names(write):
    over = write({'/**/brain': {'threads': 2}, '/**/edge2': {'threads': 9, 'device': 'cuda'}})
    argv = ('--params-file', over, '-r', 'edge:__node:=brain')
    assert resolved(*argv)['brain']['threads'] == 2
    assert resolved(*argv, '-p', 'brain.threads:=3')['brain']['threads'] == 3
    assert resolved('--params-file', over, '-r', '__node:=brain',
                    nodes=('edge',))['brain']['threads'] == 2


def test_sections_of_others_are_left_alone(write):
    """Their own nodes, one with the name of ours elsewhere, and another robot with our graph."""
    path = write({
        '/**/lidar': {'rate_hz': 5, 'model': 'x'}, '/camera/camera': {'rgb_profile': '640x480'},
        'camera1': {'video_device': '/dev/video0', 'framerate': 30.0, 'frame_id': 'x'},
        '/robot1/edge': {'threads': 2}, '/robot2/edge': {'threads': 3}})
    assert resolved('--params-file', path)['edge'] == {'threads': 2}
    nested = path.with_name('nested.yaml')
    nested.write_text('robot1: {edge: {ros__parameters: {threads: 5}}, '
                      'lidar: {ros__parameters: {a: 1}}}')
    assert resolved('--params-file', nested)['edge'] == {'threads': 5}
    assert check_file(nested, values=False)['edge'] == {'threads': 5}


@pytest.mark.parametrize('title, values, words', [
    ('/**/edge', {'thread': 2}, 'did you mean threads'),
    ('/**', {'modle': 'x'}, 'did you mean model'),
    ('/**/edge', {'scene.rate_hs': 2}, 'did you mean scene.rate_hz'),
    ('/**/edge', {'seen.rate_hz': 2}, 'did you mean scene.rate_hz'),
    ('/**/camera', {'model': 'x'}, 'it is one of node edge and cloud'),
    ('/**/camera', {'scene.rate_hz': 2}, 'it is one of node edge'),
    ('/**/cloud', {'fallback.eu.model': 'x'}, 'unknown parameter fallback.eu.model'),
    ('/**/egde', {'threads': 2}, 'did you mean /**/edge'),
    ('/**/edge_node', {'modle': 'x'}, 'did you mean /**/edge'),
    ('/**/Cloud', {'base_url': 'x'}, 'did you mean /**/cloud'),
    ('/edge', {'threads': 2}, 'edge is /robot1/edge here'),
    ('/robto1/edge', {'threads': 2}, 'edge is /robot1/edge here'),
    ('/robto1/**', {'threads': 2}, 'is for no node of ours'),
    ('robto1/edge', {'threads': 2}, 'edge is /robot1/edge here')])
def test_a_mistyped_name_in_a_file_is_an_error_with_the_nearest(write, title, values, words):
    path = write({title: values})
    names = read_ros_arguments(['--ros-args', '-r', '__ns:=/robot1']).names(ALL)
    for read in (lambda: resolved(*PROFILE, '--params-file', path),
                 lambda: load_profile('driving', [path], names)):
        with pytest.raises(ParameterError) as error:
            read()
        assert words in str(error.value) and str(path) in str(error.value)


def test_what_stands_beside_ros_parameters_is_an_error(tmp_path):
    path = tmp_path / 'over.yaml'
    path.write_text('/**/edge:\n  ros__parameters: {model: x}\n  threads: 2\n')
    with pytest.raises(ParameterError, match='threads stands beside ros__parameters'):
        resolved('--params-file', path)


@pytest.mark.parametrize('argv, words', [
    (['-p', 'modle:=x'], 'did you mean model'), (['-p', 'edge.modle:=x'], 'did you mean model'),
    (['-p', 'egde:model:=x'], 'node egde is not here; use one of camera, edge'),
    (['-p', 'nonsense:=1'], 'see spotvlm params'), (['-p', 'threads'], 'NODE.NAME:=VALUE'),
    (['-p', 'threads:=['], 'threads:='), (['-p'], 'ends the command line'),
    (['-p', 'edge.queries:=[1]'], 'quotes'),
    (['-r', 'imgae:=/x'], 'did you mean image'), (['-r', 'image=/x'], 'FROM:=TO'),
    (['-r', '__node:=x'], 'edge:__node:=x'), (['-r', 'egde:image:=/x'], 'node egde is not here'),
    (['-p', 'camera.topic:=/x'], 'no effect with source mini, only with bag'),
    (['-p', 'camera.source:=topic', '-p', 'camera.topic:=/x'], '-r image:='),
    (['-p', 'seed:=4', '-p', 'camera.source:=usb'], 'no effect with source usb, only with mini'),
    (['--', '-p', 'threads:=2'], 'behind --ros-args')])
def test_an_argument_without_effect_is_an_error(argv, words):
    with pytest.raises(ParameterError) as error:
        resolved(*PROFILE, *argv)
    assert words in str(error.value)


def test_values_are_left_to_the_nodes_but_not_what_ros_cannot_carry():
    assert resolved('-p', 'threads:=1000', '-p', 'edge.model:=3')['edge'] == {
        'threads': 1000, 'model': 3}
    with pytest.raises(ParameterError, match='threads must be'):
        resolved('-p', 'threads:=[1, x]')
