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
"""The page of a recorded run: what it says, and that Chromium shows it without a complaint."""

import json

from browser import browser  # noqa: F401
import numpy as np
import pytest

from spotvlm_ros.cli.main import main
from spotvlm_ros.method.facts import Context, Fact, NS, Query, Region, Source, Turn
from spotvlm_ros.method.gate import Drop
from spotvlm_ros.recording.recorder import plain, Recorder
from spotvlm_ros.view.parts import document, note, table
from spotvlm_ros.view.recorded import read_run, RunError
from spotvlm_ros.view.report import report

HOSTILE = '</script><img src=x onerror=alert(1)>'
SCENE = Query('scene', 'What is on the road?', 'facts',
              {'light': ('red', 'green'), 'lead': ('car', 'none')})


def stamp(number):
    return 50 * NS + number * NS // 5


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    """Return a folder as spotvlm run --record writes it: 12 answers, 2 of the cloud."""
    folder = tmp_path_factory.mktemp('runs') / 'drive'
    context, edge = Recorder(folder, 'context'), Recorder(folder, 'edge')
    context.write('start', queries=[plain(SCENE)], config={})
    edge.write('start', queries=[plain(SCENE)], load={'path': '/models/small'})
    for number in range(12):
        now, light = stamp(number), 'green' if number < 6 else 'red'
        if number in (3, 7):
            seen = (Fact('light', light, now - NS, 1.0, Region(10, 10, 20, 20)),
                    Fact('lead', HOSTILE, now - NS))
            context.write('turn', arrived_ns=now, turn=plain(Turn('scene', now - NS, Source.CLOUD,
                                                                  seen)))
        facts = (Fact('light', light, now, 0.8), Fact('lead', 'none', now, 0.7))
        context.write('turn', arrived_ns=now + NS // 10,
                      turn=plain(Turn('scene', now, Source.EDGE, facts)))
        told = Context('scene', now, (Fact('light', light, now - NS),),
                       focus={'light': Region(12, 10, 20, 20)},
                       dropped={'lead': int(Drop.CHANGED)}) if number >= 3 else None
        where = {'world': 'driving', 'seed': 1, 'condition': 'day', 'index': number} if \
            number else edge.frame(now, np.full((48, 64, 3), 90, np.uint8), None, '')
        edge.write('answer', stamp_ns=now, query_id='scene', frame=where, text='',
                   context=plain(told) if told else None, facts=[plain(f) for f in facts],
                   partial=False, **({'own': [plain(Fact('light', 'red', now, 0.6))]}
                                     if number > 3 else {}))
    context.close()
    edge.close()
    return folder


def test_a_recording_is_read_with_what_was_known_at_each_answer(recording):
    run = read_run(recording)
    assert len(run.steps) == 12 and [round(c.delay_s, 3) for c in run.clouds] == [1.0, 1.0]
    assert run.steps[2].cloud is None and run.steps[3].cloud.values['light'] == 'green'
    assert run.steps[6].cloud.values['light'] == 'green'  # that of the red light is on its way
    assert run.steps[7].cloud.values['light'] == 'red'
    assert run.steps[0].arrived_ns - run.steps[0].said.stamp_ns == NS // 10
    assert run.steps[3].alone is None and run.steps[4].alone.values == {'light': 'red'}
    assert run.steps[0].truth == {} and set(run.steps[1].truth) >= {'light', 'lead'}
    assert run.steps[5].told.dropped == {'lead': int(Drop.CHANGED)}
    assert not +run.problems
    assert len(list(run.images(s.said.stamp_ns for s in run.steps))) == 12


def test_the_page_is_one_file_in_which_scenes_say_nothing_to_the_browser(recording, tmp_path,
                                                                         capsys):
    path = tmp_path / 'new' / 'page.html'
    assert main(['report', str(recording), '--out', str(path)]) == 0
    assert '12 answers' in capsys.readouterr().out
    page = path.read_text()
    assert HOSTILE not in page and page.count('</script>') == 2
    assert "default-src 'none'" in page and 'http://' not in page.replace(
        'http://www.w3.org/2000/svg', '')
    data = json.loads(page.partition('id="data">')[2].partition('</script>')[0])
    assert len(data['frames']) == 12 and len(data['queries']['scene']['steps']) == 12
    assert '9 x its pixels have changed' in page and 'p95 0.10 s' in page


@pytest.mark.parametrize('make, word', [
    (lambda p: None, 'does not exist'), (lambda p: p.mkdir(), 'cannot be read'),
    (lambda p: p.mkdir() or (p / 'edge.jsonl').write_text('{"event": "start"}\n'),
     'cannot be read')])
def test_what_is_no_run_is_one_clear_line(tmp_path, capsys, make, word):
    path = tmp_path / 'run'
    make(path)
    assert main(['report', str(path)]) == 1
    said = capsys.readouterr().err
    assert word in said and '--record' in said and said.count('\n') == 1
    with pytest.raises(RunError):
        read_run(path)


@pytest.mark.parametrize('width', [1280, 390])
def test_chromium_goes_through_the_run(recording, browser, tmp_path, width):  # noqa: F811
    path = tmp_path / 'page.html'
    path.write_text(report(read_run(recording)))
    page = browser.page()
    page.visit(path.as_uri(), width)
    page.wait('document.getElementById("now").naturalWidth > 0')
    for dark in (False, True):
        page.resize(width, dark)
        page.check()
    assert page.run('document.querySelectorAll(".strip").length') == 7
    page.run('document.getElementById("at").focus()')
    for _ in range(7):
        page.key('ArrowRight')
    assert 'answer 8 of 12' in page.text('where') and '100 ms after' in page.text('where')
    answers = page.text('answers')
    assert 'dropped: its pixels have changed' in answers and HOSTILE in answers
    assert 'light: edge alone' in page.text('strips')
    assert page.run('document.querySelectorAll("#now-boxes rect").length') == 1
    assert page.errors == []


def test_axe_core_finds_nothing_serious_in_a_report(recording, browser, tmp_path):  # noqa: F811
    path = tmp_path / 'page.html'
    path.write_text(report(read_run(recording)))
    page = browser.page()
    page.visit(path.as_uri())
    page.wait('document.getElementById("now").naturalWidth > 0')
    assert page.accessible() == []
    page.run('document.body.append(new Image())')   # which says nothing to who cannot see it
    assert [f.partition(' ')[0] for f in page.accessible()] == ['light:', 'dark:']


@pytest.mark.parametrize('width', [1280, 390])
def test_the_tables_of_the_benchmark_fit(browser, tmp_path, width):  # noqa: F811
    from spotvlm_ros.bench.spotbench.report import _cell
    head = ['system', *(f'world {n}, by night' for n in range(8))]
    rows = [[f'system {n} with a long name', *['71.5 [69.1, 73.8]'] * 8] for n in range(4)]
    path = tmp_path / 'bench.html'
    path.write_text(document('SpotBench', [note('Note'), table(
        head, rows, marked=rows[1][0], cell=_cell), '<pre>' + 'x' * 900 + '</pre>']))
    page = browser.page()
    page.visit(path.as_uri(), width)
    page.check()
    assert page.run('document.querySelectorAll("tr.full").length') == 1
    shown = page.run('getComputedStyle(document.querySelector("td"), "::before").content')
    assert ('world 0' in shown) == (width == 390)
