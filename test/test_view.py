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
"""The live page: its state, its server, and what Chromium shows of it. No ROS."""

from concurrent.futures import Future, ThreadPoolExecutor
import http.client
import json
import socket

from browser import browser  # noqa: F401
from fakes import wait_for
import numpy as np
import pytest

from spotvlm_ros.frames.pixels import encode_jpeg
from spotvlm_ros.method.facts import Fact, NS, Region
from spotvlm_ros.method.gate import Drop
from spotvlm_ros.view import server as serving
from spotvlm_ros.view.address import Address, AddressError
from spotvlm_ros.view.said import Said, Told
from spotvlm_ros.view.server import ViewServer
from spotvlm_ros.view.state import LiveState, Picture

JPEG = encode_jpeg(np.full((240, 320, 3), 90, np.uint8))
LATE = {'wait': .01, 'preprocess': 0, 'model': 1.5, 'emulated': 1.2}
HOSTILE = '<img src=x onerror=alert(1)>'


class Knobs:
    """Controls that do what the page asks, to the state."""

    def __init__(self, state):
        self.state, self.asked = state, []

    def set_query(self, query_id, definition):
        self.asked.append((query_id, definition))
        done = Future()
        if 'bad' in definition:
            done.set_exception(RuntimeError(f'{query_id}: no such field; use prompt'))
        else:
            self.state.queries({'scene': {'text': definition, 'camera': '',
                                          'prompt': definition.partition(': ')[2].strip('"')}})
            done.set_result('scene is changed')
        return done

    def set_cloud(self, name, value):
        self.asked.append((name, value))
        self.state.status({name if name == 'paused' else 'delay_s': value})
        done = Future()
        done.set_result(f'{name} is {value}')
        return done


class Running:
    """A page that is served, of a graph that has said everything once."""

    def __init__(self, address=None):
        self.now_ns = 100 * NS
        self.state = LiveState('spotvlm test', lambda: self.now_ns)
        self.knobs, self.looked = Knobs(self.state), []
        self.server = ViewServer(self.state, self.knobs, address or Address(), self.looked.append)
        self.port = int(self.server.url.split(':')[2].split('/')[0])
        fill(self.state)

    def get(self, path='/', method='GET', body=None, **headers):
        """Return status, headers and body of a reply."""
        link = http.client.HTTPConnection('127.0.0.1', self.port, timeout=15)
        try:
            link.request(method, path, body, headers)
            reply = link.getresponse()
            return reply.status, reply.headers, reply.read()
        finally:
            link.close()

    def newest(self, **asked):
        """Return what a page would get, and the pictures behind it."""
        status, _, body = self.get('/next?' + '&'.join(f'{k}={v}' for k, v in asked.items()))
        assert status == 200, body
        end = 4 + int.from_bytes(body[:4], 'big')
        return json.loads(body[4:end]), body[end:]

    def change(self, values, **headers):
        """Return status and what came of a change."""
        status, _, body = self.get('/change', 'POST', json.dumps(values), **{
            'Content-Type': 'application/json', **headers})
        return status, json.loads(body)


def facts(stamp, light, region=None):
    return (Fact('light', light, stamp, 0.9, region), Fact('lead', 'none', stamp, 0.5))


