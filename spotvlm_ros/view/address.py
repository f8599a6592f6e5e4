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
"""Where a page is served."""

from __future__ import annotations

from dataclasses import dataclass
import os
import socket
import sys
from urllib.parse import urlsplit
import webbrowser

HERE = ('127.0.0.1', 'localhost', '::1')
PORT = 8600            # the first one that is tried: a page that was left open finds a new run
PORTS = 20             # that are tried one after another; then any
MAX_ASKING = 64        # connections


class AddressError(ValueError):
    """An address that cannot be served at; the message has the remedy."""


@dataclass(frozen=True)
class Address:
    """Where the page is; without a port a free one is taken."""

    host: str = '127.0.0.1'
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address that HOST:PORT, HOST or :PORT names; raise AddressError."""
        try:
            url = urlsplit(f'//{text}')
            host, port = url.hostname or '127.0.0.1', url.port or 0
        except ValueError:
            host, port = '', 0
        if not host or url.path or url.query or url.username is not None or ' ' in text:
            raise AddressError(f'--view {text!r} is no HOST:PORT, as in 0.0.0.0:8600; leave it '
                               'out for a page on this machine, and write --view last')
        return cls(host, port)

    @property
    def is_here(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in HERE


def listen(address: Address) -> socket.socket:
    """Return a socket at an address, or at a port that is free."""
    ports = [address.port] if address.port else [*range(PORT, PORT + PORTS), 0]
    why: OSError | None = None
    for port in ports:
        try:
            family, _, _, _, at = socket.getaddrinfo(
                address.host, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(at[:2], family=family, backlog=MAX_ASKING)
        except OSError as error:
            why = error
    raise AddressError(f'--view {address.host}:{address.port}: {why and why.strerror}; name '
                       'another address or port, or none for a free one') from why


def show(url: str) -> None:
    """Say where the page is, and open it where somebody sits before a screen."""
    is_page = url.startswith('http')
    print(f'live {"page" if is_page else "view"}: {url}', flush=True)
    if is_page and sys.stdout.isatty() and (
            os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        webbrowser.open(url)
