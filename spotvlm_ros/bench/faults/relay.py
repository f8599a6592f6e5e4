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
A TCP relay with a delay, jitter and a bandwidth of its own, for kernels without ``tc netem``.

Bytes keep their order, as TCP's do: jitter only ever stretches the gaps.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
import random
import sys

CHUNK = 16_384
QUEUE = 64  # chunks under way in one direction; then the sender has to wait


@dataclass(frozen=True)
class Link:
    """One direction of a network; 0 is none."""

    delay_s: float = 0.0
    jitter_s: float = 0.0  # mean of the exponential part on top
    bytes_per_s: float = 0.0


class Relay:
    """Accepts connections and forwards both directions; lives in one asyncio loop."""

    def __init__(self, listen: tuple[str, int], to: tuple[str, int], link: Link,
                 seed: int = 0) -> None:
        """Prepare; nothing listens yet."""
        self.listen, self.to, self.link = listen, to, link
        self.port = listen[1]
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._connect, *self.listen)
        self.port = self._server.sockets[0].getsockname()[1]

    async def serve(self) -> None:
        """Forward until cancelled."""
        await self.start()
        assert self._server is not None
        async with self._server:
            await self._server.serve_forever()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.to)
        except OSError:
            writer.transport.abort()  # what a client of the dead server would see
            return
        try:
            await asyncio.gather(self._forward(reader, far_writer),
                                 self._forward(far_reader, writer))
        except OSError:
            pass
        finally:
            for end in (writer, far_writer):
                end.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop, link = asyncio.get_running_loop(), self.link
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE)

        async def send() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
        sending = asyncio.create_task(send())
        free = due = 0.0
        try:
            data = b' '
            while data:
                data = await reader.read(CHUNK)
                free = max(free, loop.time())
                if link.bytes_per_s:
                    free += len(data) / link.bytes_per_s
                jitter = self._random.expovariate(1 / link.jitter_s) if link.jitter_s else 0.0
                due = max(due, free + link.delay_s + jitter)
                await queue.put((due, data))
            await sending
        finally:
            sending.cancel()


def address(text: str) -> tuple[str, int]:
    """Read HOST:PORT."""
    host, _, port = text.rpartition(':')
    return host, int(port)


def main(argv: Sequence[str] | None = None) -> int:
    """Relay until ended by a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('listen', type=address, metavar='HOST:PORT')
    parser.add_argument('to', type=address, metavar='HOST:PORT')
    parser.add_argument('--delay', type=float, default=0.0, help='each way [s]')
    parser.add_argument('--jitter', type=float, default=0.0, help='mean, each way [s]')
    parser.add_argument('--mbit', type=float, default=0.0, help='each way [Mbit/s]; 0: no limit')
    arguments = parser.parse_args(argv)
    link = Link(arguments.delay, arguments.jitter, arguments.mbit * 125_000)
    relay = Relay(arguments.listen, arguments.to, link)
    try:
        asyncio.run(relay.serve())
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == '__main__':
    sys.exit(main())