def fill(state, light='red'):
    """Say what a graph says."""
    then, now = 97 * NS, 100 * NS - NS // 10
    state.queries({'scene': {'prompt': 'What is there?', 'text': 'prompt: What is there?\n',
                             'camera': ''},
                   'action': {'prompt': 'What to do?', 'text': '', 'camera': ''}})
    for stamp in (then, now):
        state.frame('', Picture(stamp, JPEG, 640, 480))
        state.truth(Said(stamp, facts(stamp, 'red')))
    state.cloud('scene', Said(then, facts(then, 'red', Region(100, 80, 60, 40)), model='large',
                              stages_s=LATE))
    state.context('scene', Told(now, facts(then, 'red')[:1], {'light': Region(120, 80, 60, 40)},
                                {'lead': int(Drop.LIFETIME)}, gate=0, tokens=12, sequence=3))
    state.alone('scene', Said(now, facts(now, 'green')))
    state.edge('scene', Said(now, facts(now, light), model='small', used=('context', 'focus'),
                             origins={'light': 'with context', 'lead': 'own'}, sequence=3,
                             stages_s={'wait': .004, 'preprocess': .003, 'model': .06,
                                       'emulated': 0}))
    state.calibration('scene', [{'key': 'light', 'labels': 20, 'agreement': .6, 'help': .2,
                                 'harm': .01, 'learned': True}])
    state.status({'endpoint': 'http://127.0.0.1:9/v1', 'model': 'large', 'in_flight': 1,
                  'requests': 4, 'answers': 3, 'errors': 0, 'skipped': 2, 'breaker': 'closed',
                  'rejected': 0, 'round_trip_p50_s': 1.5, 'round_trip_p95_s': 2.5,
                  'emulated_p50_s': 1.2, 'last_error': '', 'paused': False, 'delay_s': 1.5})


@pytest.fixture
def running(monkeypatch):
    """Return a page that is served, and notices soon that nobody looks."""
    monkeypatch.setattr(serving, 'AWAY_S', 0.6)
    monkeypatch.setattr(serving, 'PERIOD_S', 0.01)
    served = Running()
    yield served
    served.server.close()


