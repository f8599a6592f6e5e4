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
"""
A chat completions server that fails in every way a server can; `chaos_faults` has the ways.

As a program, ``spotvlm perf chaos-server``, it prints its port; ``PUT /fault/NAME`` changes what
it does and ``GET /stats`` tells what it has done. ``NAME,NAME`` meets each request with one of
several faults, ``NAME?whole`` and ``NAME?streamed`` reply so, whatever was asked for.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
import json
import random
import re
import sys
import threading
import time

from .chaos_faults import ChatRequest, Exchange, FAULTS

KEEP = 256  # arrivals remembered


@dataclass(frozen=True)
class ChaosStats:
    """What the server has done."""

    fault: str
    served: dict[str, int]  # requests by the fault they met
    count: int
    connections: int
    arrived: list[float]    # steady clock [s]; the last KEEP
    replied: list[float]


class ChaosServer:
    """
    Serves from a thread of its own; ``stop`` and ``start`` on the same port are an outage.

    ``fault`` may be changed at any time; 'random' picks one for every other request, a list with
    commas one for each. ``form``, 'whole' or 'streamed', is that of replies; '': as asked for.
    """

    def __init__(self, fault: str = 'none', *, host: str = '127.0.0.1', port: int = 0,
                 seed: int = 0, pause_s: float = 0.0) -> None:
        """Listen."""
        self.fault, self.host, self.port = fault, host, port
        self.form = ''
        self.pause_s = pause_s  # before each reply: the model's time
        self.random = random.Random(seed)
        self.served: Counter[str] = Counter()
        self.arrived: deque[float] = deque(maxlen=KEEP)  # steady clock, whole request read
        self.replied: deque[float] = deque(maxlen=KEEP)
        self.requests: deque[ChatRequest] = deque(maxlen=KEEP)
        self.bodies: deque[bytes] = deque(maxlen=8)
        self.heads: deque[str] = deque(maxlen=8)
        self.connections = 0
        self.count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.start()

    @property
    def url(self) -> str:
        """Return the base URL."""
        return f'http://{self.host}:{self.port}/v1'

    def start(self) -> None:
        """Begin to serve."""
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name='chaos',
                                        daemon=True)
        self._thread.start()
        if not ready.wait(10.0):
            raise OSError(f'cannot listen on {self.host}:{self.port}; is the port in use?')

    def stop(self) -> None:
        """Close the port and all connections."""
        def end() -> None:
            for task in self._tasks:
                task.cancel()
            self._main.cancel()
        self._loop.call_soon_threadsafe(end)
        self._thread.join(5.0)

    def answer(self, request: ChatRequest) -> str:
        """Return a good answer to the question, with the first box that comes to mind."""
        text = _question(request)
        one_of = re.search(r'^One of: (.+)$', text, re.MULTILINE)
        if one_of:
            return str(self.random.choice(one_of[1].split('|')))
        return json.dumps([
            {'label': key, 'value': self.random.choice(values.split('|')),
             'bbox_2d': [400, 400, 600, 600]}
            for key, values in re.findall(r'^(\w+): (\S+)$', text, re.MULTILINE)])

    def _run(self, ready: threading.Event) -> None:
        async def main() -> None:
            server = await asyncio.start_server(self._serve, self.host, self.port,
                                                limit=2**24, reuse_address=True)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            async with server:
                await asyncio.Event().wait()
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(main())
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass
        left = asyncio.all_tasks(self._loop)
        if left:
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or we have to
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            writer.transport.abort() if self.fault == 'reset' else writer.close()

    async def _exchange(self, reader: asyncio.StreamReader,
                        writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1')
        method, path, _ = head.split(' ', 2)
        headers = {name.strip().lower(): value.strip() for name, _, value in (
            line.partition(':') for line in head.split('\r\n')[1:])}
        body = await reader.readexactly(int(headers.get('content-length', 0)))
        now = time.monotonic()
        if not path.endswith('/chat/completions'):
            return await self._control(method, path, writer)
        self.arrived.append(now)
        self.bodies.append(body)
        self.heads.append(head)
        request: ChatRequest = json.loads(body)
        request['_authorization'] = headers.get('authorization', '').removeprefix('Bearer ')
        self.count += 1
        self.requests.append(request)
        name = self.random.choice(self.fault.split(','))
        if name == 'random':
            name = self.random.choice(list(FAULTS)) if self.count % 2 else 'none'
        self.served[name] += 1
        if self.pause_s:
            await asyncio.sleep(self.pause_s)
        exchange = Exchange(self, reader, writer, request, self.count)
        exchange.streamed = self.form == 'streamed' or (exchange.streamed and not self.form)
        again = await FAULTS[name](exchange)
        self.replied.append(time.monotonic())
        return again

    def stats(self) -> ChaosStats:
        """Return what it has done."""
        return ChaosStats(self.fault, dict(self.served), self.count, self.connections,
                          list(self.arrived), list(self.replied))

    async def _control(self, method: str, path: str, writer: asyncio.StreamWriter) -> bool:
        if method == 'PUT' and path.startswith('/fault/'):
            self.fault, _, self.form = path.rpartition('/')[2].partition('?')
        body = json.dumps(asdict(self.stats())).encode()
        writer.write(f'HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nContent-Type: '
                     'application/json\r\n\r\n'.encode() + body)
        await writer.drain()
        return True


def _question(request: ChatRequest) -> str:
    """Return the text of a request."""
    return ''.join(part.get('text', '') for message in request.get('messages', [])
                   for part in message['content'] if part.get('type') == 'text')


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm perf chaos-server', description=__doc__,
                                     epilog='example: spotvlm perf chaos-server --fault random',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--host', default='127.0.0.1')
    parser.add_argument('--port', type=int, default=0)
    parser.add_argument('--fault', default='none', choices=[*FAULTS, 'random'])
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--pause', type=float, default=0.0, help='before each reply [s]')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the standard input is closed; print the port."""
    arguments = command_parser().parse_args(argv)
    server = ChaosServer(arguments.fault, host=arguments.host, port=arguments.port,
                         seed=arguments.seed, pause_s=arguments.pause)
    print(server.port, flush=True)
    sys.stdin.read()
    server.stop()
    return 0


if __name__ == '__main__':
    sys.exit(main())
