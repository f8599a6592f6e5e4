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
"""Stand-ins for the two models, without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import threading
import time
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from spotvlm_ros.bench.faults.chaos_faults import ChatRequest
from spotvlm_ros.cloud.client import CloudServer
from spotvlm_ros.config.nodes import EdgeConfig, EmulatedDelayConfig, ServerConfig
from spotvlm_ros.edge.answer import EdgeAnswer, guarded_answer, OnText
from spotvlm_ros.method.facts import Context, Fact, Query
from spotvlm_ros.method.guard import FixedOdds, Judge
from spotvlm_ros.method.prompt import answer_text

WHAT = Query('what', 'What?', 'text')
T = TypeVar('T')
SCENE_REPLY = ('```json\n[{"label": "light", "bbox_2d": [100, 100, 200, 200], "value": "red"}, '
               '{"label": "lead", "value": "none"}]\n```')


class FakeEdge:
    """Answers the first choice of each key after ``seconds``."""

    name = 'fake-edge'

    def __init__(self, seconds: float = 0.01) -> None:
        self.seconds = seconds
        self.seen: list[tuple[int, Context | None]] = []  # frame stamp, context

    def load(self, config: EdgeConfig) -> FakeEdge:
        """Take the place of load_edge_model."""
        return self

    def warm_up(self, queries: Sequence[Query]) -> None:
        """Do nothing."""

    def answer(self, rgb: npt.NDArray[np.uint8], query: Query, context: Context | None,
               stamp_ns: int,
               on_text: Callable[[str, int], None] | None = None,
               should_stop: Callable[[], bool] | None = None,
               judge: Judge | None = None) -> EdgeAnswer:
        """Answer word by word when somebody listens."""
        started = time.monotonic()
        self.seen.append((stamp_ns, context))
        partial = False
        for count in range(1, 6):
            time.sleep(self.seconds / 5)
            if on_text is not None:
                on_text(' '.join(['word'] * count), count)
            partial = should_stop is not None and should_stop()
            if partial:
                break
        facts = tuple(Fact(k, v[0], stamp_ns) for k, v in query.choices.items())
        return EdgeAnswer(
            ' '.join(f.value for f in facts) or 'word word word word word', facts, rejected=(),
            used_context=context is not None and not context.empty, used_focus=False,
            context_tokens=0, preprocess_s=0.0, inference_s=time.monotonic() - started,
            partial=partial)


class JudgedEdge(FakeEdge):
    """
    Answers likewise, as ``sure`` as it is told, in the passes that its judge wants.

    ``choose`` returns which of the choices, by the stamp of the frame.
    """

    def __init__(self, seconds: float = 0.001, sure: float = 0.999,
                 choose: Callable[[int], int] = lambda stamp_ns: 0) -> None:
        super().__init__(seconds)
        self.sure, self.choose = sure, choose

    def answer(self, rgb: npt.NDArray[np.uint8], query: Query, context: Context | None,
               stamp_ns: int,
               on_text: Callable[[str, int], None] | None = None,
               should_stop: Callable[[], bool] | None = None,
               judge: Judge | None = None) -> EdgeAnswer:
        """Answer under the guard, or the judge in its place."""
        def once(given: Context | None, streamed: OnText | None) -> EdgeAnswer:
            said = FakeEdge.answer(self, rgb, query, given, stamp_ns, streamed, should_stop)
            facts = tuple(Fact(k, v[self.choose(stamp_ns)], stamp_ns, self.sure)
                          for k, v in query.choices.items())
            return replace(said, facts=facts, text=answer_text(query, facts))
        return guarded_answer(query, context, judge or FixedOdds(query), once, on_text)


class FakeServer:
    """A real HTTP server that answers chat completions; restartable on its port."""

    def __init__(self) -> None:
        self.reply: Callable[[ChatRequest], tuple[int, bytes]] = self.fine
        self.content = SCENE_REPLY
        self.content_type = 'application/json'
        self.requests: list[ChatRequest] = []
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """Return the base URL."""
        return f'http://127.0.0.1:{self.port}/v1'

    def fine(self, request: ChatRequest) -> tuple[int, bytes]:
        """Reply with ``content``."""
        return 200, json.dumps({
            'id': 'x', 'object': 'chat.completion', 'created': 0, 'model': 'fake',
            'choices': [{'index': 0, 'finish_reason': 'stop', 'message': {
                'role': 'assistant', 'content': self.content}}]}).encode()

    def start(self) -> None:
        """Listen."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802
                request = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                outer.requests.append(request)
                status, body = outer.reply(request)
                self.send_response(status)
                self.send_header('Content-Type', outer.content_type)
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    pass  # the client has given up

            def log_message(self, *args: object) -> None:
                pass
        self.http = ThreadingHTTPServer(('127.0.0.1', self.port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        self.http.shutdown()
        self.http.server_close()


def cloud_server(url: str, model: str = 'm', name: str = 'primary', api_key: str = '',
                 delay: EmulatedDelayConfig | None = None, **config: Any) -> CloudServer:
    """Return a server to ask, by its parameters."""
    return CloudServer(ServerConfig(base_url=url, model=model, **config), name, api_key,
                       delay=delay or EmulatedDelayConfig())


def wait_for(condition: Callable[[], T | None], timeout_s: float = 30.0) -> T:
    """Return the condition's first true value; fail when there is none in time."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f'not within {timeout_s} s')
