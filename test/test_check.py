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
"""`spotvlm check`: whether a model answers in time, and what else is told of it."""

from dataclasses import replace
import json

import pytest
from spotvlm_ros.bench import check
from spotvlm_ros.bench.perf.roofline import CHIPS, rows
from spotvlm_ros.config.nodes import EdgeConfig
from spotvlm_ros.edge import accuracy
from spotvlm_ros.edge.model import EdgeModel
from spotvlm_ros.edge.native.library import why_not
from spotvlm_ros.mini.driving.scene import ACTION, SCENE
import tiny


def test_a_model_that_is_in_time_and_one_that_is_not(capsys):
    assert check.main(['spot-mini-edge', '--seconds', '0', '--json', '-p',
                       'edge.scene.deadline_s:=30.0', '-p', 'edge.action.deadline_s:=30.0',
                       '-p', 'edge.scene.rate_hz:=0.1']) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['fine'] and report['family'] == 'idefics3' and report['engine'] == 'fast'
    compiled = not why_not()
    assert (report['why'] == '') == compiled and report['tokens_per_view'] == 12  # 9 + 3 around
    assert [q['id'] for q in report['queries']] == ['scene', 'action']
    assert report['formats'] == f'decoder float32{" by native" * compiled}, vision float32'
    assert ' = ' in report['memory']['bfloat16 with int4 weights']
    assert check.main(['spot-mini-edge', '--seconds', '0', '-p',
                       'edge.scene.deadline_s:=0.01', '-p', 'edge.quantization:=int8']) == 1
    said = capsys.readouterr().out
    assert 'scene: p50' in said and 'LATE' in said


def test_why_a_model_is_not_fast(tmp_path):
    for part in tiny.checkpoint('llava'):
        part.save_pretrained(tmp_path)
    config = EdgeConfig(model=str(tmp_path))
    report = check.check(replace(config, engine='generate'), (SCENE,), 0.0)
    assert report.engine == 'generate' and "set it to 'fast'" in report.why
    model, processor = tiny.checkpoint('llava')
    model.config.model_type = 'vipllava'
    assert 'no engine for vipllava' in check.why_slow(tiny.edge_model(model, processor), config)
    model, processor = tiny.checkpoint('llava')
    edge = tiny.edge_model(model, processor)
    edge.use_processor()
    assert 'made by the processor' in check.why_slow(edge, config)


def test_what_cannot_be_loaded_is_an_error_not_a_traceback(tmp_path, capsys):
    assert check.main([str(tmp_path / 'none'), '--json']) == 1
    assert 'no such folder' in json.loads(capsys.readouterr().out)['error']
    assert check.main(['spot-mini-edge', 'driven']) == 1
    assert "no profile 'driven'" in capsys.readouterr().err


def test_facts_lost_are_counted_in_pairs(monkeypatch):
    plain, other = [[1, 1, 0, 1]] * 4, [[1, 1, 0, 1]] * 3 + [[0, 1, 1, 0]]
    results = iter([plain, plain, other, other, other, plain, other])
    monkeypatch.setattr(check, 'right', lambda config, samples: check.np.array(
        next(results), dtype=float))
    same, worse, *_ = check.losses(EdgeConfig(), 1)
    assert same.points == same.low == 0.0 and same.fine and same.facts == 16
    assert worse.points == 6.25 and worse.low < worse.points < worse.high and not worse.fine
    smaller, = check.losses(EdgeConfig(view_size=24), 1)
    assert smaller.format == 'view_size 24' and smaller.points == 6.25


def test_what_formats_lose_is_kept_and_a_costly_one_is_refused(tmp_path, monkeypatch, capsys):
    for part in tiny.checkpoint('llava'):
        part.save_pretrained(tmp_path)
    found = [check.Loss(name, 960, points, 0.0, 3.0, points <= 1)
             for name, points in (('int8', 0.2), ('int4', 2.4), ('int8_dynamic', 1.0))]
    monkeypatch.setattr(check, 'losses', lambda config, frames: tuple(found))
    config = EdgeConfig(model=str(tmp_path), quantization='int4')
    report = check.check(config, (SCENE,), 0.0, 5)
    check.print_report(report)
    assert 'int4: +2.40 points of 960 facts lost' in (said := capsys.readouterr().out)
    assert said.count('refused from now on') == 1
    with pytest.raises(ValueError, match=r"'int4', which costs 2.4 points.*use 'int8' or "
                       "'int8_dynamic' or 'none', or count again"):
        EdgeModel.load(config)
    assert 'int4' in EdgeModel.load(config, any_format=True).formats
    assert 'int8' in EdgeModel.load(replace(config, quantization='int8')).formats


@pytest.mark.parametrize('points, able, chosen', [
    (0.4, True, 'int8_dynamic'), (1.2, True, 'none'), (0.4, False, 'none'), (None, True, 'none')])
def test_the_fastest_format_is_chosen_where_it_was_counted_and_costs_little(
        points, able, chosen, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, '_multiplies_bytes', lambda: able)
    if points is not None:
        assert accuracy.keep_points(tmp_path, {'int8_dynamic': points}, 960)
    config = EdgeConfig(quantization='auto', vision_quantization='auto')
    found = accuracy.settled(config, tmp_path)
    assert (found.quantization, found.vision_quantization) == (chosen, chosen)
    assert accuracy.settled(replace(config, device='cuda'), tmp_path).quantization == 'none'
    assert accuracy.settled(EdgeConfig(), tmp_path) == EdgeConfig()
    assert not accuracy.keep_points(tmp_path / 'none', {}, 0)


def test_right_facts_of_the_miniature():
    samples = [check.sample(check.make_world('driving', check.TUNE_SEEDS[0]), 400,
                            check.np.random.default_rng(0), query) for query in (SCENE, ACTION)]
    found = check.right(EdgeConfig(), samples[:1])
    assert found.shape == (1, 8) and found.mean() > 0.4


def test_a_roofline_is_computed_for_each_robot():
    """Fewer bits take less memory and less time; what does not fit is said."""
    for name in CHIPS:
        plain, int8, int4 = rows(name, ['Qwen2.5-VL-3B'])
        memory = [float(row[2].split()[0]) for row in (plain, int8, int4)]
        token = [float(row[6]) for row in (plain, int8, int4)]
        assert sorted(memory, reverse=True) == memory and sorted(token, reverse=True) == token
        assert float(int4[8]) < float(int4[7]), 'the floor is below'
    assert rows('orin-nano', ['Qwen2.5-VL-7B'])[0][3] == 'NO'
    assert 2.5 < float(rows('orin', ['Qwen2.5-VL-3B'])[2][2].split()[0]) < 3.5
