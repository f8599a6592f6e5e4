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
"""What is wrong with the TLS of a server, in words and with a remedy."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime, timezone
import os
import re
import ssl

import httpcore2

from .errors import CloudError, CloudUnreachable, CloudUntrusted
from ..system.compatible import timeout

FETCH_S = 3.0  # longest wait for a certificate whose dates are wanted
# Numbers of OpenSSL, see X509_verify_cert_error_string(3).
NOT_YET_VALID, EXPIRED = 9, 10
UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
OTHER_NAME = frozenset({62, 64})
# The two dates in a certificate, as DER: in two digits for the year or in four.
_TIME = rb'(?:\x17\x0d(\d{12}Z)|\x18\x0f(\d{14}Z))'
_VALIDITY = re.compile(rb'\x30[\x1e\x20\x22]' + _TIME * 2)


def tls_context() -> ssl.SSLContext:
    """Return what verifies servers; raise ValueError where what the environment names cannot."""
    try:
        return httpcore2.default_ssl_context()
    except OSError as error:
        name = 'SSL_CERT_FILE' if os.environ.get('SSL_CERT_FILE') else 'SSL_CERT_DIR'
        raise ValueError(f'{name} is {os.environ.get(name)!r}, which holds no certificates that '
                         f'can be read ({error.strerror or error}); correct or unset it') from None


def tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """Return the error of TLS that another one came from."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


async def explained(error: ssl.SSLError | None, host: str, port: int) -> CloudError:
    """
    Return an error of TLS as one of ours; nothing that the server said but its dates.

    None is silence, or a connection that was closed, where TLS should have begun.
    """
    if not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error and error.reason or 'eof').lower().replace('_', ' ')
        if reason in ('eof', 'unexpected eof while reading', 'wrong version number',
                      'record layer failure', 'http request'):
            return CloudUnreachable(f'{host} speaks no TLS on port {port}; check the port in '
                                    'base_url, or write http:// where the network is trusted')
        return CloudUnreachable(f'TLS with {host}, port {port}, failed ({reason}); see the log of '
                                'the server')
    code = error.verify_code
    if code in UNKNOWN_AUTHORITY:
        why = ('is signed by itself or by an authority that this machine does not know; let '
               'SSL_CERT_FILE name a file with the certificate of its authority')
    elif code in OTHER_NAME:
        why = 'is for another name; use in base_url the name that it was made for'
    elif code in (NOT_YET_VALID, EXPIRED):
        why = await _out_of_date(code, host, port)
    else:
        why = f'was refused ({error.verify_message}); ask who runs the server'
    return CloudUntrusted(f'the certificate of {host}, port {port}, {why}')


async def _out_of_date(code: int, host: str, port: int) -> str:
    """Say when a certificate is valid; it has to be fetched again, unverified."""
    pem, now = '', datetime.now(timezone.utc)
    with suppress(OSError, ValueError):  # a timeout is one, too
        async with timeout(FETCH_S):
            pem = await asyncio.to_thread(ssl.get_server_certificate, (host, port),
                                          timeout=FETCH_S)
    dates = validity(ssl.PEM_cert_to_DER_cert(pem)) if pem else None
    clock = f'by the clock of this machine it is {now:%Y-%m-%d %H:%M} UTC'
    remedy = 'renew it on the server, or set the clock'
    if code == EXPIRED:
        if dates is None or dates[1] > now:
            return f'or that of its authority has expired; {clock}: {remedy}'
        return f'has expired on {dates[1]:%Y-%m-%d %H:%M} UTC; {clock}: {remedy}'
    if dates is None or dates[0] < now:
        return f'or that of its authority is not yet valid; {clock}: {remedy}'
    return f'is not yet valid, before {dates[0]:%Y-%m-%d %H:%M} UTC; {clock}: {remedy}'


def validity(der: bytes) -> tuple[datetime, datetime] | None:
    """Return from when until when a certificate is valid, None where that cannot be read."""
    found = _VALIDITY.search(der)
    if found is None:
        return None
    short, full = '%y%m%d%H%M%SZ', '%Y%m%d%H%M%SZ'
    try:
        begin, end = (datetime.strptime((a or b).decode(), short if a else full).replace(
            tzinfo=timezone.utc) for a, b in (found.groups()[:2], found.groups()[2:]))
    except ValueError:
        return None
    return begin, end
