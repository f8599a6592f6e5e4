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
What can go wrong with a request, translated from the layers below.

A message never holds anything that the server said: it may echo the key, or be meant to be read::

    CloudError
    ├── CloudTimeout       no complete reply within the deadline
    ├── CloudUnreachable   nobody listens, or the connection broke
    │   └── CloudUntrusted  its certificate is not one to be trusted
    ├── CloudRefused       the server said no (HTTP status)
    └── CloudReplyError    a reply that cannot be used
        └── CloudReplyTooLarge
"""

from __future__ import annotations

KEY_ENV = 'SPOTVLM_API_KEY'
LOOPBACK = ('127.0.0.1', 'localhost', '::1')

# Statuses with a name of their own in diagnostics; a hostile server must not invent more.
STATUSES = frozenset({400, 401, 403, 404, 408, 413, 422, 429, 500, 502, 503, 504, 529})
PASSING = frozenset({408, 429, 500, 502, 503, 504, 529})  # worth asking again soon
REMEDIES = {400: 'check model; temperature: -1.0 leaves that out, and max_tokens_field: '
            'max_completion_tokens is its other name',
            401: f'set {KEY_ENV} or api_key_file', 403: f'check {KEY_ENV} or api_key_file',
            404: 'check base_url and model', 413: 'lower max_image_bytes or max_side',
            422: 'check model', 429: 'raise cloud_period_s or lower the budgets'}


class CloudError(Exception):
    """A request brought no answer; ``retry`` says whether another may fare better."""

    kind = 'error'
    retry = True


class CloudTimeout(CloudError):
    """No complete reply within the deadline."""

    kind = 'timeout'


class CloudUnreachable(CloudError):
    """Nobody listens at the address, or the connection broke."""

    kind = 'unreachable'


class CloudUntrusted(CloudUnreachable):
    """The certificate of the server is not one to be trusted: a person has to mend that."""

    kind = 'certificate'
    retry = False


class CloudReplyError(CloudError):
    """A reply that cannot be used."""

    kind = 'bad_reply'


class CloudReplyTooLarge(CloudReplyError):
    """A reply longer than the limit; the rest of it was not read."""

    kind = 'reply_too_large'


class CloudRefused(CloudError):
    """The server answered with an HTTP error."""

    def __init__(self, url: str, status: int, retry_after_s: float = 0.0) -> None:
        """Keep the status and how long the server wants to be left alone [s]."""
        remedy = REMEDIES.get(status, 'see the log of the server')
        super().__init__(f'{url} said HTTP {status} ({remedy})')
        self.status, self.retry_after_s = status, retry_after_s
        self.kind = f'http_{status}' if status in STATUSES else 'http_other'
        self.retry = status in PASSING