def test_the_state_has_everything_with_ages_and_who_was_right():
    state = LiveState('t', lambda: 100 * NS)
    fill(state)
    seen, pictures = state.view('scene')
    assert seen['edge']['age_s'] == 0.1 and seen['cloud']['age_s'] == 3.0
    assert seen['context']['dropped'] == {'lead': 'older than its time to live'}
    assert seen['told']['sequence'] == 3 and seen['context']['focus']['light'] == [120, 80, 60, 40]
    assert {name: p.stamp_ns for name, p in pictures.items()} == {
        'now': 100 * NS - NS // 10, 'cloud': 97 * NS}
    assert seen['score']['both'] == {'right': 1.0, 'facts': 2}
    assert seen['score']['edge alone']['right'] == 0.5
    assert [f['value'] for f in seen['alone']['facts']] == ['green', 'none']
    assert state.view('no such query')[0]['query'] == 'scene'
    state.cloud('scene', Said(90 * NS, facts(90 * NS, 'green')))
    assert state.view('scene')[0]['cloud']['age_s'] == 3.0  # an older one came later
    state.queries({'scene': {'prompt': 'Something else?', 'text': '', 'camera': ''}})
    assert state.view('scene')[0]['edge'] is None  # it was about another question


def test_frames_are_kept_in_bounds_and_not_over_a_restart():
    state = LiveState('t', lambda: 0)
    big = b'x' * (1 << 20)
    for number in range(60):
        state.frame('', Picture(number, big, 1, 1))
    assert len(state._frames['']) == 24
    state.frame('', Picture(3, big, 1, 1))
    assert len(state._frames['']) == 1


def test_a_page_gets_what_is_new_once_and_the_newest_only(running):
    seen, pictures = running.newest()
    assert seen['sent'] == ['now', 'cloud'] and len(pictures) == 2 * len(JPEG)
    held = {'version': seen['version'], **{n: f['stamp'] for n, f in seen['frames'].items()}}
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(running.newest, **held)
        assert not waits.done()
        for number in range(50):  # a page that is slow is not sent them one after another
            running.state.edge('scene', Said(99 * NS + number, facts(99 * NS + number, 'green')))
        later, pictures = waits.result(5.0)
    assert later['sent'] == [] and pictures == b'' and later['version'] != seen['version']
    newest, _ = running.newest()
    assert newest['edge']['age_s'] == round(1 - 49 / NS, 3)


def test_ten_look_and_when_they_have_gone_nobody_is_served(running):
    assert running.looked == []  # nobody has asked yet
    with ThreadPoolExecutor(10) as pool:
        replies = pool.map(lambda _: running.newest(), range(10))
        assert {seen['query'] for seen, _ in replies} == {'scene'}
    assert running.looked == [True]
    wait_for(lambda: running.looked == [True, False], 5.0)
    running.newest()
    assert running.looked == [True, False, True]


def test_browsers_that_do_not_read_hold_nobody_up(running):
    running.state.frame('', Picture(101 * NS, JPEG[:-2] + bytes(4 << 20), 640, 480))
    stuck = [socket.create_connection(('127.0.0.1', running.port), timeout=5) for _ in range(10)]
    for link in stuck:   # 4 MB each, of which nothing is ever taken
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.sendall(f'GET /next HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n\r\n'.encode())
    wait_for(lambda: running.looked == [True], 5.0)
    for number in range(5):
        fill(running.state, light=f'light {number}')
        seen, _ = running.newest(now=101 * NS)
        assert seen['edge']['facts'][0]['value'] == f'light {number}'
    for link in stuck:
        link.close()


def test_a_page_finds_the_server_again(running):
    version = running.newest()[0]['version']
    running.server.close()
    with pytest.raises(OSError):
        running.get()
    again = Running(Address(port=running.port))
    try:
        assert again.newest(version=version)[0]['query'] == 'scene'
    finally:
        again.server.close()


@pytest.mark.parametrize('values, asked', [
    ({'paused': True}, ('paused', True)), ({'delay_s': 2}, ('emulated_delay_median_s', 2.0)),
    ({'query': 'scene', 'definition': 'prompt: "Who?"'}, ('scene', 'prompt: "Who?"'))])
def test_changes_are_handed_on(running, values, asked):
    status, said = running.change(values)
    assert status == 200 and said['done'] and running.knobs.asked == [asked]


@pytest.mark.parametrize('values', [
    {}, [], {'paused': 1}, {'delay_s': True}, {'delay_s': '1'}, {'query': 'scene'}, 'x' * 100_000])
def test_what_is_no_change_is_refused(running, values):
    status, said = running.change(values)
    assert status == 400 and said['error'] and running.knobs.asked == []


def test_the_reason_of_a_refusal_comes_to_the_page(running):
    status, said = running.change({'query': 'scene', 'definition': 'bad: 1'})
    assert status == 409 and 'use prompt' in said['error']


@pytest.mark.parametrize('headers', [
    {'Host': 'evil.example'}, {'Host': 'evil.example:8600', 'Origin': 'http://evil.example:8600'},
    {'Origin': 'http://evil.example'}, {'Origin': 'null'}, {'Host': '[x'}])
def test_other_sites_get_nothing(running, headers):
    for path in ('/', '/next'):
        assert running.get(path, **headers)[0] == 403
    assert running.change({'paused': True}, **headers)[0] == 403
    assert running.knobs.asked == [] and running.looked == []


def test_a_form_of_another_site_changes_nothing(running):
    status, _ = running.change({'paused': True}, **{'Content-Type': 'text/plain'})
    assert status == 400 and running.knobs.asked == []


def test_elsewhere_a_token_is_needed(monkeypatch):
    served = Running(Address('0.0.0.0'))
    try:
        token = served.server.url.partition('?token=')[2]
        assert len(token) >= 16
        assert served.get('/')[0] == served.get('/next?token=no')[0] == 403
        assert served.change({'paused': True})[0] == 403
        status, headers, body = served.get(f'/?token={token}', Host='robot.local')
        assert status == 200 and b'spotvlm' in body
        assert "default-src 'none'" in headers['Content-Security-Policy']
        assert served.get(f'/next?token={token}')[0] == 200
    finally:
        served.server.close()


def test_the_demo_lasts_longer_with_a_page():
    from spotvlm_ros.bench.demo import arguments
    assert (arguments([]).duration, arguments(['--view']).duration) == (30.0, 600.0)
    assert arguments(['--view', ':9', '--duration', '5']).duration == 5.0


def test_addresses():
    assert Address.parse('') == Address('127.0.0.1', 0) and Address.parse('').is_here
    assert Address.parse('0.0.0.0:80') == Address('0.0.0.0', 80)
    assert Address.parse('[::1]:9') == Address('::1', 9) and not Address.parse('robot').is_here
    for text in ('a b', 'x:y', 'http://x', 'x/y', ':99999'):
        with pytest.raises(AddressError, match='HOST:PORT'):
            Address.parse(text)
    with socket.create_server(('127.0.0.1', 0)) as taken:
        with pytest.raises(AddressError, match='another address'):
            Running(Address(port=taken.getsockname()[1]))


@pytest.mark.parametrize('width', [1280, 390])
def test_what_chromium_shows(running, browser, width):  # noqa: F811
    running.state.cloud('scene', Said(98 * NS, facts(98 * NS, HOSTILE), model=HOSTILE,
                                      stages_s=LATE))
    running.state.frame('', Picture(98 * NS, JPEG, 640, 480))
    page = browser.page()
    page.visit(running.server.url, width)
    page.wait('document.getElementById("connection").textContent === "live"')
    page.wait('document.getElementById("now").naturalWidth === 320')
    answers = page.text('answers')
    assert 'with context' in answers and 'green' in answers and HOSTILE in answers
    assert 'dropped: older than its time to live' in page.text('told')
    assert page.run('document.querySelectorAll("#now-boxes rect").length') == 1
    assert '20.0 %' in page.text('calibration') and '1.2 s' in page.text('latency')
    assert 'both' in page.text('score') and 'closed' in page.text('status')
    assert page.run('document.querySelectorAll("img").length') == 2
    page.check()
    page.resize(width, dark=True)
    page.check()
    running.state.edge('scene', Said(100 * NS, facts(100 * NS, 'yellow')))
    page.wait('document.getElementById("answers").innerText.includes("yellow")')
    assert page.errors == []


@pytest.mark.parametrize('width', [1280, 390])
def test_axe_core_finds_nothing_serious(running, browser, width):  # noqa: F811
    page = browser.page()
    page.visit(running.server.url, width)
    page.wait('document.getElementById("now").naturalWidth === 320')
    assert page.accessible() == [] and page.errors == []


def test_from_the_page_the_question_and_the_cloud_are_changed(running, browser):  # noqa: F811
    page = browser.page()
    page.visit(running.server.url)
    page.wait('document.getElementById("prompt").textContent === "What is there?"')
    page.run("""document.getElementById("question").focus();
        document.getElementById("question").select()""")
    page.call('Input.insertText', text='Who is "there"?')
    page.run('document.querySelector("#question-form button").click()')
    page.wait('document.getElementById("prompt").textContent.startsWith("Who is")')
    assert running.knobs.asked[-1] == ('scene', 'prompt: "Who is \\"there\\"?"')
    page.run('document.getElementById("pause").click()')
    page.wait('document.getElementById("pause").getAttribute("aria-pressed") === "true"')
    assert 'paused' in page.text('pause') and running.knobs.asked[-1] == ('paused', True)
    page.run("""document.getElementById("delay").value = 4;
        document.querySelector("#delay-form button").click()""")
    page.wait('document.getElementById("done").textContent.includes("4")')
    assert running.knobs.asked[-1] == ('emulated_delay_median_s', 4.0) and page.errors == []


def test_the_page_says_that_the_server_has_gone_and_finds_it_again(running, browser):  # noqa: F811
    page = browser.page()
    page.visit(running.server.url)
    page.wait('document.getElementById("connection").textContent === "live"')
    running.server.close()
    page.wait('document.getElementById("connection").textContent.includes("trying again")')
    again = Running(Address(port=running.port))
    try:
        page.wait('document.getElementById("connection").textContent === "live"')
    finally:
        again.server.close()
