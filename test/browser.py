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
"""Chromium without a screen, driven by its DevTools protocol."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from importlib.util import find_spec
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import time

import pytest

try:
    import websocket
except ImportError:
    websocket = None

PROGRAM = shutil.which('chromium') or shutil.which('chromium-browser') or \
    shutil.which('google-chrome')
# The script of axe-core: a newer one by name, or that of the package.
AXE = os.environ.get('AXE_SCRIPT') or getattr(find_spec('axe_core_python'), 'origin', '').replace(
    '__init__.py', 'axe.min.js')
# Nothing on a page may stand out of it, nor say what no reader hears.
WIDER = """[...document.querySelectorAll('body *')].filter(e => {
  const r = e.getBoundingClientRect();
  return r.width && r.height && r.right > innerWidth + 1 && r.left >= 0 && !e.closest('svg');
}).map(e => e.tagName + '#' + e.id + ' ' + e.textContent.slice(0, 40))"""
NAMELESS = """[...document.querySelectorAll('button, input, select, textarea, img')].filter(
  e => !(e.labels && e.labels.length || e.textContent.trim() || e.getAttribute('aria-label')
         || e.alt)).map(e => e.outerHTML.slice(0, 90))"""
# A column of single letters.
THIN = """[...document.querySelectorAll('body *')].filter(e => !e.closest('svg') && e.innerText
  && e.offsetWidth && e.offsetWidth < 40 && e.offsetHeight > 120).map(
  e => e.tagName + '#' + e.id + ' ' + e.innerText.slice(0, 40))"""
# WCAG 2: 4.5 to 1 between text and what is behind it.
PALE = """(() => {
  const numbers = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => numbers(c).slice(0, 3).map(v => v / 255).map(
    v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce(
    (sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
  const ground = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if ((numbers(c)[3] ?? 1) > 0) return c; } return 'rgb(255,255,255)'; };
  return [...document.querySelectorAll('body *')].filter(e => e.offsetParent && !e.closest('svg')
    && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), e.tagName + '#' + e.id + ' ' + e.textContent.slice(0, 30)];
  }).filter(([ratio]) => ratio < 4.5);
})()"""


class Page:
    """A page in a browser; ``errors`` is what its console has said."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.errors: list[str] = []
        self._browser, self._session = browser, session
        for domain in ('Page', 'Runtime', 'Log'):
            self.call(f'{domain}.enable')

    def call(self, method: str, **params: object) -> dict:
        """Call a method of the protocol."""
        return self._browser.call(method, self._session, **params)

    def visit(self, url: str, width: int = 1280, dark: bool = False) -> None:
        """Go to an address and wait until the page is there."""
        self.resize(width, dark)
        self.call('Page.navigate', url=url)
        self.wait(f'document.readyState === "complete" && location.href === {json.dumps(url)}')

    def resize(self, width: int, dark: bool = False) -> None:
        """Have another width, and the light or dark theme."""
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=900,
                  deviceScaleFactor=1, mobile=False)
        self.call('Emulation.setEmulatedMedia', features=[
            {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])

    def run(self, script: str) -> object:
        """Return what a script says."""
        reply = self.call('Runtime.evaluate', expression=script, returnByValue=True,
                          awaitPromise=True)
        assert 'exceptionDetails' not in reply, reply['exceptionDetails']
        return reply['result'].get('value')

    def wait(self, script: str, timeout_s: float = 10.0) -> object:
        """Return the first true value of a script; fail when there is none in time."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.02)
        raise AssertionError(f'{script}: not within {timeout_s} s; {self.errors}')

    def text(self, name: str) -> str:
        """Return the text of the element of an id."""
        return str(self.run(f'document.getElementById({json.dumps(name)}).innerText'))

    def key(self, name: str) -> None:
        """Press a key."""
        for kind in ('keyDown', 'keyUp'):
            self.call('Input.dispatchKeyEvent', type=kind, key=name, code=name,
                      windowsVirtualKeyCode={'ArrowRight': 39, 'Tab': 9}.get(name, 0))

    def picture(self, path: Path) -> None:
        """Write what the whole page looks like."""
        data = self.call('Page.captureScreenshot', captureBeyondViewport=True)['data']
        path.write_bytes(base64.b64decode(data))

    def accessible(self) -> list[str]:
        """Return what axe-core calls serious or critical on the page, in both themes."""
        if not AXE:
            pytest.skip('needs axe-core: pip install axe-core-python')
        found = []
        for theme in ('light', 'dark'):
            self.call('Emulation.setEmulatedMedia', features=[
                {'name': 'prefers-color-scheme', 'value': theme}])
            said = json.loads(str(self.run(
                f'(async () => {{ {Path(AXE).read_text()}\n; return JSON.stringify((await axe.run('
                'document, {resultTypes: ["violations"]})).violations); })()')))
            found += [f'{theme}: {v["id"]} ({v["impact"]}): {n["html"][:120]}' for v in said
                      if v['impact'] in ('serious', 'critical') for n in v['nodes']]
        return found

    def check(self) -> None:
        """Assert what holds of every page: it fits, says what it is, and has said no error."""
        assert self.run(WIDER) == [] and self.run(NAMELESS) == []
        assert self.run(PALE) == [] and self.run(THIN) == []
        assert self.run('document.documentElement.scrollWidth <= innerWidth')
        assert self.errors == []


class Browser:
    """Chromium in a process of its own."""

    def __init__(self, folder: Path) -> None:
        if PROGRAM is None or websocket is None:
            pytest.skip('needs Chromium: apt-get install chromium; pip install websocket-client')
        self.pages: dict[str, Page] = {}
        self._process = subprocess.Popen(
            [PROGRAM, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
             '--no-first-run', '--remote-debugging-port=0', f'--user-data-dir={folder}',
             'about:blank'], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for line in self._process.stderr:
            found = re.search(r'DevTools listening on (ws://\S+)', line)
            if found:
                break
        else:
            raise AssertionError('chromium has ended')
        self._socket = websocket.create_connection(found[1], timeout=20, suppress_origin=True)
        self._number = 0

    def call(self, method: str, session: str = '', **params: object) -> dict:
        """Call a method; take the events that come meanwhile."""
        self._number += 1
        self._socket.send(json.dumps({'id': self._number, 'method': method, 'params': params}
                                     | ({'sessionId': session} if session else {})))
        while True:
            message = json.loads(self._socket.recv())
            if message.get('id') == self._number:
                assert 'error' not in message, message
                return message['result']
            self._take(message)

    def page(self) -> Page:
        """Return a new page."""
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        self.pages[session] = Page(self, session)
        return self.pages[session]

    def close(self) -> None:
        """End it."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(10)
        self._process.stderr.close()

    def _take(self, event: dict) -> None:
        page, said = self.pages.get(event.get('sessionId', '')), event.get('params', {})
        if page is None:
            return
        if event['method'] == 'Runtime.exceptionThrown':
            page.errors.append(said['exceptionDetails'].get('text', ''))
        elif event['method'] == 'Log.entryAdded' and said['entry']['level'] == 'error':
            page.errors.append(said['entry']['text'])
        elif event['method'] == 'Runtime.consoleAPICalled' and said['type'] == 'error':
            page.errors.append(str(said['args']))


@pytest.fixture(scope='module')
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return Chromium; skip where there is none."""
    running = Browser(tmp_path_factory.mktemp('chromium'))
    yield running
    running.close()
